//! What a host and its waiting process say to each other: one JSON object a line.
//!
//! Owns: the words. May not know: who acts on them. A line is shorter than a pipe's atomic write, so that none is ever half
//! written; what cannot be read is skipped, so that two versions of the program may meet on one pair of pipes.

use serde::{Deserialize, Serialize};

use crate::base::ids::JobId;

/// What a host says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ToWaiting {
    /// This job waits for its turn.
    Wait(JobId),
    /// It waits, and was handed in by another image of this host: what was said about it since may be lost.
    Again(JobId),
    /// The host has started its runner.
    Taken(JobId),
    /// The host does not start it: nobody attends to it any more.
    Yours(JobId),
    /// It is over, or in other hands.
    Leave(JobId),
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
