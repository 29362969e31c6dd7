//! The environment an agent gets.
//!
//! Owns: the list of names that may pass from the host to every agent, and how an agent's own list ([`Passes`]) is applied. May
//! not know where the snapshot came from (only the binary captures it), which agents there are, or what one does with it.
//!
//! Invariants: (1) a name that is neither listed nor chosen by the user (`agent_env`) does not pass; (2) what can spend money
//! by the token passes only when that was chosen, to the agent it is for, and never as one of the user's names; (3) values are
//! never shown; (4) a path that is not absolute does not pass: it would mean a place in the directory of each consult. What is a
//! path is said beside each listed name ([`Value`]); of names that only their beginning or the user lists, it is seen by name and
//! value.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fmt;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::sync::Arc;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::{Credential, KNOWN, RunRequest, programs};
use crate::base::base64::Base64;
use crate::base::trace::TRACEPARENT_VARIABLE;
use crate::jobs::Billing;

/// A snapshot of environment variables, sorted by name. Cheap to clone: whatever a host starts and whoever asks for its own
/// context has the same one.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Environment(Arc<BTreeMap<OsString, OsString>>);

impl Environment {
    /// The environment of this process. For the binary only; the library is given a snapshot.
    #[must_use]
    pub fn capture() -> Self {
        std::env::vars_os().collect()
    }

    /// The value of a variable; an empty one counts as absent, as it does for the agents.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&OsStr> {
        self.0.get(OsStr::new(name)).map(OsString::as_os_str).filter(|value| !value.is_empty())
    }

    /// The same environment with one variable more or changed.
    #[must_use]
    pub fn with(mut self, name: impl Into<OsString>, value: impl Into<OsString>) -> Self {
        Arc::make_mut(&mut self.0).insert(name.into(), value.into());
        self
    }

    /// The same environment without the variables of such a name.
    #[must_use]
    pub fn without(mut self, is_left_out: impl Fn(&OsStr) -> bool) -> Self {
        Arc::make_mut(&mut self.0).retain(|name, _| !is_left_out(name));
        self
    }

    /// A digest of the names and values that may reach an agent, and of the settings it is run under, keyed by a secret of the
    /// state directory; `also` are names that reach an agent of the user's own. It can be compared and says nothing else. Another build of the program may make another one, which is a difference that costs a waiting
    /// job whose host is gone its adoption. A key that is withheld is no part of it: a caller does not send it to begin with.
    #[must_use]
    #[doc(hidden)]
    pub fn digest<'a>(
        &self,
        secret: &str,
        billing: Billing,
        chosen: &[String],
        also: impl IntoIterator<Item = &'a String>,
        settings: &impl Hash,
    ) -> String {
        let mut granted: BTreeMap<OsString, OsString> =
            KNOWN.iter().flat_map(|known| for_agent(known.passes, self, billing, chosen).env).collect();
        let also = also.into_iter().filter_map(|name| Some((name.into(), self.get(name)?.to_owned())));
        granted.extend(also);
        let half = |number: u8| {
            let mut hash = DefaultHasher::new();
            (secret, number).hash(&mut hash);
            granted.hash(&mut hash);
            settings.hash(&mut hash);
            (number, secret).hash(&mut hash);
            hash.finish()
        };
        format!("{:016x}{:016x}", half(0), half(1))
    }

    fn into_variables(self) -> BTreeMap<OsString, OsString> {
        Arc::unwrap_or_clone(self.0)
    }

    /// All variables, sorted by name.
    pub fn iter(&self) -> impl Iterator<Item = (&OsStr, &OsStr)> {
        self.0.iter().map(|(name, value)| (name.as_os_str(), value.as_os_str()))
    }
}

impl<N: Into<OsString>, V: Into<OsString>> FromIterator<(N, V)> for Environment {
    fn from_iter<I: IntoIterator<Item = (N, V)>>(variables: I) -> Self {
        Self(Arc::new(variables.into_iter().map(|(name, value)| (name.into(), value.into())).collect()))
    }
}

/// Names only: values are secrets.
impl fmt::Debug for Environment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}

/// An environment on its way to another process of ours, or to this program's next image; in memory all the way. Names and
/// values are bytes, which need not be text.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PassedEnvironment(Vec<(Base64, Base64)>);

impl From<&Environment> for PassedEnvironment {
    fn from(environment: &Environment) -> Self {
        let bytes = |text: &OsStr| Base64(Bytes::copy_from_slice(text.as_bytes()));
        Self(environment.iter().map(|(name, value)| (bytes(name), bytes(value))).collect())
    }
}

impl From<PassedEnvironment> for Environment {
    fn from(passed: PassedEnvironment) -> Self {
        let text = |Base64(bytes): Base64| OsString::from_vec(bytes.into());
        passed.0.into_iter().map(|(name, value)| (text(name), text(value))).collect()
    }
}

/// How much it is: values are secrets.
impl fmt::Debug for PassedEnvironment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PassedEnvironment({} variables)", self.0.len())
    }
}

pub use crate::base::ids::RUN_TOKEN_VARIABLE as RUN_TOKEN;
/// The chain of nested consults.
pub const CHAIN: &str = "PHONE_OPUS_CHAIN";
/// How deep in the chain whatever reads it is.
pub const DEPTH: &str = "PHONE_OPUS_DEPTH";

/// What the value of a variable is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Value {
    /// No place in a file system.
    Text,
    /// A file or directory.
    Path,
    /// Several, with colons between them.
    Paths,
    /// Whatever its name and the value itself say.
    Unlisted,
}

use Value::{Path, Paths, Text, Unlisted};

/// What passes to every agent.
const ALLOWLIST: &[(&str, Value)] = &[
    ("HOME", Path),
    ("PATH", Paths),
    ("USER", Text),
    ("LOGNAME", Text),
    ("SHELL", Path),
    ("LANG", Text),
    ("LANGUAGE", Text),
    // A name below the system's own directory of time zones.
    ("TZ", Text),
    ("TMPDIR", Path),
    // Both spellings are in use, and programs differ in which they read.
    ("HTTP_PROXY", Text),
    ("HTTPS_PROXY", Text),
    ("NO_PROXY", Text),
    ("ALL_PROXY", Text),
    ("http_proxy", Text),
    ("https_proxy", Text),
    ("no_proxy", Text),
    ("all_proxy", Text),
    ("SSL_CERT_FILE", Path),
    ("SSL_CERT_DIR", Paths),
    ("NIX_SSL_CERT_FILE", Path),
    ("NODE_EXTRA_CA_CERTS", Path),
    ("XDG_CONFIG_HOME", Path),
    ("XDG_DATA_HOME", Path),
    ("XDG_STATE_HOME", Path),
    ("XDG_CACHE_HOME", Path),
    ("XDG_BIN_HOME", Path),
    ("XDG_RUNTIME_DIR", Path),
    ("XDG_CONFIG_DIRS", Paths),
    ("XDG_DATA_DIRS", Paths),
];

