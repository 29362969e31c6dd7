//! Where an exec server is reached.
//!
//! Owns: the four forms a configuration may write, and what of them is refused. May not know: sockets, who configures what.
//!
//! ```text
//! wss://HOST[:PORT][/PATH]     a socket whose server proves who it is
//! ws://127.0.0.1:PORT          a socket on this machine: a tunnel, a container's published port
//! unix:/PATH                   a socket of a file
//! ["ssh", "HOST", …]           the standard streams of a program that is started for it
//! ```
//!
//! Invariants: (1) what goes over `ws://` never leaves this machine: its host is a loopback address, and `localhost` means one
//! whatever a resolver says; (2) nothing secret is in a target: one that holds a user, a password or a query is refused, and what is
//! refused is not repeated where it may hold one.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::{Component, Path, PathBuf};

use serde::{Deserialize, Serialize};

/// Words of a program that is started for its standard streams; a command line of `ssh` has under twenty.
const WORDS_MOST: usize = 64;

/// Bytes of a target's text; the longest name of a host has 253.
const TEXT_MOST: usize = 2048;

/// The port of `wss://` where none is written.
const SECURE_PORT: u16 = 443;

/// The forms that are accepted, as an error tells them.
pub const FORMS: &str = "\"wss://HOST[:PORT]\", \"unix:/PATH\", \"ws://127.0.0.1:PORT\" (addresses of this machine only: a tunnel, a \
                         container's published port), or a program whose standard streams are the server, as [\"ssh\", \"HOST\", \
                         \"phone-opus\", \"exec-server\", \"--listen\", \"stdio\"]";

/// A target as a configuration writes it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged, expecting = "a text or a list of words")]
pub enum TargetWords {
    /// One text.
    Text(String),
    /// A program and its arguments.
    Program(Vec<String>),
}

/// Where an exec server is reached.
///
/// ```
/// use phone_opus::{ExecTarget, TargetWords};
///
/// let target = ExecTarget::parse(&TargetWords::Text("wss://build.example/exec".to_owned()))?;
/// let ExecTarget::Wss { url } = &target else { panic!("{target}") };
/// assert_eq!((url.host(), url.port(), url.path()), ("build.example", 443, "/exec"));
/// assert!(ExecTarget::parse(&TargetWords::Text("ws://build.example:80".to_owned())).is_err());    // it says what is accepted
/// # Ok::<(), String>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(into = "TargetWords", try_from = "TargetWords")]
#[non_exhaustive]
pub enum ExecTarget {
    /// A WebSocket on this machine.
    Ws {
        /// Its address, a loopback one.
        url: ServerUrl,
    },
    /// A WebSocket whose server is verified.
    Wss {
        /// Its address.
        url: ServerUrl,
    },
    /// A Unix socket.
    Unix {
        /// Its file, absolute.
        path: PathBuf,
    },
    /// A program that is started and serves on its standard streams, and ends with them.
    Child {
        /// The program and its arguments; never empty.
        argv: Vec<String>,
    },
    /// A [`Machine`](crate::machine::Machine) of the program's own, which no configuration names: its program knows it.
    Own {
        /// Its name.
        name: String,
    },
}

/// What stands before the name of a machine of the program's own.
pub const OWN: &str = "own:";

/// Whether a connection that is lost can be made again with what ran on it still running.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AfterACut {
    /// It can, within the server's lease.
    Resumed,
    /// It cannot: the server has ended with it.
    Over,
}

/// The address of a WebSocket.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ServerUrl {
    host: String,
    port: u16,
    path: String,
}

impl ServerUrl {
    /// The host: a name, or an address without brackets.
    #[must_use]
    pub fn host(&self) -> &str {
        &self.host
    }

    /// The port.
    #[must_use]
    pub const fn port(&self) -> u16 {
        self.port
    }

    /// The path, which begins with a slash.
    #[must_use]
    pub fn path(&self) -> &str {
        &self.path
    }

    /// Host and port as a request's `Host` names them.
    #[must_use]
    #[doc(hidden)]
    pub fn authority(&self) -> String {
        if self.host.contains(':') {
            format!("[{}]:{}", self.host, self.port)
        } else {
            format!("{}:{}", self.host, self.port)
        }
    }

