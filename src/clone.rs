//! `clone()` flags, built by hand and checked by the compiler.
//!
//! The kernel ties them together (`kernel/fork.c`, `copy_process`): `CLONE_THREAD` needs `CLONE_SIGHAND`, which needs
//! `CLONE_VM`. What a trusted thread must be, "shares the memory, but not the table of signal handlers", therefore
//! makes it a process of its own. The type parameters of [`CloneFlags`] keep the three apart, so that flags with
//! which a guest's handler could run in a trusted thread have a different type, and [`TrustedTask`] is not implemented
//! for it.

use core::marker::PhantomData;
use static_assertions::{assert_impl_all, assert_not_impl_any, const_assert};

const CLONE_VM: usize = 0x100;
const CLONE_FS: usize = 0x200;
const CLONE_FILES: usize = 0x400;
const CLONE_SIGHAND: usize = 0x800;
const CLONE_PARENT: usize = 0x8000;
const CLONE_THREAD: usize = 0x1_0000;
const CLONE_SYSVSEM: usize = 0x4_0000;
const CLONE_PARENT_SETTID: usize = 0x10_0000;

/// The task has its own.
#[derive(Clone, Copy, Debug)]
pub enum Own {}
/// The task shares its creator's.
#[derive(Clone, Copy, Debug)]
pub enum Shared {}

/// Flags for `clone(2)`. `Vm`: the address space; `Sighand`: the table of signal handlers; `Group`: the thread group.
/// Each is [`Own`] or [`Shared`].
#[derive(Clone, Copy, Debug)]
pub struct CloneFlags<Vm, Sighand, Group>(usize, PhantomData<(Vm, Sighand, Group)>);

impl CloneFlags<Own, Own, Own> {
    /// A child that shares nothing.
    pub const fn new() -> Self {
        Self(0, PhantomData)
    }

    /// Shares the address space.
    pub const fn vm(self) -> CloneFlags<Shared, Own, Own> {
        CloneFlags(self.0 | CLONE_VM, PhantomData)
    }
}

impl Default for CloneFlags<Own, Own, Own> {
    fn default() -> Self {
        Self::new()
    }
}

impl CloneFlags<Shared, Own, Own> {
    /// Shares the table of signal handlers, which needs the address space shared. Never for a trusted thread.
    pub const fn sighand(self) -> CloneFlags<Shared, Shared, Own> {
        CloneFlags(self.0 | CLONE_SIGHAND, PhantomData)
    }
}

impl CloneFlags<Shared, Shared, Own> {
    /// Becomes a thread of the caller's group, which needs the handlers shared.
    pub const fn thread(self) -> CloneFlags<Shared, Shared, Shared> {
        CloneFlags(self.0 | CLONE_THREAD, PhantomData)
    }
}

impl<Vm, Sighand, Group> CloneFlags<Vm, Sighand, Group> {
    /// Shares descriptors, file-system state and SysV semaphore adjustments.
    pub const fn files(self) -> Self {
        Self(self.0 | CLONE_FILES | CLONE_FS | CLONE_SYSVSEM, PhantomData)
    }

    /// Becomes a child of the caller's parent, which then reaps it and learns its true wait status.
    pub const fn sibling(self) -> Self {
        Self(self.0 | CLONE_PARENT, PhantomData)
    }

    /// The kernel stores the child's id in the creator's memory before the child runs.
    pub const fn announced(self) -> Self {
        Self(self.0 | CLONE_PARENT_SETTID, PhantomData)
    }

    /// The bits.
    pub const fn bits(self) -> usize {
        self.0
    }
}

/// Flags with which a trusted thread may be made: memory shared, handlers not, a thread group of its own.
pub trait TrustedTask: Copy {}
impl TrustedTask for CloneFlags<Shared, Own, Own> {}

assert_impl_all!(CloneFlags<Shared, Own, Own>: TrustedTask);
assert_not_impl_any!(CloneFlags<Own, Own, Own>: TrustedTask);
assert_not_impl_any!(CloneFlags<Shared, Shared, Own>: TrustedTask);
assert_not_impl_any!(CloneFlags<Shared, Shared, Shared>: TrustedTask);

/// The flags of T and of U: they share everything but handlers, and the supervisor is their parent.
pub const PAIR: CloneFlags<Shared, Own, Own> = CloneFlags::new().vm().files().sibling().announced();

/// The flags of the T and the U of a thread: the same, made by a T, which announces nobody: they announce themselves.
pub const THREAD: CloneFlags<Shared, Own, Own> = CloneFlags::new().vm().files().sibling();

const_assert!(PAIR.bits() & CLONE_VM != 0);
const_assert!(PAIR.bits() & CLONE_SIGHAND == 0);
const_assert!(PAIR.bits() & CLONE_THREAD == 0);
