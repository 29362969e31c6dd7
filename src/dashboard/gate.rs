//! Who may ask the dashboard what.
//!
//! Owns: the judgement about one request's head. Pure. May not know: bytes, connections, what is answered, how secrets are kept.
//!
//! ```text
//! by TCP:  Host ─▶ Origin ─▶ Sec-Fetch-Site ─▶ room ─▶ method ─▶ header of ours ─▶ cookie
//! by the Unix socket, whose peer the kernel has told us:   room ─▶ method
//! ```
//!
//! Invariants: (1) a request by TCP with another name than ours under `Host` gets nothing, the page included, so that a name that
//! somebody leads to this machine opens nothing; (2) one that a page of another origin sent gets nothing; (3) nothing is shown or
//! changed by TCP without the cookie *and* the header: a browser sends cookies to every port of this machine, whoever listens
//! there, and sends that header only for a page of ours; (4) what is not known is refused.

/// By which door a request came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CameBy {
    /// The loopback port.
    Port(u16),
    /// The socket in the file system: the kernel said that the peer is this user.
    Socket,
}

/// What a request wants to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AskedVerb {
    /// GET.
    Look,
    /// POST.
    Change,
    /// Anything else.
    Other,
}

/// Where it is to be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AskedRoom {
    /// The page's own files, the same for everybody and without a word of anybody's.
    Page,
    /// Where a token is exchanged.
    Exchange,
    /// What is looked at.
    View,
    /// What is changed.
    Deed,
    /// The numbers for Prometheus.
    Metrics,
    /// What is for tools at the socket alone.
    Tools,
    /// Nothing is there.
    Nowhere,
}

impl AskedRoom {
    /// The room of a path, which is compared as it stands: nothing is decoded, joined or shortened.
    #[must_use]
    pub fn of(path: &str) -> Self {
        let job = |rest: &str| rest.len() == 36 && rest.bytes().all(|byte| byte.is_ascii_hexdigit() || byte == b'-');
        match path {
            "/" | "/style.css" | "/icon.svg" => Self::Page,
            "/api/session" => Self::Exchange,
            "/api/overview" | "/api/live" => Self::View,
            "/api/link" => Self::Tools,
            "/metrics" => Self::Metrics,
            _ if path.strip_prefix("/script/").is_some_and(is_script) => Self::Page,
            _ => match path.strip_prefix("/api/jobs/").map(|rest| rest.split_once('/').unwrap_or((rest, ""))) {
                Some((id, "" | "live")) if job(id) => Self::View,
                Some((id, "cancel")) if job(id) => Self::Deed,
                _ => Self::Nowhere,
            },
        }
    }

    const fn takes(self, verb: AskedVerb) -> bool {
        match self {
            Self::Page | Self::View | Self::Metrics => matches!(verb, AskedVerb::Look),
            Self::Exchange | Self::Deed | Self::Tools => matches!(verb, AskedVerb::Change),
            Self::Nowhere => false,
        }
    }
}

fn is_script(name: &str) -> bool {
    name.strip_suffix(".js").is_some_and(|stem| !stem.is_empty() && stem.bytes().all(|byte| byte.is_ascii_lowercase()))
}

/// What a request shows of a secret.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shown {
    /// Nothing.
    Nothing,
    /// Something that is not right, or not any more.
    Wrong,
    /// What is right.
    Right,
}

/// What is known of a request before anything is done.
#[derive(Debug, Clone, Copy)]
pub struct RequestHead<'a> {
    /// By which door.
    pub by: CameBy,
    /// What it wants.
    pub verb: AskedVerb,
    /// The path, without a query.
    pub path: &'a str,
    /// `Host`: each there is, and what the request's own line says if it names one. Exactly one is accepted.
    pub host: Option<&'a str>,
    /// `Origin`.
    pub origin: Option<&'a str>,
    /// `Sec-Fetch-Site`, which browsers send and pages cannot set.
    pub site: Option<&'a str>,
    /// The header that only a page of ours can send.
    pub header: Shown,
    /// The cookie, together with what stands in the header where the exchange has given it.
    pub cookie: Shown,
    /// The token of `Authorization`, for the numbers alone.
    pub bearer: Shown,
}

