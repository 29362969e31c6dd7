//! A program that plays the part of an agent: of Claude Code, or of another one that is called as it is called.
//!
//! Owns: the script language and its execution; how each program says things is its voice (`voices`). May not know phone-opus: it
//! is on the other side of the pipe.
//!
//! The binary becomes it when it is called by the name [`PROGRAM_NAME`] (a link to it). The script rides in the prompt:
//!
//! ```text
//! @@script {"answer":"42","log":"/tmp/x/log","steps":[{"tool_use":"Grep"},{"wait_for_file":"/tmp/x/go"}]} @@
//! ```
//!
//! Without one it answers `scripted answer to: ` and the first 40 characters. Every run introduces itself, takes the
//! steps in order, gives one result unless a step said otherwise, and exits. With `log`, it appends one JSON line when
//! it starts and one when it ends by itself.
//!
//! Invariants: (1) it does nothing the script does not say; (2) it never outlives ten minutes, whatever the script
//! says; (3) options the real program refuses are refused in the same words.

use std::ffi::{OsStr, OsString};
use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, getpid, kill_process, setsid};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::voices::{self, OptionRefused, Speaker, Voice};
pub use super::voices::{HELP, VERSION};
use crate::base::ids::UnixMillis;
use crate::base::procfs;

/// The file name the program is called by.
pub const PROGRAM_NAME: &str = "phone-opus-scripted-agent";

/// How long it lives at most. A test that failed to end it must not leave it behind for good.
const LIFETIME: Duration = Duration::from_secs(600);
/// How long it waits for a file. Shorter than [`LIFETIME`], so that a wrong test fails and says why.
const FILE_DEADLINE: Duration = Duration::from_secs(120);
/// How often it looks for the file.
const FILE_POLL: Duration = Duration::from_millis(5);
/// The first argument of the process that a `fork` step starts.
pub(super) const GRANDCHILD: &str = "--scripted-grandchild";
/// The exit code when the script itself is wrong or waited in vain.
const SCRIPT_FAILED: i32 = 70;

/// What the prompt tells the program to do.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Script {
    /// The text of the answer.
    pub answer: Option<String>,
    /// Its session; by default the one to be resumed, else a new one.
    pub session_id: Option<String>,
    /// Where it says its key comes from; by default the key in its environment, else `none`.
    pub key_source: Option<String>,
    /// The model it names.
    pub model: Option<String>,
    /// A file each run appends its start and its end to.
    pub log: Option<PathBuf>,
    /// Whether it starts without introducing itself.
    pub no_init: bool,
    /// Whether its introduction does not say where its key comes from.
    pub no_key_source: bool,
    /// What is written before its introduction, without a line end: a byte order mark, a progress text, a colour code.
    pub before_init: Option<String>,
    /// Fields put over those of the result, `is_error` with exit code 1 among them.
    pub result: Map<String, Value>,
    /// Whether it ends without a result.
    pub no_result: bool,
    /// Its exit code; by default 1 for a result with `is_error`, else 0.
    pub exit: Option<i32>,
    /// What it does between introduction and result.
    pub steps: Vec<Step>,
    /// What it does after its result, before it exits.
    pub after: Vec<Step>,
    /// Another script for the program that is called with this word: the first one that is. Of several agents that are asked
    /// the same, each does something else.
    pub when_called_with: Vec<(String, Script)>,
}

