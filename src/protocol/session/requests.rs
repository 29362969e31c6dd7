//! What each request of a client asks.
//!
//! Owns: which methods are served in which era, what their parameters must be, what a call of a tool takes with it. May not
//! know: how a request that is in flight is answered.
//!
//! Invariants: (1) a request is answered here or in flight afterwards, never both; (2) an id in flight is refused before
//! anything else is looked at.

use std::borrow::Cow;
use std::time::Duration;

use bytes::{Bytes, BytesMut};

use super::meta::{self, Meta, Refusal, invalid};
use super::tasks::{ask, asks_for_tasks, filter, in_background};
use super::{Call, Finished, FinishedAs, Origin, SessionCore, SessionEffect, SessionEffects, Work, shortened};
use crate::base::fault::{Fault, FaultCode};
use crate::base::lenient;
use crate::protocol::envelope::{self, IdToken};
use crate::protocol::method::Method;
use crate::protocol::version::Version;
use crate::protocol::wire;

pub(super) enum Dispatched {
    Answered,
    InFlight,
}

impl SessionCore {
    #[expect(clippy::too_many_arguments, reason = "one request's parts, passed on once")]
    pub(super) fn on_request(
        &mut self,
        id: IdToken,
        method: &str,
        params: Option<&str>,
        line: &Bytes,
        origin: Origin,
        out: &mut BytesMut,
        effects: &mut SessionEffects,
    ) {
        self.answered = true;
        let known = Method::parse(method);
        let answer = if self.by_id.contains_key(&id) {
            Err(Fault::new(FaultCode::InvalidRequest, "a request with this id is still in flight.").into())
        } else {
            match known {
                Some(Method::ToolsCall) => {
                    // A client that forgets to say that it is ready is asked now.
                    self.ask_roots(origin, out, effects);
                    self.call(&id, params.unwrap_or("{}"), line, origin, effects)
                }
                _ => self.dispatch(&id, known, method, params, origin, out, effects),
            }
        };
        let result = match answer {
            Ok(Dispatched::Answered) => FinishedAs::Success,
            Ok(Dispatched::InFlight) => return,
            Err(refusal) => {
                wire::error(out, Some(&id), &refusal.fault, refusal.data);
                FinishedAs::Failed(refusal.fault.code)
            }
        };
        effects.push_back(SessionEffect::Finished(Finished {
            method: known.map_or("other", Method::as_str),
            tool: None,
            call: None,
            request_id: None,
            at: origin.now,
            latency: Duration::ZERO,
            result,
        }));
    }

