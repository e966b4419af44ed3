use minidump::{
    Minidump, MinidumpException, MinidumpLinuxMaps, MinidumpMemoryList, MinidumpModuleList, MinidumpRawContext,
    MinidumpSystemInfo, MinidumpThreadList, MinidumpThreadNames, Module as _,
};

use super::*;
use crate::dump::facts::Task;
use crate::dump::{Facts, Module, record, samples};

fn sample(bytes: &[u8]) -> Dump {
    let module = Module { base: 0x40_0000, size: 0x1_0000, path: "/x/demo".to_owned(), build_id: vec![7; 20] };
    let task = |id, name: &str, role| Task { id, name: name.to_owned(), role };
    let crashed = record::read(bytes, &Facts::default()).unwrap().process;
    let facts = Facts {
        process: crashed,
        tasks: vec![task(crashed, "guest", Role::Guest), task(5, "ascetic-t", Role::Trusted)],
        maps: vec!["00400000-00410000 r-xp 00000000 fd:01 12 /x/demo".parse().unwrap()],
        modules: vec![module],
        ..Facts::default()
    };
    record::read(bytes, &facts).unwrap()
}

#[test]
fn a_reader_finds_everything() {
    for (arch, bytes) in samples::records() {
        let dump = sample(bytes);
        let file = Minidump::read(write(&dump)).unwrap();
        let system = file.get_stream::<MinidumpSystemInfo>().unwrap();
        let threads = file.get_stream::<MinidumpThreadList>().unwrap();
        let memory = file.get_memory().unwrap();
        let exception = file.get_stream::<MinidumpException>().unwrap();
        assert_eq!(exception.get_crashing_thread_id(), dump.process);
        let reason = exception.get_crash_reason(system.os, system.cpu).to_string();
        assert!(reason.starts_with("SIGSEGV"), "{reason}");
        let (registers, happened) = (dump.threads[0].registers.as_ref().unwrap(), dump.exception.as_ref().unwrap());
        let context = exception.context(&system, None).unwrap();
        assert_eq!(context.get_instruction_pointer(), happened.pc);
        for (name, value) in arch.registers().iter().zip(&registers.general) {
            let kept = context.get_register(name);
            assert!(kept.is_none_or(|kept| kept == *value), "{name}");
        }
        let state = match &context.raw {
            MinidumpRawContext::Amd64(raw) => raw.float_save,
            MinidumpRawContext::X86(raw) => raw.extended_registers,
            other => panic!("{other:?}"),
        };
        assert_eq!(state, registers.extended[..512]);
        let crashed = threads.get_thread(dump.process).unwrap();
        let stack = crashed.stack_memory(&memory).unwrap();
        assert!(stack.memory_range().unwrap().contains(registers.sp(arch).unwrap()));
        let names = file.get_stream::<MinidumpThreadNames>().unwrap();
        assert_eq!(names.get_name(5).unwrap(), "ascetic-t (trusted thread)");
        assert_eq!(threads.threads.len(), 2);
        let modules = file.get_stream::<MinidumpModuleList>().unwrap();
        let module = modules.module_at_address(happened.pc).unwrap();
        assert_eq!(
            (module.code_file(), module.code_identifier().unwrap().to_string()),
            ("/x/demo".into(), "07".repeat(20))
        );
        assert_eq!(file.get_stream::<MinidumpLinuxMaps>().unwrap().iter().count(), 1);
        let memory = file.get_stream::<MinidumpMemoryList>().unwrap();
        let code = memory.memory_at_address(happened.pc).unwrap();
        assert_eq!(&code.bytes[(happened.pc - code.base_address) as usize..][..16], dump.read(happened.pc, 16));
        let facts = file.get_raw_stream(JSON_STREAM).unwrap();
        assert_eq!(serde_json::from_slice::<serde_json::Value>(facts).unwrap()["calls"].as_array().unwrap().len(), 2);
        let extended = file.get_raw_stream(EXTENDED_STREAM).unwrap();
        assert_eq!(extended[8..], registers.extended);
    }
}

#[test]
fn without_memory_it_tells_the_reason() {
    for (_, bytes) in samples::records() {
        let dump = sample(bytes);
        let whole = write(&dump);
        let memory: usize = dump.memory.iter().map(|memory| memory.bytes.len().next_multiple_of(8)).sum();
        let file = Minidump::read(&whole[..whole.len() - memory]).unwrap();
        let system = file.get_stream::<MinidumpSystemInfo>().unwrap();
        let exception = file.get_stream::<MinidumpException>().unwrap();
        let pc = exception.context(&system, None).unwrap().get_instruction_pointer();
        assert_eq!(pc, dump.exception.unwrap().pc);
        assert_eq!(file.get_stream::<MinidumpThreadList>().unwrap().threads.len(), 2);
    }
}

#[test]
fn tags_are_of_registers_and_not_of_the_stack() {
    let mut state = [0; FXSAVE];
    state[3] = 7 << 3; // The top is register 7,
    state[4] = 1 << 7; // the only one in use,
    state[32 + 7..32 + 10].copy_from_slice(&[0x80, 0xff, 0x3f]); // and it is 1.
    assert_eq!(tags(&words(&state)), 0x3fff);
    state[32 + 7] = 0;
    state[32 + 8..32 + 10].fill(0);
    assert_eq!(tags(&words(&state)), 0x7fff);
}
