//! The programs a test tries, and whose files they are.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use crate::agents::{AgentProfile, Environment, find_program};

/// The program a test tries: the one it was built with, or the one `PHONE_OPUS_TEST_PROGRAM` names, such as a released one.
/// In an integration test: `Rig::new(tried_program(env!("CARGO_BIN_EXE_phone-opus")))`. A crate that has none of its own asks
/// [`installed_program`].
#[must_use]
pub fn tried_program(built: impl Into<PathBuf>) -> PathBuf {
    std::env::var_os("PHONE_OPUS_TEST_PROGRAM").map_or_else(|| built.into(), PathBuf::from)
}

/// The program a crate tries that builds none: the one `PHONE_OPUS_TEST_PROGRAM` names, else `phone-opus` on PATH.
///
/// # Panics
///
/// When there is neither; it says what to do.
#[must_use]
pub fn installed_program() -> PathBuf {
    let on_path = || {
        let profile = AgentProfile::new("phone-opus");
        find_program(OsStr::new("phone-opus"), &Environment::capture(), &profile).ok()
    };
    let named = std::env::var_os("PHONE_OPUS_TEST_PROGRAM").map(PathBuf::from);
    named.or_else(on_path).unwrap_or_else(|| {
        panic!("no program to try: name one by PHONE_OPUS_TEST_PROGRAM, or put phone-opus on PATH (cargo install phone-opus)")
    })
}

/// Gives a file or a directory to another user and group. False where this user may not: a test then says what it skips.
#[must_use]
pub fn give_away(path: &Path, user: u32, group: u32) -> bool {
    std::os::unix::fs::chown(path, Some(user), Some(group)).is_ok()
}

/// Gives everything below a directory to this user; a link itself, not what it names.
pub(super) fn own(root: &Path, user: u32) {
    std::os::unix::fs::lchown(root, Some(user), Some(user)).expect("it may be given away");
    if !root.is_symlink() && root.is_dir() {
        for entry in std::fs::read_dir(root).expect("a directory").flatten() {
            own(&entry.path(), user);
        }
    }
}