/// One thing to do. In JSON: `{"delay_ms": 5}`, or `"hang"`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Step {
    /// Says something before the answer.
    Text(String),
    /// Thinks.
    Thinking,
    /// Uses a tool, by name, and gets its result.
    ToolUse(String),
    /// Waits.
    DelayMs(u64),
    /// Waits until this path exists.
    WaitForFile(PathBuf),
    /// Makes this file: a sign for the test that it came so far.
    Touch(PathBuf),
    /// Takes one of so many places, which are locked files in this directory, for as long as it lives, however it ends. Where none is
    /// free it makes the file `over` there: more ran at once than may.
    TakePlace {
        /// The directory.
        dir: PathBuf,
        /// How many there are.
        of: u64,
    },
    /// Does nothing any more until it is ended.
    Hang,
    /// Takes no notice of SIGTERM from here on.
    IgnoreTerm,
    /// Writes this many lines that are not JSON.
    Garbage(u32),
    /// Writes this line as it is.
    Raw(String),
    /// Writes this as it is, without a line end.
    Part(String),
    /// Introduces itself, again or at last.
    Introduce,
    /// Takes these steps, and leaves out the line ends but the last one.
    Glued(Vec<Self>),
    /// The provider says this about its limits: these fields of its information.
    LimitInfo(Map<String, Value>),
    /// Writes about this many bytes of well-formed events.
    HugeOutput(u64),
    /// Writes one line of this many bytes that is not JSON.
    HugeLine(u64),
    /// Says a text of this many bytes in one line.
    HugeText(u64),
    /// Says a text that holds half of a surrogate pair.
    LoneSurrogate,
    /// Writes half of a character, without a line end.
    HalfUtf8,
    /// Reads a line of its input and appends it to this file, for a program that is talked to.
    ReadLine(PathBuf),
    /// Writes to stderr.
    Stderr(String),
    /// Writes this many bytes to stderr, more than its pipe may hold.
    HugeStderr(u64),
    /// Ends its stdout and lives on: what it says from here on, the answer too, reaches nobody.
    CloseOutput,
    /// Starts a process that stays behind and holds the pipes.
    Fork(ForkPlace),
    /// The provider refuses until this time, in seconds since 1970.
    RateLimit(u64),
    /// Waits before it asks its provider again.
    ApiRetry {
        /// Which try comes next.
        attempt: u64,
        /// How many there are.
        max: u64,
        /// How long it says it waits.
        delay_ms: u64,
        /// The provider's status.
        status: Option<u64>,
    },
    /// An assistant event with this error class.
    ApiError(String),
    /// A tool use is refused.
    Denied {
        /// The tool.
        tool: String,
        /// What for.
        target: String,
    },
    /// A result, before the last one or instead of it: these fields over the usual ones.
    Result(Map<String, Value>),
    /// Exits at once with this code.
    Exit(i32),
    /// Ends itself by this signal.
    KillSelf(i32),
}

/// Where a process that stays behind lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ForkPlace {
    /// In the program's own process group.
    Group,
    /// In a session of its own, where a signal to the group does not reach it.
    Session,
    /// In the program's own process group, with an environment of nothing: a sandbox's wrapper, a `sudo`.
    Bare,
}

impl Script {
    /// The script as it is put into a prompt.
    #[must_use]
    pub fn in_prompt(&self) -> String {
        format!("@@script {} @@", serde_json::to_string(self).unwrap_or_default())
    }

    /// The script for a program that is called with these words.
    fn for_words(mut self, words: &[String]) -> Self {
        let called = std::mem::take(&mut self.when_called_with);
        match called.into_iter().find(|(word, _)| words.contains(word)) {
            Some((_, own)) => Self { log: own.log.or(self.log), ..own },
            None => self,
        }
    }

    /// The script in a prompt; `None` when there is none.
    fn find(prompt: &str) -> Option<Result<Self, serde_json::Error>> {
        let (_, rest) = prompt.split_once("@@script")?;
        serde_json::Deserializer::from_str(rest).into_iter().next()
    }
}

/// Whether a program called by this name (`argv[0]`) is the scripted agent.
#[must_use]
pub fn is_called(argv0: &OsStr) -> bool {
    Path::new(argv0).file_name() == Some(OsStr::new(PROGRAM_NAME))
}

/// The whole program: `args` without the program's name. Returns the exit code.
///
/// Reads the environment and may end, signal or replace nothing but its own process.
pub fn main(args: &[OsString], stdin: impl Read, stdout: impl Write, stderr: impl Write) -> i32 {
    if args.first().is_some_and(|arg| arg == GRANDCHILD) {
        return grandchild(args.get(1).is_some_and(|place| place == "session"));
    }
    let mut program =
        Program { stdin: BufReader::new(stdin), stdout, stderr, glued: false, places: Vec::new(), _term: None };
    program.run(args).unwrap_or_else(|end| match end {
        End::Exit(code) => code,
        // The reader is gone; the real program is ended by that as well.
        End::Io(_) => 1,
    })
}

/// Stays until it is ended.
fn grandchild(own_session: bool) -> i32 {
    // Fails only for the leader of a group, and a forked process leads none.
    if own_session && setsid().is_err() {
        return SCRIPT_FAILED;
    }
    std::thread::sleep(LIFETIME);
    0
}

/// Why a run ends before its script does.
enum End {
    Exit(i32),
    Io(io::Error),
}

