//! The words of `report`, `top` and `dashboard`, in programs that have them.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use phone_opus::internals::base::ids::UnixMillis;

use super::Common;

/// What is accepted as a beginning.
const ACCEPTED: &str = "accepted: a number with m, h, d or w (30m, 24h, 7d, 4w), a day in UTC (2026-11-01), or all";

/// The longest way back by a number: ten years.
const LONGEST: Duration = Duration::from_secs(10 * 366 * 24 * 60 * 60);

/// `dashboard`.
#[derive(Debug, Clone, Args)]
pub(crate) struct DashboardOptions {
    /// The port of 127.0.0.1 [default: any that is free].
    #[arg(long, value_name = "PORT", default_value_t = 0, hide_default_value = true)]
    pub(crate) port: u16,
    /// Serve it here, whether or not there is a daemon.
    #[arg(long)]
    pub(crate) alone: bool,
    /// Have the daemon serve it no longer.
    #[arg(long, conflicts_with_all = ["port", "alone", "metrics_token_file"])]
    pub(crate) stop: bool,
    /// A file with the token that Prometheus brings for /metrics (yours alone, mode 0600). It is served here then.
    #[arg(long, value_name = "PATH")]
    pub(crate) metrics_token_file: Option<PathBuf>,
    /// The address as one JSON object.
    #[arg(long)]
    pub(crate) json: bool,
    /// Where jobs are kept.
    #[command(flatten)]
    pub(crate) common: Common,
}

/// `report`.
#[derive(Debug, Clone, Args)]
pub(crate) struct ReportOptions {
    /// From when: 30m, 24h, 7d, 4w ago, a day in UTC (2026-11-01), or all.
    #[arg(long, value_name = "WHEN", default_value = "7d", value_parser = since)]
    pub(crate) since: Since,
    /// Write it there, for you alone. A file that is no report is not written over.
    #[arg(short, long, value_name = "FILE")]
    pub(crate) output: Option<PathBuf>,
    /// Write over whatever is in FILE.
    #[arg(long, requires = "output")]
    pub(crate) force: bool,
    /// One JSON object: the figures, and every job.
    #[arg(long, conflicts_with = "csv")]
    pub(crate) json: bool,
    /// A table of the jobs, one a row.
    #[arg(long)]
    pub(crate) csv: bool,
    /// With what was asked and answered, of the newest 1,000 jobs.
    #[arg(long)]
    pub(crate) with_text: bool,
    /// Where jobs are kept.
    #[command(flatten)]
    pub(crate) common: Common,
}

/// `top`.
#[derive(Debug, Clone, Args)]
pub(crate) struct TopOptions {
    /// Where jobs are kept.
    #[command(flatten)]
    pub(crate) common: Common,
}

/// From when on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Since {
    /// So long ago.
    Ago(Duration),
    /// From this moment.
    At(UnixMillis),
}

impl Since {
    /// The moment, seen from now.
    pub(crate) fn from(self, now: UnixMillis) -> UnixMillis {
        match self {
            Self::Ago(ago) => {
                UnixMillis(now.0.saturating_sub(i64::try_from(ago.as_millis()).unwrap_or(i64::MAX)).max(0))
            }
            Self::At(at) => at,
        }
    }
}

fn since(text: &str) -> Result<Since, String> {
    let refused = || ACCEPTED.to_owned();
    if text == "all" {
        return Ok(Since::At(UnixMillis(0)));
    }
    if let Ok(day) = text.parse::<jiff::civil::Date>() {
        let start = jiff::tz::TimeZone::UTC.to_timestamp(day.at(0, 0, 0, 0)).map_err(|_| refused())?;
        return Ok(Since::At(UnixMillis(start.as_millisecond())));
    }
    let unit = match text.chars().last() {
        Some('m') => 60,
        Some('h') => 60 * 60,
        Some('d') => 24 * 60 * 60,
        Some('w') => 7 * 24 * 60 * 60,
        _ => return Err(refused()),
    };
    let number: u64 = text.get(..text.len() - 1).and_then(|number| number.parse().ok()).ok_or_else(refused)?;
    let ago = number.checked_mul(unit).map(Duration::from_secs);
    ago.filter(|ago| !ago.is_zero() && *ago <= LONGEST).map(Since::Ago).ok_or_else(refused)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_beginning_is_a_time_ago_a_day_or_all() {
        let now = UnixMillis(1_000_000_000_000);
        let day = 24 * 60 * 60 * 1000;
        for (text, at) in [
            ("30m", now.0 - day / 48),
            ("24h", now.0 - day),
            ("7d", now.0 - 7 * day),
            ("4w", now.0 - 28 * day),
            ("1970-01-03", 2 * day),
            ("all", 0),
        ] {
            assert_eq!(since(text).map(|since| since.from(now)), Ok(UnixMillis(at)), "{text}");
        }
        for text in ["", "7", "d", "-7d", "0d", "7 d", "7y", "99999999999w", "2026-13-01", "yesterday", "7é"] {
            let refused = since(text).expect_err(text);
            assert!(refused.contains("7d") && refused.contains("all"), "{refused}");
        }
    }
}
