//! `cargo xtask bench`: what a call costs in a sandbox and with others' means, as a table, as JSON and as a plot.
//!
//! The measuring is done by `benches/lanes.rs`, which prints one JSON document; this runs it, holds its numbers against
//! the targets, and draws it.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, bail};
use ascetic_tools::dump::{Facts, minidump, record};
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};
use serde_json::Value;

/// Measures, prints a table, and writes `target/bench/lanes.json` and `target/bench/lanes.svg`.
///
/// # Errors
/// The benchmark does not build or run, or its results cannot be written. A target that is missed is none: on a busy
/// machine any may be.
pub fn run(root: &Path, quick: bool) -> Result<()> {
    let document = measure(root, quick)?;
    let results: Value = serde_json::from_slice(&document).context("the benchmark's output is no JSON")?;
    let rows = rows(&results)?;
    print_table(&results, &rows);

    let folder = root.join("target/bench");
    fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
    let json = folder.join("lanes.json");
    fs::write(&json, &document).with_context(|| format!("cannot write {}", json.display()))?;
    println!("\nwrote {}", json.display());
    if !rows.is_empty() {
        let svg = folder.join("lanes.svg");
        draw(&svg, &results, &rows).with_context(|| format!("cannot draw {}", svg.display()))?;
        println!("wrote {}", svg.display());
    }
    Ok(())
}

/// Builds and runs the benchmark; returns what it prints.
fn measure(root: &Path, quick: bool) -> Result<Vec<u8>> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    command.current_dir(root).args(["bench", "--quiet", "--package", "ascetic", "--bench", "lanes"]);
    if quick {
        command.args(["--", "--quick"]);
    }
    println!("measuring; this takes {}", if quick { "some seconds" } else { "about a minute" });
    let output = command.stderr(Stdio::inherit()).output().context("cannot run cargo")?;
    if !output.status.success() {
        bail!("the benchmark ended with {}", output.status);
    }
    Ok(output.stdout)
}