impl From<io::Error> for End {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

/// A SIGTERM handler and the runtime that must live as long as it.
struct IgnoredTerm {
    _signal: tokio::signal::unix::Signal,
    _runtime: tokio::runtime::Runtime,
}

struct Program<I, O, E> {
    stdin: I,
    stdout: O,
    stderr: E,
    /// Whether lines are written without their ends.
    glued: bool,
    /// Places it has taken; the kernel gives them back.
    places: Vec<File>,
    _term: Option<IgnoredTerm>,
}

/// What one run knows of itself.
struct Run {
    script: Script,
    voice: &'static dyn Voice,
    speaker: Speaker,
    prompt_head: String,
}

impl<I: BufRead, O: Write, E: Write> Program<I, O, E> {
    fn run(&mut self, args: &[OsString]) -> Result<i32, End> {
        let args_text: Vec<String> = args.iter().map(|arg| arg.to_string_lossy().into_owned()).collect();
        let voice = voices::called(&args_text);
        if let Some(said) = voice.asked(&args_text) {
            self.stdout.write_all(said.as_bytes())?;
            return Ok(0);
        }
        let resume = match voice.check(&args_text) {
            Ok(resume) => resume,
            Err(OptionRefused { line, code }) => return self.refuse(&line, code),
        };
        let conversed = voice.converse(&mut self.stdin, &mut self.stdout).transpose()?;
        let prompt = match &conversed {
            Some(conversed) => conversed.prompt.clone(),
            None => {
                let mut bytes = Vec::new();
                self.stdin.read_to_end(&mut bytes)?;
                String::from_utf8_lossy(&bytes).into_owned()
            }
        };
        if prompt.trim().is_empty() {
            return self.refuse("Error: Input must be provided either through stdin or as a prompt argument", 1);
        }
        let script = match Script::find(&prompt) {
            None => Script::default(),
            Some(Ok(script)) => script.for_words(&args_text),
            Some(Err(error)) => {
                writeln!(self.stderr, "the script is wrong: {error}")?;
                return Ok(SCRIPT_FAILED);
            }
        };
        let new = || uuid::Uuid::new_v4().hyphenated().to_string();
        let (session_id, request) = match conversed {
            Some(conversed) => (conversed.session_id, conversed.request),
            None => (script.session_id.clone().or(resume).unwrap_or_else(new), Value::Null),
        };
        let log = script.log.clone();
        let note = |event: &str| note(log.as_deref(), event, args, &prompt);
        note("start")?;
        let body = prompt.strip_prefix(crate::agents::PROMPT_PREFIX).unwrap_or(&prompt);
        let prompt_head = body.chars().take(40).collect();
        let run = Run { voice, speaker: Speaker { request, ..speaker(&script, session_id) }, script, prompt_head };
        let code = match self.play(&run) {
            Ok(code) | Err(End::Exit(code)) => code,
            Err(End::Io(error)) => return Err(End::Io(error)),
        };
        self.stdout.flush()?;
        note("end")?;
        Ok(code)
    }

    /// The way the real programs refuse: one line on stderr and a code.
    fn refuse<T>(&mut self, line: &str, code: i32) -> Result<T, End> {
        writeln!(self.stderr, "{line}")?;
        Err(End::Exit(code))
    }

    fn play(&mut self, run: &Run) -> Result<i32, End> {
        let script = &run.script;
        if let Some(before) = &script.before_init {
            self.stdout.write_all(before.as_bytes())?;
        }
        if !script.no_init {
            self.events(&run.voice.introduction(&run.speaker))?;
        }
        for step in &script.steps {
            self.step(run, step)?;
        }
        let mut failed = false;
        if !script.no_result {
            let (result, has_failed) = result(run, &script.result);
            failed = has_failed;
            // Claude Code says its answer before it repeats it in its result.
            if !failed && let Some(text) = result.first().and_then(|one| one.get("result")).and_then(Value::as_str) {
                self.event(&run.voice.text(&run.speaker, text))?;
            }
            self.events(&result)?;
        }
        for step in &script.after {
            self.step(run, step)?;
        }
        Ok(script.exit.unwrap_or(i32::from(failed)))
    }

