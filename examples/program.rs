//! An ordinary program as guest: after `enter`, std's files, threads and output are brokered calls.
//!
//! `cargo run --example program`

use ascetic::policy::{Policy, Rights};
use ascetic::sandbox::{self, Config};

const POLICY: Policy =
    Policy::new().ordinary().memory().threads(8).root(c"/usr/share", Rights::READ).file(c"/etc/hostname", Rights::READ);

fn main() -> Result<(), ascetic::error::Error> {
    let config = Config { keep: &[0, 1, 2], dispatch: true, ..Config::new(&POLICY) };
    sandbox::enter(&config)?;
    // From here on this is a guest in strict mode. What follows is ordinary code.
    match std::fs::read_to_string("/etc/hostname") {
        Ok(name) => println!("allowed: /etc/hostname says {}", name.trim()),
        Err(error) => println!("/etc/hostname: {error}"),
    }
    println!("refused: /etc/shadow: {}", std::fs::read("/etc/shadow").expect_err("it is not below a root"));
    let folders = std::fs::read_dir("/usr/share").map(Iterator::count);
    println!("allowed: /usr/share has entries: {}", folders.is_ok_and(|n| n > 0));
    let sums: Vec<_> = (0..4u64).map(|i| std::thread::spawn(move || (0..1000 * i).sum::<u64>())).collect();
    let sums: Vec<u64> = sums.into_iter().map(|sum| sum.join().expect("a thread")).collect();
    println!("threads: {sums:?}");
    Ok(())
}