    /// The addresses of this machine that are meant; `None` where the host is to be resolved.
    #[must_use]
    #[doc(hidden)]
    pub fn loopback(&self) -> Option<Vec<IpAddr>> {
        if is_localhost(&self.host) {
            return Some(vec![Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()]);
        }
        self.host.parse().ok().filter(IpAddr::is_loopback).map(|address| vec![address])
    }
}

impl ExecTarget {
    /// The target of these words.
    ///
    /// # Errors
    ///
    /// What is wrong with them and what is accepted.
    pub fn parse(words: &TargetWords) -> Result<Self, String> {
        match words {
            TargetWords::Text(text) => Self::of_text(text),
            TargetWords::Program(argv) => Self::of_program(argv),
        }
        .map_err(|wrong| format!("{wrong}; accepted: {FORMS}"))
    }

    /// What a cut connection means here.
    #[must_use]
    #[doc(hidden)]
    pub const fn after_a_cut(&self) -> AfterACut {
        match self {
            Self::Ws { .. } | Self::Wss { .. } | Self::Unix { .. } => AfterACut::Resumed,
            Self::Child { .. } | Self::Own { .. } => AfterACut::Over,
        }
    }

    /// Whether it is asked for a bearer token.
    #[must_use]
    #[doc(hidden)]
    pub const fn takes_a_token(&self) -> bool {
        matches!(self, Self::Ws { .. } | Self::Wss { .. })
    }

    fn of_text(text: &str) -> Result<Self, String> {
        if text.len() > TEXT_MOST {
            return Err(format!("has {} bytes", text.len()));
        }
        if text.chars().any(|c| c.is_control() || c.is_whitespace()) {
            return Err("holds white space".to_owned());
        }
        if let Some(name) = text.strip_prefix(OWN).filter(|name| !name.is_empty()) {
            return Ok(Self::Own { name: name.to_owned() });
        }
        if let Some(path) = text.strip_prefix("unix:") {
            return of_socket(path);
        }
        let Some((scheme, rest)) = text.split_once("://") else {
            return Err("has no scheme".to_owned());
        };
        match scheme.to_ascii_lowercase().as_str() {
            "wss" => Ok(Self::Wss { url: of_address(rest, Some(SECURE_PORT))? }),
            "ws" => {
                let url = of_address(rest, None)?;
                match url.loopback() {
                    Some(_) => Ok(Self::Ws { url }),
                    None => Err(format!(
                        "is not encrypted, and {} is another machine: whoever is in between could read and say anything",
                        url.host
                    )),
                }
            }
            "http" | "https" => Err(format!("is {scheme}, not a WebSocket")),
            _ => Err("has a scheme that is not known".to_owned()),
        }
    }

    fn of_program(argv: &[String]) -> Result<Self, String> {
        let Some(program) = argv.first() else { return Err("names no program".to_owned()) };
        if argv.len() > WORDS_MOST {
            return Err(format!("has {} words, more than {WORDS_MOST}", argv.len()));
        }
        if argv.iter().any(|word| word.contains('\0')) {
            return Err("holds a NUL".to_owned());
        }
        if program.is_empty() || program.starts_with('-') || program.contains(char::is_whitespace) {
            return Err("begins with what is no program: each word is an element of its own".to_owned());
        }
        if program.contains('/') && !Path::new(program).is_absolute() {
            return Err("begins with a relative path".to_owned());
        }
        Ok(Self::Child { argv: argv.to_vec() })
    }
}

fn of_socket(path: &str) -> Result<ExecTarget, String> {
    let path = path.strip_prefix("//").unwrap_or(path);
    let path = Path::new(path);
    if !path.is_absolute() || path.components().any(|part| part == Component::ParentDir) {
        return Err("names no absolute path of a socket".to_owned());
    }
    if path.as_os_str().len() > 100 {
        return Err("is longer than the 100 bytes a socket's path may have".to_owned());
    }
    Ok(ExecTarget::Unix { path: path.to_owned() })
}

