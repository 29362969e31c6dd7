//! Tells the linker which functions to put side by side (`linker/hot.ld`), where it is the usual one.
//!
//! A server then takes less memory and starts sooner; nothing depends on it. Left out for debug builds, for other systems,
//! and where a linker of one's own choice may not know what is asked of it.

use std::env;
use std::path::Path;

/// The order of functions.
const ORDER: &str = "linker/hot.ld";

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    // A package goes without it, and what is not there would count as changed each time.
    if Path::new(ORDER).exists() {
        println!("cargo::rerun-if-changed={ORDER}");
    }
    let is = |name: &str, value: &str| env::var(name).is_ok_and(|found| found == value);
    let usual = is("CARGO_CFG_TARGET_OS", "linux")
        && is("CARGO_CFG_TARGET_ENV", "gnu")
        && is("CARGO_CFG_TARGET_ARCH", "x86_64")
        && is("PROFILE", "release");
    let flags = env::var("CARGO_ENCODED_RUSTFLAGS").unwrap_or_default();
    let chosen = env::var_os("RUSTC_LINKER").is_some() || flags.contains("link");
    let root = env::var("CARGO_MANIFEST_DIR").unwrap_or_default();
    let order = Path::new(&root).join(ORDER);
    // The compiler's driver splits what it hands to the linker at commas.
    let passes = order.is_file() && !order.to_string_lossy().contains(',');
    if usual && !chosen && passes {
        println!("cargo::rustc-link-arg-bins=-Wl,-T,{}", order.display());
    }
}
