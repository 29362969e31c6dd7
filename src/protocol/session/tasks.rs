//! Tasks, in both protocols that have them: calls that become tasks, questions about tasks, subscriptions.
//!
//! Owns: which call becomes a task, what a request about tasks asks and how what was found out is answered. May not know:
//! where tasks are kept, what is said about one later (`standing`).
//!
//! Invariants: (1) a call that became a task is answered with it only when it is known how it stands; (2) a subscription is
//! acknowledged before anything is followed for it.

use std::borrow::Cow;
use std::time::Instant;

use bytes::{BufMut, Bytes, BytesMut};

use super::meta::{Meta, Refusal, invalid};
use super::requests::Dispatched;
use super::standing::{self, Filter};
use super::{
    ClientInfo, FinishedAs, Origin, Pending, SessionCore, SessionEffect, SessionEffects, Wanted, Work, shortened,
};
use crate::base::fault::{Fault, FaultCode};
use crate::base::ids::{CallNumber, JobId};
use crate::base::lenient;
use crate::protocol::catalog::TaskSupport;
use crate::protocol::envelope::{self, IdToken};
use crate::protocol::method::Method;
use crate::protocol::tasks::{self, TaskAnswer, TaskAsk, TaskCursor, TaskProtocol};
use crate::protocol::version::Version;
use crate::protocol::wire;

impl SessionCore {
    /// Whether a call becomes a task. In the core its client asks for it; in the extension we decide, and give one to every
    /// client that can take it, unless the caller wants to go on at once: then the job itself is what it asked for.
    pub(super) fn as_task(
        &self,
        tool: usize,
        version: Version,
        task: Option<&str>,
        arguments: &Bytes,
        meta: &Meta<'_>,
    ) -> Result<Option<TaskProtocol>, Box<Refusal>> {
        let support = self.catalog.tasks(tool);
        let several = match support {
            TaskSupport::OptionalWithout(argument) => is_listed(arguments, argument),
            TaskSupport::Forbidden | TaskSupport::Optional => false,
        };
        match version {
            Version::V2025_11_25 => match task.filter(|task| *task != "null") {
                None => Ok(None),
                Some(task) if !task.starts_with('{') => Err(invalid("params.task must be an object.")),
                Some(_) if support == TaskSupport::Forbidden => {
                    let detail = format!("calls of {} cannot become tasks.", self.catalog.name(tool));
                    Err(Fault::new(FaultCode::UnknownMethod, detail).into())
                }
                Some(_) => Ok((!several).then_some(TaskProtocol::Core)),
            },
            Version::V2026_07_28 if support.is_offered() && !several && meta.knows_tasks() => {
                let text = lenient::text(arguments);
                let background = envelope::object(&text, ["background"]).ok().and_then(|[background]| background);
                Ok((background != Some("true")).then_some(TaskProtocol::Extension))
            }
            _ => Ok(None),
        }
    }

    pub(super) fn listen(
        &mut self,
        id: &IdToken,
        filter: Filter,
        client: ClientInfo,
        origin: Origin,
        out: &mut BytesMut,
        effects: &mut SessionEffects,
    ) -> Result<Dispatched, Box<Refusal>> {
        let asked = self.pending.values().filter(|pending| matches!(pending.work, Work::Listen { .. })).count();
        if self.standings.streams() + asked >= standing::STREAMS {
            let fault =
                Fault::new(FaultCode::Busy, "as many subscriptions are open on this connection as may be (32).");
            return Err(fault.hint("Cancel one of them.").into());
        }
        match filter.tasks {
            Some(jobs) if self.catalog.offers_tasks() => {
                let work = Work::Listen { tools: filter.tools };
                let number = self.pend(id, Version::MODERN, client.clone(), work, 0, origin)?;
                effects.push_back(SessionEffect::Ask { number, ask: TaskAsk::Which(jobs), client });
            }
            tasks => {
                let number = self.next_call;
                self.next_call += 1;
                self.by_id.insert(id.clone(), number);
                let none: &[JobId] = &[];
                wire::subscribed(out, id, filter.tools, tasks.map(|_| none));
                self.standings.open_stream(number, id.clone(), filter.tools);
            }
        }
        Ok(Dispatched::InFlight)
    }