/// `HOST[:PORT][/PATH]`. What is refused is not repeated before it is known to hold no secret.
fn of_address(rest: &str, default: Option<u16>) -> Result<ServerUrl, String> {
    let (authority, path) = rest.find('/').map_or((rest, "/"), |at| rest.split_at(at));
    if authority.contains('@') {
        return Err("holds a user or a password; a token is read from `exec_token_file`".to_owned());
    }
    if rest.contains(['?', '#']) {
        return Err("holds a query or a fragment; a token is read from `exec_token_file`".to_owned());
    }
    let (host, port) = match authority.strip_prefix('[') {
        Some(rest) => {
            let (host, port) = rest.split_once(']').ok_or("has an address whose bracket is not closed")?;
            host.parse::<Ipv6Addr>().map_err(|_| "has brackets around what is no IPv6 address")?;
            (host, port.strip_prefix(':').or_else(|| port.is_empty().then_some("")).ok_or("has a bad port")?)
        }
        None => authority.split_once(':').unwrap_or((authority, "")),
    };
    let named = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_' | ':');
    if host.is_empty() || host.len() > 253 || !host.chars().all(named) {
        return Err("has no host".to_owned());
    }
    let port = match (port, default) {
        ("", Some(default)) => default,
        ("", None) => return Err("has no port".to_owned()),
        (port, _) => port.parse().ok().filter(|port| *port != 0).ok_or("has a bad port")?,
    };
    Ok(ServerUrl { host: host.to_ascii_lowercase(), port, path: path.to_owned() })
}

fn is_localhost(host: &str) -> bool {
    host == "localhost" || host.ends_with(".localhost")
}

/// As a configuration writes it, and as an error, `doctor` and health show it.
impl fmt::Display for ExecTarget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ws { url } => write!(f, "ws://{url}"),
            Self::Wss { url } => write!(f, "wss://{url}"),
            Self::Unix { path } => write!(f, "unix:{}", path.display()),
            Self::Child { argv } => f.write_str(&argv.join(" ")),
            Self::Own { name } => write!(f, "{OWN}{name}"),
        }
    }
}

impl fmt::Display for ServerUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.authority(), self.path)
    }
}

impl From<ExecTarget> for TargetWords {
    fn from(target: ExecTarget) -> Self {
        match target {
            ExecTarget::Child { argv } => Self::Program(argv),
            other => Self::Text(other.to_string()),
        }
    }
}

impl TryFrom<TargetWords> for ExecTarget {
    type Error = String;

