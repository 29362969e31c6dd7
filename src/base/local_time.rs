//! Times as people read them: of day in their own zone, and how long from now.
//!
//! Owns: the words. May not know: what happens at a time.

use jiff::Timestamp;
use jiff::tz::TimeZone;

use crate::base::ids::UnixMillis;

/// A time in the zone of whoever reads it, to the minute: `2026-11-26 14:30 (+01:00)`.
#[must_use]
pub(crate) fn local(at: UnixMillis) -> String {
    in_zone(at, TimeZone::system())
}

fn in_zone(at: UnixMillis, zone: TimeZone) -> String {
    let Ok(time) = Timestamp::from_millisecond(at.0) else { return at.to_iso8601() };
    time.to_zoned_datetime(zone).strftime("%Y-%m-%d %H:%M (%:z)").to_string()
}

/// How long this is, in its two largest units: `2 h 13 min`.
#[must_use]
pub(crate) fn span(ms: u64) -> String {
    let minutes = ms.div_ceil(60_000);
    let (days, hours, minutes) = (minutes / 1440, minutes / 60 % 24, minutes % 60);
    let days_word = if days == 1 { "day" } else { "days" };
    match (days, hours, minutes) {
        (0, 0, minutes) => format!("{minutes} min"),
        (0, hours, 0) => format!("{hours} h"),
        (0, hours, minutes) => format!("{hours} h {minutes} min"),
        (days, 0, _) => format!("{days} {days_word}"),
        (days, hours, _) => format!("{days} {days_word} {hours} h"),
    }
}

/// A time to come, and how long it is until then: `2026-11-26 14:30 (+01:00), in 2 h 13 min`.
#[must_use]
pub(crate) fn to_come(at: UnixMillis, now: UnixMillis) -> String {
    match at.since(now) {
        0 => format!("{}, which has passed", local(at)),
        ms => format!("{}, in {}", local(at), span(ms)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_span_is_told_in_its_two_largest_units() {
        const MIN: u64 = 60_000;
        for (ms, words) in [
            (1, "1 min"),
            (59 * MIN, "59 min"),
            (60 * MIN, "1 h"),
            (133 * MIN, "2 h 13 min"),
            (24 * 60 * MIN, "1 day"),
            ((5 * 24 + 3) * 60 * MIN + 7 * MIN, "5 days 3 h"),
        ] {
            assert_eq!(span(ms), words);
        }
    }

    #[test]
    fn a_time_is_told_in_a_zone_and_with_its_offset() {
        let zone = TimeZone::posix("CET-1").expect("a zone");
        assert_eq!(in_zone(UnixMillis(1_900_000_000_000), zone), "2030-03-17 18:46 (+01:00)");
        assert!(local(UnixMillis(i64::MAX)).contains('T'), "what no calendar has is told all the same");
        let now = UnixMillis(1_900_000_000_000);
        assert!(to_come(UnixMillis(now.0 + 60_000), now).ends_with("), in 1 min"));
        assert!(to_come(now, now).ends_with("), which has passed"));
    }
}
