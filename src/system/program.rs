//! The main function of a program that serves one client on its standard streams and is replaced in place by its next version.
//!
//! Owns: what such a process is (a server, or one that is asked about itself), its signals, its runtime, its exit code; that it goes
//! on where an earlier image stood. May not know: what its system is made of, and the program's own words.
//!
//! ```text
//! NAME WORDS…                                    serves; the words are the program's own
//! NAME WORDS… --restore WHERE                    serves on, as the next image of a server
//! NAME mcp selfcheck --json [--restore W] WORDS… shows that it could, and ends
//! NAME mcp trial --parent PID -- COMMAND…        keeps such a run
//! NAME mcp worker | background-consult | …       what a host starts: [`crate::process::dispatch`]
//! ```
//!
//! Invariants: (1) L12: nothing here is done unless this is the process's main function; (2) L15: an image that takes over has
//! handlers before it lets signals through; (3) L11: stdout has the protocol, or one line about itself.

use std::ffi::{OsStr, OsString};
use std::io;
use std::process::ExitCode;
use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};

use super::handover::{HostSnapshot, NewImage, RESTORE, Restore};
use super::{Grace, Shutdown, System, SystemBuilder, selfcheck};
use crate::agents::Environment;
use crate::base::fault::{Fault, chain};
use crate::base::state_dir::StateDir;
use crate::base::stdio::{Input, Output};
use crate::base::{descriptors, image, signals};
use crate::process::{self, Registry};
use crate::rollout::selfcheck::SelfCheckError;
use crate::rollout::{Fingerprint, LOOK_EVERY, LaunchPath, RolloutSetup, Trigger};

/// How long a runtime's own threads may take to end; what is stuck in one does not keep the process.
const RUNTIME_END: Duration = Duration::from_millis(100);

/// Where nothing can be: a program that only shows what it is must not touch the directory of one that serves.
const NOWHERE: &str = "/dev/null/selfcheck";

/// The exit code for words that are ours and make no sense.
const REFUSED: u8 = 2;

/// The main function of a program that serves one client on its standard streams, as an MCP server does: to be called first, on the
/// process's first thread, with no runtime around it. It is all of these, by its words:
///
/// - the server. It ends when its client closes the streams, or by TERM, INT, HUP or QUIT. Where it was started from a path (its own
///   file, `PATH`), a new file there is adopted **in place**: same process, same streams, same jobs, and the client notices nothing.
///   It first has to serve and restore in a trial of its own (see the repository's page about upgrades). USR2 asks for it at once;
/// - that next version, which goes on where this one stood, and the trial of one;
/// - runner, worker and agent of its own hosts, as [`dispatch`](process::dispatch) has it.
///
/// `words` are those after the program's name. `system` is told the program's own ones, and says what is served: it is called once for
/// a server and twice for a trial, must do no more than put a builder together, and leaves out what is given here
/// ([`SystemBuilder::program`]). Where a configuration cannot be read it says why, and the process ends with 1; as a trial, the
/// next version is refused for it. `name` tells programs apart: a file of another name is not adopted.
///
/// A server keeps its client through any number of upgrades, and a call that was under way is answered by the next image. A worker
/// process, a call in process and a job are passed on as the shipped program does; what the program itself holds in memory
/// beside the system is gone, and what it has open is closed. `Config::rollout` switches it off.
///
/// ```no_run
/// use std::process::ExitCode;
///
/// use phone_opus::process::Registry;
/// use phone_opus::{StateDir, System, serve_program};
///
/// fn main() -> ExitCode {
///     let registry = Registry::standard();                     // `.tool(Mine)`, `.agent(Mine)`
///     let words = std::env::args_os().skip(1);
///     serve_program("mine", &registry, words, |_own_words| {
///         Ok(System::builder().state_dir(StateDir::at("/var/lib/mine")))
///     })
/// }
/// ```
pub fn serve_program(
    name: &str,
    registry: &Registry,
    words: impl IntoIterator<Item = OsString>,
    system: impl Fn(&[OsString]) -> Result<SystemBuilder, Fault>,
) -> ExitCode {
    let words: Vec<OsString> = words.into_iter().collect();
    let called = std::env::args_os().next().unwrap_or_default();
    if let Some(code) = process::dispatch(std::iter::once(called).chain(words.iter().cloned()), registry) {
        return code;
    }
    let program = ServedProgram { name, registry, system: &system };
    let done = match Asked::read(&words) {
        Asked::Trial { parent, command } => keep(parent, command),
        Asked::SelfCheck { restore, own } => program.show(restore, own),
        Asked::Serve { restore, own } => program.serve(restore, own),
        Asked::Nonsense(word) => {
            process::say(&format!(
                "{name}: `{}` is none of the words a server starts its own by",
                word.to_string_lossy()
            ));
            return ExitCode::from(REFUSED);
        }
    };
    done.unwrap_or_else(|error| {
        process::say(&format!("{name}: failed to {}", chain(&error)));
        ExitCode::FAILURE
    })
}

