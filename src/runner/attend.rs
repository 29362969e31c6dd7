//! The runner beside a running agent: it reads what the agent writes, and ends it when its time has come.
//!
//! Owns: the agent's output on its way to journal and summary. May not know: how the agent was started, what its end means.
//!
//! Invariants: (1) every event is looked at by the payer's guard before anything else is done about it; (2) nothing waits
//! for a reader of the output; (3) the agent's group is empty when this returns (L7).

use std::time::Instant;

use bytes::Bytes;

use super::Runner;
use super::core::Pipe;
use super::process::{Ended, Process, Steering};
use super::talk::Talk;
use super::waking::{Host, LOOK_EVERY};
use super::workspace::Watch;
use crate::agents::{Agent, AgentCommand, AgentEvent, OutputReader, PayerGuard, RunSummary};
use crate::exec::OutputStream;
use crate::exec::backend::ProcessLost;
use crate::exec::local::{OutputTap, ProcessEnd};
use crate::jobs::JournalEvent;

/// The end of the agent's standard error that is kept.
const STDERR_KEPT: usize = 4 * 1024;

/// What was seen of a run that is over.
pub(super) struct Seen {
    pub(super) summary: RunSummary,
    pub(super) stderr: Vec<u8>,
    pub(super) end: ProcessEnd,
    /// It is on another machine, and what became of it cannot be learnt.
    pub(super) lost: Option<ProcessLost>,
}

/// Reads the agent's output to its end, and ends the agent when its time has come.
pub(super) async fn attend(
    runner: &mut Runner,
    agent: &dyn Agent,
    command: &AgentCommand,
    talk: Talk,
    process: &mut Process,
    mut tap: OutputTap,
    watch: &mut Option<Watch>,
) -> Seen {
    let mut output = Output::new(agent, command, talk, runner, process.steering());
    output.answer(runner);
    let mut looks = tokio::time::interval(LOOK_EVERY);
    looks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut open = true;
    let (mut ended, mut lost) = (None, None);
    while open || ended.is_none() {
        tokio::select! {
            chunk = tap.next(), if open => match chunk {
                Some((stream, bytes)) => {
                    process.show(stream, &bytes);
                    output.take(stream, &bytes);
                }
                None => {
                    output.reader.finish(&mut output.events);
                    open = false;
                }
            },
            end = process.ended(), if ended.is_none() => {
                let end = match end {
                    Ended::Known(end) => end,
                    Ended::Lost(why) => {
                        lost = Some(why);
                        NOT_KNOWN
                    }
                };
                runner.journal.write(JournalEvent::ProcessExited { code: end.code });
                ended = Some(end);
            }
            () = output.talk.work(), if output.talk.has_work() => {}
            _ = looks.tick() => {
                runner.look().await;
                // Whatever came in while the runner was busy is heard before the silence is counted.
                let chunk = if open { tap.try_next() } else { None };
                let pipe = if chunk.is_some() || !process.is_heard() { Pipe::Unread } else { Pipe::Empty };
                if let Some((stream, bytes)) = chunk {
                    process.show(stream, &bytes);
                    output.take(stream, &bytes);
                }
                runner.core.listened(Instant::now(), pipe);
            }
            Some(()) = runner.asked.recv() => runner.asked_to_end().await,
            _ = runner.server.peer_gone(), if runner.host == Host::There => runner.host_went(),
            _ = runner.signals.terminate.recv() => runner.core.told_to_stop(),
            _ = runner.signals.hangup.recv() => {}
            _ = runner.signals.look.recv() => looks.reset_immediately(),
        }
        output.settle(runner, agent, watch);
        output.answer(runner);
        let now = Instant::now();
        if runner.core.tick(now).is_some() {
            output.stop(now);
        }
        if output.talk.is_overdue(now) {
            output.control.terminate();
        }
    }
    Seen { summary: output.summary, stderr: output.stderr, end: ended.unwrap_or(NOT_KNOWN), lost }
}

/// An end nobody has told.
const NOT_KNOWN: ProcessEnd =
    ProcessEnd { code: -1, signal: None, reaped: 0, left: 0, terminated: false, pipes_leaked: false };

/// The agent's output, and what is known from it.
struct Output {
    reader: OutputReader,
    talk: Talk,
    /// It was asked to end.
    is_ending: bool,
    guard: PayerGuard,
    control: Steering,
    summary: RunSummary,
    stderr: Vec<u8>,
    events: Vec<AgentEvent>,
    heard: bool,
}

impl Output {
    fn new(agent: &dyn Agent, command: &AgentCommand, mut talk: Talk, runner: &Runner, control: Steering) -> Self {
        let parser = talk.take_dialogue().unwrap_or_else(|| agent.parser());
        Self {
            reader: OutputReader::new(parser),
            talk,
            is_ending: false,
            guard: PayerGuard::new(agent.payer(), command.payment, runner.options.extra_usage),
            control,
            summary: RunSummary::new(),
            stderr: Vec::new(),
            events: Vec::new(),
            heard: false,
        }
    }

    fn take(&mut self, stream: OutputStream, bytes: &Bytes) {
        self.heard = true;
        match stream {
            OutputStream::Stdout => self.reader.push(bytes, &mut self.events),
            OutputStream::Stderr => keep_tail(&mut self.stderr, bytes),
        }
    }

    /// Says what is to be said to an agent that is talked to.
    fn answer(&mut self, runner: &mut Runner) {
        if let Err(fault) = self.talk.take(self.reader.replies(), Instant::now()) {
            runner.core.faulted(fault);
        }
    }

    /// Ends the agent; one that can be told so is told first, and given a moment.
    fn stop(&mut self, now: Instant) {
        if !self.is_ending {
            self.is_ending = true;
            if self.reader.stop() {
                self.talk.told_to_stop(now);
                // What it does not read it cannot heed, and it is ended all the same.
                let _ = self.talk.take(self.reader.replies(), now);
            }
        }
        if !self.talk.is_stopping(now) {
            self.control.terminate();
        }
    }

    /// Acts on what was taken.
    fn settle(&mut self, runner: &mut Runner, agent: &dyn Agent, watch: &mut Option<Watch>) {
        if std::mem::take(&mut self.heard) {
            runner.core.heard();
        }
        let now = Instant::now();
        for event in self.events.drain(..) {
            if let Err(fault) = self.guard.look(agent, &event) {
                runner.core.faulted(fault);
                // Asked to stop, Claude Code still sends the request it was about to send, and somebody who was not to
                // pays for it: the request follows its introduction by 40 ms.
                self.control.kill();
            }
            if let Some(watch) = watch.as_mut().filter(|_| is_work(&event)) {
                watch.at_work();
            }
            runner.core.said(&event, now);
            self.summary.fold(&event);
            runner.journal.write(JournalEvent::Agent { event });
        }
    }
}

fn is_work(event: &AgentEvent) -> bool {
    matches!(event, AgentEvent::ToolUse { .. } | AgentEvent::ToolResult)
}

fn keep_tail(tail: &mut Vec<u8>, bytes: &[u8]) {
    tail.extend_from_slice(bytes);
    if tail.len() > STDERR_KEPT {
        tail.drain(..tail.len() - STDERR_KEPT);
    }
}