    #[expect(clippy::too_many_arguments, reason = "one request's parts, passed on once")]
    fn dispatch(
        &mut self,
        id: &IdToken,
        method: Option<Method>,
        name: &str,
        params: Option<&str>,
        origin: Origin,
        out: &mut BytesMut,
        effects: &mut SessionEffects,
    ) -> Result<Dispatched, Box<Refusal>> {
        let members = ["_meta", "cursor", "taskId", "notifications", "protocolVersion"];
        let [meta, cursor, task, wishes, wanted] = envelope::object(params.unwrap_or("{}"), members)
            .map_err(|_| invalid("the member params must be an object."))?;
        let meta = Meta::read(meta)?;
        let unknown = || Fault::new(FaultCode::UnknownMethod, format!("there is no method {}.", shortened(name)));
        let method = method.ok_or_else(unknown)?;
        match method {
            // With an envelope it is one of the stateless era, which has none; but whoever names a version means it.
            Method::Initialize if !meta.enveloped() || wanted.is_some() => {
                return self.initialize(id, params.unwrap_or("{}"), out);
            }
            Method::Ping if !meta.enveloped() => {
                wire::pong(out, id);
                return Ok(Dispatched::Answered);
            }
            // Whoever looks for it without an envelope does not know the stateless era well enough to be told less.
            Method::Discover if !meta.enveloped() => {
                let lacking =
                    "server/discover needs the member io.modelcontextprotocol/protocolVersion in params._meta.";
                return Err(invalid(lacking));
            }
            _ => {}
        }
        let era = if meta.enveloped() { Some(Version::MODERN) } else { self.negotiated() };
        if era.is_some_and(|version| !method.exists_in(version)) {
            return Err(unknown().into());
        }
        let (version, client) = self.version_of(method, &meta)?;
        match method {
            Method::ToolsList => {
                let cursor = cursor.filter(|cursor| *cursor != "null");
                let cursor = cursor.map(|cursor| envelope::string(cursor).unwrap_or(Cow::Borrowed("")));
                let Some(page) = self.catalog.list(version, cursor.as_deref()) else {
                    return Err(invalid("the cursor is not one of ours."));
                };
                wire::tools(out, id, version, page, &self.identity);
                Ok(Dispatched::Answered)
            }
            Method::Discover => {
                wire::discovered(out, id, &self.identity, self.tasks());
                Ok(Dispatched::Answered)
            }
            Method::Listen => {
                if asks_for_tasks(wishes) && !meta.knows_tasks() {
                    return Err(meta::tasks_needed());
                }
                let filter = filter(wishes)?;
                self.listen(id, filter, client, origin, out, effects)
            }
            Method::TasksGet | Method::TasksResult | Method::TasksList | Method::TasksCancel | Method::TasksUpdate => {
                // Before anything is said about the task: to a client that does not know tasks, no id is a good one.
                if version == Version::MODERN && !meta.knows_tasks() {
                    return Err(meta::tasks_needed());
                }
                let ask = ask(method, version, task, cursor)?;
                if !self.catalog.offers_tasks() {
                    return Err(Fault::new(FaultCode::UnknownMethod, "this server has no tasks.").into());
                }
                let number = self.pend(id, version, client.clone(), Work::Ask(method), 0, origin)?;
                effects.push_back(SessionEffect::Ask { number, ask, client });
                Ok(Dispatched::InFlight)
            }
            Method::Initialize | Method::Ping | Method::ToolsCall => Err(unknown().into()),
        }
    }

    fn call(
        &mut self,
        id: &IdToken,
        params: &str,
        line: &Bytes,
        origin: Origin,
        effects: &mut SessionEffects,
    ) -> Result<Dispatched, Box<Refusal>> {
        let [name, arguments, meta, task] = envelope::object(params, ["name", "arguments", "_meta", "task"])
            .map_err(|_| invalid("the member params must be an object."))?;
        let meta = Meta::read(meta)?;
        let (version, client) = self.version_of(Method::ToolsCall, &meta)?;
        let Some(name) = name.and_then(envelope::string) else {
            return Err(invalid("tools/call needs params.name, a string."));
        };
        let Some(tool) = self.catalog.position(&name) else {
            let known: Vec<&str> = self.catalog.names().collect();
            return Err(Fault::new(FaultCode::InvalidInput, format!("there is no tool {}.", shortened(&name)))
                .hint(format!("Tools are {}.", known.join(", ")))
                .into());
        };
        let arguments = match arguments {
            None | Some("null") => Bytes::from_static(b"{}"),
            Some(json) if json.starts_with('{') => within(line, json),
            Some(_) => return Err(invalid("params.arguments must be an object.")),
        };
        let task = self.as_task(tool, version, task, &arguments, &meta)?;
        // A task is a background consult, so `background` is set as a caller would set it.
        let arguments = if task.is_some() { in_background(&arguments) } else { arguments };
        let progress = meta.progress_token();
        let trace = meta.trace();
        let wants_progress = progress.is_some() && task.is_none();
        let work = Work::Tool { tool, progress, last_progress: f64::NEG_INFINITY, task };
        let number = self.pend(id, version, client.clone(), work, arguments.len(), origin)?;
        if !(self.limits.structured)(client.name().as_deref())
            && let Some(pending) = self.pending.get_mut(&number.0)
        {
            let arguments = lenient::text(&arguments);
            pending.structured = matches!(envelope::object(&arguments, ["render"]), Ok([Some("\"json\"")]));
        }
        effects.push_back(SessionEffect::Invoke(Call { number, tool, arguments, client, wants_progress, trace }));
        Ok(Dispatched::InFlight)
    }
}

/// A slice of the line where the text lies in it, a copy where it had to be repaired.
fn within(line: &Bytes, text: &str) -> Bytes {
    let lines = line.as_ptr_range();
    if lines.contains(&text.as_ptr()) {
        line.slice_ref(text.as_bytes())
    } else {
        Bytes::copy_from_slice(text.as_bytes())
    }
}