/// What a process of the program is asked to be.
#[derive(Debug, PartialEq, Eq)]
enum Asked<'a> {
    Serve { restore: Option<&'a OsStr>, own: Vec<OsString> },
    SelfCheck { restore: Option<&'a OsStr>, own: Vec<OsString> },
    Trial { parent: i32, command: &'a [OsString] },
    Nonsense(&'a OsStr),
}

impl<'a> Asked<'a> {
    fn read(words: &'a [OsString]) -> Self {
        match words {
            [mcp, command, rest @ ..] if mcp == "mcp" && command == "trial" => match rest {
                [parent, pid, end, command @ ..] if parent == "--parent" && end == "--" => {
                    match pid.to_str().and_then(|pid| pid.parse().ok()) {
                        Some(parent) => Self::Trial { parent, command },
                        None => Self::Nonsense(pid),
                    }
                }
                _ => Self::Nonsense(command),
            },
            [mcp, command, rest @ ..] if mcp == "mcp" && command == "selfcheck" => {
                let rest = rest.strip_prefix(&[OsString::from("--json")]).unwrap_or(rest);
                match rest {
                    [option, word, own @ ..] if option == RESTORE => {
                        Self::SelfCheck { restore: Some(word), own: own.to_vec() }
                    }
                    own => Self::SelfCheck { restore: None, own: own.to_vec() },
                }
            }
            // It is the last that an image says to the next one.
            [own @ .., option, word] if option == RESTORE => Self::Serve { restore: Some(word), own: own.to_vec() },
            own => Self::Serve { restore: None, own: own.to_vec() },
        }
    }
}

/// Why such a process does not do what it is for.
#[derive(Debug, thiserror::Error)]
enum ProgramError {
    #[error("start the runtime")]
    Runtime(#[source] io::Error),
    #[error("hear signals")]
    Signals(#[source] io::Error),
    #[error("use the standard streams")]
    Streams(#[source] io::Error),
    #[error("go on where another image stood")]
    Restore(#[from] super::handover::SnapshotError),
    #[error("keep the trial")]
    Trial(#[source] io::Error),
    #[error("serve: {0}")]
    Fault(Box<Fault>),
}

impl From<Fault> for ProgramError {
    fn from(fault: Fault) -> Self {
        Self::Fault(Box::new(fault))
    }
}

/// Keeps the run of a candidate.
fn keep(parent: i32, command: &[OsString]) -> Result<ExitCode, ProgramError> {
    signals::let_through();
    descriptors::keep_from_children();
    let Some((program, words)) = command.split_first() else { return Ok(ExitCode::from(REFUSED)) };
    let runtime = process::runtime().map_err(ProgramError::Runtime)?;
    let kept = runtime.block_on(crate::rollout::keep(parent, program.into(), words.to_vec()));
    Ok(match kept.map_err(ProgramError::Trial)? {
        Some(report) => {
            process::tell(&report);
            ExitCode::SUCCESS
        }
        None => ExitCode::FAILURE,
    })
}

struct ServedProgram<'a, S> {
    name: &'a str,
    registry: &'a Registry,
    system: &'a S,
}

impl<S: Fn(&[OsString]) -> Result<SystemBuilder, Fault>> ServedProgram<'_, S> {
    fn builder(&self, own: &[OsString]) -> Result<SystemBuilder, Fault> {
        Ok((self.system)(own)?.program(self.registry))
    }

    /// One line about what this program is and can.
    fn show(&self, restore: Option<&OsStr>, own: Vec<OsString>) -> Result<ExitCode, ProgramError> {
        signals::let_through();
        descriptors::keep_from_children();
        process::keep_others_out();
        let nowhere = |builder: SystemBuilder| match builder.state_dir {
            Some(_) => builder.state_dir(StateDir::at(NOWHERE)),
            None => builder,
        };
        let runtime = process::runtime().map_err(ProgramError::Runtime)?;
        let checked = runtime.block_on(async {
            let start = |fault| SelfCheckError::Start(Box::new(fault));
            let serving = nowhere(self.builder(&own).map_err(start)?).telemetry_log(false).start().await;
            let mut said = selfcheck::serve_once(serving.map_err(start)?).await?;
            said.program = Some(self.name.to_owned());
            if let Some(word) = restore {
                selfcheck::restore(nowhere(self.builder(&own).map_err(start)?), &Restore::parse(word))?;
                said.restored = Some(true);
            }
            Ok(said)
        });
        let (line, code) = match checked {
            Ok(said) => (serde_json::to_string(&said), ExitCode::SUCCESS),
            Err(error) => (serde_json::to_string(&SelfCheckError::refusal(&error)), ExitCode::FAILURE),
        };
        // Such lines always have a JSON text.
        process::tell(&line.unwrap_or_default());
        Ok(code)
    }

    fn serve(&self, restore: Option<&OsStr>, own: Vec<OsString>) -> Result<ExitCode, ProgramError> {
        if restore.is_none() {
            signals::let_through();
        }
        descriptors::keep_from_children();
        process::keep_others_out();
        let before = restore.map(|word| HostSnapshot::take(&Restore::parse(word))).transpose()?;
        let runtime = process::runtime().map_err(ProgramError::Runtime)?;
        let done = runtime.block_on(self.serve_client(before, &own));
        runtime.shutdown_timeout(RUNTIME_END);
        done
    }

    async fn serve_client(&self, before: Option<HostSnapshot>, own: &[OsString]) -> Result<ExitCode, ProgramError> {
        let ends = [SignalKind::terminate(), SignalKind::interrupt(), SignalKind::hangup(), SignalKind::quit()];
        let mut ends = ends.into_iter().map(signal).collect::<Result<Vec<_>, _>>().map_err(ProgramError::Signals)?;
        let mut asked = signal(SignalKind::user_defined2()).map_err(ProgramError::Signals)?;
        process::ignore(&[SignalKind::user_defined1().as_raw_value()]).map_err(ProgramError::Signals)?;
        if before.is_some() {
            // Held since before this image began.
            signals::let_through();
        }
        let input = Input::stdin().map_err(ProgramError::Streams)?;
        let output = Output::stdout().map_err(ProgramError::Streams)?;
        let mut builder = self.builder(own)?;
        let mut next = None;
        if let Some(setup) = self.rollout(own) {
            // As we were started, and with another file in our place; what has fired stays fired.
            let environment = std::env::vars_os();
            let armed = builder.faults.variables().into_iter().map(|(name, value)| (OsString::from(name), value));
            let environment: std::collections::BTreeMap<_, _> = environment.chain(armed).collect();
            next = Some(NewImage::new(setup.launch.path.clone(), std::env::args_os(), environment));
            builder = builder.rollout(setup);
        }
        if let Some(before) = before {
            if let Some(dir) = before.state_dir().filter(|_| builder.state_dir.is_some()) {
                // Jobs stay where they are, whatever is said by now.
                builder = builder.state_dir(dir);
            }
            builder = builder.restore(before);
        }
        let system = builder.start().await?;
        if let Some(next) = next {
            system.hand_over_in_place(next);
        }
        let served = tokio::select! {
            served = system.serve_standard(input, output) => served.map(drop),
            () = any_of(&mut ends) => Ok(()),
            () = upgrades(&system, &mut asked) => Ok(()),
        };
        let down = system.shutdown(Grace::default()).await;
        match (served, down) {
            (Ok(()), Shutdown::InOrder | Shutdown::Killed) => Ok(ExitCode::SUCCESS),
            (_, Shutdown::AfterFault(fault)) | (Err(fault), _) => Err(fault.into()),
        }
    }

    /// How the next version is found and checked. `None` where the system names no file for it.
    fn rollout(&self, own: &[OsString]) -> Option<RolloutSetup> {
        let here = std::env::current_dir().ok()?;
        let (image, path) = (image::running(), std::env::current_exe().ok());
        let running = image.as_deref().or(path.as_deref()).and_then(Fingerprint::look);
        let (called, search) = (std::env::args_os().next(), std::env::var_os("PATH"));
        let launch = LaunchPath::find(called.as_deref(), search.as_deref(), &here, path.as_deref(), running)?;
        Some(RolloutSetup {
            launch,
            keeper: image.clone(),
            image,
            arguments: own.to_vec(),
            here,
            look_every: LOOK_EVERY,
            program: Some(self.name.to_owned()),
            environment: Some(Environment::capture()),
        })
    }
}

async fn any_of(signals: &mut [Signal]) {
    let heard = signals.iter_mut().map(|signal| Box::pin(signal.recv()));
    futures_util::future::select_all(heard).await;
}

/// Asks for a rollout each time the signal comes; what becomes of it is in health. Never over.
async fn upgrades(system: &System, asked: &mut Signal) {
    loop {
        if asked.recv().await.is_none() {
            std::future::pending::<()>().await;
        }
        system.rollouts().ask(Trigger::Signal);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(line: &str) -> Vec<OsString> {
        line.split(' ').filter(|word| !word.is_empty()).map(OsString::from).collect()
    }

    #[test]
    fn what_a_process_is_for_is_read_from_words_that_are_ours_and_all_others_are_the_programs() {
        let own = |line: &str| words(line);
        let (at, next) = (OsString::from("fd:7:1:2"), OsString::from("fd:0:1:2"));
        for (line, asked) in [
            ("", Asked::Serve { restore: None, own: own("") }),
            ("serve --fast", Asked::Serve { restore: None, own: own("serve --fast") }),
            ("mcp serve", Asked::Serve { restore: None, own: own("mcp serve") }),
            ("--restore x y", Asked::Serve { restore: None, own: own("--restore x y") }),
            ("serve --fast --restore fd:7:1:2", Asked::Serve { restore: Some(&at), own: own("serve --fast") }),
            ("mcp selfcheck --json serve --fast", Asked::SelfCheck { restore: None, own: own("serve --fast") }),
            (
                "mcp selfcheck --json --restore fd:0:1:2 serve",
                Asked::SelfCheck { restore: Some(&next), own: own("serve") },
            ),
            ("mcp trial --parent 7 -- /p a", Asked::Trial { parent: 7, command: &own("/p a") }),
            ("mcp trial --parent x -- /p", Asked::Nonsense(OsStr::new("x"))),
            ("mcp trial /p", Asked::Nonsense(OsStr::new("trial"))),
        ] {
            assert_eq!(Asked::read(&words(line)), asked, "{line}");
        }
    }
}
