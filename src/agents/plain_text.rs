//! The output of a program that just writes its answer.
//!
//! Owns: what of it is kept. May not know: whether the program ended well, which is what makes it an answer
//! ([`AgentProfile::answers_by_ending_well`](super::AgentProfile::answers_by_ending_well)).
//!
//! Invariant: at most [`KEPT`] bytes are kept.

use super::{AgentEvent, OutputParser};

/// Bytes of an answer that are kept: the beginning, where such programs say most. What is more is counted as unreadable.
const KEPT: usize = 256 << 10;

/// Takes everything a program writes for its answer.
#[derive(Debug, Default)]
pub struct PlainText {
    text: String,
    left_out: u64,
}

impl PlainText {
    /// Nothing was written yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }
}

impl OutputParser for PlainText {
    fn line(&mut self, line: &[u8], out: &mut Vec<AgentEvent>) {
        if self.text.is_empty() && self.left_out == 0 {
            // Whoever waits for the answer hears that something comes.
            out.push(AgentEvent::Other { kind: "text".to_owned() });
        } else {
            self.text.push('\n');
        }
        let line = String::from_utf8_lossy(line);
        match KEPT.checked_sub(self.text.len()) {
            Some(room) if room >= line.len() && self.left_out == 0 => self.text.push_str(&line),
            _ => self.left_out = self.left_out.saturating_add(line.len() as u64),
        }
    }

    fn end(&mut self, out: &mut Vec<AgentEvent>) {
        let text = std::mem::take(&mut self.text);
        if !text.trim().is_empty() {
            out.push(AgentEvent::Text { text });
        }
        if self.left_out > 0 {
            out.push(AgentEvent::Garbage { bytes: self.left_out });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agents::{AgentProfile, OutputReader, RunEnd, RunSummary};
    use crate::base::fault::FaultCode;
    use crate::jobs::{JobState, RunExit};

    fn said(output: &[u8]) -> RunSummary {
        let (mut reader, mut events) = (OutputReader::new(Box::new(PlainText::new())), Vec::new());
        output.chunks(7).for_each(|bytes| reader.push(bytes, &mut events));
        reader.finish(&mut events);
        let mut summary = RunSummary::new();
        events.iter().for_each(|event| summary.fold(event));
        summary
    }

    #[test]
    fn what_was_said_is_the_answer_of_a_program_that_ends_well_and_of_no_other() {
        let profile = AgentProfile::new("The oracle").answers_by_ending_well();
        let table = [
            ("yes\n\nand no\n", Some(0), JobState::Succeeded, Some("yes\n\nand no"), None),
            ("yes", Some(0), JobState::Succeeded, Some("yes"), None),
            ("yes\n", Some(1), JobState::Failed, Some("yes"), Some(FaultCode::AgentError)),
            ("", Some(0), JobState::Failed, None, Some(FaultCode::EmptyAnswer)),
            (" \n", Some(0), JobState::Failed, None, Some(FaultCode::EmptyAnswer)),
            ("", None, JobState::Failed, None, Some(FaultCode::Internal)),
        ];
        for (output, code, state, response, fault) in table {
            let exit = code.map(|code| RunExit { code, signal: None, reaped: 0 });
            let verdict = profile.classify(RunEnd { summary: said(output.as_bytes()), exit, ..RunEnd::default() });
            let outcome = verdict.outcome;
            assert_eq!((verdict.state, outcome.response.as_deref()), (state, response), "{output:?}, {code:?}");
            assert_eq!(outcome.fault.map(|fault| fault.code), fault, "{output:?}, {code:?}");
        }
        // By another profile the same output is no answer: nothing says that it is whole.
        let exit = Some(RunExit { code: 0, signal: None, reaped: 0 });
        let verdict = AgentProfile::new("x").classify(RunEnd { summary: said(b"yes"), exit, ..RunEnd::default() });
        assert_eq!(verdict.outcome.fault.map(|fault| fault.code), Some(FaultCode::AgentProtocol));
    }

    #[test]
    fn more_than_is_kept_is_counted() {
        let summary = said(&[&b"x"[..], &vec![b'y'; KEPT], b"z"].join(&b'\n'));
        assert_eq!((summary.partial_text(), summary.garbage_bytes()), ("x\n\n", KEPT as u64 + 1));
        let profile = AgentProfile::new("The oracle").answers_by_ending_well();
        let exit = Some(RunExit { code: 0, signal: None, reaped: 0 });
        let outcome = profile.classify(RunEnd { summary, exit, ..RunEnd::default() }).outcome;
        assert!(outcome.fault.is_none() && outcome.response_cut, "{outcome:?}");
    }
}
