//! Memory of the C program's `malloc`.

use core::ffi::{CStr, c_char, c_void};
use core::ptr::NonNull;

unsafe extern "C" {
    fn malloc(len: usize) -> *mut c_void;
    fn free(at: *mut c_void);
    pub(crate) fn abort() -> !;
}

/// Room for a `T`, uninitialised; `None` if there is no memory.
pub(crate) fn room<T>() -> Option<NonNull<T>> {
    const { assert!(align_of::<T>() <= 2 * size_of::<usize>(), "malloc aligns no better") };
    // SAFETY: any length will do.
    NonNull::new(unsafe { malloc(size_of::<T>()) }.cast())
}

/// Gives back what [`room`] gave.
///
/// # Safety
///
/// `at` is of [`room`], and nobody uses it any more.
pub(crate) unsafe fn give_back<T>(at: *mut T) {
    // SAFETY: the caller's.
    unsafe { free(at.cast()) };
}

/// Blocks of bytes that live as long as this does.
pub(crate) struct Blocks(*mut Block);

#[repr(C, align(8))]
struct Block {
    next: *mut Block,
    // The bytes follow.
}

impl Blocks {
    pub(crate) const fn new() -> Self {
        Self(core::ptr::null_mut())
    }

    /// Copies `len` values, and one zero byte behind them. Null if there is no memory.
    ///
    /// # Safety
    ///
    /// There are `len` values at `from`; `T` needs no better alignment than a pointer.
    unsafe fn copy<T: Copy>(&mut self, from: *const T, len: usize) -> *mut T {
        const { assert!(align_of::<T>() <= align_of::<Block>()) };
        let bytes = len.checked_mul(size_of::<T>()).and_then(|bytes| bytes.checked_add(size_of::<Block>() + 1));
        let Some(bytes) = bytes else { return core::ptr::null_mut() };
        // SAFETY: any length will do.
        let block = unsafe { malloc(bytes) }.cast::<Block>();
        if block.is_null() {
            return core::ptr::null_mut();
        }
        // SAFETY: the block is new and as long as asked for: its head, the values, the zero.
        unsafe {
            block.write(Block { next: self.0 });
            self.0 = block;
            let to = block.add(1).cast::<T>();
            to.copy_from_nonoverlapping(from, len);
            to.add(len).cast::<u8>().write(0);
            to
        }
    }

    /// A copy of values. It lives as long as these blocks, which the type does not say.
    pub(crate) fn slice<T: Copy>(&mut self, from: &[T]) -> Option<&'static [T]> {
        // SAFETY: a slice has as many values as it says, and so has the copy.
        unsafe {
            let to = self.copy(from.as_ptr(), from.len());
            (!to.is_null()).then(|| core::slice::from_raw_parts(to, from.len()))
        }
    }

    /// A copy of a string. It lives as long as these blocks, which the type does not say.
    pub(crate) fn string(&mut self, from: &CStr) -> Option<&'static CStr> {
        // SAFETY: a string is as long as it says, without its zero; the copy ends with one, too.
        unsafe {
            let to = self.copy(from.as_ptr(), from.count_bytes());
            (!to.is_null()).then(|| CStr::from_ptr(to))
        }
    }
}

impl Drop for Blocks {
    fn drop(&mut self) {
        let mut block = self.0;
        while !block.is_null() {
            // SAFETY: the list has blocks of `malloc` only, and nobody else does.
            unsafe {
                let next = (*block).next;
                free(block.cast());
                block = next;
            }
        }
    }
}

/// The string at `at`; `None` for NULL.
///
/// # Safety
///
/// `at` is NULL or a string that lives as long as `'a`.
pub(crate) unsafe fn string<'a>(at: *const c_char) -> Option<&'a CStr> {
    // SAFETY: the caller's.
    (!at.is_null()).then(|| unsafe { CStr::from_ptr(at) })
}

/// The values at `at`; `None` for NULL, unless there are to be none.
///
/// # Safety
///
/// `at` is NULL or has `len` values that live as long as `'a`.
pub(crate) unsafe fn slice<'a, T>(at: *const T, len: usize) -> Option<&'a [T]> {
    match (at.is_null(), len) {
        (_, 0) => Some(&[]),
        (true, _) => None,
        // SAFETY: the caller's.
        (false, _) => Some(unsafe { core::slice::from_raw_parts(at, len) }),
    }
}