/// What passes to every agent by the beginning of its name.
const ALLOWED_PREFIXES: &[(&str, Value)] = &[("LC_", Text), ("XDG_", Unlisted)];

/// What shims of version managers need to find the version they stand for, by the beginning of its name.
const SHIM_PREFIXES: &[(&str, Value)] = &[
    ("MISE_", Unlisted),
    ("ASDF_", Unlisted),
    ("VOLTA_", Unlisted),
    ("NODENV_", Unlisted),
    ("NVM_", Unlisted),
    ("FNM_", Unlisted),
];

/// Those of them that are known to be places, and those that are looked for by name in every directory, as `.tool-versions` is.
const SHIM_VALUES: &[(&str, Value)] = &[
    ("MISE_DATA_DIR", Path),
    ("MISE_CACHE_DIR", Path),
    ("MISE_CONFIG_DIR", Path),
    ("MISE_STATE_DIR", Path),
    ("MISE_TMP_DIR", Path),
    ("MISE_SHIMS_DIR", Path),
    ("MISE_SYSTEM_CONFIG_DIR", Path),
    ("MISE_GLOBAL_CONFIG_FILE", Path),
    ("MISE_GLOBAL_CONFIG_ROOT", Path),
    ("MISE_SHARED_INSTALL_DIRS", Paths),
    ("MISE_TRUSTED_CONFIG_PATHS", Paths),
    ("MISE_IGNORED_CONFIG_PATHS", Paths),
    ("MISE_CEILING_PATHS", Paths),
    ("MISE_DEFAULT_TOOL_VERSIONS_FILENAME", Text),
    ("ASDF_DIR", Path),
    ("ASDF_DATA_DIR", Path),
    ("ASDF_CONFIG_FILE", Path),
    ("ASDF_DEFAULT_TOOL_VERSIONS_FILENAME", Text),
    ("VOLTA_HOME", Path),
    ("NODENV_ROOT", Path),
    ("NODENV_DIR", Path),
    ("NODENV_HOOK_PATH", Paths),
    ("NVM_DIR", Path),
    ("NVM_BIN", Path),
    ("NVM_INC", Path),
    ("FNM_DIR", Path),
    ("FNM_MULTISHELL_PATH", Path),
];

/// How the names of variables end that hold lists of paths.
const LIST_ENDINGS: &[&str] = &["PATH", "PATHS", "_DIRS"];

/// How the names of variables end that hold one path.
const PATH_ENDINGS: &[&str] =
    &["_HOME", "_DIR", "_ROOT", "_BIN", "_FILE", "_TMPDIR", "_CA_CERTS", "_CLIENT_CERT", "_CLIENT_KEY"];

/// Words in a shim's variable that make it a secret: managers keep tokens of the sites they download from there.
const SECRET_WORDS: &[&str] = &["TOKEN", "KEY", "SECRET", "PASSWORD", "CREDENTIAL", "AUTH"];

/// What any program may need to start at all, for runners: they are the host's own program, whose variables agents do not
/// get.
const LOADER: &[&str] = &[
    "LD_LIBRARY_PATH",
    "LD_PRELOAD",
    "DYLD_LIBRARY_PATH",
    "DYLD_FALLBACK_LIBRARY_PATH",
    "DYLD_INSERT_LIBRARIES",
    "GLIBC_TUNABLES",
    "LLVM_PROFILE_FILE",
    "RUST_BACKTRACE",
];

/// Says to a runner that a way to pay is in its host's environment and was withheld from it: whose, with commas between, or
/// [`ANYBODYS`].
const WITHHELD: &str = "PHONE_OPUS_KEY_WITHHELD";

/// It is not known whose.
const ANYBODYS: &str = "1";

/// Marks of a host's own session: an agent that had them would take itself for a part of it.
const HOST_MARKERS: &[&str] = &[
    "CLAUDECODE",
    "CLAUDE_CODE_ENTRYPOINT",
    "CLAUDE_CODE_SESSION_ID",
    "CLAUDE_CODE_CHILD_SESSION",
    "CLAUDE_CODE_MESSAGING_SOCKET",
    "CLAUDE_CODE_MESSAGING_TOKEN",
    "CLAUDE_CODE_LAUNCHED_BY_SESSION_IDS",
    "CLAUDE_CODE_CHILD_NOTES_DIR",
    "CLAUDE_PROJECT_DIR",
    "CLAUDE_CODE_SIMPLE",
    "CLAUDE_EFFORT",
    "AI_AGENT",
];

/// Bytes kept of the digest that tells accounts apart: enough that two of one user never meet.
const ACCOUNT_BYTES: usize = 12;

/// A switch of an agent that makes it use an account of a cloud provider, and what it then reads.
pub(super) type Cloud = (&'static str, &'static [(&'static str, Value)]);

/// What passes to one agent besides what passes to every one, and what of it pays. Each agent's own file has its own.
#[derive(Debug)]
pub(super) struct Passes {
    /// Whose it is.
    pub(super) agent: &'static str,
    /// What always passes.
    pub(super) always: &'static [(&'static str, Value)],
    /// The beginning of names that pass, and the words in such a name that make it a way to pay or a place to send the bill to.
    pub(super) family: Option<(&'static str, &'static [&'static str])>,
    /// What passes only when `billing` is `api_key`.
    pub(super) paid: &'static [(&'static str, Value)],
    /// What is a way to pay by itself, and what the agent has of it. The first that is there counts.
    pub(super) keys: &'static [(&'static str, Credential)],
    /// Accounts of cloud providers, which pass only when `billing` is `api_key`, and with their switch.
    pub(super) clouds: &'static [Cloud],
    /// Of what always passes, what the agent is logged in by. It passes to no other agent, whoever asks for it.
    pub(super) logins: &'static [&'static str],
    /// What says where it keeps its own login, the first that is set.
    pub(super) homes: &'static [&'static str],
    /// What says how it is installed here, and means nothing on another machine.
    pub(super) of_this_machine: &'static [&'static str],
}

impl Passes {
    /// Of an agent that has nothing of its own.
    pub(super) const NOTHING: Self = Self {
        agent: "",
        always: &[],
        family: None,
        paid: &[],
        keys: &[],
        clouds: &[],
        logins: &[],
        homes: &["HOME"],
        of_this_machine: &[],
    };

