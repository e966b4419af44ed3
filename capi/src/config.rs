//! What a sandbox is to be.

use crate::error::Failure;
use crate::memory;
use crate::sandbox::{Outcome, Sandbox};
use core::ffi::{c_int, c_void};
use core::time::Duration;
use runtime::policy::Policy;
use runtime::sandbox::{self, DEFAULT_STACK, Placement};
use runtime::seccomp::{Lockdown, Pins};

/// Seccomp strict mode: read, write, exit and sigreturn.
pub const ASCETIC_LOCKDOWN_STRICT: u32 = 0;
/// The same four calls by a filter: where a filter is in force already, or `filter_read` and `filter_write` are of use.
pub const ASCETIC_LOCKDOWN_FILTER: u32 = 1;

/// Two CPUs while there are enough, else one.
pub const ASCETIC_PLACEMENT_AUTO: u32 = 0;
/// On one CPU.
pub const ASCETIC_PLACEMENT_TOGETHER: u32 = 1;
/// On two CPUs.
pub const ASCETIC_PLACEMENT_APART: u32 = 2;
/// Where the scheduler likes.
pub const ASCETIC_PLACEMENT_FLOATING: u32 = 3;

/// Memory: its address and its length in bytes.
#[repr(C)]
pub struct Range {
    /// Where it begins.
    pub at: *const c_void,
    /// How long it is.
    pub len: usize,
}

/// Told, in the process that called ascetic_enter(), how the guest ended, before that process ends likewise. The sandbox is
/// lent until it returns: ask it for its record, its refusals and its process ids.
pub type Report = Option<unsafe extern "C" fn(sandbox: *mut Sandbox, outcome: *const Outcome, user: *mut c_void)>;

/// What a sandbox is to be. Begin with ascetic_config_init(), and change what is to be different.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Config {
    /// Bytes of this structure, as the program knows it; ascetic_config_init() sets it.
    pub size: usize,
    /// Bytes of the guest's stack for ascetic_spawn(). ascetic_enter() keeps the caller's.
    pub stack: usize,
    /// The descriptors that the guest keeps, under their numbers. All others are closed in the sandbox.
    pub keep: *const c_int,
    /// How many.
    pub keep_len: usize,
    /// Memory that is writable and shared, and that the guest keeps; other such memory is an error.
    pub share: *const Range,
    /// How many.
    pub share_len: usize,
    /// Where crash records go, a descriptor that is made non-blocking; -1 for memory, see ascetic_record().
    pub crash: c_int,
    /// How the guest is locked down: ASCETIC_LOCKDOWN_*
    pub lockdown: u32,
    /// With ASCETIC_LOCKDOWN_FILTER, up to 8 descriptors that the guest's own read may use; NULL for all.
    pub filter_read: *const c_int,
    /// How many.
    pub filter_read_len: usize,
    /// The same of its own write.
    pub filter_write: *const c_int,
    /// How many.
    pub filter_write_len: usize,
    /// Where the guest and its trusted thread run: ASCETIC_PLACEMENT_*
    pub placement: u32,
    /// How often they look before they sleep; -1 for what suits the placement.
    pub spin: i32,
    /// Whether calls that the guest makes itself, as ordinary code does, are caught (Linux 5.11); 0 if it uses
    /// ascetic_call() only.
    pub dispatch: c_int,
    /// For ascetic_enter(): how many milliseconds the guest may run; 0 for no limit.
    pub deadline_ms: u32,
    /// For ascetic_enter(): whom to tell how the guest ended; NULL for nobody.
    pub report: Report,
    /// What `report` is given.
    pub user: *mut c_void,
    /// Whether a call that the lock-down forbids, and that nobody catches, ends the guest by SIGSYS and with a record, not by
    /// SIGKILL without one (Linux 5.11).
    pub report_denied: c_int,
    /// Whether the kernel is to dump a guest that crashes: the process is made dumpable, and the limit is `core_limit`.
    pub core: c_int,
    /// Bytes of a core, at most.
    pub core_limit: usize,
}

const DEFAULT: Config = Config {
    size: size_of::<Config>(),
    stack: DEFAULT_STACK,
    keep: core::ptr::null(),
    keep_len: 0,
    share: core::ptr::null(),
    share_len: 0,
    crash: -1,
    lockdown: ASCETIC_LOCKDOWN_STRICT,
    filter_read: core::ptr::null(),
    filter_read_len: 0,
    filter_write: core::ptr::null(),
    filter_write_len: 0,
    placement: ASCETIC_PLACEMENT_AUTO,
    spin: -1,
    dispatch: 0,
    deadline_ms: 0,
    report: None,
    user: core::ptr::null_mut(),
    report_denied: 0,
    core: 0,
    core_limit: usize::MAX,
};

