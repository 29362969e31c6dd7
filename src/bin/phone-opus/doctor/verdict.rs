//! What a real turn of an agent says of it.
//!
//! Owns: which login, payer and version that is, and the words about it, as a function of what was seen. May not know: how a turn is
//! had, who looks.
//!
//! ```text
//!                        login      who pays
//! answered               proven     what was chosen, of an agent that says it; unproven otherwise
//! not logged in          no         nobody, where nothing ran; unproven otherwise
//! the provider refused   as it says itself (said, no, unknown)
//! nothing was started    as it says itself, and nobody pays
//! ```
//!
//! Invariant: nothing is taken for proven but what an answer proves.

use phone_opus::internals::agents::LoginSaid;
use phone_opus::internals::base::fault::{Fault, FaultCode};
use phone_opus::internals::base::ids::{JobId, UnixMillis};
use phone_opus::internals::jobs::{Billing, JobOutcome, JobRecord, JobState};
use serde_json::{Value, json};

use crate::screen::ages;

/// What is known of an agent without asking its model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Known {
    pub(super) agent: String,
    pub(super) version: Option<String>,
    pub(super) login: LoginSaid,
}

impl Known {
    /// Of one that says nothing.
    pub(super) fn nothing(agent: &str) -> Self {
        Self { agent: agent.to_owned(), version: None, login: LoginSaid::Unsaid }
    }
}

/// What an agent's stream says of who pays.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum PayerWord {
    /// It says it, and a run that another would pay for is ended.
    Says,
    /// It does not.
    Silent,
    /// Nothing is paid for it at all.
    Free,
}

/// How a turn went.
#[derive(Debug)]
pub(super) enum Turn {
    /// A job, which is over.
    Job(Box<JobRecord>),
    /// Nothing was accepted.
    Refused(Fault),
    /// It was given up because it took too long: for its turn to come, or for the agent.
    TooLong {
        /// Seconds it was waited for.
        waited: u64,
        job: JobId,
    },
}

/// Whether an agent is logged in, and from where that is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Login {
    /// It has answered.
    Proven,
    /// It says so itself.
    Said,
    No,
    Unknown,
}

impl Login {
    fn word(self) -> &'static str {
        match self {
            Self::Proven => "proven",
            Self::Said => "said",
            Self::No => "no",
            Self::Unknown => "unknown",
        }
    }
}

/// What a turn has shown.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Verdict {
    pub(super) agent: String,
    pub(super) answered: bool,
    /// How its job stands; `refused` where there is none.
    pub(super) status: &'static str,
    pub(super) code: Option<FaultCode>,
    pub(super) login: Login,
    pub(super) payer: &'static str,
    pub(super) model: Option<String>,
    pub(super) version: Option<String>,
    /// From the question to its end, without the time it waited for its turn.
    pub(super) took_ms: Option<u64>,
    pub(super) cost_usd: Option<f64>,
    pub(super) retry_at: Option<UnixMillis>,
    pub(super) job: Option<JobId>,
    /// What happened and what to do, in sentences.
    pub(super) text: String,
}

/// Judges a turn.
pub(super) fn judge(known: &Known, payer: PayerWord, billing: Billing, turn: &Turn, now: UnixMillis) -> Verdict {
    let (outcome, fault, status, job) = match turn {
        Turn::Job(record) => {
            let outcome = record.outcome.as_ref();
            let fault = outcome.and_then(|outcome| outcome.fault.as_ref());
            (outcome, fault, record.state.as_str(), Some(record.id))
        }
        Turn::Refused(fault) => (None, Some(fault), "refused", None),
        Turn::TooLong { job, .. } => (None, None, JobState::Cancelled.as_str(), Some(*job)),
    };
    let answered = matches!(turn, Turn::Job(record) if record.state == JobState::Succeeded);
    let ran = matches!(turn, Turn::Job(record) if !record.nothing_ran()) || matches!(turn, Turn::TooLong { .. });
    let code = fault.map(|fault| fault.code);
    let login = match (answered, code, known.login) {
        (true, ..) => Login::Proven,
        (false, Some(FaultCode::AgentNotLoggedIn), _) | (false, _, LoginSaid::No) => Login::No,
        (false, _, LoginSaid::Plan | LoginSaid::Key | LoginSaid::Somehow) => Login::Said,
        (false, _, LoginSaid::Unsaid) => Login::Unknown,
    };
    let told = outcome.and_then(|outcome| outcome.billing.as_deref());
    let payer = match (payer, ran) {
        (PayerWord::Free, _) | (_, false) => "nobody",
        // Where it is another one than was chosen the run is ended as a mismatch.
        (PayerWord::Says, true) if told.is_some() && code != Some(FaultCode::BillingMismatch) => billing.as_str(),
        (PayerWord::Says | PayerWord::Silent, true) => "unproven",
    };
    let mut verdict = Verdict {
        agent: known.agent.clone(),
        answered,
        status,
        code,
        login,
        payer,
        model: outcome.and_then(|outcome| outcome.model.clone()),
        version: known.version.clone(),
        took_ms: outcome.and_then(|outcome| outcome.run_ms),
        cost_usd: outcome.and_then(|outcome| outcome.cost_usd),
        retry_at: fault.and_then(|fault| fault.retry_at),
        job,
        text: String::new(),
    };
    verdict.text = match (turn, fault) {
        _ if answered => verdict.answer(outcome),
        (Turn::TooLong { waited, .. }, _) => format!(
            "no answer within {waited} s, so it was ended; a consult may have been waiting for its turn (phone-opus status)"
        ),
        (_, Some(fault)) => failure(fault, now),
        (_, None) => format!("its job is {status}, and nothing says why"),
    };
    verdict
}

