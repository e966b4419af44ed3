//! `cargo xtask audit`: what T's code may not contain, looked for in the final bytes.
//!
//! The bytes are read from the linked program, disassembled, and followed along every path with what each register is
//! known to hold: the vault page, the mailbox, the script, or anything. Nothing is taken from the source but the names of
//! offsets, which are in the symbol table.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use anyhow::{Result, bail, ensure};
use ascetic_tools::dump::symbols::demangle;
use iced_x86::{
    Code, Decoder, DecoderOptions, FlowControl, Formatter, GasFormatter, Instruction, InstructionInfoFactory, Mnemonic,
    OpAccess, OpKind, Register,
};

use crate::guests::{self, Programs};
use crate::host::Arch;
use crate::symbols::Program;

const PAGE: u64 = 4096;
const SECTION: &str = "ascetic_trusted";

/// What a register is known to hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Holds {
    Vault,
    Mailbox,
    Script,
}

/// What is known where the program counter is: registers, and the mailbox words that were loaded since the last look at
/// the turn word, each with its size.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Known {
    registers: BTreeMap<u32, Holds>,
    loaded: BTreeSet<(u64, u64)>,
    /// Said "T sleeps", and no fence since.
    unfenced: bool,
}

impl Known {
    fn get(&self, register: Register) -> Option<Holds> {
        self.registers.get(&(register.full_register() as u32)).copied()
    }

    fn set(&mut self, register: Register, holds: Option<Holds>) {
        match holds {
            Some(holds) => self.registers.insert(register.full_register() as u32, holds),
            None => self.registers.remove(&(register.full_register() as u32)),
        };
    }

    /// Keeps what both know; both may have loaded. Returns whether that is news.
    fn join(&mut self, other: &Self) -> bool {
        let before = self.clone();
        self.registers.retain(|register, holds| other.registers.get(register) == Some(holds));
        self.loaded.extend(&other.loaded);
        self.unfenced |= other.unfenced;
        *self != before
    }
}

/// T's code and the names that it needs.
#[derive(Clone, Debug)]
struct Trusted {
    arch: Arch,
    base: u64,
    code: Vec<u8>,
    /// Offset of the entry whose first instruction poisons the stack pointer.
    birth: u64,
    /// Offset of the script interpreter, the other entry.
    script: u64,
    /// Offset of the turn word in the mailbox.
    turn: u64,
    /// Offset of the word that says whether T sleeps.
    asleep: u64,
    /// Offset of MXCSR's clean value in the vault page.
    mxcsr: u64,
    /// Distance of the verdict from the mailbox, below it.
    verdict: i64,
    /// Bytes of the verdict that T looks at.
    stride: i64,
    /// Offset in a step of a new task's mailbox.
    child: u64,
    /// Offset in the vault of what is added to the number of the last verdict, beside the vault's address.
    second: u64,
}

impl Trusted {
    fn read(programs: &Programs) -> Result<Self> {
        let program = Program::read(&programs.guests)?;
        let (base, code) = program.section(SECTION)?;
        let symbols = program.symbols()?;
        let value = |name: &str| -> Result<u64> {
            symbols.get(name).map(|(value, _)| *value).ok_or_else(|| anyhow::anyhow!("no symbol {name}"))
        };
        Ok(Self {
            arch: programs.arch,
            birth: value("asc_trusted_birth")? - base,
            script: value("asc_script")? - base,
            turn: value("MAILBOX_TURN")?,
            asleep: value("MAILBOX_T_ASLEEP")?,
            mxcsr: value("VAULT_MXCSR")?,
            verdict: signed(if programs.arch == Arch::X86_64 { 64 } else { 32 }, value("VERDICT")?),
            stride: 16 * 1024,
            child: value("STEP_EXPECT")?,
            second: value("VAULT_SECOND")?,
            base,
            code,
        })
    }

    fn bits(&self) -> u32 {
        match self.arch {
            Arch::X86_64 => 64,
            Arch::I686 => 32,
        }
    }