/// Fills in the defaults: strict mode, no descriptors, no caught calls. `size` is `sizeof *config`, so that a program and a
/// library that know different versions of it get along.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ascetic_config_init(config: *mut Config, size: usize) {
    if config.is_null() || size < size_of::<usize>() {
        return;
    }
    let mut all = DEFAULT;
    all.size = size;
    let config = config.cast::<u8>();
    let known = size.min(size_of::<Config>());
    // SAFETY: the caller's structure has `size` bytes.
    unsafe {
        config.write_bytes(0, size);
        config.copy_from_nonoverlapping((&raw const all).cast(), known);
    }
}

impl Config {
    /// What the program says, with defaults for what its version of the structure does not have.
    ///
    /// # Safety
    ///
    /// `config` is NULL or has as many bytes as it says.
    pub(crate) unsafe fn read(config: *const Self) -> Result<Self, Failure> {
        const UNKNOWN: Failure =
            Failure::Argument("the configuration says more than this version of the library knows");
        let mut all = DEFAULT;
        if config.is_null() {
            return Ok(all);
        }
        // SAFETY: the size is the first thing in it. What follows is data without rules: all bytes will do.
        unsafe {
            let size = (&raw const (*config).size).read();
            if size < size_of::<usize>() {
                return Err(Failure::Argument("the configuration has no size: use ascetic_config_init"));
            }
            let bytes = config.cast::<u8>();
            if let Some(more) = size.checked_sub(size_of::<Self>()) {
                let more = core::slice::from_raw_parts(bytes.add(size_of::<Self>()), more);
                if more.iter().any(|byte| *byte != 0) {
                    return Err(UNKNOWN);
                }
            }
            (&raw mut all).cast::<u8>().copy_from_nonoverlapping(bytes, size.min(size_of::<Self>()));
        }
        Ok(all)
    }

    /// The runtime's, but for what has no counterpart there: the report. `ranges` has room for the shared memory.
    ///
    /// # Safety
    ///
    /// The arrays have as many values as the lengths say, and live as long as `'a`.
    pub(crate) unsafe fn plain<'a>(
        &self,
        policy: &'a Policy<'a>,
        ranges: &'a mut [(usize, usize); SHARED],
    ) -> Result<sandbox::Config<'a>, Failure> {
        // SAFETY: the caller's.
        let (keep, share) =
            unsafe { (memory::slice(self.keep, self.keep_len), memory::slice(self.share, self.share_len)) };
        let share = share.ok_or(Failure::Argument("share is NULL, share_len is not 0"))?;
        let ranges = ranges.get_mut(..share.len()).ok_or(Failure::Argument("share_len is 32 at most"))?;
        ranges.iter_mut().zip(share).for_each(|(to, range)| *to = (range.at.addr(), range.len));
        let lockdown = match self.lockdown {
            ASCETIC_LOCKDOWN_STRICT => Lockdown::Strict,
            ASCETIC_LOCKDOWN_FILTER => {
                // SAFETY: the caller's.
                let (read, write) = unsafe {
                    (pins(self.filter_read, self.filter_read_len), pins(self.filter_write, self.filter_write_len))
                };
                Lockdown::Filter { read: read?, write: write? }
            }
            _ => return Err(Failure::Argument("lockdown is none of ASCETIC_LOCKDOWN_*")),
        };
        Ok(sandbox::Config {
            stack: self.stack,
            keep: keep.ok_or(Failure::Argument("keep is NULL, keep_len is not 0"))?,
            share: ranges,
            crash: (self.crash != -1).then_some(self.crash),
            lockdown,
            placement: match self.placement {
                ASCETIC_PLACEMENT_AUTO => Placement::Auto,
                ASCETIC_PLACEMENT_TOGETHER => Placement::Together,
                ASCETIC_PLACEMENT_APART => Placement::Apart,
                ASCETIC_PLACEMENT_FLOATING => Placement::Floating,
                _ => return Err(Failure::Argument("placement is none of ASCETIC_PLACEMENT_*")),
            },
            spin: u32::try_from(self.spin).ok(),
            dispatch: self.dispatch != 0,
            report_denied: self.report_denied != 0,
            core: (self.core != 0).then_some(sandbox::Core { limit: self.core_limit, filter: None, trusted: false }),
            deadline: (self.deadline_ms != 0).then(|| Duration::from_millis(self.deadline_ms.into())),
            ..sandbox::Config::new(policy)
        })
    }
}

/// The most shared mappings of a configuration.
pub(crate) const SHARED: usize = 32;

/// # Safety
///
/// `fds` is NULL or has `len` values.
unsafe fn pins(fds: *const c_int, len: usize) -> Result<Pins, Failure> {
    if fds.is_null() {
        return Ok(None);
    }
    // SAFETY: the caller's.
    let fds = unsafe { memory::slice(fds, len) }.unwrap_or_default();
    let mut pins = [None; 8];
    let room = pins.get_mut(..fds.len()).ok_or(Failure::Argument("a filter pins 8 descriptors at most"))?;
    for (pin, fd) in room.iter_mut().zip(fds) {
        *pin = Some(u32::try_from(*fd).map_err(|_| Failure::Argument("a descriptor of a filter is negative"))?);
    }
    Ok(Some(pins))
}
