//! `daemon install` and `daemon uninstall`: files for systemd or launchd.
//!
//! Owns: what is written where, and what has to be done then. May not know: how a daemon is activated.
//!
//! Invariants: (1) without `--write` nothing is touched: what would be is shown; (2) a file is there whole or not at all, and a
//! file of the same name that we did not write stays.

use std::fs;
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use phone_opus::internals::base::state_dir::StateDir;
use phone_opus::internals::daemon::apart::UNIT_MARK;
use phone_opus::internals::daemon::paths::LONGEST;
use serde_json::{Value, json};

use crate::cli::DaemonInstallOptions;
use crate::output::{print, print_json, say};
use crate::settings::{refused, rollout_with, state_dir};

/// One file.
struct Unit {
    name: &'static str,
    text: &'static str,
}

#[cfg(not(target_os = "macos"))]
const UNITS: [Unit; 2] = [
    Unit { name: "phone-opus.socket", text: include_str!("../../../../packaging/systemd/phone-opus.socket") },
    Unit { name: "phone-opus.service", text: include_str!("../../../../packaging/systemd/phone-opus.service") },
];
#[cfg(target_os = "macos")]
const UNITS: [Unit; 1] =
    [Unit { name: "phone-opus.plist", text: include_str!("../../../../packaging/launchd/phone-opus.plist") }];

/// What has to be done after the files were written.
const BEGIN: &str = if cfg!(target_os = "macos") {
    "launchctl bootstrap gui/$(id -u) ~/Library/LaunchAgents/phone-opus.plist"
} else {
    "systemctl --user daemon-reload && systemctl --user enable --now phone-opus.socket"
};

/// What has to be done before they are removed.
const END: &str = if cfg!(target_os = "macos") {
    "launchctl bootout gui/$(id -u)/phone-opus"
} else {
    "systemctl --user disable --now phone-opus.socket phone-opus.service"
};

/// Why nothing is installed.
#[derive(Debug, thiserror::Error)]
enum InstallError {
    /// Nothing says where it belongs.
    #[error("find the user's directory for units: neither XDG_CONFIG_HOME nor HOME is set; name it with --to")]
    NoDirectory,
    /// The program cannot be named.
    #[error("name this program's file; start it by its path")]
    NoProgram,
    /// What a unit's file cannot hold.
    #[error("write {} into a unit's file: it has characters that mean something there", .0.display())]
    Unwritable(PathBuf),
    /// A socket's path is short.
    #[error("listen at {}: the path has {} bytes, and a socket's at most {LONGEST}; choose a shorter --state-dir",
        .0.display(), .0.as_os_str().len())]
    TooLong(PathBuf),
    /// Somebody else's.
    #[error("replace {}: it is no file that `phone-opus daemon install` has written", .0.display())]
    Foreign(PathBuf),
    /// The system refused.
    #[error("write {}: {source}", path.display())]
    Io { path: PathBuf, source: io::Error },
}

/// A file as it is to be.
struct File {
    path: PathBuf,
    text: String,
}

/// Shows the files, or writes them.
pub(super) fn install(options: &DaemonInstallOptions) -> ExitCode {
    let dir = match state_dir(&options.common) {
        Ok(dir) => dir,
        Err(error) => return refused(&error),
    };
    let done = files(options, &dir).and_then(|files| {
        for file in &files {
            is_ours(&file.path)?;
        }
        if options.write {
            // The socket's directory has to be there and closed to others before anything listens in it.
            dir.create()
                .map_err(|error| InstallError::Io { path: dir.root().to_owned(), source: io::Error::other(error) })?;
            files.iter().try_for_each(write)?;
        }
        Ok(files)
    });
    match done {
        Ok(files) if options.json => {
            let files: Vec<Value> =
                files.iter().map(|file| json!({"path": file.path.display().to_string(), "text": file.text})).collect();
            print_json(json!({"written": options.write, "files": files, "then": BEGIN}));
            ExitCode::SUCCESS
        }
        Ok(files) => {
            for file in &files {
                let did = if options.write { "written" } else { "would be written" };
                print(&format!("# {} ({did})\n{}", file.path.display(), file.text));
            }
            let next = if options.write { "Now" } else { "With --write, and then" };
            print(&format!("# {next}: {BEGIN}"));
            ExitCode::SUCCESS
        }
        Err(error) => failed(&error),
    }
}

