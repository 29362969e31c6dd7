//! A report's jobs as a table for other programs.
//!
//! Owns: the columns, and how a cell is written. May not know: what is made of it.
//!
//! Invariant: no cell is a formula to a program that calculates: one that would be begins with an apostrophe.

use std::fmt::Write as _;

use phone_opus::internals::jobs::row::JobRow;

use super::Texts;

/// The columns. Those of texts follow where they are asked for.
pub(super) const HEAD: &str = "job_id,status,mode,agent,workspace,chain,depth,accepted_at,started_at,finished_at,waited_ms,ran_ms,\
                               cost_usd,code,cancel_requested";

/// The jobs, one a row, as RFC 4180 has it.
pub(super) fn csv(jobs: &[JobRow], texts: Option<&Texts>) -> String {
    let mut table = String::with_capacity(256 * jobs.len() + 256);
    table.push_str(HEAD);
    table.push_str(if texts.is_some() { ",prompt,answer\r\n" } else { "\r\n" });
    for row in jobs {
        let number = |number: Option<u64>| number.map_or_else(String::new, |number| number.to_string());
        let time = |at: Option<phone_opus::internals::base::ids::UnixMillis>| {
            at.map_or_else(String::new, |at| at.to_iso8601())
        };
        let mut cells = vec![
            row.id.to_string(),
            row.state.as_str().to_owned(),
            row.mode.as_str().to_owned(),
            row.agent.clone(),
            row.workspace.display().to_string(),
            row.chain.to_string(),
            row.depth.to_string(),
            row.accepted_at.to_iso8601(),
            time(row.started_at),
            time(row.finished_at),
            number(row.waited_ms()),
            number(row.ran_ms()),
            row.cost_usd.map_or_else(String::new, |cost| cost.to_string()),
            row.code.clone().unwrap_or_default(),
            row.cancel_requested.map_or_else(String::new, |reason| reason.as_str().to_owned()),
        ];
        if let Some(texts) = texts {
            let text = texts.of(row.id);
            cells.push(text.map_or_else(String::new, |text| text.prompt.clone()));
            cells.push(text.and_then(|text| text.answer.clone()).unwrap_or_default());
        }
        let cells: Vec<String> = cells.iter().map(|text| cell(text)).collect();
        let _ = write!(table, "{}\r\n", cells.join(","));
    }
    table
}

fn cell(text: &str) -> String {
    let formula = text.starts_with(['=', '+', '-', '@', '\t', '\r']);
    let text = if formula { format!("'{text}") } else { text.to_owned() };
    if text.contains(['"', ',', '\n', '\r']) { format!("\"{}\"", text.replace('"', "\"\"")) } else { text }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cell_is_quoted_where_it_has_to_be_and_is_never_a_formula() {
        for (text, want) in [
            ("plain", "plain"),
            ("a,b", "\"a,b\""),
            ("say \"x\"\nnow", "\"say \"\"x\"\"\nnow\""),
            ("=1+1", "'=1+1"),
            ("@SUM(A1)", "'@SUM(A1)"),
            ("-2,3", "\"'-2,3\""),
            ("", ""),
        ] {
            assert_eq!(cell(text), want);
        }
    }
}