    /// Everything of it that is listed by its whole name.
    fn tables(&self) -> impl Iterator<Item = &'static [(&'static str, Value)]> {
        [self.always, self.paid].into_iter().chain(self.clouds.iter().map(|(_, names)| *names))
    }

    /// On what condition a name passes.
    fn grant(&self, name: &str) -> Grant {
        if common(name) || listed(self.always, name).is_some() || of_a_shim(name) {
            return Grant::Always;
        }
        if listed(self.paid, name).is_some() {
            return Grant::ForPay;
        }
        if let Some((family, paying)) = self.family
            && let Some(rest) = name.strip_prefix(family)
        {
            return if paying.iter().any(|word| rest.contains(word)) { Grant::ForPay } else { Grant::Always };
        }
        for (switch, names) in self.clouds {
            if name == *switch {
                return Grant::ForPay;
            }
            if listed(names, name).is_some() {
                return Grant::ForCloud(switch);
            }
        }
        Grant::Never
    }

    /// Every name that the agent is logged in by or that pays for it, and what belongs to those.
    pub(super) fn secrets(&self) -> impl Iterator<Item = &'static str> {
        let keys = self.keys.iter().map(|(name, _)| *name);
        let paid = self.paid.iter().map(|(name, _)| *name);
        let clouds = self
            .clouds
            .iter()
            .flat_map(|(switch, names)| std::iter::once(*switch).chain(names.iter().map(|(name, _)| *name)));
        keys.chain(self.logins.iter().copied()).chain(paid).chain(clouds)
    }

    /// Whether this name is one that reaches the agent under this choice, every switch being on.
    pub(super) fn is_for(&self, name: &str, billing: Billing) -> bool {
        match self.grant(name) {
            Grant::Always => true,
            Grant::ForPay | Grant::ForCloud(_) => billing == Billing::ApiKey,
            Grant::Never => false,
        }
    }

    /// Whether a name passes for money only.
    fn is_paid(&self, name: &str) -> bool {
        matches!(self.grant(name), Grant::ForPay | Grant::ForCloud(_))
    }

    /// Whether the agent is logged in, or pays, by what this name holds.
    fn is_credential(&self, name: &OsStr) -> bool {
        name.to_str().is_some_and(|name| self.logins.contains(&name) || self.is_paid(name))
    }

    /// What there is to pay with by the token. A token or a cloud account wins over a key in the agents that know both.
    pub(super) fn credential(&self, env: &Environment) -> Credential {
        let keys = self.keys.iter().filter(|(name, _)| env.get(name).is_some()).map(|(_, credential)| *credential);
        let clouds = self.clouds.iter().filter(|(switch, _)| is_on(env, switch)).map(|_| Credential::Unnamed);
        let all: Vec<Credential> = keys.chain(clouds).collect();
        match all.first() {
            None => Credential::Nothing,
            Some(_) if all.contains(&Credential::Unnamed) => Credential::Unnamed,
            Some(first) => *first,
        }
    }

    /// Whether there is a way to pay by the token.
    fn can_pay(&self, env: &Environment) -> bool {
        self.credential(env) != Credential::Nothing
    }
}

/// On what condition a name passes to an agent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Grant {
    Always,
    /// Only when `billing` is `api_key`.
    ForPay,
    /// Only when `billing` is `api_key` and this switch is set.
    ForCloud(&'static str),
    Never,
}

/// What a table says of a name.
fn listed(table: &[(&str, Value)], name: &str) -> Option<Value> {
    table.iter().find(|(listed, _)| *listed == name).map(|(_, value)| *value)
}

/// What a table says of the names that begin like this one.
fn begun(table: &[(&str, Value)], name: &str) -> Option<Value> {
    table.iter().find(|(prefix, _)| name.starts_with(prefix)).map(|(_, value)| *value)
}

/// What a variable of this name holds, whatever lets it pass.
fn value_of(name: &str) -> Value {
    let tables = [ALLOWLIST, SHIM_VALUES].into_iter().chain(KNOWN.iter().flat_map(|known| known.passes.tables()));
    tables
        .filter_map(|table| listed(table, name))
        .next()
        .or_else(|| begun(ALLOWED_PREFIXES, name))
        .or_else(|| begun(SHIM_PREFIXES, name))
        .unwrap_or(Unlisted)
}

fn common(name: &str) -> bool {
    listed(ALLOWLIST, name).or_else(|| begun(ALLOWED_PREFIXES, name)).is_some()
}

fn of_a_shim(name: &str) -> bool {
    begun(SHIM_PREFIXES, name).is_some() && !SECRET_WORDS.iter().any(|word| name.contains(word))
}

/// Why the user may not have this variable handed on by `agent_env`; `None` when it may be.
pub(crate) fn refusal(name: &str) -> Option<String> {
    let plain = !name.is_empty()
        && !name.starts_with(|c: char| c.is_ascii_digit())
        && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
    if !plain {
        return Some("is no name of a variable; accepted: letters, digits and underscores".to_owned());
    }
    if pays(name) {
        return Some(
            "can spend money, and passes only when that was chosen: set billing = \"api_key\" instead".to_owned(),
        );
    }
    if name.starts_with("PHONE_OPUS_") {
        return Some("is this server's own".to_owned());
    }
    if UNLEASHING.contains(&name) {
        return Some("lets an agent do more than read".to_owned());
    }
    HOST_MARKERS
        .contains(&name)
        .then(|| "marks the client's own session, which an agent would take itself for a part of".to_owned())
}

/// Switches of agents that take away what keeps a consult to reading.
const UNLEASHING: &[&str] = &["COPILOT_ALLOW_ALL"];

/// Whether what a variable of this name holds may be a way to pay, or a place to send the bill to, for any agent or vendor.
fn pays(name: &str) -> bool {
    let upper = name.to_ascii_uppercase();
    KNOWN.iter().any(|known| known.passes.is_paid(&upper))
        || ["API_KEY", "APIKEY", "API_TOKEN", "AUTH_TOKEN", "ACCESS_KEY", "BEARER"]
            .iter()
            .any(|word| upper.contains(word))
        || ["CLAUDE_CODE_USE_", "CLAUDE_CODE_SKIP_", "AWS_", "VERTEX_", "COPILOT_PROVIDER_"]
            .iter()
            .any(|prefix| upper.starts_with(prefix))
}

