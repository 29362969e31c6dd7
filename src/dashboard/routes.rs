//! What is answered where.
//!
//! Owns: the routes, their headers, the bytes of the page. May not know: sockets; who may ask what is `judge`'s, which every request
//! passes before its route.
//!
//! Invariants: (1) every answer has the headers of [`HEADERS`], a refusal too; (2) a body is read whole, within its limit, before
//! anything is done with it; (3) what is sent of a job is JSON, and the page makes text of it.

use std::time::{Duration, Instant};

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::extract::{Path, Query, Request, State};
use axum::http::header::{
    AUTHORIZATION, CONTENT_TYPE, COOKIE, HOST, HeaderMap, HeaderName, HeaderValue, ORIGIN, SET_COOKIE,
};
use axum::http::{Method, StatusCode};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::Response;
use axum::routing::{get, post};
use bytes::Bytes;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::time::timeout;

use super::desk::Desk;
use super::gate::{AskedVerb, CameBy, GateRefusal, RequestHead, Shown, judge};
use super::keys::{SESSION, Secret};
use super::looking;
use super::metrics::{self, Measured};
use super::picture;
use super::streams::{job_stream, picture_stream};
use crate::base::fault::{Fault, FaultClass, FaultCode};
use crate::base::ids::{JobId, UnixMillis};
use crate::base::tasks;
use crate::config::Config;
use crate::daemon::control::DaemonStatus;
use crate::jobs::host_lock::HostLock;
use crate::jobs::store::StoreError;
use crate::seen::live;

/// Bytes of a body. The longest there is has a token in it, which is 64 letters.
pub const BODY: usize = 4 * 1024;

/// How long a body may take to come.
const BODY_TIME: Duration = Duration::from_secs(5);

/// The header that a page of ours sends with every request.
pub const OURS: &str = "x-phone-opus";

/// What every answer says to a browser: nothing of another host, no script but our files, no frame around it, nothing kept.
const HEADERS: [(&str, &str); 9] = [
    (
        "content-security-policy",
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; base-uri 'none'; \
         form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'",
    ),
    ("x-content-type-options", "nosniff"),
    ("x-frame-options", "DENY"),
    ("referrer-policy", "no-referrer"),
    ("cross-origin-opener-policy", "same-origin"),
    ("cross-origin-resource-policy", "same-origin"),
    ("cross-origin-embedder-policy", "require-corp"),
    ("permissions-policy", "camera=(), geolocation=(), microphone=(), payment=(), usb=()"),
    ("cache-control", "no-store"),
];

const HTML: &str = "text/html; charset=utf-8";
const SCRIPT: &str = "text/javascript; charset=utf-8";

const PAGE: &str = include_str!("page/index.html");
const STYLE: &str = include_str!("page/style.css");
const ICON: &str = include_str!("page/icon.svg");

/// The page's scripts, by name.
const SCRIPTS: [(&str, &str); 5] = [
    ("page.js", include_str!("page/page.js")),
    ("line.js", include_str!("page/line.js")),
    ("words.js", include_str!("page/words.js")),
    ("rows.js", include_str!("page/rows.js")),
    ("views.js", include_str!("page/views.js")),
];

/// Everything that is answered.
pub fn router(desk: Desk) -> Router {
    Router::new()
        .route("/", get(|| async { file(HTML, PAGE) }))
        .route("/style.css", get(|| async { file("text/css; charset=utf-8", STYLE) }))
        .route("/icon.svg", get(|| async { file("image/svg+xml", ICON) }))
        .route("/script/{name}", get(script))
        .route("/api/session", post(exchange))
        .route("/api/overview", get(overview))
        .route("/api/live", get(follow))
        .route("/api/link", post(link))
        .route("/api/jobs/{id}", get(job))
        .route("/api/jobs/{id}/live", get(follow_job))
        .route("/api/jobs/{id}/cancel", post(cancel))
        .route("/metrics", get(numbers))
        .fallback(|| async { refused(GateRefusal::Nowhere) })
        .layer(from_fn_with_state(desk.clone(), admit))
        .with_state(desk)
}

/// Lets a request through to its route, or answers it.
async fn admit(State(desk): State<Desk>, mut request: Request, next: Next) -> Response {
    let verdict = verdict(&desk, &request);
    let answered = match verdict {
        Err(refusal) => refused(refusal),
        Ok(()) => {
            if request.method() == Method::POST {
                request = match whole(request).await {
                    Ok(request) => request,
                    Err(status) => {
                        return finished(failed(status, "body_refused", "The body is too long, or does not come."));
                    }
                };
            }
            next.run(request).await
        }
    };
    finished(answered)
}

