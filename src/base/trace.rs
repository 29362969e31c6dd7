//! Trace context: which trace something is part of, as W3C Trace Context writes it (`traceparent`, `tracestate`).
//!
//! Owns: the ids, how they are read, written and derived. May not know: what is traced, whether anybody collects it.
//!
//! Ids of our own are derived from what they name, never drawn: whichever process, generation or image tells of a thing, before or
//! after a crash, gives it the same id, and nothing has to be remembered for that.
//!
//! Invariant: what a client sends becomes ids, one flag and a bounded `tracestate`, or nothing at all.

use std::fmt;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::ids::{JobId, UnixMillis};

/// The variable by which programs hand their trace on to those they start.
pub const TRACEPARENT_VARIABLE: &str = "TRACEPARENT";

/// Bytes of a `tracestate` that is passed on. W3C asks for 512 at least; a longer one is dropped whole, as the specification allows.
const STATE_BYTES: usize = 512;

/// Members of it, by the specification.
const STATE_MEMBERS: usize = 32;

/// Bytes of a `traceparent` of the only version there is.
const LENGTH: usize = 55;

macro_rules! hex_id {
    ($(#[$doc:meta])* $name:ident, $bytes:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name([u8; $bytes]);

        impl $name {
            /// The bytes; never all zero.
            #[must_use]
            pub const fn bytes(&self) -> &[u8; $bytes] {
                &self.0
            }

            /// Reads lower-case hexadecimal digits, as many as there must be; all zero is no id.
            #[must_use]
            pub fn parse(text: &str) -> Option<Self> {
                let text = text.as_bytes();
                let mut bytes = [0; $bytes];
                if text.len() != 2 * bytes.len() {
                    return None;
                }
                for (byte, pair) in bytes.iter_mut().zip(text.chunks_exact(2)) {
                    *byte = digit(pair[0])? << 4 | digit(pair[1])?;
                }
                (bytes != [0; $bytes]).then_some(Self(bytes))
            }

            /// The id of what these parts name, in this order.
            #[must_use]
            pub fn derived(parts: &[&str]) -> Self {
                let mut digest = Sha256::new();
                digest.update(concat!("phone-opus/", stringify!($name)));
                for part in parts {
                    // The length first, so that what is named by ("a", "bc") is not what is named by ("ab", "c").
                    digest.update((part.len() as u64).to_le_bytes());
                    digest.update(part);
                }
                let mut bytes = [0; $bytes];
                bytes.copy_from_slice(&digest.finalize()[..$bytes]);
                // All zero means no id; it is not to be expected of a digest, and costs one bit.
                if bytes == [0; $bytes] {
                    bytes[0] = 1;
                }
                Self(bytes)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }

        impl Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
                Self::parse(&text).ok_or_else(|| serde::de::Error::custom("no id of a trace or a span"))
            }
        }
    };
}

hex_id! {
    /// A trace: everything that follows from one call.
    TraceId, 16
}

hex_id! {
    /// One thing in a trace.
    SpanId, 8
}

/// The value of a lower-case hexadecimal digit.
const fn digit(byte: u8) -> Option<u8> {
    match byte {
        b'0'..=b'9' => Some(byte - b'0'),
        b'a'..=b'f' => Some(byte - b'a' + 10),
        _ => None,
    }
}

/// Where something is in a trace: below this span.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TraceContext {
    /// The trace.
    pub trace: TraceId,
    /// The span above.
    pub span: SpanId,
    /// Whether whoever began the trace collects it.
    pub sampled: bool,
    /// `tracestate`, passed on as it came.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state: Option<String>,
}

impl TraceContext {
    /// Reads a `traceparent`. Of a later version the beginning counts, as the specification has it; what is wrong is none.
    #[must_use]
    pub fn parse(traceparent: &str) -> Option<Self> {
        let bytes = traceparent.as_bytes();
        if !traceparent.is_ascii() || bytes.len() < LENGTH {
            return None;
        }
        let version = (digit(bytes[0])?, digit(bytes[1])?);
        let ends = match version {
            (15, 15) => false,
            (0, 0) => bytes.len() == LENGTH,
            _ => bytes.get(LENGTH).is_none_or(|byte| *byte == b'-'),
        };
        if !ends || [2, 35, 52].into_iter().any(|at| bytes[at] != b'-') {
            return None;
        }
        let (trace, span) = (TraceId::parse(&traceparent[3..35])?, SpanId::parse(&traceparent[36..52])?);
        digit(bytes[53])?;
        let sampled = digit(bytes[54])? & 1 == 1;
        Some(Self { trace, span, sampled, state: None })
    }

