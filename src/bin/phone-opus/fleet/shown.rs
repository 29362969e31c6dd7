//! A fleet in lines for people.
//!
//! Owns: the tables and the sentences. May not know: who was asked. In a pipe a table is one line for each row, with tabs between.

use phone_opus::internals::fleet::people::{FleetHostSeen, FleetSeen, silent_s};

use crate::screen::ages::{counted, elapsed};
use crate::screen::layout::{CellFit, Column, paragraph, table};
use crate::screen::{Face, Line, paint};

const HOSTS: [Column; 6] = [
    Column::new("HOST", CellFit::Wrap(10)),
    Column::new("STATUS", CellFit::Whole),
    Column::new("JOBS", CellFit::Whole),
    Column::new("HEARD", CellFit::Whole),
    Column::new("AGENTS", CellFit::Wrap(12)),
    Column::new("USER", CellFit::Wrap(6)),
];

const CAPS: [Column; 3] =
    [Column::new("CAP", CellFit::Wrap(20)), Column::new("USED", CellFit::Whole), Column::new("OF", CellFit::Whole)];

/// How it stands.
pub(super) fn status(seen: &FleetSeen, address: &str, face: Face) -> Vec<Line> {
    let jobs = |state: &str| seen.jobs.get(state).copied().unwrap_or(0);
    let lives = seen.hosts.iter().filter(|host| host.lives());
    let drained = lives.clone().filter(|host| host.drained).count();
    let running = jobs("running") + jobs("claimed");
    let waits = match seen.oldest_s {
        Some(oldest) => format!("{} wait, the oldest for {}", jobs("queued"), elapsed(oldest)),
        None => "none waits".to_owned(),
    };
    let mut says = vec![
        format!("{address}, tables of version {}", seen.tables),
        format!("{}, {drained} of them drained", counted(u64::try_from(lives.count()).unwrap_or(u64::MAX), "host")),
        format!("{} at work, {waits}", counted(running, "job")),
    ];
    if seen.held > 0 {
        let held = counted(seen.held, "job");
        says.push(format!("{held} of hosts that are gone: counted until it is known that nothing of them runs"));
    }
    if seen.unseen > 0 {
        says.push(format!("{} of other users, counted and not shown", counted(seen.unseen, "job")));
    }
    if let Some(left) = seen.quiet_s {
        says.push(format!(
            "the database's history changed, as after a fail-over: hosts say what they run, and nobody claims for {} more",
            elapsed(left)
        ));
    }
    for pause in &seen.pauses {
        says.push(format!("nothing is begun for {} for {} more: {}", pause.scope, elapsed(pause.left_s), pause.why));
    }
    if seen.unread > 0 {
        let unread = counted(u64::try_from(seen.unread).unwrap_or(u64::MAX), "row");
        says.push(format!("{unread} of its tables that this version does not understand"));
    }
    let width = if face.terminal { face.width } else { usize::MAX };
    let mut lines: Vec<Line> = says.iter().flat_map(|line| paragraph(paint::PLAIN, line, width)).collect();
    if !seen.caps.is_empty() {
        lines.push(Line::default());
        lines.extend(caps(seen, face));
    }
    lines
}

/// Who is in it.
pub(super) fn hosts(seen: &FleetSeen, face: Face) -> Vec<Line> {
    if seen.hosts.is_empty() && face.terminal {
        return vec![Line::of(paint::PLAIN, "no host is in this fleet")];
    }
    let rows: Vec<Vec<Line>> = seen.hosts.iter().map(|it| host(seen.lease_s, it)).collect();
    let mut lines = table(&HOSTS, &rows, face);
    if seen.more && face.terminal {
        lines.push(Line::of(paint::DIM, "and more"));
    }
    lines
}

fn host(lease_s: u64, host: &FleetHostSeen) -> Vec<Line> {
    let (look, name) = match host.standing() {
        "lives" => (paint::GOOD, paint::BOLD),
        "drained" => (paint::DOUBT, paint::BOLD),
        _ => (paint::DIM, paint::DIM),
    };
    let heard = format!("{} ago", elapsed(silent_s(lease_s, host)));
    vec![
        Line::of(name, &host.name),
        Line::of(look, host.standing()),
        Line::of(paint::PLAIN, &format!("{} of {}", host.jobs, host.slots)),
        Line::of(paint::PLAIN, &heard),
        Line::of(paint::PLAIN, &host.agents.join(", ")),
        Line::of(paint::PLAIN, &host.owner),
    ]
}