/// One row of the table.
struct Row {
    id: String,
    label: String,
    group: String,
    /// Median, 5th and 95th percentile, in nanoseconds.
    time: [f64; 3],
    /// How many native calls that is.
    ratio: f64,
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

fn spread(value: &Value) -> Option<[f64; 3]> {
    Some([value["median"].as_f64()?, value["p5"].as_f64()?, value["p95"].as_f64()?])
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

fn rows(results: &Value) -> Result<Vec<Row>> {
    let row = |row: &Value| {
        Some(Row {
            id: text(&row["id"]),
            label: text(&row["label"]),
            group: text(&row["group"]),
            time: spread(row)?,
            ratio: row["ratio"].as_f64()?,
        })
    };
    let rows: Option<Vec<Row>> = list(&results["lanes"]).iter().map(row).collect();
    rows.context("a row of the benchmark's output lacks its numbers")
}

fn print_table(results: &Value, rows: &[Row]) {
    let machine = &results["machine"];
    println!(
        "\nLinux {}, {} CPUs of {}{}, others that ran meanwhile: {:.2}\n",
        text(&machine["kernel"]),
        machine["cpus"],
        text(&machine["cpu"]),
        if machine["virtual"] == true { " (virtual)" } else { "" },
        machine["others_running"].as_f64().unwrap_or(f64::NAN),
    );
    println!("{:<58} {:>10} {:>23} {:>12}", "", "median", "5th … 95th percentile", "ratio");
    for row in rows {
        let [median, p5, p95] = row.time.map(time);
        println!("{:<58} {median:>10} {p5:>11} … {p95:<9} {:>11}×", row.label, ratio(row.ratio));
    }

    if let Some(memory) = results["memory_kib"].as_object() {
        println!("\nmemory of a pair, KiB");
        let names = [
            ("pair", "the pair's own, without the guest's stack"),
            ("process", "all private pages of the process"),
            ("page_tables", "the kernel's page tables for it"),
        ];
        for (key, name) in names {
            if let Some([median, p5, p95]) = memory.get(key).and_then(spread) {
                println!("{name:<58} {median:>10} {p5:>11} … {p95:<9}");
            }
        }
    }

    if !list(&results["crowd"]).is_empty() {
        println!("\nsandboxes at once, each calling clock_gettime without a pause");
    }
    for row in list(&results["crowd"]) {
        let name = format!("{}, {}", row["sandboxes"], text(&row["placement"]));
        let rate = row["calls_per_second"].as_f64().unwrap_or(f64::NAN) / 1e6;
        let [median, p5, p95] = spread(row).unwrap_or([f64::NAN; 3]).map(time);
        println!("{name:<58} {median:>10} {p5:>11} … {p95:<9} {rate:>9.3} M/s");
    }

    for row in list(&results["left_out"]) {
        println!("\nleft out: {}: {}", text(&row["what"]), text(&row["why"]));
    }

    println!("\ntargets");
    for target in targets(results, rows) {
        let (verdict, measured) = match target.measured {
            Some(measured) if measured <= target.limit => ("met", format!("{measured:.2}")),
            Some(measured) => ("MISSED", format!("{measured:.2}")),
            None => ("?", "not measured".to_owned()),
        };
        println!("{:<58} {measured:>10} of {:<8} {verdict}", target.name, target.limit);
    }
}

/// What is to be reached.
struct Target {
    name: &'static str,
    measured: Option<f64>,
    limit: f64,
}

fn targets(results: &Value, rows: &[Row]) -> Vec<Target> {
    let by_id: BTreeMap<&str, &Row> = rows.iter().map(|row| (row.id.as_str(), row)).collect();
    let median = |id: &str| by_id.get(id).map(|row| row.time[0]);
    let over = |id: &str, base: &str| Some(median(id)? / median(base)?);
    let ms = |id: &str| median(id).map(|ns| ns / 1e6);
    let best = |ids: [&str; 2], base: &str| ids.iter().filter_map(|id| over(id, base)).reduce(f64::min);
    let target = |name, measured, limit| Target { name, measured, limit };
    vec![
        target("hot direct lane, in native calls", by_id.get("hot").map(|row| row.ratio), 2.0),
        target("hot direct lane, in bare exchanges with a call", over("hot", "bare"), 1.2),
        target("parked direct lane, in USER_NOTIF calls", over("parked", "user_notif"), 1.1),
        target("broker's openat and close, one CPU, in USER_NOTIF's", over("open", "user_notif_open"), 1.0),
        target(
            "broker's openat and close, at its best, in USER_NOTIF's",
            best(["open", "open_hot"], "user_notif_open"),
            1.0,
        ),
        target(
            "openat and close by token, at its best, in native ones",
            best(["token", "token_hot"], "native_open"),
            1.5,
        ),
        target("openat and close by token, hot, in bare exchanges", best(["token_hot", "token_hot"], "bare_open"), 1.2),
        target(
            "unmodified getppid, at its best, in USER_NOTIF calls",
            best(["unmodified", "unmodified_hot"], "user_notif"),
            0.6,
        ),
        target("thread created and joined, µs", ms("thread").map(|ms| ms * 1e3), 200.0),
        target("spawn to first guest instruction, ms", ms("spawn"), 1.0),
        target("fault to complete record, ms", ms("fault"), 1.0),
        target("fault to a minidump with 1 MiB of memory, ms", ms("fault").map(|ms| ms + conversion_ms()), 20.0),
        target("memory of a pair, KiB", results["memory_kib"]["pair"]["median"].as_f64(), 128.0),
    ]
}

/// How long it takes to make a minidump of a record with 1 MiB of memory, in milliseconds: the median of many.
fn conversion_ms() -> f64 {
    const RECORD: &[u8] = include_bytes!("../../tools/tests/samples/x86_64.record");
    let memory = vec![0x5a; 1 << 20];
    let convert = || {
        let start = Instant::now();
        let len = record::read(RECORD, &Facts::default()).map_or(0, |mut dump| {
            dump.add_memory(0x10_0000_0000, &memory);
            minidump::write(&dump).len()
        });
        assert!(len > memory.len(), "a minidump of {len} bytes");
        start.elapsed().as_secs_f64() * 1e3
    };
    let mut times: Vec<f64> = (0..51).map(|_| convert()).collect();
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}

/// Nanoseconds for people: three digits.
fn time(ns: f64) -> String {
    let (value, unit) = match ns {
        _ if ns < 1e3 => (ns, "ns"),
        _ if ns < 1e6 => (ns / 1e3, "µs"),
        _ => (ns / 1e6, "ms"),
    };
    let decimals = if unit == "ns" || value >= 100.0 {
        0
    } else if value >= 10.0 {
        1
    } else {
        2
    };
    format!("{value:.decimals$} {unit}")
}

fn ratio(ratio: f64) -> String {
    if ratio < 100.0 { format!("{ratio:.2}") } else { format!("{ratio:.0}") }
}

/// Height of a bar's row, in pixels.
const ROW: u32 = 26;
const WIDTH: u32 = 1200;

/// Bars from the left on a logarithmic scale, with a line from the 5th to the 95th percentile.
fn draw(path: &Path, results: &Value, rows: &[Row]) -> Result<()> {
    let height = ROW * rows.len() as u32 + 120;
    let area = SVGBackend::new(path, (WIDTH, height)).into_drawing_area();
    area.fill(&WHITE)?;
    let machine = &results["machine"];
    let caption = format!(
        "A call's time: median, 5th to 95th percentile (Linux {}, {} CPUs{})",
        text(&machine["kernel"]),
        machine["cpus"],
        if machine["virtual"] == true { ", virtual" } else { "" },
    );
    let lowest = rows.iter().map(|row| row.time[1]).fold(f64::INFINITY, f64::min);
    let highest = rows.iter().map(|row| row.time[2]).fold(0.0, f64::max);
    let from = 10f64.powf(lowest.max(1.0).log10().floor());
    let to = highest.max(from * 10.0) * 30.0; // room for what is written behind the bars
    let count = rows.len() as f64;
    let mut chart = ChartBuilder::on(&area)
        .caption(caption, ("sans-serif", 20))
        .margin(12)
        .x_label_area_size(36)
        .y_label_area_size(380)
        .build_cartesian_2d((from..to).log_scale(), count..0.0)?;
    chart
        .configure_mesh()
        .disable_y_mesh()
        .disable_y_axis()
        .x_label_formatter(&|ns| time(*ns))
        .x_desc("time, logarithmic")
        .draw()?;

    let font = ("sans-serif", 14).into_font();
    let behind = font.color(&BLACK).pos(Pos::new(HPos::Left, VPos::Center));
    let before = font.color(&BLACK).pos(Pos::new(HPos::Right, VPos::Center));
    for (at, row) in (0..).map(f64::from).zip(rows) {
        let [median, p5, p95] = row.time;
        let middle = at + 0.5;
        let bar = Rectangle::new([(from, at + 0.2), (median, at + 0.8)], color(&row.group).filled());
        let line = BLACK.stroke_width(1);
        let cap = |x| PathElement::new(vec![(x, at + 0.35), (x, at + 0.65)], line);
        let whisker = PathElement::new(vec![(p5, middle), (p95, middle)], line);
        chart.draw_series([bar])?;
        chart.draw_series([whisker, cap(p5), cap(p95)])?;
        let label = format!("{}  ({}×)", time(median), ratio(row.ratio));
        let beside = [(p95.max(median), 8, label, &behind), (from, -8, row.label.clone(), &before)];
        for (x, shift, text, style) in beside {
            let (x, y) = chart.backend_coord(&(x, middle));
            area.draw(&Text::new(text, (x + shift, y), style.clone()))?;
        }
    }
    area.present()?;
    Ok(())
}

fn color(group: &str) -> RGBColor {
    match group {
        "native" => RGBColor(120, 120, 120),
        "own" => RGBColor(46, 125, 50),
        "peer" => RGBColor(239, 143, 46),
        _ => RGBColor(63, 111, 176),
    }
}