/// What of a value may pass: without what is relative, where it is a path or a list of paths.
fn absolute(name: &str, value: &OsStr) -> Option<OsString> {
    let ends = |endings: &[&str]| endings.iter().any(|end| name.ends_with(end));
    let holds = match value_of(name) {
        Unlisted if ends(LIST_ENDINGS) => Paths,
        Unlisted if ends(PATH_ENDINGS) => Path,
        Unlisted if is_relative(value) => return None,
        Unlisted => Text,
        said => said,
    };
    match holds {
        Paths => {
            let kept = std::env::join_paths(programs::directories(Some(value))).ok()?;
            Some(kept).filter(|kept| !kept.is_empty())
        }
        // What is empty counts as absent, for the programs too.
        Path => (value.is_empty() || std::path::Path::new(value).is_absolute()).then(|| value.to_owned()),
        Text | Unlisted => Some(value.to_owned()),
    }
}

/// Whether a value says itself that it is a path from where a program stands. Managers take `path:` before a version's place.
fn is_relative(value: &OsStr) -> bool {
    let bytes = value.as_bytes();
    match bytes.strip_prefix(b"path:") {
        Some(place) => !place.starts_with(b"/"),
        None => matches!(bytes, b"." | b"..") || bytes.starts_with(b"./") || bytes.starts_with(b"../"),
    }
}

/// What a runner is started with: ours, what its agent may get (`needed`), and whether something was withheld.
pub(crate) fn for_runner(env: &Environment, needed: impl IntoIterator<Item = Environment>) -> Environment {
    let needed: Environment = needed.into_iter().flat_map(Environment::into_variables).collect();
    let withheld = withheld_from(env, &needed);
    let own = env.iter().filter(|(name, _)| {
        name.to_str().is_some_and(|name| name.starts_with("PHONE_OPUS_") || LOADER.contains(&name) || common(name))
    });
    let mut all: BTreeMap<OsString, OsString> = own.map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
    all.remove(OsStr::new(WITHHELD));
    all.extend(needed.into_variables());
    if !withheld.is_empty() {
        all.insert(WITHHELD.into(), withheld.join(",").into());
    }
    Environment(Arc::new(all))
}

/// The agents that have a way to pay in this environment and none in what is sent of it.
fn withheld_from(env: &Environment, sent: &Environment) -> Vec<&'static str> {
    let withheld = KNOWN.iter().filter(|known| known.passes.can_pay(env) && !known.passes.can_pay(sent));
    withheld.map(|known| known.passes.agent).collect()
}

/// Whether a runner was told that a way to pay of this agent was withheld from it. A host of another process says that there is
/// one, and not whose.
fn is_withheld(env: &Environment, agent: &str) -> bool {
    let told = env.get(WITHHELD).and_then(OsStr::to_str).unwrap_or_default();
    told == ANYBODYS || told.split(',').any(|one| one == agent)
}

/// What the runner of a caller is started with whose host has another environment: of the host (`own`) what programs need to
/// start and what is ours, but for the place in a chain of consults; everything else of the caller (`env`, `needed`).
pub(crate) fn for_callers_runner(
    own: &Environment,
    env: &Environment,
    needed: impl IntoIterator<Item = Environment>,
    withheld: bool,
) -> Environment {
    const OF_A_RUN: [&str; 4] = [CHAIN, DEPTH, RUN_TOKEN, WITHHELD];
    let is_ours = |name: &str| name.starts_with("PHONE_OPUS_") || LOADER.contains(&name);
    let needed = needed.into_iter().flat_map(Environment::into_variables);
    let of_caller = env.iter().filter(|(name, _)| name.to_str().is_some_and(common));
    let mut all: BTreeMap<OsString, OsString> =
        of_caller.map(|(name, value)| (name.to_owned(), value.to_owned())).chain(needed).collect();
    all.retain(|name, _| name.to_str().is_some_and(|name| !is_ours(name) && !HOST_MARKERS.contains(&name)));
    let ours =
        own.iter().filter(|(name, _)| name.to_str().is_some_and(|name| is_ours(name) && !OF_A_RUN.contains(&name)));
    all.extend(ours.map(|(name, value)| (name.to_owned(), value.to_owned())));
    if withheld {
        all.insert(WITHHELD.into(), ANYBODYS.into());
    }
    Environment(Arc::new(all))
}

/// What of a caller's environment may go to another process that is to run its consults: what passes to every agent, and what
/// its agent may get (`needed`).
pub(crate) fn for_caller(env: &Environment, needed: impl IntoIterator<Item = Environment>) -> Environment {
    let everybodys = env.iter().filter(|(name, _)| name.to_str().is_some_and(common));
    let everybodys = everybodys.map(|(name, value)| (name.to_owned(), value.to_owned()));
    let mut all: BTreeMap<OsString, OsString> = everybodys.collect();
    all.extend(needed.into_iter().flat_map(Environment::into_variables));
    all.retain(|name, _| {
        let name = name.to_str();
        name.is_some_and(|name| {
            !name.starts_with("PHONE_OPUS_") && !LOADER.contains(&name) && !HOST_MARKERS.contains(&name)
        })
    });
    Environment(Arc::new(all))
}

/// Whether a caller has a way to pay that it does not send.
pub(crate) fn withholds(env: &Environment, sent: &Environment) -> bool {
    !withheld_from(env, sent).is_empty() || env.get(WITHHELD).is_some()
}

/// What passed, and what that means for the bill.
pub(super) struct Granted {
    pub(super) env: BTreeMap<OsString, OsString>,
    pub(super) key_withheld: bool,
    pub(super) credential: Credential,
}

impl Granted {
    /// Sets one of our own variables, over whatever the host had.
    pub(super) fn set(&mut self, name: &str, value: impl Into<OsString>) {
        self.env.insert(name.into(), value.into());
    }

    /// Sets what tells a nested consult where it is.
    pub(super) fn set_run(&mut self, run: &RunRequest<'_>) {
        self.set(RUN_TOKEN, run.token.to_string());
        self.set(CHAIN, run.chain.to_string());
        self.set(DEPTH, run.depth.saturating_add(1).to_string());
        if let Some(traceparent) = run.traceparent {
            self.set(TRACEPARENT_VARIABLE, traceparent);
        }
    }
}

/// What of a caller's environment travels to an agent on another machine.
pub(super) struct Travels {
    pub(super) granted: Granted,
    logs_in: bool,
}

impl Travels {
    /// Whether the agent is logged in by it, and not by what it finds there.
    pub(super) fn brings_a_login(&self) -> bool {
        self.logs_in
    }
}

/// What an agent gets of a caller's environment when it runs on another machine: of what it would get here the names that are
/// its own and the user's choice, and no path. What every agent gets is that machine's own.
pub(super) fn for_there(passes: &Passes, env: &Environment, billing: Billing, chosen: &[String]) -> Travels {
    let mut granted = for_agent(passes, env, billing, chosen);
    granted.env.retain(|name, value| name.to_str().is_some_and(|name| travels(passes, name, value)));
    let logs_in = granted.env.keys().any(|name| passes.is_credential(name));
    Travels { granted, logs_in }
}

