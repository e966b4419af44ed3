//! Defences to leave out, one by one, so that tests can show what each is worth. Only with the feature `experiments`.

use crate::abi::{
    Mailbox, OpenHow, ROW_ALLOW, ROW_TOKEN, STEP_FIRST, STEP_KEEP, STEP_REPLY, STEP_SAVE, STEP_SERVE, STEP_STOP, Step,
    VaultPage, Verdict,
};
use crate::birth;
use crate::broker::decide::{Change, O_DIRECTORY, O_PATH};
use crate::broker::path::Whole;
use crate::clone::CloneFlags;
use crate::pair::{Layout, from_state};
use crate::setup::Plan;
use crate::signal::{AltStack, SigSet};
use crate::sys::{self, Sysno};
use crate::trusted::Entry;
use crate::untrusted;
use core::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use memoffset::offset_of;

/// A kernel of one's own, to play a broker's surroundings: only with the feature `simulation`.
#[cfg(feature = "simulation")]
mod simulation {
    use crate::sys::{self, Sysno};
    use core::sync::atomic::{AtomicPtr, Ordering};

    /// Is asked instead of the kernel; what it returns `None` for, the kernel is asked.
    pub type Kernel = fn(Sysno, &[usize; 6]) -> Option<sys::Result<usize>>;

    static KERNEL: AtomicPtr<()> = AtomicPtr::new(core::ptr::null_mut());

    /// Has this asked for every system call that this process makes from Rust; with `None`, nobody.
    pub fn simulate(kernel: Option<Kernel>) {
        KERNEL.store(kernel.map_or(core::ptr::null_mut(), |kernel| kernel as *mut ()), Ordering::Relaxed);
    }

    pub(crate) fn simulated(nr: Sysno, args: &[usize; 6]) -> Option<sys::Result<usize>> {
        let kernel = KERNEL.load(Ordering::Relaxed);
        if kernel.is_null() {
            return None;
        }
        // SAFETY: only `simulate` stores there, and functions of this type only.
        let kernel = unsafe { core::mem::transmute::<*mut (), Kernel>(kernel) };
        kernel(nr, args)
    }
}
#[cfg(feature = "simulation")]
pub(crate) use simulation::simulated;
#[cfg(feature = "simulation")]
pub use simulation::{Kernel, simulate};

/// What to leave out. The default leaves nothing out.
#[derive(Clone, Copy, Debug, Default)]
pub struct Weaken {
    /// T and U share one table of signal handlers (`CLONE_SIGHAND`).
    pub share_handlers: bool,
    /// T keeps a valid stack pointer.
    pub keep_stack: bool,
    /// T blocks no signal.
    pub unblock: bool,
    /// T has an alternate stack.
    pub altstack: bool,
    /// U is not locked down: it plays a hostile guest that found a way around strict mode.
    pub no_lockdown: bool,
    /// Arguments may point into the vault.
    pub no_vault_check: bool,
    /// No descriptor is protected.
    pub no_fd_check: bool,
    /// The vault is not sealed, and mapped writable.
    pub no_seal: bool,
    /// The mappings of vault and mailbox are not sealed (`mseal`).
    pub no_mseal: bool,
    /// The entry audit is made even so.
    pub audit_anyway: bool,
    /// No entry audit.
    pub no_audit: bool,
    /// T and U do not follow the supervisor into death.
    pub no_follow: bool,
    /// T makes any call: neither the allow list nor the policy counts. Arguments are still checked against the vault.
    pub any_call: bool,
    /// T keeps the floating-point state, the flags and the stack pointer that it was cloned with.
    pub unclean: bool,
}

/// T's stacks in experiments: the lowest quarter of the guest's stack, and the next.
fn stacks(layout: &Layout) -> (AltStack, usize) {
    let (stack, len) = layout.stack();
    (AltStack { sp: stack, flags: 0, size: len / 4 }, stack + len / 2)
}

/// Makes a step do nothing.
fn skip(step: &mut Step) {
    step.nr = Sysno::getppid as u32;
    step.flags = 0;
}

impl Weaken {
    pub(crate) fn apply(&self, vault: &mut VaultPage, page: &mut Verdict, layout: &Layout) {
        if self.no_vault_check {
            vault.vault_len = 0;
        }
        if self.no_fd_check {
            vault.fd_len = 0;
        }
        if self.any_call {
            let refused = |row: &&mut u32| **row & (ROW_ALLOW | ROW_TOKEN) == 0;
            vault.table.iter_mut().filter(refused).for_each(|row| *row = ROW_ALLOW);
        }
        if self.unblock {
            page.mask = SigSet::EMPTY;
        }
        if self.altstack {
            page.t_altstack = stacks(layout).0;
            let at = layout.verdict(0).addr() + offset_of!(Verdict, t_altstack);
            if let Some(end) = page.t.iter().position(|step| step.nr == STEP_SERVE) {
                page.t.copy_within(end..=end, end + 1);
                page.t[end] = Step { nr: Sysno::sigaltstack as u32, args: [at, 0, 0, 0, 0, 0], ..Step::default() };
            }
        }
        let prctl = |step: &&mut Step, option| step.nr == Sysno::prctl as u32 && step.args[0] == option;
        if self.no_lockdown {
            page.u.iter_mut().filter(|step| prctl(step, sys::PR_SET_SECCOMP)).for_each(skip);
        }
        if self.no_follow {
            page.u.iter_mut().chain(&mut page.t).filter(|step| prctl(step, sys::PR_SET_PDEATHSIG)).for_each(skip);
        }
    }