    fn step(&mut self, run: &Run, step: &Step) -> Result<(), End> {
        let Run { voice, speaker, .. } = run;
        match step {
            Step::Text(text) => self.event(&voice.text(speaker, text)),
            Step::Thinking => self.event(&voice.thinking(speaker)),
            Step::ToolUse(tool) => self.events(&voice.tool(speaker, tool)),
            Step::DelayMs(ms) => {
                std::thread::sleep(Duration::from_millis(*ms).min(LIFETIME));
                Ok(())
            }
            Step::WaitForFile(path) => self.wait_for(path),
            Step::Touch(path) => Ok(OpenOptions::new().create(true).append(true).open(path).map(|_| ())?),
            Step::TakePlace { dir, of } => self.take_place(dir, *of),
            Step::Hang => {
                self.stdout.flush()?;
                std::thread::sleep(LIFETIME);
                Err(End::Exit(SCRIPT_FAILED))
            }
            Step::IgnoreTerm => self.ignore_term(),
            Step::Garbage(lines) => {
                for line in 0..*lines {
                    writeln!(self.stdout, "garbage line {line}: {{not json")?;
                }
                Ok(self.stdout.flush()?)
            }
            Step::Raw(line) => self.line(line.as_bytes()),
            Step::Part(text) => {
                self.stdout.write_all(text.as_bytes())?;
                Ok(self.stdout.flush()?)
            }
            Step::Introduce => self.events(&voice.introduction(speaker)),
            Step::Glued(steps) => {
                self.glued = true;
                steps.iter().try_for_each(|step| self.step(run, step))?;
                self.glued = false;
                self.line(b"")
            }
            Step::LimitInfo(info) => self.event(&voice.limit_info(info)),
            Step::HugeOutput(bytes) => {
                let event = voice.text(speaker, &"x".repeat(1_000)).to_string();
                let lines = bytes.div_ceil(event.len() as u64 + 1);
                (0..lines).try_for_each(|_| writeln!(self.stdout, "{event}"))?;
                Ok(self.stdout.flush()?)
            }
            Step::HugeLine(bytes) => {
                io::copy(&mut io::repeat(b'x').take(*bytes), &mut self.stdout)?;
                self.line(b"")
            }
            Step::HugeText(bytes) => {
                let bytes = usize::try_from(*bytes).map_err(|_| End::Exit(SCRIPT_FAILED))?;
                self.event(&voice.text(speaker, &"x".repeat(bytes)))
            }
            Step::LoneSurrogate => self.line(voice.half_a_pair().as_bytes()),
            Step::HalfUtf8 => {
                self.stdout.write_all(b"half a character: \xe2\x82")?;
                Ok(self.stdout.flush()?)
            }
            Step::ReadLine(path) => {
                let mut line = String::new();
                self.stdin.read_line(&mut line)?;
                Ok(OpenOptions::new().create(true).append(true).open(path)?.write_all(line.as_bytes())?)
            }
            Step::Stderr(text) => Ok(self.stderr.write_all(text.as_bytes())?),
            Step::HugeStderr(bytes) => {
                io::copy(&mut io::repeat(b'x').take(*bytes), &mut self.stderr)?;
                Ok(())
            }
            Step::CloseOutput => {
                self.stdout.flush()?;
                let nowhere = OpenOptions::new().write(true).open("/dev/null")?;
                Ok(rustix::stdio::dup2_stdout(nowhere).map_err(io::Error::from)?)
            }
            Step::Fork(place) => fork(*place),
            Step::RateLimit(at) => self.event(&voice.limit(*at)),
            Step::ApiRetry { attempt, max, delay_ms, status } => {
                self.event(&voice.retries(*attempt, *max, *delay_ms, *status))
            }
            Step::ApiError(class) => self.event(&voice.provider_error(speaker, class)),
            Step::Denied { tool, target } => self.event(&voice.denied(tool, target)),
            Step::Result(fields) => self.events(&result(run, fields).0),
            Step::Exit(code) => Err(End::Exit(*code)),
            Step::KillSelf(signal) => {
                self.stdout.flush()?;
                let signal = Signal::from_named_raw(*signal).ok_or(End::Exit(SCRIPT_FAILED))?;
                kill_process(getpid(), signal).map_err(io::Error::from)?;
                // A signal to oneself may be delivered a moment later.
                std::thread::sleep(LIFETIME);
                Err(End::Exit(SCRIPT_FAILED))
            }
        }
    }

