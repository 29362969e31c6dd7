//! What an agent's error texts mean, where nothing else in its result says so.
//!
//! Owns: the wordings of versions that name no status, and the times in them. May not know what becomes of a code. Texts of
//! answers are never read here: they may speak of anything.
//!
//! Invariants: (1) only the beginning of a text counts, errors are short; (2) a time is one to come, within a year; (3) no
//! text leaves this file.

use jiff::civil::{Date, Time, Weekday};
use jiff::tz::TimeZone;
use jiff::{Span, Timestamp, ToSpan as _};

use super::stream_json::epoch;
use crate::base::fault::FaultCode;
use crate::base::ids::UnixMillis;

/// Bytes of a text that are read. The longest known error has 300.
const READ: usize = 600;

/// Wordings, in lower case, and what they mean; the first that is found decides.
const WORDINGS: &[(FaultCode, &[&str])] = &[
    (
        FaultCode::InputTooLarge,
        &[
            "prompt is too long",
            "prompt too long",
            "input is too long",
            "conversation too long",
            "conversation is too long",
            "exceed context limit",
            "context limit reached",
            "context is too large",
            "exceeds the context window",
            "context window exceeded",
            "maximum context length",
            "ran out of room in the model's context window",
            "request_too_large",
            "request too large",
            "api error: 413",
            "api error (413",
        ],
    ),
    (
        FaultCode::AgentBilling,
        &[
            "credit balance is too low",
            "credit balance too low",
            "insufficient credit",
            "insufficient funds",
            "insufficient_quota",
            "quota exceeded. check your plan",
            "out of credits",
            "spend limit",
            "spending limit",
            "payment required",
            "billing_error",
            "api error: 402",
            "api error (402",
        ],
    ),
    (
        FaultCode::AgentNotLoggedIn,
        &[
            "invalid api key",
            "api key not valid",
            "invalid x-api-key",
            "not logged in",
            "please run /login",
            "token has expired",
            "token expired",
            "token revoked",
            "token has been revoked",
            "login has expired",
            "invalid bearer token",
            "invalid authentication credentials",
            "authentication_error",
            "permission_error",
            "does not have access to claude",
            "organization has been disabled",
            "missing environment variable",
            "access token could not be refreshed",
            "please log out and sign in again",
            "api error: 401",
            "api error (401",
            "api error: 403",
            "api error (403",
        ],
    ),
    (
        FaultCode::AgentRateLimited,
        &[
            "usage limit reached",
            "hour limit reached",
            "weekly limit reached",
            "session limit reached",
            "opus limit reached",
            "sonnet limit reached",
            "hit your limit",
            "hit your session limit",
            "hit your weekly limit",
            "hit your usage limit",
            "hit your opus limit",
            "hit your sonnet limit",
            "reached your limit",
            "reached your usage limit",
            "reached your session limit",
            "reached your weekly limit",
            "limit will reset",
            "out of extra usage",
            "rate_limit_error",
            "rate limit reached",
            "rate limit exceeded",
            "exceed your account's rate limit",
            "exceed the rate limit",
            "too many requests",
            "you have no quota",
            "request rejected (429)",
            "api error: 429",
            "api error (429",
        ],
    ),
    (
        FaultCode::AgentOverloaded,
        &[
            "overloaded_error",
            "529 overloaded",
            "api error: overloaded",
            "server is overloaded",
            "experiencing high demand",
            "model is at capacity",
            "disconnected before completion: overloaded",
            "api error: 529",
            "api error (529",
        ],
    ),
    (
        FaultCode::AgentModel,
        &[
            "issue with the selected model",
            "model_not_found",
            "not_found_error",
            "may not exist or you may not have access",
            "model is not available",
            "model not found",
            "model is not supported",
            "api error: 404",
            "api error (404",
        ],
    ),
    (FaultCode::AnswerTooLong, &["output token maximum", "max_output_tokens"]),
    (FaultCode::Refused, &["violate our usage policy", "violates our usage policy", "reason: content_filter"]),
    (
        FaultCode::AgentUpstream,
        &[
            "api error: 5",
            "api error (5",
            "internal server error",
            "stream disconnected before completion",
            "connection failed",
            "could not connect to",
            "connection error",
            "request timed out",
            "fetch failed",
            "socket hang up",
            "unable to connect to api",
            "cannot connect to api",
            "econnrefused",
            "econnreset",
            "enotfound",
            "etimedout",
        ],
    ),
];