    pub(crate) fn plan<'a>(&self, plan: Plan<'a>) -> Plan<'a> {
        let share = CloneFlags::new().vm().sighand().files().sibling().announced().bits();
        let keep = (Entry::Unpoisoned, stacks(&plan.layout).1);
        Plan {
            clone_flags: if self.share_handlers { share } else { plan.clone_flags },
            trusted: match (self.keep_stack, self.unclean) {
                (true, _) => keep,
                (_, true) => (Entry::Untrusted, plan.trusted.1), // behind all that cleans
                _ => plan.trusted,
            },
            audit: !self.no_audit && (!self.no_seal || self.audit_anyway),
            mseal: !self.no_mseal && !self.no_seal,
            vault_writable: self.no_seal,
            ..plan
        }
    }
}

/// In a guest: address and length of the mailbox.
pub fn mailbox() -> (usize, usize) {
    // SAFETY: a guest's state is mapped.
    (unsafe { (*untrusted::state()).mailbox.addr() }, size_of::<Mailbox>())
}

/// In a guest: the vault, from (included) to (excluded).
pub fn vault() -> (usize, usize) {
    // SAFETY: a guest's state is mapped.
    unsafe { (*untrusted::state()).fault.vault() }
}

/// In a guest: T's base page and its verdict.
pub fn pages() -> (*mut VaultPage, *mut Verdict) {
    let state = untrusted::state();
    // SAFETY: a guest's state is mapped.
    let k = unsafe { (*state).pair };
    (from_state::vault(state, k).cast::<VaultPage>().cast_mut(), from_state::verdict(state, k).cast_mut())
}

/// In a guest: the first of the sandbox's own descriptors.
pub fn first_own_fd() -> i32 {
    // SAFETY: a guest's state is mapped.
    unsafe { (*untrusted::state()).alarm }
}

/// In a guest with one thread and no roots: how many descriptors the sandbox has of its own.
pub const OWN_FDS: usize = crate::setup::MADE + 2;

/// In a guest: the lowest address of this thread's alternate stack.
pub fn altstack() -> usize {
    // SAFETY: the verdict is mapped, and readable.
    unsafe { (*pages().1).altstack.sp }
}

/// In a guest: T's doorbell, and U's.
pub fn doorbells() -> (i32, i32) {
    // SAFETY: a guest's state is mapped.
    unsafe { ((*untrusted::state()).doorbell_t, (*untrusted::state()).doorbell_u) }
}

/// The broker believes a mailbox that says that its T asks, and does not ask the kernel.
pub static BELIEVE_MAILBOX: AtomicBool = AtomicBool::new(false);
/// The broker believes that whoever rings asks, and that every T waits then.
pub static BELIEVE_ALARM: AtomicBool = AtomicBool::new(false);
/// The broker reads the path, or the arguments of a call that it approves as it is, again after it has decided.
pub static READ_AGAIN: AtomicBool = AtomicBool::new(false);
/// T opens the path that the guest's pointer leads to, instead of the broker's copy.
pub static GUESTS_POINTER: AtomicBool = AtomicBool::new(false);
/// T removes names, in two steps with a descriptor between them.
pub static UNLINK_BY_T: AtomicBool = AtomicBool::new(false);
/// Paths are opened without `RESOLVE_BENEATH`.
pub static NOT_BENEATH: AtomicBool = AtomicBool::new(false);
/// The broker believes what a message about a birth says, whoever sent it.
pub static BELIEVE_BIRTHS: AtomicBool = AtomicBool::new(false);

/// The broker believes a mailbox that says that its T asks for something else, and so could not make another T.
pub static BELIEVE_ASKS: AtomicBool = AtomicBool::new(false);
/// Looks at whether a T waits are made without pauses.
pub static NO_PAUSES: AtomicBool = AtomicBool::new(false);
/// How many looks there were.
pub static LOOKS: AtomicU32 = AtomicU32::new(0);
/// Pauses between U's last look at its signals and a `read` or `write` of its own.
pub static DAWDLE: AtomicU32 = AtomicU32::new(0);
/// A signal that comes meanwhile is not seen.
pub static MISS_KICKS: AtomicBool = AtomicBool::new(false);
/// Pauses between a handler's last look at its signals and its leaving.
pub static LINGER: AtomicU32 = AtomicU32::new(0);
/// A signal that comes meanwhile waits for the next look.
pub static LATE_KICKS: AtomicBool = AtomicBool::new(false);
/// A new task that cannot say that it is there does not try again.
pub static SILENT_BIRTHS: AtomicBool = AtomicBool::new(false);
/// No new thread waits for the end of one that ends.
pub static NO_WAITS_FOR_ROOM: AtomicBool = AtomicBool::new(false);
/// A signal that waits for the thread when it is kicked next; 0 for none.
pub static PEND: AtomicU32 = AtomicU32::new(0);
/// A handler that was interrupted when it left is not taken for gone.
pub static HALF_LEFT: AtomicBool = AtomicBool::new(false);
/// The gates of threads are open from the beginning.
pub static OPEN_GATES: AtomicBool = AtomicBool::new(false);
/// The broker never opens a gate.
pub static HOLD_GATES: AtomicBool = AtomicBool::new(false);
/// The end of a sandbox waits a tenth as long for a task that does not end.
pub static HURRY: AtomicBool = AtomicBool::new(false);
/// The end of a sandbox does not wait for tasks that have not announced themselves.
pub static FORGET_UNBORN: AtomicBool = AtomicBool::new(false);