    /// The same with a `tracestate`, unless that is longer than is passed on, or none.
    #[must_use]
    pub fn with_state(self, state: &str) -> Self {
        Self { state: is_state(state).then(|| state.to_owned()), ..self }
    }

    /// As `traceparent` has it.
    #[must_use]
    pub fn traceparent(&self) -> String {
        format!("00-{}-{}-{:02x}", self.trace, self.span, u8::from(self.sampled))
    }
}

fn is_state(text: &str) -> bool {
    let is_key = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"_-*/@".contains(&byte);
    let is_member = |member: &str| {
        member.trim_matches([' ', '\t']).split_once('=').is_some_and(|(key, value)| {
            let plain = |byte: u8| (0x20..0x7f).contains(&byte) && byte != b'=';
            !key.is_empty()
                && key.len() <= 256
                && key.bytes().all(is_key)
                && !value.is_empty()
                && value.bytes().all(plain)
        })
    };
    text.len() <= STATE_BYTES
        && text.split(',').count() <= STATE_MEMBERS
        && text.split(',').all(|member| member.trim_matches([' ', '\t']).is_empty() || is_member(member))
        && text.contains('=')
}

/// The trace a job is part of. It is kept with the job, so that whoever has it to the end, a runner or another host, goes on with it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobTrace {
    /// The trace.
    pub trace: TraceId,
    /// The span above the job's own, where there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parent: Option<SpanId>,
    /// Whether it is collected.
    pub sampled: bool,
    /// `tracestate` of whoever began it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state: Option<String>,
    /// Whether the host that accepted it tells of the job's own spans.
    pub told: bool,
    /// The call that asked for it, where it is collected: whoever adopts the job of a host that is lost tells of it too.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub call: Option<AskingCall>,
}

/// What of a job's call is derived from nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct AskingCall {
    /// What is above the call's span, where its client said so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub above: Option<SpanId>,
    /// When it was first given to a worker; `None` where it never was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub at: Option<UnixMillis>,
}

impl JobTrace {
    /// The span of a part of a job; `number` tells several of a kind apart.
    #[must_use]
    pub fn span(job: JobId, part: &str, number: u64) -> SpanId {
        SpanId::derived(&["job", &job.to_string(), part, &number.to_string()])
    }

    /// One below this.
    #[must_use]
    pub fn below(above: TraceContext, told: bool) -> Self {
        let TraceContext { trace, span, sampled, state } = above;
        Self { trace, parent: Some(span), sampled, state, told, call: None }
    }

    /// What is above the job itself, which a job that goes to another machine takes along. `None` where nothing is.
    #[must_use]
    pub fn above(&self) -> Option<TraceContext> {
        Some(TraceContext { trace: self.trace, span: self.parent?, sampled: self.sampled, state: self.state.clone() })
    }

    /// The trace of a job nobody's call leads to.
    #[must_use]
    pub fn of_its_own(job: JobId) -> TraceId {
        TraceId::derived(&["job", &job.to_string()])
    }

    /// Where the agent's own spans belong: below its run, where that is told of, else below what is above the job.
    #[must_use]
    pub fn for_agent(&self, job: JobId) -> Option<TraceContext> {
        if !(self.told && self.sampled) {
            return self.above();
        }
        let span = Self::span(job, AGENT, 0);
        Some(TraceContext { trace: self.trace, span, sampled: self.sampled, state: self.state.clone() })
    }
}

