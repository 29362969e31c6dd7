//! Where traces and metrics are sent, and as whose.
//!
//! Owns: what the standard variables (`OTEL_…`) mean here, and when they count. Pure: the environment is passed in. May not know: the
//! protocol.
//!
//! The configuration's `otlp` alone switches this on. The standard variables are set for other programs too: what they say of an
//! endpoint counts where `otlp` is `env`; headers, which are secrets of one collector, are sent to no other, and by whose certificate one
//! is verified, no other is.
//!
//! Invariant (L13): the value of a header is in [`Header`] alone, which shows none; what is refused is told without its text.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use hyper::header::{HeaderName, HeaderValue};

use crate::agents::Environment;
use crate::base::ids::HostId;
use crate::config::{CollectorUrl, OtlpTarget};
use crate::telemetry::traces::sampling::Sampler;
use crate::telemetry::traces::spans::Value;

/// Attributes of a resource, and characters of one.
const ATTRIBUTES: usize = 64;
const ATTRIBUTE: usize = 256;

/// Headers.
const HEADERS: usize = 32;

/// How long one request may take, and within which bounds that may be said.
const TIMEOUT: (u64, u64, u64) = (100, 10_000, 60_000);

/// Milliseconds between metrics, likewise.
const EVERY: (u64, u64, u64) = (1_000, 60_000, 3_600_000);

/// Where the specification has a collector by default.
const DEFAULT: &str = "http://localhost:4318";

/// A header of each request.
#[derive(Clone)]
pub struct Header {
    /// Its name.
    pub name: HeaderName,
    /// Its value, a secret.
    pub value: HeaderValue,
}

impl fmt::Debug for Header {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: …", self.name)
    }
}

/// What is sent where.
#[derive(Debug, Clone)]
pub struct OtlpSettings {
    /// Where spans go; `None` when they do not.
    pub traces: Option<CollectorUrl>,
    /// Where metrics go; `None` when they do not.
    pub metrics: Option<CollectorUrl>,
    /// What each request carries.
    pub headers: Vec<Header>,
    /// The file of the authorities that a collector is verified by; `None` for those this platform trusts.
    pub certificate: Option<PathBuf>,
    /// What the sender says of itself.
    pub resource: Vec<(String, Value)>,
    /// Which traces are collected.
    pub sampler: Sampler,
    /// Longest a request takes.
    pub timeout: Duration,
    /// How often metrics are sent.
    pub every: Duration,
}

impl OtlpSettings {
    /// What the configuration and the standard variables ask for; `None` where the variables switch it off.
    ///
    /// # Errors
    ///
    /// What cannot be used, as a sentence that names its place and quotes no value.
    pub fn read(target: &OtlpTarget, environment: &Environment, host: HostId) -> Result<Option<Self>, String> {
        let variables = Variables(environment);
        if variables.says("OTEL_SDK_DISABLED", "true") {
            return Ok(None);
        }
        let endpoints = Endpoints::read(target, &variables)?;
        let exports = |variable| !variables.says(variable, "none");
        let (traces, metrics) = (exports("OTEL_TRACES_EXPORTER"), exports("OTEL_METRICS_EXPORTER"));
        if !traces && !metrics {
            return Ok(None);
        }
        Ok(Some(Self {
            headers: if endpoints.variables_are_its {
                variables.headers("OTEL_EXPORTER_OTLP_HEADERS")?
            } else {
                Vec::new()
            },
            certificate: variables
                .get("OTEL_EXPORTER_OTLP_CERTIFICATE")
                .filter(|_| endpoints.variables_are_its)
                .map(PathBuf::from),
            traces: traces.then_some(endpoints.traces),
            metrics: metrics.then_some(endpoints.metrics),
            resource: variables.resource(host),
            sampler: variables.sampler()?,
            timeout: variables.millis("OTEL_EXPORTER_OTLP_TIMEOUT", TIMEOUT)?,
            every: variables.millis("OTEL_METRIC_EXPORT_INTERVAL", EVERY)?,
        }))
    }
}

struct Endpoints {
    traces: CollectorUrl,
    metrics: CollectorUrl,
    /// Whether the variables' headers and certificate are meant for it.
    variables_are_its: bool,
}

