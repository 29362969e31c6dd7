//! What the end of a run means.
//!
//! Owns: the table from what was observed to a fault code, and what each code says to the caller. May not know how the
//! run was made or where the outcome goes.
//!
//! The rows are tried in order and the first that applies decides; the order is the knowledge. Exit codes prove nothing:
//! an interrupted agent may exit with 0, a failed provider reports the subtype `success`, and an agent that has answered
//! may hang, crash or be killed afterwards.
//!
//! Invariants: (1) every end gets a verdict; (2) an answer that was given whole is an answer, however the process ended
//! and whoever ended it, except when the run was not to be paid for; (3) no fault's text holds words of the prompt, the answer or
//! stderr; (4) a failure carries whatever is known: session, text so far, costs, stderr.

use std::io;

use jiff::tz::TimeZone;

use super::names::SessionIds;
use super::{AgentEvent, AgentResult, RunSummary, words};
use crate::base::fault::{Fault, FaultCode};
use crate::base::ids::{AgentSessionId, UnixMillis};
use crate::base::local_time;
use crate::jobs::{CancelReason, JobOutcome, JobState, RunExit, limits};

/// Bytes of an answer that are kept. Ones of 8 MB have been seen, and nobody reads further.
const MAX_RESPONSE_BYTES: usize = 8 << 20;
/// What replies say of who paid where the agent does not.
pub(crate) const UNPROVEN: &str = "unproven";
/// Bytes of stderr that are kept: the end, where programs say what went wrong.
const MAX_STDERR_BYTES: usize = 4 << 10;

/// Why we ended a run.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum StopCause {
    /// Somebody wanted it so.
    Cancelled(CancelReason),
    /// The request's time was over.
    Deadline,
    /// Nothing was heard for the stall time.
    Stalled,
    /// It had given its result and did not leave.
    Lingered,
    /// The run was not to go on: a billing mismatch, or a part of ours that failed.
    Faulted(Box<Fault>),
}

/// Why the agent's process could not be started.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum SpawnFailure {
    /// The program does not exist.
    Missing,
    /// The program exists and may not be executed, or is no program.
    NotExecutable,
    /// The working directory does not exist.
    NoDirectory,
    /// The working directory is there and may not be entered.
    DirectoryClosed,
    /// Arguments or environment are larger than the system takes.
    TooLarge,
    /// Anything else, in the system's words.
    Other(String),
}

impl SpawnFailure {
    /// Reads the system's error. A missing directory looks like a missing program, so the caller says whether the
    /// working directory is there.
    #[must_use]
    #[doc(hidden)]
    pub fn from_io(error: &io::Error, directory_exists: bool) -> Self {
        if !directory_exists {
            return Self::NoDirectory;
        }
        match error.kind() {
            io::ErrorKind::NotFound => Self::Missing,
            io::ErrorKind::PermissionDenied => Self::NotExecutable,
            io::ErrorKind::ArgumentListTooLong => Self::TooLarge,
            _ if error.raw_os_error() == Some(rustix::io::Errno::NOEXEC.raw_os_error()) => Self::NotExecutable,
            _ => Self::Other(error.to_string()),
        }
    }
}

/// Everything seen of a run that is over: its process group is empty and its pipes are closed.
#[derive(Debug, Clone, PartialEq, Default)]
#[non_exhaustive]
pub struct RunEnd {
    /// What it said.
    pub summary: RunSummary,
    /// How its process ended; `None` when none was started.
    pub exit: Option<RunExit>,
    /// Why we ended it, if we did.
    pub stop: Option<StopCause>,
    /// Why it could not be started.
    pub spawn_error: Option<SpawnFailure>,
    /// The end of its stderr; the last 4 KiB count.
    pub stderr_tail: Vec<u8>,
    /// From its command.
    pub key_withheld: bool,
    /// From its command.
    pub prompt_prefix_injected: bool,
    /// The session it was to resume.
    pub resume_requested: Option<AgentSessionId>,
    /// From its command.
    pub resumed_id: ResumedId,
    /// From its command.
    pub new_session: Option<AgentSessionId>,
    /// When it ended; without it, times of day in its words mean nothing.
    pub at: Option<UnixMillis>,
}

/// By which id a session goes on when it is resumed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum ResumedId {
    /// The same: another one is another session, without the history.
    #[default]
    Same,
    /// A new one, which has the history, as versions did that cannot be told to fork.
    New,
}

/// What a run's end means for its job.
#[derive(Debug, Clone, PartialEq)]
pub struct RunVerdict {
    /// `Succeeded`, `Failed` or `Cancelled`.
    pub state: JobState,
    /// Everything to be said about it; the runner adds the times.
    pub outcome: JobOutcome,
}

/// What differs between agents whose ends are judged by the same table: what is said of them, whether they keep sessions, and
/// how they say that they have answered.
///
/// ```
/// use phone_opus::AgentProfile;
///
/// let profile = AgentProfile::new("The oracle")
///     .install_hint("apt install oracle")
///     .login_hint("Run `oracle login` once in a terminal.")
///     .kept_to_reading_by("it has no tools")                            // what `phone-opus agents` says of it
///     .names_no_payer()                                                 // replies then say `billing: "unproven"`
///     .keeps_sessions();
/// let own_ids = profile.keeps_sessions_named("ora_");                   // sessions such as `ora_1a2B`, and no UUIDs
/// # let _ = own_ids;
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AgentProfile {
    title: &'static str,
    install_hint: &'static str,
    login_hint: &'static str,
    reading: &'static str,
    sessions: SessionIds,
    answers: Answers,
    payer: PayerNamed,
    writes: Writes,
}

/// Whether an agent says on its stream who pays.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum PayerNamed {
    /// It does, or nothing is paid.
    Yes,
    /// It does not: what is known of it was known before the start.
    No,
}

/// Whether an agent could write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Writes {
    /// It is kept from it, by somebody's word.
    KeptFromIt,
    /// There is nothing in it that writes.
    Never,
}

/// What tells that a run has answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Answers {
    /// A result on its output, however its process ends.
    ByResult,
    /// A process that ends well: then what it said is the answer.
    ByEndingWell,
}

impl AgentProfile {
    /// An agent of this name in sentences, which says on its output when it has answered ([`AgentEvent::Result`]) and keeps no
    /// sessions.
    ///
    /// [`AgentEvent::Result`]: super::AgentEvent::Result
    #[must_use]
    pub const fn new(title: &'static str) -> Self {
        Self {
            title,
            install_hint: "Install it, or say where its program is.",
            login_hint: "Log in with its own program.",
            reading: "unproven: nobody here knows what keeps it to reading",
            sessions: SessionIds::NotKept,
            answers: Answers::ByResult,
            payer: PayerNamed::Yes,
            writes: Writes::KeptFromIt,
        }
    }

    /// What to do where its program is not found: a sentence for whoever asked.
    #[must_use]
    pub const fn install_hint(self, hint: &'static str) -> Self {
        Self { install_hint: hint, ..self }
    }

    /// What to do where it is not logged in.
    #[must_use]
    pub const fn login_hint(self, hint: &'static str) -> Self {
        Self { login_hint: hint, ..self }
    }

    /// What keeps it to reading, and what it may read: a phrase for `phone-opus agents`.
    #[must_use]
    pub const fn kept_to_reading_by(self, what: &'static str) -> Self {
        Self { reading: what, ..self }
    }

    /// It keeps sessions, which can be resumed by their id, a UUID in lower case.
    #[must_use]
    pub const fn keeps_sessions(self) -> Self {
        Self { sessions: SessionIds::Uuids, ..self }
    }

    /// It keeps sessions, which can be resumed by their id, a word of this beginning (`ses_`, or nothing for any). No other id is given
    /// to it, whoever asks.
    #[must_use]
    pub const fn keeps_sessions_named(self, beginning: &'static str) -> Self {
        Self { sessions: SessionIds::Begin(beginning), ..self }
    }

