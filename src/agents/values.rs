//! Finds the JSON values of a line that may hold several of them, or something else beside them.
//!
//! Owns: where in a line a value begins and ends. May not know what a value means; the caller says which ones it takes.
//!
//! A line of output should be one value. In real life a byte order mark, a progress text that a carriage return was to
//! overwrite, a colour code or a log line without its end stands before it, and two events that two writers wrote at once
//! share a line. Invariants: (1) every byte belongs to a value that was taken, to white space, or to what is counted;
//! (2) a value inside another one is never taken, whole or torn: an agent's words may hold anything; (3) each byte is read
//! a small number of times, whatever the line holds.

use serde_json::{Deserializer, Value};

/// How a value stands in its line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Company {
    /// It is the whole line.
    Alone,
    /// Something else stands in the line too.
    Mixed,
}

/// Gives the objects of the line, and a list it begins with, to `takes`, and counts the bytes of what was not taken.
pub(super) fn values(line: &[u8], takes: &mut dyn FnMut(Value, Company) -> bool) -> u64 {
    let mut refused = 0;
    let mut at = 0;
    let mut company = Company::Alone;
    while let Some(start) = beginning(line, at) {
        let before = visible(&line[at..start]);
        refused += before;
        let mut found = Deserializer::from_slice(&line[start..]).into_iter::<Value>();
        match found.next() {
            Some(Ok(value)) => {
                let end = start + found.byte_offset();
                if before > 0 || visible(&line[end..]) > 0 {
                    company = Company::Mixed;
                }
                if !takes(value, company) {
                    refused += (end - start) as u64;
                }
                at = end;
            }
            // The line ends inside of it: what it holds is a part of it.
            Some(Err(error)) if error.is_eof() => {
                return refused + visible(&line[start..]);
            }
            Some(Err(error)) => {
                company = Company::Mixed;
                let wrong = (start + error.column()).min(line.len());
                // What cut it off begins just before the place where it stops making sense.
                let next = memchr::memrchr(b'{', &line[start + 1..wrong.max(start + 1)]).map(|at| start + 1 + at);
                let next = next.unwrap_or(wrong.max(start + 1));
                refused += visible(&line[start..next]);
                at = next;
            }
            None => break,
        }
    }
    refused + visible(&line[at.min(line.len())..])
}

/// Where the next value may begin: at a brace, or at the bracket of a list of objects that begins the line.
fn beginning(line: &[u8], at: usize) -> Option<usize> {
    if at == 0 {
        let start = line.strip_prefix(b"\xef\xbb\xbf").map_or(0, |rest| line.len() - rest.len());
        let text = line[start..].trim_ascii_start();
        let list = text.strip_prefix(b"[").is_some_and(|rest| rest.trim_ascii_start().first() == Some(&b'{'));
        if list {
            return Some(line.len() - text.len());
        }
    }
    memchr::memchr(b'{', line.get(at..)?).map(|found| at + found)
}

/// The bytes of this part, white space at its ends left out.
fn visible(part: &[u8]) -> u64 {
    part.trim_ascii().len() as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is taken of a line, and how many bytes are not.
    fn taken(line: &str) -> (Vec<String>, u64) {
        let mut taken = Vec::new();
        let refused = values(line.as_bytes(), &mut |value, company| {
            let takes = value.get("t").is_some() || company == Company::Alone;
            if takes {
                taken.push(value.to_string());
            }
            takes
        });
        (taken, refused)
    }

    #[test]
    fn values_are_found_beside_whatever_stands_in_their_line() {
        let one = r#"{"t":1}"#;
        let two = r#"{"t":2}"#;
        for (line, expected, refused) in [
            (r#"{"t":1}"#, &[one][..], 0),
            (r#"{"other":1}"#, &[r#"{"other":1}"#], 0),
            ("\u{feff}{\"t\":1}", &[one], 3),
            ("Loading…\r{\"t\":1}", &[one], 10),
            ("\u{1b}[2K\u{1b}[1G{\"t\":1}", &[one], 8),
            (r#"[12:30:01] {"t":1}"#, &[one], 10),
            (r#"{"t":1}{"t":2}"#, &[one, two], 0),
            (r#"{"t":1} , {"t":2}"#, &[one, two], 1),
            (r#"{"t":1}{"t":2,"torn":[{"t":3}"#, &[one], 22),
            // Cut off by the next one, in a string and between two members.
            (r#"{"x":{"t":9},"cut":"abc{"t":1}"#, &[one], 23),
            (r#"{"x":{"t":9},{"t":1}"#, &[one], 13),
            (r#"{1/3 done} {"t":1}"#, &[one], 10),
            (r#"{"level":"info"} {"t":1}"#, &[one], 16),
            (r#"[{"t":1},{"t":2}]"#, &[r#"[{"t":1},{"t":2}]"#], 0),
            // What stands inside of a value is a part of it, whether the value is whole or torn.
            (r#"said {"words":{"t":1}}"#, &[], 21),
            (r#"{"words":{"t":1}"#, &[], 16),
            ("plain text", &[], 10),
            ("42", &[], 2),
            ("", &[], 0),
        ] {
            let (found, counted) = taken(line);
            assert_eq!(
                (&found[..], counted),
                (&expected.iter().map(|v| (*v).to_owned()).collect::<Vec<_>>()[..], refused),
                "{line}"
            );
        }
    }

    #[test]
    fn a_hostile_line_costs_time_by_its_length_only() {
        for pattern in ["{", "{\"a\":", "{\"{", "[{", "{\"a\":\"{", "{}x", "{\"\\"] {
            let line = pattern.repeat(200_000);
            let began = std::time::Instant::now();
            let _ = values(line.as_bytes(), &mut |_, _| true);
            assert!(began.elapsed() < std::time::Duration::from_secs(20), "{pattern}: {:?}", began.elapsed());
        }
    }
}