impl Endpoints {
    fn read(target: &OtlpTarget, variables: &Variables<'_>) -> Result<Self, String> {
        let url = |name: &str| -> Result<Option<CollectorUrl>, String> {
            let parsed = variables.get(name).map(|text| CollectorUrl::parse(&text));
            parsed.transpose().map_err(|wrong| format!("{name} {wrong}"))
        };
        let (of_traces, of_metrics) = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_METRICS_ENDPOINT");
        if !target.is_by_environment() {
            let base = CollectorUrl::parse(target.as_str()).map_err(|wrong| format!("otlp {wrong}"))?;
            // What is no URL leads nowhere, so not here either.
            let is_its = |name: &str| {
                variables
                    .get(name)
                    .is_none_or(|text| CollectorUrl::parse(&text).is_ok_and(|url| url.is_same_server(&base)))
            };
            let variables_are_its = ["OTEL_EXPORTER_OTLP_ENDPOINT", of_traces, of_metrics].into_iter().all(is_its);
            return Ok(Self { traces: base.below("v1/traces"), metrics: base.below("v1/metrics"), variables_are_its });
        }
        for name in
            ["OTEL_EXPORTER_OTLP_PROTOCOL", "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_METRICS_PROTOCOL"]
        {
            if variables.get(name).is_some_and(|protocol| protocol != "http/protobuf") {
                let helps = "Say where it is with `otlp` (for most collectors, http://localhost:4318).";
                return Err(format!("{name} names another protocol than http/protobuf, the one spoken here. {helps}"));
            }
        }
        let base = match url("OTEL_EXPORTER_OTLP_ENDPOINT")? {
            Some(base) => base,
            None => CollectorUrl::parse(DEFAULT)?,
        };
        Ok(Self {
            traces: url(of_traces)?.unwrap_or_else(|| base.below("v1/traces")),
            metrics: url(of_metrics)?.unwrap_or_else(|| base.below("v1/metrics")),
            variables_are_its: true,
        })
    }
}

struct Variables<'a>(&'a Environment);

impl Variables<'_> {
    /// A variable; an empty one is none, by the specification.
    fn get(&self, name: &str) -> Option<String> {
        let text = self.0.get(name)?.to_str()?.trim();
        (!text.is_empty()).then(|| text.to_owned())
    }

    fn says(&self, name: &str, word: &str) -> bool {
        self.get(name).is_some_and(|text| text.eq_ignore_ascii_case(word))
    }

    fn millis(&self, name: &str, (least, usual, most): (u64, u64, u64)) -> Result<Duration, String> {
        let millis = match self.get(name) {
            None => usual,
            Some(text) => text.parse().map_err(|_| format!("{name} is no number of milliseconds"))?,
        };
        Ok(Duration::from_millis(millis.clamp(least, most)))
    }

    fn sampler(&self) -> Result<Sampler, String> {
        let name = self.get("OTEL_TRACES_SAMPLER").unwrap_or_else(|| "parentbased_always_on".to_owned());
        let argument = self.get("OTEL_TRACES_SAMPLER_ARG");
        Sampler::named(&name, argument.as_deref()).ok_or_else(|| {
            let known = "always_on, always_off and traceidratio, each also with parentbased_ before it";
            format!("OTEL_TRACES_SAMPLER or its argument is not understood; known are {known}")
        })
    }

    fn headers(&self, name: &str) -> Result<Vec<Header>, String> {
        let Some(list) = self.get(name) else { return Ok(Vec::new()) };
        let broken = || format!("{name} holds what is no header; it is written NAME=VALUE,NAME=VALUE");
        let mut headers = Vec::new();
        for pair in list.split(',').map(str::trim).filter(|pair| !pair.is_empty()) {
            let (name, value) = pair.split_once('=').ok_or_else(broken)?;
            let value = decoded(value.trim()).ok_or_else(broken)?;
            let mut value = HeaderValue::from_str(&value).map_err(|_| broken())?;
            value.set_sensitive(true);
            let name = HeaderName::from_bytes(name.trim().as_bytes()).map_err(|_| broken())?;
            // What the request says itself is not to be said twice.
            let ours = ["host", "content-type", "content-length", "connection", "transfer-encoding"];
            if ours.contains(&name.as_str()) || headers.len() >= HEADERS {
                return Err(format!(
                    "{name} cannot be set here, or there are more than {HEADERS} headers",
                    name = name.as_str()
                ));
            }
            headers.push(Header { name, value });
        }
        Ok(headers)
    }

    /// What the sender says of itself. What the user says of it comes first; who it is cannot be said otherwise.
    fn resource(&self, host: HostId) -> Vec<(String, Value)> {
        let mut said: Vec<(String, Value)> = Vec::new();
        let mut set = |name: &str, value: String| {
            let value: String = value.chars().filter(|c| !c.is_control()).take(ATTRIBUTE).collect();
            match said.iter().position(|(known, _)| known == name) {
                Some(at) => said[at].1 = Value::Text(value),
                None if said.len() < ATTRIBUTES => said.push((name.to_owned(), Value::Text(value))),
                None => {}
            }
        };
        set("service.name", "phone-opus".to_owned());
        set("service.version", env!("CARGO_PKG_VERSION").to_owned());
        for pair in self.get("OTEL_RESOURCE_ATTRIBUTES").unwrap_or_default().split(',') {
            if let Some((name, value)) = pair.split_once('=')
                && let (Some(name), Some(value)) = (decoded(name.trim()), decoded(value.trim()))
                && !name.is_empty()
                && name.len() <= ATTRIBUTE
            {
                set(&name, value);
            }
        }
        if let Some(name) = self.get("OTEL_SERVICE_NAME") {
            set("service.name", name);
        }
        set("service.instance.id", host.to_string());
        said
    }
}

