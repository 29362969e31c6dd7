//! Tells the linker how a server is to be loaded, where it is the usual one: which functions to put side by side
//! (`linker/hot.ld`), what the loader has to do, and that nothing is loaded only for unwinding.
//!
//! A server then takes less memory and starts sooner; nothing depends on it. Left out for debug builds, for other systems,
//! and where a linker of one's own choice may not know what is asked of it.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

/// The order of functions.
const ORDER: &str = "linker/hot.ld";

/// What a C library says of itself whose loader reads packed relocations. The linker demands it by this name, so that an
/// older one refuses the program.
const READS_PACKED: &[u8] = b"GLIBC_ABI_DT_RELR";

/// Where the linker writes what it put where, if this is set: what `linker/hot_functions.py` reads.
const MAPS: &str = "PHONE_OPUS_LINK_MAPS";

/// The programs there is an order for.
const PROGRAMS: [&str; 2] = ["phone-opus", "bench_phone_opus"];

/// What unwinds, to be linked in.
const UNWINDER: &str = "libgcc_eh.a";

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
    if !usual || chosen {
        return;
    }
    let root = env::var("CARGO_MANIFEST_DIR").unwrap_or_default();
    let order = Path::new(&root).join(ORDER);
    if order.is_file() && can_be_passed(&order) {
        println!("cargo::rustc-link-arg-bins=-Wl,-T,{}", order.display());
    }
    println!("cargo::rerun-if-env-changed={MAPS}");
    if let Some(maps) = env::var_os(MAPS).map(PathBuf::from).filter(|maps| can_be_passed(maps)) {
        for program in PROGRAMS {
            println!("cargo::rustc-link-arg-bin={program}=-Wl,-Map={}.map", maps.join(program).display());
        }
    }
    // What is built for another machine is run by a C library that is not here to be asked.
    if env::var("HOST") == env::var("TARGET") {
        if reads_packed_relocations() {
            println!("cargo::rustc-link-arg-bins=-Wl,-z,pack-relative-relocs");
        }
        if let Some(dir) = unwinder_within().filter(|dir| can_be_passed(dir)) {
            println!("cargo::rustc-link-arg-bins=-L{}", dir.display());
        }
    }
}

/// The compiler's driver splits what it hands to the linker at commas.
fn can_be_passed(path: &Path) -> bool {
    !path.to_string_lossy().contains(',')
}

/// Whether the C library of this machine, which this program is run by as well, reads packed relocations.
fn reads_packed_relocations() -> bool {
    let maps = fs::read_to_string("/proc/self/maps").unwrap_or_default();
    let library =
        maps.lines().filter_map(|line| line.split_whitespace().nth(5)).find(|path| path.ends_with("/libc.so.6"));
    let library = library.and_then(|path| fs::read(path).ok()).unwrap_or_default();
    library.windows(READS_PACKED.len()).any(|window| window == READS_PACKED)
}

/// A directory in which the linker finds, by the name of the shared library that the standard library asks for, the static one.
/// Nothing else of that library is used, and loading it is a twentieth of a start.
fn unwinder_within() -> Option<PathBuf> {
    let found = Command::new("cc").arg(format!("-print-file-name={UNWINDER}")).output().ok()?;
    // What is not found is named as it was asked for.
    let there = Path::new(String::from_utf8(found.stdout).ok()?.trim()).is_absolute();
    let dir = Path::new(&env::var_os("OUT_DIR")?).join("unwinder");
    fs::create_dir_all(&dir).ok()?;
    fs::write(dir.join("libgcc_s.so"), "INPUT(-lgcc_eh)\n").ok()?;
    there.then_some(dir)
}