/// The caps, and what is used of them.
pub(super) fn caps(seen: &FleetSeen, face: Face) -> Vec<Line> {
    if seen.caps.is_empty() && face.terminal {
        return vec![Line::of(paint::PLAIN, "no cap is set: `phone-opus fleet caps set fleet=8` sets one")];
    }
    let row = |cap: &phone_opus::internals::fleet::people::CapSeen| {
        let look = if cap.used >= cap.cap { paint::DOUBT } else { paint::PLAIN };
        vec![
            Line::of(paint::PLAIN, &cap.scope),
            Line::of(look, &cap.used.to_string()),
            Line::of(paint::PLAIN, &cap.cap.to_string()),
        ]
    };
    table(&CAPS, &seen.caps.iter().map(row).collect::<Vec<_>>(), face)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use phone_opus::internals::base::ids::HostId;
    use phone_opus::internals::fleet::people::{CapSeen, PauseSeen};

    use super::*;
    use crate::screen::layout::line_width;

    fn seen() -> FleetSeen {
        let host = |name: &str, lease_s, drained| FleetHostSeen {
            host: HostId::random(),
            name: name.to_owned(),
            owner: "a-rather-long-name-of-a-user".into(),
            drained,
            lease_s,
            jobs: 2,
            slots: 4,
            build: "0.1.0".into(),
            os: "linux/x86_64".into(),
            agents: ["claude", "codex", "copilot", "gemini", "opencode", "qwen"].map(str::to_owned).into(),
            tags: vec!["gpu".into()],
        };
        FleetSeen {
            fleet: "f".into(),
            tables: 3,
            lease_s: 60,
            quiet_s: Some(40),
            jobs: BTreeMap::from([("queued".to_owned(), 12), ("running".to_owned(), 1), ("claimed".to_owned(), 1)]),
            held: 1,
            oldest_s: Some(3_720),
            unseen: 2,
            hosts: vec![
                host("build.example.with.a.long.name.that.fits.no.column", 50, false),
                host("b\u{1b}[2Jox", 20, true),
                host("c", -400, false),
            ],
            caps: vec![CapSeen { scope: format!("account:{}", "a".repeat(64)), cap: 2, used: 2 }],
            pauses: vec![PauseSeen { scope: "agent:claude".into(), left_s: 90, why: "usage limit".into() }],
            unread: 1,
            more: true,
        }
    }

    fn text(lines: &[Line]) -> String {
        lines.iter().map(|line| line.plain() + "\n").collect()
    }

    #[test]
    fn every_table_fits_eighty_columns_and_says_what_there_is() {
        let face = Face { terminal: true, colour: false, moves: false, width: 80, height: 24 };
        let (status, hosts, caps) =
            (status(&seen(), "postgres://db/fleet", face), hosts(&seen(), face), caps(&seen(), face));
        for line in status.iter().chain(&hosts).chain(&caps) {
            assert!(line_width(line) <= 80, "{:?}", line.plain());
            assert!(!line.plain().contains('\u{1b}'), "{:?}", line.plain());
        }
        let status = text(&status).replace('\n', " ");
        for says in [
            "2 hosts, 1 of them drained",
            "2 jobs at work, 12 wait, the oldest for 1 h 02 min",
            "1 job of hosts that are gone",
            "2 jobs of other users",
            "nobody claims for 40 s more",
            "nothing is begun for agent:claude for 1 min 30 s more: usage limit",
            "1 row of its tables that this version",
        ] {
            assert!(status.contains(says), "{says}: {status}");
        }
        let hosts = text(&hosts);
        for says in ["lives", "drained", "gone", "2 of 4", "10 s ago", "7 min 40 s ago", "and more"] {
            assert!(hosts.contains(says), "{says}: {hosts}");
        }
    }

    #[test]
    fn in_a_pipe_a_row_is_a_line_and_nothing_is_said_of_what_is_not_there() {
        let face = Face { terminal: false, colour: false, moves: false, width: 80, height: 24 };
        let lines = hosts(&seen(), face);
        assert_eq!(lines.len(), 3);
        assert!(lines.iter().all(|line| line.plain().matches('\t').count() == 5), "{}", text(&lines));
        let empty = FleetSeen { hosts: Vec::new(), caps: Vec::new(), ..seen() };
        assert!(hosts(&empty, face).is_empty() && caps(&empty, face).is_empty());
    }
}
