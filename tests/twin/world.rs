//! What T has around it: memory as in a sandbox with two pairs, and what guest, kernel and broker do there, from a seed.
//!
//! They act while T is in a call. A call is named by its number and its arguments, so that the world need not know who makes it.

use super::super::live::Random;
use super::*;
use ascetic::abi::{
    Mailbox, NR_TOKEN, PAGE, ROW_ALLOW, ROW_FDS, ROW_FUTEX, ROW_SMALL, ROW_TOKEN, STEP_AGAIN, STEP_BORE, STEP_CHECK,
    STEP_CLONE_T, STEP_CLONE_U, STEP_KEEP, STEP_MUST, STEP_REPLY, STEP_SAVE, STEP_SERVE, STEP_STOP, STEP_TELL, STRIDE,
    Step, TABLE_LEN, TOKEN_PATH, VERDICT_TO_MAILBOX, Vault, Verdict,
};
use ascetic::arch::NR_SIGRETURN;
use ascetic::sys;

const PAIRS: usize = 2;
const VAULT: usize = PAGE;
const VERDICTS: usize = VAULT + size_of::<Vault>();
const MAILBOXES: usize = VERDICTS + VERDICT_TO_MAILBOX;
const LEN: usize = MAILBOXES + PAIRS * STRIDE;

/// In a script's `clone`: that it is one.
const CLONE_MARK: usize = 0x5ca1_ab1e;

/// The memory, and what is to come.
pub struct World {
    /// T's code, the vault, two verdicts, and as far from them as in a sandbox two mailboxes.
    pub base: usize,
    random: Random,
    /// Whose T is looked at.
    pair: usize,
    /// That its T says that it sleeps was seen.
    seen: bool,
}

impl World {
    pub fn new() -> Self {
        let fd = sys::memfd(c"world", LEN, true).unwrap();
        let base = sys::map_shared(LEN, sys::PROT_READ | sys::PROT_WRITE | sys::PROT_EXEC, fd).unwrap();
        sys::close(fd);
        Self { base, random: Random::new(0), pair: 0, seen: false }
    }

    pub fn vault(&mut self) -> &mut Vault {
        // SAFETY: mapped for good, as long and as aligned; zeros are valid; while it is used T does not run.
        unsafe { &mut *((self.base + VAULT) as *mut Vault) }
    }

    pub fn verdict(&mut self, pair: usize) -> &mut Verdict {
        // SAFETY: as above.
        unsafe { &mut *((self.base + VERDICTS + pair * STRIDE) as *mut Verdict) }
    }

    pub fn mailbox(&mut self, pair: usize) -> &mut Mailbox {
        // SAFETY: as above.
        unsafe { &mut *((self.base + MAILBOXES + pair * STRIDE) as *mut Mailbox) }
    }

    /// Which pair's mailbox this is.
    pub fn pair_at(&self, mailbox: usize) -> usize {
        (mailbox - self.base - MAILBOXES) / STRIDE
    }

    /// The beginning of what this seed stands for.
    pub fn begin(&mut self, seed: u64) {
        self.random = Random::new(seed);
        (self.pair, self.seen) = (0, false);
        let base = self.base;
        // SAFETY: all from the vault to where the last mailbox ends is this world's, and may be zeros.
        unsafe {
            core::ptr::write_bytes((base + VAULT) as *mut u8, 0, size_of::<Vault>() + PAIRS * STRIDE);
            core::ptr::write_bytes((base + MAILBOXES) as *mut u8, 0, PAIRS * STRIDE);
        }
        let mut random = Random::new(seed ^ 0x77);
        let odd = random.one_in(8);
        let page = &mut self.vault().page;
        (page.vault_lo, page.vault_len) = match odd {
            false => (base, MAILBOXES),
            true => (random.of(&[0, 1, base, usize::MAX - 4095]), random.of(&[0, 1, 4096, 8192, usize::MAX])),
        };
        (page.fd_lo, page.fd_len) = (random.of(&[0, 3, 100, u32::MAX - 1]), random.of(&[0, 1, 3, 20]));
        page.spin = random.below(4) as u32;
        (page.alarm, page.mxcsr, page.one) = (77, 0x1f80, 1);
        page.futex_ops = random.next() as u32;
        page.second.0[1] = 1;
        for row in &mut page.table {
            *row = match random.below(8) {
                0 => random.next() as u32 & !(ROW_ALLOW | ROW_TOKEN),
                1 => ROW_TOKEN,
                2 => ROW_ALLOW | ROW_SMALL,
                3 => ROW_ALLOW | ROW_FUTEX,
                4 => ROW_ALLOW | ROW_FUTEX | ROW_SMALL | random.next() as u32 & ROW_FDS,
                _ => ROW_ALLOW | random.next() as u32 & ROW_FDS,
            };
        }
        page.table[NR_TOKEN as usize] = ROW_TOKEN;
        for (i, token) in self.vault().tokens.iter_mut().enumerate() {
            token.valid = random.below(3) as u32;
            (token.root, token.rest) = (1000 + i as u32, random.below(TOKEN_PATH) as u32);
        }
        for pair in 0..PAIRS {
            (self.verdict(pair).doorbell_t, self.verdict(pair).doorbell_u) = (200 + pair as u32, 300 + pair as u32);
            self.birth(pair);
            self.request(pair);
        }
    }

