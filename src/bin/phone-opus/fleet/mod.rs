//! `fleet`: the hosts of several machines and their one queue.
//!
//! Owns: the questions, the exit codes. May not know: SQL, whose turn it is, how a table looks.

mod shown;

use std::process::ExitCode;

use phone_opus::internals::base::ids::HostId;
use phone_opus::internals::fleet::claiming::CapScope;
use phone_opus::internals::fleet::people::{FleetSeen, cap_asked};
use phone_opus::internals::fleet::postgres::PgFleet;
use phone_opus::internals::fleet::{FleetAddress, FleetError};
use serde_json::json;

use crate::cli::{FleetAsked, FleetCapsCommand, FleetCommand, Overrides};
use crate::logging;
use crate::output::{out, print, print_json, print_lines, say};
use crate::settings::{configure, refused, runtime};

/// Wrong usage, or nothing is configured.
const WRONG_USAGE: u8 = 2;

/// Why a command ended early.
enum Ended {
    /// It was said already.
    With(ExitCode),
    Failed(FleetError),
}

impl From<FleetError> for Ended {
    fn from(error: FleetError) -> Self {
        Self::Failed(error)
    }
}

/// Asks the fleet of the user's configuration.
pub(crate) fn run(command: &FleetCommand) -> ExitCode {
    logging::start();
    let of = match command {
        FleetCommand::Status(of) | FleetCommand::Hosts(of) => of,
        FleetCommand::Drain(machine) | FleetCommand::Resume(machine) => &machine.of,
        FleetCommand::Caps { set: Some(FleetCapsCommand::Set { of, .. }), .. } => of,
        FleetCommand::Caps { set: None, of } => of,
    };
    // Before anybody is asked: every wrong cap is named.
    let caps = match command {
        FleetCommand::Caps { set: Some(FleetCapsCommand::Set { caps, .. }), .. } => match read_caps(caps) {
            Ok(caps) => caps,
            Err(code) => return code,
        },
        _ => Vec::new(),
    };
    let address = match configured(of) {
        Ok(address) => address,
        Err(code) => return code,
    };
    let runtime = match runtime() {
        Ok(runtime) => runtime,
        Err(error) => return refused(&error),
    };
    match runtime.block_on(ask(command, &address, &caps, of.json)) {
        Ok(code) | Err(Ended::With(code)) => code,
        Err(Ended::Failed(error)) => {
            say(&format!("phone-opus: {}: failed to {error}", address.shown()));
            ExitCode::FAILURE
        }
    }
}

/// The fleet's address, or what to do about that there is none.
fn configured(of: &FleetAsked) -> Result<FleetAddress, ExitCode> {
    let prepared = configure(&of.common, &Overrides::default()).map_err(|error| refused(&error))?;
    prepared.config.fleet.clone().ok_or_else(|| {
        say("phone-opus: no fleet is configured: write fleet = \"postgres://USER@HOST/DATABASE\" into the user's \
             configuration (`phone-opus config show` says where that is), or set PHONE_OPUS_FLEET");
        ExitCode::from(WRONG_USAGE)
    })
}

type Caps = Vec<(CapScope, Option<u64>)>;

fn read_caps(written: &[String]) -> Result<Caps, ExitCode> {
    let (mut caps, mut wrong) = (Vec::new(), Vec::new());
    for one in written {
        match cap_asked(one) {
            Ok(cap) => caps.push(cap),
            Err(why) => wrong.push(why),
        }
    }
    if wrong.is_empty() {
        return Ok(caps);
    }
    wrong.iter().for_each(|why| say(&format!("phone-opus: fleet caps set: {why}")));
    Err(ExitCode::from(WRONG_USAGE))
}

async fn ask(
    command: &FleetCommand,
    address: &FleetAddress,
    caps: &[(CapScope, Option<u64>)],
    json: bool,
) -> Result<ExitCode, Ended> {
    let fleet = PgFleet::open(address.as_str()).await?;
    match command {
        FleetCommand::Status(_) => {
            let seen = fleet.seen().await?;
            tell(json, &seen, || shown::status(&seen, &address.shown(), out()));
        }
        FleetCommand::Hosts(_) => {
            let seen = fleet.seen().await?;
            if json {
                print_json(json!({"hosts": seen.hosts, "unread": seen.unread, "more": seen.more}));
            } else {
                print_lines(&shown::hosts(&seen, out()));
            }
        }
        FleetCommand::Drain(machine) => return drain(&fleet, &machine.name, true, json).await,
        FleetCommand::Resume(machine) => return drain(&fleet, &machine.name, false, json).await,
        FleetCommand::Caps { .. } => {
            for (scope, cap) in caps {
                fleet.set_cap(scope, *cap).await?;
            }
            let seen = fleet.seen().await?;
            if json {
                print_json(json!({"caps": seen.caps}));
            } else {
                print_lines(&shown::caps(&seen, out()));
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn tell(json: bool, seen: &FleetSeen, lines: impl FnOnce() -> Vec<crate::screen::Line>) {
    if json { print_json(json!(seen)) } else { print_lines(&lines()) }
}

async fn drain(fleet: &PgFleet, name: &str, drained: bool, json: bool) -> Result<ExitCode, Ended> {
    let hosts: Vec<HostId> = fleet.set_drained_named(name, drained).await?;
    if hosts.is_empty() {
        let seen = fleet.seen().await?;
        let mut there: Vec<&str> =
            seen.hosts.iter().filter(|host| host.lives()).map(|host| host.name.as_str()).collect();
        there.dedup();
        let near = phone_opus::internals::base::nearest::nearest(name, &there);
        let meant = near.map(|near| format!(" (did you mean {near}?)")).unwrap_or_default();
        let there = if there.is_empty() { "none".to_owned() } else { there.join(", ") };
        say(&format!("phone-opus: no host of the name {name:?} lives{meant}; those that do: {there}"));
        return Err(Ended::With(ExitCode::FAILURE));
    }
    if json {
        print_json(json!({"hosts": hosts, "drained": drained}));
    } else {
        let count = crate::screen::ages::counted(u64::try_from(hosts.len()).unwrap_or(u64::MAX), "host");
        let says = if drained { "no more jobs; what runs goes on" } else { "jobs again" };
        print(&format!("{count} on {name}: {says}"));
    }
    Ok(ExitCode::SUCCESS)
}
