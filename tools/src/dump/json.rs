//! A [`Dump`] as JSON: everything but memory, of which it has the places.

use serde_json::{Map, Value, json};

use super::{Dump, Thread};

fn hex(value: u64) -> String {
    format!("{value:#x}")
}

/// The dump as a JSON value. Numbers that are addresses or registers are hexadecimal strings: not every reader of JSON keeps 64
/// bits.
pub fn report(dump: &Dump) -> Value {
    let exception = dump.exception.as_ref().map(|e| {
        json!({
            "thread": e.thread,
            "signal": e.signal,
            "name": super::signal_name(e.signal),
            "code": e.code,
            "address": hex(e.address),
            "pc": hex(e.pc),
            "class": e.class.describe(),
            "denied": e.denied.map(|(nr, args)| json!({
                "nr": nr,
                "name": super::call_name(dump.arch, nr),
                "args": args.map(hex),
            })),
            "origin": e.origin.word(),
        })
    });
    let calls = dump.calls.iter().map(|call| {
        json!({
            "nr": call.nr,
            "name": super::call_name(dump.arch, call.nr.into()),
            "args": call.args.map(hex),
            "result": call.result,
            "origin": "guest",
        })
    });
    let annotations = dump
        .annotations
        .iter()
        .map(|(origin, key, value)| json!({ "key": key, "value": value, "origin": origin.word() }));
    json!({
        "arch": super::arch_name(dump.arch),
        "way": dump.way.word(),
        "process": dump.process,
        "time": dump.time,
        "exception": exception,
        "threads": dump.threads.iter().map(|thread| self::thread(dump, thread)).collect::<Vec<_>>(),
        "memory": dump.memory.iter().map(|m| json!([hex(m.address), m.bytes.len()])).collect::<Vec<_>>(),
        "modules": dump.modules,
        "maps": dump.maps,
        "calls": calls.collect::<Vec<_>>(),
        "refusals": dump.refusals,
        "annotations": annotations.collect::<Vec<_>>(),
        "self_check": dump.self_check,
        "text": dump.text,
        "missing": dump.missing,
    })
}

fn thread(dump: &Dump, thread: &Thread) -> Value {
    let names = dump.arch.registers().iter();
    let (registers, why) = match &thread.registers {
        Ok(registers) => {
            let pairs = names.zip(&registers.general).map(|(name, value)| ((*name).to_owned(), hex(*value).into()));
            (Value::Object(pairs.collect()), Value::Null)
        }
        Err(why) => (Value::Null, why.as_str().into()),
    };
    let pointed_to = dump.pointed_to(thread, super::POINTED).into_iter();
    json!({
        "id": thread.id,
        "name": thread.name,
        "role": thread.role.word(),
        "registers": registers,
        "why_none": why,
        "pointed_to": pointed_to.map(|(name, bytes)| (name.to_owned(), hex::encode(bytes).into())).collect::<Map<_, _>>(),
        "backtrace": dump.backtrace_of(thread).into_iter().map(hex).collect::<Vec<_>>(),
        "origin": thread.origin.word(),
    })
}

/// The denied call of a dump in JSON: number and arguments.
pub(super) fn denied(json: &[u8]) -> Option<(u64, [u64; 6])> {
    let value: Value = serde_json::from_slice(json).ok()?;
    let denied = value.get("exception")?.get("denied")?;
    let args = denied.get("args")?.as_array()?;
    let hex = |value: &Value| u64::from_str_radix(value.as_str()?.strip_prefix("0x")?, 16).ok();
    let args: Vec<u64> = args.iter().filter_map(hex).collect();
    Some((denied.get("nr")?.as_u64()?, args.try_into().ok()?))
}
