//! Packages: source of others, as cargo fetches it.
//!
//! Owns: which versions. May not know: what is asked about them.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::Value;

/// Name and version of each, so that a place that was right stays right.
const PACKAGES: [(&str, &str); 2] = [("fd-find", "10.3.0"), ("libssh2-sys", "0.3.1")];
/// The one of them that another package can depend on.
const LIBRARY: &str = "libssh2-sys";

/// Where each package's files are, fetched by a scratch project that depends on them. Nothing of it is built or run.
pub(crate) fn fetch(scratch: &Path) -> Result<BTreeMap<&'static str, PathBuf>, String> {
    let wanted: String = PACKAGES.iter().map(|(name, version)| format!("{name} = \"={version}\"\n")).collect();
    let manifest =
        format!("[package]\nname = \"scratch\"\n[lib]\npath = \"lib.rs\"\n[dependencies]\n{wanted}[workspace]\n");
    std::fs::write(scratch.join("Cargo.toml"), manifest).map_err(|error| error.to_string())?;
    std::fs::write(scratch.join("lib.rs"), "").map_err(|error| error.to_string())?;
    // What other platforms need is left where it is.
    let rustc = output(scratch, "RUSTC", "rustc", &["-vV"])?;
    let host = rustc.lines().find_map(|line| line.strip_prefix("host: ")).ok_or("rustc names no host")?;
    output(scratch, "CARGO", "cargo", &["fetch", "--target", host])?;
    let words = ["metadata", "--format-version", "1", "--filter-platform", host];
    let found: Value =
        serde_json::from_str(&output(scratch, "CARGO", "cargo", &words)?).map_err(|error| error.to_string())?;
    // A program is no dependency, so cargo fetches it and does not speak of it any more: it lies beside the library.
    let packages = found["packages"].as_array().map(Vec::as_slice).unwrap_or_default();
    let library = packages.iter().find(|package| package["name"] == LIBRARY);
    let manifest = library.and_then(|package| package["manifest_path"].as_str()).map(Path::new);
    let beside = manifest
        .and_then(|path| path.parent()?.parent())
        .ok_or_else(|| format!("cargo names no place for {LIBRARY}"))?;
    PACKAGES
        .into_iter()
        .map(|(name, version)| {
            let dir = beside.join(format!("{name}-{version}"));
            if dir.is_dir() { Ok((name, dir)) } else { Err(format!("{name} {version} is not where cargo unpacks")) }
        })
        .collect()
}

fn output(dir: &Path, variable: &str, program: &str, words: &[&str]) -> Result<String, String> {
    let program = std::env::var_os(variable).unwrap_or_else(|| program.into());
    let output = Command::new(&program).args(words).current_dir(dir).stdin(Stdio::null()).output();
    let output = output.map_err(|error| format!("{} does not run: {error}", program.display()))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(said.lines().find(|line| line.starts_with("error")).unwrap_or("it failed").to_owned())
}