    /// What births are started with (`arch/*/clone.S`).
    fn entry(&self) -> Known {
        let [vault, mailbox, script] = match self.arch {
            Arch::X86_64 => [Register::RBX, Register::RBP, Register::R15],
            Arch::I686 => [Register::EBX, Register::EBP, Register::ESI],
        };
        let mut known = Known::default();
        known.set(vault, Some(Holds::Vault));
        known.set(mailbox, Some(Holds::Mailbox));
        known.set(script, Some(Holds::Script));
        known
    }

    fn at(&self, address: u64) -> Option<Instruction> {
        let offset = address.checked_sub(self.base)? as usize;
        let mut decoder = Decoder::with_ip(self.bits(), self.code.get(offset..)?, address, DecoderOptions::NONE);
        let instruction = decoder.decode();
        (instruction.code() != Code::INVALID).then_some(instruction)
    }

    /// Follows every path; returns everything that is not allowed, and the number of instructions seen.
    fn violations(&self) -> (Vec<String>, usize) {
        let mut found = BTreeSet::new();
        if self.code.len() as u64 > PAGE {
            found.insert(format!("the code has {} bytes, more than a page", self.code.len()));
        }
        found.extend(self.birth_violations());
        let mut known: BTreeMap<u64, Known> = BTreeMap::new();
        let mut work: VecDeque<(u64, Known)> =
            [self.birth, self.script].into_iter().map(|offset| (self.base + offset, self.entry())).collect();
        let mut factory = InstructionInfoFactory::new();
        let mut turn_loads = BTreeSet::new();
        while let Some((address, state)) = work.pop_front() {
            let news = match known.get_mut(&address) {
                Some(before) => before.join(&state),
                None => known.insert(address, state).is_none(),
            };
            if !news {
                continue;
            }
            let Some(instruction) = self.at(address) else {
                found.insert(format!("+{:#x}: no instruction, or outside the code", address - self.base));
                continue;
            };
            let mut state = known[&address].clone();
            let mut say = |what: &str| {
                let mut text = String::new();
                GasFormatter::new().format(&instruction, &mut text);
                found.insert(format!("+{:#x}: {text}: {what}", address.wrapping_sub(self.base)));
            };
            self.step(&instruction, &mut state, &mut factory, &mut turn_loads, &mut say);
            for next in successors(&instruction, &mut say) {
                work.push_back((next, state.clone()));
            }
        }
        if turn_loads.len() > 1 {
            found.insert(format!("the turn word is loaded at {} places", turn_loads.len()));
        }
        (found.into_iter().collect(), known.len())
    }

    /// T's first instructions: it loses its stack pointer, then cleans what `clone` copied.
    fn birth_violations(&self) -> Option<String> {
        let mut decoder = Decoder::with_ip(self.bits(), &self.code, self.base, DecoderOptions::NONE);
        decoder.set_position(self.birth as usize).ok()?;
        decoder.set_ip(self.base + self.birth);
        let first: Vec<Instruction> = decoder.iter().take(4).collect();
        let poison = |i: &Instruction| {
            i.mnemonic() == Mnemonic::Xor && i.op0_register() == Register::ESP && i.op1_register() == Register::ESP
        };
        let clean = |i: &Instruction| i.mnemonic() == Mnemonic::Ldmxcsr && i.memory_displacement64() == self.mxcsr;
        let good = matches!(&first[..], [a, b, c, d] if poison(a) && b.mnemonic() == Mnemonic::Cld
            && c.mnemonic() == Mnemonic::Fninit && clean(d));
        (!good).then(|| "birth does not begin with: poison, cld, fninit, ldmxcsr".to_owned())
    }

