//! What guest code calls.

use crate::memory;
use core::ffi::{c_char, c_int, c_long};
use runtime::sys::Sysno;
use runtime::untrusted;

/// Whether the caller is a guest: 1 or 0.
#[unsafe(no_mangle)]
pub extern "C" fn ascetic_is_guest() -> c_int {
    c_int::from(untrusted::is_guest())
}

/// Makes a system call of the guest's, with its six arguments: what it returns, or a negative errno. -EPERM outside a sandbox.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ascetic_call(call: c_long, args: *const usize) -> isize {
    const EPERM: isize = -1;
    const ENOSYS: isize = -38;
    let Some(call) = usize::try_from(call).ok().and_then(Sysno::new) else { return ENOSYS };
    if !untrusted::is_guest() {
        return EPERM;
    }
    // SAFETY: six, says the caller.
    let args = unsafe { args.cast::<[usize; 6]>().read() };
    // SAFETY: the caller's, as the call's manual page says.
    match unsafe { untrusted::call(call, args) } {
        Ok(result) => result as isize,
        Err(errno) => -(errno.into_raw() as isize),
    }
}

/// Ends the guest, all threads of it, with an exit status.
#[unsafe(no_mangle)]
pub extern "C" fn ascetic_exit(status: c_int) -> ! {
    untrusted::exit(status)
}

/// Ends the guest with SIGABRT and a crash record.
#[unsafe(no_mangle)]
pub extern "C" fn ascetic_abort() -> ! {
    untrusted::abort()
}

/// Adds `key=value` to what a crash record says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ascetic_annotate(key: *const c_char, value: *const c_char) {
    // SAFETY: the caller's.
    let [key, value] = [key, value].map(|text| unsafe { memory::string(text) });
    let [key, value] = [key, value].map(|text| text.and_then(|text| text.to_str().ok()).unwrap_or("?"));
    untrusted::annotate(key, value);
}
