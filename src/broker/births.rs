//! Threads: how pairs come and go.
//!
//! Two rules. A pair's place is free only when its tasks are reaped, or when the kernel has shown that there never were
//! any; and not before a T that it made has announced itself, because that began by what the pair's verdict says. And guest
//! code runs in no pair that was not let go here (`Verdict::go`): a task that has not announced itself runs its birth
//! script, says who it is (again, until that is sent), and stops at the gate.
//!
//! What the kernel shows: where a T waits after a `clone` tells whether it made another T (`Verdict::bore`) or could not
//! (`Verdict::ask`); a message in the socket of births carries its sender's process id; and that is nobody else's, because
//! a task is reaped only after all that it can have said was received.

use crate::abi::{Mailbox, STEP_BORE, STEP_CLONE_T, STEP_FIRST, STEP_REPLY, STEP_SAVE, STEP_TELL, Step, T_STEPS};
use crate::arch::{self, Frame};
use crate::birth::{self, Thread};
use crate::broker::decide::{Refusal, Request};
use crate::broker::{At, END_T, END_U};
use crate::clone;
use crate::config;
use crate::error::Status;
use crate::make::POISON;
use crate::sandbox::{Cause, Sandbox};
use crate::signal::SIGKILL;
use crate::sys::{self, Errno, Received, Sysno};
use crate::task::Task;
use core::cell::Cell;
use core::sync::atomic::{AtomicU32, Ordering};

/// As many messages as there can be of tasks that have ended: what the socket holds.
pub(crate) const HELD: usize = sys::SENT_MOST + 2 * crate::abi::PAIRS;
/// Looks in vain before the end of a sandbox goes on without a task that has not ended: this process may have slept meanwhile.
const LOOKS: u32 = 64;
/// Messages received in a turn otherwise: a guest that floods the socket holds up its own sandbox.
pub(crate) const TURN: usize = 64;

/// Where a pair is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    /// There is none, and no task of one.
    Free,
    /// Its T is to be made. It has not announced itself: there may be one or not.
    Unborn,
    /// Its T has announced itself, and makes its U. There may be one or not.
    Half,
    /// Both have. U has not come to its gate.
    Born,
    /// U was let go.
    Alive,
    /// U has ended or is killed, and T with it.
    Ending,
}

/// What the T of a pair waits for after it was told to make another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Waits {
    /// It was not.
    Nothing,
    /// That this pair is born. Nobody else knows whose it is: a birth whose parent has ended is nobody's.
    Birth(usize),
    /// That a pair ends. It was taken, and its request is to be decided again.
    Room,
    /// To be taken and told this.
    Answer(usize),
}

/// What the broker knows of a pair.
#[derive(Debug)]
pub(crate) struct Slot {
    pub(crate) phase: Phase,
    pub(crate) t: Task,
    pub(crate) u: Task,
    /// The number of its last verdict.
    pub(super) seq: Cell<u32>,
    /// What its mailbox said when its last request was taken.
    pub(super) asked: u32,
    pub(super) waits: Waits,
    /// How long it waits for room, in nanoseconds; 0 if it does not.
    pub(super) patience: u64,
    /// Looks in vain at whether its T waits, since it last did.
    pub(super) vain: u32,
    /// Not before this time, in nanoseconds, is there another.
    pub(super) again: u64,
}

impl Slot {
    pub(super) fn free() -> Self {
        let (t, u) = (Task::none(), Task::none());
        Self {
            phase: Phase::Free,
            t,
            u,
            seq: Cell::new(0),
            asked: 0,
            waits: Waits::Nothing,
            patience: 0,
            vain: 0,
            again: 0,
        }
    }

    /// Whether its T ended before it made a U: its exit status names the step that failed, and the clone is the last.
    fn stillborn(&self) -> bool {
        matches!(self.t.status, Some(Status::Exited(step)) if (1..=T_STEPS).contains(&usize::from(step)))
    }

