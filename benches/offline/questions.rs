//! Sixty questions and the files that answer each, written before the ranking they judge.
//!
//! A place is right if somebody who asked would be content to be sent there first. Each third question is kept apart: whoever
//! works on the ranking looks at the others, and of these learns how many are answered and nothing else.

/// What a question is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum About {
    /// This repository.
    Here,
    /// `tests/offline/larder`, a small project in five languages, with tests, texts and a changelog that repeat the words.
    Larder,
    /// The package `fd-find`: a program in Rust, by others.
    Fd,
    /// The package `libssh2-sys`: a library in C, with a page of the manual for each function.
    Ssh,
}

pub(crate) struct Question {
    pub(crate) about: About,
    pub(crate) asked: &'static str,
    /// Any of these is right, relative to what is asked about.
    pub(crate) right: &'static [&'static str],
}

/// All of them. A number counts from 1 and stays: it decides what is kept apart.
pub(crate) fn all() -> impl Iterator<Item = (usize, &'static Question)> {
    (1..).zip(QUESTIONS)
}

/// Whether the question of this number is one of the third that nobody looks at.
pub(crate) fn is_kept_apart(number: usize) -> bool {
    number.is_multiple_of(3)
}

const fn ask(about: About, asked: &'static str, right: &'static [&'static str]) -> Question {
    Question { about, asked, right }
}

use About::{Fd, Here, Larder, Ssh};

#[rustfmt::skip]
const QUESTIONS: &[Question] = &[
    // 1 to 20
    ask(Here, "how is a crashed worker restarted?",
        &["src/actors/workers/mod.rs", "src/actors/supervision/slot.rs", "src/actors/supervision/driver.rs"]),
    ask(Here, "how does an upgrade replace the running program without clients noticing?",
        &["docs/upgrades.md", "src/system/handover/mod.rs", "src/system/handover/sequence.rs", "src/rollout/mod.rs"]),
    ask(Here, "which jobs may run at once and in what order do waiting ones start?", &["src/jobs/admission.rs"]),
    ask(Here, "where are ignore files like .gitignore read, and how large may they be?", &["src/checkout/ignores.rs"]),
    ask(Here, "how is it decided whether a lost call may run again?", &["src/actors/session/replay.rs"]),
    ask(Here, "which environment variables does an agent get?", &["src/agents/environment.rs"]),
    ask(Here, "where are usage limit messages of an agent recognised?",
        &["src/agents/words.rs", "src/agents/classify.rs", "src/jobs/limits.rs"]),
    ask(Here, "how is the database migrated to a new schema version?", &["src/jobs/store/sqlite/schema.rs"]),
    ask(Here, "how are log files rotated?", &["src/telemetry/log.rs"]),
    ask(Here, "where are incoming bytes split into lines, and what happens to a line that is too long?",
        &["src/protocol/frame.rs", "src/exec/lines.rs", "src/agents/lines.rs"]),
    ask(Here, "what happens to an answer when the disk is full?",
        &["src/jobs/reserve.rs", "src/jobs/outcome_file.rs", "src/runner/ending.rs", "docs/failures.md"]),
    ask(Here, "where does \"did you mean\" come from when a name is misspelt?", &["src/base/nearest.rs"]),
    ask(Here, "who makes sure that the right account is billed for a run?", &["src/agents/payer.rs", "src/agents/claude.rs"]),
    ask(Here, "which directories may a client have looked into?", &["src/places.rs", "src/tools/grounds.rs", "docs/promises.md"]),
    ask(Here, "how do I write an agent of my own?", &["examples/custom_agent.rs", "docs/embedding.md"]),
    ask(Here, "how does a daemon start by itself when a client connects?",
        &["src/daemon/start.rs", "docs/daemon.md", "src/bridge/core/search.rs"]),
    ask(Here, "when is an agent that says nothing taken for stuck?", &["src/runner/core.rs", "src/runner/attend.rs"]),
    ask(Here, "how does the WebSocket connection notice a dead peer?", &["src/exec/transport/keepalive.rs"]),
    ask(Here, "how do I inject a fault into the store on purpose?",
        &["docs/fault-injection.md", "examples/fault_plan.rs", "src/failpoints/mod.rs", "src/failpoints/point.rs", "src/failpoints/plan/mod.rs"]),
    ask(Here, "what does doctor check?", &["src/bin/phone-opus/doctor.rs"]),
    // 21 to 30
    ask(Larder, "where are ounces converted to grams?", &["importer/units.py"]),
    ask(Larder, "how is a spoiled jar removed?", &["server/src/expiry.rs"]),
    ask(Larder, "how does the ledger recover after a crash?", &["server/src/ledger.rs"]),
    ask(Larder, "how is a barcode's check digit computed?", &["scanner/ean.c"]),
    ask(Larder, "what happens to scanned items while the network is down?", &["web/src/offlineQueue.ts"]),
    ask(Larder, "when is a mail sent about low stock?", &["server/src/notify.rs"]),
    ask(Larder, "how do I restore a backup?", &["docs/backup.md"]),
    ask(Larder, "how is a receipt of a supermarket parsed?", &["importer/receipts.py"]),
    ask(Larder, "which columns does the table print and how wide are they?", &["cli/table.go"]),
    ask(Larder, "how many requests may one client make per minute?", &["server/src/limits.rs"]),
    // 31 to 45
    ask(Fd, "how does smart case decide whether a search is case sensitive?", &["src/regex_helper.rs", "src/main.rs"]),
    ask(Fd, "how are results buffered before they are sorted and printed?", &["src/walk.rs"]),
    ask(Fd, "where is a file size like 10k parsed?", &["src/filter/size.rs"]),
    ask(Fd, "how are the exit codes of several commands merged into one?", &["src/exit_codes.rs"]),
    ask(Fd, "how are placeholders such as {/.} replaced in a command?", &["src/fmt/mod.rs", "src/exec/mod.rs"]),
    ask(Fd, "how are files filtered by owner and group?", &["src/filter/owner.rs"]),
    ask(Fd, "which threads walk the directory tree in parallel?", &["src/walk.rs"]),
    ask(Fd, "how is the URL of a terminal hyperlink encoded?", &["src/hyperlink.rs"]),
    ask(Fd, "how is the output colored with LS_COLORS?", &["src/output.rs", "src/main.rs"]),
    ask(Fd, "where are dates and durations for --changed-within read?", &["src/filter/time.rs"]),
    ask(Fd, "how is an empty directory recognised?", &["src/filesystem.rs"]),
    ask(Fd, "how does --exec-batch keep within the maximum length of a command line?", &["src/exec/mod.rs"]),
    ask(Fd, "how are broken symlinks handled while walking?", &["src/walk.rs", "src/dir_entry.rs"]),
    ask(Fd, "how is the output of commands that run in parallel kept from mixing?", &["src/exec/command.rs"]),
    ask(Fd, "how many threads are used by default?", &["src/cli.rs"]),
    // 46 to 60
    ask(Ssh, "how is a host key checked against the known hosts file?", &["libssh2/src/knownhost.c"]),
    ask(Ssh, "how is the key exchange method negotiated?", &["libssh2/src/kex.c"]),
    ask(Ssh, "how is a file received with SCP?", &["libssh2/src/scp.c"]),
    ask(Ssh, "how does sftp read ahead with several requests in flight?", &["libssh2/src/sftp.c"]),
    ask(Ssh, "when is a keepalive message sent?", &["libssh2/src/keepalive.c"]),
    ask(Ssh, "how is a packet encrypted and sent over the socket?", &["libssh2/src/transport.c"]),
    ask(Ssh, "how does keyboard-interactive authentication read the prompts of the server?",
        &["libssh2/src/userauth_kbd_packet.c", "libssh2/src/userauth.c"]),
    ask(Ssh, "where is the receive window of a channel adjusted?", &["libssh2/src/channel.c"]),
    ask(Ssh, "how is the SSH agent asked to sign something?", &["libssh2/src/agent.c", "libssh2/src/agent_win.c"]),
    ask(Ssh, "how is data compressed with zlib?", &["libssh2/src/comp.c"]),
    ask(Ssh, "how is an OpenSSH private key in PEM format parsed?", &["libssh2/src/pem.c"]),
    ask(Ssh, "how does a blocking session wait for its socket?", &["libssh2/src/session.c"]),
    ask(Ssh, "how does bcrypt derive a key from a passphrase?", &["libssh2/src/bcrypt_pbkdf.c"]),
    ask(Ssh, "which HMAC algorithms are supported?", &["libssh2/src/mac.c"]),
    ask(Ssh, "where is base64 decoded?", &["libssh2/src/misc.c"]),
];