    /// It says nowhere that it has answered: what it said is the answer when its process ends with 0, and a failure otherwise.
    #[must_use]
    pub const fn answers_by_ending_well(self) -> Self {
        Self { answers: Answers::ByEndingWell, ..self }
    }

    /// It does not say who pays for a run. Replies then say so (`billing: "unproven"`), whatever was chosen and withheld.
    #[must_use]
    pub const fn names_no_payer(self) -> Self {
        Self { payer: PayerNamed::No, ..self }
    }

    /// There is nothing in it that writes: nobody needs to see whether files change while it works.
    pub(super) const fn never_writes(self) -> Self {
        Self { writes: Writes::Never, ..self }
    }

    /// Whether files could change by it.
    pub(crate) const fn could_write(&self) -> bool {
        matches!(self.writes, Writes::KeptFromIt)
    }

    pub(super) const fn install(&self) -> &'static str {
        self.install_hint
    }

    /// Its name in sentences.
    #[must_use]
    #[doc(hidden)]
    pub const fn title(&self) -> &'static str {
        self.title
    }

    /// What keeps it to reading.
    #[must_use]
    #[doc(hidden)]
    pub const fn reading(&self) -> &'static str {
        self.reading
    }

    /// Whether its sessions can be resumed.
    #[must_use]
    #[doc(hidden)]
    pub const fn resumes(&self) -> bool {
        !matches!(self.sessions, SessionIds::NotKept)
    }

    /// The sessions it can go on with.
    pub(super) const fn sessions(&self) -> SessionIds {
        self.sessions
    }

    /// Refuses to go on with a session whose id is none of this agent's.
    pub(crate) fn check_session(&self, id: &AgentSessionId) -> Result<(), Fault> {
        if !self.resumes() || self.sessions.have(id) {
            return Ok(());
        }
        let (title, have) = (self.title, self.sessions.told());
        let detail = format!("`session_id`: the ids of {title}'s sessions are {have}, and this is none.");
        let hint = "Name the session_id of an earlier reply of this agent, or leave it out to start a new session.";
        Err(Fault::new(FaultCode::InvalidSession, detail).hint(hint))
    }

    /// Whether this is the id of a session it could go on with.
    fn can_name(&self, id: &str) -> bool {
        id.parse().is_ok_and(|id| self.check_session(&id).is_ok())
    }

    /// Whether replies say who paid, or that nothing was paid.
    #[must_use]
    #[doc(hidden)]
    pub const fn names_payer(&self) -> bool {
        matches!(self.payer, PayerNamed::Yes)
    }

    /// How replies say who paid: by its own words, or not proven.
    #[must_use]
    #[doc(hidden)]
    pub const fn payer_told(&self) -> &'static str {
        match self.payer {
            PayerNamed::Yes => "its own words, or nothing is paid",
            PayerNamed::No => UNPROVEN,
        }
    }

    /// The verdict on a run of this agent, by the table that all agents share: not started, killed, stopped, stalled, silent,
    /// not logged in, limited, refused, and so on, each with its code and a hint. A run none of whose rows applies has
    /// succeeded.
    #[must_use]
    pub fn classify(&self, mut end: RunEnd) -> RunVerdict {
        let ended_well = end.exit.is_some_and(|exit| exit.code == 0 && exit.signal.is_none()) && end.stop.is_none();
        let by_ending = self.answers == Answers::ByEndingWell;
        if by_ending && ended_well && end.summary.result().is_none() {
            // Without a text of its own: the answer is what was said.
            end.summary.fold(&AgentEvent::Result { result: Box::default() });
        }
        let left_out = end.summary.garbage_bytes() > 0;
        let mut verdict = classify(self, end);
        verdict.outcome.response_cut |= by_ending && left_out && verdict.outcome.response.is_some();
        verdict
    }
}

/// The verdict on a run of the agent this profile describes.
fn classify(profile: &AgentProfile, mut end: RunEnd) -> RunVerdict {
    let stderr = stderr_text(&end.stderr_tail);
    let seen = Seen::new(&end, &stderr);
    let (state, fault) = match judge(profile, &seen) {
        Judgement::Answered => (JobState::Succeeded, None),
        Judgement::Stopped(fault) => (JobState::Cancelled, Some(fault)),
        Judgement::Failed(fault) => (JobState::Failed, Some(fault)),
    };
    let code = fault.as_ref().map(|fault| fault.code);
    let session_id = seen.session_id(code);
    let resumable = resumable(profile, &end, code, session_id.as_deref());
    let mut outcome = JobOutcome {
        session_id,
        model: model(&end.summary),
        billing: billing(profile, &end),
        permission_denials: end.summary.denials().to_vec(),
        prompt_prefix_injected: end.prompt_prefix_injected,
        exit: end.exit,
        resumable,
        extra_usage: end.summary.extra_usage(),
        limit: seen.limit().filter(|_| code == Some(FaultCode::AgentRateLimited)),
        ..JobOutcome::default()
    };
    if let Some(result) = end.summary.result() {
        outcome.cost_usd = result.cost_usd;
        outcome.num_turns = result.num_turns;
        outcome.stop_reason = result.stop_reason.clone();
        outcome.usage = result.usage.clone();
        outcome.model_usage = result.model_usage.clone();
    }
    let reported_error = seen.reported_error();
    let suspicious = end.exit.is_some_and(|exit| exit.code != 0);
    if (fault.is_some() || suspicious) && !stderr.is_empty() {
        outcome.stderr_tail = Some(stderr);
    }
    outcome.fault = fault;
    (outcome.response, outcome.response_cut) = response(&mut end.summary, reported_error);
    RunVerdict { state, outcome }
}

/// Who paid, as the agent said it; of one that does not say it, that it is not proven.
fn billing(profile: &AgentProfile, end: &RunEnd) -> Option<String> {
    let said = end.summary.started().and_then(|started| started.key_source.clone());
    said.or_else(|| (profile.payer == PayerNamed::No && end.exit.is_some()).then(|| UNPROVEN.to_owned()))
}

/// The answer; for a failure what was said on the way to it, and then the agent's own words about the failure. Versions
/// leave their result empty and have said the answer before.
fn response(summary: &mut RunSummary, failed: bool) -> (Option<String>, bool) {
    let mut text = summary.take_result_text().filter(|text| !is_blank(text)).unwrap_or_default();
    let mut cut = false;
    if text.is_empty() && !failed && summary.result().is_some() && !summary.last_message().is_empty() {
        cut = summary.partial_text_cut() && summary.last_message().len() == summary.partial_text().len();
        summary.last_message().clone_into(&mut text);
    }
    if text.is_empty() || failed && !summary.partial_text().is_empty() && !summary.partial_text().ends_with(&text) {
        cut = summary.partial_text_cut();
        let error = std::mem::replace(&mut text, summary.take_partial_text());
        if !error.is_empty() {
            text.push_str("\n\n");
            text.push_str(&error);
        }
    }
    if text.len() > MAX_RESPONSE_BYTES {
        let mut end = MAX_RESPONSE_BYTES;
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        text.truncate(end);
        text.shrink_to_fit();
        cut = true;
    }
    (Some(text).filter(|text| !is_blank(text)), cut)
}

/// The model that did most of the writing; the introduction names only the one that was asked for.
fn model(summary: &RunSummary) -> Option<String> {
    let by_usage = summary.result().and_then(|result| result.model_usage.as_ref()).and_then(|usage| {
        let written = |usage: &serde_json::Value| usage.get("outputTokens").and_then(serde_json::Value::as_u64);
        usage.as_object()?.iter().max_by_key(|(_, usage)| written(usage)).map(|(model, _)| model.clone())
    });
    by_usage.or_else(|| summary.started()?.model.clone())
}