impl Verdict {
    /// One sentence of facts.
    fn answer(&self, outcome: Option<&JobOutcome>) -> String {
        let took = self.took_ms.map_or_else(String::new, |ms| format!(" in {:.1} s", ms as f64 / 1000.0));
        let payer = match self.payer {
            "nobody" => "nothing is paid".to_owned(),
            "unproven" => "who pays is unproven".to_owned(),
            chosen => format!("paid by {chosen}"),
        };
        let extra = if outcome.is_some_and(|outcome| outcome.extra_usage) { ", beyond the plan" } else { "" };
        let cost = self.cost_usd.filter(|_| self.payer != "nobody");
        let cost = cost.map_or_else(String::new, |cost| format!(", ${cost:.4}"));
        let model = self.model.as_ref().map_or_else(String::new, |model| format!("; model {model}"));
        let version = self.version.as_ref().map_or_else(String::new, |version| format!("; {version}"));
        format!("answers{took}; {payer}{extra}{cost}{model}{version}")
    }

    /// For a program.
    pub(super) fn json(&self) -> Value {
        json!({
            "agent": self.agent, "status": self.status, "code": self.code, "login": self.login.word(), "payer": self.payer,
            "model": self.model, "agent_version": self.version, "round_trip_ms": self.took_ms, "cost_usd": self.cost_usd,
            "retry_at": self.retry_at.map(UnixMillis::to_iso8601), "job_id": self.job,
        })
    }
}

