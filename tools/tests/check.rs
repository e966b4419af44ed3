//! The program: what it prints, and its exit status.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

fn check(file: &Path) -> (Option<i32>, String, String) {
    let Output { status, stdout, stderr } =
        Command::new(env!("CARGO_BIN_EXE_ascetic-policy")).arg("check").arg(file).output().expect("it starts");
    (status.code(), String::from_utf8(stdout).expect("UTF-8"), String::from_utf8(stderr).expect("UTF-8"))
}

#[test]
fn a_policy_is_shown() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("policy.toml");
    fs::write(&file, "direct = ['getppid']").unwrap();
    let (status, out, errors) = check(&file);
    assert_eq!((status, errors.as_str()), (Some(0), ""));
    assert!(out.starts_with("direct calls: getppid, clock_gettime\n"), "{out}");
}

#[test]
fn what_is_no_policy_is_told() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("policy.toml");
    let name = file.display();
    for (bytes, expected) in [
        (&b"direct = ['kill']"[..], format!("{name}:1:11: `'kill'`: `kill` may not be a direct call")),
        (b"memory = true\n# \xff", format!("{name}:2:3: a policy is UTF-8, and the next byte is not")),
    ] {
        fs::write(&file, bytes).unwrap();
        let (status, out, errors) = check(&file);
        assert_eq!((status, out.as_str()), (Some(1), ""));
        assert!(errors.starts_with(&expected), "{errors}");
    }
    let missing = folder.path().join("missing");
    let (status, _, errors) = check(&missing);
    assert_eq!(status, Some(1));
    assert!(errors.starts_with(&missing.display().to_string()), "{errors}");
}