    /// Something about tasks was found out.
    pub fn on_told(
        &mut self,
        number: CallNumber,
        answer: Result<TaskAnswer, Box<Fault>>,
        now: Instant,
        out: &mut BytesMut,
        effects: &mut SessionEffects,
    ) {
        let Some(pending) = self.pending.get_mut(&number.0) else { return };
        let answer = match answer {
            Ok(answer) => answer,
            Err(fault) => {
                return self.deliver(number, now, out, effects, |_, pending, out| {
                    wire::error(out, Some(&pending.id), &fault, None);
                    FinishedAs::Failed(fault.code)
                });
            }
        };
        match (&mut pending.work, answer) {
            (Work::Listen { tools }, TaskAnswer::Known(jobs)) => {
                let tools = *tools;
                wire::subscribed(out, &pending.id, tools, Some(&jobs));
                let Some(pending) = self.forget(number.0) else { return };
                self.by_id.insert(pending.id.clone(), number.0);
                self.standings.open_stream(number.0, pending.id, tools);
                if !jobs.is_empty() {
                    effects.push_back(SessionEffect::Follow {
                        number,
                        jobs,
                        news: Wanted::Status,
                        client: pending.client,
                    });
                }
            }
            (Work::Created { progress, last_progress, protocol, .. }, TaskAnswer::Task(task)) => {
                let (protocol, last) = (*protocol, *last_progress);
                // The token of such a call lives until its task is over; a task of the extension has no progress, and is
                // told of to those who subscribe to it.
                let token = progress.take();
                let client = pending.client.clone();
                let jobs = vec![task.job];
                self.deliver(number, now, out, effects, |core, pending, out| match &task.result {
                    // It was over at once: a task would only make its client look for what is there.
                    Some(reply) if protocol == TaskProtocol::Extension => {
                        wire::called(out, &pending.id, pending.version, reply, &core.identity);
                        reply.fault.map_or(FinishedAs::Success, FinishedAs::Failed)
                    }
                    _ => {
                        tasks::created(out, &pending.id, protocol, &task, &core.identity);
                        FinishedAs::Success
                    }
                });
                let news = if token.is_some() { Wanted::Progress } else { Wanted::End };
                if protocol == TaskProtocol::Core && self.standings.tell_of_task(number.0, token, last) {
                    effects.push_back(SessionEffect::Follow { number, jobs, news, client });
                }
            }
            (Work::Ask(method), answer) => {
                let method = *method;
                self.deliver(number, now, out, effects, |core, pending, out| core.tell(pending, method, answer, out));
            }
            (Work::Tool { .. } | Work::Created { .. } | Work::Listen { .. } | Work::Gone, _) => {
                self.deliver(number, now, out, effects, |_, pending, out| misunderstood(out, &pending.id));
            }
        }
    }

    /// Writes an answer about tasks.
    fn tell(&self, pending: &Pending, method: Method, answer: TaskAnswer, out: &mut BytesMut) -> FinishedAs {
        let protocol = TaskProtocol::of(pending.version);
        match (method, protocol, answer) {
            (Method::TasksResult, _, TaskAnswer::Task(task)) => {
                let Some(reply) = &task.result else { return misunderstood(out, &pending.id) };
                tasks::payload(out, &pending.id, pending.version, task.job, reply);
            }
            (_, _, TaskAnswer::Task(task)) => tasks::shown(out, &pending.id, protocol, &task, &self.identity),
            (_, TaskProtocol::Core, TaskAnswer::Page(page, next)) => tasks::listed(out, &pending.id, &page, next),
            (_, TaskProtocol::Extension, TaskAnswer::Done) => wire::acknowledged(out, &pending.id, &self.identity),
            _ => return misunderstood(out, &pending.id),
        }
        FinishedAs::Success
    }
}