/// Whether the session can be resumed; `None` where nobody has seen it tried.
fn resumable(profile: &AgentProfile, end: &RunEnd, code: Option<FaultCode>, session: Option<&str>) -> Option<bool> {
    use FaultCode as C;
    let nameless = session.is_some_and(|session| !profile.can_name(session));
    if profile.sessions == SessionIds::NotKept || nameless {
        return Some(false);
    }
    match code {
        Some(C::UnknownSession | C::InvalidSession) => return Some(false),
        // Where no process ran nothing has changed, for better or worse.
        _ if end.exit.is_none() || session.is_none() => return None,
        None
        | Some(
            C::TurnLimit
            | C::BudgetExhausted
            | C::Cancelled
            | C::CallerLost
            | C::DeadlineExceeded
            | C::AgentStalled
            | C::AgentKilled
            | C::EmptyAnswer,
        ) => return Some(true),
        Some(_) => {}
    }
    // A failure of the provider leaves the session that was resumed as it was.
    end.resume_requested.is_some().then_some(true)
}

/// What is left of stderr once it is text.
fn stderr_text(bytes: &[u8]) -> String {
    let tail = &bytes[bytes.len().saturating_sub(MAX_STDERR_BYTES)..];
    // A cut may have left continuation bytes of a character at the front.
    let start = tail.iter().take(3).take_while(|byte| (0x80..0xC0).contains(*byte)).count();
    let start = if tail.len() < bytes.len() { start } else { 0 };
    String::from_utf8_lossy(&tail[start..]).trim().to_owned()
}

fn is_blank(text: &str) -> bool {
    text.chars().all(char::is_whitespace)
}

enum Judgement {
    Answered,
    Stopped(Fault),
    Failed(Fault),
}

fn judge(profile: &AgentProfile, seen: &Seen<'_>) -> Judgement {
    match &seen.end.stop {
        Some(StopCause::Faulted(fault)) => return Judgement::Failed(fault.as_ref().clone()),
        // Its result decides, whatever it is: that it did not leave says nothing about it.
        None | Some(StopCause::Lingered) => {}
        Some(stop) if !seen.answered_whole() => return stopped(profile, stop),
        // The stop came when the answer was already complete.
        Some(_) => {}
    }
    match ROWS.iter().find(|row| (row.applies)(seen)) {
        None => Judgement::Answered,
        Some(row) => Judgement::Failed(fault(profile, seen, row)),
    }
}

fn stopped(profile: &AgentProfile, stop: &StopCause) -> Judgement {
    let title = profile.title;
    match stop {
        StopCause::Faulted(fault) => Judgement::Failed(fault.as_ref().clone()),
        StopCause::Cancelled(CancelReason::Requested) => {
            Judgement::Stopped(Fault::new(FaultCode::Cancelled, "The consult was cancelled by request."))
        }
        StopCause::Cancelled(CancelReason::CallerLost) => Judgement::Stopped(
            Fault::new(FaultCode::CallerLost, "The caller went away while it waited, so the consult was ended.")
                .hint("Ask again with `background: true` for an answer that outlives the call."),
        ),
        StopCause::Cancelled(CancelReason::RunnerStopped) => {
            Judgement::Stopped(Fault::new(FaultCode::Cancelled, "The job's runner was told to end by a signal."))
        }
        StopCause::Deadline => Judgement::Stopped(
            Fault::new(FaultCode::DeadlineExceeded, format!("{title} did not finish within `timeout_s`."))
                .hint("Ask for less, allow more with `timeout_s`, or resume the session."),
        ),
        StopCause::Stalled | StopCause::Lingered => Judgement::Failed(
            Fault::new(FaultCode::AgentStalled, format!("{title} wrote nothing for too long and was ended."))
                .hint("Try again, or resume the session."),
        ),
    }
}

/// One line of the table.
struct Row {
    /// What was observed, for tests and diagnostics.
    name: &'static str,
    applies: fn(&Seen<'_>) -> bool,
    code: FaultCode,
}

macro_rules! rows {
    ($($name:literal => $code:ident if |$seen:ident| $applies:expr;)*) => {
        &[$(Row { name: $name, applies: |$seen| $applies, code: FaultCode::$code },)*]
    };
}

/// The table. A run none of whose rows applies has succeeded.
const ROWS: &[Row] = rows! {
    "program missing" => AgentMissing if |s| s.spawn(|e| *e == SpawnFailure::Missing);
    "program not executable" => AgentNotExecutable if |s| s.spawn(|e| *e == SpawnFailure::NotExecutable);
    "working directory missing" => InvalidInput if |s| s.spawn(|e| *e == SpawnFailure::NoDirectory);
    "working directory closed" => InvalidInput if |s| s.spawn(|e| *e == SpawnFailure::DirectoryClosed);
    "command too large" => Internal if |s| s.spawn(|e| *e == SpawnFailure::TooLarge);
    "not started otherwise" => AgentSpawnFailed if |s| s.spawn(|_| true);
    "neither started nor refused" => Internal if |s| s.end.exit.is_none();
    "died by a signal" => AgentKilled if |s| s.killed();
    "interpreter missing" => AgentMissing if |s| s.end.exit.is_some_and(|exit| matches!(exit.code, 126 | 127))
        && s.end.summary.events() == 0;
    "unknown option" => AgentUnsupported if |s| s.result.is_none() && s.failed_exit() && s.stderr_says(&[
        "unknown option", "unknown argument", "' is invalid", "requires --verbose", "unexpected argument",
        "Unknown feature flag", "unrecognized subcommand", "Unknown argument",
        // The end of a help that is longer than what is kept.
        "Show help  [boolean]",
    ]) || s.subtype_is("error_unsupported");
    "no such conversation" => UnknownSession if |s| s.says(&[
        "No conversation found", "no rollout found", "Error resuming session", "No session, task, or name matched", "No saved session found",
        "Session not found",
    ]) || s.subtype_is("error_unknown_session");
    "bad session id" => InvalidSession if |s| s.says(&["valid session ID or session title"])
        || s.result.is_none() && s.failed_exit() && s.stderr_says(&["already in use"]);
    "input too large" => InputTooLarge if |s| s.says(&["exceeds 10MB"])
        || s.terminal_reason_is(&["blocking_limit", "prompt_too_long"]) || s.not_a_success() && s.status_is(413)
        || s.means(FaultCode::InputTooLarge);
    "turn limit" => TurnLimit if |s| s.subtype_is("error_max_turns");
    "budget" => BudgetExhausted if |s| s.subtype_is("error_max_budget_usd") || s.terminal_reason_is(&["budget_exhausted"]);
    "aborted" => AgentKilled if |s| s.subtype_is("error_during_execution")
        && s.terminal_reason_is(&["aborted_streaming", "aborted_tools"]);
    "authentication" => AgentNotLoggedIn if |s| s.not_a_success() && (s.status_is(401) || s.status_is(403)
        || s.error_is(&["authentication_failed"]) || s.says(&[
            "Not logged in", "Please run /login", "Invalid API key", "Invalid auth method", "set an Auth method",
            "No authentication information found", "No auth type is selected",
        ])
        || s.means(FaultCode::AgentNotLoggedIn));
    "billing" => AgentBilling if |s| s.not_a_success() && (s.error_is(&["billing_error"])
        || s.means(FaultCode::AgentBilling));
    "rate limit" => AgentRateLimited if |s| s.not_a_success() && (s.status_is(429) || s.error_is(&["rate_limit"])
        || s.means(FaultCode::AgentRateLimited));
    "overloaded" => AgentOverloaded if |s| s.not_a_success() && (s.status_is(529)
        || s.error_is(&["overloaded", "overloaded_error"]) || s.api_error_type_is("overloaded_error")
        || s.means(FaultCode::AgentOverloaded));
    "upstream" => AgentUpstream if |s| s.not_a_success() && (s.status().is_some_and(|status| status >= 500)
        || s.status().is_none() && s.error_is(&["server_error"]) || s.means(FaultCode::AgentUpstream));
    "model" => AgentModel if |s| s.not_a_success() && (s.status_is(404) || s.error_is(&["model_not_found"])
        || s.means(FaultCode::AgentModel));
    "refusal" => Refused if |s| s.result.is_some_and(|result| result.stop_reason.as_deref() == Some("refusal"))
        || s.means(FaultCode::Refused);
    "output limit" => AnswerTooLong if |s| s.not_a_success() && (s.error_is(&["max_output_tokens"])
        || s.means(FaultCode::AnswerTooLong));
    "reported an error" => AgentError if |s| s.reported_error();
    "a local command ran" => PromptGuardFailed if |s| s.result.is_some_and(|result| result.num_turns == Some(0));
    "another session answered" => UnknownSession if |s| s.other_session();
    "empty answer" => EmptyAnswer if |s| s.result.is_some() && s.answer().is_none();
    "exit 0 without a result" => AgentProtocol if |s| s.result.is_none() && !s.failed_exit();
    "unreadable output" => AgentProtocol if |s| s.result.is_none() && s.end.summary.garbage_bytes() > 0;
    "failed without a result" => AgentError if |s| s.result.is_none();
};

/// The end as the rows look at it.
struct Seen<'a> {
    end: &'a RunEnd,
    result: Option<&'a AgentResult>,
    stderr: &'a str,
    /// What its error texts mean, where it names no status and no class.
    meaning: Option<FaultCode>,
}

