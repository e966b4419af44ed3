//! The test cases: `guests cases` lists them with the end that each must have, `guests run NAME` runs one, `guests long NAME`
//! without a bound in time, `guests attacks` lists the attacks, `guests crash KIND [OPTION]...` shows a crash to whoever takes
//! dumps (`guests crashes` lists the kinds), `guests injected` lives a sandbox's life for whoever has calls fail. As PID 1 it
//! runs them all, for QEMU.

#![no_std]
#![no_main]

mod cases;
mod init;

use cases::{CASES, End};
use freestanding::{Args, exit, println};

freestanding::start!(main);

fn main(args: Args) {
    if ascetic::sys::pids().0 == 1 {
        init::run(args);
    }
    match args.get(1) {
        "cases" => CASES.iter().for_each(|case| println!("{} {}", case.name, case.end)),
        "attacks" => cases::attacks::print(),
        // A seed, how many calls, and the parts of it (`live::Feature`).
        "live" => {
            let number = |i: usize, default| args.get(i).parse().unwrap_or(default);
            let all = u64::from(cases::live::Feature::ALL);
            cases::live::fuzz(number(2, 1), number(3, 100_000), number(4, all) as u32, None);
        }
        // The kernel runs it so, in QEMU.
        "save-core" => cases::save_core(),
        "crash" => cases::crash(args.get(2), (3..).map(|i| args.get(i))),
        "crashes" => cases::crashes(),
        // `silent` takes the defence out that it shows.
        "injected" => cases::injected(args.get(2) == "silent"),
        how @ ("run" | "long") => match CASES.iter().find(|case| case.name == args.get(2)) {
            Some(case) => {
                if how == "long" {
                    cases::make_long();
                }
                (case.run)();
                if case.name.ends_with("shows_it") {
                    cases::end_children();
                } else if cases::has_children() {
                    println!("left a child");
                    exit(1)
                }
                match case.end {
                    End::Exit(0) => exit(0),
                    end => {
                        println!("came back, and should have ended with {end}");
                        exit(1)
                    }
                }
            }
            None => {
                println!("no case {}", args.get(2));
                exit(2)
            }
        },
        _ => {
            println!("usage: guests cases | run NAME | long NAME");
            exit(2)
        }
    }
}
