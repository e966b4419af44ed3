//! Checks that keep code and documents in step.

use std::fs;
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::host::{self, Arch};
use crate::symbols::Program;
use crate::{cache, i686, root};

/// Checks that cargo makes: what for, and the arguments.
pub const CARGO: [(&str, &[&str]); 3] = [
    ("format", &["fmt", "--all", "--check"]),
    ("clippy", &["clippy", "--quiet", "--workspace", "--all-targets", "--", "-D", "warnings"]),
    ("documentation", &["doc", "--quiet", "--workspace", "--no-deps", "--document-private-items"]),
];

/// Runs cargo; warnings of rustdoc are errors.
///
/// # Errors
/// With what cargo said.
pub fn cargo(args: &[&str]) -> Result<()> {
    host::run(Command::new("cargo").current_dir(root()).env("RUSTDOCFLAGS", "-D warnings").args(args)).map(drop)
}

/// `arch/x86` and `arch/x86_64` hold the same files.
///
/// # Errors
/// Naming the files.
pub fn parity() -> Result<()> {
    let list = |dir: &str| -> Result<Vec<String>> {
        let entries = fs::read_dir(root().join("arch").join(dir))?;
        let mut names: Vec<_> =
            entries.map(|e| Ok(e?.file_name().to_string_lossy().into_owned())).collect::<Result<_>>()?;
        names.sort();
        Ok(names)
    };
    let (a, b) = (list("x86")?, list("x86_64")?);
    ensure!(a == b, "arch/x86 has {a:?}, arch/x86_64 has {b:?}");
    Ok(())
}

/// Relative links of the documents, and the paths in backquotes that look like files of the tree, exist.
///
/// # Errors
/// Naming the document and the link.
pub fn links() -> Result<()> {
    for name in [
        "README.md",
        "ARCHITECTURE.md",
        "SECURITY.md",
        "CHANGELOG.md",
        "docs/fault-record.md",
        "docs/attacks.md",
        "docs/fuzzing.md",
        "docs/kernels.md",
    ] {
        let text = fs::read_to_string(root().join(name)).with_context(|| name.to_owned())?;
        let folder = root().join(name).parent().map(ToOwned::to_owned).unwrap_or_default();
        for target in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            let target = target.split('#').next().unwrap_or("");
            ensure!(target.contains("://") || folder.join(target).exists(), "{name}: {target} is not there");
        }
        let tops = ["src/", "arch/", "linker/", "tests/", "tools/", "xtask/", "examples/", "benches/", "docs/"];
        for path in text.split('`').skip(1).step_by(2).filter(|path| tops.iter().any(|top| path.starts_with(top))) {
            let plain = path.split(['*', '{', '<', ' ', ':']).next().unwrap_or("");
            ensure!(root().join(plain).exists(), "{name}: `{path}` is not there");
        }
    }
    Ok(())
}

/// The runtime and its C interface compile with the oldest Rust that it promises, for both targets.
///
/// # Errors
/// That compiler cannot be had, or does not take the code.
pub fn oldest_rust() -> Result<()> {
    let toolchain = i686::rustc_185(&cache())?;
    for arch in [Arch::X86_64, Arch::I686] {
        let mut cargo = toolchain.cargo(&[]);
        host::run(cargo.current_dir(root()).args([
            "check",
            "--quiet",
            "--package",
            "ascetic",
            "--package",
            "ascetic-c",
            "--target",
            arch.triple(),
        ]))
        .with_context(|| format!("Rust {} for {arch}", toolchain.release))?;
    }
    Ok(())
}

/// A policy with a call that may not be direct does not compile, and the compiler says which call and why.
///
/// # Errors
/// It compiles, or the message is another.
pub fn refused_policy() -> Result<()> {
    let crate_dir = tempfile::tempdir()?;
    let write = |name: &str, text: &str| fs::write(crate_dir.path().join(name), text);
    let dependency = format!("ascetic = {{ path = {:?} }}", root());
    write(
        "Cargo.toml",
        &format!("[package]\nname = \"refused\"\nedition = \"2024\"\n[dependencies]\n{dependency}\n[workspace]\n"),
    )?;
    fs::create_dir(crate_dir.path().join("src"))?;
    // The same versions as here, so that nothing is downloaded.
    fs::copy(root().join("Cargo.lock"), crate_dir.path().join("Cargo.lock"))?;
    let check = |call: &str| -> Result<String> {
        let policy = format!("ascetic::policy::Policy::new().direct(ascetic::sys::Sysno::{call})");
        write(
            "src/main.rs",
            &format!("const P: ascetic::policy::Policy = {policy};\nfn main() {{ println!(\"{{P:?}}\"); }}\n"),
        )?;
        let target = cache().join("refused");
        let mut cargo = Command::new("cargo");
        let output =
            cargo.current_dir(crate_dir.path()).env("CARGO_TARGET_DIR", target).args(["check", "--quiet"]).output()?;
        ensure!(output.status.success() == output.stderr.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
        Ok(String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let allowed = check("getppid")?;
    ensure!(allowed.is_empty(), "a policy with getppid does not compile: {allowed}");
    for (call, why) in [
        ("kill", "`kill` may not be a direct call: it can create, stop or signal tasks"),
        ("mprotect", "`mprotect` may not be a direct call: it changes mappings"),
        ("openat", "`openat` may not be a direct call: its decision needs memory"),
    ] {
        let errors = check(call)?;
        ensure!(errors.contains(why), "expected `{why}`, got: {errors}");
    }
    Ok(())
}

/// An ordinary program links with `linker/trusted.ld` beside the default script, and T's code then has its own page.
///
/// # Errors
/// It does not.
pub fn layered_script() -> Result<()> {
    let script = format!("-Clink-arg=-Wl,-T,{}", root().join("linker/trusted.ld").display());
    let target = cache().join("layered");
    let mut cargo = Command::new("cargo");
    cargo.current_dir(root()).env("CARGO_TARGET_DIR", &target);
    host::run(cargo.args(["rustc", "--quiet", "--example", "embed", "--", &script]))?;
    let program = target.join("debug/examples/embed");
    let (at, code) = Program::read(&program)?.section("ascetic_trusted")?;
    ensure!(at % 4096 == 0 && !code.is_empty() && code.len() <= 4096, "{} bytes at {at:#x}", code.len());
    let text = host::run(&mut Command::new(&program))?;
    ensure!(text.contains("well behaved: exit status 42"), "it does not run: {text}");
    Ok(())
}
