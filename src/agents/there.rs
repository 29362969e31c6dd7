//! An agent's program on another machine: where it is, and what it can do.
//!
//! Owns: in which order places are looked at there, and how a program there is asked. May not know: how the machine is reached, how
//! its answers are read ([`probe`](super::probe)).
//!
//! A name is looked up by that machine itself, on the PATH it gives to what it starts. What is not on that PATH, which a login that
//! runs one command often lacks, is looked for where installers put programs.
//!
//! Invariant: a question never fails a run, but for a program that is not there: what cannot be found out is assumed to be the
//! newest.

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use futures_util::future::join_all;
use uuid::Uuid;

use super::programs;
use super::site::AgentSite;
use crate::base::fault::{Fault, FaultCode};
use crate::exec::backend::{EnvInherit, EnvPolicy, ExecBackend, ProcessStartError, StartRequest, StdinKind};
use crate::exec::local::SpawnError;
use crate::exec::{ExecTarget, OutputStream, ProcessSession};

/// Time for a question to a program there; half of what an answer takes may be the way.
const DEADLINE: Duration = Duration::from_secs(10);

/// Bytes of an answer that are read.
const MAX_OUTPUT: usize = 256 << 10;

/// The machine an agent is to run on, when it was reached.
#[derive(Clone, Copy)]
pub struct There<'a> {
    /// What runs processes there.
    pub backend: &'a dyn ExecBackend,
    /// What is known of it.
    pub site: &'a AgentSite,
    /// The home of the user there, where the machine says it.
    pub home: Option<&'a Path>,
}

impl fmt::Debug for There<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("There").field("site", self.site).finish_non_exhaustive()
    }
}

/// What of that machine's own environment its processes have: what a login cannot do without, and no key it may hold.
#[must_use]
pub fn core_environment() -> EnvPolicy {
    EnvPolicy { inherit: EnvInherit::Core, ..EnvPolicy::default() }
}

/// How a program of an agent is started there.
#[derive(Debug, Clone, Copy)]
pub(super) struct AskedThere<'a> {
    pub(super) env: &'a [(OsString, OsString)],
    pub(super) cwd: &'a Path,
}

/// A program that may be the agent's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Candidate {
    pub(super) program: PathBuf,
    /// The PATH it is given: none where it was found by that machine's own.
    pub(super) path: Option<OsString>,
}

impl There<'_> {
    /// The first program to try: the one that is configured, else the name, which that machine looks up.
    pub(super) fn first(&self, name: &str) -> Candidate {
        Candidate { program: PathBuf::from(self.site.program.as_deref().unwrap_or(name)), path: None }
    }

    /// Where the name is found besides that machine's PATH: nowhere when a path is configured.
    pub(super) async fn elsewhere(&self, name: &str) -> Option<Candidate> {
        let name = self.site.program.as_deref().unwrap_or(name);
        let files = self.backend.files()?;
        if name.contains('/') {
            return None;
        }
        let places: Vec<PathBuf> = programs::places_below(self.home?).map(|dir| dir.join(name)).collect();
        let looks = join_all(places.iter().map(|place| files.metadata(place))).await;
        let found = places.iter().zip(looks).find(|(_, look)| look.as_ref().is_ok_and(|found| found.is_file));
        found.map(|(program, _)| Candidate { program: program.clone(), path: programs::path_beside(program) })
    }

    /// The program, where it answers to `--version`.
    ///
    /// # Errors
    ///
    /// `agent_missing`.
    pub(super) async fn find(&self, name: &str, asked: AskedThere<'_>) -> Result<Candidate, Fault> {
        let first = self.first(name);
        match self.ask(&first, asked, &["--version"]).await {
            Err(error) if is_missing(&error) => self.elsewhere(name).await.ok_or_else(|| self.missing(name)),
            // What else is wrong with it is said by its start.
            _ => Ok(first),
        }
    }

    /// What a program of the machine itself says to these words, run in this directory; `None` for nothing.
    ///
    /// # Errors
    ///
    /// It was not started.
    pub async fn asked(&self, program: &str, cwd: &Path, words: &[&str]) -> Result<Option<String>, ProcessStartError> {
        let program = Candidate { program: program.into(), path: None };
        self.ask(&program, AskedThere { env: &[], cwd }, words).await
    }

    /// What it says to these words; `None` for nothing, in time or at all.
    ///
    /// # Errors
    ///
    /// It was not started.
    pub(super) async fn ask(
        &self,
        program: &Candidate,
        asked: AskedThere<'_>,
        words: &[&str],
    ) -> Result<Option<String>, ProcessStartError> {
        let mut request = StartRequest::new(format!("ask-{}", Uuid::new_v4()), program.program.clone(), asked.cwd);
        request.args = words.iter().map(OsString::from).collect();
        request.env = asked.env.to_vec();
        request.env.extend(program.path.iter().map(|path| ("PATH".into(), path.clone())));
        request.env_policy = Some(core_environment());
        request.stdin = StdinKind::Null;
        let answer = async {
            let (process, mut tap) = self.backend.start(request, ProcessSession::new()).await?;
            let mut said = Vec::new();
            while let Some((stream, bytes)) = tap.next().await {
                if stream == OutputStream::Stdout && said.len() < MAX_OUTPUT {
                    said.extend_from_slice(&bytes);
                }
            }
            drop(process);
            Ok(Some(String::from_utf8_lossy(&said).into_owned()))
        };
        tokio::time::timeout(DEADLINE, answer).await.unwrap_or(Ok(None))
    }

    /// What is said when the agent's program is not there.
    pub(super) fn missing(&self, name: &str) -> Fault {
        let named = self.site.program.as_deref().unwrap_or(name);
        let (searched, target) = (programs::searched_below(), &self.site.target);
        let detail = if matches!(target, ExecTarget::Own { .. }) {
            format!("`{named}` was not found on {target}.")
        } else if named.contains('/') {
            format!("`{named}` does not exist on {target}.")
        } else {
            format!("`{named}` was not found on {target}: neither on the PATH of its exec server nor {searched}.")
        };
        if matches!(target, ExecTarget::Own { .. }) {
            return Fault::new(FaultCode::AgentMissing, detail)
                .hint("Install it there, or have the program name its path there.");
        }
        Fault::new(FaultCode::AgentMissing, detail)
            .hint("Install it there, or name its path there as `program` in the agent's table of your configuration.")
    }
}

/// Whether a start failed because there is no such program.
pub(super) fn is_missing(error: &ProcessStartError) -> bool {
    matches!(error, ProcessStartError::Spawn(SpawnError::ProgramMissing { .. }))
}

/// Sets the PATH a candidate is to have, where it is to have one.
pub(super) fn set_path(env: &mut Vec<(OsString, OsString)>, candidate: &Candidate) {
    if let Some(path) = &candidate.path {
        env.retain(|(name, _)| name != OsStr::new("PATH"));
        env.push(("PATH".into(), path.clone()));
    }
}