/// Whether an argument is a list with something in it.
fn is_listed(arguments: &Bytes, name: &str) -> bool {
    let text = lenient::text(arguments);
    let list = envelope::object(&text, [name]).ok().and_then(|[list]| list);
    list.and_then(|list| list.strip_prefix('[')).is_some_and(|rest| !rest.trim_start().starts_with(']'))
}

/// The same arguments with `background` set: of a repeated member the last one counts.
pub(super) fn in_background(arguments: &Bytes) -> Bytes {
    let inner = arguments.strip_prefix(b"{").and_then(|rest| rest.strip_suffix(b"}")).unwrap_or_default();
    let mut text = BytesMut::with_capacity(arguments.len() + 24);
    text.put_slice(b"{");
    if !inner.trim_ascii().is_empty() {
        text.put_slice(inner);
        text.put_slice(b",");
    }
    text.put_slice(b"\"background\":true}");
    text.freeze()
}

/// Whether a subscription asks for news of tasks, well or badly written.
pub(super) fn asks_for_tasks(wishes: Option<&str>) -> bool {
    let wishes = wishes.and_then(|wishes| envelope::object(wishes, ["taskIds"]).ok());
    wishes.is_some_and(|[ids]| ids.is_some_and(|ids| ids != "null"))
}

/// What a subscription asks for; what we do not have is not honoured.
pub(super) fn filter(wishes: Option<&str>) -> Result<Filter, Box<Refusal>> {
    let wrong = || invalid("subscriptions/listen needs params.notifications, an object.");
    let [tools, ids] =
        envelope::object(wishes.ok_or_else(wrong)?, ["toolsListChanged", "taskIds"]).map_err(|_| wrong())?;
    let tasks = match ids.filter(|ids| *ids != "null") {
        None => None,
        Some(ids) => {
            let ids: Vec<Cow<'_, str>> = serde_json::from_str(ids)
                .map_err(|_| invalid("params.notifications.taskIds must be an array of strings."))?;
            let mut jobs: Vec<JobId> = ids.iter().filter_map(|id| id.parse().ok()).take(tasks::FOLLOWED).collect();
            let mut known = std::collections::BTreeSet::new();
            jobs.retain(|job| known.insert(*job));
            Some(jobs)
        }
    };
    Ok(Filter { tools: tools == Some("true"), tasks })
}

/// What a request about tasks asks.
pub(super) fn ask(
    method: Method,
    version: Version,
    task: Option<&str>,
    cursor: Option<&str>,
) -> Result<TaskAsk, Box<Refusal>> {
    if method == Method::TasksList {
        let cursor = match cursor.filter(|cursor| *cursor != "null") {
            None => None,
            Some(cursor) => {
                let cursor = envelope::string(cursor).and_then(|text| TaskCursor::parse(&text));
                Some(cursor.ok_or_else(|| invalid("the cursor is not one of ours."))?)
            }
        };
        return Ok(TaskAsk::List(cursor));
    }
    let Some(task) = task.and_then(envelope::string) else {
        return Err(invalid(format!("{} needs params.taskId, a string.", method.as_str())));
    };
    // An id we could not have handed out is like one that has expired.
    let job = task
        .parse()
        .map_err(|_| Fault::new(FaultCode::UnknownJob, format!("there is no task {}.", shortened(&task))))?;
    Ok(match (method, version) {
        (Method::TasksResult, _) => TaskAsk::Wait(job),
        (Method::TasksCancel, Version::V2026_07_28) => TaskAsk::RequestCancel(job),
        (Method::TasksCancel, _) => TaskAsk::Cancel(job),
        (Method::TasksUpdate, _) => TaskAsk::Update(job),
        (_, Version::V2026_07_28) => TaskAsk::Read(job),
        _ => TaskAsk::Look(job),
    })
}

fn misunderstood(out: &mut BytesMut, id: &IdToken) -> FinishedAs {
    let fault = Fault::new(FaultCode::Internal, "the answer about a task was not understood.");
    wire::error(out, Some(id), &fault, None);
    FinishedAs::Failed(fault.code)
}