impl<'a> Seen<'a> {
    fn new(end: &'a RunEnd, stderr: &'a str) -> Self {
        let mut seen = Self { end, result: end.summary.result(), stderr, meaning: None };
        let named = seen.status().is_some() || end.summary.error().is_some_and(|class| class != "unknown");
        if !named {
            seen.meaning = seen.error_texts().find_map(words::meaning);
        }
        seen
    }

    fn means(&self, code: FaultCode) -> bool {
        self.meaning == Some(code)
    }

    /// The texts of a result that says it is an error.
    fn error_texts(&self) -> impl Iterator<Item = &'a str> + use<'a> {
        let failed = self.result.filter(|_| self.reported_error());
        failed.into_iter().flat_map(|result| result.text.iter().chain(&result.errors)).map(String::as_str)
    }

    fn spawn(&self, is: impl FnOnce(&SpawnFailure) -> bool) -> bool {
        self.end.spawn_error.as_ref().is_some_and(is)
    }

    fn failed_exit(&self) -> bool {
        self.end.exit.is_some_and(|exit| exit.code != 0)
    }

    /// By a signal, or with the exit code of an agent that handled one (HUP, INT, QUIT, KILL, TERM), and before it had
    /// said what came of the run.
    fn killed(&self) -> bool {
        let unfinished = self.result.is_none() || self.end.summary.went_on();
        unfinished
            && self.end.exit.is_some_and(|exit| exit.signal.is_some() || [129, 130, 131, 137, 143].contains(&exit.code))
    }

    fn reported_error(&self) -> bool {
        self.result.is_some_and(|result| {
            result.is_error || result.subtype.as_deref().is_some_and(|subtype| subtype.starts_with("error_"))
        })
    }

    /// Errors the agent got over are no faults: they count when the result says so or when there is none.
    fn not_a_success(&self) -> bool {
        self.reported_error() || self.result.is_none() && self.failed_exit()
    }

    /// The answer: the result's text, or the last message where a version leaves the result empty.
    fn answer(&self) -> Option<&str> {
        let said = self.result?.text.as_deref().filter(|text| !is_blank(text));
        said.or_else(|| Some(self.end.summary.last_message()).filter(|text| !is_blank(text)))
    }

    /// A whole answer was given, and nothing that goes on from it was cut off.
    fn answered_whole(&self) -> bool {
        let left_by_itself = self.end.exit.is_some_and(|exit| exit.code == 0 && exit.signal.is_none());
        self.answer().is_some() && !self.reported_error() && (left_by_itself || !self.end.summary.went_on())
    }

    fn status(&self) -> Option<u64> {
        self.result.and_then(|result| result.api_error_status)
    }

    fn status_is(&self, status: u64) -> bool {
        self.status() == Some(status)
    }

    fn subtype_is(&self, subtype: &str) -> bool {
        self.result.is_some_and(|result| result.subtype.as_deref() == Some(subtype))
    }

    fn terminal_reason_is(&self, reasons: &[&str]) -> bool {
        self.result.and_then(|result| result.terminal_reason.as_deref()).is_some_and(|is| reasons.contains(&is))
    }

    fn api_error_type_is(&self, kind: &str) -> bool {
        self.result.is_some_and(|result| result.api_error_type.as_deref() == Some(kind))
    }

    fn error_is(&self, classes: &[&str]) -> bool {
        self.end.summary.error().is_some_and(|class| classes.contains(&class))
    }

    fn stderr_says(&self, needles: &[&str]) -> bool {
        needles.iter().any(|needle| self.stderr.contains(needle))
    }

    fn result_says(&self, needles: &[&str]) -> bool {
        self.result.is_some_and(|result| {
            let texts = result.errors.iter().chain(result.text.iter().filter(|_| result.is_error));
            texts.into_iter().any(|text| needles.iter().any(|needle| text.contains(needle)))
        })
    }

    /// On stderr or in an error of the result; not in an answer, which may speak of anything.
    fn says(&self, needles: &[&str]) -> bool {
        self.failed_exit() && self.stderr_says(needles) && !self.plain_success() || self.result_says(needles)
    }

    fn plain_success(&self) -> bool {
        self.result.is_some() && !self.reported_error()
    }

    /// A session was to be resumed, and an answer came from another one: it does not know what was said before.
    fn other_session(&self) -> bool {
        let answered = self.result.and_then(|result| result.session_id.as_deref());
        match (&self.end.resume_requested, answered) {
            (Some(_), _) if self.end.resumed_id == ResumedId::New => false,
            (Some(asked), Some(answered)) => asked.to_string() != answered,
            _ => false,
        }
    }

    /// The session, from whoever named it last; one that does not exist is named by its request.
    fn session_id(&self, code: Option<FaultCode>) -> Option<String> {
        let asked = self.end.resume_requested.as_ref().map(ToString::to_string);
        let started = self.end.summary.started().and_then(|started| started.session_id.clone());
        let answered = self.result.and_then(|result| result.session_id.clone());
        if code == Some(FaultCode::UnknownSession) && !self.plain_success() {
            return asked.or(answered).or(started);
        }
        // A session that was given its id is there once the agent has said anything.
        let given = self.end.new_session.filter(|_| self.end.summary.events() > 0);
        answered.or(started).or(asked).or_else(|| given.map(|id| id.to_string()))
    }

    /// When the limit is lifted: the event says so, other versions write it into the error's text.
    fn retry_at(&self) -> Option<UnixMillis> {
        let now = self.end.at.unwrap_or(UnixMillis(0));
        let in_words = || self.error_texts().find_map(|text| words::lifted(text, now, &TimeZone::system()));
        self.end.summary.retry_at().or_else(in_words)
    }

    /// Which limit was reached: by its name, else by the family of models its text speaks of.
    fn limit(&self) -> Option<String> {
        let named = self.end.summary.limit().map(str::to_owned);
        named.or_else(|| self.error_texts().find_map(limits::family).map(str::to_owned))
    }

    /// Until when the limit holds, for a sentence.
    fn until(&self) -> String {
        match (self.retry_at(), self.end.at) {
            (Some(at), Some(now)) => format!(" until {}", local_time::to_come(at, now)),
            (Some(at), None) => format!(" until {}", local_time::local(at)),
            (None, _) => String::new(),
        }
    }

    /// The exit in words.
    fn exit(&self) -> String {
        match self.end.exit {
            None => "did not start".to_owned(),
            Some(RunExit { signal: Some(signal), .. }) => format!("died of signal {signal}"),
            Some(RunExit { code, .. }) => format!("exited with code {code}"),
        }
    }

    /// The agent's own names for what happened; names only, its texts may quote the prompt.
    fn reasons(&self) -> String {
        let mut reasons = Vec::new();
        if let Some(status) = self.status() {
            reasons.push(format!("status {status}"));
        }
        let result = self.result;
        let named = [
            self.end.summary.error(),
            result.and_then(|result| result.terminal_reason.as_deref()),
            result.and_then(|result| result.subtype.as_deref()).filter(|subtype| *subtype != "success"),
        ];
        let is_name = |name: &&str| name.len() <= 40 && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
        reasons.extend(named.into_iter().flatten().filter(is_name).map(str::to_owned));
        if reasons.is_empty() { String::new() } else { format!(" ({})", reasons.join(", ")) }
    }
}

