//! `top` on a real terminal: its keys, a storm of sizes, its ends, and what it leaves behind.
//!
//! Laws: L7, L13.

use phone_opus::internals::jobs::JobState;
use phone_opus::testkit::outputs::{Keyboard, OnTerminal};
use phone_opus::testkit::{Rig, tried_program, until_seen};
use rustix::process::Signal;

/// What takes the screen that was there away, and what gives it back.
const TAKEN: &str = "\u{1b}[?1049h";
const GIVEN_BACK: &str = "\u{1b}[?1049l";

fn new_rig() -> Rig {
    let mut rig = Rig::new(tried_program(env!("CARGO_BIN_EXE_phone-opus")));
    rig.set("PHONE_OPUS_LOG", "error");
    rig.set("TERM", "xterm-256color");
    rig
}

fn begun(rig: &Rig) -> OnTerminal {
    rig.begin_on_a_terminal(&["top"], Some((80, 24)), Keyboard::There)
}

async fn until_shown(top: &OnTerminal, what: &str) {
    until_seen(what, async || if top.seen().contains(what) { Ok(()) } else { Err(top.seen()) }).await;
}

/// That the terminal is as it was: its screen, its cursor, and lines that are read one by one and echoed.
fn expect_given_back(seen: &str, modes: (bool, bool), what: &str) {
    let after = seen.rsplit(TAKEN).next().unwrap_or_default();
    assert!(seen.contains(TAKEN) && after.contains(GIVEN_BACK), "{what}: {seen:?}");
    assert!(after.contains("\u{1b}[?25h"), "{what}: the cursor: {seen:?}");
    assert_eq!(modes, (true, true), "{what}: lines and their echo");
}

#[tokio::test]
async fn a_job_is_seen_followed_and_ended_through_a_storm_of_sizes() {
    let rig = new_rig();
    let prompt = rig.hanging("begun");
    let output = rig.run(&["consult", "--background", "--json", &prompt]).await;
    assert!(output.status.success(), "{output:?}");
    rig.wait_for_sign("begun").await;
    let job = rig.jobs().await[0].id.to_string();
    let top = begun(&rig);
    until_shown(&top, &job[..8]).await;
    assert_eq!(top.modes(), (false, false), "keys are read one by one");
    for n in 0..100 {
        top.resize(20 + n * 7 % 200, 2 + n * 3 % 60);
        top.signal(Signal::WINCH);
    }
    top.resize(200, 50);
    top.signal(Signal::WINCH);
    top.press("\r");
    until_seen("it is followed", async || {
        // A key that comes in the same moment as a signal may be read with the next one only: `g` selects the only job.
        top.press("g");
        if top.seen().contains("back)") { Ok(()) } else { Err(top.seen()) }
    })
    .await;
    top.press("cn");
    top.press("c");
    until_shown(&top, "started?").await;
    assert_eq!(rig.jobs().await[0].state, JobState::Running, "nothing is ended before the answer");
    top.press("y");
    until_seen("its end", async || {
        let state = rig.jobs().await[0].state;
        if state == JobState::Cancelled { Ok(()) } else { Err(format!("{state:?}")) }
    })
    .await;
    top.press("q");
    let (status, seen, modes) = top.ended_with_modes().await;
    assert!(status.success(), "{status:?}");
    expect_given_back(&seen, modes, "q");
    assert!(!seen.contains(rig.canary()), "no prompt is shown");
    rig.expect_no_agent_left().await;
    rig.stop_and_check_invariants([]).await;
}

#[tokio::test]
async fn whatever_ends_it_the_terminal_is_as_it_was() {
    let rig = new_rig();
    for signal in [Signal::TERM, Signal::HUP, Signal::INT, Signal::QUIT] {
        let top = begun(&rig);
        until_shown(&top, "nobody").await;
        top.signal(signal);
        let (status, seen, modes) = top.ended_with_modes().await;
        assert_eq!(status.code(), Some(3), "{signal:?}");
        expect_given_back(&seen, modes, &format!("{signal:?}"));
    }
    for keys in ["q", "\u{3}", "/abc\u{3}"] {
        let top = begun(&rig);
        until_shown(&top, "nobody").await;
        top.press(keys);
        let (status, seen, modes) = top.ended_with_modes().await;
        assert_eq!(status.code(), Some(0), "{keys:?}");
        expect_given_back(&seen, modes, keys);
    }
    assert!(!rig.state_dir().root().exists(), "looking makes nothing");
    rig.check_invariants().await;
}

#[tokio::test]
async fn no_colour_is_shown_where_none_is_wanted_and_without_a_terminal_nothing_is_begun() {
    let mut rig = new_rig();
    let output = rig.run(&["consult", "--background", "--json", &rig.answering("forty-two")]).await;
    assert!(output.status.success(), "{output:?}");
    rig.only_job_over().await;
    for (none_wanted, colours) in [("", true), ("1", false)] {
        rig.set("NO_COLOR", none_wanted);
        let top = begun(&rig);
        until_shown(&top, "succeeded").await;
        top.press("q");
        let (_, seen, _) = top.ended_with_modes().await;
        assert_eq!(seen.contains("38;5;"), colours, "NO_COLOR={none_wanted:?}: {seen:?}");
    }
    let output = rig.run(&["top"]).await;
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&output.stderr).contains("needs a terminal"), "{output:?}");
    assert!(output.stdout.is_empty());
    rig.set("TERM", "dumb");
    let (status, seen) = begun(&rig).ended().await;
    assert!(status.code() == Some(2) && !seen.contains(TAKEN), "{seen:?}");
    rig.stop_and_check_invariants([]).await;
}
