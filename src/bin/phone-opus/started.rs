//! The words in which a host starts its own processes.
//!
//! Owns: reading them without the command line's parser, which takes longer than all else such a process does before it
//! begins: calls wait for each worker's restart, and callers for each runner's start. May not know: what they are started for.
//!
//! Invariant: what is read here is read as the command line reads it; whatever else may be written is left to that.

use std::ffi::{OsStr, OsString};
use std::str::FromStr;

use phone_opus::internals::agents::ExtraUsage;
use phone_opus::internals::base::ids::Generation;

use crate::cli::{RunWords, RunnerArguments};

/// What a host started this process as.
#[derive(Debug)]
pub(crate) enum StartedAs {
    Worker(Generation),
    Runner(Box<RunnerArguments>),
}

/// What these words start, where they are a host's own.
pub(crate) fn by_a_host(words: impl Iterator<Item = OsString>) -> Option<StartedAs> {
    let words: Vec<OsString> = words.collect();
    let (mcp, rest) = words.split_first()?;
    let (command, options) = rest.split_first()?;
    match (mcp.to_str()?, command.to_str()?) {
        ("mcp", "worker") => match options {
            [name, generation] if name == "--generation" => Some(StartedAs::Worker(Generation(read(generation)?))),
            _ => None,
        },
        ("mcp", "background-consult") => runner(options).map(|found| StartedAs::Runner(Box::new(found))),
        _ => None,
    }
}

/// A runner's options: each followed by its value, and at most once but for the variables; those a host always names are there.
fn runner(options: &[OsString]) -> Option<RunnerArguments> {
    let (mut job, mut state_dir, mut max_running, mut stall_s) = (None, None, None, None);
    let (mut extra_usage, mut orphan_grace_s, mut claude_bin) = (None, None, None);
    let (mut agent_env, mut site) = (Vec::new(), Vec::new());
    let (held, options) = match options.split_last() {
        Some((last, rest)) if last == "--held" => (true, rest),
        _ => (false, options),
    };
    for pair in options.chunks(2) {
        let [name, value] = pair else { return None };
        // What looks like an option is for the command line to judge.
        if value.is_empty() || value.as_encoded_bytes().starts_with(b"-") {
            return None;
        }
        let repeated = match name.to_str()? {
            "--job" => job.replace(read(value)?).is_some(),
            "--state-dir" => state_dir.replace(value.into()).is_some(),
            "--max-running" => max_running.replace(read(value)?).is_some(),
            "--stall-s" => stall_s.replace(read(value)?).is_some(),
            "--extra-usage" => extra_usage.replace(ExtraUsage::parse(value.to_str()?)?).is_some(),
            "--orphan-grace-s" => orphan_grace_s.replace(read(value)?).is_some(),
            "--claude-bin" => claude_bin.replace(value.into()).is_some(),
            "--agent-env" => {
                agent_env.push(value.to_str()?.to_owned());
                false
            }
            "--site" => {
                site.push(read(value)?);
                false
            }
            _ => return None,
        };
        if repeated {
            return None;
        }
    }
    Some(RunnerArguments {
        job: job?,
        runs: RunWords {
            state_dir: state_dir?,
            max_running: max_running?,
            stall_s: stall_s?,
            extra_usage: extra_usage?,
            orphan_grace_s: orphan_grace_s.unwrap_or(0),
            claude_bin,
            agent_env,
            site,
        },
        held,
    })
}

fn read<T: FromStr>(word: &OsStr) -> Option<T> {
    word.to_str()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::cli::{Cli, Command, McpCommand};

    /// What the command line makes of the same words.
    fn parsed(line: &str) -> Option<String> {
        let words = std::iter::once("phone-opus").chain(line.split(' '));
        match Cli::try_parse_from(words).ok()?.command {
            Command::Mcp { command: McpCommand::Worker { generation } } => {
                Some(format!("{:?}", StartedAs::Worker(Generation(generation))))
            }
            Command::Mcp { command: McpCommand::BackgroundConsult(options) } => {
                Some(format!("{:?}", StartedAs::Runner(Box::new(options))))
            }
            _ => None,
        }
    }

    #[test]
    fn the_words_of_a_host_are_read_as_the_command_line_reads_them() {
        let runner = "mcp background-consult --state-dir /s --max-running 3 --stall-s 420 --extra-usage stop";
        let job = "--job 65256527-361a-4d3a-9a5f-945ee374307e";
        let site =
            r#"["box",{"agent":"claude","target":["ssh","b"],"token_file":null,"program":null,"workspaces":["/w"]}]"#;
        let own = ["mcp worker --generation 7".to_owned(), format!("{runner} {job}"), {
            format!(
                "{runner} --orphan-grace-s 30 --claude-bin /usr/bin/claude --agent-env A --agent-env B --site {site} {job} --held"
            )
        }];
        for line in &own {
            let read = by_a_host(line.split(' ').map(OsString::from)).map(|found| format!("{found:?}"));
            assert!(read.is_some(), "{line}");
            assert_eq!(read, parsed(line), "{line}");
        }
        let others = [
            "mcp worker --generation -1".to_owned(),
            "mcp worker --generation".to_owned(),
            "mcp worker".to_owned(),
            "jobs".to_owned(),
            runner.to_owned(),
            format!("{runner} {job} {job}"),
            format!("{runner} --job x"),
            format!("{runner} {job} --claude-bin"),
            format!("{runner} {job} --held --held"),
            format!("{runner} {job} --claude-bin --help"),
            format!("{runner} {job} --else 1"),
            format!("{runner} {job} --site {{}}"),
            format!("mcp background-consult --state-dir=/s {job}"),
            format!("mcp background-consult --state-dir /s --max-running -3 --stall-s 1 --extra-usage stop {job}"),
            format!("mcp background-consult --state-dir /s --max-running 3 --stall-s 1 --extra-usage some {job}"),
        ];
        for line in &others {
            let read = by_a_host(line.split(' ').map(OsString::from));
            assert!(read.is_none(), "{line}");
        }
    }
}