/// What this error text means, if it is one of the known ones.
pub(super) fn meaning(text: &str) -> Option<FaultCode> {
    let text = beginning(text);
    // "Opus weekly limit reached", "You've hit your 5-hour Opus limit": too many to list.
    let limit = || {
        let hit = ["hit your ", "reached your "].into_iter().find_map(|hit| text.split_once(hit));
        hit.is_some_and(|(_, what)| what.split([' ', '.', '·', '∙']).take(4).any(|word| word == "limit"))
    };
    let known = WORDINGS.iter().find(|(_, wordings)| wordings.iter().any(|wording| text.contains(wording)));
    known.map(|(code, _)| *code).or_else(|| limit().then_some(FaultCode::AgentRateLimited))
}

/// When this text says that a limit is lifted. `zone` is where a time without a zone is meant.
pub(super) fn lifted(text: &str, now: UnixMillis, zone: &TimeZone) -> Option<UnixMillis> {
    let text = beginning(text);
    if let Some((_, time)) = text.rsplit_once("limit reached|") {
        return epoch(time.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()?);
    }
    let resets = || text.split_once("reset").map(|(_, said)| said.trim_start_matches('s').trim_start());
    // "Try again later" names no time.
    let again = || text.split_once("try again ").map(|(_, said)| said.trim_start_matches("at ").trim_start());
    let said = resets().or_else(again)?;
    if let Some(span) = said.strip_prefix("in ") {
        let ms = duration(span)?;
        return Some(UnixMillis(now.0.checked_add(ms)?));
    }
    let named = said.split_once('(').and_then(|(_, rest)| rest.split_once(')')).and_then(|(name, _)| zone_named(name));
    let zone = named.unwrap_or_else(|| zone.clone());
    let now = Timestamp::from_millisecond(now.0).ok()?.to_zoned_datetime(zone);
    let moment = Moment::read(said)?;
    let date = moment.date(now.date(), now.time())?;
    let at = date.to_datetime(moment.time).to_zoned_datetime(now.time_zone().clone()).ok()?.timestamp();
    (at > now.timestamp()).then(|| UnixMillis(at.as_millisecond()))
}

fn beginning(text: &str) -> String {
    let mut end = text.len().min(READ);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text[..end].to_lowercase().replace('’', "'")
}

/// A zone by the name that was written, in lower case by now.
fn zone_named(name: &str) -> Option<TimeZone> {
    TimeZone::get(name.trim()).ok()
}

/// `3h 20m`, `2 hours and 5 minutes`, `45 min`, in milliseconds.
fn duration(text: &str) -> Option<i64> {
    let mut total: i64 = 0;
    let mut number: Option<i64> = None;
    for word in runs(text) {
        if let Ok(value) = word.parse::<i64>() {
            number = Some(value);
            continue;
        }
        let unit = match word {
            "d" | "day" | "days" => 86_400_000,
            "h" | "hr" | "hrs" | "hour" | "hours" => 3_600_000,
            "m" | "min" | "mins" | "minute" | "minutes" => 60_000,
            "s" | "sec" | "secs" | "second" | "seconds" => 1_000,
            "and" => continue,
            _ => break,
        };
        total = total.checked_add(number.take()?.checked_mul(unit)?)?;
    }
    (total > 0 && total < 366 * 86_400_000).then_some(total)
}

