//! `doctor`: is everything in place?
//!
//! Owns: what is looked at and how it is shown. May not know: how a turn of an agent is had and judged ([`live`], [`verdict`]), what can
//! be put right ([`fix`]).
//!
//! ```text
//! doctor          looks; asks programs what they can do, and no model
//! doctor --fix    shows what is safe to put right, asks, does it, and looks then
//! doctor --live   looks, asks whether it may cost something, and has a turn of each agent
//! ```

mod fix;
#[cfg(feature = "fleet")]
mod fleet;
mod live;
#[cfg(feature = "otlp")]
mod otlp;
mod verdict;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use phone_opus::internals::agents::{Agent as _, AgentSite, CliAgent, LoginSaid};
use phone_opus::internals::base::ids::{JobId, UnixMillis};
use phone_opus::internals::config::RolloutMode;
use phone_opus::internals::daemon::ask::{ANSWER, ask as ask_daemon};
use phone_opus::internals::daemon::control::DaemonAnswer;
use phone_opus::internals::daemon::lock::DaemonLock;
use phone_opus::internals::daemon::start::{DaemonLook, look};
use phone_opus::internals::jobs::Billing;
use phone_opus::internals::jobs::store::StoreHandle;
use phone_opus::internals::runner::try_site;
use serde_json::{Value, json};

use self::fix::{Fixed, Manner};
use self::live::{Live, Turns};
use self::verdict::{Known, Verdict};
use crate::agreement::DECLINED;
use crate::cli::DoctorOptions;
use crate::logging;
use crate::output::{is_lost, out, print, print_json, print_lines, say};
use crate::screen::layout::{CellFit, laid_out};
use crate::screen::{Line, paint};
use crate::settings::{Prepared, SetupError, chain, prepare, refused, rollout, runtime};

/// How long a machine that was looked at may take to be let go of.
const LET_GO: Duration = Duration::from_secs(3);

struct Finding {
    name: String,
    good: Option<bool>,
    text: String,
    data: Value,
}

/// The exit code where the command has to be called otherwise.
const WRONG_USAGE: u8 = 2;

/// Checks and reports; exit code 1 when a consult with the default agent cannot work.
pub(crate) fn run(options: &DoctorOptions) -> ExitCode {
    logging::start();
    examine(options).unwrap_or_else(|error| refused(&error))
}

fn examine(options: &DoctorOptions) -> Result<ExitCode, SetupError> {
    let prepared = prepare(&options.common, &options.overrides)?;
    for name in &options.agent {
        if let Err(fault) = prepared.agents().get(name) {
            say(&format!("phone-opus: --agent: {fault}"));
            return Ok(ExitCode::from(WRONG_USAGE));
        }
    }
    let mut report = Report { findings: Vec::new(), members: json!({}) };
    if options.fix {
        // Before anything is looked at: a look makes the state directory, and closes what it finds open in it.
        let manner = if options.dry_run { Manner::DryRun } else { Manner::Agreed { yes: options.yes } };
        let (fixed, told) = fix::run(&prepared, manner, options.json)?;
        report.members = told;
        let stopped = match fixed {
            Fixed::Done { well: false } => Some(ExitCode::FAILURE),
            Fixed::Done { well: true } if options.dry_run => Some(ExitCode::SUCCESS),
            Fixed::Done { well: true } => None,
            Fixed::Declined => Some(ExitCode::from(DECLINED)),
            Fixed::NobodyToAsk => {
                say("phone-opus: there is no terminal to ask at; --yes does what is shown, --dry-run only shows it");
                Some(ExitCode::from(WRONG_USAGE))
            }
        };
        if let Some(code) = stopped {
            if options.json {
                report.print(code == ExitCode::SUCCESS);
            }
            return Ok(code);
        }
    }
    let known = report.look(&prepared);
    if !options.json {
        print(&format!("phone-opus {}", env!("CARGO_PKG_VERSION")));
        show(&report.findings);
    }
    let (mut code, mut jobs) = (None, Vec::new());
    if options.live {
        let before = report.findings.len();
        (code, jobs) = report.ask(&prepared, &known, options)?;
        if !options.json {
            show(&report.findings[before..]);
        }
    }
    let broken = report.findings.iter().any(|finding| finding.good == Some(false));
    let code = code.unwrap_or(if broken { ExitCode::FAILURE } else { ExitCode::SUCCESS });
    if options.json {
        report.print(!broken);
    }
    // Whoever asked knows by this. An answer that could not be printed has no reader.
    if !jobs.is_empty() && !is_lost() {
        mark_read(&prepared, &jobs)?;
    }
    Ok(code)
}

