//! The broker: takes requests, has them decided, and gives T its verdicts.
//!
//! What it believes about T it learns from the kernel: that T waits for a verdict, because a `FUTEX_CMP_REQUEUE` from the
//! verdict's first word, which only T can wait at, found somebody there; who is born, because the kernel puts the sender's
//! process id beside a message; who has ended, from pidfds. The alarm that wakes it and the mailboxes that it reads are
//! the guest's to forge: they cost the guest's own time.
//!
//! One thread can serve many sandboxes ([`Sandbox::descriptor`]); each is served in turn, one batch of events at a time.

pub mod decide;
mod files;
pub mod path;
mod refused;

pub use refused::Refused;

use crate::abi::{
    Mailbox, PAIRS, PAYLOAD, STEP_ASK, STEP_CLONE_T, STEP_REPLY, STEP_STOP, Step, TOKEN_PATH, Token, Verdict as Page,
};
use crate::arch::{self, Frame};
use crate::birth::{self, Common, Thread};
use crate::clone;
use crate::config;
use crate::error::{Error, Status};
use crate::make::POISON;
use crate::pair::Layout;
use crate::sandbox::{Cause, Sandbox};
use crate::signal::{self, SIGKILL};
use crate::sys::{self, Errno, Event, Sysno};
use crate::task::Task;
use core::mem::{MaybeUninit, offset_of};
use core::sync::atomic::{AtomicU32, Ordering};
use core::time::Duration;
use decide::{Answer, Refusal, Request, Verdict, View};
use path::{PATH, Place, Whole};

/// What epoll says of the alarm, of births, and of the end of a T and of a U: the pair's number is in the low half.
pub(crate) const ALARM: u64 = 1 << 32;
/// See [`ALARM`].
pub(crate) const BIRTH: u64 = 2 << 32;
const END_T: u64 = 3 << 32;
const END_U: u64 = 4 << 32;

/// Signals that a guest may ask for by its alarm: an abort takes two. After that nobody listens, so that a flood costs
/// only the guest.
const ALARMS: u32 = 64;
/// How often the broker looks, giving up the CPU in between, for a T that rang and does not wait yet; then T rings again.
const RETRIES: u32 = 64;

/// Where a pair is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    /// There is none.
    Free,
    /// Its T is to be made, or to announce itself; the pair that asked for it.
    T(usize),
    /// Its U is to announce itself.
    U(usize),
    /// Its U is to be locked down.
    Lockdown(usize),
    /// It waits for the word of its creator's T.
    Ready(usize),
    /// It lives.
    Alive,
}

impl Phase {
    /// The pair that waits for this one's birth.
    fn parent(self) -> Option<usize> {
        match self {
            Self::T(parent) | Self::U(parent) | Self::Lockdown(parent) | Self::Ready(parent) => Some(parent),
            Self::Free | Self::Alive => None,
        }
    }
}

/// What the broker knows of a pair.
#[derive(Debug)]
pub(crate) struct Slot {
    pub(crate) phase: Phase,
    pub(crate) t: Task,
    pub(crate) u: Task,
    /// The number of its last verdict.
    seq: u32,
    /// What its mailbox said when its last request was taken.
    asked: u32,
    /// The pair that it waits for to be born.
    bears: Option<usize>,
}

impl Slot {
    fn free() -> Self {
        Self { phase: Phase::Free, t: Task::new(0), u: Task::new(0), seq: 0, asked: 0, bears: None }
    }
}

/// The broker's books of one sandbox: memory of the supervisor's that no child inherits.
pub(crate) struct Books {
    common: MaybeUninit<Common>,
    slots: [MaybeUninit<Slot>; PAIRS],
    cwd: [u8; PATH],
    cwd_len: usize,
    /// The request under decision, and the paths that it is about. They are nowhere else: what is large is not moved.
    payload: [u8; PAYLOAD],
    paths: [Whole; 2],
    pub(crate) refused: refused::Log,
    /// Tokens given out.
    tokens: usize,
    /// Requests taken since `second`, in nanoseconds, for the limit of calls.
    calls: u32,
    second: u64,
    /// Not before this time is the limit of calls over.
    until: u64,
}

impl core::fmt::Debug for Books {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Books").finish_non_exhaustive()
    }
}

