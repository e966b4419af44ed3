//! The list of what is measured, and the rounds.

use crate::host::{self, FAST, Log, Result, SLOW, Shared};
use crate::own::{self, CROWD, Work, crowd, guest, placed, working};
use crate::peers::{self, Asked, Broker, Trap, Where};
use crate::{life, stats};
use ascetic::sandbox::{Config, Placement};
use ascetic::seccomp::Lockdown;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::time::Duration;

/// How one lane is measured in one round: nanoseconds for a call.
type Measure = Box<dyn Fn(&Shared<Log>) -> Result<Vec<f64>>>;

/// One row of the result.
struct Lane {
    /// `native`, `own` or `peer`.
    group: &'static str,
    id: &'static str,
    label: &'static str,
    measure: Measure,
}

fn own_lane(id: &'static str, label: &'static str, config: Config<'static>, batch: host::Batch) -> Lane {
    let measure: Measure = Box::new(move |log| guest(log, &config, Work::Getppid, batch));
    Lane { group: "own", id, label, measure }
}

fn work_lane(id: &'static str, label: &'static str, work: Work, placement: Placement) -> Lane {
    let config = working(work, placement);
    let measure: Measure = Box::new(move |log| guest(log, &config, work, host::SLOW));
    Lane { group: "own", id, label, measure }
}