/// Notes that the answers of these jobs were read.
fn mark_read(prepared: &Prepared, jobs: &[JobId]) -> Result<(), SetupError> {
    runtime()?.block_on(async {
        let store = StoreHandle::sqlite(prepared.dir.clone());
        for job in jobs {
            // One that is told of once more costs nobody anything.
            let _ = store.mark_read(*job, UnixMillis::now()).await;
        }
        store.close().await;
    });
    Ok(())
}

/// Everything there is to say.
struct Report {
    findings: Vec<Finding>,
    /// What else a program is told.
    members: Value,
}

impl Report {
    /// Looks at everything that can be looked at without asking a model. Returns what is known of the agents by it.
    fn look(&mut self, prepared: &Prepared) -> Vec<Known> {
        let (agents, known): (Vec<_>, Vec<_>) = agents(prepared).into_iter().unzip();
        let findings = &mut self.findings;
        findings.extend([state(prepared), store(prepared)]);
        findings.extend(agents.into_iter().flatten());
        findings.extend(customs(prepared));
        findings.extend(sites(prepared));
        findings.push(billing(prepared));
        findings.push(limits(prepared));
        findings.push(upgrades(prepared));
        findings.push(daemon(prepared));
        #[cfg(feature = "fleet")]
        findings.extend(fleet::look(prepared));
        #[cfg(feature = "otlp")]
        findings.extend(otlp::look(prepared));
        findings.push(Finding {
            name: "offline".to_owned(),
            good: Some(true),
            text: "the built-in word search needs nothing: consult --agent offline".to_owned(),
            data: Value::Null,
        });
        known.into_iter().flatten().collect()
    }

    /// Has a turn of each agent that is to be asked. An exit code where that did not come to its end, and the jobs that were begun.
    fn ask(
        &mut self,
        prepared: &Prepared,
        known: &[Known],
        options: &DoctorOptions,
    ) -> Result<(Option<ExitCode>, Vec<JobId>), SetupError> {
        let names = asked(prepared, &options.agent);
        let Turns { live, jobs } = live::ask(prepared, known, &names, options.yes, options.json)?;
        let code = match live {
            Live::Asked(verdicts) => {
                let named = |verdict: &Verdict| {
                    options.agent.contains(&verdict.agent) || verdict.agent == prepared.config.agent
                };
                self.findings.extend(verdicts.iter().map(|verdict| Finding {
                    name: "live".to_owned(),
                    // What is wrong with one that nobody asked for is no failure here either.
                    good: if verdict.answered { Some(true) } else { named(verdict).then_some(false) },
                    text: format!("{}: {}", verdict.agent, verdict.text),
                    data: verdict.json(),
                }));
                None
            }
            Live::Declined => Some(ExitCode::from(DECLINED)),
            Live::Interrupted => Some(ExitCode::from(DECLINED)),
            Live::NobodyToAsk => {
                say("phone-opus: there is no terminal to ask at; --yes asks the agents without a question");
                Some(ExitCode::from(WRONG_USAGE))
            }
            Live::Failed(fault) => {
                say(&format!("phone-opus: {fault}"));
                Some(ExitCode::FAILURE)
            }
        };
        Ok((code, jobs))
    }

    /// The report for a program.
    fn print(&self, ok: bool) {
        let checks: Vec<Value> = self
            .findings
            .iter()
            .map(|f| json!({"check": f.name, "ok": f.good, "text": f.text, "data": f.data}))
            .collect();
        let mut report = json!({"ok": ok, "build": env!("CARGO_PKG_VERSION"), "checks": checks});
        if let (Some(report), Some(members)) = (report.as_object_mut(), self.members.as_object()) {
            report.extend(members.clone());
        }
        print_json(report);
    }
}

/// Who is asked: the named ones, else everybody that is installed, and who answers when nobody is named in any case.
fn asked(prepared: &Prepared, named: &[String]) -> Vec<String> {
    let registry = prepared.agents();
    let is_asked = |name: &str| {
        if !named.is_empty() {
            return named.iter().any(|wanted| wanted == name);
        }
        let there = registry.get(name).is_ok_and(|agent| agent.locate(&prepared.environment).is_ok());
        there || name == prepared.config.agent
    };
    registry.names().into_iter().filter(|name| is_asked(name)).map(str::to_owned).collect()
}