    fn wait_for(&mut self, path: &Path) -> Result<(), End> {
        self.stdout.flush()?;
        let deadline = Instant::now() + FILE_DEADLINE;
        while !path.exists() {
            if Instant::now() > deadline {
                writeln!(self.stderr, "waited in vain for a file")?;
                return Err(End::Exit(SCRIPT_FAILED));
            }
            std::thread::sleep(FILE_POLL);
        }
        Ok(())
    }

    fn take_place(&mut self, dir: &Path, of: u64) -> Result<(), End> {
        for place in 0..of {
            let file = OpenOptions::new().create(true).append(true).open(dir.join(place.to_string()))?;
            if file.try_lock().is_ok() {
                self.places.push(file);
                return Ok(());
            }
        }
        Ok(OpenOptions::new().create(true).append(true).open(dir.join("over")).map(|_| ())?)
    }

    /// A registered handler replaces the default action for good; nobody needs to listen to it.
    fn ignore_term(&mut self) -> Result<(), End> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let signal = {
            let _entered = runtime.enter();
            tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?
        };
        self._term = Some(IgnoredTerm { _signal: signal, _runtime: runtime });
        Ok(())
    }

    fn events(&mut self, events: &[Value]) -> Result<(), End> {
        events.iter().try_for_each(|event| self.event(event))
    }

    fn event(&mut self, event: &Value) -> Result<(), End> {
        self.line(event.to_string().as_bytes())
    }

    fn line(&mut self, line: &[u8]) -> Result<(), End> {
        self.stdout.write_all(line)?;
        if !self.glued {
            self.stdout.write_all(b"\n")?;
        }
        Ok(self.stdout.flush()?)
    }
}

/// Starts a process that inherits the pipes and is not waited for.
fn fork(place: ForkPlace) -> Result<(), End> {
    let name = match place {
        ForkPlace::Group => "group",
        ForkPlace::Session => "session",
        ForkPlace::Bare => "bare",
    };
    let mut command = Command::new(std::env::current_exe()?);
    command.arg0(PROGRAM_NAME).args([GRANDCHILD, name]).stdin(Stdio::null());
    if place == ForkPlace::Bare {
        // By its command line it still belongs to its world.
        command.env_clear().arg(std::env::current_dir()?);
    }
    command.spawn()?;
    Ok(())
}

/// What it says of itself: what the script says, and of its key what is so.
fn speaker(script: &Script, session_id: String) -> Speaker {
    let has_key = std::env::var_os("ANTHROPIC_API_KEY").is_some_and(|key| !key.is_empty());
    let seen = || if has_key { "ANTHROPIC_API_KEY" } else { "none" }.to_owned();
    let key_source = (!script.no_key_source).then(|| script.key_source.clone().unwrap_or_else(seen));
    let model = script.model.clone().unwrap_or_else(|| "scripted-model".to_owned());
    Speaker { session_id, model, key_source, request: Value::Null }
}

fn result(run: &Run, fields: &Map<String, Value>) -> (Vec<Value>, bool) {
    let answer = run.script.answer.clone().unwrap_or_else(|| format!("scripted answer to: {}", run.prompt_head));
    run.voice.result(&run.speaker, &answer, fields)
}

