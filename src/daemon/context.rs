//! Whose environment a session's consults get.
//!
//! Owns: what a bridge sends of its client's environment, what a daemon takes of that, and what a client gets that sent
//! none. May not know: who starts runners, what an agent does with a variable. Which names may pass at all is a matter of
//! `agents`, and the same in every process.
//!
//! Invariants: (1) nothing of the daemon's own environment is in a session's; (2) who sends none gets what the password
//! database says and nothing of any client's; (3) a name that is absent at the caller is absent for its agents.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt as _;

use super::control::ENVIRONMENT;
use crate::agents::{AgentRegistry, Environment};
use crate::jobs::Billing;

/// Where programs are found when nobody says where; the user's own come first.
const PATH: &str = "/usr/local/bin:/opt/homebrew/bin:/usr/bin:/bin:/usr/sbin:/sbin";

/// The language when nobody says which: text as everybody writes it.
const LANG: &str = "C.UTF-8";

/// Who the names in an environment have to be.
const WHO: [&str; 3] = ["HOME", "USER", "LOGNAME"];

/// An environment that is too large to be sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("send an environment of {bytes} bytes: at most {ENVIRONMENT} are taken")]
pub struct EnvironmentTooLarge {
    /// Bytes of its names and values.
    pub bytes: usize,
}

/// A user as the password database knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Account {
    /// The name.
    pub name: OsString,
    /// The home directory.
    pub home: OsString,
    /// The shell.
    pub shell: OsString,
}

impl Account {
    /// That of this process; `None` where the database has no such user, as in many containers.
    #[must_use]
    pub fn ours() -> Option<Self> {
        let user = nix::unistd::User::from_uid(nix::unistd::geteuid()).ok()??;
        Some(Self { name: user.name.into(), home: user.dir.into(), shell: user.shell.into() })
    }

    fn value(&self, name: &str) -> &OsStr {
        if name == "HOME" { &self.home } else { &self.name }
    }
}

/// What of a caller's environment goes to a daemon.
///
/// # Errors
///
/// It is larger than a daemon takes.
pub fn to_send(
    environment: &Environment,
    agents: &AgentRegistry,
    billing: Billing,
) -> Result<Environment, EnvironmentTooLarge> {
    let sent = agents.for_callers(environment, billing);
    let bytes = sent.iter().map(|(name, value)| name.as_bytes().len() + value.as_bytes().len()).sum();
    if bytes > ENVIRONMENT { Err(EnvironmentTooLarge { bytes }) } else { Ok(sent) }
}

/// What a session gets of the environment its client sent. Home and name are this user's: `own` is the daemon's environment, and
/// what is in neither it nor the password database is what the database says. (After `sudo` a caller has another's.)
#[must_use]
pub fn of_caller(
    sent: &Environment,
    own: &Environment,
    account: Option<&Account>,
    agents: &AgentRegistry,
    billing: Billing,
) -> Environment {
    let mut taken = agents.for_callers(sent, billing);
    for name in WHO {
        let (Some(sent), Some(account)) = (taken.get(name), account) else { continue };
        if sent != account.value(name) && Some(sent) != own.get(name) {
            taken = taken.with(name, account.value(name));
        }
    }
    taken
}

