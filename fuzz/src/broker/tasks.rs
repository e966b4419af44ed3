//! Ts and Us, as they are played: a T by what the broker writes into its verdict, a step at a time (`arch/*/birth.S`), a U by what an
//! input says.

use std::hash::{DefaultHasher, Hash, Hasher};

use ascetic::abi::{
    Mailbox, STEP_AGAIN, STEP_BORE, STEP_CHECK, STEP_CLONE_T, STEP_CLONE_U, STEP_KEEP, STEP_MUST, STEP_REPLY,
    STEP_SAVE, STEP_SERVE, STEP_STOP, STEP_TELL, Step, Verdict,
};
use ascetic::policy::{Bounds, Decision};
use ascetic::sys::Sysno;

use super::kernel::World;
use super::scribbler::Scribbled;

/// `CLONE_VM | FS | FILES | SIGHAND | THREAD | SYSVSEM`
const THREAD: usize = 0x5_0f00;
const ENOMEM: usize = -12isize as usize;
/// Where nothing is.
const FREE: usize = 0x7000_0000;
const EAGAIN: usize = -11isize as usize;

/// What a task is at.
#[derive(Clone, Copy, Debug)]
pub(super) enum State {
    /// The step at this address, of a script that had this digest when it began.
    Step { at: usize, script: (usize, usize), digest: u64 },
    /// A new task, which has not yet read where it belongs: it goes by its maker's script, which had this digest.
    Child { script: (usize, usize), digest: u64 },
    /// A T waits at a word for a verdict.
    Wait { word: usize, woken: bool, bore: bool },
    /// A U waits at its gate; the step behind is next.
    Gate { word: usize, woken: bool, at: usize, script: (usize, usize), digest: u64 },
    /// A T serves.
    Idle,
    /// A U runs the guest's code.
    Guest,
}

/// What a guest asked for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Asked {
    nr: u32,
    /// The mailbox still says so, or said so when T was taken: nobody lied.
    clean: bool,
    taken: bool,
}

#[derive(Debug)]
pub(super) struct Task {
    pub(super) pid: u32,
    pub(super) pair: usize,
    is_t: bool,
    pub(super) state: State,
    pub(super) status: Option<i32>,
    pub(super) reaped: bool,
    pub(super) killed: bool,
    /// The process id of who made it.
    maker: u32,
    turn: u32,
    last: u32,
    saved: usize,
    /// The result that a step made the reply.
    kept: usize,
    asked: Option<Asked>,
    /// Somebody wrote into its mailbox.
    spoiled: bool,
    /// Its messages so far: a U's second is that it comes to its gate.
    said: u32,
}

impl Task {
    fn new(pid: u32, pair: usize, is_t: bool, maker: u32, state: State) -> Self {
        let (status, asked) = (None, None);
        Self {
            pid,
            pair,
            is_t,
            state,
            status,
            reaped: false,
            killed: false,
            maker,
            turn: 0,
            last: 0,
            saved: 0,
            kept: 0,
            asked,
            spoiled: false,
            said: 0,
        }
    }

    /// Of the first pair, as it is when guest code begins.
    pub(super) fn first(pid: u32, is_t: bool) -> Self {
        Self::new(pid, 0, is_t, 0, if is_t { State::Idle } else { State::Guest })
    }

    /// The broker knows that it waits.
    pub(super) fn taken(&mut self) {
        if let Some(asked) = &mut self.asked {
            asked.taken = true;
        }
    }

    fn runs(&self) -> bool {
        self.status.is_none()
    }
}

/// A number that stands for these bytes.
fn digest((from, len): (usize, usize)) -> u64 {
    let mut hasher = DefaultHasher::new();
    // SAFETY: a part of a view.
    unsafe { std::slice::from_raw_parts(from as *const u8, len) }.hash(&mut hasher);
    hasher.finish()
}

impl World {
    /// Has the first argument of the first pair's requests change all the time, between one that may be and one that may not.
    pub(super) fn scribble(&mut self) -> Scribbled {
        self.tasks.iter_mut().filter(|task| task.pair == 0).for_each(|task| task.spoiled = true);
        self.scribbled = true;
        let word = (&raw mut self.mailbox_of(0).line.args[0]).addr();
        // SAFETY: the mailbox is there as long as the sandbox, which is dropped later.
        unsafe { Scribbled::new(word, [FREE, self.vault_lo()]) }
    }

