//! How a person names a job: by its id, by how the id begins, or as the last one.
//!
//! Owns: what is accepted, and which job is meant. May not know: what is done with it.
//!
//! Invariant: a word means one job or none; where several ids begin with it, nothing is done and they are named.

use std::path::Path;

use phone_opus::internals::base::fault::{Fault, FaultCode};
use phone_opus::internals::base::ids::JobId;
use phone_opus::internals::jobs::store::StoreHandle;

/// Characters of an id that are enough to name a job: of a thousand jobs two that begin alike are rare, and what is shorter is
/// more likely a slip.
const LEAST: usize = 4;

/// Ids that are named where a word means several.
const NAMED: usize = 6;

/// Characters of an id in what people read.
const SHORT: usize = 8;

/// A job, as it is written on the command line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum JobWord {
    /// The one of this directory that was asked last.
    Last,
    Id(JobId),
    /// The beginning of an id, in lower case.
    Start(String),
}

impl JobWord {
    /// Reads one, in any case.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let lower = text.to_ascii_lowercase();
        if lower == "last" {
            return Ok(Self::Last);
        }
        if let Ok(id) = lower.parse() {
            return Ok(Self::Id(id));
        }
        // Where an id has a dash.
        let dash = |at: usize| matches!(at, 8 | 13 | 18 | 23);
        let begins = lower.len() < 36 && lower.bytes().enumerate().all(|(at, b)| dash(at) == (b == b'-') && is_id(b));
        if begins && lower.len() >= LEAST {
            return Ok(Self::Start(lower));
        }
        let short = if begins { format!("{} characters are too few; ", lower.len()) } else { String::new() };
        Err(format!("{short}accepted: a job's id (a UUID), its first {LEAST} characters or more, or `last`"))
    }

    /// The job that is meant; `here` is the directory whose last one may be.
    pub(crate) async fn find(&self, store: &StoreHandle, here: Option<&Path>) -> Result<JobId, Fault> {
        match self {
            Self::Id(id) => Ok(*id),
            Self::Start(start) => one_of(start, &store.beginning_with(start.clone(), NAMED + 1).await?),
            Self::Last => {
                let newest = match here {
                    Some(here) => store.newest(here.to_owned()).await?,
                    None => None,
                };
                newest.ok_or_else(|| {
                    Fault::new(FaultCode::UnknownJob, "no job was asked in this directory.")
                        .hint("All of them: phone-opus jobs list --all")
                })
            }
        }
    }
}

fn is_id(byte: u8) -> bool {
    byte.is_ascii_hexdigit() || byte == b'-'
}

/// The only job whose id begins so.
fn one_of(start: &str, found: &[JobId]) -> Result<JobId, Fault> {
    match found {
        [] => Err(Fault::new(FaultCode::UnknownJob, format!("no job's id begins with {start}."))
            .hint("The jobs there are: phone-opus jobs list --all")),
        [one] => Ok(*one),
        several => {
            let named: Vec<String> = several.iter().take(NAMED).map(ToString::to_string).collect();
            let more = if several.len() > NAMED { " and others" } else { "" };
            let detail = format!("several jobs' ids begin with {start}: {}{more}.", named.join(", "));
            Err(Fault::new(FaultCode::InvalidInput, detail).hint("Give more characters."))
        }
    }
}

/// The beginning of an id, as people are shown it; any command takes it.
pub(crate) fn short(job: JobId) -> String {
    job.to_string().chars().take(SHORT).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "3f2504e0-4f89-41d3-9a0c-0305e82c3301";

    fn id(text: &str) -> JobId {
        text.parse().expect("an id")
    }

    #[test]
    fn a_job_is_named_by_its_id_or_how_that_begins_or_as_the_last_one() {
        let start = |text: &str| Ok(JobWord::Start(text.to_owned()));
        for (text, want) in [
            (ID, Ok(JobWord::Id(id(ID)))),
            (&*ID.to_uppercase(), Ok(JobWord::Id(id(ID)))),
            ("last", Ok(JobWord::Last)),
            ("LAST", Ok(JobWord::Last)),
            ("3f25", start("3f25")),
            ("3F2504E0", start("3f2504e0")),
            ("3f2504e0-", start("3f2504e0-")),
            ("3f2504e0-4f89", start("3f2504e0-4f89")),
            (&ID[..35], start(&ID[..35])),
            ("3f2", Err("3 characters are too few")),
            ("", Err("too few")),
            ("-f25", Err("accepted")),
            ("3f2504e04f89", Err("accepted")),
            ("zzzz", Err("UUID")),
            ("no-uuid", Err("UUID")),
            (&*format!("{ID}0"), Err("accepted")),
            ("3f25%", Err("accepted")),
        ] {
            match (JobWord::parse(text), want) {
                (Ok(read), Ok(want)) => assert_eq!(read, want, "{text:?}"),
                (Err(said), Err(part)) => assert!(said.contains(part), "{text:?}: {said}"),
                (read, want) => panic!("{text:?} was read as {read:?} and not {want:?}"),
            }
        }
    }

    #[test]
    fn a_beginning_means_one_job_or_none_and_several_are_named() {
        let (one, other) = (id(ID), id("3f2504e1-4f89-41d3-9a0c-0305e82c3301"));
        assert_eq!(one_of("3f25", &[one]), Ok(one));
        let none = one_of("3f25", &[]).expect_err("there is none");
        assert_eq!(none.code, FaultCode::UnknownJob);
        let both = one_of("3f25", &[one, other]).expect_err("there are two");
        assert_eq!(both.code, FaultCode::InvalidInput);
        assert!(both.detail.contains(ID) && both.detail.contains(&other.to_string()), "{both}");
        let many = one_of("3f25", &[one; NAMED + 1]).expect_err("there are many");
        assert!(many.detail.contains("and others"), "{many}");
    }

    #[test]
    fn what_is_shown_short_is_taken() {
        assert_eq!(JobWord::parse(&short(id(ID))), Ok(JobWord::Start("3f2504e0".to_owned())));
    }
}
