//! What a host and its waiting process say to each other: one JSON object a line.
//!
//! Owns: the words, and how the environment of a caller's job gets there. May not know: who acts on them. A line is shorter
//! than a pipe's atomic write, so that none is ever half written; what cannot be read is skipped, so that two versions of the
//! program may meet on one pair of pipes.
//!
//! Most jobs are run in the environment the two processes share. One that is run in its caller's ([`RunnerManner`]) is handed in
//! by several words: pieces, then how many bytes they are in all. A job whose pieces are not whole is not waited with.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::PathBuf;
use std::time::Duration;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::agents::{AgentSites, CustomAgents, Environment, ExtraUsage, PassedEnvironment};
use crate::base::base64::Base64;
use crate::base::ids::JobId;
use crate::runner::RunnerManner;

/// Bytes of one piece: with its name around it, no longer than the shortest atomic write there is.
const PIECE: usize = 256;

/// Bytes a manner may have: the largest environment a caller may send, its own settings, and what JSON and base64 add.
const MANNER: usize = 256 * 1024;

/// What a host says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ToWaiting {
    /// This job waits for its turn.
    Wait(JobId),
    /// It waits, and was handed in by another image of this host: what was said about it since may be lost.
    Again(JobId),
    /// A piece of how the runner of a job is started that is handed in next.
    Piece {
        /// The job.
        job: JobId,
        /// Where it begins, in bytes. At 0, what came before is forgotten.
        at: usize,
        /// The bytes.
        bytes: Base64,
    },
    /// [`ToWaiting::Wait`] for a job whose pieces have so many bytes.
    WaitAs(JobId, usize),
    /// [`ToWaiting::Again`] for such a job.
    AgainAs(JobId, usize),
    /// The host has started its runner.
    Taken(JobId),
    /// The host does not start it: nobody attends to it any more.
    Yours(JobId),
    /// It is over, or in other hands.
    Leave(JobId),
}

impl ToWaiting {
    /// Whether it is the last word of those by which a job is handed in.
    #[must_use]
    pub const fn hands_in(&self) -> bool {
        matches!(self, Self::Wait(_) | Self::Again(_) | Self::WaitAs(..) | Self::AgainAs(..))
    }
}

/// What a waiting process says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FromWaiting {
    /// Start its runner.
    Turn(JobId),
    /// It is over, or in other hands: the store says which.
    Over(JobId),
    /// Places in the queue have changed.
    Moved,
}

/// Whether a host has handed a job in before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum First {
    /// Never.
    Yes,
    /// By another image of it.
    No,
}

/// A manner on its way.
#[derive(Serialize, Deserialize)]
struct PassedManner {
    environment: Option<PassedEnvironment>,
    stall_s: u64,
    extra_usage: ExtraUsage,
    /// A path need not be text.
    #[serde(default)]
    programs: BTreeMap<String, Base64>,
    /// As versions before several agents read it and pass it on.
    #[serde(default)]
    claude_bin: Option<Base64>,
    agent_env: Vec<String>,
    #[serde(default)]
    sites: AgentSites,
    #[serde(default)]
    customs: CustomAgents,
}

/// The words by which a job is handed in; with a manner where its runner is not started as everybody's.
#[must_use]
pub fn hand_in(job: JobId, first: First, manner: Option<&RunnerManner>) -> Vec<ToWaiting> {
    let Some(manner) = manner else {
        return vec![if first == First::Yes { ToWaiting::Wait(job) } else { ToWaiting::Again(job) }];
    };
    let path = |path: &PathBuf| Base64(Bytes::copy_from_slice(path.as_os_str().as_bytes()));
    let passed = PassedManner {
        environment: manner.environment.as_ref().map(PassedEnvironment::from),
        stall_s: manner.stall.as_secs(),
        extra_usage: manner.extra_usage,
        programs: manner.programs.iter().map(|(agent, program)| (agent.clone(), path(program))).collect(),
        claude_bin: manner.programs.get("claude").map(path),
        agent_env: manner.agent_env.clone(),
        sites: manner.sites.clone(),
        customs: manner.customs.clone(),
    };
    // Bytes, numbers and names always have a JSON text.
    let text = Bytes::from(serde_json::to_vec(&passed).unwrap_or_default());
    let piece = |at: usize| ToWaiting::Piece { job, at, bytes: Base64(text.slice(at..text.len().min(at + PIECE))) };
    let mut words: Vec<ToWaiting> = (0..text.len()).step_by(PIECE).map(piece).collect();
    let as_it_came = if first == First::Yes { ToWaiting::WaitAs } else { ToWaiting::AgainAs };
    words.push(as_it_came(job, text.len()));
    words
}

/// What the pieces come to.
#[derive(Default)]
pub struct Pieces {
    job: Option<JobId>,
    text: Vec<u8>,
}

impl Pieces {
    /// Takes in a piece. One that does not go on where the last one ended spoils the whole.
    pub fn take(&mut self, job: JobId, at: usize, bytes: &[u8]) {
        if at == 0 {
            (self.job, self.text) = (Some(job), Vec::new());
        }
        if self.job != Some(job) || self.text.len() != at || at + bytes.len() > MANNER {
            *self = Self::default();
            return;
        }
        self.text.extend_from_slice(bytes);
    }