fn peer(
    (group, id, label): (&'static str, &'static str, &'static str),
    batch: host::Batch,
    run: impl Fn(&Log) -> Result<()> + 'static,
) -> Lane {
    let measure: Measure = Box::new(move |log| {
        log.plan(batch);
        run(log)?;
        log.samples(batch.calls as f64)
    });
    Lane { group, id, label, measure }
}

/// All lanes, the native call first: on CPU `one`, and, if there are two, `across` them.
fn lanes(one: Where, across: Option<Where>) -> Vec<Lane> {
    use Asked::{Getppid, Open};
    use Broker::{Process, Thread};
    let filtered = Config { lockdown: Lockdown::Filter { read: None, write: None }, ..placed(Placement::Together) };
    let mut lanes = vec![peer(("native", "native", "native call"), FAST, move |log| peers::native(log, one[0]))];
    if let Some(across) = across {
        lanes.extend([
            own_lane("hot", "direct lane, hot, two CPUs", placed(Placement::Apart), FAST),
            work_lane(
                "unmodified_hot",
                "getppid by the guest's own instruction, hot",
                Work::Unmodified,
                Placement::Apart,
            ),
            work_lane("token_hot", "openat and close, by token, hot", Work::Token, Placement::Apart),
            work_lane("open_hot", "openat and close, by the broker, T on another CPU", Work::Open, Placement::Apart),
            peer(("peer", "lines", "a word there and back, two CPUs, two lines"), FAST, move |log| {
                peers::words(log, across, peers::Way::Apart)
            }),
            peer(("peer", "line", "a word there and back, two CPUs, one line"), FAST, move |log| {
                peers::words(log, across, peers::Way::Together)
            }),
            peer(("peer", "bare", "a word there, getppid, a word back, no checks"), FAST, move |log| {
                peers::words(log, across, peers::Way::WithCall)
            }),
            peer(("peer", "bare_open", "the same with openat, then the same with close"), SLOW, move |log| {
                peers::words(log, across, peers::Way::WithOpen)
            }),
        ]);
    }
    lanes.extend([
        own_lane("parked", "direct lane, parked, one CPU", placed(Placement::Together), SLOW),
        work_lane(
            "unmodified",
            "getppid by the guest's own instruction, parked",
            Work::Unmodified,
            Placement::Together,
        ),
        work_lane("open", "openat and close, by the broker, parked", Work::Open, Placement::Together),
        work_lane("token", "openat and close, by token, parked", Work::Token, Placement::Together),
        work_lane("stat", "stat, by the broker, parked", Work::Stat, Placement::Together),
        work_lane("map", "mmap and munmap, by the broker, parked", Work::Map, Placement::Together),
        work_lane("thread", "thread, created and joined", Work::Thread, Placement::Together),
        peer(("native", "native_open", "openat and close, native"), SLOW, move |log| peers::native_open(log, one[0])),
        peer(("native", "native_stat", "stat, native"), SLOW, move |log| peers::native_stat(log, one[0])),
        peer(("native", "native_map", "mmap and munmap, native"), SLOW, move |log| peers::native_map(log, one[0])),
        peer(("native", "native_thread", "thread, created and joined, native"), SLOW, move |log| {
            peers::native_thread(log, one[0])
        }),
        own_lane("parked_filter", "direct lane, parked, one CPU, filter lock-down", filtered, SLOW),
        peer(("peer", "sigsys_filter", "SIGSYS by filter, handled in process"), SLOW, move |log| {
            peers::sigsys(log, one[0], Trap::Filter)
        }),
        peer(("peer", "sigsys_dispatch", "SIGSYS by dispatch, handled in process"), SLOW, move |log| {
            peers::sigsys(log, one[0], Trap::Dispatch)
        }),
        peer(("peer", "eventfd", "eventfd ping-pong, processes, one CPU"), SLOW, move |log| {
            peers::ping_pong(log, one, Process)
        }),
        peer(("peer", "eventfd_threads", "eventfd ping-pong, threads, one CPU"), SLOW, move |log| {
            peers::ping_pong(log, one, Thread)
        }),
        peer(("peer", "user_notif", "USER_NOTIF, one CPU, sync wake-up"), SLOW, move |log| {
            peers::user_notif(log, one, Getppid, true, Process)
        }),
        peer(("peer", "user_notif_thread", "USER_NOTIF, one CPU, sync wake-up, broker a thread"), SLOW, move |log| {
            peers::user_notif(log, one, Getppid, true, Thread)
        }),
        peer(("peer", "user_notif_plain", "USER_NOTIF, one CPU, plain wake-up"), SLOW, move |log| {
            peers::user_notif(log, one, Getppid, false, Process)
        }),
        peer(("peer", "ptrace", "ptrace SYSEMU, one CPU"), SLOW, move |log| peers::ptrace(log, one)),
        peer(("peer", "user_notif_open", "openat and close, USER_NOTIF and ADDFD, one CPU"), SLOW, move |log| {
            peers::user_notif(log, one, Open, true, Process)
        }),
        peer(("peer", "ptrace_open", "openat and close, ptrace, one stop, one CPU"), SLOW, move |log| {
            peers::ptrace_open(log, one)
        }),
        own_lane("floating", "direct lane, parked, unpinned", placed(Placement::Floating), SLOW),
    ]);
    if let Some(across) = across {
        lanes.extend([
            peer(("peer", "eventfd_across", "eventfd ping-pong, processes, two CPUs"), SLOW, move |log| {
                peers::ping_pong(log, across, Process)
            }),
            peer(("peer", "user_notif_across", "USER_NOTIF, two CPUs, plain wake-up"), SLOW, move |log| {
                peers::user_notif(log, across, Getppid, false, Process)
            }),
            peer(("peer", "ptrace_across", "ptrace SYSEMU, two CPUs"), SLOW, move |log| peers::ptrace(log, across)),
        ]);
    }
    lanes
}

/// What an [embedder](life::embedder) is asked: id, label, touched heap in MiB, key of its answer.
const LIFE: [(&str, &str, usize, &str); 7] = [
    ("spawn", "spawn to first guest instruction", 0, "born"),
    ("spawn_returned", "spawn to its return", 0, "spawn_returned"),
    ("spawn_64", "spawn to first guest instruction, 64 MiB heap", 64, "born"),
    ("spawn_first", "spawn to first guest instruction, first of a process", 0, "first_birth"),
    ("fault", "fault to complete record, decoded", 0, "decoded"),
    ("fault_waited", "fault to the return of wait", 0, "waited"),
    ("fault_64", "fault to complete record, decoded, 64 MiB heap", 64, "decoded"),
];

/// Samples by lane and round, and why lanes were left out.
#[derive(Default)]
struct Results {
    rounds: BTreeMap<&'static str, Vec<Vec<f64>>>,
    left_out: BTreeMap<String, String>,
}

impl Results {
    fn add(&mut self, id: &'static str, label: &str, samples: Result<Vec<f64>>) {
        match samples {
            Ok(samples) => self.rounds.entry(id).or_default().push(samples),
            Err(error) => {
                self.left_out.insert(label.to_owned(), error.to_string());
            }
        }
    }
}

/// Measures everything.
pub fn measure(quick: bool) -> Result<Value> {
    let cpus = host::cpus();
    let first = *cpus.first().ok_or("no CPU")?;
    let across = cpus.get(1).map(|second| [first, *second]);
    let lanes = lanes([first; 2], across);
    let (rounds, sandboxes) = if quick { (8, 6) } else { (40, 11) };
    let (crowd_rounds, crowd_length) = if quick { (1, 200) } else { (5, 400) };

    let mut results = Results::default();
    if across.is_none() {
        let why = "this machine, or what this process may use of it, has one CPU";
        let what = "the hot direct lane, and everything else that takes two CPUs";
        results.left_out.insert(what.to_owned(), why.to_owned());
    }
    let log = Shared::<Log>::new()?;
    let mut memory = Vec::new();
    let mut company = Vec::new();
    for _ in 0..rounds {
        // A lane that failed once is left out from then on: its rounds would not be those of the others.
        for lane in &lanes {
            company.push(others());
            if !results.left_out.contains_key(lane.label) {
                results.add(lane.id, lane.label, (lane.measure)(&log));
            }
        }
        for heap in [0, 64] {
            let answer = life::embedder(heap, sandboxes).map_err(|error| error.to_string());
            for (id, label, _, key) in LIFE.iter().filter(|row| row.2 == heap) {
                let samples = answer.as_ref().map_err(|error| error.as_str().into());
                results.add(id, label, samples.and_then(|answer| numbers(&answer[*key])));
            }
            memory.extend(answer.ok().filter(|_| heap == 0).map(|answer| answer["memory"].clone()));
        }
    }
    let crowd = crowds(crowd_rounds, Duration::from_millis(crowd_length)).unwrap_or_else(|error| {
        results.left_out.insert("sandboxes at once".to_owned(), error.to_string());
        Vec::new()
    });

    let native = results.rounds.get("native").ok_or("the native call was not measured")?;
    let base: Vec<f64> = native.iter().map(|round| stats::median(round)).collect();
    let own = lanes.iter().map(|lane| (lane.group, lane.id, lane.label));
    let rows = own.chain(LIFE.iter().map(|row| ("life", row.0, row.1)));
    let rows = rows.filter(|row| !results.left_out.contains_key(row.2)).filter_map(|(group, id, label)| {
        let mut row = stats::summary(results.rounds.get(id)?, &base);
        row["group"] = group.into();
        row["id"] = id.into();
        row["label"] = label.into();
        Some(row)
    });
    let rows: Vec<Value> = rows.collect();
    let left_out = results.left_out.iter().map(|(what, why)| json!({ "what": what, "why": why }));
    Ok(json!({
        "unit": "ns", "quick": quick, "machine": machine(&cpus, &company),
        "lanes": rows, "memory_kib": memory_summary(&memory), "crowd": crowd,
        "left_out": left_out.collect::<Vec<_>>(),
    }))
}

/// A number or a list of numbers.
fn numbers(value: &Value) -> Result<Vec<f64>> {
    let list = value.as_array().cloned().unwrap_or_else(|| vec![value.clone()]);
    let numbers: Option<Vec<f64>> = list.iter().map(Value::as_f64).collect();
    numbers.ok_or_else(|| "the embedder gave no numbers".into())
}

fn crowds(rounds: usize, length: Duration) -> Result<Vec<Value>> {
    let logs = Shared::<[Log; CROWD]>::new()?;
    let kinds = [1, 4, 16, CROWD].map(|count| [(count, false), (count, true)]);
    let mut measured = vec![(Vec::new(), Vec::new()); kinds.as_flattened().len()];
    for _ in 0..rounds {
        for ((count, spread), (rates, samples)) in kinds.as_flattened().iter().zip(&mut measured) {
            let (rate, round) = crowd(&logs, *count, *spread, length)?;
            rates.push(rate);
            samples.extend(round);
        }
    }
    let rows = kinds.as_flattened().iter().zip(&measured);
    Ok(rows.map(|((count, spread), (rates, samples))| own::crowd_summary(*count, *spread, rates, samples)).collect())
}

fn memory_summary(memory: &[Value]) -> Value {
    let column = |key: &str| -> Vec<f64> { memory.iter().filter_map(|row| row[key].as_f64()).collect() };
    let mut summary = json!({});
    for key in ["pair", "process", "page_tables"] {
        let [median, p5, p95] = stats::spread(&column(key));
        summary[key] = json!({ "median": median, "p5": p5, "p95": p95 });
    }
    summary
}

fn read(path: &str) -> String {
    std::fs::read_to_string(path).unwrap_or_default().trim().to_owned()
}

/// How many tasks run or want to, besides the one that asks: whoever takes CPUs from what is measured.
fn others() -> f64 {
    let load = read("/proc/loadavg");
    let running = load.split(' ').nth(3).and_then(|field| field.split('/').next()?.parse::<f64>().ok());
    running.map_or(f64::NAN, |running| running - 1.0)
}

fn machine(cpus: &[usize], company: &[f64]) -> Value {
    let info = read("/proc/cpuinfo");
    let field = |name: &str| {
        let line = info.lines().find(|line| line.starts_with(name))?;
        Some(line.split_once(':')?.1.trim().to_owned())
    };
    let flags = field("flags").unwrap_or_default();
    json!({
        "kernel": read("/proc/sys/kernel/osrelease"), "cpu": field("model name"), "cpus": cpus.len(),
        "virtual": flags.split(' ').any(|flag| flag == "hypervisor"), "others_running": company.iter().sum::<f64>() / company.len() as f64,
    })
}
