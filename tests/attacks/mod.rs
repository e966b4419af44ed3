//! The attacks that are known for trusted code in a shared address space, one subject to a file. [`ATTACKS`] is the list of all
//! of them, those included whose cases are elsewhere among the guest cases; `cargo xtask attacks` runs each with its defence
//! on and off, and makes `docs/attacks.md` of it.

use super::{
    Case, Config, POLICY, Policy, Status, case, check, config, end_children, is_case, must_exit, println, run, sandbox,
    skip, spawn,
};

mod code;
mod creep;
mod exhaustion;
mod frames;
#[cfg(target_arch = "x86_64")]
mod gates;
mod inheritance;
mod registrations;
mod rings;
mod roads;
mod segments;
mod shared;
mod stalls;

/// The cases of this folder.
pub const CASES: &[&[Case]] = &[
    code::CASES,
    creep::CASES,
    exhaustion::CASES,
    frames::CASES,
    #[cfg(target_arch = "x86_64")]
    gates::CASES,
    inheritance::CASES,
    registrations::CASES,
    rings::CASES,
    roads::CASES,
    segments::CASES,
    shared::CASES,
    stalls::CASES,
];

/// What becomes of an attack when its defence is taken out.
pub enum Off {
    /// It succeeds: the case shows it.
    Wins(&'static str),
    /// It fails even so, as the case shows, and why.
    Fails(&'static str, &'static str),
    /// There is no such run, and why.
    None(&'static str),
}

/// One row of the table.
pub struct Attack {
    /// What kind of attack it is.
    pub kind: &'static str,
    /// What it tries.
    pub tries: &'static str,
    /// What stands in its way, and is taken out in the second run.
    pub defence: &'static str,
    /// The case in which the defence is in force.
    pub on: &'static str,
    /// The case in which it is not.
    pub off: Off,
}

macro_rules! attacks {
    ($($kind:literal { $($tries:literal, $defence:literal, $on:literal, $off:expr;)* })*) => {
        /// The table.
        pub static ATTACKS: &[Attack] = &[
            $($(Attack { kind: $kind, tries: $tries, defence: $defence, on: $on, off: $off },)*)*
        ];
    };
}

use Off::{Fails, None as No, Wins};

attacks! {
    "forged signal frames" {
        "a frame whose code segment is of the other mode; there, a call whose number means something else",
        "strict mode", "attack_frame_mode", Wins("attack_frame_mode_off_shows_it");
        "a frame that moves the alternate stack into the vault, for the kernel to write there",
        "the vault is a sealed file, mapped read-only", "attack_frame_stack", Wins("attack_frame_stack_off_shows_it");
        "a frame with every flag there is, I/O privilege among them", "the kernel's: it restores only flags that are harmless",
        "attack_frame_flags", No("the defence is the kernel's and has no switch");
        "a frame that blocks every signal, against the deadline", "SIGKILL, which no mask blocks",
        "attack_frame_mask", No("the defence is the kernel's and has no switch");
        "a handler of the guest's, with a stack for it, run in T", "T has handlers, a stack pointer and a signal mask of its own",
        "mechanism_00", Wins("mechanism_07");
    }
    "other modes, other numbers" {
        "an i386 call by `int $0x80` from 64-bit code", "strict mode",
        "i386_call_from_64_bit_code", Wins("i386_call_off_shows_it");
        "a far jump to 32-bit code, and a call there", "strict mode",
        "far_jump_to_32_bit_code", Wins("far_jump_off_shows_it");
        "an x32 number", "strict mode", "attack_x32", Wins("attack_x32_off_shows_it");
        "x32 numbers, numbers beyond the table, negative ones, to T", "T compares the number with the length of its table",
        "forged_numbers", No("without the comparison T reads a row that is not there: there is no table to show it with");
        "the vsyscall page", "strict mode", "attack_vsyscall", Wins("attack_vsyscall_off_shows_it");
    }
    "segments" {
        "a segment of the guest's own by `modify_ldt`", "strict mode, and T's allow list",
        "attack_modify_ldt", Wins("attack_modify_ldt_off_shows_it");
    }
    "state that is inherited" {
        "T is born with an MXCSR and an x87 that raise exceptions, as the embedder left them", "T cleans both before it serves",
        "attack_control_words", Wins("attack_control_words_off_shows_it");
        "T is born with the embedder's flags: DF, AC, TF, NT", "set-up clears them before `clone`, and T clears DF",
        "attack_inherited_flags", No("T has no instruction that goes by them, which the audit of its bytes shows; with TF, no embedder gets as far");
        "a guest with exceptions of MXCSR and x87 on, and one that waits, makes calls and threads", "T and U have registers of their own",
        "attack_flags", No("no guest's registers get to a T: its creator is the set-up task, or another T");
    }
    "addresses that the kernel writes to, or jumps by" {
        "an rseq area for T, whose abort address is the guest's code", "the allow list has no call that acts on its caller",
        "attack_rseq", Wins("attack_rseq_off_shows_it");
        "a list of robust futexes for T, which the kernel walks at T's end", "the allow list",
        "attack_robust_list", Wins("attack_robust_list_off_shows_it");
        "an address where the kernel stores 0 at T's end", "the allow list",
        "attack_clear_tid", Wins("attack_clear_tid_off_shows_it");
    }
    "creeping mappings" {
        "a mapping that grows down (`MAP_GROWSDOWN`) towards the sandbox's own", "the broker refuses the flag",
        "attack_grows_down", Fails("attack_grows_down_off_fails",
            "the kernel stops it at the next mapping, and every address of the sandbox's own is mapped: guard pages are mappings");
        "the heap's end (`brk`) in the middle of the sandbox's own", "the broker refuses such an end",
        "attack_brk", Fails("attack_brk_off_fails", "the kernel does not move it over other mappings");
    }
    "aliases of memory" {
        "memory of SysV that the embedder has attached", "the entry audit",
        "attack_sysv", Wins("attack_sysv_off_shows_it");
        "a memfd that the embedder has mapped writable", "the entry audit",
        "audit_finds_shared_memory", Wins("audit_finds_shared_memory_off_shows_it");
        "the vault's own file, opened again by `/proc/self/map_files`", "the seals of the file",
        "attack_map_files", Wins("attack_map_files_off_shows_it");
        "writing to the vault, making it writable, `/proc/self/mem`", "the seals of the file",
        "vault_stands_without_lockdown", Wins("vault_stands_off_shows_it");
        "mapping something else where the vault is", "`mseal`",
        "mappings_are_sealed", Wins("mappings_are_sealed_off_shows_it");
        "a pointer into the vault as an argument", "T checks every argument",
        "vault_arguments_refused", Wins("vault_arguments_off_shows_it");
        "writing to the policy", "the vault is mapped read-only", "vault_write_dies", Wins("vault_write_off_shows_it");
    }
    "memory by `/proc`" {
        "`/proc/self/mem` and `/proc/self/task/*/mem` below a root that is `/`", "no path crosses a mount",
        "attack_proc_mem", Wins("attack_proc_mem_off_shows_it");
        "the embedder's `/proc/self/mem`, kept", "the entry audit",
        "attack_kept_mem", Wins("attack_kept_mem_off_shows_it");
    }
    "descriptors" {
        "closing, replacing and duplicating doorbells, alarm, crash and probe pipes", "T refuses the sandbox's own",
        "own_descriptors_refused", Wins("own_descriptors_off_shows_it");
        "rings that mean nothing, rings that are taken back", "the broker asks the kernel who waits",
        "race_forged_doorbells", Wins("race_forged_doorbells_off_shows_it");
        "rings that are to let a thread go before the supervisor does", "the gate is a word of the vault",
        "births_doorbells_open_no_gate", Wins("births_open_gate_shows_it");
        "births in another's name", "the kernel adds who sent the message",
        "race_forged_births", Wins("race_forged_births_off_shows_it");
        "a crash pipe that is full", "the reporter does not wait",
        "fault_full_pipe", No("the reporter's descriptor is made non-blocking where it is taken: there is nothing to leave out");
    }
    "stalls" {
        "a userfaultfd of the embedder's, kept: its page faults are the guest's to answer", "the entry audit",
        "attack_userfaultfd", Wins("attack_userfaultfd_off_shows_it");
    }
    "rings made before entry" {
        "an io_uring with a kernel thread (SQPOLL), by which the guest opens a file", "the entry audit",
        "attack_io_uring", Wins("attack_io_uring_off_shows_it");
    }
    "T's code and T's mailbox" {
        "a jump into T's code, with a script of the guest's own", "strict mode: the calls are the guest's own",
        "attack_t_code", Wins("attack_t_code_off_shows_it");
        "T unmaps its own mailbox, as the guest asks", "the broker refuses the range; `mseal`",
        "attack_unmap", Fails("attack_unmap_off_fails", "T dies, and with it the sandbox: the mailbox is all that there was to lose");
    }
    "exhaustion" {
        "tasks", "the policy's limit of threads", "attack_tasks", Wins("attack_tasks_off_shows_it");
        "memory", "T's limit of addresses (`RLIMIT_AS`)", "attack_memory", Wins("attack_memory_off_shows_it");
        "descriptors", "T's limit of descriptors", "attack_descriptors", Wins("attack_descriptors_off_shows_it");
        "calls to the broker", "the policy's limit of calls a second", "attack_calls", Wins("attack_calls_off_shows_it");
        "forged requests without end", "what asks in vain is looked at less and less",
        "births_forger_slows_itself", Wins("births_forger_off_shows_it");
        "crash records without end", "the record is a sealed file of a fixed size",
        "attack_records", Wins("attack_records_off_shows_it");
    }
    "races: what was checked changes" {
        "the path in the guest's memory", "T opens the broker's copy",
        "race_path_swapped", Wins("race_path_swapped_off_shows_it");
        "the path in the mailbox", "the broker copies once",
        "race_mailbox_rewritten", Wins("race_mailbox_rewritten_off_shows_it");
        "where a link leads", "`RESOLVE_BENEATH`", "race_link_swapped", Wins("race_link_swapped_off_shows_it");
        "the range of a mapping", "the broker copies once",
        "race_ranges_changed", Wins("race_ranges_changed_off_shows_it");
        "that T waits", "the broker asks the kernel", "race_forged_done", Wins("race_forged_done_off_shows_it");
        "the word that a futex call names", "T checks the register that it uses",
        "race_futex_aimed_at_the_vault", Wins("race_futex_aimed_at_the_vault_off_shows_it");
        "the descriptor of a call that the broker approves", "the broker copies once",
        "race_descriptor_rewritten", Wins("race_descriptor_rewritten_off_shows_it");
        "the descriptor between two steps of T's", "the broker changes names itself",
        "race_descriptor_reused", Wins("race_descriptor_reused_off_shows_it");
    }
}

impl Attack {
    /// Whether both of its cases are there on this architecture.
    pub fn exists(&self) -> bool {
        self.cases().all(is_case)
    }

    /// The names of its cases: with the defence in force, and without, if there is one.
    pub fn cases(&self) -> impl Iterator<Item = &'static str> {
        let off = match self.off {
            Wins(case) | Fails(case, _) => Some(case),
            No(_) => None,
        };
        [self.on].into_iter().chain(off)
    }
}

/// Prints the table, for `cargo xtask attacks`: tabs between the columns.
pub fn print() {
    for attack in ATTACKS.iter().filter(|attack| attack.exists()) {
        let (how, case, why) = match attack.off {
            Wins(case) => ("wins", case, ""),
            Fails(case, why) => ("fails", case, why),
            No(why) => ("none", "", why),
        };
        let Attack { kind, tries, defence, on, .. } = attack;
        println!("{kind}\t{tries}\t{defence}\t{on}\t{how}\t{case}\t{why}");
    }
}
