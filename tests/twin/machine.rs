//! The assembly, an instruction at a time: T's code in a process that is traced.

use super::super::debug::{self, ptrace};
use super::twin::{Call, Log};
use super::world::World;
use super::*;
use ascetic::abi::PAGE;
use ascetic::{sys, trusted};
use core::fmt;

const TRACEME: usize = 0;
const SINGLESTEP: usize = 9;
const GETREGS: usize = 12;
const SETREGS: usize = 13;
const SIGTRAP: i32 = 5;
const SIGSTOP: i32 = 19;

/// `struct user_regs_struct` (`arch/x86/include/asm/user_64.h`, `user_32.h`): where in it these are.
#[cfg(target_arch = "x86_64")]
mod at {
    pub const COUNT: usize = 27;
    pub const ARGS: [usize; 6] = [14, 13, 12, 7, 9, 8];
    pub const RESULT: usize = 10;
    pub const NONE: usize = 15;
    pub const PC: usize = 16;
    pub const SP: usize = 19;
    pub const VAULT: usize = 5;
    pub const MAILBOX: usize = 4;
    pub const SCRIPT: usize = 0;
    /// The call instruction, and the registers that it overwrites.
    pub const CALL: [u8; 2] = [0x0f, 0x05];
    pub const CLOBBERED: [usize; 2] = [6, 11];
}
#[cfg(target_arch = "x86")]
mod at {
    pub const COUNT: usize = 17;
    pub const ARGS: [usize; 6] = [0, 1, 2, 3, 4, 5];
    pub const RESULT: usize = 6;
    pub const NONE: usize = 11;
    pub const PC: usize = 12;
    pub const SP: usize = 15;
    pub const VAULT: usize = 0;
    pub const MAILBOX: usize = 5;
    pub const SCRIPT: usize = 3;
    pub const CALL: [u8; 2] = [0xcd, 0x80];
    pub const CLOBBERED: [usize; 0] = [];
}

/// How the assembly's doing is not its twin's.
#[derive(Debug)]
pub enum Difference {
    /// Call of this place, as the assembly makes it, and as its twin did.
    Call(usize, Call, Option<Call>),
    /// It makes no call any more.
    Stuck(usize),
    /// A signal, at this place in the code.
    Signal(i32, usize),
    /// The stack pointer is not 0 in a call.
    Stack(usize),
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Call(i, is, was) => write!(f, "call {i} is {is:x?}, and its twin's {was:x?}"),
            Self::Stuck(pc) => write!(f, "it makes no call any more, at {pc:#x}"),
            Self::Signal(signal, pc) => write!(f, "signal {signal} at {pc:#x}"),
            Self::Stack(sp) => write!(f, "it makes a call with the stack pointer {sp:#x}"),
        }
    }
}

/// A conditional branch or move.
fn condition(code: &[u8]) -> Option<(usize, usize)> {
    match code {
        [0x70..=0x7f, ..] => Some((0, 2)),
        [0x0f, 0x80..=0x8f, ..] => Some((1, 6)),
        _ => None,
    }
}

/// A conditional move's byte that has the condition.
fn conditional_move(code: &[u8]) -> Option<usize> {
    match code {
        [0x0f, 0x40..=0x4f, ..] => Some(1),
        [0x40..=0x4f, 0x0f, 0x40..=0x4f, ..] if cfg!(target_arch = "x86_64") => Some(2),
        _ => None,
    }
}

/// What of the code was executed.
pub struct Reached {
    /// How many instructions.
    pub steps: u64,
    /// Bytes of instructions that were.
    bytes: [bool; PAGE],
    /// Branches that were not taken, and that were; where the instruction begins.
    ways: [[bool; PAGE]; 2],
    /// Where conditions are.
    conditions: [bool; PAGE],
}

impl Reached {
    pub fn new() -> Self {
        Self { steps: 0, bytes: [false; PAGE], ways: [[false; PAGE]; 2], conditions: [false; PAGE] }
    }

    /// The instruction here was followed by the one there.
    fn note(&mut self, code: &[u8], here: usize, there: usize) {
        self.steps += 1;
        let len = match &code[here..] {
            rest if condition(rest).is_some() => {
                let (byte, len) = condition(rest).unwrap_or_default();
                self.ways[usize::from(there != here + len)][here] = true;
                self.conditions[here + byte] = true;
                len
            }
            [0xeb, ..] => 2,
            [0xe9, ..] => 5,
            rest => {
                if let Some(byte) = conditional_move(rest) {
                    self.conditions[here + byte] = true;
                }
                there.wrapping_sub(here)
            }
        };
        self.bytes[here..].iter_mut().take(len.min(15)).for_each(|byte| *byte = true);
    }

