//! What a process of a server has of the server's environment, and what the server says of its machine.
//!
//! Owns: the rules of an environment policy, and the description of the machine. May not know: processes, and the environment of this
//! process; whoever starts a server hands it in.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use serde_json::{Value, json};

use super::super::backend::{EnvInherit, EnvPolicy};
use super::super::wire::cwd_uri;

/// What a login shell cannot do without.
const CORE: &[&str] = &["HOME", "LOGNAME", "PATH", "SHELL", "USER", "USERNAME", "TMPDIR", "TEMP", "TMP"];

/// Names that look like secrets; patterns.
const SECRETS: &[&str] = &["*KEY*", "*SECRET*", "*TOKEN*"];

/// Patterns of one policy that are looked at; more than any configuration has.
const PATTERNS: usize = 1024;

/// The environment of a process: `env` alone, or what the policy leaves of `own`, and `env` over it.
pub(super) fn compose(
    own: &[(OsString, OsString)],
    policy: Option<&EnvPolicy>,
    env: BTreeMap<String, String>,
) -> Vec<(OsString, OsString)> {
    let mut composed: BTreeMap<OsString, OsString> = BTreeMap::new();
    if let Some(policy) = policy {
        let inherited = own.iter().filter(|(name, _)| match policy.inherit {
            EnvInherit::All => true,
            EnvInherit::Core => CORE.iter().any(|core| name.eq_ignore_ascii_case(core)),
            EnvInherit::None => false,
        });
        composed.extend(inherited.cloned());
        if !policy.ignore_default_excludes {
            composed.retain(|name, _| !SECRETS.iter().any(|pattern| matches(pattern, name)));
        }
        composed.retain(|name, _| !policy.exclude.iter().take(PATTERNS).any(|pattern| matches(pattern, name)));
        composed.extend(policy.set.iter().map(|(name, value)| (name.into(), value.into())));
        if !policy.include_only.is_empty() {
            composed.retain(|name, _| policy.include_only.iter().take(PATTERNS).any(|pattern| matches(pattern, name)));
        }
    }
    composed.extend(env.into_iter().map(|(name, value)| (name.into(), value.into())));
    composed.into_iter().collect()
}

/// Of these variables what a login cannot do without.
pub(crate) fn core_of(own: &[(OsString, OsString)]) -> Vec<(OsString, OsString)> {
    let policy = EnvPolicy { inherit: EnvInherit::Core, ..EnvPolicy::default() };
    compose(own, Some(&policy), BTreeMap::new())
}

/// Whether a name fits a pattern of `*` and `?`, whatever the case of its letters.
fn matches(pattern: &str, name: &OsStr) -> bool {
    let (pattern, name) = (pattern.as_bytes(), name.as_bytes());
    let (mut p, mut n) = (0, 0);
    // Where the last `*` stood, and what it has taken so far.
    let mut star: Option<(usize, usize)> = None;
    while n < name.len() {
        match pattern.get(p) {
            Some(b'*') => {
                star = Some((p, n));
                p += 1;
            }
            Some(letter) if *letter == b'?' || letter.eq_ignore_ascii_case(&name[n]) => {
                p += 1;
                n += 1;
            }
            _ => match &mut star {
                Some((at, taken)) => {
                    *taken += 1;
                    (p, n) = (*at + 1, *taken);
                }
                None => return false,
            },
        }
    }
    pattern[p..].iter().all(|rest| *rest == b'*')
}

