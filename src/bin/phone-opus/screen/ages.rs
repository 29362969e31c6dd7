//! How long something takes, and how long ago it was, as people say it.
//!
//! Owns: the words. May not know: what happened.

use phone_opus::internals::base::ids::UnixMillis;

/// The units of an age, the largest first, with their seconds.
const UNITS: [(&str, u64); 5] =
    [("year", 365 * 86_400), ("month", 30 * 86_400), ("day", 86_400), ("hour", 3_600), ("minute", 60)];

/// How long ago this was: `just now`, `12 seconds ago`, `2 days ago`. In whole units of the largest that fits.
pub(crate) fn ago(then: UnixMillis, now: UnixMillis) -> String {
    let seconds = now.since(then) / 1000;
    let unit = UNITS.iter().find(|(_, unit)| seconds >= *unit);
    match unit {
        Some((name, unit)) => format!("{} ago", counted(seconds / unit, name)),
        None if seconds < 5 => "just now".to_owned(),
        None => format!("{} ago", counted(seconds, "second")),
    }
}

/// So many of a thing: `1 job`, `2 jobs`.
pub(crate) fn counted(count: u64, thing: &str) -> String {
    let plural = if count == 1 { "" } else { "s" };
    format!("{count} {thing}{plural}")
}

/// How long something takes already, in its two largest units: `12 s`, `2 min 05 s`, `1 h 02 min`, `3 d 04 h`.
pub(crate) fn elapsed(seconds: u64) -> String {
    match seconds {
        0..60 => format!("{seconds} s"),
        60..3_600 => format!("{} min {:02} s", seconds / 60, seconds % 60),
        3_600..86_400 => format!("{} h {:02} min", seconds / 3_600, seconds / 60 % 60),
        _ => format!("{} d {:02} h", seconds / 86_400, seconds / 3_600 % 24),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_age_is_told_in_whole_units_of_the_largest_that_fits() {
        for (seconds, words) in [
            (0, "just now"),
            (4, "just now"),
            (5, "5 seconds ago"),
            (59, "59 seconds ago"),
            (60, "1 minute ago"),
            (3_599, "59 minutes ago"),
            (3_600, "1 hour ago"),
            (2 * 86_400 - 1, "1 day ago"),
            (2 * 86_400, "2 days ago"),
            (29 * 86_400, "29 days ago"),
            (30 * 86_400, "1 month ago"),
            (364 * 86_400, "12 months ago"),
            (365 * 86_400, "1 year ago"),
            (3 * 365 * 86_400, "3 years ago"),
        ] {
            let now = UnixMillis(2_000_000_000_000);
            assert_eq!(ago(UnixMillis(now.0 - seconds * 1000), now), words, "{seconds} s");
        }
        assert_eq!(ago(UnixMillis(1_000), UnixMillis(0)), "just now", "the clock went back");
    }

    #[test]
    fn a_time_that_passes_is_told_in_its_two_largest_units() {
        for (seconds, words) in [
            (0, "0 s"),
            (59, "59 s"),
            (60, "1 min 00 s"),
            (125, "2 min 05 s"),
            (3_599, "59 min 59 s"),
            (3_720, "1 h 02 min"),
            (86_399, "23 h 59 min"),
            (3 * 86_400 + 4 * 3_600, "3 d 04 h"),
        ] {
            assert_eq!(elapsed(seconds), words);
        }
    }
}