    /// The bytes that hold a condition.
    pub fn conditions(&self) -> impl Iterator<Item = usize> + '_ {
        (0..PAGE).filter(|at| self.conditions[*at])
    }

    /// Where the code was not executed in full, and how: all must be but what is behind a call that does not come back (`ud2`), and every branch must go both ways.
    pub fn missing(&self, code: &[u8]) -> Option<(usize, &'static str)> {
        let mut at = 0;
        while at < code.len() {
            at += match code[at..] {
                _ if self.bytes[at] => 1,
                [0x0f, 0x0b, ..] => 2,
                _ => return Some((at, "was not reached")),
            };
        }
        (0..code.len()).find_map(|at| match [self.ways[0][at], self.ways[1][at]] {
            [true, false] => Some((at, "never branches")),
            [false, true] => Some((at, "always branches")),
            _ => None,
        })
    }
}

/// A process that executes T's code where the world has it, and nothing else.
pub struct Machine(u32);

type Registers = [usize; at::COUNT];

impl Machine {
    pub fn new(world: &mut World) -> Self {
        let code = trusted::code();
        // SAFETY: the world's first page, which is for it.
        unsafe { core::ptr::copy_nonoverlapping(code.as_ptr(), world.base as *mut u8, code.len()) };
        // SAFETY: the child makes two calls, and is the tracer's from then on.
        let pid = match unsafe { sys::fork() }.unwrap() {
            0 => {
                check!(ptrace(TRACEME, 0, 0).is_ok());
                let _ = sys::kill(sys::pids().0, SIGSTOP);
                sys::exit(1)
            }
            pid => pid,
        };
        check!(debug::stopped_by(pid) == Some(SIGSTOP));
        Self(pid)
    }

    /// T's code, as it is there.
    pub fn code<'a>(&self, world: &'a World) -> &'a [u8] {
        // SAFETY: the world's first page; it is changed by `turn_round` only, which needs all of the world.
        unsafe { core::slice::from_raw_parts(world.base as *const u8, trusted::code().len()) }
    }

    /// Makes of a condition its contrary, or itself again.
    pub fn turn_round(&mut self, world: &mut World, at: usize) {
        // SAFETY: in the world's first page.
        unsafe { *((world.base + at) as *mut u8) ^= 1 };
    }

    fn registers(&self) -> Registers {
        let mut registers = [0; at::COUNT];
        check!(ptrace(GETREGS, self.0, registers.as_mut_ptr().addr()).is_ok());
        registers
    }

    fn set(&mut self, registers: &Registers) {
        check!(ptrace(SETREGS, self.0, registers.as_ptr().addr()).is_ok());
    }

    /// From birth on, call by call as its twin before.
    pub fn live(&mut self, world: &mut World, log: &Log, reached: &mut Reached) -> Result<(), Difference> {
        /// More instructions than there are from one call to the next.
        const MANY: u32 = 1000;
        let mut registers = self.registers();
        registers[at::PC] = world.base + trusted::Entry::Trusted.offset();
        registers[at::VAULT] = &raw mut *world.vault() as usize;
        registers[at::MAILBOX] = &raw mut *world.mailbox(0) as usize;
        registers[at::SCRIPT] = world.verdict(0).t.as_ptr() as usize;
        registers[at::NONE] = usize::MAX;
        self.set(&registers);
        let (mut made, mut since) = (0, 0);
        loop {
            let pc = registers[at::PC].wrapping_sub(world.base);
            let code = self.code(world);
            if code.get(pc..).is_some_and(|code| code.starts_with(&at::CALL)) {
                reached.note(code, pc, pc + at::CALL.len());
                if registers[at::SP] != 0 {
                    return Err(Difference::Stack(registers[at::SP]));
                }
                let args = at::ARGS.map(|i| registers[i]);
                let (nr, digest) = (registers[at::RESULT] as u32, world.digest());
                let was = log.calls().get(made).copied();
                let count = was.map_or(6, |was| was.count);
                let is = Call { nr, args, count, digest };
                if was.is_none_or(|was| was.nr != nr || was.digest != digest || was.args[..count] != args[..count]) {
                    return Err(Difference::Call(made, is, was));
                }
                // What the world answers depends on what means something.
                let mut known = [0; 6];
                known[..count].copy_from_slice(&args[..count]);
                let answer = world.answer(nr, &known);
                made += 1;
                let (Some(result), true) = (answer, made < Log::MAX) else { return Ok(()) };
                registers[at::RESULT] = result;
                registers[at::PC] += at::CALL.len();
                at::CLOBBERED.iter().for_each(|i| registers[*i] = 0x6060_6060);
                self.set(&registers);
                since = 0;
                continue;
            }
            check!(ptrace(SINGLESTEP, self.0, 0).is_ok());
            let signal = debug::stopped_by(self.0);
            if signal != Some(SIGTRAP) {
                return Err(Difference::Signal(signal.unwrap_or(0), pc));
            }
            registers = self.registers();
            world.look();
            since += 1;
            if since == MANY {
                return Err(Difference::Stuck(pc));
            }
            if pc < self.code(world).len() {
                reached.note(self.code(world), pc, registers[at::PC].wrapping_sub(world.base));
            }
        }
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        let _ = sys::kill(self.0, 9);
        let _ = sys::wait(self.0, true);
    }
}
