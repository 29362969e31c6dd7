//! Tasks on the wire: two protocols that share a name, over the same jobs.
//!
//! Owns: what a session asks about a task, what it is told, and how either protocol writes it. May not know: where a task
//! is kept. A task is a job, its id is the job's.
//!
//! Invariants: (1) a task begins as `working`; (2) the three other statuses are final; (3) a task's result is the reply
//! `consult_job` would give, in its default form.

use bytes::{BufMut, BytesMut};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::envelope::IdToken;
use super::version::Version;
use super::wire::{self, Identity, ToolReply};
use crate::base::ids::{JobId, UnixMillis};

/// The name of the extension of the stateless era.
pub const EXTENSION: &str = "io.modelcontextprotocol/tasks";

/// What a client is told about how long a task is kept, in milliseconds from its creation: one day. Jobs are kept far
/// longer, unless a gibibyte of later ones displaces them.
pub const TTL_MS: u64 = 24 * 60 * 60 * 1000;

/// How often a client is told to look, in milliseconds. A look costs us microseconds, and consults take seconds.
pub const POLL_MS: u64 = 1000;

/// Tasks in one page of a list.
pub const PAGE: usize = 50;

/// Tasks one subscription may name; those beyond it are not honoured.
pub const FOLLOWED: usize = 64;

/// Which of the two protocols a request belongs to; its era decides.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TaskProtocol {
    /// The core of 2025-11-25.
    Core,
    /// The extension of 2026-07-28.
    Extension,
}

impl TaskProtocol {
    /// The protocol of a revision that has tasks.
    #[must_use]
    pub fn of(version: Version) -> Self {
        if version == Version::MODERN { Self::Extension } else { Self::Core }
    }
}

/// What is asked about tasks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TaskAsk {
    /// How a task stands.
    Look(JobId),
    /// How it stands, with its result if it is over.
    Read(JobId),
    /// Its result, however long it takes.
    Wait(JobId),
    /// Tasks after this one, newest first.
    List(Option<TaskCursor>),
    /// To end it, and how it stands once it has ended.
    Cancel(JobId),
    /// To end it, without waiting.
    RequestCancel(JobId),
    /// Whether it exists: input for a task that needs none.
    Update(JobId),
    /// Which of these exist.
    Which(Vec<JobId>),
}

/// The last task of a page.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct TaskCursor {
    /// When it was accepted.
    pub accepted_at: UnixMillis,
    /// Which it is.
    pub job: JobId,
}

impl TaskCursor {
    /// As clients carry it.
    #[must_use]
    pub fn to_text(self) -> String {
        format!("{}.{}", self.accepted_at.0, self.job)
    }

    /// Takes one of ours.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let (at, job) = text.split_once('.')?;
        Some(Self { accepted_at: UnixMillis(at.parse().ok()?), job: job.parse().ok()? })
    }
}

/// What a session is told.
#[derive(Debug)]
pub enum TaskAnswer {
    /// How a task stands.
    Task(Box<TaskView>),
    /// A page of tasks, and where the next one begins.
    Page(Vec<TaskView>, Option<TaskCursor>),
    /// It is done.
    Done,
    /// These exist.
    Known(Vec<JobId>),
}

impl TaskAnswer {
    /// The job whose end it tells.
    #[must_use]
    pub fn ended(&self) -> Option<JobId> {
        match self {
            Self::Task(task) => task.ended(),
            Self::Page(..) | Self::Done | Self::Known(_) => None,
        }
    }
}

/// News of a task that is followed.
#[derive(Debug)]
pub enum TaskNews {
    /// It stands differently.
    Changed(Box<TaskView>),
    /// It is being worked on.
    Progress {
        /// A value that rises.
        value: f64,
        /// What is going on.
        message: String,
    },
    /// Nothing more will be heard of it.
    Lost(JobId),
}

impl TaskNews {
    /// The job whose end it tells.
    #[must_use]
    pub fn ended(&self) -> Option<JobId> {
        match self {
            Self::Changed(task) => task.ended(),
            Self::Progress { .. } | Self::Lost(_) => None,
        }
    }
}

/// How a task stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TaskStatus {
    /// It is not over.
    Working,
    /// It has a result.
    Completed,
    /// It has a result that is an error.
    Failed,
    /// It was ended.
    Cancelled,
}

impl TaskStatus {
    /// Whether it is final.
    #[must_use]
    pub const fn is_final(self) -> bool {
        !matches!(self, Self::Working)
    }

    /// The word for it. The extension calls a task completed whose tool failed, because it has a result.
    #[must_use]
    pub const fn as_str(self, protocol: TaskProtocol) -> &'static str {
        match (self, protocol) {
            (Self::Working, _) => "working",
            (Self::Completed, _) | (Self::Failed, TaskProtocol::Extension) => "completed",
            (Self::Failed, TaskProtocol::Core) => "failed",
            (Self::Cancelled, _) => "cancelled",
        }
    }
}

