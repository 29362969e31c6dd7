//! Whether a caller may have a directory looked into, and read the jobs of it.
//!
//! Owns: how [`Consults`] put the rule of [`places`](crate::places) to a directory: what is looked at, in which order, how long.
//! May not know: the rule.
//!
//! A client's roots are asked about only when they could decide: most consults ask about the directory of the server.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::arguments::ArgumentReader;
use super::callers::CallerOrigin;
use super::consult::{Consults, LOOK_BOUND, resolved, within};
use crate::agents::AgentSite;
use crate::base::fault::{Fault, FaultCode};
use crate::base::ids::SessionNumber;
use crate::jobs::{JobRecord, JobSummary};
use crate::places::{self, Grounds, PlaceRefused};

/// Who asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Caller {
    /// Whoever runs this program: an embedding program, a person at a keyboard.
    Owner,
    /// The client of a session.
    Client(SessionNumber),
}

/// What is wrong with a directory, and what is accepted instead.
pub(super) type Wrong = (&'static str, &'static str);

/// How a directory that was named becomes a resolved one.
type Resolve = fn(PathBuf) -> Result<PathBuf, &'static str>;

/// A resolved directory, and whether its caller may have it looked into.
type Judged = (PathBuf, Result<(), PlaceRefused>);

/// What is accepted where there is no directory at all.
pub(super) const DIRECTORY: &str = "the absolute path of an existing directory";

impl Consults {
    /// A directory its caller may have looked into, made canonical.
    pub(super) async fn place(&self, dir: PathBuf, caller: Caller) -> Result<PathBuf, Wrong> {
        if let Some(judged) = self.judge_workspace_elsewhere(&dir) {
            let accepted = "AGENT:/DIR of an agent on another machine and below its `workspaces`";
            return judged.map(|()| dir).map_err(|refused| (refused.wrong_elsewhere(), accepted));
        }
        if !dir.is_absolute() {
            return Err(("is not absolute", DIRECTORY));
        }
        let (found, judged) = self.judge(dir, resolved, caller).await.map_err(|wrong| (wrong, DIRECTORY))?;
        if found.to_str().is_none() {
            return Err(("is not UTF-8", "a directory whose path is, links followed"));
        }
        judged.map_err(|refused| (refused.wrong(), self.accepted(refused)))?;
        Ok(found)
    }

