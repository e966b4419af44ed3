//! The broker: takes requests, has them decided, and gives T its verdicts.
//!
//! What it believes about T it learns from the kernel: that T waits for a verdict, because a `FUTEX_CMP_REQUEUE` from the
//! verdict's first word, which only T can wait at, found somebody there; who is born and who has ended, as
//! `births.rs` says. The alarm that wakes it and the mailboxes that it reads are the guest's to forge: they cost the guest's
//! own time.
//!
//! One thread can serve many sandboxes ([`Poller`](crate::poller::Poller), or anything that polls [`Sandbox::descriptor`]);
//! each is served in turn, one batch of events at a time.

mod births;
pub mod decide;
mod files;
pub mod path;
pub(crate) mod reads;
mod refused;

pub(crate) use births::Phase;
pub use reads::NoReader;
pub use refused::Refused;

use crate::abi::{NR_STAY, PAIRS, PAYLOAD, STEP_REPLY, Step, TOKEN_PATH, Token, Verdict as Page};
use crate::birth::Common;
use crate::error::{Error, Status};
use crate::pair::Layout;
use crate::sandbox::{Cause, Sandbox};
use crate::signal;
use crate::sys::{self, Errno, Event};
use crate::task::Task;
use births::{HELD, Slot, TURN, Waits};
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

/// Signals that a guest may ask for by its alarm: an abort takes two, a report of many threads one. After that nobody listens, so that a flood costs
/// only the guest.
const ALARMS: u32 = 64;
/// How often the broker looks in vain whether a T waits that seems to ask, giving up the CPU in between: it rings just
/// before it does. Then the pauses begin, each twice as long as the last. So a guest that has others seem to ask slows down
/// its own sandbox.
const AT_ONCE: u32 = 8;
/// The first pause and the longest, in nanoseconds.
const PAUSES: (u64, u64) = (20_000, 50_000_000);

/// Where a T waits for a verdict.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum At {
    /// [`Page::ask`]
    Ask,
    /// [`Page::bore`]
    Bore,
}

/// The broker's books of one sandbox: memory of the supervisor's that no child inherits.
pub(crate) struct Books {
    common: MaybeUninit<Common>,
    slots: [MaybeUninit<Slot>; PAIRS],
    cwd: [u8; PATH],
    cwd_len: usize,
    /// The request under decision, and the paths that it is about. They are nowhere else: what is large is not moved.
    payload: [u8; PAYLOAD],
    /// Who sent a message of a birth and was none.
    stray: Task,
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
        self.stray = Task::none();
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

    fn stray(&mut self) -> &mut Task {
        &mut self.books().stray
    }

