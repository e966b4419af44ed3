//! Links the programs freestanding: no libc, no start files, our script.

fn main() {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/../../linker/freestanding.ld");
    println!("cargo:rerun-if-changed={script}");
    for arg in ["-nostdlib", "-nostartfiles", "-static", "-no-pie", "-Wl,--build-id", "-Wl,-z,noexecstack"] {
        println!("cargo:rustc-link-arg-bins={arg}");
    }
    if std::env::var("CARGO_CFG_TARGET_ARCH").as_deref() == Ok("x86") {
        println!("cargo:rustc-link-arg-bins=-m32");
    }
    println!("cargo:rustc-link-arg-bins=-Wl,-T,{script}");
}