/// What went wrong and what to do about it, in the words that every consult has for it.
fn failure(fault: &Fault, now: UnixMillis) -> String {
    let mut said = format!("{}: {}", fault.code, fault.detail);
    if let Some(hint) = &fault.hint {
        said.push_str(&format!(" {hint}"));
    }
    if let Some(at) = fault.retry_at {
        let left = match at.since(now) / 1000 {
            0 => String::new(),
            seconds => format!(", in {}", ages::elapsed(seconds)),
        };
        said.push_str(&format!(" It answers again from {}{left}.", at.to_iso8601()));
    }
    said
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: UnixMillis = UnixMillis(1_800_000_000_000);

    fn known(login: LoginSaid) -> Known {
        Known { agent: "codex".to_owned(), version: Some("codex 0.169.0".to_owned()), login }
    }

    /// A job that ended so.
    fn job(state: &str, outcome: Value, process: Value) -> Turn {
        let record = json!({
            "id": JobId::random(), "sequence": 1, "invocation": null, "request_key": null, "workspace": "/w", "mode": "sync",
            "state": state, "chain": uuid(), "depth": 0, "accepted_at": 1, "started_at": 2, "finished_at": 3,
            "cancel_requested": null, "process": process, "outcome": outcome, "read_at": null, "last_event": 0,
            "request": {"prompt": "p", "cwd": "/w", "agent": "codex", "timeout_s": 1, "billing": "subscription"},
        });
        Turn::Job(Box::new(serde_json::from_value(record).expect("a record")))
    }

    fn uuid() -> &'static str {
        "3f2504e0-4f89-41d3-9a0c-0305e82c3301"
    }

    fn failed(fault: &Fault, ran: bool) -> Turn {
        let exit = if ran { json!({"code": 1, "reaped": 0}) } else { Value::Null };
        let outcome = json!({"fault": fault, "exit": exit, "prompt_prefix_injected": true});
        let process = if ran { json!({"pid": 7, "start_time": 1, "token": uuid()}) } else { Value::Null };
        job("failed", outcome, process)
    }

    fn answered(billing: Value) -> Turn {
        let outcome = json!({
            "response": "here", "billing": billing, "model": "a-model", "cost_usd": 0.0123, "run_ms": 2345,
            "exit": {"code": 0, "reaped": 0},
        });
        job("succeeded", outcome, json!({"pid": 7, "start_time": 1, "token": uuid()}))
    }

    #[test]
    fn an_answer_proves_the_login_and_the_payer_is_what_can_be_known_of_it() {
        for (told, word, billing, payer, said) in [
            (json!("none"), PayerWord::Says, Billing::Subscription, "subscription", "paid by subscription"),
            (json!("ANTHROPIC_API_KEY"), PayerWord::Says, Billing::ApiKey, "api_key", "paid by api_key"),
            // An old version may introduce itself without it.
            (Value::Null, PayerWord::Says, Billing::Subscription, "unproven", "who pays is unproven"),
            (json!("unproven"), PayerWord::Silent, Billing::ApiKey, "unproven", "who pays is unproven"),
            (Value::Null, PayerWord::Free, Billing::Subscription, "nobody", "nothing is paid"),
        ] {
            for login in [LoginSaid::Plan, LoginSaid::No, LoginSaid::Unsaid] {
                let verdict = judge(&known(login), word, billing, &answered(told.clone()), NOW);
                assert_eq!(
                    (verdict.answered, verdict.login, verdict.payer),
                    (true, Login::Proven, payer),
                    "{told} {word:?}"
                );
                let cost = if payer == "nobody" { "" } else { ", $0.0123" };
                assert_eq!(verdict.text, format!("answers in 2.3 s; {said}{cost}; model a-model; codex 0.169.0"));
            }
        }
    }

    #[test]
    fn a_turn_that_failed_says_what_it_showed_and_what_to_do() {
        use FaultCode as C;
        let fault = |code, hint: &str| Fault::new(code, "It is so.").hint(hint);
        let mut limited = fault(C::AgentRateLimited, "Wait.");
        limited.retry_at = Some(UnixMillis(NOW.0 + 2 * 3_600_000));
        for (turn, said, status, login, payer, text) in [
            (
                failed(&fault(C::AgentNotLoggedIn, "Log in."), true),
                LoginSaid::Plan,
                "failed",
                Login::No,
                "unproven",
                "agent_not_logged_in: It is so. Log in.",
            ),
            (
                failed(&fault(C::AgentNotLoggedIn, "Log in."), false),
                LoginSaid::Unsaid,
                "failed",
                Login::No,
                "nobody",
                "agent_not_logged_in: It is so. Log in.",
            ),
            (
                failed(&limited, true),
                LoginSaid::Plan,
                "failed",
                Login::Said,
                "unproven",
                "agent_rate_limited: It is so. Wait. It answers again from 2027-01-15T10:00:00.000Z, in 2 h 00 min.",
            ),
            (
                Turn::Refused(limited.clone()),
                LoginSaid::Unsaid,
                "refused",
                Login::Unknown,
                "nobody",
                "agent_rate_limited: It is so. Wait. It answers again from 2027-01-15T10:00:00.000Z, in 2 h 00 min.",
            ),
            (
                failed(&fault(C::AgentMissing, "Install it."), false),
                LoginSaid::Unsaid,
                "failed",
                Login::Unknown,
                "nobody",
                "agent_missing: It is so. Install it.",
            ),
            (
                failed(&fault(C::BillingMismatch, "Unset it."), true),
                LoginSaid::Key,
                "failed",
                Login::Said,
                "unproven",
                "billing_mismatch: It is so. Unset it.",
            ),
            (
                failed(&fault(C::DeadlineExceeded, "Ask again."), true),
                LoginSaid::No,
                "failed",
                Login::No,
                "unproven",
                "deadline_exceeded: It is so. Ask again.",
            ),
            (
                Turn::TooLong { waited: 180, job: JobId::random() },
                LoginSaid::Unsaid,
                "cancelled",
                Login::Unknown,
                "unproven",
                "no answer within 180 s, so it was ended; a consult may have been waiting for its turn (phone-opus status)",
            ),
        ] {
            let verdict = judge(&known(said), PayerWord::Says, Billing::Subscription, &turn, NOW);
            assert!(!verdict.answered, "{text}");
            assert_eq!((verdict.status, verdict.login, verdict.payer), (status, login, payer), "{text}");
            assert_eq!(verdict.text, text);
        }
    }

    #[test]
    fn what_a_program_reads_has_the_words_of_every_reply() {
        let verdict =
            judge(&known(LoginSaid::Plan), PayerWord::Silent, Billing::Subscription, &answered(json!("unproven")), NOW);
        let told = verdict.json();
        for (member, value) in [
            ("status", json!("succeeded")),
            ("login", json!("proven")),
            ("payer", json!("unproven")),
            ("model", json!("a-model")),
            ("agent_version", json!("codex 0.169.0")),
            ("round_trip_ms", json!(2345)),
            ("retry_at", Value::Null),
        ] {
            assert_eq!(told[member], value, "{member}");
        }
    }
}