/// Whether a message is believed although its sender is known: it fits a pair of which no T is known, or no U.
pub(crate) fn believed(unborn: bool, half: bool, what: u32) -> bool {
    BELIEVE_BIRTHS.load(Ordering::Relaxed) && (unborn && what == birth::BORN_T || half && what == birth::BORN_U)
}

/// In a guest: what it believes the turn word to be, to forge the next request.
pub fn turn() -> *mut u32 {
    // SAFETY: a guest's state is mapped.
    unsafe { &raw mut (*untrusted::state()).turn }
}

/// Makes the reporter fault in the middle of its next report, by a write to address 0.
pub static FAULT_IN_REPORTER: AtomicBool = AtomicBool::new(false);

pub(crate) fn fault_in_reporter() {
    if FAULT_IN_REPORTER.load(Ordering::Relaxed) {
        // SAFETY: none: the fault is the point.
        unsafe { core::ptr::without_provenance_mut::<u8>(1).write_volatile(0) };
    }
}

/// What a broker would do that reads the request again: the name in its folder, from the mailbox as it is now.
fn name_again(mailbox: *const Mailbox, data: &mut [u8]) {
    // SAFETY: the supervisor's view of the mailbox, while the guest writes there.
    let byte = |i: usize| unsafe { (&raw const (*mailbox).data.0).cast::<u8>().wrapping_add(i).read_volatile() };
    let len = (0..crate::abi::PAYLOAD).take_while(|i| byte(*i) != 0).count();
    let name = (0..len).rev().take_while(|i| byte(*i) != b'/').count();
    for (i, to) in data.iter_mut().skip(size_of::<OpenHow>()).take(name).enumerate() {
        *to = byte(len - name + i);
    }
}

/// What a broker would do that reads the request again, or has T follow the guest's pointers, once a script is written.
/// `rest` is where in a path that is opened the part below the root begins.
pub(crate) fn decided(mailbox: *const Mailbox, page: &mut Verdict, nr: u32, args: &[usize; 6], rest: Option<usize>) {
    let Some(step) = page.script.first_mut() else { return };
    if READ_AGAIN.load(Ordering::Relaxed) {
        if rest.is_some() {
            name_again(mailbox, &mut page.data);
        } else if step.nr == nr {
            // SAFETY: the supervisor's view of the mailbox, while the guest writes there.
            step.args = unsafe { (&raw const (*mailbox).line.args).read_volatile() };
        }
    }
    if let Some(rest) = rest.filter(|_| GUESTS_POINTER.load(Ordering::Relaxed)) {
        step.args[1] = args[1] + rest;
    }
}

/// Has T remove a name, if it is to: opens the folder, removes the name in it. `at` is where the guest sees `data`.
pub(crate) fn unlink_by_t(change: &Change<'_>, whole: &mut Whole, roots: u32, page: &mut Verdict, at: usize) -> bool {
    let Change::Unlink(place, false) = *change else { return false };
    if !UNLINK_BY_T.load(Ordering::Relaxed) {
        return false;
    }
    let Some((folder, name)) = whole.split(place) else { return false };
    let (folder, name) = (folder.to_bytes(), name.to_bytes());
    let how = [(O_PATH | O_DIRECTORY) as u64, 0, 0];
    let bytes = how.iter().flat_map(|word| word.to_ne_bytes()).chain(folder.iter().copied()).chain([0]);
    page.data.iter_mut().zip(bytes.chain(name.iter().copied()).chain([0])).for_each(|(to, from)| *to = from);
    let path = at + size_of::<OpenHow>();
    let root = roots as usize + place.root;
    let step = |nr, flags, args| Step { nr, flags, args, ..Step::default() };
    let script = [
        step(Sysno::openat2 as u32, STEP_SAVE | STEP_STOP, [root, path, at, size_of::<OpenHow>(), 0, 0]),
        step(Sysno::unlinkat as u32, STEP_KEEP | STEP_FIRST, [0, path + folder.len() + 1, 0, 0, 0, 0]),
        step(Sysno::close as u32, STEP_FIRST, [0; 6]),
        step(STEP_REPLY, STEP_KEEP, [0; 6]),
    ];
    page.script.iter_mut().zip(script).for_each(|(to, from)| *to = from);
    true
}