/// A text with its `%41` read; `None` where that is broken.
fn decoded(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((byte, after)) = rest.split_first() {
        rest = after;
        if *byte == b'%' {
            let pair = std::str::from_utf8(rest.get(..2)?).ok().filter(|pair| !pair.starts_with('+'))?;
            bytes.push(u8::from_str_radix(pair, 16).ok()?);
            rest = &rest[2..];
        } else {
            bytes.push(*byte);
        }
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(target: &str, variables: &[(&str, &str)]) -> Result<Option<OtlpSettings>, String> {
        let environment: Environment = variables.iter().copied().collect();
        OtlpSettings::read(&OtlpTarget::new(target), &environment, HostId::random())
    }

    fn good(target: &str, variables: &[(&str, &str)]) -> OtlpSettings {
        read(target, variables).expect("it is understood").expect("it is on")
    }

    const ENDPOINT: &str = "OTEL_EXPORTER_OTLP_ENDPOINT";
    const TOKEN: (&str, &str) = ("OTEL_EXPORTER_OTLP_HEADERS", "authorization=Bearer%20SECRET,x-a=b");

    #[test]
    fn where_it_goes_is_the_configurations_word_and_the_variables_only_where_that_says_so() {
        let both = |settings: &OtlpSettings| {
            let shown = |url: &Option<CollectorUrl>| url.as_ref().map(CollectorUrl::shown).unwrap_or_default();
            (shown(&settings.traces), shown(&settings.metrics))
        };
        let at = |base: &str| (format!("{base}/v1/traces"), format!("{base}/v1/metrics"));
        let elsewhere = (ENDPOINT, "https://elsewhere.example");
        assert_eq!(both(&good("http://localhost:9", &[elsewhere])), at("http://localhost:9"));
        assert_eq!(both(&good("env", &[])), at("http://localhost:4318"));
        assert_eq!(both(&good("env", &[(ENDPOINT, " ")])), at("http://localhost:4318"), "empty is unset");
        assert_eq!(both(&good("env", &[elsewhere])), at("https://elsewhere.example:443"));
        let single = [elsewhere, ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "https://t.example/in")];
        let (traces, metrics) = both(&good("env", &single));
        assert_eq!(traces, "https://t.example:443/in", "as it is");
        assert_eq!(metrics, "https://elsewhere.example:443/v1/metrics");
        let only = good("http://localhost:9", &[("OTEL_METRICS_EXPORTER", "none")]);
        assert!(only.traces.is_some() && only.metrics.is_none());
    }

    #[test]
    fn headers_are_sent_to_the_collector_they_are_meant_for_and_shown_nowhere() {
        let names =
            |settings: &OtlpSettings| settings.headers.iter().map(|header| header.name.to_string()).collect::<Vec<_>>();
        let own = good("https://c.example", &[TOKEN]);
        assert_eq!(names(&own), ["authorization", "x-a"]);
        assert_eq!(own.headers[0].value.as_bytes(), b"Bearer SECRET");
        assert!(!format!("{own:?}").contains("SECRET"));
        assert_eq!(names(&good("https://c.example", &[TOKEN, (ENDPOINT, "https://c.example/x")])).len(), 2);
        let others: &[&[(&str, &str)]] = &[
            &[TOKEN, (ENDPOINT, "https://other.example")],
            &[TOKEN, (ENDPOINT, "http://c.example")],
            &[TOKEN, ("OTEL_EXPORTER_OTLP_METRICS_ENDPOINT", "https://c.example:444")],
            &[TOKEN, (ENDPOINT, "nonsense")],
        ];
        for variables in others {
            assert_eq!(names(&good("https://c.example", variables)), Vec::<String>::new(), "{variables:?}");
        }
    }

    #[test]
    fn the_variables_authorities_are_believed_for_the_collector_they_are_meant_for() {
        const CERTIFICATE: (&str, &str) = ("OTEL_EXPORTER_OTLP_CERTIFICATE", "/etc/ours.pem");
        let by = |target, variables: &[(&str, &str)]| good(target, variables).certificate;
        let ours = Some(PathBuf::from(CERTIFICATE.1));
        assert_eq!(by("https://c.example", &[CERTIFICATE]), ours);
        assert_eq!(by("https://c.example", &[CERTIFICATE, (ENDPOINT, "https://c.example")]), ours);
        assert_eq!(by("env", &[CERTIFICATE, (ENDPOINT, "https://c.example")]), ours);
        assert_eq!(by("https://c.example", &[CERTIFICATE, (ENDPOINT, "https://other.example")]), None);
        assert_eq!(by("https://c.example", &[]), None);
    }

    #[test]
    fn what_cannot_be_used_is_said_without_its_text() {
        for (target, variables, why) in [
            ("env", &[(ENDPOINT, "http://SECRET.example")][..], "without encryption"),
            ("env", &[(ENDPOINT, "https://a:SECRET@c.example")], "has a login in it"),
            ("env", &[("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")], "another protocol than http/protobuf"),
            ("https://c.example", &[("OTEL_EXPORTER_OTLP_HEADERS", "SECRET")], "what is no header"),
            ("https://c.example", &[("OTEL_EXPORTER_OTLP_HEADERS", "a=SECRET%")], "what is no header"),
            ("https://c.example", &[("OTEL_EXPORTER_OTLP_HEADERS", "a=SECRET%0d%0ab: c")], "what is no header"),
            ("https://c.example", &[("OTEL_EXPORTER_OTLP_HEADERS", "Host=SECRET")], "host cannot be set here"),
            ("https://c.example", &[("OTEL_TRACES_SAMPLER", "SECRET")], "OTEL_TRACES_SAMPLER"),
            ("https://c.example", &[("OTEL_EXPORTER_OTLP_TIMEOUT", "SECRET")], "no number of milliseconds"),
        ] {
            let wrong = read(target, variables).expect_err(why);
            // Which machine was meant has to be said, or nobody could put it right.
            assert!(wrong.contains(why) && (why == "without encryption" || !wrong.contains("SECRET")), "{wrong}");
        }
        for off in [
            &[("OTEL_SDK_DISABLED", "TRUE")][..],
            &[("OTEL_TRACES_EXPORTER", "none"), ("OTEL_METRICS_EXPORTER", "none")],
        ] {
            assert!(read("https://c.example", off).expect("understood").is_none(), "{off:?}");
        }
        assert!(read("env", &[("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf")]).is_ok());
        assert!(read("https://c.example", &[("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")]).is_ok(), "not ours to be asked");
    }

    #[test]
    fn a_sender_is_called_what_its_user_says_and_is_told_apart() {
        let said = |variables: &[(&str, &str)]| good("env", variables).resource;
        let text = |resource: &[(String, Value)], name: &str| -> String {
            match resource.iter().find(|(known, _)| known == name) {
                Some((_, Value::Text(text))) => text.clone(),
                other => format!("{other:?}"),
            }
        };
        let plain = said(&[]);
        assert_eq!(text(&plain, "service.name"), "phone-opus");
        assert_eq!(text(&plain, "service.instance.id").len(), 36);
        let attributes = (
            "OTEL_RESOURCE_ATTRIBUTES",
            "team=a%20b,service.name=x,service.instance.id=y,broken,=z,deployment.environment.name=ci",
        );
        let named = said(&[attributes]);
        assert_eq!((text(&named, "service.name"), text(&named, "team")), ("x".to_owned(), "a b".to_owned()));
        assert_eq!(text(&named, "deployment.environment.name"), "ci");
        assert_eq!(text(&named, "service.instance.id").len(), 36, "who it is cannot be said otherwise");
        assert_eq!(text(&said(&[attributes, ("OTEL_SERVICE_NAME", "mine")]), "service.name"), "mine");
        let many: Vec<String> = (0..200).map(|n| format!("k{n}={}", "v".repeat(999))).collect();
        let many = said(&[("OTEL_RESOURCE_ATTRIBUTES", &many.join(","))]);
        assert!(
            many.len() <= ATTRIBUTES
                && many.iter().all(|(_, value)| matches!(value, Value::Text(text) if text.len() <= ATTRIBUTE))
        );
    }
}
