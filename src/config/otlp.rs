//! Where traces and metrics go, as the user's configuration says it.
//!
//! Owns: what is accepted, what a URL leads to. May not know: the protocol, the standard variables.
//!
//! Invariant: what leaves the machine is encrypted: `http://` leads to this machine alone. An address holds no secret, since one with a
//! login in it is refused; tokens are headers.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

/// Bytes of an address; real ones have about fifty.
const MOST: usize = 2_048;

/// What an address looks like, for whoever wrote another one.
pub(super) const FORM: &str = "`https://HOST[:PORT][/PATH]`, `http://` to this machine itself, or `env` for what the variables `OTEL_EXPORTER_OTLP_…` say";

/// Where the OpenTelemetry collector is that traces and metrics go to: a URL, or `env` for what the standard variables say.
///
/// ```
/// use phone_opus::{Config, OtlpTarget};
///
/// let config = Config { otlp: Some(OtlpTarget::new("http://localhost:4318")), ..Config::default() };
/// # let _ = config;
/// assert!(OtlpTarget::new("env").is_by_environment());
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct OtlpTarget(String);

/// A URL that a collector can be reached by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CollectorUrl {
    /// Whether it is spoken to through TLS.
    pub secure: bool,
    /// The host's name or address, without brackets.
    pub host: String,
    /// Its port.
    pub port: u16,
    /// The path, which begins with `/` and has no query.
    pub path: String,
}

impl OtlpTarget {
    /// A target that was not looked at yet.
    #[must_use]
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether the standard variables say where.
    #[must_use]
    pub fn is_by_environment(&self) -> bool {
        self.0 == "env"
    }

    /// Whether it can be used by this program.
    ///
    /// # Errors
    ///
    /// What is wrong with it and what is accepted.
    pub(super) fn check(&self) -> Result<(), String> {
        let accepted = format!("accepted: {FORM}").replace('`', "");
        if !self.is_by_environment() {
            CollectorUrl::parse(&self.0).map_err(|wrong| format!("{wrong}; {accepted}"))?;
        }
        if !cfg!(any(test, feature = "otlp")) {
            let lacks = "needs a program that was built with the feature otlp, and this one was built without it";
            return Err(format!(
                "{lacks}; take a released program, or build with cargo install phone-opus --features otlp"
            ));
        }
        Ok(())
    }
}

impl CollectorUrl {
    /// Reads a URL.
    ///
    /// # Errors
    ///
    /// What is wrong with it, as words that follow its name.
    pub fn parse(url: &str) -> Result<Self, String> {
        if url.len() > MOST || !url.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(format!("is longer than {MOST} bytes, or holds blanks or letters that a URL has none of"));
        }
        let (secure, rest) = match (url.strip_prefix("https://"), url.strip_prefix("http://")) {
            (Some(rest), _) => (true, rest),
            (None, Some(rest)) => (false, rest),
            (None, None) => return Err("is no URL with http:// or https://".to_owned()),
        };
        let (authority, path) = match rest.find(['/', '?', '#']) {
            Some(at) => rest.split_at(at),
            None => (rest, "/"),
        };
        if authority.contains('@') {
            return Err("has a login in it; tokens are headers (OTEL_EXPORTER_OTLP_HEADERS)".to_owned());
        }
        if path.contains(['?', '#']) {
            return Err("has a query or a fragment, which no collector is told apart by".to_owned());
        }
        let (host, port) = split_port(authority).ok_or("names no host, or a port that is none")?;
        if !secure && !is_this_machine(host) {
            return Err(format!("leads to another machine ({host}) without encryption; write https://"));
        }
        let port = port.unwrap_or(if secure { 443 } else { 80 });
        Ok(Self { secure, host: host.to_owned(), port, path: path.to_owned() })
    }

    /// The same collector's place for a signal: this path below its own.
    #[must_use]
    pub fn below(&self, signal: &str) -> Self {
        Self { path: format!("{}/{signal}", self.path.trim_end_matches('/')), ..self.clone() }
    }

    /// Whether it is the same server.
    #[must_use]
    pub fn is_same_server(&self, other: &Self) -> bool {
        (self.secure, &self.host, self.port) == (other.secure, &other.host, other.port)
    }

    /// The host and port as a URL and a `Host` header have them.
    #[must_use]
    pub fn authority(&self) -> String {
        let Self { host, port, .. } = self;
        if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
    }

    /// The URL.
    #[must_use]
    pub fn shown(&self) -> String {
        format!("{}://{}{}", if self.secure { "https" } else { "http" }, self.authority(), self.path)
    }
}