    /// What a new pair's tasks are to run.
    fn birth(&mut self, pair: usize) {
        let verdict = self.verdict(pair);
        (verdict.ask, verdict.seq, verdict.bore) = (0, 0, 0);
        let (t, u) = (verdict.t.as_mut_ptr(), verdict.u.as_mut_ptr());
        self.script(t, pair, Some(Step { nr: STEP_SERVE, ..Step::default() }));
        self.script(u, pair, Some(Step { nr: NR_SIGRETURN as u32, ..Step::default() }));
    }

    /// A verdict, which has the next number.
    fn next_verdict(&mut self, pair: usize) {
        let verdict = self.verdict(pair);
        let seq = verdict.seq.wrapping_add(1);
        (verdict.ask, verdict.seq, verdict.bore) = (seq, seq, seq);
        let script = verdict.script.as_mut_ptr();
        self.script(script, pair, None);
    }

    /// Writes steps, the last of them `end`, or one that ends a verdict. A birth has no steps that go on with a request.
    fn script(&mut self, mut at: *mut Step, pair: usize, end: Option<Step>) {
        let other = &raw mut *self.mailbox(1 - pair) as usize;
        let random = &mut self.random;
        let (steps, mut saved) = (random.below(6), false);
        let firsts = |random: &mut Random, saved: bool| if saved { random.next() as u32 & 0x3f } else { 0 };
        for i in 0..=steps {
            let id = i as u32 + 1;
            let args: [usize; 6] = core::array::from_fn(|_| random.next() as usize);
            let step = if i < steps {
                let mut step = Step { nr: random.below(TABLE_LEN) as u32, id, args, ..Step::default() };
                step.flags = firsts(random, saved);
                if random.one_in(8) {
                    step.flags = STEP_CLONE_U | if random.one_in(2) { STEP_MUST } else { 0 };
                    if end.is_none() {
                        step.flags |= random.of(&[0, STEP_TELL, STEP_STOP]);
                        step.flags ^= random.of(&[0, STEP_CLONE_T | STEP_CLONE_U]);
                    }
                    (step.nr, step.expect) = (Sysno::clone as u32, other);
                    step.args[5] = CLONE_MARK;
                } else {
                    step.flags |= random.of(&[0, STEP_CHECK, STEP_MUST, STEP_MUST | STEP_CHECK]);
                    step.flags |= random.of(&[0, STEP_SAVE, STEP_KEEP, STEP_SAVE | STEP_KEEP]);
                    if end.is_none() {
                        step.flags |= random.of(&[0, 0, STEP_STOP, STEP_TELL, STEP_STOP | STEP_TELL]);
                    }
                    if i > 0 && random.one_in(4) {
                        step.flags |= STEP_AGAIN;
                    }
                    step.expect = result(random);
                }
                saved |= step.flags & STEP_SAVE != 0;
                step
            } else if let Some(end) = end {
                end
            } else {
                let nr = if random.one_in(4) { STEP_BORE } else { STEP_REPLY };
                Step { nr, id, args, flags: firsts(random, saved) | random.of(&[0, STEP_KEEP]), ..Step::default() }
            };
            // SAFETY: a verdict has room for six steps, and a birth for more.
            unsafe { at.write(step) };
            at = at.wrapping_add(1);
        }
    }

