//! A project's file, which may be anybody's work.
//!
//! Owns: which limits it lowers, and why one is left out. May not know: the other sources.
//!
//! Invariants: (1) it lowers limits, and can neither raise one nor name a program, an agent, a directory, a key or who pays;
//! (2) one that cannot be used is left out whole, which is told with its place and never with its text.

use std::path::Path;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Config, Key};
use crate::checkout::plain::Unusable;

/// The file of a project.
pub const PROJECT_FILE: &str = ".phone-opus.toml";

/// A project's file that was left out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[non_exhaustive]
pub struct LeftOut {
    /// The file.
    pub place: String,
    /// Why, without a word of what is in it.
    pub why: String,
}

impl Config {
    /// Lets a project's file lower limits, or leaves it out and says so.
    #[must_use]
    #[doc(hidden)]
    pub fn lowered(mut self, place: &Path, read: Result<Option<Vec<u8>>, Unusable>) -> Self {
        let limits = match read {
            Ok(None) => return self,
            Ok(Some(bytes)) => limits(&bytes),
            Err(unusable) => Err(unusable.to_string()),
        };
        match limits {
            Ok(limits) => limits.into_iter().for_each(|(key, most)| self.lower(key, most)),
            Err(why) => self.left_out = Some(LeftOut { place: place.display().to_string(), why }),
        }
        self
    }
}

/// The limits in a project's file; or what is wrong with it, without its text.
fn limits(bytes: &[u8]) -> Result<Vec<(&'static Key, u64)>, String> {
    let text = std::str::from_utf8(bytes).map_err(|_| "is not UTF-8".to_owned())?;
    let table: toml::Table = text.trim_start_matches('\u{feff}').parse().map_err(|error: toml::de::Error| {
        let before = error.span().and_then(|span| bytes.get(..span.start)).unwrap_or_default();
        format!("is no TOML (line {})", 1 + memchr::memchr_iter(b'\n', before).count())
    })?;
    let may_be_lowered = || Key::ALL.iter().filter(|key| key.may_be_lowered());
    // A limit may be above what its key accepts: it lowers nothing then.
    let most = may_be_lowered().filter_map(Key::most).max().unwrap_or(u64::MAX);
    let mut limits = Vec::new();
    for (name, value) in &table {
        let accepted = || may_be_lowered().map(|key| key.name).collect::<Vec<_>>().join(", ");
        let key = match Key::named(name) {
            Some(key) if key.may_be_lowered() => key,
            Some(key) => {
                return Err(format!(
                    "sets {}, which may not be set by a project's file (yours may, and so may {}); accepted: {}",
                    key.name,
                    key.variable(),
                    accepted()
                ));
            }
            None => return Err(format!("sets something that is no limit; accepted: {}", accepted())),
        };
        let least = key.least().unwrap_or_default();
        let number = value.as_integer().and_then(|number| u64::try_from(number).ok());
        let Some(number) = number.filter(|number| (least..=most).contains(number)) else {
            return Err(format!("sets {} to what is no limit; accepted: whole numbers from {least}", key.name));
        };
        limits.push((key, number));
    }
    Ok(limits)
}
