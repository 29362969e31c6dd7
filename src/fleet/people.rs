//! What people are shown of a fleet, and what is looked at to know whether its database is fit for it.
//!
//! Owns: the shapes, and what follows from what a database says of itself ([`FleetExam::findings`]). May not know: how a database is
//! asked, how anything is printed.
//!
//! Invariant: nothing here holds what was asked or answered (L13).

use std::collections::BTreeMap;

use serde::Serialize;

use super::claiming::CapScope;
use crate::base::ids::HostId;

/// Most hosts, caps, pauses and waiting jobs that are shown; of more it is said that there are more.
pub const SHOWN: usize = 500;

/// A fleet at one moment.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct FleetSeen {
    /// What this fleet is called among all.
    pub fleet: String,
    /// The version of its tables.
    pub tables: i64,
    /// How long a host is believed to live after it said so, in seconds.
    pub lease_s: u64,
    /// How long nobody claims because the database's history changed, in seconds.
    pub quiet_s: Option<u64>,
    /// How many jobs are in each state; of those that are over, the ones that are still kept.
    pub jobs: BTreeMap<String, u64>,
    /// Jobs of hosts that are gone, which still count.
    pub held: u64,
    /// How long the oldest waiting job has waited, in seconds.
    pub oldest_s: Option<u64>,
    /// Jobs of other users that count and are not shown.
    pub unseen: u64,
    pub hosts: Vec<FleetHostSeen>,
    pub caps: Vec<CapSeen>,
    pub pauses: Vec<PauseSeen>,
    /// Rows that this version does not understand.
    pub unread: usize,
    /// Whether there are more than are listed.
    pub more: bool,
}

/// A host of a fleet.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct FleetHostSeen {
    pub host: HostId,
    pub name: String,
    /// The user of the database it works as; none by tables that do not say.
    pub owner: String,
    pub drained: bool,
    /// What is left of its lease in seconds; less than none when it is over.
    pub lease_s: i64,
    /// Jobs it has.
    pub jobs: u64,
    pub slots: u32,
    pub build: String,
    pub os: String,
    pub agents: Vec<String>,
    pub tags: Vec<String>,
}

impl FleetHostSeen {
    /// Whether it is believed to live.
    #[must_use]
    pub fn lives(&self) -> bool {
        self.lease_s > 0
    }

    /// Its standing in a word: `lives`, `drained`, or `gone`.
    #[must_use]
    pub fn standing(&self) -> &'static str {
        match (self.lives(), self.drained) {
            (false, _) => "gone",
            (true, true) => "drained",
            (true, false) => "lives",
        }
    }
}

/// A cap with what is used of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct CapSeen {
    pub scope: String,
    pub cap: u64,
    pub used: u64,
}

/// A usage limit that was met.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PauseSeen {
    pub scope: String,
    /// For so many seconds more.
    pub left_s: u64,
    pub why: String,
}

/// What a database says of itself, as far as a fleet depends on it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct FleetExam {
    /// As `150018` for 15.18.
    pub server_version: i64,
    /// The version of the fleet's tables, 0 for none.
    pub tables: i64,
    /// The version this program writes.
    pub known: i64,
    /// Whether the connection is encrypted; a socket of this machine needs it not.
    pub tls: bool,
    pub by_socket: bool,
    /// How far the database's clock is ahead of this machine's, in milliseconds.
    pub clock_ms: i64,
    /// Whether a notification came back.
    pub hears: bool,
    /// Whether another one's connection was given to us: something stands between.
    pub pooled: bool,
    pub superuser: bool,
    pub settings: BTreeMap<String, String>,
    /// Servers that follow this one, and how many of them a confirmation waits for.
    pub standbys: i64,
    pub synchronous: i64,
}

/// Settings that are asked of the database.
pub const SETTINGS: &[&str] = &[
    "fsync",
    "full_page_writes",
    "synchronous_commit",
    "synchronous_standby_names",
    "log_statement",
    "log_min_duration_statement",
    "log_min_duration_sample",
    "log_transaction_sample_rate",
    "log_parameter_max_length",
    "log_parameter_max_length_on_error",
];

/// The oldest server whose statements all of ours are: what is still maintained by its makers.
pub const OLDEST_SERVER: i64 = 14;

/// Clocks further apart than this are said, in milliseconds.
pub const CLOCK_MS: i64 = 5_000;

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ExamFinding {
    /// In a word: `version`, `tls`, …
    pub check: &'static str,
    /// `None` for what is worth knowing and no fault.
    pub good: Option<bool>,
    pub text: String,
}

