//! What lives on this machine because of a test.

use std::fs;
use std::path::Path;

use rustix::process::Pid;

/// One process, as `/proc` shows it.
#[derive(Debug, Clone)]
pub(crate) struct Process {
    pub(crate) pid: Pid,
    /// Words separated by spaces.
    pub(crate) command: String,
    /// Whether it leads a session of its own.
    pub(crate) leads_session: bool,
}

fn holds(bytes: &[u8], part: &[u8]) -> bool {
    bytes.windows(part.len()).any(|window| window == part)
}

/// Every live process whose command line or environment holds `mark`, but for this one.
pub(crate) fn marked(mark: &Path) -> Vec<Process> {
    let mark = mark.as_os_str().as_encoded_bytes();
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    entries
        .flatten()
        .filter_map(|entry| {
            let pid = Pid::from_raw(entry.file_name().to_str()?.parse().ok()?)?;
            if pid == rustix::process::getpid() {
                return None;
            }
            let read = |name: &str| fs::read(entry.path().join(name)).unwrap_or_default();
            // Dead and not waited for yet is dead.
            let stat = String::from_utf8_lossy(&read("stat")).into_owned();
            // After the name, which may hold anything: state, parent, group, session.
            let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
            if fields.first() == Some(&"Z") {
                return None;
            }
            let command = read("cmdline");
            (holds(&command, mark) || holds(&read("environ"), mark)).then(|| Process {
                pid,
                command: String::from_utf8_lossy(&command).replace('\0', " "),
                leads_session: fields.get(3) == Some(&pid.as_raw_nonzero().to_string().as_str()),
            })
        })
        .collect()
}

/// Whether any process of this machine has `text` on its command line.
pub(crate) fn on_a_command_line(text: &str) -> Option<String> {
    fs::read_dir("/proc").ok()?.flatten().find_map(|entry| {
        let command = fs::read(entry.path().join("cmdline")).ok()?;
        holds(&command, text.as_bytes()).then(|| String::from_utf8_lossy(&command).into_owned())
    })
}