    fn try_from(words: TargetWords) -> Result<Self, String> {
        Self::parse(&words)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(text: &str) -> Result<ExecTarget, String> {
        ExecTarget::parse(&TargetWords::Text(text.to_owned()))
    }

    fn program(words: &[&str]) -> Result<ExecTarget, String> {
        ExecTarget::parse(&TargetWords::Program(words.iter().map(|word| (*word).to_owned()).collect()))
    }

    #[test]
    fn each_form_is_read_and_written_as_it_is_meant() {
        for (written, meant) in [
            ("wss://build.example", "wss://build.example:443/"),
            ("WSS://Build.Example:8443/exec", "wss://build.example:8443/exec"),
            ("wss://[2001:db8::1]:9", "wss://[2001:db8::1]:9/"),
            ("wss://10.1.2.3", "wss://10.1.2.3:443/"),
            ("ws://127.0.0.1:4000", "ws://127.0.0.1:4000/"),
            ("ws://127.9.9.9:4000/", "ws://127.9.9.9:4000/"),
            ("ws://[::1]:4000", "ws://[::1]:4000/"),
            ("ws://localhost:4000", "ws://localhost:4000/"),
            ("unix:/run/box.sock", "unix:/run/box.sock"),
            ("unix:///run/box.sock", "unix:/run/box.sock"),
            ("own:box", "own:box"),
        ] {
            let target = text(written).expect(written);
            assert_eq!(target.to_string(), meant, "{written}");
            assert_eq!(text(meant), Ok(target.clone()), "{meant}");
            let json = serde_json::to_string(&target).expect("json");
            assert_eq!(serde_json::from_str::<ExecTarget>(&json).expect("read"), target);
        }
        let ssh = program(&["ssh", "build", "phone-opus", "exec-server", "--listen", "stdio"]).expect("a program");
        assert_eq!(ssh.to_string(), "ssh build phone-opus exec-server --listen stdio");
        assert_eq!(ExecTarget::try_from(TargetWords::from(ssh.clone())), Ok(ssh.clone()));
        assert_eq!((ssh.after_a_cut(), ssh.takes_a_token()), (AfterACut::Over, false));
        let socket = text("ws://[::1]:1").expect("a socket");
        assert_eq!((socket.after_a_cut(), socket.takes_a_token()), (AfterACut::Resumed, true));
    }

    #[test]
    fn what_is_refused_says_why_and_names_every_form() {
        for (written, why) in [
            ("ws://build.example:4000", "build.example is another machine"),
            ("ws://10.0.0.1:4000", "10.0.0.1 is another machine"),
            ("ws://0.0.0.0:4000", "0.0.0.0 is another machine"),
            ("ws://127.0.0.1.example:4000", "is another machine"),
            ("ws://[2001:db8::1]:4000", "2001:db8::1 is another machine"),
            ("ws://[::ffff:10.0.0.1]:4000", "is another machine"),
            ("ws://localhost.example:1", "is another machine"),
            ("ws://127.0.0.1", "has no port"),
            ("ws://127.0.0.1:0", "has a bad port"),
            ("ws://127.0.0.1:70000", "has a bad port"),
            ("ws://[::1:4000", "bracket is not closed"),
            ("ws://[build]:4000", "no IPv6 address"),
            ("wss://", "has no host"),
            ("wss:///path", "has no host"),
            ("wss://user:s3cr3t@build.example", "holds a user or a password"),
            ("wss://build.example/?token=s3cr3t", "holds a query"),
            ("wss://build.example/#s3cr3t", "holds a query"),
            ("https://build.example", "is https, not a WebSocket"),
            ("tcp://build.example:1", "scheme that is not known"),
            ("ssh build phone-opus", "holds white space"),
            ("build.example", "has no scheme"),
            ("", "has no scheme"),
            ("own:", "has no scheme"),
            ("unix:run/box.sock", "no absolute path"),
            ("unix:/run/../etc/box.sock", "no absolute path"),
            ("unix:", "no absolute path"),
        ] {
            let said = text(written).expect_err(written);
            assert!(said.contains(why), "{written}: {said}");
            assert!(!said.contains("s3cr3t"), "{written}: {said}");
            for form in ["wss://", "unix:/PATH", "ws://127.0.0.1:PORT", "\"ssh\""] {
                assert!(said.contains(form), "{written}: {said}");
            }
        }
        for (words, why) in [
            (&[][..], "names no program"),
            (&[""][..], "no program"),
            (&["-x"][..], "no program"),
            (&["ssh build"][..], "each word is an element"),
            (&["./ssh"][..], "relative path"),
            (&["ssh", "a\0b"][..], "NUL"),
            (&["x"; 65][..], "65 words"),
        ] {
            let said = program(words).expect_err("refused");
            assert!(said.contains(why) && said.contains("wss://"), "{words:?}: {said}");
        }
        let long = format!("unix:/{}", "x".repeat(200));
        assert!(text(&long).expect_err("too long").contains("100 bytes"));
        assert!(text(&"w".repeat(5000)).expect_err("too long").contains("5000 bytes"));
    }

    #[test]
    fn what_is_on_this_machine_is_known_without_asking_anybody() {
        let addresses = |written: &str| match text(written).expect(written) {
            ExecTarget::Ws { url } | ExecTarget::Wss { url } => url.loopback(),
            other => panic!("{other:?}"),
        };
        let (four, six): (IpAddr, IpAddr) = (Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into());
        assert_eq!(addresses("ws://localhost:1"), Some(vec![four, six]));
        assert_eq!(addresses("ws://LocalHost:1"), Some(vec![four, six]));
        assert_eq!(addresses("ws://[::1]:1"), Some(vec![six]));
        assert_eq!(addresses("wss://build.example"), None);
    }
}