impl Books {
    /// Fills in what is not zero.
    pub(crate) fn start(&mut self, common: &Common) {
        self.common.write(*common);
        for slot in self.slots.iter_mut().take(common.layout.pairs()) {
            slot.write(Slot::free());
        }
        self.refused = refused::Log::new();
        self.cwd_len = sys::getcwd(&mut self.cwd).unwrap_or(0);
        if self.cwd_len == 0 || self.cwd.first() != Some(&b'/') {
            (self.cwd[0], self.cwd_len) = (b'/', 1); // out of reach: nothing relative leads anywhere but from the root
        }
    }
}

impl Sandbox<'_> {
    pub(crate) fn common(&self) -> &Common {
        // SAFETY: `Books::start` wrote it before the sandbox existed; the view is mapped.
        unsafe { (*self.books.at).common.assume_init_ref() }
    }

    fn layout(&self) -> &Layout {
        &self.common().layout
    }

    /// How many pairs there can be.
    pub(crate) fn pairs(&self) -> usize {
        self.layout().pairs()
    }

    pub(crate) fn slot(&mut self, k: usize) -> &mut Slot {
        // SAFETY: as `common`; all below `pairs` were written, and whoever has a higher number gets the last.
        unsafe { (&mut (*self.books.at).slots)[k.min(self.pairs() - 1)].assume_init_mut() }
    }

    pub(crate) fn slot_ref(&self, k: usize) -> &Slot {
        // SAFETY: as `slot`.
        unsafe { (&(*self.books.at).slots)[k.min(self.pairs() - 1)].assume_init_ref() }
    }

    fn books(&mut self) -> &mut Books {
        // SAFETY: the view is mapped and this value's own.
        unsafe { &mut *self.books.at }
    }

    /// How many pairs live, or are about to.
    pub(crate) fn living(&self) -> usize {
        (0..self.pairs()).filter(|k| self.slot_ref(*k).phase != Phase::Free).count()
    }

    /// Has the ends of a pair's tasks told.
    pub(crate) fn watch(&mut self, k: usize) -> Result<(), Error> {
        let epoll = self.epoll.0;
        let slot = self.slot(k);
        for (task, what) in [(&mut slot.t, END_T), (&mut slot.u, END_U)] {
            task.watch(epoll, what | k as u64)?;
        }
        Ok(())
    }

    /// The first pair of which something is known about the end of all: one whose U was killed by a signal, or the first.
    pub(crate) fn culprit(&self) -> Option<usize> {
        let by_signal = |k: &usize| matches!(self.slot_ref(*k).u.status, Some(Status::Signaled { .. }));
        (0..self.pairs()).find(by_signal)
    }

    /// Whether the sandbox is at its end, and why.
    pub(crate) fn ended(&mut self) -> Option<Cause> {
        for k in 0..self.pairs() {
            let group = self.group;
            let slot = self.slot(k);
            if slot.phase == Phase::Free {
                continue;
            }
            // T first: what is seen of U is then not older.
            let (t, u) = (slot.t.reap(false), slot.u.reap(false));
            match (t, u) {
                (None, None) => {}
                (Some(t), Some(u)) if u.is_signal(SIGKILL) && !t.is_signal(SIGKILL) => return Some(Cause::TrustedDied),
                // A thread's end is the sandbox's if a signal was, if all were to end with it, or if it was the last.
                (_, Some(Status::Signaled { .. })) => return Some(Cause::Guest),
                (_, Some(_)) if group == Some(k) => return Some(Cause::Guest),
                (_, Some(_)) => {
                    if self.living() == 1 {
                        return Some(Cause::Guest);
                    }
                    self.bury(k);
                }
                (Some(_), None) if matches!(slot.phase, Phase::T(_) | Phase::U(_)) && slot.u.pid == 0 => {
                    self.stillborn(k); // its script failed, or it could not make its U
                }
                (Some(_), None) => return Some(Cause::TrustedDied),
            }
        }
        None
    }

    /// A thread has ended by itself: its T follows, and all that it had can be used again.
    fn bury(&mut self, k: usize) {
        let parent = self.slot_ref(k).phase.parent();
        let slot = self.slot(k);
        slot.t.end();
        if k == 0 {
            // What is told of the sandbox's end in the end is how its first thread ended.
            slot.phase = Phase::Free;
        } else {
            *slot = Slot::free();
        }
        if let Some(parent) = parent {
            self.undelivered(parent);
        }
    }

    fn stillborn(&mut self, k: usize) {
        let parent = self.slot_ref(k).phase.parent();
        *self.slot(k) = Slot::free();
        if let Some(parent) = parent {
            self.undelivered(parent);
        }
    }

    /// When the sandbox wants to be looked at again, whatever its descriptor says.
    pub(crate) fn due(&self) -> Option<Duration> {
        // SAFETY: the view is mapped and this value's own.
        let until = unsafe { (*self.books.at).until };
        let limited = (until > 0).then(|| Duration::from_nanos(until.saturating_sub(sys::now())));
        let retry = (self.retries > 0).then_some(Duration::ZERO);
        let scale = (!self.good_scale).then(|| Duration::from_nanos(crate::fault::tsc::GOOD));
        limited.into_iter().chain(retry).chain(scale).min()
    }

    /// Waits for up to `timeout` for events, and handles them. Whether a task may have ended: what was told was more than an
    /// alarm, or nothing.
    pub(crate) fn step(&mut self, timeout: Option<Duration>) -> Result<bool, Errno> {
        let pause = timeout.into_iter().chain(self.due()).min();
        let ms = pause.map_or(-1, |pause| pause.as_micros().div_ceil(1000).min(i32::MAX as u128) as i32);
        let mut events = [Event::default(); 16];
        let n = match sys::epoll_wait(self.epoll.0, &mut events, ms) {
            Err(Errno::EINTR) => 0,
            other => other?,
        };
        if !self.good_scale {
            self.scale();
        }
        let (mut alarm, mut told) = (false, n == 0);
        for event in events.iter().take(n) {
            match event.data & !0xffff_ffff {
                BIRTH => {
                    self.births();
                    told = true;
                }
                ALARM => alarm = true,
                _ => told = true, // an end: whoever asks next whether the sandbox has ended sees it
            }
        }
        let limited = self.books().until > 0 && sys::now() >= self.books().until;
        if alarm {
            self.retries = RETRIES;
        }
        if alarm || limited || self.retries > 0 {
            self.books().until = 0;
            self.round();
        }
        Ok(told)
    }

    /// Looks at every pair: who asks, for a verdict or for a signal?
    fn round(&mut self) {
        let mut waiting = false;
        for k in 0..self.pairs() {
            if self.slot_ref(k).phase != Phase::Alive {
                continue;
            }
            self.answer_alarm(k);
            if let Some(child) = self.slot_ref(k).bears {
                waiting |= self.slot_ref(child).phase == Phase::Ready(k) && !self.deliver(k, child);
                waiting |= self.failed_to_bear(k, child);
                continue;
            }
            let mailbox = self.mailboxes.mailbox(k);
            // SAFETY: the view is mapped; what is read is a hint.
            let asks = unsafe { (&raw const (*mailbox).asks).read_volatile() };
            if asks != self.slot_ref(k).asked {
                if !self.within_limit() {
                    continue;
                }
                match self.take(k) {
                    true => {
                        self.slot(k).asked = asks;
                        self.serve_request(k);
                    }
                    false => waiting = true,
                }
            }
        }
        self.retries = if waiting { self.retries.saturating_sub(1) } else { 0 };
        if self.retries > 0 {
            sys::yield_now();
        }
    }

    /// Whether one more request may be taken now; if not, when.
    fn within_limit(&mut self) -> bool {
        const SECOND: u64 = 1_000_000_000;
        let most = self.policy.limits_of().calls;
        if most == 0 {
            return true;
        }
        let now = sys::now();
        let books = self.books();
        if now.saturating_sub(books.second) >= SECOND {
            (books.second, books.calls) = (now, 0);
        }
        if books.calls >= most {
            books.until = books.second + SECOND;
            return false;
        }
        books.calls += 1;
        true
    }

    /// Whether the T of pair `k` waits for a verdict: the kernel moves it from one word of its verdict to the other. Until
    /// the next verdict it executes nothing.
    fn take(&mut self, k: usize) -> bool {
        let seq = self.slot_ref(k).seq;
        let page = self.vault.verdict(k);
        // SAFETY: field addresses of a mapped view.
        let (ask, to) = unsafe { (&raw const (*page).ask, &raw const (*page).seq) };
        #[cfg(feature = "experiments")]
        if crate::experiment::BELIEVE_MAILBOX.load(Ordering::Relaxed) {
            return true;
        }
        sys::futex_requeue(ask, to, seq).unwrap_or(false)
    }

    /// Gives the T of pair `k`, which was taken, its verdict.
    fn give(&mut self, k: usize) {
        let slot = self.slot(k);
        slot.seq = slot.seq.wrapping_add(1);
        let seq = slot.seq;
        let page = self.vault.verdict(k);
        // SAFETY: the words are mapped and aligned; the sandbox only reads them.
        let (ask_at, seq_at) = unsafe { (&raw mut (*page).ask, &raw mut (*page).seq) };
        // SAFETY: as above. The number goes out last, behind the script.
        unsafe {
            AtomicU32::from_ptr(seq_at).store(seq, Ordering::Release);
            AtomicU32::from_ptr(ask_at).store(seq, Ordering::Release);
        }
        if sys::futex_wake_some(seq_at, 1) != Ok(1) {
            let _ = sys::futex_wake_some(ask_at, 1); // it rang again meanwhile
        }
    }

    /// Has the request of pair `k`, whose T was taken, end with a result.
    fn reply(&mut self, k: usize, result: usize) {
        self.script(k, &[Step { nr: STEP_REPLY, args: [result, 0, 0, 0, 0, 0], ..Step::default() }]);
        self.give(k);
    }

    fn script(&mut self, k: usize, steps: &[Step]) {
        // SAFETY: the view is mapped, and T, which was taken, does not look.
        let script = unsafe { &mut (*self.vault.verdict(k)).script };
        script.iter_mut().zip(steps).for_each(|(to, from)| *to = *from);
    }

    /// Copies the request of pair `k` once, has it decided, and does what was decided.
    fn serve_request(&mut self, k: usize) {
        let mailbox = self.mailboxes.mailbox(k);
        let page = self.vault.verdict(k);
        let books = self.books.at;
        let root_fds = self.common().fds.root(0);
        let (lo, behind) = self.common().fds.range();
        let data = self.layout().verdict(k).addr() + offset_of!(Page, data);
        // SAFETY: the views are mapped. The mailbox is read once, word by word, while the guest may change it: the copy is
        // what counts. T does not look at the verdict. The parts of the books that are borrowed do not overlap with those
        // that are changed meanwhile: nothing is.
        let (request, pc, verdict) = unsafe {
            let nr = (&raw const (*mailbox).line.nr).read_volatile();
            let args = (&raw const (*mailbox).line.args).read_volatile();
            let pc = (&raw const (*mailbox).pc).read_volatile();
            let len = ((&raw const (*mailbox).len).read_volatile() as usize).min(PAYLOAD);
            let payload = &mut (*books).payload;
            core::ptr::copy_nonoverlapping((&raw const (*mailbox).data.0).cast::<u8>(), payload.as_mut_ptr(), len);
            let request = Request { nr, args, payload: &payload[..len] };
            let view = View {
                policy: self.policy,
                bounds: self.layout().bounds(lo, behind - lo),
                own: self.layout().own(),
                root_fds,
                revoked: self.revoked,
                cwd: &(&(*books).cwd)[..(*books).cwd_len],
                data,
            };
            let mut answer =
                Answer { script: &mut (*page).script, data: &mut (*page).data, paths: &mut (*books).paths };
            (request, pc, decide::decide(&view, &request, &mut answer))
        };
        match verdict {
            Verdict::Script => self.give(k),
            Verdict::Open { place, asked, how } => {
                #[cfg(feature = "experiments")]
                // SAFETY: the views are mapped; T does not look.
                crate::experiment::read_again(mailbox, unsafe { &mut (*page).data });
                self.leave_token(place, asked, how);
                self.give(k);
            }
            Verdict::Refuse(refusal) => self.refuse(k, &request, pc, refusal),
            Verdict::Files(change) => match self.change(k, &change) {
                Ok(result) => self.reply(k, result),
                Err(errno) => self.reply(k, (-errno.into_raw()) as isize as usize),
            },
            Verdict::Getcwd { size } => self.getcwd(k, size),
            Verdict::Clone { thread } => self.bear(k, &thread, &request, pc),
            Verdict::ExitGroup => {
                self.group = Some(k);
                for other in (0..self.pairs()).filter(|other| *other != k) {
                    let slot = self.slot(other);
                    if slot.phase != Phase::Free {
                        slot.u.end();
                        slot.t.end();
                        slot.phase = Phase::Free;
                    }
                }
                self.reply(k, 0);
            }
            Verdict::Signal { tid, sig } => match self.signal(tid, sig) {
                Ok(()) => self.reply(k, 0),
                Err(errno) => self.reply(k, (-errno.into_raw()) as isize as usize),
            },
        }
    }

    fn refuse(&mut self, k: usize, request: &Request<'_>, pc: usize, refusal: Refusal) {
        let path = crate::deep::carried(request.nr, &request.args).into_iter().flatten().next();
        let path = match path {
            Some(crate::deep::Carry::Path(_)) => request.payload.split(|byte| *byte == 0).next().unwrap_or_default(),
            _ => &[],
        };
        let entry = Refused::new(k, request.nr, request.args, pc, path, refusal);
        // SAFETY: the view is mapped; `request` borrows another part of it.
        unsafe { (*self.books.at).refused.add(entry) };
        self.reply(k, (-refusal.errno) as isize as usize);
    }

    fn getcwd(&mut self, k: usize, size: usize) {
        let mailbox = self.mailboxes.mailbox(k);
        let books = self.books();
        let len = books.cwd_len;
        if size <= len {
            return self.reply(k, (-Errno::ERANGE.into_raw()) as isize as usize);
        }
        // SAFETY: the view is mapped; the guest gets what it finds there.
        unsafe {
            let to = (&raw mut (*mailbox).data.0).cast::<u8>();
            core::ptr::copy_nonoverlapping(books.cwd.as_ptr(), to, len);
            to.wrapping_add(len).write_volatile(0);
        }
        self.reply(k, len + 1);
    }

    /// Leaves an approved way to open a file where T can take it by itself.
    fn leave_token(&mut self, place: Place, asked: [u32; 2], how: crate::abi::OpenHow) {
        // SAFETY: the view is mapped and this value's own; of it, only the count of tokens is used below besides.
        let (path, used) = unsafe { ((&(*self.books.at).paths)[0].bytes(), (*self.books.at).tokens) };
        let root = self.common().fds.root(place.root);
        // SAFETY: the view is mapped. Ts only read it, and look at a token only when it is valid.
        let tokens = unsafe { &raw mut (*self.vault.at).vault.tokens };
        // SAFETY: as above.
        let known = unsafe {
            (&(*tokens)).iter().take(used).any(|t| t.asked == asked && t.path.get(..t.len as usize) == Some(path))
        };
        if known || path.len() >= TOKEN_PATH || place.rest >= path.len() {
            return;
        }
        // SAFETY: as above; nobody looks at this one yet.
        let Some(token) = (unsafe { (&mut (*tokens)).get_mut(used) }) else { return };
        let mut text = [0; TOKEN_PATH];
        text[..path.len()].copy_from_slice(path);
        *token = Token { valid: 0, root, asked, how, rest: place.rest as u32, len: path.len() as u32, path: text };
        // SAFETY: the word is mapped and aligned.
        unsafe { AtomicU32::from_ptr(&raw mut token.valid).store(1, Ordering::Release) };
        self.books().tokens += 1;
    }

    /// Takes a root back, by its number in the policy: nothing below it is opened or changed any more by its path, tokens
    /// included. What is open stays open, folders included.
    pub fn revoke(&mut self, root: usize) {
        if self.owner != sys::pids().0 {
            return;
        }
        let fd = self.common().fds.root(root);
        let used = self.books().tokens;
        // SAFETY: the view is mapped.
        let tokens = unsafe { &mut (&mut (*self.vault.at).vault.tokens)[..used] };
        for token in tokens.iter_mut().filter(|token| token.root == fd) {
            // SAFETY: the word is mapped and aligned.
            unsafe { AtomicU32::from_ptr(&raw mut token.valid).store(0, Ordering::Release) };
        }
        if let Some(slot) = self.roots.get_mut(root) {
            *slot = None;
            self.revoked |= 1 << root;
        }
    }

    /// What was refused so far: the last ones, oldest first, and how many there were in all.
    pub fn refusals(&self) -> (impl Iterator<Item = &Refused> + '_, u64) {
        static NONE: refused::Log = refused::Log::new();
        // SAFETY: in the process that made it, the view is mapped and this value's own.
        let log = if self.owner == sys::pids().0 { unsafe { &(*self.books.at).refused } } else { &NONE };
        (log.iter(), log.total())
    }

    /// A signal for one of the guest's threads. The first is also known by the process id that the guest was told.
    fn signal(&mut self, tid: u32, sig: i32) -> Result<(), Errno> {
        let told = self.common().supervisor;
        // Nobody would let a stopped guest go on.
        if !(0..=signal::NSIG).contains(&sig) || (signal::SIGSTOP..=signal::SIGTTOU).contains(&sig) {
            return Err(Errno::EINVAL);
        }
        let alive = |k: &usize| self.slot_ref(*k).phase == Phase::Alive;
        let is = |k: &usize| tid == 0 || self.slot_ref(*k).u.pid == tid || *k == 0 && tid == told;
        let k = (0..self.pairs()).filter(alive).find(is).ok_or(Errno::ESRCH)?;
        self.slot_ref(k).u.signal(sig);
        Ok(())
    }

    /// U asks for a signal by its alarm. That it does is an allegation; that it gets one is its own affair.
    fn answer_alarm(&mut self, k: usize) {
        let mailbox = self.mailboxes.mailbox(k);
        // SAFETY: the view is mapped; a racing guest can only change which signal it gets.
        let (raise, raised) = unsafe { (&raw mut (*mailbox).raise, &raw mut (*mailbox).raised) };
        // SAFETY: as above.
        let (request, before) = unsafe { (raise.read_volatile(), raised.read_volatile()) };
        if request == before || self.alarms >= ALARMS {
            return;
        }
        let sig = (request & 0xff) as i32;
        if signal::REPORTED.contains(&sig) {
            self.slot_ref(k).u.signal(sig);
        }
        // SAFETY: as above.
        unsafe { raised.write_volatile(request) };
        let _ = self.answer();
        self.alarms += 1;
        if self.alarms == ALARMS {
            self.answer.1 = None; // who waits for another answer finds the pipe at its end
        }
    }

    // Threads.

    /// Begins a new thread for pair `k`, whose T was taken: that T makes the new pair's T, and asks again.
    fn bear(&mut self, k: usize, thread: &Thread, request: &Request<'_>, pc: usize) {
        let Some(child) = (0..self.pairs()).find(|k| *k > 0 && self.slot_ref(*k).phase == Phase::Free) else {
            let refusal = Refusal { errno: Errno::EAGAIN.into_raw(), rule: "as many threads as the policy allows" };
            return self.refuse(k, request, pc, refusal);
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
        unsafe {
            (&raw mut (*page).ask).write_volatile(0);
            (&raw mut (*page).seq).write_volatile(0);
            birth::write(&mut *page, child, &common, Some(thread), frame);
            let context = request.payload.get(context_at(request)..).unwrap_or_default();
            let data = &mut (*page).data;
            let len = context.len().min(data.len());
            data[..len].copy_from_slice(&context[..len]);
            let mailbox: *mut Mailbox = self.mailboxes.mailbox(child);
            (&raw mut (*mailbox).line).write_bytes(0, 1);
            (&raw mut (*mailbox).asks).write_volatile(0);
            (&raw mut (*mailbox).selector).write_volatile(0);
            (&raw mut (*mailbox).raise).write_volatile(0);
            (&raw mut (*mailbox).raised).write_volatile(0);
        }
        *self.slot(child) = Slot { phase: Phase::T(k), ..Slot::free() };
        self.slot(k).bears = Some(child);
        let args = [clone::THREAD.bits(), POISON, 0, 0, 0, 0];
        let mailbox = layout.mailbox(child).addr();
        let make =
            Step { nr: Sysno::clone as u32, flags: STEP_STOP | STEP_CLONE_T, args, expect: mailbox, ..Step::default() };
        self.script(k, &[make, Step { nr: STEP_ASK, ..Step::default() }]);
        self.give(k);
    }

    /// Takes what new tasks say of themselves. The kernel says who they are.
    fn births(&mut self) {
        for _ in 0..PAIRS {
            let (pid, [k, what]) = match sys::receive(self.births.0) {
                Ok(Some(message)) => message,
                Ok(None) => continue, // not of a size that a birth has
                Err(_) => return,
            };
            let k = k as usize;
            let known = (0..self.pairs()).find_map(|k| {
                let slot = self.slot_ref(k);
                (slot.t.pid == pid).then_some((k, false)).or((slot.u.pid == pid).then_some((k, true)))
            });
            #[cfg(feature = "experiments")]
            let known = match crate::experiment::BELIEVE_BIRTHS.load(Ordering::Relaxed) {
                true => (what == birth::READY_U).then_some((k, true)),
                false => known,
            };
            match (known, self.slot_ref(k).phase) {
                (None, Phase::T(parent)) if k < self.pairs() && what == birth::BORN_T => {
                    self.slot(k).t = Task::new(pid);
                    self.slot(k).phase = Phase::U(parent);
                    self.follow(k, END_T);
                }
                (None, Phase::U(parent)) if k < self.pairs() && what == birth::BORN_U => {
                    self.slot(k).u = Task::new(pid);
                    self.slot(k).phase = Phase::Lockdown(parent);
                    self.follow(k, END_U);
                }
                (Some((n, true)), Phase::Lockdown(parent)) if n == k && what == birth::READY_U => {
                    self.slot(k).phase = Phase::Ready(parent);
                    self.retries = RETRIES;
                    if !self.deliver(parent, k) {
                        self.retries = RETRIES;
                    }
                }
                _ => {} // a guest that writes there, which is of no use to it
            }
        }
    }

    fn follow(&mut self, k: usize, what: u64) {
        let epoll = self.epoll.0;
        let slot = self.slot(k);
        let task = if what == END_T { &mut slot.t } else { &mut slot.u };
        if task.watch(epoll, what | k as u64).is_err() {
            task.end(); // nobody would notice its end
        }
    }

    /// Tells pair `k` that `child` is born and ready, and lets that run; false if its T does not wait yet.
    fn deliver(&mut self, k: usize, child: usize) -> bool {
        if !self.take(k) {
            return false;
        }
        let tid = self.slot_ref(child).u.pid as usize;
        let doorbell = self.common().fds.doorbells(child).1 as usize;
        let one =
            self.layout().vault().addr() + offset_of!(crate::abi::Vault, page) + offset_of!(crate::abi::VaultPage, one);
        self.slot(child).phase = Phase::Alive;
        self.slot(k).bears = None;
        // SAFETY: the view is mapped; the child reads it when it is told to go on.
        unsafe { (&raw mut (*self.vault.verdict(child)).tid).write_volatile(tid as u32) };
        let go = Step { nr: Sysno::write as u32, args: [doorbell, one, 8, 0, 0, 0], ..Step::default() };
        let reply = Step { nr: STEP_REPLY, args: [tid, 0, 0, 0, 0, 0], ..Step::default() };
        self.script(k, &[go, reply]);
        self.give(k);
        true
    }

    /// The birth of a thread failed: pair `k` is told so when its T waits.
    fn undelivered(&mut self, k: usize) {
        self.slot(k).bears = None;
        for _ in 0..RETRIES {
            if self.slot_ref(k).phase != Phase::Alive {
                return;
            }
            if self.take(k) {
                return self.reply(k, (-Errno::EAGAIN.into_raw()) as isize as usize);
            }
            sys::yield_now();
        }
    }

    /// Whether pair `k` still waits for `child`: if the clone of its T failed, the guest has its errno, and asks for
    /// something else.
    fn failed_to_bear(&mut self, k: usize, child: usize) -> bool {
        let mailbox = self.mailboxes.mailbox(k);
        // SAFETY: the view is mapped; what is read is a hint.
        let asks = unsafe { (&raw const (*mailbox).asks).read_volatile() };
        if self.slot_ref(child).phase == Phase::T(k) && asks != self.slot_ref(k).asked {
            *self.slot(child) = Slot::free();
            self.slot(k).bears = None;
            return true;
        }
        false
    }
}

/// Where in a `clone` request the context of the new thread begins.
fn context_at(request: &Request<'_>) -> usize {
    let desc = cfg!(target_arch = "x86") && request.args[0] & crate::deep::CLONE_SETTLS != 0;
    if desc { crate::deep::DESC } else { 0 }
}

impl Drop for Sandbox<'_> {
    fn drop(&mut self) {
        if self.owner != sys::pids().0 {
            return;
        }
        for k in 0..self.pairs() {
            // SAFETY: `Books::start` wrote them all, and nobody uses them again.
            unsafe { (&mut (*self.books.at).slots)[k].assume_init_drop() };
        }
    }
}
