//! T in plain Rust: what `arch/*/direct.S`, `deep.S` and `birth.S` are to do, for reading.

use super::world::World;
use super::*;
use ascetic::abi::{
    ROW_ALLOW, ROW_FUTEX, ROW_SMALL, ROW_TOKEN, SMALL, STEP_AGAIN, STEP_BORE, STEP_CHECK, STEP_CLONE_T, STEP_CLONE_U,
    STEP_KEEP, STEP_MUST, STEP_REPLY, STEP_SAVE, STEP_SERVE, STEP_STOP, STEP_TELL, Step, TABLE_LEN,
};
use ascetic::trusted;

/// A call that T makes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Call {
    pub nr: u32,
    pub args: [usize; 6],
    /// How many of the arguments mean something.
    pub count: usize,
    /// What the mailboxes say before it.
    pub digest: u64,
}

/// What T did, call by call.
pub struct Log {
    calls: [Call; Log::MAX],
    len: usize,
}

impl Log {
    /// After so many calls it is enough.
    pub const MAX: usize = 48;

    pub fn calls(&self) -> &[Call] {
        &self.calls[..self.len]
    }
}

/// Where T goes on.
enum Next {
    /// With this step.
    Step(*const Step),
    /// It waits for requests.
    Idle,
    /// The request is complete.
    Take,
    /// It asks the broker.
    Deep,
    /// It asks the broker again.
    Ask,
    /// It waits where only a T waits that has made another.
    Bore,
    /// It answers.
    Reply(usize),
    /// It has answered: the result is there.
    Replied,
}

/// That there is no more to come.
struct Ended;

pub struct Twin<'a> {
    world: &'a mut World,
    log: Log,
    pair: usize,
    /// The turn word as last taken or written.
    turn: u32,
    /// The number of the last verdict.
    last: u32,
    /// The result that stands in for arguments.
    saved: usize,
}

impl<'a> Twin<'a> {
    pub fn new(world: &'a mut World) -> Self {
        let log = Log { calls: [Call::default(); Log::MAX], len: 0 };
        Self { world, log, pair: 0, turn: 0, last: 0, saved: 0 }
    }

    /// From birth to its end, or as far as it is looked at.
    pub fn live(mut self) -> Log {
        let mut next = Next::Step(self.world.verdict(0).t.as_ptr());
        while let Ok(then) = self.go(next) {
            next = then;
        }
        self.log
    }

    fn go(&mut self, next: Next) -> Result<Next, Ended> {
        match next {
            Next::Step(step) => self.step(step),
            Next::Idle => self.idle(),
            Next::Take => self.take(),
            Next::Deep => {
                self.world.mailbox(self.pair).asks = self.turn;
                Ok(Next::Ask)
            }
            Next::Ask => {
                let word = &raw const self.world.verdict(self.pair).ask as usize;
                self.ring()?;
                self.wait(word)
            }
            Next::Bore => {
                let word = &raw const self.world.verdict(self.pair).bore as usize;
                self.wait(word)
            }
            Next::Reply(result) => {
                self.world.mailbox(self.pair).line.args[0] = result;
                Ok(Next::Replied)
            }
            Next::Replied => {
                self.turn = self.turn.wrapping_add(1);
                self.world.mailbox(self.pair).line.turn = self.turn;
                Ok(Next::Idle)
            }
        }
    }

    /// Looks for a request, sleeps when there was none for long, and wakes U if it sleeps.
    fn idle(&mut self) -> Result<Next, Ended> {
        let spin = self.world.vault().page.spin as i32;
        let one = &raw const self.world.vault().page.one as usize;
        let (bell_t, bell_u) = {
            let verdict = self.world.verdict(self.pair);
            (verdict.doorbell_t as usize, verdict.doorbell_u as usize)
        };
        let mut looks = spin;
        loop {
            let mailbox = self.world.mailbox(self.pair);
            if mailbox.line.turn != self.turn {
                self.turn = mailbox.line.turn;
                if looks < 0 {
                    mailbox.line.t_asleep = 0;
                    self.world.look();
                }
                return Ok(Next::Take);
            }
            if mailbox.line.u_asleep != 0 {
                mailbox.line.u_asleep = 0;
                self.call(Sysno::write, &[bell_u, one, 8])?;
                continue;
            }
            looks -= 1;
            if looks == -1 {
                mailbox.line.t_asleep = 1;
                self.world.look();
            } else if looks < -1 {
                let scratch = &raw const mailbox.scratch as usize;
                if self.call(Sysno::read, &[bell_t, scratch, 8])? != 8 {
                    self.call(Sysno::exit, &[trusted::EXIT_DOORBELL.into()])?;
                }
                self.world.mailbox(self.pair).line.t_asleep = 0;
                self.world.look();
                looks = spin;
            }
        }
    }