/// Why a request gets nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GateRefusal {
    /// `Host` is not ours.
    Host,
    /// A page of another origin sent it.
    Origin,
    /// There is nothing.
    Nowhere,
    /// Not that way.
    Method,
    /// The header is missing.
    Header,
    /// Nobody we know.
    Stranger,
    /// What was exchanged is over, or its server is.
    Over,
}

impl GateRefusal {
    /// The status of HTTP.
    #[must_use]
    pub const fn status(self) -> u16 {
        match self {
            Self::Host | Self::Origin | Self::Header => 403,
            Self::Nowhere => 404,
            Self::Method => 405,
            Self::Stranger | Self::Over => 401,
        }
    }

    /// One word for programs.
    #[must_use]
    pub const fn code(self) -> &'static str {
        match self {
            Self::Host => "wrong_host",
            Self::Origin => "wrong_origin",
            Self::Nowhere => "not_found",
            Self::Method => "wrong_method",
            Self::Header => "header_missing",
            Self::Stranger => "not_signed_in",
            Self::Over => "session_over",
        }
    }

    /// A sentence for people.
    #[must_use]
    pub const fn words(self) -> &'static str {
        match self {
            Self::Host => "This server answers to 127.0.0.1 and localhost with its own port, and to no other name.",
            Self::Origin => "A page of another origin is not served.",
            Self::Nowhere => "There is nothing here.",
            Self::Method => "This is not how it is asked.",
            Self::Header => "The header X-Phone-Opus is missing, or is not this page's.",
            Self::Stranger => "Open the address that `phone-opus dashboard` printed; it opens the page once.",
            Self::Over => "This page's access is over. `phone-opus dashboard` prints a new address.",
        }
    }
}

/// Judges a request.
///
/// # Errors
///
/// It gets nothing, and why.
pub fn judge(head: &RequestHead<'_>) -> Result<AskedRoom, GateRefusal> {
    let room = AskedRoom::of(head.path);
    if let CameBy::Port(port) = head.by {
        from_a_page_of_ours(head, port, room)?;
    }
    match room {
        AskedRoom::Nowhere => return Err(GateRefusal::Nowhere),
        _ if !room.takes(head.verb) => return Err(GateRefusal::Method),
        _ => {}
    }
    if head.by == CameBy::Socket {
        return match room {
            // Pages and their secrets are for browsers.
            AskedRoom::Page | AskedRoom::Exchange => Err(GateRefusal::Nowhere),
            _ => Ok(room),
        };
    }
    match room {
        AskedRoom::Page => Ok(room),
        AskedRoom::Tools | AskedRoom::Nowhere => Err(GateRefusal::Nowhere),
        AskedRoom::Exchange if head.header == Shown::Nothing => Err(GateRefusal::Header),
        AskedRoom::Exchange => Ok(room),
        AskedRoom::Metrics if head.bearer == Shown::Right => Ok(room),
        AskedRoom::Metrics | AskedRoom::View | AskedRoom::Deed => match (head.cookie, head.header) {
            (Shown::Nothing, _) => Err(GateRefusal::Stranger),
            (Shown::Wrong, _) => Err(GateRefusal::Over),
            (Shown::Right, Shown::Right) => Ok(room),
            (Shown::Right, _) => Err(GateRefusal::Header),
        },
    }
}

/// Whether a request names us, and was sent by no page but ours.
fn from_a_page_of_ours(head: &RequestHead<'_>, port: u16, room: AskedRoom) -> Result<(), GateRefusal> {
    let host = head.host.filter(|host| is_ours(host, port)).ok_or(GateRefusal::Host)?;
    match head.origin {
        // The page and the request have one name for us: two would be two origins.
        Some(origin) if origin.strip_prefix("http://") != Some(host) => return Err(GateRefusal::Origin),
        // A browser says where a change comes from, always.
        None if head.verb != AskedVerb::Look => return Err(GateRefusal::Origin),
        _ => {}
    }
    match (head.site, room) {
        // Without it: no browser, or an old one, whose page has said its origin or only looks, which needs the header.
        (None | Some("same-origin"), _) => Ok(()),
        // Whoever types the address, or follows a link to it. The page says nothing to anybody.
        (Some("none" | "cross-site" | "same-site"), AskedRoom::Page) if head.path == "/" => Ok(()),
        (Some("none"), AskedRoom::Page) => Ok(()),
        (Some(_), _) => Err(GateRefusal::Origin),
    }
}

