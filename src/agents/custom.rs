//! Agents of the user's own: any command that reads a question and writes an answer.
//!
//! Owns: what a user says of such a command ([`CustomAgent`]), and an agent made of it. May not know: what a configuration looks
//! like, what the command does. Nobody here can know what keeps it to reading, so it is said to be unproven: also of one that speaks
//! the Agent Client Protocol, whose permissions are ours to give where it asks for them.
//!
//! Invariants: (1) the command is a list of words and never a shell's line; (2) of the environment it gets what every agent gets and
//! the names its user gave it, those to pay with only when that was chosen.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use futures_util::future::{BoxFuture, FutureExt as _};
use serde::{Deserialize, Serialize};

use super::cli::PROMPT_PREFIX;
use super::environment::{self, Environment};
use super::{
    Agent, AgentCommand, AgentProfile, AgentRegistry, KNOWN, OutputParser, Payment, PlainText, ResumedId, RunRequest,
    acp, check_prompt, programs,
};
use crate::base::fault::{Fault, FaultCode};
use crate::jobs::{Billing, ConsultRequest};

/// What a user says of a command that answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct CustomAgent {
    /// The program, an absolute path or a name, and its arguments. Never empty.
    pub command: Vec<String>,
    /// How it writes its answer: [`TEXT`](Self::TEXT), as the agent of this name does, or [`ACP`](Self::ACP).
    pub output: String,
    /// Names of variables it is handed besides those that every agent is.
    pub env: Vec<String>,
    /// Names of variables it pays with, which it is handed when `billing` is `api_key`.
    pub pay_env: Vec<String>,
    /// What keeps it to reading, by its user's word.
    pub reads: Option<String>,
}

/// The agents of the user's own, by name.
pub type CustomAgents = BTreeMap<String, CustomAgent>;

impl CustomAgent {
    /// Everything it writes is its answer, if it ends well.
    pub const TEXT: &'static str = "text";

    /// It speaks the Agent Client Protocol over its standard input and output: it is talked to.
    pub const ACP: &'static str = "acp";

    /// A command whose output is its answer, and that is handed what every agent is.
    #[must_use]
    pub fn new<W: Into<String>>(command: impl IntoIterator<Item = W>) -> Self {
        Self {
            command: command.into_iter().map(Into::into).collect(),
            output: Self::TEXT.to_owned(),
            env: Vec::new(),
            pay_env: Vec::new(),
            reads: None,
        }
    }

    /// The ways to write an answer that are known.
    #[doc(hidden)]
    pub fn outputs() -> impl Iterator<Item = &'static str> {
        [Self::TEXT, Self::ACP].into_iter().chain(KNOWN.iter().map(|sheet| sheet.name))
    }

    fn is_talked_to(&self) -> bool {
        self.output == Self::ACP
    }

    fn parser(&self) -> Box<dyn OutputParser> {
        match KNOWN.iter().find(|sheet| sheet.name == self.output) {
            Some(sheet) => (sheet.parser)(),
            // Whoever talks to it has the dialogue.
            None if self.is_talked_to() => Box::new(acp::Listener::default()),
            None => Box::new(PlainText::new()),
        }
    }

    /// The names whose values reach it.
    pub(crate) fn names(&self, billing: Billing) -> impl Iterator<Item = &String> {
        let paid = self.pay_env.iter().filter(move |_| billing == Billing::ApiKey);
        self.env.iter().chain(paid)
    }
}

impl AgentRegistry {
    /// The same agents, with those of the user's own.
    #[must_use]
    #[doc(hidden)]
    pub fn with_customs(&self, customs: &CustomAgents) -> Self {
        let made = |(name, told): (&String, &CustomAgent)| Custom {
            name: name.clone(),
            told: Arc::new(told.clone()),
            variables: Vec::new(),
        };
        customs.iter().map(made).fold(self.clone(), |all, custom| all.with(Arc::new(custom)))
    }
}

const INSTALL: &str = "See `command` in the agent's table of your configuration.";

const PROFILE: AgentProfile = AgentProfile::new("The configured agent")
    .install_hint(INSTALL)
    .login_hint("Log in with its own program, or name what it logs in by as `env` or `pay_env` in its table.")
    .names_no_payer();

/// Of one that is talked to.
const TALKED_TO: AgentProfile = PROFILE
    .kept_to_reading_by("unproven: it is allowed to read the directory and nothing else, where it asks for permission; what it does without asking nobody here can know")
    .keeps_sessions_named("");

/// An agent made of a user's command.
struct Custom {
    name: String,
    told: Arc<CustomAgent>,
    /// The names of variables that are handed to every agent besides the usual ones.
    variables: Vec<String>,
}

impl Custom {
    fn granted(&self, env: &Environment, billing: Billing) -> environment::Granted {
        environment::for_custom(env, billing, &self.told.env, &self.told.pay_env, &self.variables)
    }
}