/// What a peer is told of this machine.
pub(super) fn describe(own: &[(OsString, OsString)], cwd: &Path, lease_ms: Option<u64>) -> Value {
    let named = |wanted: &str| {
        let found = own.iter().find(|(name, value)| name == wanted && !value.is_empty());
        found.map(|(_, value)| Path::new(value).to_owned())
    };
    let shell = named("SHELL").filter(|shell| shell.is_absolute()).unwrap_or_else(|| "/bin/sh".into());
    let uri = |path: &Path| Value::from(cwd_uri(path));
    let mut info = json!({
        "shell": {"name": shell.file_name().unwrap_or_default().to_string_lossy(), "path": shell.to_string_lossy()},
        "cwd": uri(cwd),
        "userHomeDir": named("HOME").filter(|home| home.is_absolute()).map(|home| uri(&home)),
        "tempDir": uri(&named("TMPDIR").filter(|dir| dir.is_absolute()).unwrap_or_else(|| "/tmp".into())),
        "platformOs": std::env::consts::OS,
        "executorVersion": env!("CARGO_PKG_VERSION"),
        "providerId": "phone-opus",
        "prependPathDirs": [],
        "temporaryDirectories": [],
        "capabilities": {
            "processCloseStdin": true,
            "processResize": true,
            "terminateGrace": true,
            "endsWithLeader": true,
            "markedBy": true,
            "sandboxedFileStreaming": false,
            "fileWriteStreaming": true,
        },
    });
    if let (Some(info), Some(lease)) = (info.as_object_mut(), lease_ms) {
        info.insert("leaseMs".to_owned(), lease.into());
    }
    info
}

#[cfg(test)]
mod tests {
    use super::*;

    fn own() -> Vec<(OsString, OsString)> {
        let all =
            [("PATH", "/bin"), ("HOME", "/h"), ("LANG", "C"), ("API_KEY", "k"), ("my_Token_x", "t"), ("FOO", "1")];
        all.iter().map(|(name, value)| (name.into(), value.into())).collect()
    }

    fn names(policy: Value, env: &[(&str, &str)]) -> Vec<String> {
        let policy: EnvPolicy = serde_json::from_value(policy).expect("a policy");
        let env = env.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        let composed = compose(&own(), Some(&policy), env);
        composed.iter().map(|(name, value)| format!("{}={}", name.display(), value.display())).collect()
    }

    #[test]
    fn a_policy_says_what_is_inherited_and_the_request_wins() {
        assert_eq!(names(json!({}), &[]), ["FOO=1", "HOME=/h", "LANG=C", "PATH=/bin"]);
        assert_eq!(names(json!({"inherit": "core"}), &[]), ["HOME=/h", "PATH=/bin"]);
        assert_eq!(names(json!({"inherit": "none", "set": {"A": "1"}}), &[("A", "2"), ("B", "3")]), ["A=2", "B=3"]);
        let all = names(json!({"ignoreDefaultExcludes": true, "exclude": ["f?o", "L*"]}), &[]);
        assert_eq!(all, ["API_KEY=k", "HOME=/h", "PATH=/bin", "my_Token_x=t"]);
        // What is set is filtered too; what the request brings is not.
        let only = names(json!({"set": {"A": "1"}, "includeOnly": ["PATH", "*oo"]}), &[("TOKEN", "mine")]);
        assert_eq!(only, ["FOO=1", "PATH=/bin", "TOKEN=mine"]);
        assert_eq!(compose(&own(), None, BTreeMap::new()), []);
        assert!(serde_json::from_value::<EnvPolicy>(json!({"inherit": "some"})).is_err());
    }

    #[test]
    fn patterns_fit_as_a_shells_do() {
        for (pattern, name, fits) in [
            ("*", "", true),
            ("", "", true),
            ("", "a", false),
            ("a*b*c", "aXbYc", true),
            ("a*b*c", "aXbY", false),
            ("*KEY*", "monkey", true),
            ("?", "", false),
            ("**a", "bca", true),
            ("*ab", "aab", true),
        ] {
            assert_eq!(matches(pattern, OsStr::new(name)), fits, "{pattern} {name}");
        }
    }

    #[test]
    fn the_machine_is_described_without_a_secret() {
        let text = describe(&own(), Path::new("/w d"), Some(30_000)).to_string();
        for there in ["file:///w%20d", "file:///h", "\"leaseMs\":30000", "\"processCloseStdin\":true", "/bin/sh"] {
            assert!(text.contains(there), "{there}: {text}");
        }
        assert!(!text.contains("API_KEY"));
        assert!(!describe(&own(), Path::new("/"), None).to_string().contains("leaseMs"));
    }
}
