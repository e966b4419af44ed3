//! T's assembly beside a twin in plain Rust ([`twin`]): the same vault, the same requests, verdicts and results of calls
//! ([`world`]), and the same calls and the same mailboxes must come of it.
//!
//! The assembly runs as it is, in a process that is stepped by an instruction at a time ([`machine`]); the calls that it is about
//! to make are not made, but answered by the world. Every instruction must be reached, and every branch both ways.

#![expect(clippy::result_large_err, reason = "both calls are told, and there is nowhere else to put them")]

mod machine;
#[expect(clippy::module_inception, reason = "it is the twin")]
mod twin;
mod world;

use super::*;
use ascetic::sys;
use machine::{Difference, Machine, Reached};
use twin::{Log, Twin};
use world::World;

pub const CASES: &[Case] =
    &[case("twin_of_trusted", agree), case("twin_of_trusted_with_another_branch_shows_it", changed)];

/// Runs both in the world of this seed.
fn compare(seed: u64, world: &mut World, machine: &mut Machine, reached: &mut Reached) -> Result<Log, Difference> {
    world.begin(seed);
    let log = Twin::new(world).live();
    world.begin(seed);
    machine.live(world, &log, reached).map(|()| log)
}

/// They do the same, in as many worlds as there is time for, and at least until all of the code was reached.
fn agree() {
    let (mut world, mut reached) = (World::new(), Reached::new());
    let mut machine = Machine::new(&mut world);
    let start = sys::now();
    let seconds = if is_long() { 60 } else { 2 };
    let (mut worlds, mut calls) = (0u64, 0);
    loop {
        let seed = start.wrapping_add(worlds);
        match compare(seed, &mut world, &mut machine, &mut reached) {
            Ok(log) => calls += log.calls().len(),
            Err(difference) => check!(false, "seed {seed}: {difference}"),
        }
        worlds += 1;
        let (missing, took) = (reached.missing(machine.code(&world)), sys::now() - start);
        // A translated processor takes too long for all of it.
        if took > seconds * 1_000_000_000 && (missing.is_none() || emulated()) {
            break;
        }
        check!(took < 20 * seconds * 1_000_000_000, "{missing:x?}");
    }
    let whole = if reached.missing(machine.code(&world)).is_none() { "" } else { "not " };
    note!(
        "{worlds} worlds, {calls} calls, {} instructions; {whole}all code but ud2, all branches both ways",
        reached.steps
    );
}

/// With any one of its conditions turned round, the difference is seen.
fn changed() {
    if emulated() {
        skip("a translator takes too long for it");
    }
    let (mut world, mut reached) = (World::new(), Reached::new());
    let mut machine = Machine::new(&mut world);
    for seed in 0..500 {
        let same = compare(seed, &mut world, &mut machine, &mut reached);
        check!(same.is_ok(), "seed {seed}: {:?}", same.err());
    }
    let (mut conditions, mut most) = (0, 0);
    for at in reached.conditions() {
        machine.turn_round(&mut world, at);
        let told = (0..2000).find(|seed| compare(*seed, &mut world, &mut machine, &mut Reached::new()).is_err());
        machine.turn_round(&mut world, at);
        check!(told.is_some(), "the condition at {at:#x} can be turned round without a difference");
        conditions += 1;
        most = most.max(told.unwrap_or(0));
    }
    check!(conditions > 30, "{conditions}");
    note!("{conditions} conditions turned round, each told within {} worlds", most + 1);
}
