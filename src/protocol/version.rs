//! The protocol revisions we speak, and the era of a request.

use serde::{Deserialize, Serialize};

/// A revision of the protocol, oldest first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Version {
    /// 2024-11-05.
    #[serde(rename = "2024-11-05")]
    V2024_11_05,
    /// 2025-03-26: batches, annotations.
    #[serde(rename = "2025-03-26")]
    V2025_03_26,
    /// 2025-06-18: structured content, titles.
    #[serde(rename = "2025-06-18")]
    V2025_06_18,
    /// 2025-11-25: argument errors are tool results; core tasks.
    #[serde(rename = "2025-11-25")]
    V2025_11_25,
    /// 2026-07-28: no handshake, an envelope in each request.
    #[serde(rename = "2026-07-28")]
    V2026_07_28,
}

impl Version {
    /// Every revision, oldest first.
    pub const ALL: [Self; 5] =
        [Self::V2024_11_05, Self::V2025_03_26, Self::V2025_06_18, Self::V2025_11_25, Self::V2026_07_28];

    /// The newest revision that has a handshake.
    pub const NEWEST_LEGACY: Self = Self::V2025_11_25;

    /// The revision of the stateless era.
    pub const MODERN: Self = Self::V2026_07_28;

    /// The date that names the revision.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::V2024_11_05 => "2024-11-05",
            Self::V2025_03_26 => "2025-03-26",
            Self::V2025_06_18 => "2025-06-18",
            Self::V2025_11_25 => "2025-11-25",
            Self::V2026_07_28 => "2026-07-28",
        }
    }

    /// The revision with this date.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|version| version.as_str() == text)
    }

    /// What `initialize` is answered with: the wanted revision if it has a handshake and we know it, else our newest
    /// that has one. Never an error, and never the stateless one: clients that get it hang up.
    #[must_use]
    pub fn negotiate(wanted: &str) -> Self {
        match Self::parse(wanted) {
            Some(version) if version <= Self::NEWEST_LEGACY => version,
            _ => Self::NEWEST_LEGACY,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn initialize_is_never_answered_with_the_stateless_revision() {
        for (wanted, want) in [
            ("2024-11-05", "2024-11-05"),
            ("2025-03-26", "2025-03-26"),
            ("2025-06-18", "2025-06-18"),
            ("2025-11-25", "2025-11-25"),
            ("2026-07-28", "2025-11-25"),
            ("1999-01-01", "2025-11-25"),
            ("", "2025-11-25"),
        ] {
            assert_eq!(Version::negotiate(wanted).as_str(), want, "{wanted}");
        }
    }
}