    /// Judges an instruction and applies it to what is known.
    fn step(
        &self,
        instruction: &Instruction,
        state: &mut Known,
        factory: &mut InstructionInfoFactory,
        turn_loads: &mut BTreeSet<u64>,
        say: &mut impl FnMut(&str),
    ) {
        let info = factory.info(instruction);
        let poison = instruction.ip() == self.base + self.birth
            && instruction.mnemonic() == Mnemonic::Xor
            && instruction.op0_register() == Register::ESP
            && instruction.op1_register() == Register::ESP;
        let stack = |r: Register| r.full_register() == Register::RSP;
        if instruction.is_stack_instruction() {
            say("uses the stack");
        } else if info.used_registers().iter().any(|used| stack(used.register())) && !poison {
            say("uses the stack pointer");
        }
        for memory in info.used_memory() {
            let holds = state.get(memory.base());
            let writes = matches!(
                memory.access(),
                OpAccess::Write | OpAccess::CondWrite | OpAccess::ReadWrite | OpAccess::ReadCondWrite
            );
            let reads = !matches!(memory.access(), OpAccess::Write | OpAccess::CondWrite | OpAccess::NoMemAccess);
            let size = memory.memory_size().size() as u64;
            let offset = memory.displacement();
            // The verdict lies at a fixed distance below the mailbox; it is the vault's.
            let below = signed(self.bits(), offset) - self.verdict;
            let holds = match holds {
                Some(Holds::Mailbox) if (0..self.stride).contains(&below) => Some(Holds::Vault),
                other => other,
            };
            let indexed = memory.index() != Register::None;
            let inside = !indexed && offset.checked_add(size).is_some_and(|end| end <= PAGE);
            if writes && !(holds == Some(Holds::Mailbox) && inside) {
                say("stores outside the mailbox");
            }
            if reads && holds.is_none() {
                say("loads through a register that is not known");
            }
            let says_sleep = writes && holds == Some(Holds::Mailbox) && offset == self.asleep;
            if says_sleep && instruction.op1_kind() == OpKind::Immediate32 && instruction.immediate32() != 0 {
                state.unfenced = true;
            }
            if reads && holds == Some(Holds::Mailbox) {
                if state.unfenced {
                    say("looks before the fence behind \"T sleeps\"");
                }
                if !inside {
                    say("loads outside the mailbox");
                }
                let turn = self.turn..self.turn + 4;
                if offset < turn.end && turn.start < offset + size && (offset, size) != (self.turn, 4) {
                    say("loads the turn word together with others");
                } else if offset == self.turn {
                    turn_loads.insert(instruction.ip());
                    state.loaded.clear(); // a new request, or none
                } else if state.loaded.iter().any(|(at, len)| *at < offset + size && offset < at + len) {
                    say("loads a word of the mailbox twice");
                } else {
                    state.loaded.insert((offset, size));
                }
            }
        }
        if instruction.mnemonic() == Mnemonic::Mfence {
            state.unfenced = false;
        }
        let moved = match instruction.mnemonic() {
            Mnemonic::Mov | Mnemonic::Movd | Mnemonic::Movq
                if instruction.op0_kind() == OpKind::Register && instruction.op1_kind() == OpKind::Register =>
            {
                state.get(instruction.op1_register())
            }
            // The address of a verdict's script, or of a token.
            Mnemonic::Lea => match state.get(instruction.memory_base()) {
                Some(Holds::Mailbox) => {
                    let below = signed(self.bits(), instruction.memory_displacement64()) - self.verdict;
                    (0..self.stride).contains(&below).then_some(Holds::Script)
                }
                Some(Holds::Vault) => Some(Holds::Vault),
                _ => None,
            },
            // A new task's mailbox is in the step that made it.
            Mnemonic::Mov
                if state.get(instruction.memory_base()) == Some(Holds::Script)
                    && instruction.op0_register().full_register() == Register::RBP
                    && instruction.memory_displacement64() == self.child =>
            {
                Some(Holds::Mailbox)
            }
            // Adds to the other places of the register.
            Mnemonic::Paddd
                if state.get(instruction.memory_base()) == Some(Holds::Vault)
                    && instruction.memory_displacement64() == self.second =>
            {
                state.get(instruction.op0_register())
            }
            // To the next step of a script, or back to the one before.
            Mnemonic::Add | Mnemonic::Sub if instruction.op0_kind() == OpKind::Register => {
                state.get(instruction.op0_register()).filter(|holds| *holds == Holds::Script)
            }
            _ => None,
        };
        let swapped = (instruction.mnemonic() == Mnemonic::Xchg).then(|| {
            let (a, b) = (instruction.op0_register(), instruction.op1_register());
            [(a, state.get(b)), (b, state.get(a))]
        });
        for used in info.used_registers() {
            if !matches!(used.access(), OpAccess::Read | OpAccess::CondRead | OpAccess::None) {
                state.set(used.register(), None);
            }
        }
        if instruction.op0_kind() == OpKind::Register && moved.is_some() {
            state.set(instruction.op0_register(), moved);
        }
        for (register, holds) in swapped.into_iter().flatten() {
            state.set(register, holds);
        }
        match instruction.mnemonic() {
            Mnemonic::Syscall if self.arch == Arch::X86_64 => {
                [Register::RAX, Register::RCX, Register::R11].into_iter().for_each(|r| state.set(r, None));
            }
            Mnemonic::Int if self.arch == Arch::I686 && instruction.immediate8() == 0x80 => {
                state.set(Register::EAX, None);
            }
            Mnemonic::Syscall | Mnemonic::Int | Mnemonic::Int1 | Mnemonic::Int3 | Mnemonic::Sysenter => {
                say("is not this architecture's system call");
            }
            _ => {}
        }
    }
}

