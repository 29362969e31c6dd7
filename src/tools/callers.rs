//! Whose directory, environment and configuration the consults of a session get, by session.
//!
//! Owns: what is known of a caller, the table of a system's sessions, and what holds for a session that brought nothing of its
//! own. May not know: where a context comes from, what is run with it.
//!
//! Most sessions have the host's own context, and no place in the table costs them anything. A session with one of its own gets
//! it before it is served, and keeps it from its first call to its end.
//!
//! Invariants: (1) a context is in memory only, and shown by names; (2) a session that has, or had, a context of its own never
//! gets anybody else's: when it is over there is none for it. The table's lock is private to this file and never held over an
//! await.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::agents::Environment;
use crate::base::fault::{Fault, FaultCode};
use crate::base::ids::{ChainId, SessionNumber};
use crate::config::Config;

/// Whose environment it is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum CallerOrigin {
    /// The host's own.
    #[default]
    #[serde(rename = "own")]
    Host,
    /// What the caller sent.
    Caller,
    /// What the system says of the user: the caller sent none.
    Base,
}

impl CallerOrigin {
    /// The word that health and replies have for it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Host => "own",
            Self::Caller => "caller",
            Self::Base => "base",
        }
    }
}

/// What a consult gets of its caller.
#[derive(Clone, PartialEq)]
pub struct CallerContext {
    /// The directory it works in, canonical. A consult that names none runs there.
    pub cwd: Option<PathBuf>,
    /// What its agents' environment is made from. A worker process, which starts none, knows `HOME` only.
    pub environment: Environment,
    /// The configuration its consults are under.
    pub config: Arc<Config>,
    /// The chain of nested consults it is part of, and how deep.
    pub nesting: (Option<ChainId>, u32),
    /// Whether a way to pay was in its environment and was left out.
    pub key_withheld: bool,
    /// Whose environment it is.
    pub origin: CallerOrigin,
}

impl CallerContext {
    /// Its home.
    #[must_use]
    pub fn home(&self) -> Option<PathBuf> {
        self.environment.get("HOME").map(PathBuf::from)
    }
}

/// Names of variables only: values are secrets.
impl fmt::Debug for CallerContext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CallerContext")
            .field("cwd", &self.cwd)
            .field("environment", &self.environment)
            .field("nesting", &self.nesting)
            .field("key_withheld", &self.key_withheld)
            .field("origin", &self.origin)
            .finish_non_exhaustive()
    }
}

/// Sessions by whose environment they have.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct CallerCounts {
    /// The host's own.
    pub own: usize,
    /// Their caller's.
    pub caller: usize,
    /// That of the user, as the system says it.
    pub base: usize,
}

/// What is to be done for a session that is not in the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Absent {
    /// It has the host's own context: nobody has ever brought one.
    HasTheHosts,
    /// It is over.
    IsOver,
}

struct Table {
    /// `None` is the host's own.
    sessions: HashMap<SessionNumber, Option<Arc<CallerContext>>>,
    absent: Absent,
}

struct Shared {
    host: Arc<CallerContext>,
    /// Whether this is the copy of a worker process, which is told of sessions with a context of their own and of no others.
    copy: bool,
    table: Mutex<Table>,
}

/// The contexts of a system's sessions. Cheap to clone.
#[derive(Clone)]
pub struct Callers(Arc<Shared>);

impl fmt::Debug for Callers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Callers").field("sessions", &self.table().sessions.len()).finish_non_exhaustive()
    }
}

impl Callers {
    /// A table for sessions that have the host's own context as long as nothing else is said.
    #[must_use]
    pub fn new(host: CallerContext) -> Self {
        Self::with(host, false)
    }

    /// The copy of such a table in a worker process: who is not in it has the host's own context.
    #[must_use]
    pub fn copy_of(host: CallerContext) -> Self {
        Self::with(host, true)
    }

