//! Policies, built call by call.

use crate::error::{Error, Failure, tell};
use crate::memory::{self, Blocks};
use core::ffi::{c_char, c_int, c_long, c_void};
use core::sync::atomic::{AtomicUsize, Ordering, fence};
use runtime::policy::{self, LIST, ROOTS, Rights};
use runtime::sys::Sysno;

/// Open for reading, list, look at attributes.
pub const ASCETIC_READ: u32 = 1;
/// Open for writing, truncate, change attributes.
pub const ASCETIC_WRITE: u32 = 2;
/// Create, rename and remove names.
pub const ASCETIC_CREATE: u32 = 4;
/// Map executable; of use only if all roots have it.
pub const ASCETIC_EXECUTE: u32 = 8;

const RIGHTS: [(u32, Rights); 4] = [
    (ASCETIC_READ, Rights::READ),
    (ASCETIC_WRITE, Rights::WRITE),
    (ASCETIC_CREATE, Rights::CREATE),
    (ASCETIC_EXECUTE, Rights::EXECUTE),
];

/// What a sandbox may do. What nothing allows is refused, with ENOSYS if nothing else is said.
pub struct Policy {
    pub(crate) policy: policy::Policy<'static>,
    /// How many of each list there are.
    protocols: usize,
    options: usize,
    ioctls: usize,
    /// What the policy points to.
    blocks: Blocks,
    /// [`HELD`] while the program has it, and [`SANDBOX`] for each sandbox.
    users: AtomicUsize,
}

/// See [`Policy::users`].
const HELD: usize = 1;
/// See [`Policy::users`].
const SANDBOX: usize = 2;

/// Bytes of a socket address, from its first on: an address that begins so is allowed.
#[repr(C)]
pub struct Address {
    /// A `struct sockaddr_*`, or as much of it as matters.
    pub bytes: *const c_void,
    /// How many bytes.
    pub len: usize,
}

/// What a sandbox may use at most.
#[repr(C)]
pub struct Limits {
    /// Threads at once (1 to 256).
    pub threads: u32,
    /// Numbers of descriptors below this are the guest's to use; 0 for no limit but the kernel's.
    pub descriptors: u32,
    /// Bytes that the guest may map, beyond what it starts with; 0 for no limit but the kernel's.
    pub mapped: usize,
    /// Calls a second that ask the supervisor; 0 for no limit. Calls beyond wait.
    pub calls: u32,
}

impl Policy {
    /// Takes one more sandbox into account.
    pub(crate) fn share(&self) {
        self.users.fetch_add(SANDBOX, Ordering::Relaxed);
    }

    /// Whether the program has not freed it.
    pub(crate) fn held(&self) -> Result<&Self, Failure> {
        match self.users.load(Ordering::Acquire) & HELD {
            0 => Err(Failure::Argument("the policy was freed")),
            _ => Ok(self),
        }
    }

    /// Takes one sandbox less into account; frees what has no user.
    ///
    /// # Safety
    ///
    /// `at` is of [`ascetic_policy_new`]; the sandbox does not use it any more.
    pub(crate) unsafe fn release(at: *mut Self) {
        // SAFETY: the caller's: as long as there are users, it is there; the last one frees it.
        unsafe {
            if (*at).users.fetch_sub(SANDBOX, Ordering::Release) == SANDBOX {
                Self::end(at);
            }
        }
    }

    /// # Safety
    ///
    /// There are no users any more.
    unsafe fn end(at: *mut Self) {
        fence(Ordering::Acquire);
        // SAFETY: the caller's; it is of `ascetic_policy_new`.
        unsafe {
            at.drop_in_place();
            memory::give_back(at);
        }
    }

