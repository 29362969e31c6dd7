//! Words that people use for the same thing.
//!
//! Owns: the table. A question says "crash" where the code says "panic"; whoever searches by hand would try both. Words of one line are
//! kin of each other; a word may stand in several lines. What every file is full of (`new`, `get`, `data`) is not worth a place.

const KIN: &[&[&str]] = &[
    // Going wrong.
    &["crash", "panic", "abort", "die", "dead", "lost"],
    &["error", "failure", "fault"],
    &["stuck", "hang", "stall", "idle", "silent", "silence"],
    &["retry", "replay", "rerun", "again"],
    &["leak", "leftover", "orphan"],
    // Coming and going.
    &["start", "launch", "spawn", "boot", "begin"],
    &["restart", "respawn", "revive"],
    &["stop", "shutdown", "quit", "halt"],
    &["kill", "terminate", "sigkill", "sigterm"],
    &["upgrade", "update", "rollout", "migrate", "handover"],
    &["delete", "remove", "erase", "unlink", "discard"],
    &["restore", "recover", "resume"],
    &["wait", "block", "poll", "sleep"],
    &["queue", "pending", "backlog"],
    // Reading and writing.
    &["parse", "decode", "deserialize", "unmarshal"],
    &["encode", "serialize", "marshal", "escape"],
    &["print", "display", "show", "render", "format"],
    &["send", "transmit", "write", "post"],
    &["receive", "recv", "download", "fetch"],
    &["split", "cut", "chunk", "divide"],
    &["merge", "combine", "join", "aggregate"],
    &["convert", "transform", "translate"],
    &["search", "find", "lookup", "query"],
    &["match", "pattern", "regex", "glob"],
    &["recognise", "recognize", "detect", "classify", "identify"],
    &["compress", "deflate", "gzip", "zlib"],
    // What things are called.
    &["config", "configuration", "setting", "option", "preference"],
    &["argument", "arg", "parameter", "param"],
    &["directory", "folder", "dir"],
    &["environment", "env"],
    &["database", "db", "sql", "sqlite"],
    &["limit", "maximum", "max", "bound", "quota", "cap"],
    &["size", "length", "len"],
    &["duration", "timespan", "interval"],
    &["timeout", "deadline", "expiry"],
    &["date", "timestamp", "datetime"],
    &["color", "colour", "ansi"],
    &["command", "cmd"],
    &["message", "msg"],
    &["thread", "parallel", "concurrent", "concurrency"],
    &["lock", "mutex", "exclusive"],
    &["log", "trace", "journal"],
    &["test", "check", "verify", "validate"],
    &["symlink", "link"],
    &["user", "owner", "account"],
    &["permission", "allowed", "access", "grant"],
    &["bill", "pay", "payer", "cost", "charge"],
    // Secrets.
    &["authentication", "auth", "login", "credential"],
    &["password", "passphrase", "secret"],
    &["encrypt", "cipher", "crypt"],
    &["hash", "digest", "checksum"],
    &["hmac", "mac"],
];

/// Stems of the words that are kin to one with this stem.
pub(super) fn kin(stem: &str, stem_of: impl Fn(&str) -> String) -> Vec<String> {
    let mut found: Vec<String> = Vec::new();
    for line in KIN {
        let stems: Vec<String> = line.iter().map(|word| stem_of(word)).collect();
        if stems.iter().any(|own| own == stem) {
            found.extend(stems.into_iter().filter(|other| other != stem));
        }
    }
    found.sort();
    found.dedup();
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_of_a_line_are_kin_of_each_other() {
        let own = |word: &str| word.trim_end_matches('s').to_owned();
        assert_eq!(kin("crash", own), ["abort", "dead", "die", "lost", "panic"]);
        assert!(kin("panic", own).contains(&"crash".to_owned()));
        assert!(kin("jar", own).is_empty());
    }

    #[test]
    fn the_table_repeats_nothing() {
        for line in KIN {
            let mut words = line.to_vec();
            words.sort_unstable();
            words.dedup();
            assert_eq!(words.len(), line.len(), "{line:?}");
            assert!(
                line.len() >= 2 && line.iter().all(|word| word.bytes().all(|byte| byte.is_ascii_lowercase())),
                "{line:?}"
            );
        }
    }
}