/// What a client gets that sent no environment.
#[must_use]
pub fn base(account: Option<&Account>) -> Environment {
    let mut variables: Vec<(&str, OsString)> = vec![("LANG", LANG.into())];
    let mut path = OsString::new();
    if let Some(account) = account {
        variables.extend(WHO.map(|name| (name, account.value(name).to_owned())));
        variables.push(("SHELL", account.shell.clone()));
        path.push(&account.home);
        path.push("/.local/bin:");
    }
    path.push(PATH);
    variables.push(("PATH", path));
    variables.into_iter().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn account() -> Account {
        Account { name: "me".into(), home: "/home/me".into(), shell: "/bin/zsh".into() }
    }

    fn environment(variables: &[(&str, &str)]) -> Environment {
        variables.iter().copied().collect()
    }

    fn agents() -> AgentRegistry {
        AgentRegistry::standard(None, "/bin/phone-opus".into())
    }

    fn names(environment: &Environment) -> Vec<&str> {
        environment.iter().filter_map(|(name, _)| name.to_str()).collect()
    }

    #[test]
    fn only_what_agents_may_see_is_sent_and_taken() {
        let all = environment(&[
            ("PATH", "/bin"),
            ("HOME", "/home/me"),
            ("LC_ALL", "de_DE.UTF-8"),
            ("XDG_CONFIG_HOME", "/home/me/.c"),
            ("https_proxy", "http://p"),
            ("CLAUDE_CONFIG_DIR", "/home/me/.claude-work"),
            ("SECRET_OF_MINE", "s3cr3t"),
            ("ANTHROPIC_API_KEY", "key"),
            ("PHONE_OPUS_BILLING", "api_key"),
            ("PHONE_OPUS_DEPTH", "1"),
            ("LD_PRELOAD", "/x.so"),
            ("CLAUDECODE", "1"),
        ]);
        let free = ["CLAUDE_CONFIG_DIR", "HOME", "LC_ALL", "PATH", "XDG_CONFIG_HOME", "https_proxy"];
        let sent = to_send(&all, &agents(), Billing::Subscription).expect("it is small");
        assert_eq!(names(&sent), free);
        // A daemon believes no bridge that it kept to that.
        assert_eq!(of_caller(&all, &Environment::default(), None, &agents(), Billing::Subscription), sent);
        let paid = to_send(&all, &agents(), Billing::ApiKey).expect("it is small");
        assert_eq!(names(&paid), [&["ANTHROPIC_API_KEY"], &free[..]].concat());
    }

    #[test]
    fn one_that_is_too_large_is_not_sent() {
        let large = environment(&[("LC_ALL", &"x".repeat(ENVIRONMENT - 5))]);
        let result = to_send(&large, &agents(), Billing::Subscription);
        assert_eq!(result, Err(EnvironmentTooLarge { bytes: ENVIRONMENT + 1 }));
    }

    #[test]
    fn who_one_is_comes_from_the_system_and_not_from_a_stranger() {
        let taken = |sent: &[(&str, &str)], own: &[(&str, &str)], account: Option<&Account>| {
            of_caller(&environment(sent), &environment(own), account, &agents(), Billing::Subscription)
        };
        let me = account();
        let cases = [
            ("/home/me", "", Some(&me), "/home/me"),
            ("/root", "", Some(&me), "/home/me"),
            // The daemon itself was told to live elsewhere, and its clients with it.
            ("/srv/home", "/srv/home", Some(&me), "/srv/home"),
            ("/srv/other", "/srv/home", Some(&me), "/home/me"),
            ("/anywhere", "", None, "/anywhere"),
        ];
        for (home, own, account, expected) in cases {
            let taken = taken(&[("HOME", home)], &[("HOME", own)], account);
            assert_eq!(taken.get("HOME"), Some(OsStr::new(expected)), "{home} at {own:?}");
        }
        assert_eq!(
            names(&taken(&[("LANG", "C")], &[("HOME", "/srv/home")], Some(&me))),
            ["LANG"],
            "absent stays absent"
        );
        let sudo = taken(&[("USER", "root"), ("LOGNAME", "me")], &[], Some(&me));
        assert_eq!((sudo.get("USER"), sudo.get("LOGNAME")), (Some(OsStr::new("me")), Some(OsStr::new("me"))));
    }

    #[test]
    fn who_sends_nothing_gets_what_the_system_says_of_the_user() {
        let me = base(Some(&account()));
        assert_eq!(names(&me), ["HOME", "LANG", "LOGNAME", "PATH", "SHELL", "USER"]);
        assert_eq!(me.get("HOME"), Some(OsStr::new("/home/me")));
        assert!(me.get("PATH").is_some_and(|path| path.as_bytes().starts_with(b"/home/me/.local/bin:/usr/local/bin:")));
        assert_eq!(names(&base(None)), ["LANG", "PATH"]);
        let ours = Account::ours();
        assert!(ours.is_none_or(|ours| !ours.name.is_empty() && !ours.home.is_empty()));
    }
}