/// An address difference of a program of so many bits.
fn signed(bits: u32, value: u64) -> i64 {
    if bits == 32 { i64::from(value as u32 as i32) } else { value as i64 }
}

/// Where the program counter can go.
fn successors(instruction: &Instruction, say: &mut impl FnMut(&str)) -> Vec<u64> {
    match instruction.flow_control() {
        FlowControl::Next | FlowControl::Interrupt => vec![instruction.next_ip()],
        FlowControl::UnconditionalBranch => vec![instruction.near_branch_target()],
        FlowControl::ConditionalBranch => vec![instruction.near_branch_target(), instruction.next_ip()],
        FlowControl::Exception => Vec::new(), // ud2
        FlowControl::Call if matches!(instruction.mnemonic(), Mnemonic::Syscall) => vec![instruction.next_ip()],
        FlowControl::Call => {
            say("is a call");
            vec![instruction.next_ip()]
        }
        FlowControl::Return => {
            say("is a return");
            Vec::new()
        }
        FlowControl::IndirectBranch | FlowControl::IndirectCall => {
            say("is an indirect branch");
            Vec::new()
        }
        FlowControl::XbeginXabortXend => {
            say("is a transaction");
            Vec::new()
        }
    }
}

/// One planted violation: a name, the bytes that replace the code from the last `ud2` on, and what must be said.
fn planted(arch: Arch) -> Vec<(&'static str, Vec<u8>, &'static str)> {
    let outside = PAGE as u8; // low byte of the displacement 4096
    let far = [outside, 0x10, 0, 0];
    let mut plants = vec![
        ("push", vec![0x50], "uses the stack"),
        ("pop", vec![0x58], "uses the stack"),
        ("call", vec![0xe8, 0, 0, 0, 0], "uses the stack"),
        ("ret", vec![0xc3], "uses the stack"),
        ("indirect branch by register", vec![0xff, 0xe0], "indirect branch"),
        ("indirect branch by memory", vec![0xff, 0x65, 0], "indirect branch"),
        ("store to the vault", vec![0x89, 0x03], "stores outside"),
        ("store behind the mailbox", [&[0x89, 0x85][..], &far].concat(), "stores outside"),
        ("store with an index", vec![0x89, 0x44, 0x05, 0], "stores outside"),
        ("a word loaded twice", vec![0x8b, 0x45, 8, 0x8b, 0x4d, 8], "twice"),
        ("half a word loaded again", vec![0x8b, 0x45, 8, 0x0f, 0xb6, 0x4d, 9], "twice"),
    ];
    plants.extend(match arch {
        Arch::X86_64 => [
            ("stack pointer read", vec![0x48, 0x89, 0xe0], "stack pointer"),
            ("stack pointer set", vec![0x48, 0x89, 0xc4], "stack pointer"),
            ("int 0x80", vec![0xcd, 0x80], "system call"),
        ],
        Arch::I686 => [
            ("stack pointer read", vec![0x89, 0xe0], "stack pointer"),
            ("stack pointer set", vec![0x89, 0xc4], "stack pointer"),
            ("sysenter", vec![0x0f, 0x34], "system call"),
        ],
    });
    plants
}