impl FleetExam {
    fn setting(&self, name: &str) -> &str {
        self.settings.get(name).map_or("", String::as_str)
    }

    fn number(&self, name: &str) -> Option<f64> {
        self.setting(name).parse().ok()
    }

    /// What follows from it.
    #[must_use]
    pub fn findings(&self) -> Vec<ExamFinding> {
        let all = [
            ("version", self.version()),
            ("tls", self.encryption()),
            ("clock", self.clock()),
            ("listen", self.listen()),
            ("pooler", self.pooler()),
            ("commit", self.commit()),
            ("log", self.log()),
            ("rights", self.rights()),
        ];
        all.into_iter().map(|(check, (good, text))| ExamFinding { check, good, text }).collect()
    }

    fn version(&self) -> (Option<bool>, String) {
        let (major, minor) = (self.server_version / 10_000, self.server_version % 10_000);
        let tables = match self.tables {
            0 => "its tables are made when they are first used".to_owned(),
            version if version == self.known => format!("tables of version {version}"),
            version => format!("tables of version {version}, this program knows {}", self.known),
        };
        let text = format!("PostgreSQL {major}.{minor}, {tables}");
        if major < OLDEST_SERVER {
            return (Some(false), format!("{text}; the oldest that is good is {OLDEST_SERVER}"));
        }
        (Some(true), text)
    }

    fn encryption(&self) -> (Option<bool>, String) {
        match (self.by_socket, self.tls) {
            (true, _) => (Some(true), "reached by a socket of this machine".to_owned()),
            (false, true) => (Some(true), "the server has proven who it is, by TLS".to_owned()),
            // A pooler that ends the TLS may go on without.
            (false, false) => (None, "to a pooler by TLS, and from there to the database without".to_owned()),
        }
    }

    fn clock(&self) -> (Option<bool>, String) {
        let off = self.clock_ms.saturating_abs();
        if off < CLOCK_MS {
            return (Some(true), format!("the database's clock and this machine's are {off} ms apart"));
        }
        let side = if self.clock_ms > 0 { "ahead of" } else { "behind" };
        (
            None,
            format!(
                "the database's clock is {} s {side} this machine's: leases and turns go by the database's alone, but usage limits \
                 are told by this one; set it right (timedatectl set-ntp true)",
                off / 1000
            ),
        )
    }

    fn listen(&self) -> (Option<bool>, String) {
        match (self.hears, self.pooled) {
            (true, _) => (Some(true), "changes are heard of at once (LISTEN)".to_owned()),
            (false, true) => (
                None,
                "nothing is heard (LISTEN) through the pooler: hosts look every 5 s instead; let `fleet` lead to the database itself"
                    .to_owned(),
            ),
            (false, false) => (None, "a notification did not come back: hosts look every 5 s instead".to_owned()),
        }
    }

    fn pooler(&self) -> (Option<bool>, String) {
        if self.pooled {
            let text = "a pooler stands between that gives connections away after each transaction: that is borne, but for LISTEN";
            return (None, text.to_owned());
        }
        (Some(true), "nothing gives this connection to others".to_owned())
    }

    fn commit(&self) -> (Option<bool>, String) {
        let off: Vec<&str> =
            ["fsync", "full_page_writes"].into_iter().filter(|name| self.setting(name) == "off").collect();
        if !off.is_empty() {
            let text = format!("{} is off: a power cut loses or breaks what was confirmed", off.join(" and "));
            return (Some(false), text);
        }
        let asked = match self.setting("synchronous_commit") {
            "off" | "local" => "; synchronous_commit is set to `on` by each transaction of a host",
            _ => "",
        };
        let named = !self.setting("synchronous_standby_names").is_empty();
        match (self.standbys, self.synchronous, named) {
            (0, _, false) => {
                (Some(true), format!("what is confirmed is on this server's disk; no standby follows it{asked}"))
            }
            (_, 0, true) => (
                Some(false),
                "confirmations wait for a standby, and none that is named follows: nothing is accepted until one does"
                    .to_owned(),
            ),
            (standbys, 0, false) => (
                None,
                format!(
                    "{standbys} standby(s) follow without being waited for: a fail-over may lose what was confirmed last, which hosts \
                     notice and say; synchronous_standby_names keeps it{asked}"
                ),
            ),
            (standbys, synchronous, _) => {
                (Some(true), format!("{synchronous} of {standbys} standby(s) has what is confirmed{asked}"))
            }
        }
    }