fn verdict(desk: &Desk, request: &Request) -> Result<(), GateRefusal> {
    let headers = request.headers();
    let by = request.extensions().get::<CameBy>().copied().ok_or(GateRefusal::Nowhere)?;
    let key = one(headers, HeaderName::from_static(OURS));
    let cookie = cookie(headers, desk.port());
    let (cookie, key_is) = desk.keys().standing(cookie, key, Instant::now());
    let bearer = match (headers.get(AUTHORIZATION), desk.token()) {
        (None, _) => Shown::Nothing,
        (Some(said), Some(token)) if token.is_said_by(said.as_bytes()) => Shown::Right,
        (Some(_), _) => Shown::Wrong,
    };
    let verb = match *request.method() {
        Method::GET => AskedVerb::Look,
        Method::POST => AskedVerb::Change,
        _ => AskedVerb::Other,
    };
    let head = RequestHead {
        by,
        verb,
        path: request.uri().path(),
        host: host(request),
        origin: said(headers, ORIGIN),
        site: said(headers, HeaderName::from_static("sec-fetch-site")),
        header: key_is,
        cookie,
        bearer,
    };
    judge(&head).map(|_| ())
}

/// The one `Host` there is; none where there are several, or the request's own line names another.
fn host(request: &Request) -> Option<&str> {
    let host = one(request.headers(), HOST)?;
    request.uri().authority().is_none_or(|named| named.as_str() == host).then_some(host)
}

/// A header that may be said once.
fn one(headers: &HeaderMap, name: HeaderName) -> Option<&str> {
    let mut all = headers.get_all(name).iter();
    let first = all.next()?.to_str().ok()?;
    all.next().is_none().then_some(first)
}

/// A header that is judged when it is there: what cannot be read or is said twice is none of ours.
fn said(headers: &HeaderMap, name: HeaderName) -> Option<&str> {
    headers.contains_key(&name).then(|| one(headers, name).unwrap_or("?"))
}

/// The cookie's name has the port in it: cookies are sent to every port of a host.
fn cookie_name(port: u16) -> String {
    format!("phone_opus_{port}")
}

fn cookie(headers: &HeaderMap, port: u16) -> Option<&str> {
    let name = cookie_name(port);
    let all = headers.get_all(COOKIE).iter().filter_map(|value| value.to_str().ok());
    let mut ours = all.flat_map(|line| line.split(';')).filter_map(|pair| pair.trim().split_once('='));
    ours.find(|(said, _)| *said == name).map(|(_, value)| value)
}

/// The request with all of its body.
async fn whole(request: Request) -> Result<Request, StatusCode> {
    let (parts, body) = request.into_parts();
    match timeout(BODY_TIME, to_bytes(body, BODY)).await {
        Ok(Ok(bytes)) => Ok(Request::from_parts(parts, Body::from(bytes))),
        Ok(Err(_)) => Err(StatusCode::PAYLOAD_TOO_LARGE),
        Err(_) => Err(StatusCode::REQUEST_TIMEOUT),
    }
}

fn finished(mut response: Response) -> Response {
    let headers = response.headers_mut();
    for (name, value) in HEADERS {
        headers.insert(HeaderName::from_static(name), HeaderValue::from_static(value));
    }
    response
}

fn answer(status: StatusCode, media: &'static str, body: impl Into<Body>) -> Response {
    let mut response = Response::new(body.into());
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(media));
    response
}

fn file(media: &'static str, text: &'static str) -> Response {
    answer(StatusCode::OK, media, text)
}

fn told(value: &Value) -> Response {
    answer(StatusCode::OK, "application/json", value.to_string())
}

fn failed(status: StatusCode, code: &str, detail: &str) -> Response {
    answer(status, "application/json", json!({"error": {"code": code, "detail": detail}}).to_string())
}

fn refused(refusal: GateRefusal) -> Response {
    let status = StatusCode::from_u16(refusal.status()).unwrap_or(StatusCode::FORBIDDEN);
    failed(status, refusal.code(), refusal.words())
}

fn faulty(fault: &Fault) -> Response {
    let status = match (fault.code, fault.code.class()) {
        (FaultCode::UnknownJob, _) => StatusCode::NOT_FOUND,
        (FaultCode::InvalidInput, _) => StatusCode::BAD_REQUEST,
        (_, FaultClass::Resource | FaultClass::Store) => StatusCode::SERVICE_UNAVAILABLE,
        _ => StatusCode::INTERNAL_SERVER_ERROR,
    };
    answer(status, "application/json", json!({"error": fault}).to_string())
}

fn stream(body: Body) -> Response {
    answer(StatusCode::OK, "text/event-stream", body)
}