impl Agent for Custom {
    fn name(&self) -> &str {
        &self.name
    }

    fn profile(&self) -> AgentProfile {
        match self.told.output.as_str() {
            CustomAgent::TEXT => PROFILE.answers_by_ending_well(),
            CustomAgent::ACP => TALKED_TO,
            _ => PROFILE,
        }
    }

    fn locate(&self, env: &Environment) -> Result<PathBuf, Fault> {
        let program = self.told.command.first().map(String::as_str).unwrap_or_default();
        programs::named(Path::new(program), "`command`", env, INSTALL)
    }

    fn prepare<'a>(&'a self, run: &'a RunRequest<'a>, _: &'a Path) -> BoxFuture<'a, Result<AgentCommand, Fault>> {
        async move {
            check(run.request, &self.told)?;
            let program = self.locate(run.environment)?;
            let billing = run.request.billing;
            let mut granted = self.granted(run.environment, billing);
            granted.set("NO_COLOR", "1");
            if let Some(path) = programs::path_for(&program, run.environment.get("PATH")) {
                granted.set("PATH", path);
            }
            granted.set_run(run);
            Ok(AgentCommand {
                program,
                args: self.told.command.iter().skip(1).map(Into::into).collect(),
                stdin: Bytes::from([PROMPT_PREFIX, &run.request.prompt].concat()),
                prompt_prefix_injected: true,
                key_withheld: granted.key_withheld,
                payment: Payment { billing, credential: granted.credential },
                env: granted.env.into_iter().collect(),
                resumed_id: ResumedId::Same,
                new_session: None,
            })
        }
        .boxed()
    }

    fn parser(&self) -> Box<dyn OutputParser> {
        self.told.parser()
    }

    fn dialogue(&self, run: &RunRequest<'_>) -> Option<Box<dyn OutputParser>> {
        let prompt = || [PROMPT_PREFIX, &run.request.prompt].concat();
        self.told.is_talked_to().then(|| acp::conversation(&run.request.cwd, prompt(), run.request.session_id))
    }

    fn needs(&self, environment: &Environment, billing: Billing) -> Environment {
        self.granted(environment, billing).env.into_iter().collect()
    }

    fn under(&self, _: Option<&Path>, variables: &[String]) -> Option<Arc<dyn Agent>> {
        let told = Arc::clone(&self.told);
        Some(Arc::new(Self { name: self.name.clone(), told, variables: variables.to_vec() }))
    }
}