/// Instructions without which T is not what it should be: a name, where they are, and what is missing then.
fn removed(trusted: &Trusted) -> Vec<(&'static str, std::ops::Range<usize>, &'static str)> {
    let all: Vec<_> = Decoder::with_ip(trusted.bits(), &trusted.code, 0, DecoderOptions::NONE).into_iter().collect();
    let of = |mnemonic: Mnemonic| {
        all.iter().filter(move |i| i.mnemonic() == mnemonic).map(|i| i.ip() as usize..i.next_ip() as usize)
    };
    let birth = trusted.birth as usize;
    [("poison", of(Mnemonic::Xor).find(|at| at.start == birth), "the stack pointer is not 0")]
        .into_iter()
        .chain([("cld", of(Mnemonic::Cld).next(), "the direction flag is the creator's")])
        .chain([("fninit", of(Mnemonic::Fninit).next(), "the x87 state is the creator's")])
        .chain([("ldmxcsr", of(Mnemonic::Ldmxcsr).next(), "MXCSR is the creator's")])
        .chain([("mfence", of(Mnemonic::Mfence).next(), "wake-ups can be lost")])
        .map(|(name, at, what)| (name, at.unwrap_or(0..0), what))
        .collect()
}

impl Trusted {
    /// This code with other bytes where its first `ud2` is, behind the failed birth's exit; there, as at birth, the
    /// registers are known.
    fn with(&self, plant: &[u8]) -> Result<Self> {
        let Some(at) = self.code.windows(2).position(|pair| pair == [0x0f, 0x0b]) else { bail!("no ud2 in the code") };
        let mut code = self.code.clone();
        code.truncate(at);
        code.extend(plant);
        code.extend([0xeb, 0xfe]); // and stay there
        // What was behind is gone; branches to it are reported, too, but that is not what is looked for.
        Ok(Self { code, ..self.clone() })
    }
}

/// Audits the code of one architecture, and shows that each planted violation is found.
///
/// # Errors
/// Naming what is not allowed, or what was not found.
pub fn check(programs: &Programs) -> Result<()> {
    let trusted = Trusted::read(programs)?;
    let (violations, instructions) = trusted.violations();
    ensure!(violations.is_empty(), "{}", violations.join("\n"));
    ensure!(instructions > 50, "only {instructions} instructions were reached");
    for (name, bytes, word) in planted(trusted.arch) {
        let (found, _) = trusted.with(&bytes)?.violations();
        ensure!(found.iter().any(|what| what.contains(word)), "planted {name}: not found: {found:?}");
    }
    for (name, at, what) in removed(&trusted) {
        let mut without = trusted.clone();
        without.code[at].fill(0x90);
        let (found, _) = without.violations();
        ensure!(!found.is_empty(), "{name} removed: {what}: not noticed");
    }
    let mut long = trusted.clone();
    long.code.resize(PAGE as usize + 1, 0x90);
    ensure!(long.violations().0.iter().any(|what| what.contains("page")), "planted size: not found");
    Ok(())
}

/// Audits both architectures and says what was found.
///
/// # Errors
/// The programs cannot be built.
pub fn run(verbose: bool) -> Result<bool> {
    let mut good = true;
    for arch in [Arch::X86_64, Arch::I686] {
        let programs = guests::build(arch)?;
        let trusted = Trusted::read(&programs)?;
        let (violations, instructions) = trusted.violations();
        println!(
            "{arch}: {} bytes, {instructions} instructions reached, {} not allowed",
            trusted.code.len(),
            violations.len()
        );
        if verbose {
            let mut formatter = GasFormatter::new();
            for instruction in Decoder::with_ip(trusted.bits(), &trusted.code, trusted.base, DecoderOptions::NONE) {
                let mut text = String::new();
                formatter.format(&instruction, &mut text);
                println!("  +{:03x}  {text}", instruction.ip() - trusted.base);
            }
        }
        violations.iter().for_each(|what| println!("{arch}: NOT ALLOWED {what}"));
        good &= violations.is_empty();
        for (name, bytes, word) in planted(arch) {
            let found = trusted.with(&bytes)?.violations().0;
            let seen = found.iter().any(|what| what.contains(word));
            println!("{arch}: planted {name}: {}", if seen { "found" } else { "NOT FOUND" });
            good &= seen;
        }
        for (name, at, what) in removed(&trusted) {
            let mut without = trusted.clone();
            without.code[at].fill(0x90);
            let seen = !without.violations().0.is_empty();
            println!("{arch}: {name} removed ({what}): {}", if seen { "found" } else { "NOT FOUND" });
            good &= seen;
        }
        no_panic(&programs)?;
        println!("{arch}: no panic is reachable from the reporter");
    }
    Ok(good)
}