async fn script(Path(name): Path<String>) -> Response {
    match SCRIPTS.iter().find(|(known, _)| *known == name) {
        Some((_, text)) => file(SCRIPT, text),
        None => refused(GateRefusal::Nowhere),
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ExchangeAsked {
    token: String,
}

/// The token for a session: its cookie, which scripts do not see, and its key, which is sent to this port only.
async fn exchange(State(desk): State<Desk>, body: Bytes) -> Response {
    let Ok(asked) = serde_json::from_slice::<ExchangeAsked>(&body) else {
        return failed(StatusCode::BAD_REQUEST, "invalid_input", "Accepted: {\"token\": \"…\"}.");
    };
    let (cookie, key) = (Secret::fresh(), Secret::fresh());
    if !desk.keys().exchange(&asked.token, &cookie, &key, Instant::now()) {
        return refused(GateRefusal::Stranger);
    }
    let mut response = told(&json!({"key": key.text(), "lasts_s": SESSION.as_secs()}));
    let (name, lasts) = (cookie_name(desk.port()), SESSION.as_secs());
    let line = format!("{name}={}; HttpOnly; SameSite=Strict; Path=/; Max-Age={lasts}", cookie.text());
    if let Ok(line) = HeaderValue::from_str(&line) {
        response.headers_mut().insert(SET_COOKIE, line);
    }
    response
}

async fn overview(State(desk): State<Desk>) -> Response {
    match desk.fresh().await {
        Ok(()) => told(&desk.whole()),
        Err(fault) => faulty(&fault),
    }
}

/// From where a stream is wanted: `Last-Event-ID`, or the same in the query where a page comes again by itself.
#[derive(Deserialize)]
struct From {
    after: Option<String>,
}

fn heard(headers: &HeaderMap, from: From) -> Option<String> {
    one(headers, HeaderName::from_static("last-event-id")).map(str::to_owned).or(from.after)
}

fn too_many() -> Response {
    faulty(&Fault::new(FaultCode::Busy, "too many pages follow this dashboard; close one of them."))
}

async fn follow(State(desk): State<Desk>, headers: HeaderMap, Query(from): Query<From>) -> Response {
    let Some(place) = desk.place() else { return too_many() };
    let told = desk.told();
    // What this one is sent first is not what somebody saw an hour ago.
    if let Err(fault) = desk.fresh().await {
        return faulty(&fault);
    }
    let heard = heard(&headers, from).and_then(|id| desk.heard(&id));
    stream(Body::from_stream(picture_stream(desk, told, heard, place)))
}

fn job_id(id: &str) -> Result<JobId, Response> {
    id.parse().map_err(|_| refused(GateRefusal::Nowhere))
}

async fn job(State(desk): State<Desk>, Path(id): Path<String>) -> Response {
    let id = match job_id(&id) {
        Ok(id) => id,
        Err(refused) => return refused,
    };
    match desk.store().job(id).await {
        Ok(record) => told(&picture::record(&record)),
        Err(error) => faulty(&Fault::from(&error)),
    }
}

async fn follow_job(
    State(desk): State<Desk>,
    Path(id): Path<String>,
    headers: HeaderMap,
    Query(from): Query<From>,
) -> Response {
    let id = match job_id(&id) {
        Ok(id) => id,
        Err(refused) => return refused,
    };
    let Some(place) = desk.place() else { return too_many() };
    let after = heard(&headers, from).and_then(|id| id.parse().ok()).unwrap_or(0);
    stream(Body::from_stream(job_stream(desk, id, after, place)))
}

async fn cancel(State(desk): State<Desk>, Path(id): Path<String>) -> Response {
    let id = match job_id(&id) {
        Ok(id) => id,
        Err(refused) => return refused,
    };
    match desk.cancel(id).await {
        Ok(done) => told(&done),
        Err(fault) => faulty(&fault),
    }
}

async fn link(State(desk): State<Desk>) -> Response {
    told(&json!({"url": desk.link()}))
}

async fn numbers(State(desk): State<Desk>) -> Response {
    let dir = desk.dir().clone();
    let asked = tasks::spawn_blocking(move || {
        let status = live::daemon(&dir);
        let tool = |name| status.as_ref().and_then(|_| looking::tool(&dir, name));
        let (telemetry, health) = (tool("telemetry_snapshot"), tool("health_snapshot"));
        (status, telemetry, health)
    });
    let (daemon, telemetry, health): (Option<DaemonStatus>, _, _) = asked.await.unwrap_or_default();
    let now = UnixMillis::now();
    let today = now.to_iso8601().chars().take(10).collect::<String>();
    let stored = async {
        if !desk.dir().database().exists() {
            return Ok::<_, StoreError>((Some(Default::default()), Vec::new(), Vec::new()));
        }
        let store = desk.store();
        Ok((Some(store.counts().await?), store.hosts().await?, store.cost_by_day(midnight(now)).await?))
    };
    let (counts, mut hosts, costs) = stored.await.unwrap_or_default();
    hosts.retain(|row| HostLock::lives(desk.dir(), row.host));
    let most = hosts.iter().map(|row| row.seen.max_running).max().filter(|most| *most > 0);
    let measured = Measured {
        counts,
        places: most.unwrap_or_else(|| Config::default().max_running),
        hosts: &hosts,
        daemon: daemon.as_ref(),
        telemetry: telemetry.as_ref(),
        health: health.as_ref(),
        today: costs.iter().find(|day| day.day == today),
        streams: desk.streams(),
    };
    answer(StatusCode::OK, metrics::MEDIA, metrics::text(&measured))
}

/// The beginning of the day in UTC.
const fn midnight(now: UnixMillis) -> UnixMillis {
    const DAY: i64 = 24 * 60 * 60 * 1000;
    UnixMillis(now.0 - now.0.rem_euclid(DAY))
}
