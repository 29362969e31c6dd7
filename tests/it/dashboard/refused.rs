//! Who gets nothing, and what is too much: one table against the page that the command serves and the one that a daemon serves.
//!
//! Laws: L9, L13.

use phone_opus::testkit::{Signal, until, until_seen};
use serde_json::json;
use tokio::io::AsyncBufReadExt as _;

use super::{By, Following, Served, new_rig, place, told};

#[tokio::test]
async fn who_has_no_right_gets_nothing_by_either_door_of_either_page_and_is_told_why() {
    for by in By::BOTH {
        let mut rig = new_rig();
        let served = Served::by(&mut rig, by).await;
        nobody_without_a_right_gets_anything(&served).await;
        served.end(Signal::INT).await;
        rig.stop_and_check_invariants([]).await;
    }
}

/// The whole table, against this page.
async fn nobody_without_a_right_gets_anything(served: &Served) {
    let opened = served.open().await;
    let (ours, origin) = (opened.headers(), served.origin());
    let right = served.ask("GET /api/overview", &ours, "").await;
    assert_eq!((right.status, right.json()["jobs"].clone()), (200, json!([])), "{right:?}");
    let unknown = "/api/jobs/6f0c4f0e-5f0b-4c0e-9a57-0d7a1f0e8b11";
    let cancel = format!("POST {unknown}/cancel");
    let foreign = "Origin: http://evil.example\r\n";
    let cookie = format!("Cookie: {}\r\n", opened.cookie);
    let wrong_key = format!("{cookie}X-Phone-Opus: 1\r\n");
    let stale = format!("Cookie: phone_opus_{}=0123\r\nX-Phone-Opus: {}\r\n", served.port, opened.key);
    let with = |headers: &str| format!("{origin}{headers}");
    let refusals = [
        // Nobody, and somebody with half of it: a cookie is sent to every port of this machine.
        ("GET /api/overview", String::new(), 401, "not_signed_in"),
        ("GET /api/live", String::new(), 401, "not_signed_in"),
        ("GET /metrics", String::new(), 401, "not_signed_in"),
        ("GET /metrics", "Authorization: Bearer 0123456789abcdef\r\n".to_owned(), 401, "not_signed_in"),
        ("GET /api/overview", cookie.clone(), 403, "header_missing"),
        ("GET /api/overview", wrong_key, 403, "header_missing"),
        ("GET /api/overview", stale, 401, "session_over"),
        (&cancel, with(""), 401, "not_signed_in"),
        (&cancel, with(&cookie), 403, "header_missing"),
        // Pages of others, and a page that does not say where it is from.
        ("GET /api/overview", format!("{foreign}{ours}"), 403, "wrong_origin"),
        ("GET /", foreign.to_owned(), 403, "wrong_origin"),
        (&cancel, format!("{foreign}{ours}"), 403, "wrong_origin"),
        (&cancel, format!("Origin: null\r\n{ours}"), 403, "wrong_origin"),
        (&cancel, format!("{origin}{origin}{ours}"), 403, "wrong_origin"),
        (&cancel, ours.clone(), 403, "wrong_origin"),
        ("GET /api/overview", format!("Sec-Fetch-Site: same-site\r\n{ours}"), 403, "wrong_origin"),
        // Ways and places that are none.
        ("GET /../../etc/passwd", ours.clone(), 404, "not_found"),
        ("GET /%2e%2e/%2e%2e/etc/passwd", ours.clone(), 404, "not_found"),
        ("GET /script/..%2fpage.js", ours.clone(), 404, "not_found"),
        ("GET /api/jobs/..%2f..", ours.clone(), 404, "not_found"),
        ("POST /api/link", with(&ours), 404, "not_found"),
        ("DELETE /api/overview", with(&ours), 405, "wrong_method"),
        ("OPTIONS /api/overview", with(&ours), 405, "wrong_method"),
        ("POST /api/overview", with(&ours), 405, "wrong_method"),
        (&cancel, with(&ours), 404, "unknown_job"),
    ];
    for (line, headers, status, code) in refusals {
        let answer = served.ask(line, &headers, "").await;
        assert_eq!((answer.status, &answer.code()[..]), (status, code), "{line}\n{headers}\n{answer:?}");
        assert!(answer.header("set-cookie").is_none());
        assert_eq!(answer.header("x-content-type-options"), Some("nosniff"));
        assert_eq!(answer.header("access-control-allow-origin"), None);
    }
    // Names that somebody leads to this machine, the page included.
    let port = served.port;
    for host in
        [format!("evil.example:{port}"), "127.0.0.1".to_owned(), format!("127.0.0.1:{}", port - 1), String::new()]
    {
        for path in ["/", "/script/page.js", "/api/overview"] {
            let request = format!("GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n{ours}\r\n");
            let answer = told(served.connect().await, &request).await;
            assert_eq!((answer.status, &answer.code()[..]), (403, "wrong_host"), "{host} {path}");
        }
    }
    let two = format!("GET / HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nHost: evil.example\r\nConnection: close\r\n\r\n");
    assert_eq!(told(served.connect().await, &two).await.status, 403);
    let absolute = format!("GET http://evil.example/ HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nConnection: close\r\n\r\n");
    assert_eq!(told(served.connect().await, &absolute).await.status, 403);
    // A token opens once, and a guess never; one that is right opens nothing for a page of others, or without the header.
    for token in [&served.token[..], "", &"0".repeat(64)] {
        assert_eq!(served.exchange(token).await.status, 401, "{token}");
    }
    let link = served.tool("POST /api/link").await.json();
    let (_, token) = place(link["url"].as_str().expect("an address"));
    let body = json!({"token": token}).to_string();
    for (headers, code) in [
        (format!("{foreign}X-Phone-Opus: 1\r\n"), "wrong_origin"),
        ("X-Phone-Opus: 1\r\n".to_owned(), "wrong_origin"),
        (origin.clone(), "header_missing"),
    ] {
        let answer = served.ask("POST /api/session", &headers, &body).await;
        assert_eq!((answer.status, &answer.code()[..]), (403, code), "{headers}");
        assert!(answer.header("set-cookie").is_none());
    }
    assert_eq!(served.exchange(&token).await.status, 200, "what was refused has not used it up");
    // By the socket, whose peer is this user: no page, no secret of a browser's, and no way or place that is none.
    for (line, status, code) in [
        ("GET /", 404, "not_found"),
        ("GET /script/page.js", 404, "not_found"),
        ("POST /api/session", 404, "not_found"),
        ("GET /../../etc/passwd", 404, "not_found"),
        ("GET /api/jobs/..%2f..", 404, "not_found"),
        ("GET /api/link", 405, "wrong_method"),
        ("DELETE /api/overview", 405, "wrong_method"),
        ("POST /metrics", 405, "wrong_method"),
        (&cancel, 404, "unknown_job"),
    ] {
        let answer = served.tool(line).await;
        assert_eq!((answer.status, &answer.code()[..]), (status, code), "{line}\n{answer:?}");
        assert!(answer.header("set-cookie").is_none());
    }
}