    /// A request, complete, whose turn is any but T's.
    fn request(&mut self, pair: usize) {
        let page = &self.vault().page;
        let (lo, len, fd_lo, fd_len) = (page.vault_lo, page.vault_len, page.fd_lo, page.fd_len);
        let end = lo.wrapping_add(len);
        let random = &mut self.random;
        // One argument, at times each, is one that T has to look at twice.
        let special = random.below(7);
        let args: [usize; 6] = core::array::from_fn(|i| {
            let descriptor = fd_lo.wrapping_add(random.below(fd_len as usize + 3) as u32).wrapping_sub(1) as usize;
            match random.below(8) {
                _ if special != i && special != 6 => 30 + random.below(if i == 1 { 200 } else { 40 }),
                0 => lo.wrapping_add(random.of(&[0, 1, len / 2])),
                1 => lo.wrapping_sub(random.of(&[1, 2, 4096])),
                2 => end.wrapping_sub(random.of(&[0, 1, 2])),
                3 => descriptor,
                // Above the low half, which is all that the kernel looks at in a descriptor.
                4 => descriptor | random.next() as usize & !(u32::MAX as usize),
                5 => random.next() as usize,
                6 => random.below(1 << 9),
                _ => random.below(20),
            }
        });
        let nr = match random.below(12) {
            0 => NR_TOKEN,
            1 => random.of(&[TABLE_LEN as u32, u32::MAX, 0x8000_0000, 0x4000_0000]),
            2 => random.next() as u32,
            _ => random.below(TABLE_LEN) as u32,
        };
        let by = 1 + random.next() as u32 % 5;
        let line = &mut self.mailbox(pair).line;
        (line.args, line.nr) = (args, nr);
        line.turn = line.turn.wrapping_add(by);
    }

    /// T may have stored whether it sleeps: a guest that sees it begin to may ask at that moment, when T has not called yet.
    pub fn look(&mut self) {
        let sleeps = self.mailbox(self.pair).line.t_asleep != 0;
        if sleeps && !self.seen && self.random.one_in(2) {
            self.request(self.pair);
        }
        self.seen = sleeps;
    }

    /// T makes this call: what others do meanwhile, and its result; `None` if it does not come back.
    pub fn answer(&mut self, nr: u32, args: &[usize; 6]) -> Option<usize> {
        if nr == Sysno::exit as u32 || nr == NR_SIGRETURN as u32 {
            return None;
        }
        let pair = self.pair;
        if self.random.one_in(2) {
            self.request(pair);
        } else if self.random.one_in(3) {
            // Over a request that is under way.
            let (word, value) = (self.random.below(6), self.random.next());
            let mailbox = self.mailbox(pair);
            mailbox.line.args[word] = value as usize;
            (mailbox.line.nr, mailbox.asks, mailbox.scratch) = (value as u32, value as u32, value);
        }
        if self.random.one_in(4) {
            self.mailbox(pair).line.u_asleep = self.random.next() as u32;
        }
        let verdict = self.verdict(pair);
        let waits = [&raw const verdict.ask, &raw const verdict.bore].map(|word| word as usize);
        let seq = verdict.seq as usize;
        let patience = &raw const self.vault().page.patience as usize;
        if nr == Sysno::futex as u32 && waits.contains(&args[0]) && args[1..4] == [0, seq, patience] {
            if !self.random.one_in(4) {
                self.next_verdict(pair);
            }
            return Some(self.random.of(&[0, -sys::EAGAIN as usize, -sys::EINTR as usize]));
        }
        let bell = self.verdict(pair).doorbell_t as usize;
        if nr == Sysno::read as u32 && args[0] == bell {
            return Some(if self.random.one_in(30) { result(&mut self.random) } else { 8 });
        }
        let result = result(&mut self.random);
        if nr == Sysno::clone as u32 && args[5] == CLONE_MARK && result == 0 {
            // From here on the new task is looked at.
            (self.pair, self.seen) = (1 - pair, false);
            self.mailbox(1 - pair).line.t_asleep = 0;
            self.birth(1 - pair);
        }
        Some(result)
    }

    /// What the mailboxes say to others.
    pub fn digest(&mut self) -> u64 {
        let mut sum = 0xcbf2_9ce4_8422_2325u64;
        let mut add = |word: u64| sum = (sum ^ word).wrapping_mul(0x100_0000_01b3).rotate_left(23);
        for pair in 0..PAIRS {
            let mailbox = self.mailbox(pair);
            let line = &mailbox.line;
            line.args.iter().for_each(|arg| add(*arg as u64));
            [line.nr, line.turn, line.u_asleep, line.t_asleep, mailbox.asks]
                .iter()
                .for_each(|word| add((*word).into()));
            add(mailbox.scratch);
            add(mailbox.birth_result as u64);
        }
        sum
    }
}

/// A result of a call: at the edges of what is an error.
fn result(random: &mut Random) -> usize {
    random.of(&[0, 0, 0, 1, 8, 8, 42, -1isize as usize, -11isize as usize, -4095isize as usize, -4096isize as usize])
}