/// Whether a variable that an agent here would get means the same on another machine.
fn travels(passes: &Passes, name: &str, value: &OsStr) -> bool {
    if common(name) || of_a_shim(name) || passes.of_this_machine.contains(&name) {
        return false;
    }
    let is_place = |ends: &[&str]| ends.iter().any(|end| name.ends_with(end));
    match value_of(name) {
        Path | Paths => false,
        Text => true,
        Unlisted => {
            let bytes = value.as_bytes();
            let named = is_place(LIST_ENDINGS) || is_place(PATH_ENDINGS);
            !named && !bytes.starts_with(b"/") && !bytes.starts_with(b"~") && !bytes.starts_with(b"file:")
        }
    }
}

/// What an agent that needs nothing of its own gets.
pub(super) fn for_offline(env: &Environment) -> Granted {
    let env = env
        .iter()
        .filter_map(|(name, value)| {
            let text = name.to_str().filter(|name| common(name))?;
            Some((name.to_owned(), absolute(text, value)?))
        })
        .collect();
    Granted { env, key_withheld: false, credential: Credential::Nothing }
}

/// What an agent gets; `chosen` are the user's own names.
pub(super) fn for_agent(passes: &Passes, env: &Environment, billing: Billing, chosen: &[String]) -> Granted {
    let pays = billing == Billing::ApiKey;
    let mut granted = Granted { env: BTreeMap::new(), key_withheld: false, credential: Credential::Nothing };
    for (name, value) in env.iter() {
        let Some(text) = name.to_str() else { continue };
        let passes = match passes.grant(text) {
            Grant::Always => true,
            Grant::ForPay => pays,
            Grant::ForCloud(switch) => pays && is_on(env, switch),
            Grant::Never => chosen.iter().any(|chosen| chosen == text) && may_be_chosen(text),
        };
        if passes && let Some(value) = absolute(text, value) {
            granted.env.insert(name.to_owned(), value);
        }
    }
    if pays {
        granted.credential = passes.credential(env);
    } else {
        granted.key_withheld = passes.can_pay(env) || is_withheld(env, passes.agent);
    }
    granted
}

/// What an agent of the user's own gets: what every agent does, these names, those to pay with where that was chosen, and those that
/// are handed to every agent.
pub(super) fn for_custom(
    env: &Environment,
    billing: Billing,
    names: &[String],
    pay_names: &[String],
    chosen: &[String],
) -> Granted {
    let pays = billing == Billing::ApiKey;
    let mut granted = for_offline(env);
    for (name, value) in env.iter() {
        let Some(text) = name.to_str() else { continue };
        let given = |names: &[String]| names.iter().any(|given| given == text);
        let passes = given(names) || pays && given(pay_names) || given(chosen) && may_be_chosen(text);
        if passes && let Some(value) = absolute(text, value) {
            granted.env.insert(name.to_owned(), value);
        }
    }
    let can_pay = pay_names.iter().any(|name| env.get(name).is_some());
    granted.key_withheld = can_pay && !pays;
    granted.credential = if can_pay && pays { Credential::Unnamed } else { Credential::Nothing };
    granted
}

/// Whether a name of the user's passes to an agent that does not have it listed: not what another one is logged in by.
fn may_be_chosen(name: &str) -> bool {
    refusal(name).is_none() && !KNOWN.iter().any(|known| known.passes.logins.contains(&name))
}

/// A digest of what an agent is logged in by in this environment: the credentials it is handed, else the place where it
/// keeps its own. It goes into the store, and no credential can be made of it.
pub(super) fn account(passes: &Passes, env: &Environment, billing: Billing) -> String {
    let granted = for_agent(passes, env, billing, &[]).env;
    let mut names: Vec<&OsString> = granted.keys().filter(|name| passes.is_credential(name)).collect();
    if names.is_empty() {
        let place = passes.homes.iter().find(|name| env.get(name).is_some());
        names.extend(place.and_then(|place| granted.keys().find(|name| name.as_os_str() == OsStr::new(place))));
    }
    let mut digest = Sha256::new();
    for name in names {
        for part in [name.as_bytes(), granted.get(name).map_or(&[][..], |value| value.as_bytes())] {
            digest.update(part.len().to_le_bytes());
            digest.update(part);
        }
    }
    digest.finalize().iter().take(ACCOUNT_BYTES).map(|byte| format!("{byte:02x}")).collect()
}