    /// The manner of a job, when the pieces of it are whole.
    pub fn whole(&mut self, job: JobId, bytes: usize) -> Option<RunnerManner> {
        let Self { job: of, text } = std::mem::take(self);
        if of != Some(job) || text.len() != bytes {
            return None;
        }
        let passed: PassedManner = serde_json::from_slice(&text).ok()?;
        let path = |Base64(bytes): Base64| PathBuf::from(OsString::from_vec(bytes.into()));
        let claude = passed.claude_bin.map(|path| ("claude".to_owned(), path));
        let programs = passed.programs.into_iter().chain(claude).map(|(agent, bytes)| (agent, path(bytes))).collect();
        Some(RunnerManner {
            environment: passed.environment.map(Environment::from),
            stall: Duration::from_secs(passed.stall_s),
            extra_usage: passed.extra_usage,
            programs,
            agent_env: passed.agent_env,
            sites: passed.sites,
            customs: passed.customs,
        })
    }
}

/// One line, with its end.
#[must_use]
pub fn line(word: &impl Serialize) -> Vec<u8> {
    // A unit and newtype variants over an id always have a JSON text.
    let mut line = serde_json::to_vec(word).unwrap_or_default();
    line.push(b'\n');
    line
}

/// What a line says; `None` when it is none of ours.
#[must_use]
pub fn read<'a, T: Deserialize<'a>>(line: &'a [u8]) -> Option<T> {
    serde_json::from_slice(line).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn manner(environment: Environment) -> RunnerManner {
        RunnerManner {
            environment: Some(environment),
            stall: Duration::from_secs(11),
            extra_usage: ExtraUsage::Stop,
            programs: [("codex".to_owned(), OsString::from_vec(b"/opt/\xff".to_vec()).into())].into(),
            agent_env: vec!["MINE".to_owned()],
            sites: AgentSites::new(),
            customs: CustomAgents::new(),
        }
    }

    /// What a waiting process makes of these words, as lines.
    fn taken(words: &[ToWaiting]) -> Vec<(JobId, Option<RunnerManner>)> {
        let mut pieces = Pieces::default();
        let mut came = Vec::new();
        for word in words {
            let line = line(word);
            assert!(line.len() < 512, "no longer than the shortest atomic write there is: {}", line.len());
            match read(&line).expect("a word") {
                ToWaiting::Piece { job, at, bytes } => pieces.take(job, at, &bytes.0),
                ToWaiting::WaitAs(job, bytes) | ToWaiting::AgainAs(job, bytes) => {
                    came.push((job, pieces.whole(job, bytes)));
                }
                other => panic!("{other:?}"),
            }
        }
        came
    }

    #[test]
    fn a_callers_environment_comes_as_it_was_or_not_at_all() {
        let job = JobId::random();
        assert_eq!(hand_in(job, First::Yes, None), [ToWaiting::Wait(job)]);
        assert_eq!(hand_in(job, First::No, None), [ToWaiting::Again(job)]);
        let odd = OsString::from_vec(b"a\nb\xff".to_vec());
        let small = manner([("ODD", odd), ("EMPTY", OsString::new())].into_iter().collect());
        let large = manner([("LARGE", "x".repeat(64 * 1024))].into_iter().collect());
        for manner in [&small, &large] {
            let words = hand_in(job, First::Yes, Some(manner));
            assert_eq!(taken(&words), [(job, Some(manner.clone()))]);
            // What another image had begun to say is forgotten.
            let begun = words[..words.len() / 2].iter().cloned();
            let again: Vec<ToWaiting> = begun.chain(hand_in(job, First::No, Some(manner))).collect();
            assert_eq!(taken(&again), [(job, Some(manner.clone()))]);
            for missing in (0..words.len() - 1).take(3) {
                let mut torn = words.clone();
                torn.remove(missing);
                assert_eq!(taken(&torn), [(job, None)], "without {missing}");
            }
        }
        let (mut of_one, of_other) =
            (hand_in(job, First::Yes, Some(&small)), hand_in(JobId::random(), First::Yes, Some(&small)));
        let last = of_one.pop().expect("a word");
        of_one.extend(of_other[..of_other.len() - 1].iter().cloned().chain([last]));
        assert_eq!(taken(&of_one), [(job, None)], "another's");
    }

    #[test]
    fn every_word_is_read_as_it_was_written_and_others_are_skipped() {
        let job = JobId::random();
        for word in [
            ToWaiting::Wait(job),
            ToWaiting::Again(job),
            ToWaiting::Taken(job),
            ToWaiting::Yours(job),
            ToWaiting::Leave(job),
        ] {
            let line = line(&word);
            assert!(line.len() < 512, "no longer than the shortest atomic write there is");
            assert_eq!(read(&line), Some(word));
        }
        for word in [FromWaiting::Turn(job), FromWaiting::Over(job), FromWaiting::Moved] {
            assert_eq!(read(&line(&word)), Some(word));
        }
        for strange in [&b""[..], b"{\"turn\":", b"{\"later\":1}", b"\xff"] {
            assert_eq!(read::<ToWaiting>(strange), None);
        }
    }
}