/// Runs of digits and runs of letters: `3h` is two.
fn runs(text: &str) -> impl Iterator<Item = &str> {
    let kind = |c: char| (c.is_ascii_digit(), c.is_alphabetic());
    let mut rest = text;
    std::iter::from_fn(move || {
        rest = rest.trim_start_matches(|c: char| kind(c) == (false, false));
        let first = rest.chars().next()?;
        let end = rest.find(|c: char| kind(c) != kind(first)).unwrap_or(rest.len());
        let (run, after) = rest.split_at(end);
        rest = after;
        Some(run)
    })
}

/// A day, as far as it was named, and a time of day.
#[derive(Debug, PartialEq)]
struct Moment {
    day: Day,
    time: Time,
}

#[derive(Debug, PartialEq)]
enum Day {
    Next,
    Tomorrow,
    Week(Weekday),
    Of(i8, i8),
}

impl Moment {
    /// `2pm`, `at 2:30 pm`, `14:30`, `oct 9, 10am`, `oct 9 at 4pm`, `mon 10am`, `tomorrow at 3pm`.
    fn read(text: &str) -> Option<Self> {
        let text = text.split(['(', '\n', '·', '∙', '|']).next()?;
        let words: Vec<&str> = text.split([' ', ',']).filter(|word| !word.is_empty()).collect();
        let mut day = Day::Next;
        let mut month = None;
        for (number, word) in words.iter().enumerate().take(8) {
            let next = words.get(number + 1).copied();
            if let Some(time) = time_of_day(word, next) {
                return Some(Self { day, time });
            }
            if *word == "tomorrow" {
                day = Day::Tomorrow;
            } else if let Some(weekday) = weekday(word) {
                day = Day::Week(weekday);
            } else if let Some(found) = month_of(word) {
                month = Some(found);
            } else if let Some(found) = month
                && let Ok(of_month) = word.trim_end_matches(|c: char| c.is_alphabetic()).parse()
            {
                day = Day::Of(found, of_month);
            }
        }
        // A day without a time begins at midnight.
        (day != Day::Next).then_some(Self { day, time: Time::midnight() })
    }

    /// The next day it can mean.
    fn date(&self, today: Date, now: Time) -> Option<Date> {
        let ahead = |days: i64| today.checked_add(days.days()).ok();
        match &self.day {
            Day::Next if self.time > now => Some(today),
            Day::Next | Day::Tomorrow => ahead(1),
            Day::Week(weekday) => {
                let days = i64::from(today.weekday().until(*weekday));
                if days == 0 && self.time <= now { ahead(7) } else { ahead(days) }
            }
            Day::Of(month, day) => {
                let this = Date::new(today.year(), *month, *day).ok()?;
                if this < today { this.checked_add(Span::new().years(1)).ok() } else { Some(this) }
            }
        }
    }
}

fn time_of_day(word: &str, next: Option<&str>) -> Option<Time> {
    let word = word.trim_end_matches(['.', ';']);
    let (digits, half) = match word.find(|c: char| c.is_alphabetic()) {
        Some(at) => (&word[..at], Some(&word[at..])),
        None => (word, next.filter(|next| matches!(next.trim_end_matches('.'), "am" | "pm"))),
    };
    let half = half.map(|half| half.trim_end_matches('.'));
    let (hour, minute) = match digits.split_once(':') {
        Some((hour, minute)) => (hour.parse::<i8>().ok()?, minute.get(..2)?.parse::<i8>().ok()?),
        // A bare number is a day, unless it says which half of the day it is in.
        None => (digits.parse::<i8>().ok().filter(|_| half.is_some())?, 0),
    };
    let hour = match half {
        Some("am") if (1..=12).contains(&hour) => hour % 12,
        Some("pm") if (1..=12).contains(&hour) => hour % 12 + 12,
        None => hour,
        Some(_) => return None,
    };
    Time::new(hour, minute, 0, 0).ok()
}

