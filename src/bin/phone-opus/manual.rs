//! `man`: the manual pages, from the same words as the help. Packages run it when they are made.

use std::path::Path;
use std::process::ExitCode;

use clap::CommandFactory as _;

use crate::cli::Cli;
use crate::output::{print, say};

/// Writes a page for each command.
pub(crate) fn write(dir: &Path) -> ExitCode {
    match clap_mangen::generate_to(Cli::command(), dir) {
        Ok(()) => {
            print(&format!("The manual pages are in {}.", dir.display()));
            ExitCode::SUCCESS
        }
        Err(error) => {
            say(&format!("phone-opus: failed to write the manual pages into {}: {error}", dir.display()));
            ExitCode::FAILURE
        }
    }
}