    /// Makes a change that cannot fail.
    fn change(
        &mut self,
        change: impl FnOnce(policy::Policy<'static>) -> policy::Policy<'static>,
    ) -> Result<(), Failure> {
        self.policy = change(core::mem::take(&mut self.policy));
        Ok(())
    }
}

/// Makes a change to a policy that no sandbox uses.
///
/// # Safety
///
/// `policy` is NULL or a policy; `error` is NULL or has room for an [`Error`].
unsafe fn changing(
    policy: *mut Policy,
    error: *mut Error,
    change: impl FnOnce(&mut Policy) -> Result<(), Failure>,
) -> c_int {
    // SAFETY: the caller's; no sandbox refers to it, and it is used by one thread at a time.
    let result = match unsafe { policy.as_ref() } {
        None => Err(Failure::Argument("the policy is NULL")),
        Some(shared) if shared.users.load(Ordering::Acquire) != HELD => Err(Failure::InUse),
        // SAFETY: as above.
        Some(_) => change(unsafe { &mut *policy }),
    };
    // SAFETY: the caller's.
    unsafe { tell(result.map(|()| 0), error) }
}

fn call_of(nr: c_long) -> Result<Sysno, Failure> {
    usize::try_from(nr).ok().and_then(Sysno::new).ok_or(Failure::NoCall)
}

/// A policy that allows nothing but clock_gettime, with which the guest's rdtsc is answered. NULL if there is no memory.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ascetic_policy_new() -> *mut Policy {
    let Some(at) = memory::room::<Policy>() else { return core::ptr::null_mut() };
    let new = Policy {
        policy: policy::Policy::new(),
        protocols: 0,
        options: 0,
        ioctls: 0,
        blocks: Blocks::new(),
        users: AtomicUsize::new(HELD),
    };
    // SAFETY: there is room for one.
    unsafe { at.write(new) };
    at.as_ptr()
}

/// Frees a policy, or nothing if it is NULL. Sandboxes that use it keep it until they are freed; meanwhile it is none for new
/// ones, and freeing it again does nothing.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ascetic_policy_free(policy: *mut Policy) {
    if !policy.is_null() {
        // SAFETY: a policy; the caller uses it no more. It is there as long as it is held, or there are sandboxes.
        unsafe {
            if (*policy).users.fetch_and(!HELD, Ordering::Release) == HELD {
                Policy::end(policy);
            }
        }
    }
}

/// Allows what an ordinary program's libc needs besides files, memory and threads.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ascetic_policy_ordinary(policy: *mut Policy, error: *mut Error) -> c_int {
    // SAFETY: the caller's.
    unsafe { changing(policy, error, |policy| policy.change(policy::Policy::ordinary)) }
}

/// Allows a call by its number (`SYS_*` of <sys/syscall.h>), on its arguments alone. Fails with ASCETIC_E_NOT_DIRECT if
/// that is not enough to decide on, and says why.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ascetic_policy_direct(policy: *mut Policy, call: c_long, error: *mut Error) -> c_int {
    let direct = |policy: &mut Policy| {
        policy.policy = policy.policy.clone().try_direct(call_of(call)?)?;
        Ok(())
    };
    // SAFETY: the caller's.
    unsafe { changing(policy, error, direct) }
}

/// ascetic_policy_direct() by the call's name, as "getppid".
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ascetic_policy_direct_name(
    policy: *mut Policy,
    name: *const c_char,
    error: *mut Error,
) -> c_int {
    // SAFETY: the caller's.
    let name = unsafe { memory::string(name) };
    let direct = |policy: &mut Policy| {
        let name = name.ok_or(Failure::Argument("the name is NULL"))?;
        let call = name.to_str().ok().and_then(|name| name.parse().ok()).ok_or(Failure::NoCall)?;
        policy.policy = policy.policy.clone().try_direct(call)?;
        Ok(())
    };
    // SAFETY: the caller's.
    unsafe { changing(policy, error, direct) }
}

const BAD_ERRNO: Failure = Failure::Argument("an errno is one of 1 to 4095");

/// Refuses a call with an errno of its own (1 to 4095), whatever else allows it.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ascetic_policy_refuse(
    policy: *mut Policy,
    call: c_long,
    sys_errno: u32,
    error: *mut Error,
) -> c_int {
    let refuse = |policy: &mut Policy| {
        let call = call_of(call)?;
        if !(1..=4095).contains(&sys_errno) {
            return Err(BAD_ERRNO);
        }
        policy.change(|policy| policy.refuse(call, sys_errno))
    };
    // SAFETY: the caller's.
    unsafe { changing(policy, error, refuse) }
}

/// Refuses what is not allowed with this errno (1 to 4095) instead of ENOSYS, but for calls that a libc can do without when
/// they are ENOSYS, and for those that are refused by name.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ascetic_policy_default_errno(policy: *mut Policy, sys_errno: u32, error: *mut Error) -> c_int {
    let refuse = |policy: &mut Policy| {
        if !(1..=4095).contains(&sys_errno) {
            return Err(BAD_ERRNO);
        }
        policy.change(|policy| policy.default_errno(sys_errno))
    };
    // SAFETY: the caller's.
    unsafe { changing(policy, error, refuse) }
}