    /// Statements come with their values apart, and a log that has the values has prompts and answers.
    fn log(&self) -> (Option<bool>, String) {
        let values = self.number("log_parameter_max_length") != Some(0.0);
        let on_error = self.number("log_parameter_max_length_on_error").is_some_and(|most| most != 0.0);
        let statement = matches!(self.setting("log_statement"), "mod" | "all").then_some("log_statement");
        let at_least =
            |name: &'static str, least: f64| self.number(name).is_some_and(|value| value >= least).then_some(name);
        let sampled = self.number("log_transaction_sample_rate").is_some_and(|rate| rate > 0.0);
        let by: Vec<&str> = statement
            .into_iter()
            .chain(at_least("log_min_duration_statement", 0.0))
            .chain(at_least("log_min_duration_sample", 0.0))
            .chain(sampled.then_some("log_transaction_sample_rate"))
            .filter(|_| values)
            .chain(on_error.then_some("log_parameter_max_length_on_error"))
            .collect();
        if by.is_empty() {
            return (Some(true), "the server's log holds no prompts".to_owned());
        }
        let text = format!(
            "the server writes prompts and answers into its log ({}): have its administrator run ALTER ROLE … SET \
             log_parameter_max_length = 0, and log_parameter_max_length_on_error = 0",
            by.join(", ")
        );
        (Some(false), text)
    }

    fn rights(&self) -> (Option<bool>, String) {
        if self.superuser {
            let text = "hosts work as a superuser of the server: packaging/fleet-role.sql makes a role with the rights they need";
            return (None, text.to_owned());
        }
        (Some(true), "its user is no superuser".to_owned())
    }
}

/// What a person wrote for a cap: `fleet=8`, `account:NAME=2`; `none` lifts it.
///
/// # Errors
///
/// What is wrong with it, and what is accepted.
pub fn cap_asked(written: &str) -> Result<(CapScope, Option<u64>), String> {
    let accepted = "accepted: fleet=N, account:NAME=N, agent:NAME=N, host:NAME=N, with `none` for N to lift a cap";
    let Some((scope, most)) = written.rsplit_once('=') else {
        return Err(format!("{written:?} has no `=`; {accepted}"));
    };
    let scope = CapScope::read(scope).map_err(|_| {
        let kind = scope.split(':').next().unwrap_or_default();
        let near = crate::base::nearest::nearest(kind, &["fleet", "account", "agent", "host"]);
        let meant =
            near.filter(|near| *near != kind).map(|near| format!(" (did you mean {near}?)")).unwrap_or_default();
        format!("{scope:?} is nothing that can have a cap{meant}; {accepted}")
    })?;
    if most == "none" {
        return Ok((scope, None));
    }
    match most.parse::<u64>() {
        Ok(most) if most <= CAP_MOST => Ok((scope, Some(most))),
        _ => Err(format!("{most:?} is no cap; accepted: 0 to {CAP_MOST}, or `none`")),
    }
}

/// The largest cap that is taken: more runs at once than any fleet has.
pub const CAP_MOST: u64 = 100_000;

