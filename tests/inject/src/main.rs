//! Has every system call of a sandbox's life fail in turn, with each error that it can have: set-up, births, broker, reporter,
//! end. No hang, nothing left, no guest code without a whole sandbox, and an error that names the call. The same of a collector:
//! no crash, no file that is cut short, and an error that names the file.

mod collector;
mod errnos;
mod trace;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use clap::Parser;
use trace::{Call, Fault, Run, Subject};

/// What came of a failure, or why that must not be.
type Judged = Result<&'static str, String>;

/// How long a run may take that has nothing to wait for but the sandbox's own deadline.
const LIMIT: Duration = Duration::from_secs(20);
/// The exit statuses of the program: there was a sandbox; there was none.
const ENDED: i32 = 0;
const REFUSED: i32 = 3;

#[derive(Parser)]
struct Options {
    /// The guests' program, or the collector's
    program: PathBuf,
    /// The program is `ascetic-dump`, which is to convert this record or core
    #[arg(long, value_name = "FILE")]
    convert: Option<PathBuf>,
    /// Only the first N of a task's calls of one name
    #[arg(long, value_name = "N", default_value_t = usize::MAX)]
    first: usize,
    /// Says what came of each
    #[arg(long)]
    list: bool,
    /// Only calls of this name
    #[arg(long)]
    only: Option<String>,
    /// Only the first error that a call can have
    #[arg(long)]
    quick: bool,
    /// Takes out what makes births heard, and stops at the first finding
    #[arg(long)]
    silent: bool,
}

fn main() -> ExitCode {
    let options = Options::parse();
    let done = match &options.convert {
        Some(input) => collector::all(&options, input),
        None => sandboxes(&options),
    };
    match done {
        Ok(0) => ExitCode::SUCCESS,
        Ok(_) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Who a task is, in the order of birth.
fn role(task: usize) -> String {
    let names = ["supervisor", "set-up task", "T", "U", "second T", "second U"];
    names.get(task).map_or_else(|| format!("task {task}"), |name| (*name).to_owned())
}

/// Of a sandbox.
fn sandboxes(options: &Options) -> Result<usize> {
    let silent = options.silent.then(|| "silent".into());
    let arguments = [Some("injected".into()), silent].into_iter().flatten().collect();
    let subject = Subject { program: options.program.clone(), arguments, begins: None };
    all(options, &subject, judge)
}

/// Runs a program with each call failing; returns how many findings there were. What it said last without any failure, `judge` is
/// told.
fn all(options: &Options, subject: &Subject, judge: impl Fn(&Run, &Call, &str) -> Judged) -> Result<usize> {
    let start = Instant::now();
    let whole = trace::run(subject, None, LIMIT)?;
    let usual = whole.output.lines().last().unwrap_or_default().to_owned();
    ensure!(whole.status == ENDED && !whole.hung, "without any failure: status {}: {}", whole.status, whole.output);
    let (mut findings, mut runs, mut missed) = (0, 0, 0);
    let mut ends: BTreeMap<&str, usize> = BTreeMap::new();
    let mut counts: BTreeMap<(usize, &str), usize> = BTreeMap::new();
    for call in &whole.calls {
        let count = counts.entry((call.task, call.name)).or_default();
        *count += 1;
        if *count > options.first || options.only.as_ref().is_some_and(|only| only != call.name) {
            continue;
        }
        let errnos = errnos::of(call.name, &call.file);
        for errno in errnos.iter().take(if options.quick { 1 } else { errnos.len() }) {
            if options.silent && findings > 0 {
                break;
            }
            let run = trace::run(subject, Some(Fault { call: call.clone(), errno: *errno }), LIMIT)?;
            runs += 1;
            let Some(failed) = &run.failed else {
                missed += 1; // tasks that run at once do not always make the same calls
                continue;
            };
            let what = format!("{} {} of the {}: {errno:?}", failed.name, failed.nth, role(failed.task));
            match judge(&run, failed, &usual) {
                Ok(end) => {
                    *ends.entry(end).or_default() += 1;
                    if options.list {
                        println!("{what}: {end}: {}", run.output.lines().last().unwrap_or_default());
                    }
                }
                Err(why) => {
                    findings += 1;
                    println!("FOUND {what}: {why}; it said:\n{}", run.output.trim_end());
                }
            }
        }
    }
    let ends: Vec<_> = ends.iter().map(|(end, count)| format!("{count} {end}")).collect();
    let calls = whole.calls.len();
    println!(
        "{calls} calls, {runs} failures, {missed} not reached: {}; {findings} findings; {:.0} s",
        ends.join(", "),
        start.elapsed().as_secs_f32()
    );
    ensure!(runs > 0, "nothing was made to fail");
    Ok(findings)
}

/// What came of a run, or why that must not be.
fn judge(run: &Run, failed: &Call, usual: &str) -> Judged {
    let last = run.output.lines().last().unwrap_or_default();
    // The sandbox before the marks has run one.
    let guests = run.output.lines().filter(|line| *line == "guest").count();
    match run.status {
        _ if run.hung => Err("hangs, or left tasks that do".to_owned()),
        ENDED if last == usual => Ok("without an effect"),
        ENDED => Ok("with another end"),
        REFUSED if guests > 1 => Err("guest code ran, and there is no sandbox".to_owned()),
        REFUSED if last.contains(failed.name) => Ok("with an error that names the call"),
        REFUSED => Ok("with an error that names the step"),
        status => Err(format!("exit status {status}")),
    }
}
