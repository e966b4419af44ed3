//! A thread that changes a word of a mailbox all the time, between two values: of a broker that reads it twice, the second value
//! shows.

use std::hint::spin_loop;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, Once};
use std::thread;

/// How often it does before it looks whether it is to stop.
const BURST: usize = 256;

/// The word, or 0; whoever holds this keeps the thread from writing.
static WORD: Mutex<(usize, [usize; 2])> = Mutex::new((0, [0; 2]));
/// As long as this is 0, there is nothing to do.
static BUSY: AtomicUsize = AtomicUsize::new(0);

/// As long as this lives, a word changes.
pub(super) struct Scribbled;

impl Scribbled {
    /// # Safety
    ///
    /// There is a word at `at` as long as this lives, which others take for one that changes.
    pub(super) unsafe fn new(at: usize, values: [usize; 2]) -> Self {
        static THREAD: Once = Once::new();
        THREAD.call_once(|| drop(thread::spawn(scribble)));
        *WORD.lock().expect("nobody panics with it") = (at, values);
        BUSY.store(1, Ordering::Release);
        Self
    }
}

impl Drop for Scribbled {
    fn drop(&mut self) {
        BUSY.store(0, Ordering::Release);
        WORD.lock().expect("nobody panics with it").0 = 0;
    }
}

fn scribble() {
    loop {
        if BUSY.load(Ordering::Acquire) == 0 {
            thread::sleep(std::time::Duration::from_micros(50));
            continue;
        }
        let word = WORD.lock().expect("nobody panics with it");
        let (at, values) = *word;
        for i in (0..BURST).filter(|_| at != 0) {
            // SAFETY: as long as the lock is held and the address is not 0, `Scribbled::new`'s word is there.
            unsafe { AtomicUsize::from_ptr(at as *mut usize) }.store(values[i % 2], Ordering::Relaxed);
            (0..i % 8).for_each(|_| spin_loop());
        }
    }
}