/// The part of a job that is its agent's run.
pub const AGENT: &str = "agent";

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    #[test]
    fn a_traceparent_is_read_as_the_specification_has_it_and_written_as_it_came() {
        let read = TraceContext::parse(GOOD).expect("the specification's own example");
        assert_eq!((read.traceparent().as_str(), read.sampled), (GOOD, true));
        for (text, sampled) in [
            ("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00", false),
            ("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-03", true),
            ("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-fe", false),
            ("cc-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01", true),
            ("cc-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-what-the-future-will-be-like", true),
        ] {
            assert_eq!(TraceContext::parse(text).map(|read| read.sampled), Some(sampled), "{text}");
        }
    }

    #[test]
    fn what_is_no_traceparent_is_none() {
        let changed = |at: usize, to: &str| format!("{}{to}{}", &GOOD[..at], &GOOD[at + to.len()..]);
        let mut wrong: Vec<String> = vec![
            String::new(),
            "-".repeat(55),
            GOOD.to_uppercase(),
            format!("{GOOD}-"),
            format!("{GOOD}-01"),
            format!("{GOOD} "),
            format!(" {GOOD}"),
            changed(0, "ff"),
            changed(0, "CC"),
            changed(3, &"0".repeat(32)),
            changed(36, &"0".repeat(16)),
            changed(3, "4BF9"),
            changed(3, "g"),
            changed(36, "F"),
            changed(53, "0g"),
            changed(53, "A1"),
            changed(2, "_"),
            changed(35, "0"),
            changed(52, " "),
            changed(0, "cc") + ".01",
            "é".repeat(28),
            format!("{}é", &GOOD[..53]),
        ];
        wrong.extend((0..GOOD.len()).map(|length| GOOD[..length].to_owned()));
        for text in wrong {
            assert_eq!(TraceContext::parse(&text), None, "{text:?}");
        }
    }

    #[test]
    fn a_tracestate_is_passed_on_whole_or_not_at_all() {
        let kept = |state: &str| TraceContext::parse(GOOD).expect("good").with_state(state).state.is_some();
        let long = format!("a={}", "x".repeat(511));
        let many = vec!["a=1"; 33].join(",");
        for (state, is_kept) in [
            ("congo=t61rcWkgMzE", true),
            ("rojo=00f067aa0ba902b7,congo=t61rcWkgMzE", true),
            ("a=1, ,b=2", true),
            ("fw529a3039@dt=FfffffffX", true),
            (&long[..512], true),
            (&long[..], false),
            (&many[4..], true),
            (&many[..], false),
            ("", false),
            (",", false),
            ("a", false),
            ("=1", false),
            ("A=1", false),
            ("a=", false),
            ("a=b=c", false),
            ("a=\u{7f}", false),
            ("a=1\nb: 2", false),
            ("a=é", false),
        ] {
            assert_eq!(kept(state), is_kept, "{state:?}");
        }
    }

    #[test]
    fn ids_are_derived_from_what_they_name() {
        let job: JobId = "8a3f1c5e-0000-4000-8000-000000000001".parse().expect("an id");
        assert_eq!(JobTrace::span(job, "agent", 0), JobTrace::span(job, "agent", 0));
        let ids = [
            JobTrace::span(job, "agent", 0),
            JobTrace::span(job, "agent", 1),
            JobTrace::span(job, "agen", 0),
            SpanId::derived(&["a", "bc"]),
            SpanId::derived(&["ab", "c"]),
            SpanId::derived(&["abc"]),
        ];
        let told_apart: std::collections::BTreeSet<_> = ids.iter().collect();
        assert_eq!(told_apart.len(), ids.len());
        // Another version of the program must come to the same: a runner, or the host that adopts a job, may be one.
        assert_eq!(JobTrace::of_its_own(job).to_string(), "fd1e8fe00e75cc11535a9fe867a97e7c");
        assert_eq!(JobTrace::span(job, AGENT, 0).to_string(), "5d472b169a57ebca");
    }

    #[test]
    fn an_agent_is_led_to_its_run_where_that_is_told_of_and_else_to_whoever_asked() {
        let job = JobId::random();
        let above = TraceContext::parse(GOOD).expect("good");
        let trace =
            |told, sampled, parent| JobTrace { trace: above.trace, parent, sampled, state: None, told, call: None };
        let led = |trace: JobTrace| trace.for_agent(job).map(|context| (context.span, context.sampled));
        let (own, parent) = (JobTrace::span(job, AGENT, 0), Some(above.span));
        assert_eq!(led(trace(true, true, parent)), Some((own, true)));
        assert_eq!(led(trace(true, true, None)), Some((own, true)));
        assert_eq!(led(trace(true, false, parent)), Some((above.span, false)));
        assert_eq!(led(trace(false, true, parent)), Some((above.span, true)));
        assert_eq!(led(trace(false, true, None)), None);
    }

    #[test]
    fn a_jobs_trace_is_read_as_it_was_written_and_a_broken_one_is_refused() {
        let trace = JobTrace {
            trace: TraceId::derived(&["t"]),
            parent: Some(SpanId::derived(&["s"])),
            sampled: true,
            state: Some("a=1".to_owned()),
            told: true,
            call: Some(AskingCall { above: None, at: Some(UnixMillis(7)) }),
        };
        let text = serde_json::to_string(&trace).expect("JSON");
        assert_eq!(serde_json::from_str::<JobTrace>(&text).expect("it is read"), trace);
        // As versions before wrote it.
        let before = JobTrace { call: None, ..trace.clone() };
        let without = serde_json::to_string(&before).expect("JSON");
        assert!(!without.contains("call"));
        assert_eq!(serde_json::from_str::<JobTrace>(&without).expect("it is read"), before);
        let zero = text.replace(&trace.trace.to_string(), &"0".repeat(32));
        assert!(serde_json::from_str::<JobTrace>(&zero).is_err());
    }
}