const OWN_WORDS: &str = "`response` and `stderr_tail` hold its own words.";

fn fault(profile: &AgentProfile, seen: &Seen<'_>, row: &Row) -> Fault {
    use FaultCode as C;
    let (title, reasons) = (profile.title, seen.reasons());
    let detail = match row.code {
        C::AgentMissing if row.name == "interpreter missing" => {
            format!("{title} could not begin: a program it needs was not found, or may not be run ({}).", seen.exit())
        }
        C::AgentMissing => format!("The program of {title} was not found."),
        C::AgentNotExecutable => format!("The program of {title} may not be executed."),
        C::InvalidInput if row.name == "working directory closed" => {
            "`cwd`: the directory may not be entered by the user this server runs as.".to_owned()
        }
        C::InvalidInput => "`cwd`: the directory does not exist any more.".to_owned(),
        C::Internal => format!("{title} could not be started as it was asked to ({}).", row.name),
        C::AgentSpawnFailed => match &seen.end.spawn_error {
            Some(SpawnFailure::Other(error)) => format!("{title} could not be started: {error}."),
            _ => format!("{title} could not be started."),
        },
        C::AgentKilled if row.name == "aborted" => format!("{title} was interrupted by somebody else{reasons}."),
        C::AgentKilled => format!("{title} was killed by somebody else: it {}.", seen.exit()),
        C::AgentUnsupported => format!("The installed version of {title} does not know an option that is needed."),
        C::UnknownSession if row.name == "another session answered" => {
            format!("{title} answered from another session than the one to be resumed.")
        }
        C::UnknownSession => format!("{title} has no session with this id."),
        C::InvalidSession => format!("{title} refused the session id."),
        C::InputTooLarge => format!("Prompt and history are larger than the model takes{reasons}."),
        C::TurnLimit => format!("{title} used all its turns before it had an answer."),
        C::BudgetExhausted => format!("{title} used up `max_budget_usd` before it had an answer."),
        C::AgentNotLoggedIn => format!("{title} is not logged in, or its credentials were refused{reasons}."),
        C::AgentBilling => format!("The provider refused for lack of credit{reasons}."),
        C::AgentRateLimited => format!("The provider's usage limit is reached{}{reasons}.", seen.until()),
        C::AgentOverloaded => format!("The provider is overloaded{reasons}."),
        C::AgentUpstream => format!("The provider or the network to it failed{reasons}."),
        C::AgentModel => format!("The model does not exist or is not available to this account{reasons}."),
        C::Refused => "The model refused the request.".to_owned(),
        C::AnswerTooLong => "The answer reached the model's output limit.".to_owned(),
        C::PromptGuardFailed => format!("{title} took the prompt for one of its own commands."),
        C::EmptyAnswer => format!("{title} ended well and said nothing."),
        C::AgentProtocol if seen.end.summary.events() == 0 => {
            format!("{title} {} and wrote nothing; it was probably interrupted.", seen.exit())
        }
        C::AgentProtocol => format!("{title} {} without a readable result.", seen.exit()),
        _ if seen.result.is_none() => format!("{title} {} without a result.", seen.exit()),
        _ => format!("{title} reported an error{reasons}."),
    };
    let hint = match row.code {
        C::AgentMissing if row.name == "interpreter missing" => {
            "`stderr_tail` names it. Put its directory on the PATH of the server, or install it.".to_owned()
        }
        C::AgentMissing | C::AgentNotExecutable => profile.install_hint.to_owned(),
        C::AgentUnsupported => format!("Update {title}; `stderr_tail` names the option."),
        C::AgentNotLoggedIn if seen.end.key_withheld => format!(
            "An API key is in the environment but was withheld, because billing is `subscription`; set \
             PHONE_OPUS_BILLING=api_key to use the key in the environment. Or: {}",
            profile.login_hint
        ),
        C::AgentNotLoggedIn => profile.login_hint.to_owned(),
        C::UnknownSession if row.name == "another session answered" => {
            "`response` was given without the history; `session_id` is the session that gave it.".to_owned()
        }
        C::UnknownSession => "Leave `session_id` out to start a new session.".to_owned(),
        C::InvalidSession => "Wait for the other run of this session, or leave `session_id` out.".to_owned(),
        C::InputTooLarge => "Ask for less at once, or start a new session.".to_owned(),
        C::TurnLimit => "Resume with this `session_id`, or allow more with `max_turns`.".to_owned(),
        C::BudgetExhausted => "Resume with this `session_id` and a new `max_budget_usd`.".to_owned(),
        C::AgentRateLimited if seen.retry_at().is_some() => {
            "Trying before then fails again; another agent or model may have a limit of its own.".to_owned()
        }
        C::AgentRateLimited => "Try again later; another agent or model may have a limit of its own.".to_owned(),
        C::AgentModel => "Leave `model` out to use the default.".to_owned(),
        C::Refused => "Put the request differently; the same words will be refused again.".to_owned(),
        C::AnswerTooLong => "Ask for a shorter answer, or for one part at a time.".to_owned(),
        C::AgentKilled | C::AgentProtocol => "Try again, or resume the session if `resumable` is true.".to_owned(),
        C::AgentError => OWN_WORDS.to_owned(),
        _ => String::new(),
    };
    let mut fault = Fault::new(row.code, detail);
    if !hint.is_empty() {
        fault = fault.hint(hint);
    }
    match seen.retry_at() {
        Some(at) if row.code == C::AgentRateLimited => fault.retry_at(at),
        _ => fault,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agents::{OutputParser, StreamJson};

    const PROFILE: AgentProfile =
        AgentProfile::new("Claude Code").install_hint("install").login_hint("log in").keeps_sessions();
    const SESSION: &str = "0b7a3f1e-5a53-4a4f-8f7b-2f4c9a2f6d10";

    /// An end as the words of the agent tell it.
    fn end(code: i32, stderr: &str, lines: &[&str]) -> RunEnd {
        let mut parser = StreamJson::new();
        let mut events = Vec::new();
        lines.iter().for_each(|line| parser.line(line.as_bytes(), &mut events));
        let mut summary = RunSummary::new();
        events.iter().for_each(|event| summary.fold(event));
        RunEnd {
            summary,
            exit: Some(RunExit { code, signal: None, reaped: 0 }),
            stderr_tail: stderr.as_bytes().to_vec(),
            ..RunEnd::default()
        }
    }

    fn result(fields: &str) -> String {
        format!(
            r#"{{"type":"result","subtype":"success","is_error":true,"result":"API Error","num_turns":1,"session_id":"{SESSION}"{fields}}}"#
        )
    }

    /// A result whose fields are all the caller's.
    fn raw(fields: &str) -> String {
        format!(r#"{{"type":"result","session_id":"{SESSION}",{fields}}}"#)
    }

    fn assistant_error(class: &str) -> String {
        format!(r#"{{"type":"assistant","error":"{class}","message":{{"content":[{{"type":"text","text":"x"}}]}}}}"#)
    }

    fn code(end: RunEnd) -> Option<FaultCode> {
        classify(&PROFILE, end).outcome.fault.map(|fault| fault.code)
    }

    fn row(end: &RunEnd) -> Option<&'static str> {
        let stderr = stderr_text(&end.stderr_tail);
        let seen = Seen::new(end, &stderr);
        ROWS.iter().find(|row| (row.applies)(&seen)).map(|row| row.name)
    }

    #[test]
    fn every_row_of_the_table_is_reached_by_what_the_agent_really_does() {
        use FaultCode as C;
        let spawn = |failure| RunEnd { spawn_error: Some(failure), ..RunEnd::default() };
        let signalled = RunEnd { exit: Some(RunExit { code: 137, signal: Some(9), reaped: 0 }), ..RunEnd::default() };
        let api = |error: &str, fields: &str| end(1, "", &[&assistant_error(error), &result(fields)]);
        let resumed_elsewhere = RunEnd {
            resume_requested: Some(AgentSessionId::random()),
            ..end(0, "", &[&raw(r#""is_error":false,"result":"hello","num_turns":1"#)])
        };
        let table: Vec<(&str, C, RunEnd)> = vec![
            ("program missing", C::AgentMissing, spawn(SpawnFailure::Missing)),
            ("program not executable", C::AgentNotExecutable, spawn(SpawnFailure::NotExecutable)),
            ("working directory missing", C::InvalidInput, spawn(SpawnFailure::NoDirectory)),
            ("command too large", C::Internal, spawn(SpawnFailure::TooLarge)),
            ("not started otherwise", C::AgentSpawnFailed, spawn(SpawnFailure::Other("too many files".into()))),
            ("neither started nor refused", C::Internal, RunEnd::default()),
            ("died by a signal", C::AgentKilled, signalled),
            ("died by a signal", C::AgentKilled, end(143, "", &[])),
            ("died by a signal", C::AgentKilled, end(129, "", &[])),
            ("unknown option", C::AgentUnsupported, end(1, "error: unknown option '--restricted'", &[])),
            ("unknown option", C::AgentUnsupported, end(1, "error: option '--x' argument 'y' is invalid.", &[])),
            ("no such conversation", C::UnknownSession, end(1, "No conversation found with session ID: x", &[])),
            (
                "no such conversation",
                C::UnknownSession,
                end(
                    1,
                    "",
                    &[&raw(
                        r#""subtype":"error_during_execution","is_error":true,"num_turns":0,"errors":["No conversation found with session ID: x"]"#,
                    )],
                ),
            ),
            ("interpreter missing", C::AgentMissing, end(127, "env: 'node': No such file or directory", &[])),
            ("interpreter missing", C::AgentMissing, end(126, "sh: bad interpreter: Permission denied", &[])),
            ("working directory closed", C::InvalidInput, spawn(SpawnFailure::DirectoryClosed)),
            ("bad session id", C::InvalidSession, end(1, "--resume requires a valid session ID or session title", &[])),
            ("bad session id", C::InvalidSession, end(1, "Error: Session ID x is already in use.", &[])),
            ("input too large", C::InputTooLarge, end(1, "Error: stdin exceeds 10MB", &[])),
            ("input too large", C::InputTooLarge, api("invalid_request", r#","terminal_reason":"prompt_too_long""#)),
            ("input too large", C::InputTooLarge, end(1, "", &[&result(r#","terminal_reason":"blocking_limit""#)])),
            ("input too large", C::InputTooLarge, api("invalid_request", r#","api_error_status":413"#)),
            (
                "turn limit",
                C::TurnLimit,
                end(
                    1,
                    "",
                    &[&raw(
                        r#""subtype":"error_max_turns","is_error":true,"num_turns":4,"stop_reason":"tool_use","errors":["max turns"]"#,
                    )],
                ),
            ),
            (
                "budget",
                C::BudgetExhausted,
                end(
                    1,
                    "",
                    &[&raw(r#""subtype":"error_max_budget_usd","is_error":true,"terminal_reason":"budget_exhausted""#)],
                ),
            ),
            (
                "aborted",
                C::AgentKilled,
                end(
                    0,
                    "",
                    &[&raw(
                        r#""subtype":"error_during_execution","is_error":true,"terminal_reason":"aborted_streaming""#,
                    )],
                ),
            ),
            ("authentication", C::AgentNotLoggedIn, api("authentication_failed", r#","api_error_status":401"#)),
            ("authentication", C::AgentNotLoggedIn, end(1, "", &[&result(r#","api_error_status":403"#)])),
            (
                "authentication",
                C::AgentNotLoggedIn,
                end(1, "", &[&raw(r#""is_error":true,"result":"Not logged in · Please run /login""#)]),
            ),
            ("authentication", C::AgentNotLoggedIn, end(1, "Not logged in", &[])),
            ("billing", C::AgentBilling, api("billing_error", r#","api_error_status":400"#)),
            ("rate limit", C::AgentRateLimited, api("rate_limit", r#","api_error_status":429"#)),
            ("rate limit", C::AgentRateLimited, end(1, "", &[&assistant_error("rate_limit")])),
            ("overloaded", C::AgentOverloaded, api("server_error", r#","api_error_status":529"#)),
            ("overloaded", C::AgentOverloaded, api("x", r#","api_error_type":"overloaded_error""#)),
            ("upstream", C::AgentUpstream, api("server_error", r#","api_error_status":500"#)),
            ("upstream", C::AgentUpstream, api("server_error", r#","api_error_status":null"#)),
            ("model", C::AgentModel, api("model_not_found", r#","api_error_status":404"#)),
            ("refusal", C::Refused, api("invalid_request", r#","stop_reason":"refusal""#)),
            ("output limit", C::AnswerTooLong, api("max_output_tokens", "")),
            ("reported an error", C::AgentError, api("unknown", r#","api_error_status":400"#)),
            (
                "reported an error",
                C::AgentError,
                end(1, "", &[&raw(r#""subtype":"error_during_execution","is_error":true"#)]),
            ),
            (
                "a local command ran",
                C::PromptGuardFailed,
                end(0, "", &[&raw(r#""is_error":false,"result":"","num_turns":0"#)]),
            ),
            ("another session answered", C::UnknownSession, resumed_elsewhere),
            ("empty answer", C::EmptyAnswer, end(0, "", &[&raw(r#""is_error":false,"result":" \n","num_turns":1"#)])),
            ("exit 0 without a result", C::AgentProtocol, end(0, "", &[])),
            ("unreadable output", C::AgentProtocol, end(1, "", &["what is this"])),
            ("failed without a result", C::AgentError, end(1, "something else", &[])),
        ];
        for (name, expected, end) in &table {
            assert_eq!(row(end), Some(*name), "{end:?}");
            let verdict = classify(&PROFILE, end.clone());
            let fault = verdict.outcome.fault.expect("a fault");
            assert_eq!((verdict.state, fault.code), (JobState::Failed, *expected), "{name}");
            assert!(!fault.detail.is_empty() && fault.detail.ends_with('.'), "{name}: {}", fault.detail);
        }
        let untested: Vec<&str> =
            ROWS.iter().map(|row| row.name).filter(|name| !table.iter().any(|(tested, ..)| tested == name)).collect();
        assert_eq!(untested, [] as [&str; 0]);
    }

    #[test]
    fn an_answer_succeeds_even_with_denials_a_bad_exit_code_or_errors_got_over() {
        let answer = raw(
            r#""subtype":"success","is_error":false,"result":"42","num_turns":2,"total_cost_usd":0.5,"modelUsage":{"helper":{"outputTokens":1},"main":{"outputTokens":9}},"permission_denials":[{"tool_name":"Bash"}]"#,
        );
        for (exit, stderr, before) in [
            (0, "", String::new()),
            (1, "a plan was refused", String::new()),
            (0, "Not logged in to something else; No conversation found", String::new()),
            (0, "", assistant_error("rate_limit")),
        ] {
            let verdict = classify(&PROFILE, end(exit, stderr, &[&before, &answer]));
            assert_eq!(verdict.state, JobState::Succeeded, "{verdict:?}");
            let outcome = verdict.outcome;
            assert_eq!(outcome.response.as_deref(), Some("42"));
            assert_eq!(outcome.model.as_deref(), Some("main"));
            assert_eq!((outcome.cost_usd, outcome.num_turns), (Some(0.5), Some(2)));
            assert_eq!(outcome.permission_denials.len(), 1);
            assert_eq!((outcome.session_id.as_deref(), outcome.resumable), (Some(SESSION), Some(true)));
            assert_eq!(outcome.stderr_tail.is_some(), exit != 0);
        }
    }

    #[test]
    fn a_whole_answer_is_an_answer_however_the_process_ended_and_whoever_ended_it() {
        let whole = raw(r#""is_error":false,"num_turns":1,"result":"42""#);
        let exit = |code, signal| Some(RunExit { code, signal, reaped: 0 });
        let stops = [
            None,
            Some(StopCause::Lingered),
            Some(StopCause::Deadline),
            Some(StopCause::Stalled),
            Some(StopCause::Cancelled(CancelReason::Requested)),
            Some(StopCause::Cancelled(CancelReason::CallerLost)),
        ];
        for stop in stops {
            for (code, signal) in
                [(0, None), (1, None), (2, None), (70, None), (143, None), (-1, None), (137, Some(9)), (139, Some(11))]
            {
                let end =
                    RunEnd { stop: stop.clone(), exit: exit(code, signal), ..end(code, "already in use", &[&whole]) };
                let verdict = classify(&PROFILE, end);
                assert_eq!(verdict.state, JobState::Succeeded, "{stop:?} {code} {signal:?}: {verdict:?}");
                assert_eq!(verdict.outcome.response.as_deref(), Some("42"));
                assert_eq!(verdict.outcome.exit, exit(code, signal), "how it ended is told");
            }
        }
        let mismatch = StopCause::Faulted(Box::new(Fault::new(FaultCode::BillingMismatch, "x")));
        let stopped = classify(&PROFILE, RunEnd { stop: Some(mismatch), ..end(0, "", &[&whole]) });
        assert_eq!(stopped.state, JobState::Failed, "nobody was to pay");
    }

    #[test]
    fn a_result_from_which_the_model_went_on_is_not_the_whole_answer_when_the_rest_is_cut_off() {
        let first = raw(r#""is_error":false,"num_turns":1,"result":"first""#);
        let more = r#"{"type":"assistant","message":{"content":[{"type":"text","text":"and more"}]}}"#;
        let cut = |stop, code| classify(&PROFILE, RunEnd { stop, ..end(code, "", &[&first, more]) });
        assert_eq!(cut(Some(StopCause::Deadline), 143).state, JobState::Cancelled);
        assert_eq!(cut(None, 143).outcome.fault.map(|fault| fault.code), Some(FaultCode::AgentKilled));
        assert_eq!(cut(None, 0).state, JobState::Succeeded);
        let second = raw(r#""is_error":false,"num_turns":2,"result":"second""#);
        let verdict = classify(&PROFILE, end(143, "", &[&first, more, &second]));
        assert_eq!((verdict.state, verdict.outcome.response.as_deref()), (JobState::Succeeded, Some("second")));
    }

    #[test]
    fn an_empty_result_takes_the_last_message_and_nothing_from_before_a_tool() {
        let empty = raw(r#""is_error":false,"num_turns":1,"result":"""#);
        let said = |text: &str| {
            format!(r#"{{"type":"assistant","message":{{"content":[{{"type":"text","text":"{text}"}}]}}}}"#)
        };
        let tool = r#"{"type":"assistant","message":{"content":[{"type":"tool_use","name":"Read"}]}}"#;
        for code in [0, 1, 143] {
            let verdict = classify(&PROFILE, end(code, "", &[&said("look"), tool, &said("4"), &said("2"), &empty]));
            assert_eq!((verdict.state, verdict.outcome.response.as_deref()), (JobState::Succeeded, Some("4\n\n2")));
            let verdict = classify(&PROFILE, end(code, "", &[&said("look"), tool, &empty]));
            assert_eq!(verdict.outcome.fault.map(|fault| fault.code), Some(FaultCode::EmptyAnswer));
            assert_eq!(verdict.outcome.response.as_deref(), Some("look"));
        }
        let absent = r#"{"type":"result","subtype":"success","is_error":false,"num_turns":1}"#;
        assert_eq!(classify(&PROFILE, end(0, "", &[&said("42"), absent])).state, JobState::Succeeded);
    }

    #[test]
    fn a_failure_that_was_said_is_not_hidden_by_how_the_process_ended() {
        for stop in [None, Some(StopCause::Lingered)] {
            for code in [0, 1, 143] {
                let end = RunEnd { stop: stop.clone(), ..end(code, "", &[&result(r#","api_error_status":429"#)]) };
                assert_eq!(self::code(end), Some(FaultCode::AgentRateLimited), "{stop:?} {code}");
            }
        }
    }

    #[test]
    fn a_new_id_is_another_session_only_where_resuming_keeps_the_id() {
        let asked = AgentSessionId::random();
        let answer = raw(r#""is_error":false,"result":"42","num_turns":1"#);
        let resumed = |resumed_id| {
            classify(&PROFILE, RunEnd { resume_requested: Some(asked), resumed_id, ..end(0, "", &[&answer]) })
        };
        let new = resumed(ResumedId::New);
        assert_eq!((new.state, new.outcome.session_id.as_deref()), (JobState::Succeeded, Some(SESSION)));
        assert_eq!(new.outcome.resumable, Some(true));
        let same = resumed(ResumedId::Same);
        assert_eq!(same.outcome.fault.map(|fault| fault.code), Some(FaultCode::UnknownSession));
    }

    #[test]
    fn extra_usage_is_told_and_the_limit_that_was_reached_is_named() {
        let event = |info: &str| format!(r#"{{"type":"rate_limit_event","rate_limit_info":{{{info}}}}}"#);
        let answer = raw(r#""is_error":false,"result":"42","num_turns":1"#);
        let paid = event(r#""status":"allowed","isUsingOverage":true"#);
        let outcome = classify(&PROFILE, end(0, "", &[&paid, &answer])).outcome;
        assert!(outcome.extra_usage && outcome.limit.is_none());
        let refused = event(r#""status":"rejected","resetsAt":1900000000,"rateLimitType":"seven_day_opus""#);
        let outcome = classify(&PROFILE, end(1, "", &[&refused, &result(r#","api_error_status":429"#)])).outcome;
        assert_eq!(outcome.limit.as_deref(), Some("seven_day_opus"));
        assert!(!classify(&PROFILE, end(0, "", &[&answer])).outcome.extra_usage);
    }

    #[test]
    fn an_answer_that_speaks_of_errors_is_an_answer() {
        let answer = raw(
            r#""is_error":false,"num_turns":1,"result":"The log says: Not logged in, No conversation found, usage limit reached|1900000000""#,
        );
        assert_eq!(code(end(0, "", &[&answer])), None);
    }

    #[test]
    fn our_own_stop_names_its_cause_and_keeps_what_was_said() {
        use FaultCode as C;
        let lines = [
            format!(r#"{{"type":"system","subtype":"init","session_id":"{SESSION}","apiKeySource":"none"}}"#),
            r#"{"type":"assistant","message":{"content":[{"type":"text","text":"so far"}]}}"#.to_owned(),
        ];
        let lines = [lines[0].as_str(), lines[1].as_str()];
        let mismatch = Fault::new(C::BillingMismatch, "x");
        for (stop, state, code) in [
            (StopCause::Cancelled(CancelReason::Requested), JobState::Cancelled, C::Cancelled),
            (StopCause::Cancelled(CancelReason::CallerLost), JobState::Cancelled, C::CallerLost),
            (StopCause::Cancelled(CancelReason::RunnerStopped), JobState::Cancelled, C::Cancelled),
            (StopCause::Deadline, JobState::Cancelled, C::DeadlineExceeded),
            (StopCause::Stalled, JobState::Failed, C::AgentStalled),
            (StopCause::Faulted(Box::new(mismatch)), JobState::Failed, C::BillingMismatch),
        ] {
            for exit in [143, 137, 0, 1] {
                let verdict =
                    classify(&PROFILE, RunEnd { stop: Some(stop.clone()), ..end(exit, "Terminated", &lines) });
                assert_eq!(verdict.state, state, "{stop:?}");
                assert_eq!(verdict.outcome.fault.as_ref().map(|fault| fault.code), Some(code));
                assert_eq!(verdict.outcome.response.as_deref(), Some("so far"));
                assert_eq!(verdict.outcome.session_id.as_deref(), Some(SESSION));
                assert_eq!(verdict.outcome.billing.as_deref(), Some("none"));
                assert_eq!(verdict.outcome.stderr_tail.as_deref(), Some("Terminated"));
                assert_eq!(verdict.outcome.resumable, (code != C::BillingMismatch).then_some(true), "{stop:?}");
            }
        }
    }

    #[test]
    fn a_failed_login_says_when_a_key_was_withheld() {
        let hint = |key_withheld| {
            let end = RunEnd { key_withheld, ..end(1, "Not logged in", &[]) };
            classify(&PROFILE, end).outcome.fault.and_then(|fault| fault.hint).expect("a hint")
        };
        assert!(hint(true).contains("PHONE_OPUS_BILLING=api_key"), "{}", hint(true));
        assert_eq!(hint(false), "log in");
    }

    #[test]
    fn an_error_after_some_text_loses_neither() {
        let said = r#"{"type":"assistant","message":{"content":[{"type":"text","text":"so far"}]}}"#;
        let outcome = classify(&PROFILE, end(1, "", &[said, &assistant_error("server_error"), &result("")])).outcome;
        assert_eq!(outcome.response.as_deref(), Some("so far\n\nAPI Error"));
    }

    #[test]
    fn a_rate_limit_says_when_it_is_lifted() {
        let event = r#"{"type":"rate_limit_event","rate_limit_info":{"status":"rejected","resetsAt":1900000000}}"#;
        let at = |end| classify(&PROFILE, end).outcome.fault.and_then(|fault| fault.retry_at);
        let expected = Some(UnixMillis(1_900_000_000_000));
        assert_eq!(at(end(1, "", &[event, &result(r#","api_error_status":429"#)])), expected);
        let old = raw(r#""is_error":true,"result":"Claude AI usage limit reached|1900000000""#);
        assert_eq!(at(end(1, "", &[&old])), expected);
    }

    #[test]
    fn words_count_where_nothing_else_says_what_failed_and_only_in_an_error() {
        let said = |text: &str, more: &str| raw(&format!(r#""is_error":true,"num_turns":1,"result":"{text}"{more}"#));
        for (text, expected, retryable) in [
            ("5-hour limit reached ∙ resets 2pm (UTC)", FaultCode::AgentRateLimited, true),
            ("Credit balance is too low", FaultCode::AgentBilling, false),
            ("OAuth token has expired. Please obtain a new token", FaultCode::AgentNotLoggedIn, false),
            ("Prompt is too long", FaultCode::InputTooLarge, false),
            ("API Error: Repeated 529 Overloaded errors", FaultCode::AgentOverloaded, true),
            ("API Error: Connection error.", FaultCode::AgentUpstream, true),
            ("There's an issue with the selected model (x).", FaultCode::AgentModel, false),
            ("exceeded the 32000 output token maximum", FaultCode::AnswerTooLong, false),
            ("which appears to violate our Usage Policy", FaultCode::Refused, false),
        ] {
            for fields in [
                said(text, ""),
                raw(&format!(r#""subtype":"error_during_execution","is_error":true,"errors":["{text}"]"#)),
            ] {
                let fault = classify(&PROFILE, end(1, "", &[&fields])).outcome.fault.expect("a fault");
                assert_eq!((fault.code, fault.retryable), (expected, retryable), "{fields}");
                assert!(!fault.to_string().contains(text), "{fault}");
            }
            // An answer may speak of anything, and a status knows better than words.
            let answer = raw(&format!(r#""is_error":false,"num_turns":1,"result":"{text}""#));
            assert_eq!(code(end(0, "", &[&answer])), None, "{text}");
            assert_eq!(code(end(1, "", &[&said(text, r#","api_error_status":500"#)])), Some(FaultCode::AgentUpstream));
        }
    }

    #[test]
    fn a_limit_says_until_when_in_words_of_people() {
        // Ten past ten in the morning of 26 November 2026, UTC.
        let now = UnixMillis(1_795_687_800_000);
        let text = raw(r#""is_error":true,"result":"Opus weekly limit reached ∙ resets Dec 4 at 10am (UTC)""#);
        let outcome = classify(&PROFILE, RunEnd { at: Some(now), ..end(1, "", &[&text]) }).outcome;
        let fault = outcome.fault.expect("a fault");
        let lifted = fault.retry_at.expect("a time");
        assert_eq!(lifted.to_iso8601(), "2026-12-04T10:00:00.000Z");
        assert!(fault.detail.contains(&local_time::local(lifted)), "{}", fault.detail);
        assert!(fault.detail.contains("in 7 days 23 h"), "{}", fault.detail);
        assert!(!fault.to_string().contains(&lifted.0.to_string()), "{fault}");
        assert_eq!(outcome.limit.as_deref(), Some("opus"));
    }

    #[test]
    fn sessions_are_resumable_when_they_are_known_to_be_kept() {
        let max_turns = end(1, "", &[&raw(r#""subtype":"error_max_turns","is_error":true"#)]);
        assert_eq!(classify(&PROFILE, max_turns.clone()).outcome.resumable, Some(true));
        let offline = AgentProfile { sessions: SessionIds::NotKept, ..PROFILE };
        assert_eq!(classify(&offline, max_turns).outcome.resumable, Some(false));
        let asked = AgentSessionId::random();
        let resume = |end| RunEnd { resume_requested: Some(asked), ..end };
        let unknown = classify(&PROFILE, resume(end(1, "No conversation found with session ID", &[]))).outcome;
        assert_eq!((unknown.session_id, unknown.resumable), (Some(asked.to_string()), Some(false)));
        let upstream = classify(&PROFILE, resume(end(1, "", &[&assistant_error("server_error")]))).outcome;
        assert_eq!((upstream.session_id, upstream.resumable), (Some(asked.to_string()), Some(true)));
        let not_started = RunEnd { spawn_error: Some(SpawnFailure::Missing), ..RunEnd::default() };
        assert_eq!(classify(&PROFILE, resume(not_started)).outcome.resumable, None);
    }

    #[test]
    fn no_fault_repeats_the_agents_texts() {
        let canary = "CANARY";
        for fields in [
            r#""is_error":true,"subtype":"CANARY text","result":"CANARY","errors":["CANARY"],"terminal_reason":"a CANARY""#,
            r#""is_error":true,"result":"CANARY","api_error_status":429"#,
            r#""is_error":false,"num_turns":0,"result":"CANARY""#,
        ] {
            let fault = classify(&PROFILE, end(1, canary, &[&raw(fields)])).outcome.fault.expect("a fault");
            assert!(!fault.to_string().contains(canary), "{fault}");
        }
    }

    #[test]
    fn stderr_is_cut_to_its_end_and_an_answer_to_its_beginning() {
        let stderr = format!("{}the end", "é".repeat(5_000));
        let outcome = classify(&PROFILE, end(1, &stderr, &[])).outcome;
        let tail = outcome.stderr_tail.expect("a tail");
        assert!(tail.len() <= MAX_STDERR_BYTES && tail.ends_with("the end") && tail.starts_with('é'));
        let long = raw(&format!(r#""is_error":false,"num_turns":1,"result":"{}""#, "ü".repeat(MAX_RESPONSE_BYTES)));
        let outcome = classify(&PROFILE, end(0, "", &[&long])).outcome;
        assert!(outcome.response_cut && outcome.response.is_some_and(|text| text.len() == MAX_RESPONSE_BYTES));
    }

    #[test]
    fn a_missing_directory_is_not_taken_for_a_missing_program() {
        let missing = io::Error::from(io::ErrorKind::NotFound);
        assert_eq!(SpawnFailure::from_io(&missing, true), SpawnFailure::Missing);
        assert_eq!(SpawnFailure::from_io(&missing, false), SpawnFailure::NoDirectory);
        let exec = io::Error::from_raw_os_error(rustix::io::Errno::NOEXEC.raw_os_error());
        assert_eq!(SpawnFailure::from_io(&exec, true), SpawnFailure::NotExecutable);
        let big = io::Error::from_raw_os_error(rustix::io::Errno::TOOBIG.raw_os_error());
        assert_eq!(SpawnFailure::from_io(&big, true), SpawnFailure::TooLarge);
    }
}