    /// Whether it can have a task that has not announced itself.
    pub(crate) fn hides(&self) -> bool {
        self.phase == Phase::Unborn || self.phase == Phase::Half && !self.stillborn()
    }

    /// Looks whether its tasks have ended; T first: what is seen of U is then not older. Whether there is news.
    pub(crate) fn look(&mut self) -> bool {
        let t = self.t.look();
        self.u.look() || t
    }
}

const AGAIN: usize = (-sys::EAGAIN) as isize as usize;

impl Sandbox<'_> {
    /// Begins a new thread for pair `k`, whose T was taken: that T makes the new pair's T, and waits.
    pub(super) fn bear(&mut self, k: usize, thread: &Thread, request: &Request<'_>, pc: usize) {
        let refuse = |errno: Errno, rule| Refusal { errno: errno.into_raw(), rule };
        if self.group.is_some() {
            return self.refuse(k, request, pc, refuse(Errno::EAGAIN, "no new thread while all are to end"));
        }
        let Some(child) = self.room().or_else(|| self.made_room()) else {
            if self.may_wait_for_room(k) {
                return;
            }
            return self.refuse(k, request, pc, refuse(Errno::EAGAIN, "as many threads as the policy allows"));
        };
        let mut common = *self.common();
        common.cpus = common.cpus.map(|cpus| config::spread(cpus, child, &self.allowed));
        let layout = common.layout;
        let state = layout.state(child);
        let alt = layout.altstack(child);
        let start = arch::asc_thread as *const () as usize;
        let mut frame = Frame::thread(start, state.addr(), child, alt.sp + alt.size, birth::guest_mask(), alt);
        frame.set_state_segment();
        let page = self.vault.verdict(child);
        // SAFETY: the views are mapped; nobody looks at a verdict and a mailbox of a pair that is not there.
        let written = unsafe {
            for word in [&raw mut (*page).ask, &raw mut (*page).seq, &raw mut (*page).bore, &raw mut (*page).go] {
                word.write_volatile(0);
            }
            let written = birth::write(&mut *page, child, &common, Some(thread), frame);
            #[cfg(feature = "experiments")]
            (&raw mut (*page).go).write_volatile(crate::experiment::OPEN_GATES.load(Ordering::Relaxed).into());
            let context = request.payload.get(super::context_at(request)..).unwrap_or_default();
            let data = &mut (*page).data;
            let len = context.len().min(data.len());
            data[..len].copy_from_slice(&context[..len]);
            let mailbox: *mut Mailbox = self.mailboxes.mailbox(child);
            (&raw mut (*mailbox).line).write_bytes(0, 1);
            (&raw mut (*mailbox).asks).write_volatile(0);
            (&raw mut (*mailbox).selector).write_volatile(0);
            (&raw mut (*mailbox).raise).write_volatile(0);
            (&raw mut (*mailbox).raised).write_volatile(0);
            written
        };
        if let Err(errno) = written {
            return self.refuse(k, request, pc, refuse(errno, "a birth script that fits"));
        }
        *self.slot(child) = Slot { phase: Phase::Unborn, ..Slot::free() };
        self.slot(k).waits = Waits::Birth(child);
        let args = [clone::THREAD.bits(), POISON, 0, 0, 0, 0];
        let (flags, expect) = (STEP_TELL | STEP_SAVE | STEP_CLONE_T, layout.mailbox(child).addr());
        let make = Step { nr: Sysno::clone as u32, flags, args, expect, ..Step::default() };
        self.script(k, &[make, Step { nr: STEP_BORE, ..Step::default() }]);
        self.give(k);
    }

    /// Has a thread wait for a pair's end: who was joined has let go of its word, and is not gone yet.
    fn may_wait_for_room(&mut self, k: usize) -> bool {
        const PATIENCE: u64 = 200_000_000;
        #[cfg(feature = "experiments")]
        if crate::experiment::NO_WAITS_FOR_ROOM.load(Ordering::Relaxed) {
            return false;
        }
        let now = sys::now();
        let slot = self.slot(k);
        if slot.patience == 0 {
            slot.patience = now.saturating_add(PATIENCE);
        }
        let until = slot.patience;
        if now >= until {
            return false;
        }
        slot.waits = Waits::Room;
        self.retry_at(until);
        true
    }

    /// A pair that is none.
    fn room(&self) -> Option<usize> {
        (1..self.pairs()).find(|k| self.slot_ref(*k).phase == Phase::Free)
    }

    /// A pair whose end nobody was told of yet.
    fn made_room(&mut self) -> Option<usize> {
        for k in 1..self.pairs() {
            if self.slot_ref(k).phase == Phase::Ending {
                self.slot(k).look();
            }
        }
        self.births(HELD);
        for k in 1..self.pairs() {
            self.free_if_ended(k);
        }
        self.room()
    }

    /// The T of pair `k`, which was to make that of `child`, waits where it does if it could not: the kernel's word that
    /// there is none. Its guest is told what the kernel told it.
    pub(super) fn barren(&mut self, k: usize, child: usize) {
        *self.slot(child) = Slot::free();
        self.slot(k).waits = Waits::Nothing;
        self.script(k, &[Step { nr: STEP_REPLY, flags: STEP_FIRST, ..Step::default() }]);
        self.give(k);
    }

    /// Receives what tasks say of themselves, up to `most` messages. Whether nobody is left to say anything.
    pub(crate) fn births(&mut self, most: usize) -> bool {
        for _ in 0..most {
            match sys::receive(self.births.0) {
                Ok(Received::Words(pid, [k, what])) => self.announced(pid, k as usize, what),
                Ok(Received::Other) => {} // not of a size that a birth has
                Ok(Received::End) => {
                    sys::epoll_remove(self.epoll.0, self.births.0); // it would go on telling
                    return true;
                }
                Err(_) => return false,
            }
        }
        false
    }

    /// A message of process `pid`: of pair `k`, it says.
    fn announced(&mut self, pid: u32, k: usize, what: u32) {
        let phase = if k < self.pairs() { self.slot_ref(k).phase } else { Phase::Free };
        let known = (0..self.pairs()).any(|k| self.slot_ref(k).t.is(pid) || self.slot_ref(k).u.is(pid));
        #[cfg(feature = "experiments")]
        if known && crate::experiment::believed(phase == Phase::Unborn, phase == Phase::Half, what) {
            return self.accept(pid, k, phase, what);
        }
        if known {
            if phase == Phase::Born && what == birth::READY_U && self.slot_ref(k).u.is(pid) {
                self.let_go(k);
            }
            return; // or a guest that writes there, which is of no use to it
        }
        // Who is not known runs its birth script and says what that says. Whoever is no child of this process is none of
        // the sandbox's tasks, and not to be killed.
        if sys::ended(pid).is_ok() {
            self.accept(pid, k, phase, what);
        }
    }

    fn accept(&mut self, pid: u32, k: usize, phase: Phase, what: u32) {
        let mut task = Task::new(pid);
        let (end, next) = match (phase, what) {
            (Phase::Unborn, birth::BORN_T) => (END_T, Phase::Half),
            (Phase::Half, birth::BORN_U) => (END_U, Phase::Born),
            #[cfg(feature = "experiments")]
            _ if crate::experiment::BELIEVE_ASKS.load(Ordering::Relaxed) => return,
            // Nobody that a script made.
            _ => return self.expel(task),
        };
        let watched = task.watch(self.epoll.0, end | k as u64).is_ok();
        let slot = self.slot(k);
        slot.phase = next;
        if end == END_T {
            slot.t = task
        } else {
            slot.u = task
        }
        // Who made its T is owed no more, if it has ended meanwhile.
        for parent in 0..self.pairs() {
            if self.bears(parent, k) && self.slot_ref(parent).phase == Phase::Ending {
                self.slot(parent).waits = Waits::Nothing;
            }
        }
        if !watched {
            // Nobody would tell of its end: the birth has failed, and is nobody's from now on.
            if let Some(parent) = self.bearer(k) {
                self.tell(parent, AGAIN);
            }
        }
        if self.over || self.group.is_some() {
            self.kill_pair(k);
        } else if next == Phase::Born && self.bearer(k).is_none() {
            self.doom(k);
        }
    }

    fn expel(&mut self, task: Task) {
        task.signal(SIGKILL);
        let stray = self.stray();
        stray.look();
        stray.reap();
        if !stray.remains() {
            *stray = task;
        }
    }

    /// Who waits for the birth of pair `child`, and lives.
    fn bearer(&self, child: usize) -> Option<usize> {
        (0..self.pairs()).find(|k| self.bears(*k, child) && self.slot_ref(*k).phase == Phase::Alive)
    }

    fn bears(&self, k: usize, child: usize) -> bool {
        self.slot_ref(k).waits == Waits::Birth(child)
    }

    /// Whether there may be a T that pair `k` made and that has not announced itself. Until it does, it goes by what the
    /// verdict of pair `k` says.
    fn owes(&self, k: usize) -> bool {
        matches!(self.slot_ref(k).waits, Waits::Birth(child) if self.slot_ref(child).phase == Phase::Unborn)
    }

    /// The U of pair `child` is at its gate. It is opened, if somebody waits for that, who is then told.
    fn let_go(&mut self, child: usize) {
        let Some(k) = self.bearer(child).filter(|_| self.group.is_none() && !self.over) else {
            return self.doom(child);
        };
        #[cfg(feature = "experiments")]
        if crate::experiment::HOLD_GATES.load(Ordering::Relaxed) {
            return;
        }
        let tid = self.slot_ref(child).u.pid;
        let page = self.vault.verdict(child);
        // SAFETY: the view is mapped and the words are aligned; the sandbox only reads them.
        let go = unsafe {
            (&raw mut (*page).tid).write_volatile(tid);
            AtomicU32::from_ptr(&raw mut (*page).go).store(1, Ordering::SeqCst);
            &raw const (*page).go
        };
        let _ = sys::futex_wake(go);
        self.slot(child).phase = Phase::Alive;
        self.tell(k, tid as usize);
    }

    /// The T of pair `k`, which has made another, gets its answer: now, if it waits for it already.
    fn tell(&mut self, k: usize, answer: usize) {
        self.slot(k).waits = Waits::Answer(answer);
        if !self.told(k, answer) {
            self.retry = Some(0);
        }
    }

    pub(super) fn told(&mut self, k: usize, answer: usize) -> bool {
        if !self.take(k, At::Bore) {
            return false;
        }
        self.slot(k).waits = Waits::Nothing;
        self.reply(k, answer);
        true
    }

    /// Kills what is known of pair `k`.
    pub(crate) fn kill_pair(&mut self, k: usize) {
        let slot = self.slot(k);
        // U first: T ends by itself only if something is wrong with it.
        slot.u.signal(SIGKILL);
        slot.t.signal(SIGKILL);
    }

    /// Ends a pair both of whose tasks are known.
    fn doom(&mut self, k: usize) {
        self.kill_pair(k);
        self.slot(k).phase = Phase::Ending;
        // A birth that it waits for goes on without it until all is known of that, too.
        if let Waits::Birth(child) = self.slot_ref(k).waits {
            let phase = self.slot_ref(child).phase;
            if phase != Phase::Unborn {
                self.slot(k).waits = Waits::Nothing;
            }
            if phase == Phase::Born {
                self.doom(child);
            }
        }
    }

    fn free_if_ended(&mut self, k: usize) {
        let slot = self.slot_ref(k);
        if slot.phase == Phase::Ending && !slot.t.lives() && !slot.u.lives() && !self.owes(k) {
            self.free(k);
        }
    }

    /// All that pair `k` had can be used again. Its tasks were seen to end, and what they said was received after that.
    fn free(&mut self, k: usize) {
        let slot = self.slot(k);
        slot.t.reap();
        slot.u.reap();
        if k == 0 {
            slot.phase = Phase::Free; // how the first thread ended is told in the end
        } else {
            *slot = Slot::free();
        }
    }

    /// Whether the sandbox is at its end, and why; what has ended of it makes room.
    pub(crate) fn ended(&mut self) -> Option<Cause> {
        for k in 0..self.pairs() {
            let slot = self.slot_ref(k);
            let (phase, t, u) = (slot.phase, slot.t.status, slot.u.status);
            if self.group.is_some_and(|last| last != k) {
                continue; // all end with that one
            }
            match (phase, t, u) {
                (Phase::Free | Phase::Unborn, ..) | (_, None, None) => {}
                (Phase::Ending, ..) => {}
                (Phase::Half, Some(_), _) if slot.stillborn() => {
                    let parent = self.bearer(k);
                    self.free(k);
                    if let Some(parent) = parent {
                        self.tell(parent, AGAIN);
                    }
                }
                (_, Some(t), Some(u)) if u.is_signal(SIGKILL) && !t.is_signal(SIGKILL) => {
                    return Some(Cause::TrustedDied);
                }
                // A thread's end is the sandbox's if a signal was, if all were to end with it, or if it was the last.
                (_, _, Some(Status::Signaled { .. })) => return Some(Cause::Guest),
                (_, _, Some(_)) if self.group == Some(k) || self.last(k) => return Some(Cause::Guest),
                (_, _, Some(_)) => {
                    let parent = self.bearer(k);
                    self.doom(k);
                    if let Some(parent) = parent {
                        self.tell(parent, AGAIN); // its birth has failed
                    }
                }
                (_, Some(_), None) => return Some(Cause::TrustedDied),
            }
            self.free_if_ended(k);
        }
        None
    }

    /// Whether no thread but that of pair `k` lives.
    fn last(&self, k: usize) -> bool {
        let lives = |k: &usize| self.slot_ref(*k).phase == Phase::Alive && self.slot_ref(*k).u.lives();
        !(0..self.pairs()).filter(|other| *other != k).any(|other| lives(&other))
    }

    /// Nobody of the sandbox is to be left: receives who has not announced itself yet, reaps who has ended, until there
    /// is nobody any more, or nothing has happened for `patience` nanoseconds and some looks. How many are left, as far as
    /// that is known.
    pub(crate) fn clear(&mut self, patience: u64) -> u32 {
        let mut until = sys::now().saturating_add(patience);
        let (mut known, mut vain) = (0, 0);
        loop {
            let mut news = self.stray().look();
            for k in 0..self.pairs() {
                news |= self.slot(k).look();
            }
            // Behind the looks, and before the reaping: what who has ended has said is said in its name.
            let nobody = self.births(HELD);
            self.stray().reap();
            let mut left = u32::from(self.stray().remains());
            for k in 0..self.pairs() {
                let slot = self.slot(k);
                slot.t.reap();
                slot.u.reap();
                left += u32::from(slot.t.remains()) + u32::from(slot.u.remains());
            }
            let hidden = !nobody && (0..self.pairs()).any(|k| self.slot_ref(k).hides());
            #[cfg(feature = "experiments")]
            let hidden = hidden && !crate::experiment::FORGET_UNBORN.load(Ordering::Relaxed);
            if left == 0 && !hidden {
                return 0;
            }
            let now = sys::now();
            if news || left != known {
                (until, known, vain) = (now.saturating_add(patience), left, 0);
            } else if now >= until && vain >= LOOKS {
                return left + u32::from(hidden);
            }
            // Woken by ends and messages. Some go on telling although nothing comes of it: a task that a debugger keeps.
            vain += 1;
            let _ = match vain {
                ..8 => sys::epoll_wait(self.epoll.0, &mut [sys::Event::default(); 16], 10),
                _ => sys::poll(&mut [], Some(core::time::Duration::from_millis(1))),
            };
        }
    }
}