/// A host without its brackets, and the port where one is named.
fn split_port(authority: &str) -> Option<(&str, Option<u16>)> {
    let (host, port) = match authority.strip_prefix('[') {
        Some(rest) => {
            let (host, rest) = rest.split_once(']')?;
            host.parse::<std::net::Ipv6Addr>().ok()?;
            (host, rest.strip_prefix(':').or_else(|| rest.is_empty().then_some(""))?)
        }
        None => authority.split_once(':').unwrap_or((authority, "")),
    };
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._:".contains(&byte);
    if host.is_empty() || !host.bytes().all(plain) || (!authority.starts_with('[') && port.contains(':')) {
        return None;
    }
    match port {
        "" if authority.ends_with(':') => None,
        "" => Some((host, None)),
        port => port.parse().ok().filter(|port| *port > 0).map(|port| (host, Some(port))),
    }
}

/// Whether what is sent there stays on this machine, by its name: nothing is looked up for that.
fn is_this_machine(host: &str) -> bool {
    host == "localhost" || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_collector_is_where_its_url_says() {
        for (url, shown, secure) in [
            ("http://localhost:4318", "http://localhost:4318/", false),
            ("http://127.0.0.1", "http://127.0.0.1:80/", false),
            ("http://127.9.9.9:1/", "http://127.9.9.9:1/", false),
            ("http://[::1]:4318/otlp/", "http://[::1]:4318/otlp/", false),
            ("https://collector.example", "https://collector.example:443/", true),
            ("https://[2001:db8::1]/a/b", "https://[2001:db8::1]:443/a/b", true),
        ] {
            let read = CollectorUrl::parse(url).expect(url);
            assert_eq!((read.shown().as_str(), read.secure), (shown, secure), "{url}");
        }
        let base = CollectorUrl::parse("https://c.example/otlp/").expect("good");
        assert_eq!(base.below("v1/traces").shown(), "https://c.example:443/otlp/v1/traces");
    }

    #[test]
    fn what_would_leave_the_machine_unencrypted_or_show_a_login_is_refused() {
        for (url, why) in [
            ("http://collector.example:4318", "without encryption; write https://"),
            ("http://127.0.0.1.example", "without encryption"),
            ("http://localhost.example", "without encryption"),
            ("http://192.168.0.1:4318", "without encryption"),
            ("http://0.0.0.0:4318", "without encryption"),
            ("http://[::2]:4318", "without encryption"),
            ("http://2130706433", "without encryption"),
            ("https://me:SECRET@collector.example", "has a login in it"),
            ("https://collector.example?token=SECRET", "has a query"),
            ("https://collector.example/#x", "has a query or a fragment"),
            ("grpc://localhost:4317", "is no URL with http:// or https://"),
            ("localhost:4318", "is no URL"),
            ("https://", "names no host"),
            ("https://:443", "names no host"),
            ("https://host:", "names no host, or a port that is none"),
            ("https://host:0", "a port that is none"),
            ("https://host:65536", "a port that is none"),
            ("https://host:1:2", "a port that is none"),
            ("https://[::1", "names no host"),
            ("https://[nonsense]", "names no host"),
            ("https://ho st", "blanks"),
            ("https://höst", "letters"),
            ("https://host\r\nx: y", "blanks"),
            ("", "is no URL"),
        ] {
            let wrong = CollectorUrl::parse(url).expect_err(url);
            assert!(wrong.contains(why) && !wrong.contains("SECRET"), "{url}: {wrong}");
            assert!(OtlpTarget::new(url).check().is_err());
        }
        assert_eq!(OtlpTarget::new("env").check(), Ok(()));
    }
}