/// Refuses what no command can be told: nobody knows its words for it.
fn check(request: &ConsultRequest, told: &CustomAgent) -> Result<(), Fault> {
    check_prompt(&request.prompt)?;
    let given = [
        ("session_id", request.session_id.is_some() && !told.is_talked_to()),
        ("model", request.model.is_some()),
        ("effort", request.effort.is_some()),
        ("max_turns", request.max_turns.is_some()),
        ("max_budget_usd", request.max_budget_usd.is_some()),
    ];
    if told.is_talked_to() && request.cwd.to_str().is_none() {
        return Err(Fault::new(FaultCode::InvalidInput, "`cwd`: is no text, which the agent could be told."));
    }
    match given.iter().find(|(_, given)| *given) {
        None => Ok(()),
        Some((name, _)) => {
            let detail = format!("`{name}`: an agent that is a configured command takes none.");
            Err(Fault::new(FaultCode::InvalidInput, detail)
                .hint("Leave it out, or write it into the command's own words."))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agents::tests_support::{request, script};
    use crate::agents::{Credential, OutputReader, RunEnd, RunSummary};
    use crate::base::ids::{AgentSessionId, ChainId, RunToken};
    use crate::jobs::{JobState, RunExit};

    fn told(output: &str, program: &Path) -> CustomAgent {
        CustomAgent {
            command: vec![program.display().to_string(), "--brief".to_owned(), "$(touch x); y".to_owned()],
            output: output.to_owned(),
            env: vec!["MINE".to_owned()],
            pay_env: vec!["MY_KEY".to_owned()],
            reads: None,
        }
    }

    fn agent(told: CustomAgent) -> Arc<dyn Agent> {
        let customs = [("mine".to_owned(), told)].into();
        let registry = AgentRegistry::new().with_customs(&customs);
        registry
            .under(&Default::default(), &["OF_ALL".to_owned(), "OPENAI_API_KEY".to_owned()])
            .get("mine")
            .expect("known")
    }

    #[tokio::test]
    async fn a_command_is_its_words_and_gets_what_it_was_given() {
        let dir = tempfile::tempdir().expect("scratch");
        let program = script(dir.path(), "oracle", "exit 0");
        let environment: Environment = [
            ("HOME", "/home/one"),
            ("MINE", "1"),
            ("MY_KEY", "k"),
            ("OF_ALL", "2"),
            ("OTHER", "3"),
            ("OPENAI_API_KEY", "k"),
            ("ANTHROPIC_API_KEY", "k"),
            ("CLAUDE_CODE_OAUTH_TOKEN", "t"),
        ]
        .into_iter()
        .collect();
        let agent = agent(told(CustomAgent::TEXT, &program));
        for (billing, pays, withheld) in [(Billing::Subscription, false, true), (Billing::ApiKey, true, false)] {
            let request = ConsultRequest { billing, ..request("/x CANARY") };
            let (token, chain) = (RunToken::random(), ChainId::random());
            let run = RunRequest {
                request: &request,
                token,
                chain,
                depth: 0,
                environment: &environment,
                traceparent: None,
                there: None,
            };
            let command = agent.prepare(&run, dir.path()).await.expect("a command");
            assert_eq!(command.args, ["--brief", "$(touch x); y"]);
            assert_eq!(&command.stdin[..], format!("{PROMPT_PREFIX}/x CANARY").as_bytes());
            let has = |name: &str| command.env.iter().any(|(known, _)| known == name);
            assert!(has("HOME") && has("MINE") && has("OF_ALL") && has("PHONE_OPUS_RUN_TOKEN"));
            assert_eq!((has("MY_KEY"), command.key_withheld), (pays, withheld));
            assert_eq!(command.payment.credential == Credential::Unnamed, pays);
            for name in ["OTHER", "OPENAI_API_KEY", "ANTHROPIC_API_KEY", "CLAUDE_CODE_OAUTH_TOKEN"] {
                assert!(!has(name), "{name}");
            }
            let needed = agent.needs(&environment, billing);
            assert_eq!((needed.get("MY_KEY").is_some(), needed.get("OTHER").is_some()), (pays, false));
        }
    }

    #[test]
    fn what_a_command_cannot_be_told_is_refused() {
        for wrong in [
            ConsultRequest { session_id: Some(AgentSessionId::random()), ..request("p") },
            ConsultRequest { model: Some("m".into()), ..request("p") },
            ConsultRequest { effort: Some("high".into()), ..request("p") },
            ConsultRequest { max_turns: Some(1), ..request("p") },
            ConsultRequest { max_budget_usd: Some(1.0), ..request("p") },
            request(" "),
        ] {
            let resumes = wrong.session_id.is_some();
            for output in [CustomAgent::TEXT, CustomAgent::ACP] {
                let seen = check(&wrong, &told(output, Path::new("/bin/x"))).map_err(|fault| fault.code);
                let good = resumes && output == CustomAgent::ACP;
                assert_eq!(seen, if good { Ok(()) } else { Err(FaultCode::InvalidInput) }, "{output}");
            }
        }
        assert_eq!(check(&request("p"), &told(CustomAgent::TEXT, Path::new("/bin/x"))), Ok(()));
    }

    #[test]
    fn its_output_is_text_or_a_known_agents_stream() {
        let codex = "{\"type\":\"thread.started\",\"thread_id\":\"t\"}\n\
                     {\"type\":\"item.completed\",\"item\":{\"type\":\"agent_message\",\"text\":\"42\"}}\n\
                     {\"type\":\"turn.completed\",\"usage\":{}}\n";
        let claude = "{\"type\":\"result\",\"result\":\"42\"}\n";
        let gemini = "{\"type\":\"message\",\"role\":\"assistant\",\"content\":\"42\"}\n{\"type\":\"result\",\"status\":\"success\"}\n";
        let outputs: Vec<&str> = CustomAgent::outputs().collect();
        for (output, written, answers) in [
            ("text", "42\n", true),
            ("codex", codex, true),
            ("claude", claude, true),
            ("gemini", gemini, true),
            ("codex", "42\n", false),
            ("claude", codex, false),
        ] {
            assert!(outputs.contains(&output));
            let agent = agent(told(output, Path::new("/bin/x")));
            let (mut reader, mut events) = (OutputReader::new(agent.parser()), Vec::new());
            reader.push(written.as_bytes(), &mut events);
            reader.finish(&mut events);
            let mut summary = RunSummary::new();
            events.iter().for_each(|event| summary.fold(event));
            let exit = Some(RunExit { code: 0, signal: None, reaped: 0 });
            let verdict = agent.classify(RunEnd { summary, exit, ..RunEnd::default() });
            let came = (verdict.state == JobState::Succeeded, verdict.outcome.response.as_deref() == Some("42"));
            assert_eq!(came, (answers, answers), "{output}: {:?}", verdict.outcome);
            assert_eq!(verdict.outcome.billing.as_deref(), Some("unproven"));
            assert_eq!(verdict.outcome.resumable, Some(false));
        }
    }
}