/// Whether a switch of the agent is set, in the agent's own understanding.
fn is_on(env: &Environment, switch: &str) -> bool {
    env.get(switch)
        .and_then(OsStr::to_str)
        .is_some_and(|value| ["1", "true", "yes", "on"].iter().any(|on| value.eq_ignore_ascii_case(on)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agents::claude::PASSES;

    const CLOUDS: &[Cloud] = PASSES.clouds;

    fn for_claude(env: &Environment, billing: Billing, chosen: &[String]) -> Granted {
        for_agent(&PASSES, env, billing, chosen)
    }

    fn passes(name: &str, billing: Billing) -> bool {
        let env: Environment = [(name, "/value")].into_iter().collect();
        !for_claude(&env, billing, &[]).env.is_empty()
    }

    #[test]
    fn the_allowlist_decides_by_name_and_billing() {
        // name, under subscription, under api_key
        let table = [
            ("HOME", true, true),
            ("PATH", true, true),
            ("LC_ALL", true, true),
            // No agent has a terminal, whatever its caller had.
            ("TERM", false, false),
            ("COLORTERM", false, false),
            ("XDG_RUNTIME_DIR", true, true),
            ("https_proxy", true, true),
            ("NODE_EXTRA_CA_CERTS", true, true),
            ("CLAUDE_CONFIG_DIR", true, true),
            ("CLAUDE_CODE_OAUTH_TOKEN", true, true),
            ("CLAUDE_CODE_CLIENT_CERT", true, true),
            ("CLAUDE_CODE_CLIENT_KEY", true, true),
            ("CLAUDE_CODE_CLIENT_KEY_PASSPHRASE", true, true),
            ("CLAUDE_CODE_CERT_STORE", true, true),
            ("CLAUDE_CODE_TMPDIR", true, true),
            ("USE_BUILTIN_RIPGREP", true, true),
            ("MISE_DATA_DIR", true, true),
            ("MISE_NODE_VERSION", true, true),
            ("ASDF_DATA_DIR", true, true),
            ("VOLTA_HOME", true, true),
            ("MISE_GITHUB_TOKEN", false, false),
            ("ANTHROPIC_MODEL", true, true),
            ("ANTHROPIC_DEFAULT_OPUS_MODEL", true, true),
            ("ANTHROPIC_API_KEY", false, true),
            ("ANTHROPIC_AUTH_TOKEN", false, true),
            ("ANTHROPIC_BASE_URL", false, true),
            ("ANTHROPIC_BEDROCK_BASE_URL", false, true),
            ("ANTHROPIC_CUSTOM_HEADERS", false, true),
            ("ANTHROPIC_FOUNDRY_API_KEY", false, true),
            ("CLAUDE_CODE_USE_BEDROCK", false, true),
            ("AWS_SECRET_ACCESS_KEY", false, false),
            ("OPENAI_API_KEY", false, false),
            ("DATABASE_PASSWORD", false, false),
            ("LD_PRELOAD", false, false),
            ("NODE_OPTIONS", false, false),
            ("PHONE_OPUS_FAULTS", false, false),
            ("PHONE_OPUS_RUN_TOKEN", false, false),
        ];
        for (name, subscription, api_key) in table {
            assert_eq!(passes(name, Billing::Subscription), subscription, "{name} under subscription");
            assert_eq!(passes(name, Billing::ApiKey), api_key, "{name} under api_key");
        }
        for name in HOST_MARKERS {
            assert!(!passes(name, Billing::Subscription) && !passes(name, Billing::ApiKey), "{name}");
        }
    }

    #[test]
    fn to_another_machine_travels_what_is_the_agents_own_and_no_place() {
        // name, value, under subscription, under api_key
        let table = [
            ("HOME", "/home/one", false, false),
            ("PATH", "/bin", false, false),
            ("USER", "one", false, false),
            ("LANG", "C", false, false),
            ("TZ", "UTC", false, false),
            ("TMPDIR", "/tmp", false, false),
            ("HTTPS_PROXY", "http://127.0.0.1:1", false, false),
            ("XDG_CONFIG_HOME", "/home/one/.config", false, false),
            ("XDG_SESSION_ID", "3", false, false),
            ("SSL_CERT_FILE", "/etc/ca.pem", false, false),
            ("CLAUDE_CONFIG_DIR", "/home/one/.claude", false, false),
            ("CLAUDE_CODE_CLIENT_CERT", "/c.pem", false, false),
            ("CLAUDE_CODE_CLIENT_KEY_PASSPHRASE", "p", false, false),
            ("USE_BUILTIN_RIPGREP", "0", false, false),
            ("MISE_NODE_VERSION", "20", false, false),
            ("VOLTA_HOME", "/v", false, false),
            ("CLAUDE_CODE_OAUTH_TOKEN", "t", true, true),
            ("API_TIMEOUT_MS", "9", true, true),
            ("ANTHROPIC_MODEL", "opus", true, true),
            ("ANTHROPIC_LOG_FILE", "/l", false, false),
            ("ANTHROPIC_SOMETHING", "/home/one/x", false, false),
            ("ANTHROPIC_API_KEY", "k", false, true),
            ("ANTHROPIC_BASE_URL", "https://gateway", false, true),
            ("GOOGLE_APPLICATION_CREDENTIALS", "/g.json", false, false),
            ("MINE", "1", true, true),
            ("MINE_FILE", "x", false, false),
            ("OTHER", "1", false, false),
        ];
        let chosen = ["MINE", "MINE_FILE"].map(str::to_owned);
        for (name, value, subscription, api_key) in table {
            let env: Environment = [(name, value), ("CLAUDE_CODE_USE_VERTEX", "1")].into_iter().collect();
            for (billing, want) in [(Billing::Subscription, subscription), (Billing::ApiKey, api_key)] {
                let travels = for_there(&PASSES, &env, billing, &chosen).granted.env;
                assert_eq!(travels.contains_key(OsStr::new(name)), want, "{name} under {billing:?}");
            }
        }
    }

    #[test]
    fn a_cloud_account_passes_only_with_its_switch_and_billing() {
        let env: Environment =
            [("CLAUDE_CODE_USE_BEDROCK", "1"), ("AWS_SECRET_ACCESS_KEY", "s"), ("CLOUD_ML_REGION", "r")]
                .into_iter()
                .collect();
        let names = |billing| for_claude(&env, billing, &[]).env.into_keys().collect::<Vec<_>>();
        assert_eq!(names(Billing::ApiKey), ["AWS_SECRET_ACCESS_KEY", "CLAUDE_CODE_USE_BEDROCK"]);
        assert_eq!(names(Billing::Subscription), [] as [&str; 0]);
    }

    #[test]
    fn accounts_are_told_apart_by_what_they_log_in_by_and_by_nothing_else() {
        let account = |variables: &[(&str, &str)], billing| {
            let env: Environment = variables.iter().copied().collect();
            let account = account(&PASSES, &env, billing);
            for (_, value) in variables.iter().filter(|(_, value)| !value.is_empty()) {
                assert!(!account.contains(value), "{account}");
            }
            account
        };
        use Billing::{ApiKey, Subscription};
        let home = [("HOME", "/home/one")];
        let one = account(&home, Subscription);
        // The same login, whatever else differs.
        for same in [
            &[("HOME", "/home/one"), ("LANG", "de"), ("ANTHROPIC_MODEL", "opus")][..],
            &[("HOME", "/home/one"), ("ANTHROPIC_API_KEY", "withheld")],
            &[("HOME", "/home/one"), ("CLAUDE_CONFIG_DIR", "")],
        ] {
            assert_eq!(account(same, Subscription), one, "{same:?}");
        }
        let key = [("HOME", "/home/one"), ("ANTHROPIC_API_KEY", "key-one")];
        let others = [
            account(&[("HOME", "/home/two")], Subscription),
            account(&[("HOME", "/home/one"), ("CLAUDE_CONFIG_DIR", "/home/one/.work")], Subscription),
            account(&[("HOME", "/home/one"), ("CLAUDE_CODE_OAUTH_TOKEN", "token-one")], Subscription),
            account(&[("HOME", "/home/one"), ("CLAUDE_CODE_OAUTH_TOKEN", "token-two")], Subscription),
            account(&key, ApiKey),
            account(&[("ANTHROPIC_API_KEY", "key-two")], ApiKey),
            account(&[("ANTHROPIC_AUTH_TOKEN", "key-one")], ApiKey),
            one,
        ];
        for (number, account) in others.iter().enumerate() {
            assert!(!others[..number].contains(account), "{number} of {others:?}");
        }
        assert_eq!(account(&[("HOME", "/home/two"), ("ANTHROPIC_API_KEY", "key-one")], ApiKey), others[4]);
    }

    #[test]
    fn a_withheld_key_is_known_and_an_empty_one_is_none() {
        let with = |name: &str, value: &str| [(name, value)].into_iter().collect::<Environment>();
        let granted = |env: &Environment, billing| {
            let granted = for_claude(env, billing, &[]);
            (granted.key_withheld, granted.credential)
        };
        let key = with("ANTHROPIC_API_KEY", "k");
        assert_eq!(granted(&key, Billing::Subscription), (true, Credential::Nothing));
        assert_eq!(granted(&key, Billing::ApiKey), (false, Credential::Key));
        assert_eq!(granted(&with("ANTHROPIC_API_KEY", ""), Billing::Subscription), (false, Credential::Nothing));
        assert_eq!(granted(&with("ANTHROPIC_AUTH_TOKEN", "t"), Billing::ApiKey), (false, Credential::Unnamed));
        assert_eq!(granted(&with("CLAUDE_CODE_USE_VERTEX", "0"), Billing::ApiKey), (false, Credential::Nothing));
    }

    #[test]
    fn a_name_of_the_users_passes_unless_it_pays_or_is_ours_or_marks_a_session() {
        for (name, why) in [
            ("DATABASE_URL", None),
            ("NODE_OPTIONS", None),
            ("GIT_SSL_CAINFO", None),
            ("lower_case", None),
            ("ANTHROPIC_API_KEY", Some("can spend money")),
            ("ANTHROPIC_AUTH_TOKEN", Some("can spend money")),
            ("ANTHROPIC_BASE_URL", Some("can spend money")),
            ("anthropic_api_key", Some("can spend money")),
            ("OPENAI_API_KEY", Some("can spend money")),
            ("AWS_SECRET_ACCESS_KEY", Some("can spend money")),
            ("AWS_PROFILE", Some("can spend money")),
            ("GOOGLE_APPLICATION_CREDENTIALS", Some("can spend money")),
            ("CLAUDE_CODE_USE_BEDROCK", Some("can spend money")),
            ("CLAUDE_CODE_SKIP_VERTEX_AUTH", Some("can spend money")),
            ("PHONE_OPUS_FAULTS", Some("own")),
            ("CLAUDECODE", Some("session")),
            ("", Some("no name")),
            ("A=B", Some("no name")),
            ("FOO_*", Some("no name")),
            ("1ST", Some("no name")),
        ] {
            let refused = refusal(name);
            let agrees = match (&refused, why) {
                (Some(refused), Some(why)) => refused.contains(why),
                (refused, why) => refused.is_none() && why.is_none(),
            };
            assert!(agrees, "{name}: {refused:?}");
            if name.is_empty() {
                continue;
            }
            let env: Environment = [(name, "value")].into_iter().collect();
            let given = |chosen: &[String]| for_claude(&env, Billing::Subscription, chosen).env.len();
            assert_eq!((given(&[]), given(&[name.to_owned()])), (0, usize::from(why.is_none())), "{name}");
        }
    }

    #[test]
    fn a_path_that_is_not_absolute_is_not_handed_on() {
        for (name, value, passes) in [
            ("PATH", ".:/opt/bin:/usr/bin", Some("/opt/bin:/usr/bin")),
            ("PATH", "/usr/bin:/bin:", Some("/usr/bin:/bin")),
            ("PATH", "::bin:./node_modules/.bin:/bin", Some("/bin")),
            ("PATH", ".", None),
            ("XDG_DATA_DIRS", "share:/usr/share", Some("/usr/share")),
            ("XDG_CONFIG_HOME", ".config", None),
            ("XDG_CONFIG_HOME", "/home/x/.config", Some("/home/x/.config")),
            ("HOME", ".", None),
            ("TMPDIR", "tmp", None),
            ("NODE_EXTRA_CA_CERTS", "ca.pem", None),
            ("SSL_CERT_FILE", "../ca.pem", None),
            ("LANG", "C.UTF-8", Some("C.UTF-8")),
            ("XDG_SESSION_TYPE", "wayland", Some("wayland")),
            ("SSL_CERT_DIR", "/etc/ssl/certs:certs", Some("/etc/ssl/certs")),
            ("XDG_SOMETHING_NEW", "./lib", None),
        ] {
            let env: Environment = [(name, value)].into_iter().collect();
            let passed = |granted: Granted| granted.env.get(OsStr::new(name)).cloned();
            let expected = passes.map(OsString::from);
            assert_eq!(passed(for_claude(&env, Billing::Subscription, &[])), expected, "{name}={value}");
            assert_eq!(passed(for_offline(&env)), expected, "{name}={value}, offline");
        }
    }

    /// What passes of a value to Claude Code when everything that can pass does.
    fn passed(name: &str, value: &str, chosen: &[String]) -> Option<OsString> {
        let switches = CLOUDS.iter().map(|(switch, _)| (*switch, "1"));
        let env: Environment = switches.chain([(name, value)]).collect();
        for_claude(&env, Billing::ApiKey, chosen).env.remove(OsStr::new(name))
    }

    #[test]
    fn every_listed_name_passes_and_no_listed_path_passes_relative() {
        let relative = ["lib", "./lib", "../lib", ".", "lib/ld.so", "~/lib"];
        let tables = [ALLOWLIST, SHIM_VALUES].into_iter().chain(PASSES.tables());
        let mut places = 0;
        for (name, value) in tables.flatten() {
            assert_ne!(*value, Unlisted, "{name}");
            assert_eq!(passed(name, "/opt/x", &[]), Some("/opt/x".into()), "{name}");
            for given in relative {
                let expected = (*value == Text).then(|| OsString::from(given));
                assert_eq!(passed(name, given, &[]), expected, "{name}={given}");
            }
            // A list keeps what is absolute; one path is not taken apart.
            let kept = if *value == Paths { "/opt/x:/opt/y" } else { "/opt/x:lib:/opt/y" };
            assert_eq!(passed(name, "/opt/x:lib:/opt/y", &[]), Some(kept.into()), "{name}");
            places += usize::from(*value != Text);
            // A name that says it is a place is listed as one.
            let says = LIST_ENDINGS.iter().chain(PATH_ENDINGS).any(|end| name.ends_with(end));
            assert!(*value != Text || !says, "{name}");
        }
        assert!(places > 40, "{places}");
    }

    #[test]
    fn of_a_name_nobody_listed_no_relative_path_passes() {
        let chosen = ["NODE_PATH", "PYTHONPATH", "MY_ROOT", "NODE_OPTIONS"].map(str::to_owned);
        for (name, value, passes) in [
            ("NVM_NEW_DIR", "nvm", false),
            ("FNM_NEW_PATH", "fnm", false),
            ("MISE_NEW_PATHS", "a:b", false),
            ("MISE_NODE_ROOT", "node", false),
            ("NODENV_NEW_BIN", "bin", false),
            ("MISE_NODE_VERSION", "./node", false),
            ("MISE_NODE_VERSION", "path:node", false),
            ("MISE_NODE_VERSION", "path:/opt/node", true),
            ("MISE_NODE_VERSION", "lts/hydrogen", true),
            ("FNM_NODE_DIST_MIRROR", "https://example.org/dist", true),
            ("XDG_NEW_HOME", "home", false),
            ("ANTHROPIC_CONFIG_DIR", "conf", false),
            ("ANTHROPIC_MODEL", "vendor/model", true),
            ("NODE_PATH", "lib", false),
            ("PYTHONPATH", ".", false),
            ("MY_ROOT", "..", false),
            ("NODE_OPTIONS", "--max-old-space-size=4096", true),
        ] {
            assert_eq!(passed(name, value, &chosen), passes.then(|| value.into()), "{name}={value}");
        }
    }

    #[test]
    fn a_runner_has_what_is_ours_and_what_its_agent_may_get_and_knows_what_was_withheld() {
        let env: Environment = [
            ("PATH", "/bin"),
            ("HOME", "/home/x"),
            ("PHONE_OPUS_LOG", "trace"),
            ("LD_LIBRARY_PATH", "/opt/lib"),
            ("DATABASE_PASSWORD", "s"),
            ("CLAUDECODE", "1"),
            ("ANTHROPIC_API_KEY", "k"),
        ]
        .into_iter()
        .collect();
        for (billing, key, withheld) in [(Billing::Subscription, false, true), (Billing::ApiKey, true, false)] {
            let needed: Environment = for_claude(&env, billing, &[]).env.into_iter().collect();
            let given = for_runner(&env, [needed]);
            let has = |name: &str| given.get(name).is_some();
            assert!(has("PATH") && has("HOME") && has("PHONE_OPUS_LOG") && has("LD_LIBRARY_PATH"), "{given:?}");
            assert!(!has("DATABASE_PASSWORD") && !has("CLAUDECODE"), "{given:?}");
            assert_eq!(has("ANTHROPIC_API_KEY"), key);
            // What the runner makes of it is what the host would have made of its own.
            let again = for_claude(&given, billing, &[]);
            assert_eq!(again.key_withheld, withheld, "{billing:?}");
            assert_eq!(again.env, for_claude(&env, billing, &[]).env, "{billing:?}");
        }
    }

    #[test]
    fn a_callers_runner_has_nothing_of_the_hosts_but_what_is_ours_and_what_programs_need_to_start() {
        let own: Environment = [
            ("PATH", "/host/bin"),
            ("LANG", "host"),
            ("HTTPS_PROXY", "http://host"),
            ("CLAUDE_CONFIG_DIR", "/host"),
            ("ANTHROPIC_API_KEY", "host"),
            ("LD_LIBRARY_PATH", "/host/lib"),
            ("PHONE_OPUS_LOG", "trace"),
            ("PHONE_OPUS_CHAIN", "host"),
            ("PHONE_OPUS_DEPTH", "1"),
            ("PHONE_OPUS_KEY_WITHHELD", "1"),
        ]
        .into_iter()
        .collect();
        let caller: Environment = [
            ("PATH", "/caller/bin"),
            ("CLAUDE_CONFIG_DIR", "/caller"),
            ("LD_LIBRARY_PATH", "/caller/lib"),
            ("PHONE_OPUS_LOG", "caller"),
            ("CLAUDECODE", "1"),
            ("DATABASE_PASSWORD", "s"),
        ]
        .into_iter()
        .collect();
        let needed: Environment = for_claude(&caller, Billing::Subscription, &[]).env.into_iter().collect();
        for withheld in [false, true] {
            // An agent of an embedding program may need everything.
            let given = for_callers_runner(&own, &caller, [needed.clone(), caller.clone()], withheld);
            let mut expected: Environment = [
                ("PATH", "/caller/bin"),
                ("CLAUDE_CONFIG_DIR", "/caller"),
                ("DATABASE_PASSWORD", "s"),
                ("LD_LIBRARY_PATH", "/host/lib"),
                ("PHONE_OPUS_LOG", "trace"),
            ]
            .into_iter()
            .collect();
            if withheld {
                expected = expected.with(WITHHELD, "1");
            }
            assert_eq!(given, expected);
        }
    }

    #[test]
    fn a_digest_is_of_what_reaches_an_agent() {
        let of = |variables: &[(&str, &str)], billing| {
            let environment: Environment = variables.iter().copied().collect();
            environment.digest("secret", billing, &["MINE".to_owned()], &["THEIRS".to_owned()], &())
        };
        use Billing::{ApiKey, Subscription};
        let plain = of(&[("PATH", "/bin"), ("MINE", "1")], Subscription);
        let with_key = [("PATH", "/bin"), ("MINE", "1"), ("ANTHROPIC_API_KEY", "k"), ("OTHER", "x")];
        assert_eq!(of(&with_key, Subscription), plain, "what is withheld is no difference");
        let others = [
            of(&with_key, ApiKey),
            of(&[("PATH", "/bin"), ("MINE", "2")], Subscription),
            of(&[("PATH", "/bin")], Subscription),
            of(&[("PATH", "/bin"), ("MINE", "1"), ("THEIRS", "1")], Subscription),
            of(&[("PATH", "/bin"), ("MINE", "1"), ("CODEX_HOME", "/c")], Subscription),
            of(&[("PATH", "/bin"), ("MINE", "")], Subscription),
        ];
        assert!(!others.contains(&plain), "{others:?}");
    }

    #[test]
    fn an_environment_is_passed_on_byte_for_byte() {
        let odd = OsString::from_vec(b"/opt/\xff\x80".to_vec());
        let variables = [("PATH", "/bin".into()), ("EMPTY", "".into()), ("LINES", "a\nb\"c".into()), ("ODD", odd)];
        let environment: Environment = variables.into_iter().collect();
        let text = serde_json::to_string(&PassedEnvironment::from(&environment)).expect("JSON");
        let passed: PassedEnvironment = serde_json::from_str(&text).expect("an environment");
        assert_eq!(format!("{passed:?}"), "PassedEnvironment(4 variables)");
        assert_eq!(Environment::from(passed), environment);
    }

    #[test]
    fn values_are_not_shown() {
        let env: Environment = [("ANTHROPIC_API_KEY", "the-secret")].into_iter().collect();
        let shown = format!("{env:?}");
        assert!(shown.contains("ANTHROPIC_API_KEY") && !shown.contains("the-secret"), "{shown}");
    }
}