/// Shows what would be removed, or removes it.
pub(super) fn uninstall(options: &DaemonInstallOptions) -> ExitCode {
    let removed = directory(options).and_then(|to| {
        let mut there = Vec::new();
        for unit in &UNITS {
            let path = to.join(unit.name);
            if fs::symlink_metadata(&path).is_ok() {
                is_ours(&path)?;
                there.push(path);
            }
        }
        if options.write {
            for path in &there {
                fs::remove_file(path).map_err(|source| InstallError::Io { path: path.clone(), source })?;
            }
        }
        Ok(there)
    });
    match removed {
        Ok(there) if options.json => {
            let files: Vec<String> = there.iter().map(|path| path.display().to_string()).collect();
            print_json(json!({"removed": options.write, "files": files, "first": END}));
            ExitCode::SUCCESS
        }
        Ok(there) => {
            for path in &there {
                print(&format!("{} ({})", path.display(), if options.write { "removed" } else { "would be removed" }));
            }
            if there.is_empty() {
                print("nothing of ours is there");
            } else if !options.write {
                print(&format!("# First: {END}\n# then the same with --write"));
            }
            ExitCode::SUCCESS
        }
        Err(error) => failed(&error),
    }
}

fn failed(error: &InstallError) -> ExitCode {
    say(&format!("phone-opus: failed to {error}"));
    ExitCode::FAILURE
}

/// Where the files lie.
fn directory(options: &DaemonInstallOptions) -> Result<PathBuf, InstallError> {
    let user = || {
        if cfg!(target_os = "macos") {
            dirs::home_dir().map(|home| home.join("Library/LaunchAgents"))
        } else {
            dirs::config_dir().map(|dir| dir.join("systemd/user"))
        }
    };
    options.to.clone().or_else(user).ok_or(InstallError::NoDirectory)
}

/// The files as they are to be.
fn files(options: &DaemonInstallOptions, dir: &StateDir) -> Result<Vec<File>, InstallError> {
    let to = directory(options)?;
    let program = rollout_with(Vec::new()).map(|setup| setup.launch.path).ok_or(InstallError::NoProgram)?;
    let socket = dir.daemon_socket();
    if socket.as_os_str().len() > LONGEST {
        return Err(InstallError::TooLong(socket));
    }
    let (program, state, socket) = (plain(&program)?, plain(dir.root())?, plain(&socket)?);
    let fill =
        |text: &str| text.replace("@PROGRAM@", &program).replace("@STATE_DIR@", &state).replace("@SOCKET@", &socket);
    Ok(UNITS.iter().map(|unit| File { path: to.join(unit.name), text: fill(unit.text) }).collect())
}

/// A path that means in such a file what it is.
fn plain(path: &Path) -> Result<String, InstallError> {
    let harmless = |c: char| c.is_alphanumeric() || "/._-+,@:=~ ".contains(c);
    match path.to_str() {
        // systemd reads `%` and `$`, and cuts at spaces unless it is quoted, as it is; a property list reads `<` and `&`.
        Some(text) if text.chars().all(harmless) => Ok(text.to_owned()),
        _ => Err(InstallError::Unwritable(path.to_owned())),
    }
}

/// Whether what has the name may be replaced or removed.
fn is_ours(path: &Path) -> Result<(), InstallError> {
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(source) => Err(InstallError::Io { path: path.to_owned(), source }),
        Ok(found) if found.is_file() && fs::read_to_string(path).is_ok_and(|text| text.contains(UNIT_MARK)) => Ok(()),
        Ok(_) => Err(InstallError::Foreign(path.to_owned())),
    }
}

/// Writes a file whole, by its new name first.
fn write(file: &File) -> Result<(), InstallError> {
    let io = |source| InstallError::Io { path: file.path.clone(), source };
    let dir = file.path.parent().unwrap_or(&file.path);
    fs::create_dir_all(dir).map_err(io)?;
    let mut new = file.path.clone().into_os_string();
    new.push(format!(".new-{}", std::process::id()));
    let written = fs::OpenOptions::new().write(true).create_new(true).mode(0o644).open(&new).and_then(|mut opened| {
        opened.write_all(file.text.as_bytes())?;
        opened.sync_all()?;
        fs::rename(&new, &file.path)
    });
    written.map_err(|error| {
        let _ = fs::remove_file(&new);
        io(error)
    })
}