/// # Safety
///
/// `path` is NULL or a string, the rest as for [`changing`].
unsafe fn add_root(policy: *mut Policy, path: *const c_char, rights: u32, exact: bool, error: *mut Error) -> c_int {
    // SAFETY: the caller's.
    let path = unsafe { memory::string(path) };
    let add = |policy: &mut Policy| {
        let path = path.ok_or(Failure::Argument("the path is NULL"))?;
        let known = RIGHTS.iter().fold(0, |bits, (bit, _)| bits | bit);
        if rights & !known != 0 {
            return Err(Failure::Argument(
                "rights are ASCETIC_READ, ASCETIC_WRITE, ASCETIC_CREATE and ASCETIC_EXECUTE",
            ));
        }
        let asked = RIGHTS.iter().filter(|(bit, _)| rights & bit != 0);
        let rights = asked.fold(Rights::NONE, |all, (_, right)| all.and(*right));
        if policy.policy.roots_len() == ROOTS {
            return Err(policy::BadRoot::TooMany.into());
        }
        let path = policy.blocks.string(path).ok_or(Failure::Memory)?;
        policy.policy = policy.policy.clone().try_root(policy::Root { path, rights, exact })?;
        Ok(())
    };
    // SAFETY: the caller's.
    unsafe { changing(policy, error, add) }
}

/// Allows what `rights` (ASCETIC_READ | ...) say with the folder at `path` and what is below it, other mounts excepted. The
/// path is absolute, without `.`, `..` and `//`. With no rights, all that may be known is that the folder itself is there: for
/// those on the way to other roots, which realpath() and its like look at.
///
/// A root in another must allow all that the other does, and no more if that has ASCETIC_CREATE: anything else could not be
/// kept up, and is ASCETIC_E_CONFLICT.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ascetic_policy_root(
    policy: *mut Policy,
    path: *const c_char,
    rights: u32,
    error: *mut Error,
) -> c_int {
    // SAFETY: the caller's.
    unsafe { add_root(policy, path, rights, false, error) }
}

/// Allows what `rights` say with the one file at `path`. If there is a folder, there is no sandbox: ASCETIC_E_ROOT.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ascetic_policy_file(
    policy: *mut Policy,
    path: *const c_char,
    rights: u32,
    error: *mut Error,
) -> c_int {
    // SAFETY: the caller's.
    unsafe { add_root(policy, path, rights, true, error) }
}

/// Follows no symbolic link below any root.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ascetic_policy_no_links(policy: *mut Policy, error: *mut Error) -> c_int {
    // SAFETY: the caller's.
    unsafe { changing(policy, error, |policy| policy.change(policy::Policy::no_links)) }
}

/// Where there are roots, allows locks (flock, fcntl) and flags of open files (F_SETFL): of every descriptor that the guest has.
/// Those that it keeps it shares with this process.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ascetic_policy_locks_and_flags(policy: *mut Policy, error: *mut Error) -> c_int {
    // SAFETY: the caller's.
    unsafe { changing(policy, error, |policy| policy.change(policy::Policy::locks_and_flags)) }
}

/// Allows to map, unmap and protect memory: not executable, unless ascetic_policy_executable() says so, too.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ascetic_policy_memory(policy: *mut Policy, error: *mut Error) -> c_int {
    // SAFETY: the caller's.
    unsafe { changing(policy, error, |policy| policy.change(policy::Policy::memory)) }
}

/// Allows to make memory executable, as a JIT compiler needs.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ascetic_policy_executable(policy: *mut Policy, error: *mut Error) -> c_int {
    // SAFETY: the caller's.
    unsafe { changing(policy, error, |policy| policy.change(policy::Policy::executable)) }
}

/// Refuses mappings that are writable and executable at once.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ascetic_policy_w_xor_x(policy: *mut Policy, error: *mut Error) -> c_int {
    // SAFETY: the caller's.
    unsafe { changing(policy, error, |policy| policy.change(policy::Policy::w_xor_x)) }
}

/// Allows an ioctl by its number. What it stores, it stores where the guest says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ascetic_policy_ioctl(policy: *mut Policy, number: u32, error: *mut Error) -> c_int {
    let add = |policy: &mut Policy| {
        if policy.ioctls == LIST {
            return Err(Failure::Full("a policy has 16 ioctls at most"));
        }
        policy.ioctls += 1;
        policy.change(|policy| policy.ioctl(number))
    };
    // SAFETY: the caller's.
    unsafe { changing(policy, error, add) }
}

