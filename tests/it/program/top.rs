//! `top` on a real terminal: where it shows colours, and where it does not begin.

use phone_opus::testkit::outputs::{Keyboard, OnTerminal};
use phone_opus::testkit::{Rig, tried_program, until_seen};

/// What takes the screen that was there away.
const TAKEN: &str = "\u{1b}[?1049h";

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