/// A line for each; on a terminal with colours, and broken at words.
fn show(findings: &[Finding]) {
    let marked = |finding: &Finding| match finding.good {
        Some(true) => (paint::GOOD, "ok"),
        Some(false) => (paint::BAD, "FAIL"),
        None => (paint::DOUBT, "note"),
    };
    let face = out();
    if !face.terminal {
        return findings.iter().for_each(|finding| {
            print(&format!("{:<4} {:<11} {}", marked(finding).1, finding.name, finding.text));
        });
    }
    let row = |finding: &Finding| {
        let (style, mark) = marked(finding);
        vec![Line::of(style, mark), Line::of(paint::BOLD, &finding.name), Line::of(paint::PLAIN, &finding.text)]
    };
    let rows: Vec<Vec<Line>> = findings.iter().map(row).collect();
    let fits = [CellFit::Whole, CellFit::Whole, CellFit::Wrap(30)];
    print_lines(&laid_out(&fits, rows.iter(), face.width).concat());
}

fn state(prepared: &Prepared) -> Finding {
    let root = prepared.dir.root().display().to_string();
    let made = prepared.dir.create();
    let text = match &made {
        Ok(()) => format!("{root} is there, private and writable"),
        Err(error) => format!("{root}: failed to {}", chain(error)),
    };
    Finding { name: "state".to_owned(), good: Some(made.is_ok()), text, data: json!({"path": root}) }
}

fn store(prepared: &Prepared) -> Finding {
    let counted = runtime().map_err(|error| error.to_string()).and_then(|runtime| {
        runtime.block_on(async {
            let store = StoreHandle::sqlite(prepared.dir.clone());
            let counts = store.counts().await;
            store.close().await;
            counts.map_err(|error| format!("failed to {}", chain(&error)))
        })
    });
    match counted {
        Ok(counts) => {
            let text = format!(
                "{} queued, {} running, {} succeeded, {} failed, {} cancelled, {} interrupted",
                counts.queued, counts.running, counts.succeeded, counts.failed, counts.cancelled, counts.interrupted
            );
            Finding { name: "store".to_owned(), good: Some(true), text, data: json!(counts) }
        }
        Err(text) => Finding { name: "store".to_owned(), good: Some(false), text, data: Value::Null },
    }
}

/// What an agent says of itself.
struct Asked {
    version: Option<String>,
    missing: Vec<&'static str>,
    login: LoginSaid,
}

/// Asks it as a consult in this directory would.
fn ask(prepared: &Prepared, agent: &CliAgent, program: &Path) -> Asked {
    let here = std::env::current_dir().unwrap_or_else(|_| PathBuf::from("/"));
    let (environment, billing) = (&prepared.environment, prepared.config.billing);
    let asked = runtime().ok().map(|runtime| {
        runtime.block_on(async {
            let features = agent.features(program, environment, billing, &here, prepared.dir.root()).await;
            let login = agent.login(program, environment, billing, &here).await;
            Asked { missing: agent.missing(&features), version: features.version, login }
        })
    });
    asked.unwrap_or(Asked { version: None, missing: Vec::new(), login: LoginSaid::Unsaid })
}

/// The agents that are programs of their own. What is wrong with one that nobody asked for by default is no failure.
fn agents(prepared: &Prepared) -> Vec<(Vec<Finding>, Option<Known>)> {
    let config = &prepared.config;
    let (programs, variables) = (config.programs(), &config.agent_env);
    let configured = |agent: CliAgent| {
        let program = programs.get(agent.name()).cloned();
        agent.at(program).with_variables(variables.iter().cloned())
    };
    // One of another machine that has its name stands for it.
    let here = CliAgent::all().filter(|agent| !config.agents.contains_key(agent.name()));
    here.map(configured).map(|agent| one_agent(prepared, &agent)).collect()
}

