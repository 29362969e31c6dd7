//! Apart from its starter: in which unit of the user's service manager a daemon is started.
//!
//! Owns: what there is to be started in, what is chosen of it, the words of the programs that do it. May not know: how a daemon is
//! waited for, what it is started with.
//!
//! A process that only leaves its session stays in the control group of whoever started it, and ends when that is ended as a
//! whole: a terminal's, a login's. One that is in a unit of its own does not.
//!
//! Invariants: (1) the programs are looked for in fixed directories of the system, and nowhere a caller names; (2) where nothing is
//! to be had, or what is chosen fails, the daemon is started as it is without any of this.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use crate::agents::Environment;

/// Where the system's own programs lie.
const PLACES: [&str; 3] = ["/usr/bin", "/bin", "/run/current-system/sw/bin"];

/// By this line a unit of ours is known.
pub const UNIT_MARK: &str = "Written by `phone-opus daemon install`";

/// The installed unit.
pub const SERVICE: &str = "phone-opus.service";

/// A unit's file is a kilobyte.
const FILE: u64 = 64 * 1024;

/// What there is to be started in.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct UnitChances {
    /// The user's own service manager can be reached.
    pub manager: bool,
    /// A unit of ours is installed that serves this state directory.
    pub unit: bool,
    /// The program that starts units.
    pub systemctl: Option<PathBuf>,
    /// The program that runs another one in a unit of its own.
    pub systemd_run: Option<PathBuf>,
}

/// In what a daemon is started.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Apart {
    /// As the installed unit, by this program.
    Unit(PathBuf),
    /// In a scope of its own, by this program.
    Scope(PathBuf),
    /// In its starter's, because of this.
    Starters(&'static str),
}

impl UnitChances {
    /// As they are for somebody with this environment; a daemon that is to be started otherwise than the unit says is `special`.
    #[must_use]
    pub fn look(environment: &Environment, state_dir: &Path, special: bool) -> Self {
        Self::look_in(&PLACES.map(PathBuf::from), environment, state_dir, special)
    }

    /// The same, with the system's programs in these directories.
    #[must_use]
    pub fn look_in(places: &[PathBuf], environment: &Environment, state_dir: &Path, special: bool) -> Self {
        let absolute = |name| environment.get(name).map(PathBuf::from).filter(|path| path.is_absolute());
        let runtime = absolute("XDG_RUNTIME_DIR");
        let manager = runtime.is_some_and(|dir| dir.join("systemd/private").exists() || dir.join("bus").exists());
        if !manager {
            return Self::default();
        }
        let program = |name: &str| places.iter().map(|place| place.join(name)).find(|path| path.is_file());
        let config = absolute("XDG_CONFIG_HOME").or_else(|| absolute("HOME").map(|home| home.join(".config")));
        let unit = config.map(|dir| dir.join("systemd/user").join(SERVICE)).filter(|_| !special);
        let unit = unit.and_then(|path| read(&path)).is_some_and(|text| serves(&text, state_dir));
        Self { manager, unit, systemctl: program("systemctl"), systemd_run: program("systemd-run") }
    }
}

fn read(path: &Path) -> Option<String> {
    let found = std::fs::metadata(path).ok()?;
    (found.is_file() && found.len() <= FILE).then(|| std::fs::read_to_string(path).ok())?
}

/// Whether a unit's file is ours, and of this state directory.
fn serves(text: &str, state_dir: &Path) -> bool {
    let of_this = state_dir.to_str().is_some_and(|dir| text.contains(&format!("--state-dir \"{dir}\"\n")));
    text.contains(UNIT_MARK) && of_this
}