    /// Whether a caller may look into this directory, and the directory resolved.
    ///
    /// # Errors
    ///
    /// What is wrong with it, as `resolve` says, or that it hangs.
    async fn judge(&self, dir: PathBuf, resolve: Resolve, caller: Caller) -> Result<Judged, &'static str> {
        let Caller::Client(session) = caller else {
            return self.looked(dir, resolve, Vec::new(), |grounds, dir| grounds.judge_secrets(dir)).await;
        };
        // A start directory that grants nothing by itself gives way to roots, so they come first there.
        let broad = self.places.is_broad();
        let first = if broad { self.roots_of(session).await } else { Vec::new() };
        let (found, judged) = self.looked(dir, resolve, first, Grounds::judge).await?;
        if broad || judged != Err(PlaceRefused::Outside) {
            return Ok((found, judged));
        }
        let roots = self.roots_of(session).await;
        if roots.is_empty() { Ok((found, judged)) } else { self.looked(found, Ok, roots, Grounds::judge).await }
    }

    /// What the client of a session works on. One that has not said whose session it is may have `workspaces` looked into
    /// and nothing it names itself.
    pub(super) async fn roots_of(&self, session: SessionNumber) -> Vec<PathBuf> {
        if self.origin == CallerOrigin::Base { Vec::new() } else { self.roots.paths(session).await }
    }

    /// What is accepted instead of a directory that was refused.
    fn accepted(&self, refused: PlaceRefused) -> &'static str {
        match (refused, self.origin) {
            (PlaceRefused::Secrets, _) | (_, CallerOrigin::Host) => refused.accepted(),
            (PlaceRefused::Outside, CallerOrigin::Caller) => {
                "a directory below the one this session works in, below a root of its client, or listed in `workspaces` of \
                 the user's configuration"
            }
            (PlaceRefused::Outside, CallerOrigin::Base) => {
                "a directory listed in `workspaces` of the user's configuration (PHONE_OPUS_WORKSPACES); a session that is \
                 opened with a directory of its own may look into that as well"
            }
        }
    }

    /// One look for all there is to see, on a thread that may hang.
    async fn looked(
        &self,
        dir: PathBuf,
        resolve: Resolve,
        roots: Vec<PathBuf>,
        judge: fn(&Grounds, &Path) -> Result<(), PlaceRefused>,
    ) -> Result<Judged, &'static str> {
        let places = Arc::clone(&self.places);
        let look = move || {
            let dir = resolve(dir)?;
            let grounds = places.resolve(&roots);
            let judged = if !grounds.is_clone(&dir) && dir.ancestors().any(places::is_state) {
                Err(PlaceRefused::Secrets)
            } else {
                judge(&grounds, &dir)
            };
            Ok((dir, judged))
        };
        within(LOOK_BOUND, look).await
    }

    /// The directory of a consult whose agent runs on another machine, as its name says it, and its workspace. Nothing of this
    /// machine is looked at: not the directory, no project's file. Its machine is asked by the runner before anything starts.
    pub(super) fn directory_elsewhere(
        &self,
        given: Option<String>,
        agent: &str,
        site: &AgentSite,
        args: &mut ArgumentReader,
    ) -> Option<(PathBuf, PathBuf)> {
        let listed = || site.workspaces.iter().map(|dir| dir.display().to_string()).collect::<Vec<_>>().join(", ");
        let accepted = || format!("a directory of the machine of `{agent}`, below {}", listed());
        let dir = match (given, &site.workspaces[..]) {
            (Some(given), _) => PathBuf::from(given),
            (None, [only]) => only.clone(),
            (None, _) => {
                args.problem("cwd", format_args!("is missing, and `{agent}` has more than one workspace"), accepted());
                return None;
            }
        };
        let judged = places::named_elsewhere(&dir).and_then(|dir| {
            places::judge_elsewhere(&dir, &site.workspaces, None).map_err(PlaceRefused::wrong_elsewhere)?;
            Ok(dir)
        });
        match judged {
            Ok(dir) => {
                let workspace = places::elsewhere(agent, &dir);
                Some((dir, workspace))
            }
            Err(wrong) => {
                args.problem("cwd", wrong, accepted());
                None
            }
        }
    }

    /// Whether a caller may read jobs of this workspace, where it is one of another machine.
    ///
    /// # Errors
    ///
    /// Why not.
    pub(super) fn judge_workspace_elsewhere(&self, workspace: &Path) -> Option<Result<(), PlaceRefused>> {
        let (agent, dir) = places::of_elsewhere(workspace)?;
        let site = self.config.agents.get(agent);
        let granted = site.map_or(&[][..], |site| &site.workspaces[..]);
        Some(places::judge_elsewhere(dir, granted, None))
    }

    /// Everything that grants a caller anything, resolved; `None` for who may see everything.
    async fn grounds(&self, caller: Caller) -> Option<Grounds> {
        let Caller::Client(session) = caller else { return None };
        let roots = self.roots_of(session).await;
        let places = Arc::clone(&self.places);
        Some(within(LOOK_BOUND, move || Ok(places.resolve(&roots))).await.unwrap_or_default())
    }

    /// Whether a caller may read this job, or end it.
    ///
    /// # Errors
    ///
    /// `invalid_input`: it belongs to a directory the caller may not look into.
    ///
    /// # Cancel safety
    ///
    /// Safe.
    pub async fn check_job(&self, record: &JobRecord, caller: Caller) -> Result<(), Fault> {
        if caller == Caller::Owner || self.is_ours(&record.workspace) {
            return Ok(());
        }
        let judged = match self.judge_workspace_elsewhere(&record.workspace) {
            Some(judged) => judged,
            None => {
                let judged = self.judge(record.workspace.clone(), Ok, caller).await;
                judged.map_or(Err(PlaceRefused::Outside), |(_, judged)| judged)
            }
        };
        judged.map_err(|refused| {
            let (wrong, accepted) = (refused.wrong(), self.accepted(refused));
            let detail = format!("the job's directory {wrong}; accepted: jobs of {accepted}.");
            Fault::new(FaultCode::InvalidInput, detail).job(record.id)
        })
    }

    /// Those of these jobs that a caller may read.
    pub(super) async fn allowed(&self, mut rows: Vec<JobSummary>, caller: Caller) -> Vec<JobSummary> {
        if rows.iter().all(|row| self.is_ours(&row.workspace)) {
            return rows;
        }
        if let Some(grounds) = self.grounds(caller).await {
            let judge = |workspace: &Path| {
                self.judge_workspace_elsewhere(workspace).unwrap_or_else(|| grounds.judge(workspace))
            };
            rows.retain(|row| judge(&row.workspace).is_ok());
        }
        rows
    }

    /// Whether a job's directory, which was resolved when it was accepted, lies below a start directory that grants it: what
    /// most jobs are, and no look at the disk.
    fn is_ours(&self, workspace: &Path) -> bool {
        let state = self.places.state.as_deref().is_some_and(|state| workspace.starts_with(state));
        let start = self.places.start.as_deref().is_some_and(|start| workspace.starts_with(start));
        start && !self.places.is_broad() && !state && !places::is_secret(workspace)
    }
}