fn is_ours(host: &str, port: u16) -> bool {
    let name = host.strip_suffix(&port.to_string()).and_then(|rest| rest.strip_suffix(':'));
    matches!(name, Some("127.0.0.1" | "localhost"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const PORT: u16 = 4100;
    const JOB: &str = "/api/jobs/6f0c4f0e-5f0b-4c0e-9a57-0d7a1f0e8b11";

    /// A page of ours that looks.
    fn look<'a>() -> RequestHead<'a> {
        RequestHead {
            by: CameBy::Port(PORT),
            verb: AskedVerb::Look,
            path: "/api/overview",
            host: Some("127.0.0.1:4100"),
            origin: None,
            site: Some("same-origin"),
            header: Shown::Right,
            cookie: Shown::Right,
            bearer: Shown::Nothing,
        }
    }

    /// A page of ours that cancels.
    fn change<'a>() -> RequestHead<'a> {
        const CANCEL: &str = "/api/jobs/6f0c4f0e-5f0b-4c0e-9a57-0d7a1f0e8b11/cancel";
        RequestHead { verb: AskedVerb::Change, path: CANCEL, origin: Some("http://127.0.0.1:4100"), ..look() }
    }

    fn page<'a>() -> RequestHead<'a> {
        let none = Shown::Nothing;
        RequestHead { path: "/", site: Some("none"), header: none, cookie: none, ..look() }
    }

    fn exchange<'a>() -> RequestHead<'a> {
        RequestHead { path: "/api/session", cookie: Shown::Nothing, header: Shown::Wrong, ..change() }
    }

    fn tool<'a>() -> RequestHead<'a> {
        let none = Shown::Nothing;
        RequestHead { by: CameBy::Socket, host: None, site: None, header: none, cookie: none, ..look() }
    }

    #[test]
    fn what_each_request_gets() {
        use AskedRoom::{Deed, Exchange, Metrics, Page, Tools, View};
        use GateRefusal::{Header, Host, Method, Nowhere, Origin, Over, Stranger};
        let job = RequestHead { path: JOB, ..look() };
        let metrics = RequestHead { path: "/metrics", ..page() };
        let link = RequestHead { path: "/api/link", verb: AskedVerb::Change, ..look() };
        for (head, verdict) in [
            (look(), Ok(View)),
            (RequestHead { site: None, ..look() }, Ok(View)),
            (job, Ok(View)),
            (change(), Ok(Deed)),
            (RequestHead { host: Some("localhost:4100"), origin: Some("http://localhost:4100"), ..change() }, Ok(Deed)),
            (page(), Ok(Page)),
            (RequestHead { path: "/script/page.js", site: Some("same-origin"), ..page() }, Ok(Page)),
            (exchange(), Ok(Exchange)),
            // Names that somebody leads here.
            (RequestHead { host: Some("evil.example:4100"), ..look() }, Err(Host)),
            (RequestHead { host: Some("evil.example:4100"), ..page() }, Err(Host)),
            (RequestHead { host: Some("127.0.0.1"), ..look() }, Err(Host)),
            (RequestHead { host: Some("127.0.0.1:4101"), ..look() }, Err(Host)),
            (RequestHead { host: Some("127.0.0.1:04100"), ..look() }, Err(Host)),
            (RequestHead { host: Some("127.0.0.1.evil.example:4100"), ..look() }, Err(Host)),
            (RequestHead { host: Some("localhost.:4100"), ..look() }, Err(Host)),
            (RequestHead { host: Some("[::1]:4100"), ..look() }, Err(Host)),
            (RequestHead { host: Some(""), ..look() }, Err(Host)),
            (RequestHead { host: None, ..page() }, Err(Host)),
            // Pages of others.
            (RequestHead { origin: Some("http://evil.example"), ..look() }, Err(Origin)),
            (RequestHead { origin: Some("http://evil.example"), ..page() }, Err(Origin)),
            (RequestHead { origin: Some("null"), ..change() }, Err(Origin)),
            (RequestHead { origin: Some("http://127.0.0.1:4101"), ..change() }, Err(Origin)),
            (RequestHead { origin: Some("https://127.0.0.1:4100"), ..change() }, Err(Origin)),
            (RequestHead { origin: Some("http://localhost:4100"), ..change() }, Err(Origin)),
            (RequestHead { origin: None, ..change() }, Err(Origin)),
            (RequestHead { origin: None, ..exchange() }, Err(Origin)),
            (RequestHead { site: Some("cross-site"), ..look() }, Err(Origin)),
            (RequestHead { site: Some("same-site"), ..look() }, Err(Origin)),
            (RequestHead { site: Some("same-site"), ..change() }, Err(Origin)),
            (RequestHead { site: Some("none"), ..look() }, Err(Origin)),
            (RequestHead { site: Some("cross-site"), ..page() }, Ok(Page)),
            (RequestHead { site: Some("cross-site"), path: "/script/page.js", ..page() }, Err(Origin)),
            // Nobody, somebody else, and somebody who was here.
            (RequestHead { cookie: Shown::Nothing, header: Shown::Nothing, ..look() }, Err(Stranger)),
            (RequestHead { cookie: Shown::Nothing, ..look() }, Err(Stranger)),
            (RequestHead { cookie: Shown::Wrong, ..look() }, Err(Over)),
            (RequestHead { header: Shown::Nothing, ..look() }, Err(Header)),
            (RequestHead { header: Shown::Wrong, ..change() }, Err(Header)),
            (RequestHead { header: Shown::Nothing, ..exchange() }, Err(Header)),
            // Other ways and places.
            (RequestHead { verb: AskedVerb::Change, origin: change().origin, ..look() }, Err(Method)),
            (RequestHead { verb: AskedVerb::Look, ..change() }, Err(Method)),
            (RequestHead { verb: AskedVerb::Other, ..change() }, Err(Method)),
            (RequestHead { path: "/../etc/passwd", ..look() }, Err(Nowhere)),
            (RequestHead { path: "/script/../style.css", ..look() }, Err(Nowhere)),
            (RequestHead { path: "/%2e%2e/etc/passwd", ..look() }, Err(Nowhere)),
            (RequestHead { path: "//etc/passwd", ..look() }, Err(Nowhere)),
            (RequestHead { path: "/api/jobs/../session", ..look() }, Err(Nowhere)),
            (RequestHead { path: "", ..look() }, Err(Nowhere)),
            // The numbers, and what is for tools.
            (metrics, Err(Origin)),
            (RequestHead { site: None, ..metrics }, Err(Stranger)),
            (RequestHead { site: None, bearer: Shown::Wrong, ..metrics }, Err(Stranger)),
            (RequestHead { site: None, bearer: Shown::Right, ..metrics }, Ok(Metrics)),
            (RequestHead { bearer: Shown::Right, cookie: Shown::Nothing, ..look() }, Err(Stranger)),
            (RequestHead { origin: change().origin, ..link }, Err(Nowhere)),
            (RequestHead { by: CameBy::Socket, ..link }, Ok(Tools)),
            (tool(), Ok(View)),
            (RequestHead { path: "/metrics", ..tool() }, Ok(Metrics)),
            (RequestHead { path: change().path, verb: AskedVerb::Change, ..tool() }, Ok(Deed)),
            (RequestHead { path: change().path, ..tool() }, Err(Method)),
            (RequestHead { path: "/", ..tool() }, Err(Nowhere)),
            (RequestHead { path: "/api/session", verb: AskedVerb::Change, ..tool() }, Err(Nowhere)),
        ] {
            assert_eq!(judge(&head), verdict, "{head:?}");
        }
    }

    #[test]
    fn a_path_leads_to_its_room_as_it_stands_or_nowhere() {
        for (path, room) in [
            ("/script/page.js", AskedRoom::Page),
            ("/script/.js", AskedRoom::Nowhere),
            ("/script/a.b.js", AskedRoom::Nowhere),
            ("/script/page.js/", AskedRoom::Nowhere),
            (JOB, AskedRoom::View),
            ("/api/jobs/6f0c4f0e", AskedRoom::Nowhere),
            ("/api/jobs/6f0c4f0e-5f0b-4c0e-9a57-0d7a1f0e8b11/live/", AskedRoom::Nowhere),
            ("/api/jobs/", AskedRoom::Nowhere),
            ("/metrics", AskedRoom::Metrics),
            ("/Metrics", AskedRoom::Nowhere),
        ] {
            assert_eq!(AskedRoom::of(path), room, "{path}");
        }
    }
}