#[tokio::test]
async fn what_is_too_much_is_refused_by_either_page_and_costs_nobody_else_anything() {
    for by in By::BOTH {
        let mut rig = new_rig();
        let served = Served::by(&mut rig, by).await;
        nobody_takes_too_much(&served).await;
        served.end(Signal::TERM).await;
        rig.stop_and_check_invariants([]).await;
    }
}

/// Bodies, heads, followers and connections, each beyond its bound.
async fn nobody_takes_too_much(served: &Served) {
    let opened = served.open().await;
    let (ours, origin) = (opened.headers(), served.origin());
    // Bodies: announced, and in pieces without an end.
    let long = "x".repeat(5000);
    let headers = format!("{origin}X-Phone-Opus: 1\r\n");
    assert_eq!(served.ask("POST /api/session", &headers, &long).await.status, 413);
    let pieces = format!("POST /api/session HTTP/1.1\r\n{}{headers}Transfer-Encoding: chunked\r\n\r\n", served.names());
    let pieces = format!("{pieces}{}0\r\n\r\n", format!("3e8\r\n{}\r\n", "x".repeat(1000)).repeat(6));
    assert_eq!(told(served.connect().await, &pieces).await.status, 413);
    assert_eq!(served.ask("POST /api/session", &headers, "not JSON").await.status, 400);
    // A head.
    let head = format!("X-Long: {}\r\n", "x".repeat(64 * 1024));
    let answer = served.ask("GET /", &head, "").await;
    assert!(answer.status == 431 || answer.status == 0, "{answer:?}");
    // Those who follow: as many as there is room for, then one is told so, then there is room again.
    let mut following = Vec::new();
    for _ in 0..32 {
        let mut one = Following::open(served, "/api/live", &ours).await;
        one.until("whole", |_| true).await;
        following.push(one);
    }
    let refused = served.ask("GET /api/live", &ours, "").await;
    assert_eq!((refused.status, &refused.code()[..]), (503, "busy"), "{refused:?}");
    assert_eq!(served.ask("GET /api/overview", &ours, "").await.status, 200);
    drop(following);
    until_seen("there is room again", async || {
        // A stream that is let in does not end; its first line is enough.
        let mut one = Following::open(served, "/api/live", &ours).await;
        let mut line = String::new();
        one.0.read_line(&mut line).await.expect("an answer");
        if line.contains(" 200 ") { Ok(()) } else { Err(line) }
    })
    .await;
    // Connections that say nothing: beyond the bound one is closed, and the others are served on.
    let mut crowd = Vec::new();
    for _ in 0..96 {
        crowd.push(served.connect().await);
    }
    let closed = told(served.connect().await, "").await;
    assert_eq!(closed.status, 0, "{closed:?}");
    drop(crowd);
    until("the page is served again", async || (served.ask("GET /", "", "").await.status == 200).then_some(())).await;
}
