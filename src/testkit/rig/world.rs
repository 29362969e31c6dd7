//! What stands in a rig's world: its environment, its files, the prompts that are asked, the signs that are given.
//!
//! Owns: what every process is started with from here on. May not know: processes.

use std::path::{Path, PathBuf};

use super::{FAULTS, Rig};
use crate::agents::Environment;
use crate::base::state_dir::StateDir;
use crate::testkit::scripted_agent::{self, Script, Step};
use crate::testkit::wait::Waiting;

impl Rig {
    /// Sets one variable for every process started from here on.
    pub fn set(&mut self, name: &str, value: impl Into<String>) {
        let value = value.into();
        let tears = |rule: &str| rule.trim().starts_with("telemetry.write") && rule.contains("=torn");
        self.tears_telemetry |= name == FAULTS && value.split(';').any(tears);
        self.env.insert(name.to_owned(), value);
    }

    /// Writes the user's own configuration file.
    ///
    /// # Panics
    ///
    /// When it cannot be written.
    pub fn configure(&mut self, text: &str) {
        for file in self.configuration() {
            std::fs::write(file, text).expect("a file");
        }
    }

    /// Where the user's own configuration file lies for Linux and for macOS, in directories that are there.
    ///
    /// # Panics
    ///
    /// When they cannot be made.
    pub fn configuration(&mut self) -> [PathBuf; 2] {
        let linux = self.at_home(".config/phone_opus");
        [linux, self.at_home("Library/Application Support/phone_opus")].map(|dir| dir.join("config.toml"))
    }

    /// A directory of the home that is the case's own; whatever else appears there breaks a law.
    ///
    /// # Panics
    ///
    /// When it cannot be made.
    pub fn at_home(&mut self, name: &str) -> PathBuf {
        let dir = self.path("home").join(name);
        std::fs::create_dir_all(&dir).expect("a directory");
        self.own_at_home.extend(name.split('/').next().map(str::to_owned));
        dir
    }

    /// The user's configuration file, for every process started from here on; the directory it lies in is made, the file is
    /// not. Beside the home, in which nothing may be written. Where the platform's rule is `XDG_CONFIG_HOME`.
    ///
    /// # Panics
    ///
    /// When the directory cannot be made.
    #[must_use]
    pub fn user_configuration(&mut self) -> PathBuf {
        let dir = self.path("config");
        std::fs::create_dir_all(dir.join("phone_opus")).expect("a directory");
        self.set("XDG_CONFIG_HOME", dir.display().to_string());
        dir.join("phone_opus/config.toml")
    }

    /// Takes one variable from every process started from here on.
    pub fn unset(&mut self, name: &str) {
        self.env.remove(name);
    }

    /// A path in the scratch directory.
    #[must_use]
    pub fn path(&self, name: &str) -> PathBuf {
        self.scratch.path().join(name)
    }

    /// The program under test.
    #[must_use]
    pub fn program(&self) -> &Path {
        &self.program
    }

    /// The program that plays the agent.
    #[must_use]
    pub fn player(&self) -> PathBuf {
        self.path(scripted_agent::PROGRAM_NAME)
    }

    /// The directory everything is asked about.
    #[must_use]
    pub fn work(&self) -> PathBuf {
        self.path("work")
    }

    /// Where jobs are kept.
    #[must_use]
    pub fn state_dir(&self) -> StateDir {
        StateDir::at(self.path("state"))
    }

    /// The environment as an embedding program passes it on.
    #[must_use]
    pub fn environment(&self) -> Environment {
        self.env.iter().collect()
    }

    /// A text that stands in every prompt of this world and nowhere else.
    #[must_use]
    pub fn canary(&self) -> &str {
        &self.canary
    }

    /// A prompt that has the agent follow this script and log its runs.
    #[must_use]
    pub fn prompt(&self, script: Script) -> String {
        let script = Script { log: script.log.or_else(|| Some(self.path("agent.log"))), ..script };
        format!("{} {}", self.canary, script.in_prompt())
    }

    /// A prompt the agent answers with this.
    #[must_use]
    pub fn answering(&self, answer: &str) -> String {
        self.prompt(Script { answer: Some(answer.to_owned()), ..Script::default() })
    }

    /// A prompt whose agent takes these steps and answers `done`.
    #[must_use]
    pub fn doing(&self, steps: Vec<Step>) -> String {
        self.prompt(Script { steps, answer: Some("done".to_owned()), ..Script::default() })
    }

    /// A prompt whose agent gives the sign `begun`, then hangs.
    #[must_use]
    pub fn hanging(&self, begun: &str) -> String {
        self.doing(vec![Step::Touch(self.sign(begun)), Step::Hang])
    }

    /// A prompt whose agent gives the sign `begun`, waits for the sign `go`, and answers `done`.
    #[must_use]
    pub fn waiting(&self, begun: &str, go: &str) -> String {
        self.doing(vec![Step::Touch(self.sign(begun)), Step::WaitForFile(self.sign(go))])
    }

    /// A file by which agents and cases wait for each other.
    #[must_use]
    pub fn sign(&self, name: &str) -> PathBuf {
        self.path("signs").join(name)
    }

    /// Gives a sign.
    ///
    /// # Panics
    ///
    /// When it cannot be written.
    pub fn give_sign(&self, name: &str) {
        std::fs::write(self.sign(name), "").expect("a sign");
    }

    /// Waits for a sign.
    ///
    /// # Panics
    ///
    /// When it is not given.
    pub async fn wait_for_sign(&self, name: &str) {
        let waiting = Waiting::until(format!("the sign {name} is given"), self.patience);
        while !self.sign(name).exists() {
            waiting.again(|| format!("{:?}", self.processes())).await;
        }
    }

    /// Has consults answered by an agent whose help does not name this option, as an older version's.
    ///
    /// # Panics
    ///
    /// When it cannot be written.
    pub fn use_agent_without(&mut self, option: &str) {
        let agent = self.path(scripted_agent::PROGRAM_NAME);
        let older = self.path("older-agent");
        // The shell that writes it is another process: a file this one held open for writing could not be run.
        let body = format!(
            "#!/bin/sh\ncase \"$1\" in --help) '{0}' --help | grep -v -e '{option}' ;; *) exec '{0}' \"$@\" ;; esac\n",
            agent.display()
        );
        let written = std::process::Command::new("/bin/sh")
            .args(["-c", "printf %s \"$1\" > \"$0\" && chmod 700 \"$0\""])
            .arg(&older)
            .arg(&body)
            .status();
        assert!(written.expect("a shell").success(), "the agent is written");
        self.set("PHONE_OPUS_CLAUDE_BIN", older.display().to_string());
    }
}