    /// How many threads the guest has.
    pub(crate) fn living(&self) -> usize {
        (0..self.pairs()).filter(|k| self.slot_ref(*k).phase == Phase::Alive).count()
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

    /// The first pair whose U ended by a signal that was not sent here: that is the end of all.
    pub(crate) fn culprit(&self) -> Option<usize> {
        let by_signal = |k: &usize| {
            let slot = self.slot_ref(*k);
            slot.phase != Phase::Ending && matches!(slot.u.status, Some(Status::Signaled { .. }))
        };
        (0..self.pairs()).find(by_signal)
    }

    /// When the sandbox wants to be looked at again, whatever its descriptor says.
    pub(crate) fn due(&self) -> Option<Duration> {
        // SAFETY: the view is mapped and this value's own.
        let until = unsafe { (*self.books.at).until };
        let limited = (until > 0).then(|| Duration::from_nanos(until.saturating_sub(sys::now())));
        let retry = self.retry.map(|at| Duration::from_nanos(at.saturating_sub(if at > 0 { sys::now() } else { 0 })));
        let scale = (!self.good_scale).then(|| Duration::from_nanos(crate::fault::tsc::GOOD));
        limited.into_iter().chain(retry).chain(scale).min()
    }

    /// Waits for up to `timeout` for events, and handles them. Whether the sandbox is at its end, and why.
    pub(crate) fn step(&mut self, timeout: Option<Duration>) -> Result<Option<Cause>, Errno> {
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
        let (mut alarm, mut birth, mut end) = (false, false, false);
        for event in events.iter().take(n) {
            match event.data & !0xffff_ffff {
                BIRTH => birth = true,
                ALARM => alarm = true,
                _ => end |= self.slot((event.data & 0xffff_ffff) as usize).look(),
            }
        }
        if end {
            self.births(HELD);
            if let Some(cause) = self.ended() {
                return Ok(Some(cause));
            }
        } else if birth {
            self.births(TURN);
        }
        if alarm {
            // A guest could leave the count at its end, where no ring is heard any more.
            let _ = sys::read(self.alarm.0, &mut [0; 8]);
        }
        let due = |at: u64| at == 0 || sys::now() >= at;
        let limited = self.books().until > 0 && due(self.books().until);
        let room = end && (0..self.pairs()).any(|k| self.slot_ref(k).waits == Waits::Room);
        if alarm || limited || room || self.retry.is_some_and(due) {
            self.books().until = 0;
            self.round();
        }
        Ok(None)
    }

    /// Looks whether any task has ended, whatever was told. Whether the sandbox is at its end, and why.
    pub(crate) fn look(&mut self) -> Option<Cause> {
        for k in 0..self.pairs() {
            self.slot(k).look();
        }
        self.births(HELD);
        self.ended()
    }

    /// Looks at every pair: who asks, for a verdict or for a signal?
    fn round(&mut self) {
        self.retry = None;
        let mut now = 0; // the last time looked at: a pause may be longer by a round
        for k in 0..self.pairs() {
            if self.slot_ref(k).phase != Phase::Alive {
                continue;
            }
            self.answer_alarm(k);
            let again = self.slot_ref(k).again;
            if again > now {
                now = if now == 0 { sys::now() } else { now };
                if again > now {
                    self.retry_at(again);
                    continue;
                }
            }
            let done = match self.slot_ref(k).waits {
                Waits::Nothing => self.asked(k),
                Waits::Answer(answer) => Some(self.told(k, answer)),
                Waits::Birth(child) if self.slot_ref(child).phase == Phase::Unborn => {
                    let failed = self.take(k, At::Ask);
                    if failed {
                        self.barren(k, child);
                    }
                    Some(failed)
                }
                Waits::Birth(_) => None,
                Waits::Room => {
                    self.slot(k).waits = Waits::Nothing;
                    self.serve_request(k);
                    let slot = self.slot(k);
                    slot.patience = if slot.waits == Waits::Room { slot.patience } else { 0 };
                    None
                }
            };
            #[cfg(feature = "experiments")]
            self.believe_asks(k);
            let slot = self.slot(k);
            match done {
                None | Some(true) => {}
                Some(false) => {
                    slot.vain = slot.vain.saturating_add(1);
                    #[cfg(feature = "experiments")]
                    if crate::experiment::NO_PAUSES.load(Ordering::Relaxed) {
                        slot.vain = 0;
                    }
                    let (first, longest) = PAUSES;
                    slot.again = match slot.vain.checked_sub(AT_ONCE) {
                        None => 0,
                        Some(n) => sys::now() + (first << n.min(16)).min(longest),
                    };
                    let again = slot.again;
                    self.retry_at(again);
                }
            }
        }
        if self.retry == Some(0) {
            sys::yield_now();
        }
    }

    /// Has another round at this time, in nanoseconds; 0: at once.
    pub(super) fn retry_at(&mut self, at: u64) {
        self.retry = Some(self.retry.map_or(at, |other| other.min(at)));
    }

    /// Serves pair `k` if it asks: `None` if its mailbox does not say so, or not now; whether its T waits, if it does.
    fn asked(&mut self, k: usize) -> Option<bool> {
        let mailbox = self.mailboxes.mailbox(k);
        // SAFETY: the view is mapped; what is read is a hint.
        let asks = unsafe { (&raw const (*mailbox).asks).read_volatile() };
        let new = asks != self.slot_ref(k).asked;
        #[cfg(feature = "experiments")]
        let alarm = self.believes(k, &crate::experiment::BELIEVE_ALARM, sys::Sysno::fcntl);
        #[cfg(feature = "experiments")]
        let new = new || alarm;
        // SAFETY: the view is mapped. Whoever puts that there has its own T wait.
        let stays = self.memory.is_some() && unsafe { (&raw const (*mailbox).line.nr).read_volatile() } == NR_STAY;
        if new && stays {
            self.slot(k).asked = asks;
        }
        if !new || stays || !self.within_limit() {
            return None;
        }
        let waits = self.take(k, At::Ask);
        #[cfg(feature = "experiments")]
        let waits = waits || alarm || self.believes(k, &crate::experiment::BELIEVE_MAILBOX, sys::Sysno::openat);
        if waits {
            self.books().calls += 1;
            self.slot(k).asked = asks;
            self.last = k;
            self.serve_request(k);
        }
        Some(waits)
    }

    /// Serves the pair again that was served last, if it asks already. Its ring stays to be heard, and is one for nothing.
    pub(crate) fn serve_again(&mut self) -> bool {
        let k = self.last;
        let slot = self.slot_ref(k);
        let may = slot.phase == Phase::Alive && slot.waits == Waits::Nothing && slot.again == 0;
        may && self.asked(k) == Some(true)
    }

    #[cfg(feature = "experiments")]
    fn believe_asks(&mut self, k: usize) {
        // SAFETY: the view is mapped; what is read is the guest's to forge.
        let asks = unsafe { (&raw const (*self.mailboxes.mailbox(k)).asks).read_volatile() };
        let Waits::Birth(child) = self.slot_ref(k).waits else { return };
        let unborn = self.slot_ref(child).phase == Phase::Unborn;
        if crate::experiment::BELIEVE_ASKS.load(Ordering::Relaxed) && unborn && asks != self.slot_ref(k).asked {
            *self.slot(child) = Slot::free();
            self.slot(k).waits = Waits::Nothing;
        }
    }

    /// Whether a switch is on, and the mailbox of pair `k` holds the call that its case is about: births go well.
    #[cfg(feature = "experiments")]
    fn believes(&self, k: usize, switch: &core::sync::atomic::AtomicBool, call: sys::Sysno) -> bool {
        // SAFETY: the view is mapped.
        let nr = unsafe { (&raw const (*self.mailboxes.mailbox(k)).line.nr).read_volatile() };
        switch.load(Ordering::Relaxed) && nr == call as u32
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
        true
    }

    /// Whether the T of pair `k` waits there for a verdict: the kernel moves it from one word of its verdict to another.
    /// Until the next verdict it executes nothing.
    fn take(&mut self, k: usize, at: At) -> bool {
        let waits = self.waits_at(k, at);
        if waits {
            let slot = self.slot(k);
            (slot.vain, slot.again) = (0, 0);
        }
        waits
    }

    /// [`take`](Self::take), without the books.
    fn waits_at(&self, k: usize, at: At) -> bool {
        let seq = self.slot_ref(k).seq.get();
        let page = self.vault.verdict(k);
        // SAFETY: field addresses of a mapped view.
        let (ask, bore, to) = unsafe { (&raw const (*page).ask, &raw const (*page).bore, &raw const (*page).seq) };
        #[cfg(feature = "experiments")]
        crate::experiment::LOOKS.fetch_add(1, Ordering::Relaxed);
        sys::futex_requeue(if at == At::Ask { ask } else { bore }, to, seq).unwrap_or(false)
    }

    /// Gives the T of pair `k`, which was taken, its verdict.
    fn give(&mut self, k: usize) {
        self.hand_over(k);
    }

    fn hand_over(&self, k: usize) {
        let slot = self.slot_ref(k);
        let seq = slot.seq.get().wrapping_add(1);
        slot.seq.set(seq);
        let page = self.vault.verdict(k);
        // SAFETY: the words are mapped and aligned; the sandbox only reads them.
        let words = unsafe { [&raw mut (*page).seq, &raw mut (*page).ask, &raw mut (*page).bore] };
        for word in words {
            // SAFETY: as above. The number goes out last, behind the script.
            unsafe { AtomicU32::from_ptr(word) }.store(seq, Ordering::Release);
        }
        // It waits at the first, unless it rang again meanwhile.
        let _ = words.into_iter().any(|word| sys::futex_wake_some(word, 1) == Ok(1));
    }

    /// Has the request of pair `k`, whose T was taken, end with a result.
    fn reply(&mut self, k: usize, result: usize) {
        self.script(k, &[Step { nr: STEP_REPLY, args: [result, 0, 0, 0, 0, 0], ..Step::default() }]);
        self.give(k);
    }

    fn script(&self, k: usize, steps: &[Step]) {
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
        #[cfg(feature = "experiments")]
        // SAFETY: the views are mapped; T does not look.
        unsafe {
            use crate::experiment::{decided, unlink_by_t};
            match &verdict {
                Verdict::Script => decided(mailbox, &mut *page, request.nr, &request.args, None),
                Verdict::Open { place, .. } => {
                    decided(mailbox, &mut *page, request.nr, &request.args, Some(place.rest));
                }
                Verdict::Files(change) if unlink_by_t(change, &mut (*books).paths[0], root_fds, &mut *page, data) => {
                    return self.give(k);
                }
                _ => {}
            }
        }
        match verdict {
            Verdict::Script => self.give(k),
            Verdict::Open { place, asked, how } => {
                self.leave_token(place, asked, how);
                self.give(k);
            }
            Verdict::Refuse(refusal) => self.refuse(k, &request, pc, refusal),
            Verdict::Files(change) => match self.change(k, &change) {
                Ok(result) => self.reply(k, result),
                Err(errno) => self.reply(k, sys::failure(errno)),
            },
            Verdict::Getcwd { size } => self.getcwd(k, size),
            Verdict::Clone { thread } => self.bear(k, &thread, &request, pc),
            Verdict::ExitGroup => {
                // Who has not announced itself is killed when it does. That pair's end is the sandbox's.
                self.group = Some(k);
                (0..self.pairs()).filter(|other| *other != k).for_each(|other| self.kill_pair(other));
                self.reply(k, 0);
            }
            Verdict::Signal { tid, sig } => match self.signal(tid, sig) {
                Ok(()) => self.reply(k, 0),
                Err(errno) => self.reply(k, sys::failure(errno)),
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
            return self.reply(k, sys::failure(Errno::ERANGE));
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
        } else if sig == signal::KICK {
            // The reporter wants to tell of the other threads.
            (0..self.pairs()).filter(|other| *other != k).for_each(|other| self.slot_ref(other).u.signal(sig));
        }
        // SAFETY: as above.
        unsafe { raised.write_volatile(request) };
        let _ = self.answer();
        self.alarms += 1;
        if self.alarms == ALARMS {
            self.answer.1 = None; // who waits for another answer finds the pipe at its end
        }
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
        if self.kill().left > 0 {
            self.clear(0); // somebody may have ended meanwhile
        }
        for k in 0..self.pairs() {
            // SAFETY: `Books::start` wrote them all, and nobody uses them again.
            unsafe { (&mut (*self.books.at).slots)[k].assume_init_drop() };
        }
    }
}
