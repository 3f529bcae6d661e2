//! Packs the relative relocations of the executable (DT_RELR): half a megabyte less in the memory of every sidecar, which the
//! loader would otherwise read once and nobody ever again.
//!
//! The loader has to know them, which glibc does from 2.36 on; a binary that has them says so and does not start with an
//! older one. So they are packed only where the executable is built for a machine like this one, and this one can.

use std::{env, process::Command};

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    let of = |name| env::var(name).unwrap_or_default();
    let (target, host) = (of("TARGET"), of("HOST"));
    if target == host && target.ends_with("-linux-gnu") && glibc() >= Some((2, 36)) {
        println!("cargo:rustc-link-arg-bins=-Wl,-z,pack-relative-relocs");
    }
}

/// `glibc 2.36` is (2, 36).
fn glibc() -> Option<(u32, u32)> {
    let output = Command::new("getconf").arg("GNU_LIBC_VERSION").output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    let (major, minor) = text.trim().strip_prefix("glibc ")?.split_once('.')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}
