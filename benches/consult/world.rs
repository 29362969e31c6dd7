//! World: the scratch directory of a measurement, its agent, and what the kernel says about what lives in it.

use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::Trouble;

/// What the agent does before it answers.
#[derive(Clone, Copy)]
pub(crate) enum Agent {
    AtOnce,
    Works,
    Stays,
}

/// The middle one.
pub(crate) fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

pub(crate) struct World {
    dir: tempfile::TempDir,
}

impl World {
    pub(crate) fn new(parent: &Path, agent: Agent) -> Result<Self, Trouble> {
        let dir = tempfile::Builder::new().prefix("consult-bench-").tempdir_in(parent.canonicalize()?)?;
        for name in ["home", "work", "state"] {
            fs::create_dir(dir.path().join(name))?;
        }
        fs::set_permissions(dir.path().join("state"), fs::Permissions::from_mode(0o700))?;
        let works = match agent {
            Agent::AtOnce => "",
            Agent::Works => "sleep 0.25",
            Agent::Stays => "exec sleep 600",
        };
        let log = dir.path().join("began");
        let session = "11111111-2222-4333-8444-555555555555";
        let script = format!(
            r#"#!/bin/bash
echo "$EPOCHREALTIME" >> '{log}'
case "$1" in
--version) echo '9.9.9 (Claude Code)'; exit;;
--help) echo '--output-format --tools --restricted --permission-prompts --setting-sources --strict-mcp-config --system-prompt-snapshot'; exit;;
esac
{works}
echo '{{"type":"system","subtype":"init","session_id":"{session}","apiKeySource":"none","model":"m","tools":[]}}'
echo '{{"type":"assistant","message":{{"content":[{{"type":"text","text":"hello"}}]}},"session_id":"{session}"}}'
echo '{{"type":"result","subtype":"success","is_error":false,"result":"hello","session_id":"{session}","num_turns":1,"duration_ms":1,"total_cost_usd":0.0,"usage":{{}},"permission_denials":[]}}'
"#,
            log = log.display()
        );
        let world = Self { dir };
        fs::write(world.agent(), script)?;
        fs::set_permissions(world.agent(), fs::Permissions::from_mode(0o755))?;
        Ok(world)
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(crate) fn agent(&self) -> PathBuf {
        self.path("agent")
    }

    /// The whole environment of a host in this world.
    pub(crate) fn variables(&self) -> Vec<(&'static str, OsString)> {
        vec![
            ("PATH", std::env::var_os("PATH").unwrap_or_default()),
            ("HOME", self.path("home").into()),
            ("PHONE_OPUS_STATE_DIR", self.path("state").into()),
            ("PHONE_OPUS_CLAUDE_BIN", self.agent().into()),
            ("PHONE_OPUS_ROLLOUT", "off".into()),
        ]
    }

    /// When the last agent said its first word, in milliseconds since 1970.
    pub(crate) fn last_began(&self) -> Result<f64, Trouble> {
        let log = fs::read_to_string(self.path("began"))?;
        Ok(log.lines().last().unwrap_or_default().replace(',', ".").parse::<f64>()? * 1e3)
    }

    /// When the last job was accepted; half of the store's millisecond is added, which is what its rounding takes.
    pub(crate) fn last_accepted(&self) -> Result<f64, Trouble> {
        let sql = "SELECT accepted_at FROM jobs ORDER BY sequence DESC LIMIT 1";
        let at: i64 = self.database()?.query_row(sql, [], |row| row.get(0))?;
        Ok(at as f64 + 0.5)
    }

    pub(crate) fn database(&self) -> Result<rusqlite::Connection, Trouble> {
        let connection = rusqlite::Connection::open(self.path("state/phone-opus.db"))?;
        connection.busy_timeout(Duration::from_secs(5))?;
        Ok(connection)
    }

    /// Copies of the first job, as if they had ended.
    pub(crate) fn fill(&self, count: usize) -> Result<(), Trouble> {
        let database = self.database()?;
        let names: Vec<String> = database
            .prepare("SELECT name FROM pragma_table_info('jobs')")?
            .query_map([], |row| row.get(0))?
            .collect::<Result<_, _>>()?;
        let values: Vec<&str> = names
            .iter()
            .map(|name| match name.as_str() {
                "sequence" => "NULL",
                "id" => "lower(printf('%08x-0000-4000-8000-%012x', n, n))",
                "invocation" | "request_key" => "NULL",
                "state" => "'succeeded'",
                "finished_at" | "read_at" => "accepted_at + 1000",
                "unread" => "0",
                name => name,
            })
            .collect();
        database.execute_batch(&format!(
            "WITH RECURSIVE numbers(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM numbers WHERE n < {count})
             INSERT INTO jobs ({}) SELECT {} FROM numbers, (SELECT * FROM jobs ORDER BY sequence LIMIT 1);
             INSERT INTO requests SELECT jobs.sequence, first.request FROM jobs,
                (SELECT request FROM requests ORDER BY job LIMIT 1) AS first
                WHERE jobs.sequence NOT IN (SELECT job FROM requests);",
            names.join(", "),
            values.join(", ")
        ))?;
        Ok(())
    }

    /// Waits until so many agents have begun.
    pub(crate) fn wait_for_agents(&self, count: usize) -> Result<(), Trouble> {
        let until = Instant::now() + Duration::from_secs(60);
        while self.processes_by(|words| words.first().is_some_and(|word| word == "sleep")).len() < count {
            if Instant::now() > until {
                return Err("the agents did not begin".into());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    /// Processes of the program in this world with this word.
    pub(crate) fn processes(&self, word: &str) -> Vec<u32> {
        self.processes_by(|words| words.iter().any(|one| one == word))
    }

    fn processes_by(&self, is: impl Fn(&[String]) -> bool) -> Vec<u32> {
        let ours = self.dir.path().display().to_string();
        let pids = fs::read_dir("/proc").into_iter().flatten().flatten();
        pids.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok())
            .filter(|pid| {
                let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
                let words: Vec<String> =
                    line.split(|byte| *byte == 0).map(|word| String::from_utf8_lossy(word).into_owned()).collect();
                let environment = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
                let of_ours = String::from_utf8_lossy(&environment).contains(&ours);
                (of_ours || words.iter().any(|word| word.contains(&ours))) && is(&words)
            })
            .collect()
    }

    /// CPU seconds of every process of the program in this world, of all their threads.
    pub(crate) fn used(&self) -> f64 {
        let program = |words: &[String]| words.iter().any(|word| word == "mcp");
        let threads = self.processes_by(program).into_iter().flat_map(|pid| {
            fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten().map(|entry| entry.path())
        });
        threads
            .filter_map(|thread| {
                let text = fs::read_to_string(thread.join("schedstat")).ok()?;
                text.split(' ').next()?.parse::<f64>().ok()
            })
            .sum::<f64>()
            / 1e9
    }
}

impl Drop for World {
    fn drop(&mut self) {
        // Background jobs and who waits with them outlive their server; here nobody wants them.
        for _ in 0..20 {
            let left = self.processes_by(|_| true);
            if left.is_empty() {
                return;
            }
            for pid in left {
                if let Some(pid) = i32::try_from(pid).ok().and_then(rustix::process::Pid::from_raw) {
                    let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
                }
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

/// Proportional memory in MB of 1,000,000 bytes.
pub(crate) fn pss(pid: u32) -> Result<f64, Trouble> {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))?;
    let line = text.lines().find_map(|line| line.strip_prefix("Pss:")).ok_or("no Pss")?;
    let kilobytes: f64 = line.trim().trim_end_matches(" kB").parse()?;
    Ok(kilobytes * 1024.0 / 1e6)
}