/// What is chosen: the installed unit before a scope, and either before the starter's own.
#[must_use]
pub fn choose(there: &UnitChances) -> Apart {
    match there {
        UnitChances { manager: false, .. } => Apart::Starters("no systemd of the user can be reached"),
        UnitChances { unit: true, systemctl: Some(program), .. } => Apart::Unit(program.clone()),
        UnitChances { systemd_run: Some(program), .. } => Apart::Scope(program.clone()),
        UnitChances { systemd_run: None, .. } => Apart::Starters("systemd-run is not installed"),
    }
}

/// The words that start the unit.
#[must_use]
pub fn unit_words() -> Vec<OsString> {
    ["--user", "--quiet", "start", SERVICE].map(OsString::from).into()
}

/// The words before a command that is run in a scope of its own, which goes when its last process does.
#[must_use]
pub fn scope_words() -> Vec<OsString> {
    ["--user", "--scope", "--collect", "--quiet", "--description=phone-opus daemon", "--"].map(OsString::from).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_installed_unit_goes_before_a_scope_and_either_before_the_starters_own() {
        let (control, run) = (PathBuf::from("/usr/bin/systemctl"), PathBuf::from("/usr/bin/systemd-run"));
        let no_manager = Apart::Starters("no systemd of the user can be reached");
        let no_program = Apart::Starters("systemd-run is not installed");
        for (manager, unit, systemctl, systemd_run, expected) in [
            (true, true, true, true, Apart::Unit(control.clone())),
            (true, true, true, false, Apart::Unit(control.clone())),
            (true, true, false, true, Apart::Scope(run.clone())),
            (true, false, true, true, Apart::Scope(run.clone())),
            (true, false, true, false, no_program.clone()),
            (true, true, false, false, no_program),
            (false, true, true, true, no_manager.clone()),
            (false, false, false, false, no_manager),
        ] {
            let there = UnitChances {
                manager,
                unit,
                systemctl: systemctl.then(|| control.clone()),
                systemd_run: systemd_run.then(|| run.clone()),
            };
            assert_eq!(choose(&there), expected, "{there:?}");
        }
    }

    #[test]
    fn what_is_there_is_seen_where_it_lies_and_a_strangers_unit_is_none() {
        let scratch = tempfile::tempdir().expect("a directory");
        let (runtime, config, bin) =
            (scratch.path().join("run"), scratch.path().join("config"), scratch.path().join("bin"));
        for dir in [runtime.join("systemd"), config.join("systemd/user"), bin.clone()] {
            std::fs::create_dir_all(dir).expect("made");
        }
        let state = Path::new("/home/me/.local/state/phone_opus");
        let environment: Environment =
            [("XDG_RUNTIME_DIR", &runtime), ("XDG_CONFIG_HOME", &config), ("PATH", &bin)].into_iter().collect();
        let look = |special| UnitChances::look_in(std::slice::from_ref(&bin), &environment, state, special);
        assert_eq!(look(false), UnitChances::default());
        std::fs::write(runtime.join("systemd/private"), "").expect("written");
        std::fs::write(bin.join("systemd-run"), "").expect("written");
        let scope = UnitChances { manager: true, systemd_run: Some(bin.join("systemd-run")), ..UnitChances::default() };
        assert_eq!(look(false), scope);
        let service = config.join("systemd/user").join(SERVICE);
        let ours = format!("# {UNIT_MARK}\nExecStart=\"/x\" daemon run --state-dir \"{}\"\n", state.display());
        for (text, unit) in [
            (ours.clone(), true),
            (ours.replace(UNIT_MARK, "mine"), false),
            (ours.replace("/phone_opus\"", "/other\""), false),
            ("x".repeat(70_000), false),
        ] {
            std::fs::write(&service, text).expect("written");
            assert_eq!(look(false).unit, unit);
        }
        std::fs::write(&service, ours).expect("written");
        assert!(!look(true).unit, "the unit has none of its options");
        // Nobody is asked where the programs lie.
        let elsewhere = UnitChances::look_in(&[], &environment, state, false);
        assert_eq!((elsewhere.systemd_run, elsewhere.systemctl), (None, None));
    }
}
