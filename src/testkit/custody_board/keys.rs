//! Cells about keys: the environment holds what pays for every agent, and one of them is asked.
//!
//! Owns: those cells. May not know: the others.

use std::collections::BTreeMap;

use super::super::rig::KEY;
use super::part::{secrets, switches};
use super::{Seen, Tried, only_run, over, world};
use crate::jobs::Billing;

/// The value of a switch that is on.
const ON: &str = "true";

/// What of everything that pays for any agent, or logs one in, reaches the one that is asked.
pub(super) async fn reaching(tried: &Tried, billing: Billing) -> Seen {
    let (own, switches) = (tried.part.key(), switches());
    // No value is part of another one's; each passes as a text and as a path.
    let value = |number: usize, name: &str| match name {
        name if Some(name) == own => KEY.to_owned(),
        name if switches.contains(name) => ON.to_owned(),
        _ => format!("/planted/{number:03}"),
    };
    let planted: BTreeMap<&str, String> =
        secrets().into_iter().enumerate().map(|(number, name)| (name, value(number, name))).collect();
    let mut rig = world(tried).with("PHONE_OPUS_BILLING", billing.as_str());
    planted.iter().for_each(|(name, value)| rig.set(name, value.clone()));
    let mut host = rig.serve().await;
    let reply = host.consult(&rig.answering("42")).await;
    if rig.runs().is_empty() {
        return over(&rig, host, (format!("not asked: `{}`", reply.code()), Some(false))).await;
    }
    let run = only_run(&rig);
    let environment = run.start["env"].as_object().cloned().unwrap_or_default();
    let reached = |name: &str, value: &str| match value {
        ON => environment.get(name).is_some_and(|held| held == ON),
        // By its value, under whatever name.
        value => environment.values().any(|held| held.as_str().is_some_and(|held| held.contains(value))),
    };
    let came: Vec<&str> = planted.iter().filter(|(name, value)| reached(name, value)).map(|(name, _)| *name).collect();
    let meant: Vec<&str> = planted.keys().copied().filter(|name| tried.part.is_handed(name, billing)).collect();
    let strange: Vec<&str> = came.iter().copied().filter(|name| !meant.contains(name)).collect();
    let missing: Vec<&str> = meant.iter().copied().filter(|name| !came.contains(name)).collect();
    let seen = match (&strange[..], &missing[..]) {
        ([], []) => format!("{} of {}, which are its own", came.len(), planted.len()),
        ([], missing) => format!("not its own {}", missing.join(", ")),
        (strange, _) => format!("{}, which are not its own", strange.join(", ")),
    };
    over(&rig, host, (seen, Some(strange.is_empty() && missing.is_empty()))).await
}
