//! A collector whose calls fail: `ascetic-dump convert`, from where it opens its input.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};

use crate::trace::{Call, Run, Subject};
use crate::{ENDED, Judged, Options};

/// The status of a program that says what is wrong.
const SAID: i32 = 1;
/// Of one without memory, which Rust's library ends (`SIGABRT`).
const NO_MEMORY: i32 = 128 + 6;
/// What asks for memory.
const MEMORY: [&str; 3] = ["mmap", "brk", "mremap"];

/// Has it convert `input` to everything that there is. How many findings there were.
///
/// # Errors
/// It cannot be run, or does not end well without any failure.
pub fn all(options: &Options, input: &Path) -> Result<usize> {
    let folder = tempfile::tempdir()?;
    let input = fs::canonicalize(input).with_context(|| input.display().to_string())?;
    let mut arguments = vec!["convert".into(), input.clone().into()];
    for kind in ["minidump", "core", "json", "text"] {
        arguments.extend([format!("--{kind}").into(), folder.path().join(kind).into()]);
    }
    let subject = Subject { program: options.program.clone(), arguments, begins: Some(input) };
    let whole = Cell::new(None);
    let judge = |run: &Run, failed: &Call, _: &str| {
        let files = take(folder.path());
        let usual = whole.take().expect("what it writes without a failure");
        let judged = judge(run, failed, &files, &usual);
        whole.set(Some(usual));
        judged
    };
    ensure!(crate::trace::run(&subject, None, crate::LIMIT)?.status == ENDED, "it does not convert that");
    whole.set(Some(take(folder.path())));
    crate::all(options, &subject, judge)
}

/// What there is in a folder, which is empty then.
fn take(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut files = BTreeMap::new();
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        files.insert(entry.file_name().to_string_lossy().into_owned(), fs::read(entry.path()).unwrap_or_default());
        let _ = fs::remove_file(entry.path());
    }
    files
}

/// How much a dump says that it has not.
fn missing(files: &BTreeMap<String, Vec<u8>>) -> usize {
    let json = files.get("json").and_then(|bytes| serde_json::from_slice::<serde_json::Value>(bytes).ok());
    json.and_then(|json| json["missing"].as_array().map(Vec::len)).unwrap_or(0)
}

fn judge(run: &Run, failed: &Call, files: &BTreeMap<String, Vec<u8>>, usual: &BTreeMap<String, Vec<u8>>) -> Judged {
    let cut = files.iter().find(|(name, bytes)| usual.get(*name).is_none_or(|whole| bytes.len() < whole.len()));
    match run.status {
        _ if run.hung => Err("hangs".to_owned()),
        NO_MEMORY if MEMORY.contains(&failed.name) && run.output.contains("memory allocation") => {
            Ok("out of memory, and said so")
        }
        SAID if run.output.trim().is_empty() => Err("fails, and does not say why".to_owned()),
        SAID if cut.is_some() => Err(format!("leaves `{}` cut short", cut.map_or("", |(name, _)| name))),
        ENDED if files == usual => Ok("without an effect"),
        ENDED if missing(files) > missing(usual) && files.len() == usual.len() => {
            Ok("with a dump that names what is missing")
        }
        ENDED => Err("says that all is well, and it is not".to_owned()),
        SAID => Ok("with an error that says what is wrong"),
        status => Err(format!("exit status {status}")),
    }
}