    /// Decides on a request, by its registers alone.
    fn take(&mut self) -> Result<Next, Ended> {
        let line = &self.world.mailbox(self.pair).line;
        let (nr, args) = (line.nr, line.args);
        let page = &self.world.vault().page;
        if nr as usize >= TABLE_LEN {
            return Ok(Next::Deep);
        }
        let row = page.table[nr as usize];
        if row & ROW_ALLOW == 0 {
            return if row & ROW_TOKEN != 0 { self.token(args[0] as u32) } else { Ok(Next::Deep) };
        }
        let in_vault = |arg: usize| arg.wrapping_sub(page.vault_lo) < page.vault_len;
        let is_protected = |arg: usize| (arg as u32).wrapping_sub(page.fd_lo) < page.fd_len;
        let is_operation = |arg: usize| {
            let operation = arg as u32 & !(128 | 256); // FUTEX_PRIVATE_FLAG, FUTEX_CLOCK_REALTIME
            operation < 32 && page.futex_ops >> operation & 1 != 0
        };
        let refused = args.iter().any(|arg| in_vault(*arg))
            || args.iter().enumerate().any(|(i, arg)| row >> i & 1 != 0 && is_protected(*arg))
            || row & ROW_SMALL != 0 && args[0] as u32 >= SMALL
            || row & ROW_FUTEX != 0 && !is_operation(args[1]);
        if refused {
            return Ok(Next::Deep);
        }
        self.raw_call(nr, args, 6).map(Next::Reply)
    }

    /// Opens a file in a way that was approved.
    fn token(&mut self, number: u32) -> Result<Next, Ended> {
        let Some(token) = self.world.vault().tokens.get(number as usize) else {
            return Ok(Next::Deep);
        };
        if token.valid == 0 {
            return Ok(Next::Deep);
        }
        let (path, how) = (&raw const token.path as usize + token.rest as usize, &raw const token.how as usize);
        let args = [token.root as usize, path, how, size_of_val(&token.how)];
        self.call(Sysno::openat2, &args).map(Next::Reply)
    }

    fn ring(&mut self) -> Result<(), Ended> {
        let page = &self.world.vault().page;
        let (alarm, one) = (page.alarm as usize, &raw const page.one as usize);
        self.call(Sysno::write, &[alarm, one, 8]).map(drop)
    }

    /// Waits at this word until there is a verdict, and executes it.
    fn wait(&mut self, word: usize) -> Result<Next, Ended> {
        let patience = &raw const self.world.vault().page.patience as usize;
        loop {
            self.call(Sysno::futex, &[word, 0, self.last as usize, patience, 0])?;
            let verdict = self.world.verdict(self.pair);
            if verdict.seq != self.last {
                self.last = verdict.seq;
                return Ok(Next::Step(verdict.script.as_ptr()));
            }
            self.ring()?;
        }
    }

    /// One step of a script.
    fn step(&mut self, at: *const Step) -> Result<Next, Ended> {
        // SAFETY: a step of the world's, which is read before anybody changes it.
        let step = unsafe { at.read() };
        let flag = |flag: u32| step.flags & flag != 0;
        match step.nr {
            STEP_BORE => return Ok(Next::Bore),
            STEP_SERVE => {
                (self.turn, self.last) = (0, 0);
                return Ok(Next::Idle);
            }
            STEP_REPLY if flag(STEP_KEEP) => return Ok(Next::Replied),
            STEP_REPLY => return Ok(Next::Reply(if flag(1) { self.saved } else { step.args[0] })),
            _ => {}
        }
        let args = core::array::from_fn(|i| if flag(1 << i) { self.saved } else { step.args[i] });
        let result = self.raw_call(step.nr, args, 6)?;
        if flag(STEP_CLONE_T | STEP_CLONE_U) && result == 0 {
            self.pair = self.world.pair_at(step.expect);
            let verdict = self.world.verdict(self.pair);
            return Ok(Next::Step(if flag(STEP_CLONE_T) { verdict.t.as_ptr() } else { verdict.u.as_ptr() }));
        }
        if flag(STEP_SAVE) {
            self.saved = result;
        }
        if flag(STEP_KEEP) {
            self.world.mailbox(self.pair).line.args[0] = result;
        }
        let is_error = result >= -4095isize as usize;
        if is_error && flag(STEP_STOP) {
            return Ok(Next::Reply(result));
        }
        if is_error && flag(STEP_TELL) {
            return Ok(Next::Ask);
        }
        if is_error && flag(STEP_MUST) || flag(STEP_CHECK) && result != step.expect {
            if flag(STEP_AGAIN) {
                return Ok(Next::Step(at.wrapping_sub(1)));
            }
            self.world.mailbox(self.pair).birth_result = result;
            self.call(Sysno::exit, &[step.id as usize])?;
        }
        Ok(Next::Step(at.wrapping_add(1)))
    }

    fn call(&mut self, nr: Sysno, args: &[usize]) -> Result<usize, Ended> {
        let mut all = [0; 6];
        all[..args.len()].copy_from_slice(args);
        self.raw_call(nr as u32, all, args.len())
    }

    fn raw_call(&mut self, nr: u32, args: [usize; 6], count: usize) -> Result<usize, Ended> {
        let digest = self.world.digest();
        self.log.calls[self.log.len] = Call { nr, args, count, digest };
        self.log.len += 1;
        let result = self.world.answer(nr, &args).ok_or(Ended)?;
        if self.log.len == Log::MAX { Err(Ended) } else { Ok(result) }
    }
}
