//! `ascetic-dump receive`: makes its socket, and hears nobody but the kernel. What the kernel sends, `tests/ways` shows in QEMU.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};

#[test]
fn who_has_not_crashed_is_not_heard() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("socket");
    let mut receiver = Command::new(env!("CARGO_BIN_EXE_ascetic-dump"))
        .args(["receive", "--socket"])
        .arg(&socket)
        .arg("--out")
        .arg(folder.path())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(receiver.stdout.take().unwrap()).read_line(&mut line).unwrap();
    assert_eq!(line, "ready\n");
    assert_eq!(socket.metadata().unwrap().permissions().mode() & 0o777, 0o600);
    let mut forger = UnixStream::connect(&socket).unwrap();
    // Nobody may be left to take it.
    let _ = forger.write_all(b"\x7fELF");
    let mut error = String::new();
    BufReader::new(receiver.stderr.take().unwrap()).read_line(&mut error).unwrap();
    receiver.kill().unwrap();
    receiver.wait().unwrap();
    let expected = format!("process {}: the kernel does not say that it dumps core", std::process::id());
    assert!(error.contains(&expected) || error.contains("SO_PEERPIDFD"), "{error}");
    assert_eq!(folder.path().read_dir().unwrap().count(), 1, "nothing but the socket");
}