    fn with(host: CallerContext, copy: bool) -> Self {
        let table = Mutex::new(Table { sessions: HashMap::new(), absent: Absent::HasTheHosts });
        Self(Arc::new(Shared { host: Arc::new(host), copy, table }))
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        // Nothing that can panic leaves it half changed.
        self.0.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The host's own context.
    #[must_use]
    pub fn host(&self) -> &Arc<CallerContext> {
        &self.0.host
    }

    /// A session begins that has the host's own context, unless it is given another one.
    pub fn admit(&self, session: SessionNumber) {
        self.table().sessions.entry(session).or_default();
    }

    /// A session begins that has this context.
    pub fn admit_as(&self, session: SessionNumber, context: CallerContext) {
        let mut table = self.table();
        table.absent = if self.0.copy { Absent::HasTheHosts } else { Absent::IsOver };
        table.sessions.insert(session, Some(Arc::new(context)));
    }

    /// A session has this context from here on. To be said before its first call; for one that is over it says nothing.
    pub fn set(&self, session: SessionNumber, context: CallerContext) {
        let mut table = self.table();
        if let Some(known) = table.sessions.get_mut(&session) {
            *known = Some(Arc::new(context));
            table.absent = if self.0.copy { Absent::HasTheHosts } else { Absent::IsOver };
        }
    }

    /// The context of a session; `None` when it is over.
    #[must_use]
    pub fn of(&self, session: SessionNumber) -> Option<Arc<CallerContext>> {
        let table = self.table();
        match (table.sessions.get(&session), table.absent) {
            (Some(Some(own)), _) => Some(Arc::clone(own)),
            (Some(None), _) | (None, Absent::HasTheHosts) => Some(Arc::clone(&self.0.host)),
            (None, Absent::IsOver) => None,
        }
    }

    /// A session is over.
    pub fn forget(&self, session: SessionNumber) {
        self.table().sessions.remove(&session);
    }

    /// All contexts that are not the host's own.
    #[must_use]
    pub fn own(&self) -> Vec<(SessionNumber, Arc<CallerContext>)> {
        let own = |(session, context): (&SessionNumber, &Option<Arc<CallerContext>>)| {
            context.as_ref().map(|context| (*session, Arc::clone(context)))
        };
        self.table().sessions.iter().filter_map(own).collect()
    }

    /// The sessions that their callers opened as their own: such a caller knows what it asked, and comes back for it.
    #[must_use]
    pub fn returning(&self) -> HashSet<SessionNumber> {
        let is_callers = |context: &Option<Arc<CallerContext>>| {
            context.as_ref().is_some_and(|context| context.origin == CallerOrigin::Caller)
        };
        let table = self.table();
        table.sessions.iter().filter(|(_, context)| is_callers(context)).map(|(session, _)| *session).collect()
    }

    /// Sessions by whose environment they have.
    #[must_use]
    pub fn counts(&self) -> CallerCounts {
        let mut counts = CallerCounts::default();
        for context in self.table().sessions.values() {
            let origin = context.as_ref().map_or(CallerOrigin::Host, |context| context.origin);
            *match origin {
                CallerOrigin::Host => &mut counts.own,
                CallerOrigin::Caller => &mut counts.caller,
                CallerOrigin::Base => &mut counts.base,
            } += 1;
        }
        counts
    }
}

/// What a call is told whose session is over.
#[must_use]
pub fn session_over() -> Fault {
    Fault::new(FaultCode::CallerLost, "the session of this call is over, and its directory and environment with it.")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn context(origin: CallerOrigin, secret: &str) -> CallerContext {
        CallerContext {
            cwd: Some("/w".into()),
            environment: [("CANARY", secret)].into_iter().collect(),
            config: Arc::default(),
            nesting: (None, 0),
            key_withheld: false,
            origin,
        }
    }

    #[test]
    fn who_brings_nothing_has_the_hosts_context_and_who_does_has_its_own_to_the_end() {
        let callers = Callers::new(context(CallerOrigin::Host, "host"));
        let (one, two, three) = (SessionNumber(1), SessionNumber(2), SessionNumber(3));
        let origin = |session| callers.of(session).map(|context| context.origin);
        callers.admit(one);
        assert_eq!((origin(one), origin(two)), (Some(CallerOrigin::Host), Some(CallerOrigin::Host)));
        callers.forget(one);
        assert_eq!(origin(one), Some(CallerOrigin::Host), "a late call of a host that has one environment only");
        callers.admit_as(two, context(CallerOrigin::Base, "base"));
        callers.admit(three);
        callers.set(two, context(CallerOrigin::Caller, "two"));
        callers.admit(two);
        assert_eq!((origin(two), origin(three)), (Some(CallerOrigin::Caller), Some(CallerOrigin::Host)));
        assert_eq!(callers.counts(), CallerCounts { own: 1, caller: 1, base: 0 });
        callers.forget(two);
        callers.forget(three);
        assert_eq!((origin(two), origin(three)), (None, None), "never somebody else's");
        callers.set(two, context(CallerOrigin::Caller, "two"));
        assert_eq!(origin(two), None, "it was over before it was made out whose it is");
        assert!(callers.own().is_empty());
    }

    #[test]
    fn a_worker_process_is_told_of_contexts_of_their_own_only() {
        let callers = Callers::copy_of(context(CallerOrigin::Host, "host"));
        callers.admit_as(SessionNumber(2), context(CallerOrigin::Caller, "two"));
        let origin = |session| callers.of(SessionNumber(session)).map(|context| context.origin);
        assert_eq!((origin(1), origin(2)), (Some(CallerOrigin::Host), Some(CallerOrigin::Caller)));
    }

    #[test]
    fn no_value_is_shown() {
        let shown = format!("{:?}", context(CallerOrigin::Caller, "s3cr3t"));
        assert!(shown.contains("CANARY") && !shown.contains("s3cr3t"), "{shown}");
    }
}