    fn mailbox_of(&self, pair: usize) -> &'static mut Mailbox {
        // SAFETY: the view is mapped as long as the sandbox lives, and nothing else here refers to it.
        unsafe { &mut *(self.mailbox(pair) as *mut Mailbox) }
    }

    fn verdict_of(&self, pair: usize) -> &'static Verdict {
        // SAFETY: as above; it is only read.
        unsafe { &*(self.verdict(pair) as *const Verdict) }
    }

    fn script(&self, steps: &[Step]) -> State {
        let script = (steps.as_ptr().addr(), size_of_val(steps));
        State::Step { at: script.0, script, digest: digest(script) }
    }

    /// A task does the next thing that it does.
    pub(super) fn advance(&mut self, i: usize) {
        let task = &self.tasks[i];
        if !task.runs() {
            return;
        }
        if task.killed {
            self.tasks[i].status = Some(9);
            return;
        }
        match task.state {
            State::Step { at, script, digest: before } => {
                assert_eq!(digest(script), before, "the script of {task:?} has changed while it runs");
                self.step(i, at, script, before);
            }
            State::Child { script, digest: before } => {
                assert_eq!(digest(script), before, "what made {task:?} has changed before it read where it belongs");
                let verdict = self.verdict_of(task.pair);
                self.tasks[i].state = self.script(if task.is_t { &verdict.t } else { &verdict.u });
            }
            State::Gate { woken: true, at, script, digest, .. } => {
                self.tasks[i].state = State::Step { at, script, digest }
            }
            State::Gate { .. } => {}
            State::Wait { woken, bore, .. } => {
                // The patience of a T ends, too.
                if woken || self.choose(8) == 7 {
                    self.look(i, bore);
                }
            }
            State::Idle => self.take(i),
            State::Guest => self.guest(i),
        }
    }

    /// A T looks whether there is a verdict.
    fn look(&mut self, i: usize, bore: bool) {
        let pair = self.tasks[i].pair;
        let verdict = self.verdict_of(pair);
        // SAFETY: a word of a view.
        let seq = unsafe { (&raw const verdict.seq).read_volatile() };
        if seq != self.tasks[i].last {
            let state = self.script(&verdict.script);
            let task = &mut self.tasks[i];
            assert_eq!(seq, task.last.wrapping_add(1), "a verdict is passed over");
            assert!(task.asked.is_some_and(|asked| asked.taken), "a verdict for who was not taken: {task:?}");
            (task.last, task.state) = (seq, state);
        } else {
            self.rung = true;
            self.await_verdict(i, bore);
        }
    }

    fn await_verdict(&mut self, i: usize, bore: bool) {
        let verdict = self.verdict_of(self.tasks[i].pair);
        let (ask, seq) = (&raw const verdict.ask, &raw const verdict.bore);
        let word = if bore { seq } else { ask };
        // SAFETY: a word of a view. As the kernel does, who waits for another number does not wait.
        let woken = unsafe { word.read_volatile() } != self.tasks[i].last;
        self.tasks[i].state = State::Wait { word: word.addr(), woken, bore };
    }

    /// A T takes a request, if there is one.
    fn take(&mut self, i: usize) {
        let task = &self.tasks[i];
        let line = &self.mailbox_of(task.pair).line;
        if line.turn == task.turn {
            return;
        }
        let (nr, args, turn) = (line.nr, line.args, line.turn);
        let bounds = Bounds { vault_lo: 0, vault_len: 0, fd_lo: 0, fd_len: 0 };
        self.tasks[i].turn = turn;
        if self.policy.decide(&bounds, nr, &args) == Decision::Allow {
            return self.reply(i, Some(1));
        }
        let pair = self.tasks[i].pair;
        self.mailbox_of(pair).asks = turn;
        self.tasks[i].asked = Some(Asked { nr, clean: !(self.scribbled && pair == 0), taken: false });
        self.rung = true;
        self.await_verdict(i, false);
    }

    /// A T answers; `None`: the result is there.
    fn reply(&mut self, i: usize, result: Option<usize>) {
        let asked = self.tasks[i].asked.take();
        let mailbox = self.mailbox_of(self.tasks[i].pair);
        if let Some(result) = result {
            mailbox.line.args[0] = result;
        }
        let task = &mut self.tasks[i];
        let result = result.unwrap_or(task.kept) as isize;
        task.turn = task.turn.wrapping_add(1);
        mailbox.line.turn = task.turn;
        task.state = State::Idle;
        let t = task.pid;
        let Some(asked) = asked.filter(|asked| asked.clean && self.roots.is_empty()) else { return };
        let errno = self.policy.errno(asked.nr) as isize;
        match Sysno::new(asked.nr as usize) {
            Some(Sysno::clone) if result > 0 => {
                let made = |task: &&Task| task.pid as isize == result && !task.is_t;
                let u = self.tasks.iter().find(made).unwrap_or_else(|| panic!("{result} is no thread"));
                let maker = self.tasks.iter().find(|task| task.pid == u.maker);
                assert!(maker.is_some_and(|maker| maker.maker == t), "{t} is told of {result}, which another made");
            }
            Some(Sysno::clone) => assert!((-4095..0).contains(&result), "a thread {result}"),
            Some(Sysno::tgkill) => assert!([0, -3, -22].contains(&result), "tgkill: {result}"),
            Some(Sysno::exit_group) => assert_eq!(result, 0),
            Some(Sysno::mmap) => assert!(result != 0),
            _ => assert_eq!(result, -errno, "{asked:?}"),
        }
    }

    /// A step of a script.
    fn step(&mut self, i: usize, at: usize, script: (usize, usize), before: u64) {
        assert!((script.0..script.0 + script.1).contains(&at), "a script without an end: {:?}", self.tasks[i]);
        // SAFETY: in a script, which is in a view.
        let step = unsafe { (at as *const Step).read() };
        let saved = self.tasks[i].saved;
        let flag = |flag: u32| step.flags & flag != 0;
        match step.nr {
            STEP_SERVE => {
                (self.tasks[i].turn, self.tasks[i].last, self.tasks[i].state) = (0, 0, State::Idle);
                return;
            }
            STEP_BORE => return self.await_verdict(i, true),
            STEP_REPLY if flag(STEP_KEEP) => return self.reply(i, None),
            STEP_REPLY => return self.reply(i, Some(if flag(1) { saved } else { step.args[0] })),
            _ => {}
        }
        let args: [usize; 6] = std::array::from_fn(|n| if flag(1 << n) { saved } else { step.args[n] });
        let next = |by: isize| State::Step {
            at: at.wrapping_add_signed(by * size_of::<Step>() as isize),
            script,
            digest: before,
        };
        self.tasks[i].state = next(1);
        let Some(result) = self.made_call(i, &step, &args) else { return };
        let is_error = result >= -4095isize as usize;
        if flag(STEP_SAVE) {
            self.tasks[i].saved = result;
        }
        if flag(STEP_KEEP) {
            self.mailbox_of(self.tasks[i].pair).line.args[0] = result;
            self.tasks[i].kept = result;
        }
        if is_error && flag(STEP_STOP) {
            self.reply(i, Some(result));
        } else if is_error && flag(STEP_TELL) {
            self.rung = true;
            self.await_verdict(i, false);
        } else if is_error && flag(STEP_MUST) || flag(STEP_CHECK) && result != step.expect {
            if flag(STEP_AGAIN) {
                self.tasks[i].state = next(-1);
            } else {
                self.tasks[i].status = Some((step.id as i32 & 0xff) << 8);
            }
        }
    }

    /// The result of a task's call; `None` if it is somewhere else now.
    fn made_call(&mut self, i: usize, step: &Step, args: &[usize; 6]) -> Option<usize> {
        let expected = if step.flags & STEP_CHECK != 0 { step.expect } else { 0 };
        let pid = self.tasks[i].pid;
        if !self.roots.is_empty() {
            return Some(self.real_call(step.nr, args));
        }
        match Sysno::new(step.nr as usize) {
            Some(Sysno::write) => match self.in_verdict(args[1]) {
                Some(message) => {
                    // SAFETY: in a verdict.
                    let words = unsafe { (message as *const [u32; 2]).read() };
                    let said = !self.at_times(16) && self.say((pid, Some(words)));
                    self.tasks[i].said += u32::from(said);
                    return Some(if said { 8 } else { EAGAIN });
                }
                None => self.rung = true,
            },
            Some(Sysno::futex) => {
                let word = self.in_verdict(args[0]).expect("a gate");
                // SAFETY: in a verdict.
                if unsafe { (word as *const u32).read_volatile() } != 0 {
                    return Some(EAGAIN);
                }
                let State::Step { at, script, .. } = self.tasks[i].state else { unreachable!() };
                // What the broker writes beside the scripts is not a part of them.
                self.tasks[i].state = State::Gate { word, woken: false, at, script, digest: digest(script) };
                return None;
            }
            Some(Sysno::clone) => {
                if self.at_times(8) {
                    return Some(EAGAIN);
                }
                return Some(self.make(i, step) as usize);
            }
            Some(Sysno::rt_sigreturn) => {
                assert!(!self.tasks[i].is_t && self.verdict_of(self.tasks[i].pair).go == 1, "{:?}", self.tasks[i]);
                let most = self.policy.limits_of().threads as usize;
                let guests =
                    self.tasks.iter().filter(|task| matches!(task.state, State::Guest) && !task.reaped).count();
                assert!(guests < most, "more guests than the policy allows");
                self.tasks[i].state = State::Guest;
                return None;
            }
            // What comes before a task has announced itself does not fail: the supervisor lives, and the set is there.
            Some(Sysno::getppid | Sysno::rt_sigprocmask) => return Some(expected),
            Some(Sysno::mmap) => {
                // Without `MAP_FIXED`, an address is a hint.
                let replaces = args[3] & libc::MAP_FIXED as usize != 0 && args[0] == self.vault_lo();
                assert!(!replaces, "{:?} is told to map over the vault", self.tasks[i]);
                return Some(if self.at_times(2) { ENOMEM } else { FREE });
            }
            _ => {}
        }
        Some(if self.at_times(64) { ENOMEM } else { expected })
    }

    /// A task makes another: its process id.
    fn make(&mut self, i: usize, step: &Step) -> u32 {
        let is_t = step.flags & STEP_CLONE_T != 0;
        assert!(is_t || step.flags & STEP_CLONE_U != 0);
        let (pair, pid) = (self.pair_of(step.expect), self.new_pid());
        // A place is free only when all that was there is gone, and reaped.
        for task in self.tasks.iter().filter(|task| task.pair == pair && (is_t || !task.is_t)) {
            assert!(task.reaped, "pair {pair} is used again, with {task:?}");
        }
        // Nor before a T that was made there has read what it has to read there.
        let there = self.verdict(pair)..self.verdict(pair + 1);
        for task in self.tasks.iter().filter(|task| is_t && task.runs()) {
            let reads = matches!(task.state, State::Child { script, .. } if there.contains(&script.0));
            assert!(!reads, "pair {pair} is used again, and this one goes by it: {task:?}");
        }
        let State::Step { script, digest, .. } = self.tasks[i].state else { unreachable!("it makes a call") };
        let maker = self.tasks[i].pid;
        self.tasks.push(Task::new(pid, pair, is_t, maker, State::Child { script, digest }));
        pid
    }

    /// Somebody is woken at a word: if it is a gate, only who has come to it.
    pub(super) fn opened(&self, word: usize) {
        for u in self.tasks.iter().filter(|task| !task.is_t && task.pair > 0 && !task.reaped) {
            let gate = (&raw const self.verdict_of(u.pair).go).addr();
            assert!(gate != word || u.said >= 2, "the gate is opened of one that has not come to it: {u:?}");
        }
    }

    /// Whether the request of a pair was answered.
    fn is_answered(&self, pair: usize) -> bool {
        let t = self.tasks.iter().find(|task| task.pair == pair && task.is_t && !task.reaped);
        t.is_none_or(|t| matches!(t.state, State::Idle) && t.turn == self.mailbox_of(pair).line.turn)
    }

    /// A guest does something: it asks, lies, ends, or does nothing.
    fn guest(&mut self, i: usize) {
        if self.quiet {
            return;
        }
        let (pid, pair) = (self.tasks[i].pid, self.tasks[i].pair);
        match self.choose(16) {
            0..=6 if self.is_answered(pair) => self.ask(pair),
            7 | 8 => self.lie(),
            9 => {
                let words = [self.choose(6) as u32, self.choose(4) as u32];
                let whole = self.choose(8) != 7;
                self.say((pid, whole.then_some(words)));
            }
            10 => self.rung = true,
            11 => self.tasks[i].status = Some(0),
            12 if self.choose(4) == 3 => self.tasks[i].status = Some(11),
            _ => {}
        }
    }

    /// A request.
    fn ask(&mut self, pair: usize) {
        let word = self.choose(256);
        let (nr, args) = match self.choose(10) {
            0..=4 => (Sysno::clone, [THREAD, 0, 0, 0, 0, 0]),
            5 => (Sysno::getsid, [word; 6]),
            6 => (Sysno::ptrace, [word; 6]),
            7 => {
                let tid = self.tasks[word % self.tasks.len()].pid as usize;
                (Sysno::tgkill, [0, tid, word % 66, 0, 0, 0])
            }
            8 => (Sysno::mmap, [FREE, 4096, 3, 0x32, usize::MAX, 0]),
            _ if word > 200 => (Sysno::exit_group, [0; 6]),
            _ => (Sysno::getppid, [0; 6]),
        };
        let mailbox = self.mailbox_of(pair);
        mailbox.len = 0;
        (mailbox.line.nr, mailbox.line.args) = (nr as u32, args);
        mailbox.line.turn = mailbox.line.turn.wrapping_add(1);
    }

    /// Somebody writes into a mailbox, its own or another's.
    fn lie(&mut self) {
        let pairs = self.policy.limits_of().threads as usize;
        let (pair, what, word) = (self.choose(pairs), self.choose(6), self.choose(256));
        let mailbox = self.mailbox_of(pair);
        match what {
            0 | 1 => mailbox.asks = word as u32,
            2 => mailbox.line.nr = [Sysno::clone, Sysno::getsid, Sysno::exit_group, Sysno::mmap][word % 4] as u32,
            3 => mailbox.line.args[word % 6] = [0, THREAD, word, usize::MAX][word % 4],
            4 => mailbox.raise = word as u32,
            _ => mailbox.len = word as u32 * 256,
        }
        for task in self.tasks.iter_mut().filter(|task| task.pair == pair && !task.reaped) {
            task.spoiled = true;
            // A clone that waits for room is decided on again.
            let again = |asked: &&mut Asked| !asked.taken || asked.nr == Sysno::clone as u32;
            if let Some(asked) = task.asked.as_mut().filter(again) {
                asked.clean = false;
            }
        }
    }

    /// Whether a guest that runs has a request under way that must be answered.
    pub(super) fn anybody_waits(&self) -> bool {
        let runs = |task: &&Task| task.runs() && !task.killed;
        let guests = self.tasks.iter().filter(|task| matches!(task.state, State::Guest)).filter(runs);
        // Whose mailbox somebody lied about, what it asks for next may look old.
        let spoiled = |pair| self.tasks.iter().any(|task| task.pair == pair && !task.reaped && task.spoiled);
        guests.into_iter().any(|u| !self.is_answered(u.pair) && !spoiled(u.pair))
    }

    /// All tasks, for a report.
    pub(crate) fn tell(&self) -> String {
        self.tasks.iter().filter(|task| !task.reaped).map(|task| format!("{task:?}\n")).collect()
    }

    /// Nobody may be left when the sandbox is gone.
    pub(crate) fn nobody_is_left(&self) {
        for task in &self.tasks {
            assert!(task.status.is_some() && task.reaped, "it is left: {task:?}");
        }
    }
}