fn one_agent(prepared: &Prepared, agent: &CliAgent) -> (Vec<Finding>, Option<Known>) {
    let (name, title) = (agent.name(), agent.profile().title());
    let wanted = prepared.config.agent == name;
    let program = match agent.locate(&prepared.environment) {
        Ok(program) => program,
        Err(fault) => {
            let missing = Finding {
                name: name.to_owned(),
                good: wanted.then_some(false),
                text: if wanted { fault.to_string() } else { fault.detail.clone() },
                data: json!({"fault": fault}),
            };
            return (vec![missing], None);
        }
    };
    let billing = prepared.config.billing;
    let Asked { version, missing, login } = ask(prepared, agent, &program);
    let mut findings = vec![Finding {
        name: name.to_owned(),
        good: if version.is_some() { Some(true) } else { wanted.then_some(false) },
        text: format!("{} ({})", program.display(), version.as_deref().unwrap_or("does not answer --version")),
        data: json!({"path": program.display().to_string(), "version": version}),
    }];
    let text = if missing.is_empty() {
        format!("{name}: every option a consult uses is there")
    } else {
        format!("{name}: not in its help: {}; consults do without", missing.join(", "))
    };
    findings.push(Finding {
        name: "flags".to_owned(),
        good: missing.is_empty().then_some(true),
        text,
        data: json!({"agent": name, "missing": missing}),
    });
    let can_pay = agent.can_pay(&prepared.environment);
    let (good, text) = match (login, billing, can_pay) {
        (LoginSaid::Key, Billing::Subscription, _) => (
            wanted.then_some(false),
            "logged in with an API key of its own, but billing is `subscription`: log in with one, or set \
             PHONE_OPUS_BILLING=api_key"
                .to_owned(),
        ),
        (LoginSaid::Plan, Billing::ApiKey, false) => (
            wanted.then_some(false),
            "logged in with a subscription, but billing is `api_key`, and no key is in the environment".to_owned(),
        ),
        (LoginSaid::Plan | LoginSaid::Key | LoginSaid::Somehow, Billing::ApiKey, _) => {
            (Some(true), "it has something to pay with".to_owned())
        }
        (LoginSaid::Plan | LoginSaid::Key | LoginSaid::Somehow, ..) => (Some(true), "logged in".to_owned()),
        (LoginSaid::No, Billing::ApiKey, _) => (None, "not logged in; billing is by API key".to_owned()),
        (LoginSaid::No, ..) => (wanted.then_some(false), format!("not logged in: run `{name}` once and log in")),
        (LoginSaid::Unsaid, ..) => (None, format!("{title} does not say whether it is logged in")),
    };
    let logged_in = match login {
        LoginSaid::Unsaid => None,
        said => Some(said != LoginSaid::No),
    };
    let by = match login {
        LoginSaid::Plan => Some("plan"),
        LoginSaid::Key => Some("api_key"),
        LoginSaid::Somehow | LoginSaid::No | LoginSaid::Unsaid => None,
    };
    findings.push(Finding {
        name: "login".to_owned(),
        good,
        text: format!("{name}: {text}"),
        data: json!({"agent": name, "logged_in": logged_in, "by": by}),
    });
    (findings, Some(Known { agent: name.to_owned(), version, login }))
}

/// The commands of the user's own. What one can do, and whether it is logged in, nobody knows.
fn customs(prepared: &Prepared) -> Vec<Finding> {
    let registry = prepared.agents();
    let look = |name: &String| {
        let found = registry.get(name).and_then(|agent| agent.locate(&prepared.environment));
        let wanted = prepared.config.agent == *name;
        let (good, text) = match &found {
            Ok(program) => (Some(true), format!("{name}: {}; what keeps it to reading is unproven", program.display())),
            Err(fault) => (wanted.then_some(false), format!("{name}: {fault}")),
        };
        Finding { name: "command".to_owned(), good, text, data: json!({"agent": name, "found": found.is_ok()}) }
    };
    prepared.config.customs.keys().map(look).collect()
}

/// The machines of agents that do not run here, each reached as a consult would.
fn sites(prepared: &Prepared) -> Vec<Finding> {
    let look = |name: &String, site: &AgentSite| {
        let seen = runtime().map_err(|error| error.to_string()).and_then(|runtime| {
            let seen = runtime.block_on(try_site(site)).map_err(|fault| match &fault.hint {
                Some(hint) => format!("{} {hint}", fault.detail),
                None => fault.detail.clone(),
            });
            // A program that was started to reach it is ended with the runtime.
            runtime.shutdown_timeout(LET_GO);
            seen
        });
        let wanted = prepared.config.agent == *name;
        let (good, text) = match seen {
            Ok(seen) => (Some(true), format!("{name}: {} on {}; {seen}", site.agent, site.target)),
            Err(wrong) => (wanted.then_some(false), format!("{name}: {wrong}")),
        };
        let data = json!({"agent": name, "is": site.agent, "exec": site.target, "workspaces": site.workspaces});
        Finding { name: "exec".to_owned(), good, text, data }
    };
    prepared.config.agents.iter().map(|(name, site)| look(name, site)).collect()
}

