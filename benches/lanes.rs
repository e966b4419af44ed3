//! What a system call costs in a sandbox, beside what it costs without one and with others' means.
//!
//! `cargo xtask bench` runs this and draws the result; alone, `cargo bench --bench lanes` prints one JSON document,
//! and with `-- --quick` in some seconds. Everything is measured in rounds, each lane once in every round, so that what
//! else the machine does meets all lanes alike. Times are nanoseconds.

#[cfg(target_arch = "x86_64")]
#[path = "lanes/host.rs"]
mod host;
#[cfg(target_arch = "x86_64")]
#[path = "lanes/life.rs"]
mod life;
#[cfg(target_arch = "x86_64")]
#[path = "lanes/own.rs"]
mod own;
#[cfg(target_arch = "x86_64")]
#[path = "lanes/peers.rs"]
mod peers;
#[cfg(target_arch = "x86_64")]
#[path = "lanes/stats.rs"]
mod stats;
#[cfg(target_arch = "x86_64")]
#[path = "lanes/table.rs"]
mod table;

fn main() -> std::process::ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    run(&args).map_or_else(
        |error| {
            eprintln!("lanes: {error}");
            std::process::ExitCode::FAILURE
        },
        |()| std::process::ExitCode::SUCCESS,
    )
}

#[cfg(target_arch = "x86_64")]
fn run(args: &[String]) -> host::Result<()> {
    let has = |flag: &str| args.iter().any(|arg| arg == flag);
    match args {
        [first, rest @ ..] if first == life::EMBEDDER => life::embed(rest),
        // `cargo test --benches` builds and starts this, too, and wants no numbers.
        _ if !has("--bench") => {
            eprintln!("lanes: nothing measured; start this with `cargo bench --bench lanes`");
            Ok(())
        }
        _ => {
            println!("{:#}", table::measure(has("--quick"))?);
            Ok(())
        }
    }
}

#[cfg(not(target_arch = "x86_64"))]
fn run(_: &[String]) -> std::result::Result<(), std::convert::Infallible> {
    println!(r#"{{"left_out": [{{"what": "everything", "why": "the measured peers are written for x86_64"}}]}}"#);
    Ok(())
}