/// How long a host that lives has said nothing.
#[must_use]
pub fn silent_s(lease_s: u64, host: &FleetHostSeen) -> u64 {
    let lease = i64::try_from(lease_s).unwrap_or(i64::MAX);
    u64::try_from(lease.saturating_sub(host.lease_s)).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn exam() -> FleetExam {
        let settings = [
            ("fsync", "on"),
            ("full_page_writes", "on"),
            ("synchronous_commit", "on"),
            ("synchronous_standby_names", ""),
            ("log_statement", "none"),
            ("log_min_duration_statement", "-1"),
            ("log_min_duration_sample", "-1"),
            ("log_transaction_sample_rate", "0"),
            ("log_parameter_max_length", "-1"),
            ("log_parameter_max_length_on_error", "0"),
        ];
        assert_eq!(settings.map(|(name, _)| name), *SETTINGS);
        FleetExam {
            server_version: 150_018,
            tables: 3,
            known: 3,
            tls: true,
            by_socket: false,
            clock_ms: 3,
            hears: true,
            pooled: false,
            superuser: false,
            settings: settings.map(|(name, value)| (name.to_owned(), value.to_owned())).into(),
            standbys: 0,
            synchronous: 0,
        }
    }

    fn set(exam: &mut FleetExam, name: &str, value: &str) {
        assert!(exam.settings.insert(name.to_owned(), value.to_owned()).is_some(), "{name}");
    }

    /// What an exam that is changed finds that a good one does not.
    fn found(change: impl Fn(&mut FleetExam)) -> Vec<(&'static str, Option<bool>)> {
        let mut changed = exam();
        change(&mut changed);
        let bad = changed.findings().into_iter().filter(|finding| finding.good != Some(true));
        bad.map(|finding| (finding.check, finding.good)).collect()
    }

    #[test]
    fn each_fault_of_a_database_is_found_and_no_other() {
        assert_eq!(found(|_| ()), []);
        assert_eq!(found(|exam| exam.server_version = 130_004), [("version", Some(false))]);
        assert_eq!(found(|exam| (exam.tls, exam.by_socket) = (false, true)), []);
        assert_eq!(found(|exam| exam.tls = false), [("tls", None)]);
        assert_eq!(found(|exam| exam.clock_ms = -3_600_000), [("clock", None)]);
        assert_eq!(found(|exam| exam.clock_ms = i64::MIN), [("clock", None)]);
        assert_eq!(found(|exam| exam.hears = false), [("listen", None)]);
        assert_eq!(found(|exam| exam.pooled = true), [("pooler", None)]);
        assert_eq!(found(|exam| exam.superuser = true), [("rights", None)]);
        assert_eq!(found(|exam| set(exam, "fsync", "off")), [("commit", Some(false))]);
        assert_eq!(found(|exam| set(exam, "synchronous_commit", "off")), [], "each transaction sets it");
        assert_eq!(found(|exam| exam.standbys = 1), [("commit", None)]);
        assert_eq!(found(|exam| set(exam, "synchronous_standby_names", "b")), [("commit", Some(false))]);
        let both = |exam: &mut FleetExam| {
            (exam.standbys, exam.synchronous) = (2, 1);
            set(exam, "synchronous_standby_names", "b");
        };
        assert_eq!(found(both), []);
    }

    #[test]
    fn a_log_that_would_hold_prompts_is_found_by_each_setting_that_makes_it_so() {
        for (name, value, is_bad) in [
            ("log_statement", "ddl", false),
            ("log_statement", "mod", true),
            ("log_statement", "all", true),
            ("log_min_duration_statement", "0", true),
            ("log_min_duration_statement", "10000", true),
            ("log_min_duration_sample", "100", true),
            ("log_transaction_sample_rate", "0.01", true),
            ("log_parameter_max_length_on_error", "-1", true),
            ("log_parameter_max_length_on_error", "64", true),
        ] {
            let expected = if is_bad { vec![("log", Some(false))] } else { Vec::new() };
            assert_eq!(found(|exam| set(exam, name, value)), expected, "{name} = {value}");
            // Statements without their values say nothing of anybody.
            let without = found(|exam| {
                set(exam, name, value);
                set(exam, "log_parameter_max_length", "0");
            });
            let expected = if name.ends_with("on_error") { expected } else { Vec::new() };
            assert_eq!(without, expected, "{name} = {value}, without values");
        }
    }

    #[test]
    fn a_cap_is_read_as_people_write_it_and_refused_with_what_is_accepted() {
        for (written, scope, most) in [
            ("fleet=8", CapScope::Fleet, Some(8)),
            ("account:a1b2=2", CapScope::Account("a1b2".into()), Some(2)),
            ("agent:claude=0", CapScope::Agent("claude".into()), Some(0)),
            ("host:a=b box=3", CapScope::Host("a=b box".into()), Some(3)),
            ("fleet=none", CapScope::Fleet, None),
        ] {
            assert_eq!(cap_asked(written), Ok((scope, most)), "{written}");
        }
        for (wrong, says) in [
            ("fleet", "no `=`"),
            ("fleet=", "no cap"),
            ("fleet=-1", "no cap"),
            ("fleet=many", "no cap"),
            ("fleet=100001", "no cap"),
            ("flet=3", "did you mean fleet?"),
            ("acount:a=3", "did you mean account?"),
            ("account:=3", "nothing that can have a cap"),
        ] {
            let said = cap_asked(wrong).expect_err(wrong);
            assert!(said.contains(says) && said.contains("accepted"), "{wrong}: {said}");
        }
    }
}