fn weekday(word: &str) -> Option<Weekday> {
    Some(match word.get(..3)? {
        "mon" => Weekday::Monday,
        "tue" => Weekday::Tuesday,
        "wed" => Weekday::Wednesday,
        "thu" => Weekday::Thursday,
        "fri" => Weekday::Friday,
        "sat" => Weekday::Saturday,
        "sun" => Weekday::Sunday,
        _ => return None,
    })
}

fn month_of(word: &str) -> Option<i8> {
    let months = ["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"];
    let at = months.into_iter().position(|month| word.get(..3) == Some(month))?;
    i8::try_from(at + 1).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use FaultCode as C;

    #[test]
    fn wordings_of_many_versions_are_known_and_other_words_are_not() {
        for (text, code) in [
            ("Claude AI usage limit reached|1900000000", C::AgentRateLimited),
            ("Claude usage limit reached. Your limit will reset at 2pm (America/New_York).", C::AgentRateLimited),
            ("5-hour limit reached ∙ resets 2pm (Europe/London)", C::AgentRateLimited),
            ("Weekly limit reached ∙ resets Oct 9, 10am", C::AgentRateLimited),
            ("Opus weekly limit reached ∙ resets Oct 9 at 4pm", C::AgentRateLimited),
            ("Session limit reached ∙ resets 6pm\n/upgrade to increase your usage limit.", C::AgentRateLimited),
            ("You've hit your session limit · resets 5pm (UTC)", C::AgentRateLimited),
            ("You’ve hit your limit · resets 2pm (UTC)", C::AgentRateLimited),
            ("You've hit your 5-hour Opus limit · resets 2pm", C::AgentRateLimited),
            ("You're out of extra usage · resets 3am (Asia/Tokyo)", C::AgentRateLimited),
            (
                r#"API Error: 429 {"type":"error","error":{"type":"rate_limit_error","message":"x"}}"#,
                C::AgentRateLimited,
            ),
            ("API Error: Request rejected (429) · this may be a temporary capacity issue", C::AgentRateLimited),
            ("Credit balance is too low", C::AgentBilling),
            ("Your credit balance is too low to access the Anthropic API.", C::AgentBilling),
            ("You've reached your monthly spend limit", C::AgentBilling),
            ("Invalid API key · Fix external API key", C::AgentNotLoggedIn),
            ("OAuth token has expired. Please obtain a new token", C::AgentNotLoggedIn),
            ("OAuth token revoked · Please run /login", C::AgentNotLoggedIn),
            (r#"API Error: 401 {"type":"error","error":{"type":"authentication_error"}}"#, C::AgentNotLoggedIn),
            ("This organization has been disabled.", C::AgentNotLoggedIn),
            ("Prompt is too long", C::InputTooLarge),
            (
                "API Error: 400 input length and `max_tokens` exceed context limit: 190000 + 21333 > 200000",
                C::InputTooLarge,
            ),
            ("Context limit reached · /compact or /clear to continue", C::InputTooLarge),
            (r#"API Error: 529 {"type":"error","error":{"type":"overloaded_error"}}"#, C::AgentOverloaded),
            ("API Error: Repeated 529 Overloaded errors", C::AgentOverloaded),
            ("API Error (500 internal server error)", C::AgentUpstream),
            ("API Error: 503 upstream connect error", C::AgentUpstream),
            ("API Error: Connection error.", C::AgentUpstream),
            ("API Error: Request timed out.", C::AgentUpstream),
            ("Unable to connect to API (ECONNREFUSED)", C::AgentUpstream),
            (
                "There's an issue with the selected model (x). It may not exist or you may not have access to it.",
                C::AgentModel,
            ),
            ("API Error: Claude's response exceeded the 32000 output token maximum.", C::AnswerTooLong),
            (
                "API Error: Claude Code is unable to respond to this request, which appears to violate our Usage Policy",
                C::Refused,
            ),
        ] {
            assert_eq!(meaning(text), Some(code), "{text}");
            assert_eq!(meaning(&format!("{}{text}", "x".repeat(READ))), None, "only the beginning counts");
        }
        for text in ["", "API Error", "something broke", "the limit of the function is 5", "error: reset by peer", "ü"]
        {
            assert_eq!(meaning(text), None, "{text}");
        }
    }

    #[test]
    fn the_time_a_limit_is_lifted_is_read_from_its_words() {
        // A Thursday, at ten past ten in the morning, UTC.
        let now: Timestamp = "2026-11-26T10:10:00Z".parse().expect("a time");
        let berlin = TimeZone::posix("CET-1").expect("a zone");
        for (text, at) in [
            ("usage limit reached|1900000000", Some("2030-03-17T17:46:40Z")),
            ("limit reached ∙ resets 2pm (UTC)", Some("2026-11-26T14:00:00Z")),
            ("Your limit will reset at 2pm (UTC).", Some("2026-11-26T14:00:00Z")),
            ("resets 2:30pm", Some("2026-11-26T13:30:00Z")),
            ("resets at 2:30 pm", Some("2026-11-26T13:30:00Z")),
            ("resets 14:30", Some("2026-11-26T13:30:00Z")),
            // Gone by in Berlin, so it is tomorrow's.
            ("resets 11am", Some("2026-11-27T10:00:00Z")),
            ("resets 12am", Some("2026-11-26T23:00:00Z")),
            ("resets 12pm", Some("2026-11-26T11:00:00Z")),
            ("resets Dec 4 at 10am (UTC)", Some("2026-12-04T10:00:00Z")),
            ("resets Dec 4, 10am (UTC)", Some("2026-12-04T10:00:00Z")),
            ("resets December 4th at 10:15am (UTC)", Some("2026-12-04T10:15:00Z")),
            ("resets Jan 2, 9am (UTC)", Some("2027-01-02T09:00:00Z")),
            ("resets Mon 10am (UTC)", Some("2026-11-30T10:00:00Z")),
            ("resets Thu 10am (UTC)", Some("2026-12-03T10:00:00Z")),
            ("resets Thursday, 11am (UTC)", Some("2026-11-26T11:00:00Z")),
            ("resets tomorrow at 3pm (UTC)", Some("2026-11-27T15:00:00Z")),
            ("resets in 3h 20m", Some("2026-11-26T13:30:00Z")),
            ("resets in 2 hours and 5 minutes.", Some("2026-11-26T12:15:00Z")),
            ("resets in 45 min", Some("2026-11-26T10:55:00Z")),
            ("resets Dec 4 (UTC)", Some("2026-12-04T00:00:00Z")),
            ("resets soon", None),
            ("resets 25:99", None),
            ("resets in 99999999999 days", None),
            ("resets 13pm", None),
            ("limit reached", None),
        ] {
            let expected = at.map(|at| UnixMillis(at.parse::<Timestamp>().expect("a time").as_millisecond()));
            assert_eq!(lifted(text, UnixMillis(now.as_millisecond()), &berlin), expected, "{text}");
        }
        if TimeZone::get("america/new_york").is_ok() {
            let at = lifted("resets 2pm (America/New_York)", UnixMillis(now.as_millisecond()), &berlin);
            assert_eq!(
                at,
                Some(UnixMillis("2026-11-26T19:00:00Z".parse::<Timestamp>().expect("a time").as_millisecond()))
            );
        }
    }

    #[test]
    fn no_text_panics() {
        let seed = 0x5eed;
        println!("seed {seed}");
        let mut random = fastrand::Rng::with_seed(seed);
        let words = [
            "resets", " ", "2pm", "oct", "9", ",", "(", ")", "UTC", ":", "in", "h", "é", "∙", "99", "am", "mon", "-1",
            ".",
        ];
        for _ in 0..20_000 {
            let text: String = (0..random.usize(0..12)).map(|_| words[random.usize(..words.len())]).collect();
            let _ = (meaning(&text), lifted(&format!("resets {text}"), UnixMillis(0), &TimeZone::UTC));
        }
    }
}