fn billing(prepared: &Prepared) -> Finding {
    let has_key: Vec<String> = CliAgent::all()
        .filter(|agent| agent.can_pay(&prepared.environment))
        .map(|agent| agent.name().to_owned())
        .collect();
    let (key, whose) = (!has_key.is_empty(), has_key.join(", "));
    let billing = prepared.config.billing;
    let (good, text) = match (billing, key) {
        (Billing::ApiKey, true) => (Some(true), format!("api_key, and one is in the environment ({whose})")),
        (Billing::ApiKey, false) => (None, "api_key, but no key of an agent is in the environment".to_owned()),
        (_, true) => (
            None,
            format!(
                "subscription; what is in the environment to pay with ({whose}) is withheld (PHONE_OPUS_BILLING=api_key to use it)"
            ),
        ),
        (_, false) => (Some(true), "subscription".to_owned()),
    };
    let data = json!({"billing": billing, "key_present": key, "key_of": has_key});
    Finding { name: "billing".to_owned(), good, text, data }
}

fn limits(prepared: &Prepared) -> Finding {
    let c = &prepared.config;
    let text = format!(
        "{} agents at once, {} jobs waiting, {} s a run, {} s of silence",
        c.max_running,
        c.max_queued,
        c.timeout.as_secs(),
        c.stall.as_secs()
    );
    Finding {
        name: "limits".to_owned(),
        good: Some(true),
        text,
        data: json!({"max_running": c.max_running, "max_queued": c.max_queued,
                     "timeout_s": c.timeout.as_secs(), "stall_s": c.stall.as_secs()}),
    }
}

/// Which daemon serves, and whether a bridge would reach it. Without one consults work as well, so nothing is missing.
fn daemon(prepared: &Prepared) -> Finding {
    let asked = |stream| ask_daemon(&stream, r#"{"type":"hello"}"#, ANSWER);
    let (good, text, build) = match look(&prepared.dir, None) {
        DaemonLook::There(stream) => match asked(stream) {
            Ok(DaemonAnswer::Hello { build, pid, .. }) => {
                let ours = env!("CARGO_PKG_VERSION");
                let other = if build == ours { "" } else { "; this program is another version" };
                (
                    Some(true),
                    format!("phone-opus {build} serves (process {pid}), and a bridge reaches it{other}"),
                    Some(build),
                )
            }
            Ok(_) => (None, "one is ending; a bridge starts the next one".to_owned(), None),
            Err(error) => (
                None,
                format!("one lives and does not answer, so bridges serve by themselves: failed to {}", chain(&error)),
                None,
            ),
        },
        DaemonLook::Absent => match DaemonLock::is_held(&prepared.dir) {
            Ok(true) => (None, "one lives and its socket is gone; it makes it again within 30 s".to_owned(), None),
            _ => (None, "none runs; `mcp connect` starts one when it needs it".to_owned(), None),
        },
        DaemonLook::Denied(path) => {
            let why = "this process may not connect there, and a bridge in its place would serve by itself";
            (None, format!("{}: {why}", path.display()), None)
        }
        DaemonLook::Failed(path, errno) => {
            (None, format!("{}: failed to connect: {errno}; bridges serve by themselves", path.display()), None)
        }
    };
    let data = json!({"reached": good == Some(true), "build": build});
    Finding { name: "daemon".to_owned(), good, text, data }
}

/// Whether a server that is started as this command was would find its next version.
fn upgrades(prepared: &Prepared) -> Finding {
    let launch = rollout().map(|setup| setup.launch);
    let path = launch.as_ref().map(|launch| launch.path.display().to_string());
    let mode = prepared.config.rollout;
    let (good, text) = match (mode, &launch) {
        (RolloutMode::Off, _) => (None, "off; a new version serves from a client's next start on".to_owned()),
        (RolloutMode::OnRequest, _) => (None, "on request; SIGUSR2 asks a server to replace itself".to_owned()),
        (RolloutMode::Auto, Some(launch)) if launch.stable => {
            (Some(true), format!("a new version at {} is checked and adopted", launch.path.display()))
        }
        _ => {
            let what = path.as_deref().unwrap_or("the launch path");
            (None, format!("{what} is no place where versions are installed; SIGUSR2 asks a server to replace itself"))
        }
    };
    let stable = launch.is_some_and(|launch| launch.stable);
    Finding {
        name: "upgrades".to_owned(),
        good,
        text,
        data: json!({"rollout": mode, "launch_path": path, "stable": stable}),
    }
}