/// Whether an instruction's memory operand is at a constant address.
fn constant(instruction: &Instruction) -> bool {
    let base = instruction.memory_base();
    (base == Register::None || instruction.is_ip_rel_memory_operand()) && instruction.memory_index() == Register::None
}

/// Functions by address.
struct Functions(BTreeMap<u64, (u64, String)>);

impl Functions {
    /// The function that an address is in.
    fn of(&self, address: u64) -> Option<(u64, u64, &str)> {
        let (start, (size, name)) = self.0.range(..=address).next_back()?;
        (address < start + (*size).max(1)).then_some((*start, *size, name.as_str()))
    }
}

/// No panic is reachable from the fault reporter, in the linked program: followed along calls and jumps.
///
/// # Errors
/// Naming the way to a panic.
pub fn no_panic(programs: &Programs) -> Result<()> {
    let program = Program::read(&programs.guests)?;
    let (base, text) = program.section(".text")?;
    let symbols = program.symbols()?;
    let functions = symbols.into_iter().filter(|(_, (at, size))| *size > 0 && *at >= base);
    let functions = Functions(functions.map(|(name, (at, size))| (at, (size, demangle(&name)))).collect());
    let bits = if programs.arch == Arch::X86_64 { 64 } else { 32 };
    // What is reached from a function, and how; and who calls through pointers, behind which the search ends.
    type Ways = BTreeMap<u64, Vec<String>>;
    let reachable = |root: &str| -> Result<(Ways, Vec<String>)> {
        let start = functions.0.iter().find(|(_, (_, name))| name.ends_with(root));
        let Some((start, _)) = start else { bail!("no function {root}") };
        let mut ways = BTreeMap::from([(*start, Vec::new())]);
        let mut pointers = Vec::new();
        let mut work = vec![*start];
        while let Some(at) = work.pop() {
            let Some((start, size, name)) = functions.of(at) else { continue };
            let way = [&ways[&at][..], &[name.to_owned()]].concat();
            let from = (start - base) as usize;
            let Some(code) = text.get(from..from + size as usize) else { continue };
            for instruction in Decoder::with_ip(bits, code, start, DecoderOptions::NONE) {
                let target = match instruction.op0_kind() {
                    OpKind::NearBranch32 | OpKind::NearBranch64 => instruction.near_branch_target(),
                    // Through the table of addresses that the linker filled in (-fno-plt).
                    OpKind::Memory if instruction.is_call_near_indirect() && constant(&instruction) => {
                        program.word(instruction.memory_displacement64(), bits as usize / 8)?.unwrap_or(0)
                    }
                    _ if instruction.is_call_near_indirect() => {
                        pointers.push(format!("{name} at {:#x}", instruction.ip()));
                        continue;
                    }
                    _ => continue,
                };
                let Some((target, ..)) = functions.of(target) else { continue };
                ways.entry(target).or_insert_with(|| {
                    work.push(target);
                    way.clone()
                });
            }
        }
        Ok((ways, pointers))
    };
    let panics = |ways: &Ways| {
        let bad = |name: &str| name.contains("panic") || name.contains("_fail") || name.contains("unwrap_failed");
        ways.iter().find_map(|(at, way)| {
            let (.., name) = functions.of(*at)?;
            bad(name).then(|| format!("{} -> {name}", way.join(" -> ")))
        })
    };
    let (ways, pointers) = reachable("fault::handler")?;
    ensure!(pointers.is_empty(), "the reporter calls through pointers: {pointers:?}");
    ensure!(ways.len() > 3, "only {} functions were reached from the reporter", ways.len());
    if let Some(way) = panics(&ways) {
        bail!("{way}");
    }
    // The same search does find panics where there are some.
    ensure!(panics(&reachable("cases::hostile::numbers")?.0).is_some(), "no panic found where there is one");
    Ok(())
}