/// Appends one line to the log: written at once, so that lines of several runs do not mix.
fn note(log: Option<&Path>, event: &str, args: &[OsString], prompt: &str) -> io::Result<()> {
    let Some(log) = log else { return Ok(()) };
    let argv: Vec<_> = args.iter().map(|arg| arg.to_string_lossy()).collect();
    let env: Map<String, Value> = std::env::vars_os()
        .map(|(name, value)| (String::from_utf8_lossy(name.as_bytes()).into_owned(), json!(value.to_string_lossy())))
        .collect();
    let cwd = std::env::current_dir().unwrap_or_default();
    let pid = Pid::as_raw(Some(getpid()));
    let mut line = json!({
        "event": event, "pid": pid, "pgid": procfs::stat(pid).map(|stat| stat.group), "argv": argv,
        "env": env, "cwd": cwd.to_string_lossy(), "prompt_bytes": prompt.len(),
        "prompt_head": prompt.chars().take(200).collect::<String>(), "ts_ms": UnixMillis::now(),
    })
    .to_string();
    line.push('\n');
    OpenOptions::new().create(true).append(true).open(log)?.write_all(line.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agents::{Agent, AgentEvent, ClaudeCode, OutputReader, PROMPT_PREFIX, RunEnd, RunSummary, RunVerdict};
    use crate::base::fault::FaultCode;
    use crate::jobs::{JobState, RunExit};

    const ARGS: &[&str] = &["-p", "--output-format", "stream-json", "--verbose"];

    struct Played {
        code: i32,
        stdout: Vec<u8>,
        stderr: String,
    }

    fn play(args: &[&str], prompt: &str) -> Played {
        let args: Vec<OsString> = args.iter().map(OsString::from).collect();
        let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
        let code = main(&args, prompt.as_bytes(), &mut stdout, &mut stderr);
        Played { code, stdout, stderr: String::from_utf8(stderr).expect("text") }
    }

    /// Through parser and classifier, fed in portions that split lines and characters.
    fn verdict(script: &str) -> (Vec<AgentEvent>, RunVerdict) {
        let played = play(ARGS, &format!("{PROMPT_PREFIX}@@script {script} @@"));
        let mut reader = OutputReader::new(ClaudeCode::default().parser());
        let mut events = Vec::new();
        played.stdout.chunks(7).for_each(|chunk| reader.push(chunk, &mut events));
        reader.finish(&mut events);
        let mut summary = RunSummary::new();
        events.iter().for_each(|event| summary.fold(event));
        let end = RunEnd {
            summary,
            exit: Some(RunExit { code: played.code, signal: None, reaped: 0 }),
            stderr_tail: played.stderr.into_bytes(),
            ..RunEnd::default()
        };
        (events, ClaudeCode::default().classify(end))
    }

    #[test]
    fn without_a_script_it_answers_with_the_head_of_the_prompt() {
        let played = play(ARGS, &format!("{PROMPT_PREFIX}why is the sky blue, and what would change if it were not?"));
        assert_eq!(played.code, 0);
        let text = String::from_utf8(played.stdout).expect("text");
        assert!(text.contains("scripted answer to: why is the sky blue, and what would chan\""), "{text}");
    }

    #[test]
    fn it_answers_a_probe_and_refuses_options_as_the_real_one() {
        assert_eq!(play(&["--version"], "").stdout, VERSION.as_bytes());
        assert!(play(&["--help"], "").stdout.starts_with(HELP.as_bytes()));
        let unknown = play(&["-p", "--cwd", "/"], "x");
        assert_eq!((unknown.code, unknown.stderr.as_str()), (1, "error: unknown option '--cwd'\n"));
        assert!(play(&["-p", "--output-format", "stream-json"], "x").stderr.contains("requires --verbose"));
        assert_eq!(play(ARGS, "  ").code, 1);
        assert_eq!(play(ARGS, "@@script {\"no_such\":1} @@").code, SCRIPT_FAILED);
    }

    #[test]
    fn scripts_reach_the_verdict_they_are_meant_for() {
        use FaultCode as C;
        for (script, state, code, response) in [
            (r#"{"answer":"42"}"#, JobState::Succeeded, None, Some("42")),
            (
                r#"{"answer":"42","steps":["thinking",{"tool_use":"Grep"},{"garbage":3},{"huge_line":100000}]}"#,
                JobState::Succeeded,
                None,
                Some("42"),
            ),
            (
                r#"{"steps":[{"result":{"result":"first"}},{"text":"more"}],"answer":"last"}"#,
                JobState::Succeeded,
                None,
                Some("last"),
            ),
            (
                r#"{"steps":["lone_surrogate",{"exit":0}]}"#,
                JobState::Failed,
                Some(C::AgentProtocol),
                Some("half of a pair: \u{fffd}"),
            ),
            (r#"{"steps":["half_utf8"],"no_result":true}"#, JobState::Failed, Some(C::AgentProtocol), None),
            (r#"{"no_init":true,"no_result":true}"#, JobState::Failed, Some(C::AgentProtocol), None),
            (r#"{"answer":" "}"#, JobState::Failed, Some(C::EmptyAnswer), None),
            (
                r#"{"result":{"num_turns":0}}"#,
                JobState::Failed,
                Some(C::PromptGuardFailed),
                Some("scripted answer to: @@script {\"result\":{\"num_turns\":0}} @@"),
            ),
            (
                r#"{"steps":[{"api_error":"rate_limit"},{"rate_limit":1900000000}],"result":{"is_error":true,"result":"API Error: 429"}}"#,
                JobState::Failed,
                Some(C::AgentRateLimited),
                Some("API Error: 429"),
            ),
            (
                r#"{"result":{"is_error":true,"subtype":"error_max_turns","result":null},"steps":[{"text":"so far"}]}"#,
                JobState::Failed,
                Some(C::TurnLimit),
                Some("so far"),
            ),
            (
                r#"{"steps":[{"stderr":"error: unknown option '--restricted'"}],"no_init":true,"no_result":true,"exit":1}"#,
                JobState::Failed,
                Some(C::AgentUnsupported),
                None,
            ),
            (
                r#"{"steps":[{"stderr":"No conversation found with session ID: x"}],"no_result":true,"exit":1}"#,
                JobState::Failed,
                Some(C::UnknownSession),
                None,
            ),
            (r#"{"answer":"42","exit":1}"#, JobState::Succeeded, None, Some("42")),
        ] {
            let (_, verdict) = verdict(script);
            let outcome = &verdict.outcome;
            assert_eq!(verdict.state, state, "{script}: {outcome:?}");
            assert_eq!(outcome.fault.as_ref().map(|fault| fault.code), code, "{script}");
            assert_eq!(outcome.response.as_deref(), response, "{script}");
        }
    }

    #[test]
    fn every_step_is_seen_as_its_event() {
        let (events, verdict) = verdict(
            r#"{"session_id":"s","model":"m","key_source":"k","steps":["thinking",{"tool_use":"Grep"},
                {"api_retry":{"attempt":1,"max":2,"delay_ms":10,"status":529}},
                {"denied":{"tool":"Write","target":"/x"}},{"huge_output":20000}]}"#,
        );
        let started = AgentEvent::Started {
            session_id: Some("s".into()),
            model: Some("m".into()),
            key_source: Some("k".into()),
            version: Some("2.1.329".into()),
        };
        assert_eq!(events[0], started);
        assert_eq!(
            events[1..4],
            [AgentEvent::Thinking, AgentEvent::ToolUse { tool: "Grep".into() }, AgentEvent::ToolResult]
        );
        assert_eq!(events[4], AgentEvent::Retrying { attempt: 1, max: 2, delay_ms: 10, status: Some(529) });
        assert!(matches!(&events[5], AgentEvent::Denied { denial } if denial.target.as_deref() == Some("/x")));
        assert!(events.len() > 20);
        assert_eq!(verdict.outcome.session_id.as_deref(), Some("s"));
        assert_eq!(verdict.outcome.permission_denials.len(), 1);
        assert_eq!(verdict.outcome.cost_usd, Some(0.001));
    }

    #[test]
    fn a_resumed_session_is_named_again() {
        let id = uuid::Uuid::new_v4().to_string();
        let args: Vec<&str> = ARGS.iter().copied().chain(["--resume", &id]).collect();
        let text = String::from_utf8(play(&args, "x").stdout).expect("text");
        assert!(text.lines().last().expect("a result").contains(&id));
    }

    #[test]
    fn who_finds_no_place_says_so_and_a_place_is_free_when_its_run_is_over() {
        let dir = tempfile::tempdir().expect("scratch");
        let take = |of| Step::TakePlace { dir: dir.path().to_owned(), of };
        let runs = |steps| play(ARGS, &Script { steps, ..Script::default() }.in_prompt()).code;
        let is_over = || dir.path().join("over").exists();
        assert_eq!((runs(vec![take(1)]), runs(vec![take(1)]), is_over()), (0, 0, false));
        assert_eq!((runs(vec![take(2), take(2)]), is_over()), (0, false));
        assert_eq!((runs(vec![take(1), take(1)]), is_over()), (0, true));
    }

    #[test]
    fn a_run_logs_its_start_and_its_end() {
        let dir = tempfile::tempdir().expect("scratch");
        let log = dir.path().join("log");
        let script = Script { log: Some(log.clone()), ..Script::default() };
        assert_eq!(play(ARGS, &script.in_prompt()).code, 0);
        let lines = std::fs::read_to_string(log).expect("a log");
        let lines: Vec<Value> = lines.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
        assert_eq!(lines.iter().map(|line| line["event"].as_str()).collect::<Vec<_>>(), [Some("start"), Some("end")]);
        assert_eq!(lines[0]["argv"], json!(ARGS));
        assert_eq!(lines[0]["pid"], json!(std::process::id()));
    }
}