/// A task as clients see it.
#[derive(Debug, Clone)]
pub struct TaskView {
    /// Its id.
    pub job: JobId,
    /// How it stands.
    pub status: TaskStatus,
    /// The same in words.
    pub message: String,
    /// When it was created.
    pub created: UnixMillis,
    /// When its status last changed.
    pub updated: UnixMillis,
    /// Its result, once it is over; left out of lists.
    pub result: Option<ToolReply>,
}

impl TaskView {
    /// The job, when its result says how it ended. Once that is written, the job counts as read.
    fn ended(&self) -> Option<JobId> {
        self.result.as_ref().filter(|result| result.tells_end).map(|_| self.job)
    }
}

impl TaskView {
    fn members(&self, protocol: TaskProtocol) -> Value {
        let (ttl, poll) = match protocol {
            TaskProtocol::Core => ("ttl", "pollInterval"),
            TaskProtocol::Extension => ("ttlMs", "pollIntervalMs"),
        };
        json!({
            "taskId": self.job.to_string(), "status": self.status.as_str(protocol), "statusMessage": self.message,
            "createdAt": self.created.to_iso8601(), "lastUpdatedAt": self.updated.to_iso8601(),
            ttl: TTL_MS, poll: POLL_MS,
        })
    }

    /// The same task as it was when it was created.
    fn at_creation(&self) -> Self {
        Self { status: TaskStatus::Working, message: "accepted".to_owned(), updated: self.created, ..self.clone() }
    }

    /// Writes its members without the braces around them; the result too where the protocol has it there.
    fn put(&self, out: &mut BytesMut, protocol: TaskProtocol) {
        let members = self.members(protocol).to_string();
        out.put_slice(members.strip_prefix('{').and_then(|text| text.strip_suffix('}')).unwrap_or_default().as_bytes());
        // A cancelled task has none: what a cancelled consult had said is read with `consult_job`.
        if let Some(result) = self.result.as_ref().filter(|_| self.status != TaskStatus::Cancelled)
            && protocol == TaskProtocol::Extension
        {
            out.put_slice(b",\"result\":{");
            wire::result_members(out, Version::MODERN, result);
            // Its own, or some clients reject it.
            out.put_slice(b",\"resultType\":\"complete\"}");
        }
    }
}

/// The answer to a call that became a task.
pub fn created(out: &mut BytesMut, id: &IdToken, protocol: TaskProtocol, task: &TaskView, identity: &Identity) {
    let task = TaskView { result: None, ..task.at_creation() };
    wire::head(out, Some(id));
    match protocol {
        TaskProtocol::Core => {
            out.put_slice(b",\"result\":{\"task\":{");
            task.put(out, protocol);
            out.put_slice(b"}}}\n");
        }
        TaskProtocol::Extension => {
            out.put_slice(b",\"result\":{");
            task.put(out, protocol);
            identity.tail(out, "task");
        }
    }
}

/// The answer to `tasks/get`, and to `tasks/cancel` of the core.
pub fn shown(out: &mut BytesMut, id: &IdToken, protocol: TaskProtocol, task: &TaskView, identity: &Identity) {
    wire::head(out, Some(id));
    out.put_slice(b",\"result\":{");
    task.put(out, protocol);
    match protocol {
        TaskProtocol::Core => out.put_slice(b"}}\n"),
        TaskProtocol::Extension => identity.tail(out, "complete"),
    }
}

/// The answer to `tasks/result` of the core: the reply the call would have been given, and which task it belongs to.
pub fn payload(out: &mut BytesMut, id: &IdToken, version: Version, job: JobId, reply: &ToolReply) {
    wire::head(out, Some(id));
    out.put_slice(b",\"result\":{");
    wire::result_members(out, version, reply);
    let related = json!({"io.modelcontextprotocol/related-task": {"taskId": job.to_string()}});
    out.put_slice(format!(",\"_meta\":{related}}}}}\n").as_bytes());
}

/// The answer to `tasks/list` of the core.
pub fn listed(out: &mut BytesMut, id: &IdToken, tasks: &[TaskView], next: Option<TaskCursor>) {
    let tasks: Vec<Value> = tasks.iter().map(|task| task.members(TaskProtocol::Core)).collect();
    let mut result = json!({ "tasks": tasks });
    if let Some(next) = next {
        result["nextCursor"] = json!(next.to_text());
    }
    wire::head(out, Some(id));
    out.put_slice(format!(",\"result\":{result}}}\n").as_bytes());
}

/// News of a task of the core for the session that created it. It has no result, which is fetched.
pub fn status(out: &mut BytesMut, task: &TaskView) {
    out.put_slice(b"{\"jsonrpc\":\"2.0\",\"method\":\"notifications/tasks/status\",\"params\":{");
    task.put(out, TaskProtocol::Core);
    out.put_slice(b"}}\n");
}

/// News of a task for the subscription that named it.
pub fn changed(out: &mut BytesMut, subscription: &IdToken, task: &TaskView) {
    out.put_slice(b"{\"jsonrpc\":\"2.0\",\"method\":\"notifications/tasks\",\"params\":{");
    task.put(out, TaskProtocol::Extension);
    out.put_slice(b",\"_meta\":{");
    wire::subscription_member(out, subscription);
    out.put_slice(b"}}}\n");
}