/// Allows to set and to ask for a socket option whose value has no pointers.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ascetic_policy_option(policy: *mut Policy, level: u32, name: u32, error: *mut Error) -> c_int {
    let add = |policy: &mut Policy| {
        if policy.options == LIST {
            return Err(Failure::Full("a policy has 16 socket options at most"));
        }
        policy.options += 1;
        policy.change(|policy| policy.option(level, name))
    };
    // SAFETY: the caller's.
    unsafe { changing(policy, error, add) }
}

/// Allows sockets of a family (AF_*), and to connect to, bind and send to `count` addresses. With none, only what
/// socketpair() makes and what the guest keeps is of use. An address of AF_UNIX
/// below a root with ASCETIC_CREATE is ASCETIC_E_CONFLICT: the guest could have it lead elsewhere.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ascetic_policy_family(
    policy: *mut Policy,
    family: u16,
    addresses: *const Address,
    count: usize,
    error: *mut Error,
) -> c_int {
    // SAFETY: the caller's.
    let addresses = unsafe { memory::slice(addresses, count) };
    let add = |policy: &mut Policy| {
        let addresses = addresses.ok_or(Failure::Argument("the addresses are NULL"))?;
        let mut list: [&[u8]; LIST] = [&[]; LIST];
        let list = list.get_mut(..count).ok_or(Failure::Full("a family has 16 addresses at most"))?;
        for (to, address) in list.iter_mut().zip(addresses) {
            // SAFETY: the caller's.
            let bytes = unsafe { memory::slice(address.bytes.cast(), address.len) };
            let bytes = bytes.ok_or(Failure::Argument("the bytes of an address are NULL"))?;
            *to = policy.blocks.slice(bytes).ok_or(Failure::Memory)?;
        }
        let addresses = policy.blocks.slice(list).ok_or(Failure::Memory)?;
        policy.policy = policy.policy.clone().try_family(policy::Family { family, addresses })?;
        Ok(())
    };
    // SAFETY: the caller's.
    unsafe { changing(policy, error, add) }
}

/// Allows sockets of a protocol beside the family's usual ones: TCP streams and UDP datagrams of AF_INET and AF_INET6, 0 of
/// all other families.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ascetic_policy_protocol(
    policy: *mut Policy,
    family: u16,
    protocol: u32,
    error: *mut Error,
) -> c_int {
    let add = |policy: &mut Policy| {
        if policy.protocols == LIST {
            return Err(Failure::Full("a policy has 16 protocols at most"));
        }
        policy.protocols += 1;
        policy.change(|policy| policy.protocol(family, protocol))
    };
    // SAFETY: the caller's.
    unsafe { changing(policy, error, add) }
}

/// Allows sockets to listen, whatever their family. One of AF_INET or AF_INET6 that was not bound listens at all addresses of
/// the machine, at a port that the kernel chooses.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ascetic_policy_listen(policy: *mut Policy, error: *mut Error) -> c_int {
    // SAFETY: the caller's.
    unsafe { changing(policy, error, |policy| policy.change(policy::Policy::listen)) }
}

/// Allows the guest to send signals to its own threads. Without it, a thread can send itself what it handles, and the
/// signals of the fault reporter.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ascetic_policy_signals(policy: *mut Policy, error: *mut Error) -> c_int {
    // SAFETY: the caller's.
    unsafe { changing(policy, error, |policy| policy.change(policy::Policy::signals)) }
}

/// Allows this much of everything.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ascetic_policy_limits(policy: *mut Policy, limits: *const Limits, error: *mut Error) -> c_int {
    // SAFETY: the caller's.
    let limits = unsafe { limits.as_ref() };
    let set = |policy: &mut Policy| {
        let limits = limits.ok_or(Failure::Argument("the limits are NULL"))?;
        let &Limits { threads, descriptors, mapped, calls } = limits;
        if !(1..=runtime::abi::PAIRS as u32).contains(&threads) {
            return Err(Failure::Argument("a sandbox has 1 to 256 threads"));
        }
        policy.change(|policy| policy.limits(policy::Limits { threads, mapped, descriptors, calls }))
    };
    // SAFETY: the caller's.
    unsafe { changing(policy, error, set) }
}

/// Allows this many threads at once (1 to 256), and leaves the other limits as they are.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ascetic_policy_threads(policy: *mut Policy, threads: u32, error: *mut Error) -> c_int {
    let set = |policy: &mut Policy| {
        if !(1..=runtime::abi::PAIRS as u32).contains(&threads) {
            return Err(Failure::Argument("a sandbox has 1 to 256 threads"));
        }
        policy.change(|policy| policy.threads(threads))
    };
    // SAFETY: the caller's.
    unsafe { changing(policy, error, set) }
}
