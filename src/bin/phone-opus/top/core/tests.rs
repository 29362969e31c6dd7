//! What keys and looks mean.

use phone_opus::internals::base::ids::ChainId;
use phone_opus::internals::jobs::JobMode;
use phone_opus::internals::jobs::hosts::{HostKind, HostRow, HostSaid};

use JobState::{Failed, Queued, Running, Succeeded};

use super::*;

pub(crate) const NOW: UnixMillis = UnixMillis(1_900_000_000_000);

pub(crate) fn row(sequence: u64, state: JobState) -> JobRow {
    let started = (state != Queued).then_some(UnixMillis(NOW.0 - 60_000));
    let over = state.is_terminal();
    JobRow {
        id: format!("{sequence:08x}-4f89-41d3-9a0c-0305e82c3301").parse().expect("an id"),
        sequence,
        state,
        mode: JobMode::Sync,
        agent: if sequence.is_multiple_of(2) { "codex" } else { "claude" }.to_owned(),
        workspace: format!("/work/{sequence}").into(),
        chain: ChainId::random(),
        depth: 0,
        accepted_at: UnixMillis(NOW.0 - 125_000),
        started_at: started,
        finished_at: over.then_some(UnixMillis(NOW.0 - 1_000 * i64::try_from(sequence).expect("small"))),
        cost_usd: over.then_some(0.25),
        code: (state == Failed).then(|| "agent_stalled".to_owned()),
        cancel_requested: None,
        unread: false,
        last_event: 3,
    }
}

pub(crate) fn host(pid: u32, generation: u64) -> HostRow {
    let tree = TreeSaid {
        worker_generation: generation,
        worker_alive: true,
        worker_restarts: generation - 1,
        last_fault: (generation > 1).then(|| "worker_lost".to_owned()),
        ..TreeSaid::default()
    };
    HostRow {
        host: "0f2504e0-4f89-41d3-9a0c-0305e82c3301".parse().expect("an id"),
        kind: HostKind::Server,
        pid,
        build: "0.1.0".to_owned(),
        started_at: UnixMillis(NOW.0 - 3_600_000),
        changed_at: NOW,
        seen: HostSaid { tree, ..HostSaid::default() },
    }
}

pub(crate) fn look(rows: Vec<JobRow>, hosts: Vec<HostRow>) -> TopLook {
    let live =
        Live { at: NOW, daemon: None, hosts, queue: Vec::new(), limits: Vec::new(), today: None, chains: Vec::new() };
    TopLook { live, rows, news: Vec::new() }
}

pub(crate) fn core_of(rows: Vec<JobRow>) -> TopCore {
    let mut core = TopCore::new();
    core.step(TopEvent::Looked(Box::new(look(rows, vec![host(7, 1)]))), NOW);
    core
}

pub(crate) fn press(core: &mut TopCore, keys: &str) -> Vec<TopEffect> {
    let key = |c: char| match c {
        '\n' => TopKey::Enter,
        '\u{1b}' => TopKey::Escape,
        '\u{8}' => TopKey::Backspace,
        c => TopKey::Char(c),
    };
    keys.chars().flat_map(|c| core.step(TopEvent::Pressed(key(c)), NOW)).collect()
}

pub(crate) fn entry(seq: u64, event: AgentEvent) -> Noted {
    Noted { seq, at: NOW, event: JournalEvent::Agent { event } }
}

fn shown(core: &TopCore) -> Vec<u64> {
    core.jobs().iter().map(|row| row.sequence).collect()
}

#[test]
fn what_runs_comes_first_then_what_waits_then_what_ended_last() {
    let rows =
        vec![row(1, Succeeded), row(2, Failed), row(3, Queued), row(4, Running), row(5, Running), row(6, Queued)];
    let core = core_of(rows);
    assert_eq!(shown(&core), [4, 5, 3, 6, 1, 2]);
    assert_eq!(core.position(), Some(0), "something is selected");
    let many: Vec<JobRow> = (1..=3 * ENDED_MOST as u64).map(|n| row(n, Succeeded)).collect();
    assert_eq!(core_of(many).jobs().len(), ENDED_MOST);
}

#[test]
fn the_selection_stays_with_its_job_and_takes_the_place_of_one_that_is_gone() {
    let mut core = core_of(vec![row(1, Running), row(2, Running), row(3, Running)]);
    press(&mut core, "j");
    assert_eq!(core.position(), Some(1));
    core.step(TopEvent::Looked(Box::new(look(vec![row(2, Running), row(3, Running)], Vec::new()))), NOW);
    assert_eq!((core.position(), core.selected), (Some(0), Some(row(2, Running).id)));
    core.step(TopEvent::Looked(Box::new(look(vec![row(3, Running)], Vec::new()))), NOW);
    assert_eq!(core.selected, Some(row(3, Running).id));
    core.step(TopEvent::Looked(Box::new(look(Vec::new(), Vec::new()))), NOW);
    assert_eq!(core.selected, None);
    press(&mut core, "jkgG\nc");
    assert_eq!(core.selected, None, "no key minds that nothing is there");
}

#[test]
fn a_job_is_cancelled_by_two_keys_and_never_by_one() {
    let job = row(1, Running).id;
    for (keys, cancelled) in
        [("cy", true), ("cn", false), ("c\n", false), ("c\u{1b}", false), ("y", false), ("cc", false)]
    {
        let mut core = core_of(vec![row(1, Running)]);
        let wanted = if cancelled { vec![TopEffect::Cancel(job)] } else { Vec::new() };
        assert_eq!(press(&mut core, keys), wanted, "{keys:?}");
        assert_eq!(core.mode, TopMode::Browsing, "{keys:?}");
    }
    let mut core = core_of(vec![row(1, Succeeded)]);
    assert_eq!(press(&mut core, "cy"), [], "it is over");
    core.step(TopEvent::CancelAsked(job, Err("failed to use the job store.".to_owned())), NOW);
    assert_eq!(core.message.as_deref(), Some("failed to use the job store."));
}

#[test]
fn a_filter_narrows_by_id_agent_state_and_directory_and_escape_widens_again() {
    let mut core = core_of(vec![row(1, Running), row(2, Queued), row(3, Failed)]);
    for (typed, left) in
        [("codex", vec![2]), ("FAILED", vec![3]), ("/work/1", vec![1]), ("00000002", vec![2]), ("none", vec![])]
    {
        press(&mut core, "/");
        press(&mut core, typed);
        assert_eq!(shown(&core), left, "{typed}");
        assert_eq!(core.position(), left.first().map(|_| 0), "{typed}");
        press(&mut core, "\n\u{1b}");
        assert_eq!(shown(&core).len(), 3, "{typed}");
    }
    // While a filter is typed a key is a letter.
    assert_eq!(press(&mut core, "/qcy"), []);
    press(&mut core, "\u{8}\u{8}\u{8}");
    assert_eq!((core.filter.as_str(), core.mode), ("", TopMode::Filtering));
    press(&mut core, &"x".repeat(1_000));
    assert_eq!(core.filter.len(), FILTER_MOST);
    assert_eq!(core.step(TopEvent::Pressed(TopKey::Interrupt), NOW), [TopEffect::Quit]);
}

#[test]
fn one_look_is_under_way_at_a_time_and_reads_on_where_the_last_one_ended() {
    let mut core = core_of(vec![row(1, Running), row(2, Succeeded), row(3, Queued)]);
    let job = row(1, Running).id;
    assert_eq!(core.step(TopEvent::LookDue, NOW), [TopEffect::Look(vec![(job, 0)])]);
    assert_eq!(core.step(TopEvent::LookDue, NOW), []);
    let mut next = look(vec![row(1, Running), row(2, Succeeded)], Vec::new());
    next.news
        .push((job, vec![entry(1, AgentEvent::Thinking), entry(2, AgentEvent::ToolUse { tool: "Read".to_owned() })]));
    core.step(TopEvent::Looked(Box::new(next)), NOW);
    assert_eq!(core.news(job).map(|news| news.phase.describe()).as_deref(), Some("using Read"));
    assert_eq!(core.step(TopEvent::LookDue, NOW), [TopEffect::Look(vec![(job, 2)])]);
    core.step(TopEvent::LookFailed("use the job store".to_owned()), NOW);
    // What is over is read when it is followed, once.
    press(&mut core, "j\n");
    let over = row(2, Succeeded).id;
    assert_eq!(core.followed, Some(over));
    assert_eq!(core.step(TopEvent::LookDue, NOW), [TopEffect::Look(vec![(over, 0), (job, 2)])]);
    let mut last = look(vec![row(1, Running), row(2, Succeeded)], Vec::new());
    last.news.push((over, vec![entry(3, AgentEvent::Text { text: "said".to_owned() })]));
    core.step(TopEvent::Looked(Box::new(last)), NOW);
    assert_eq!(core.news(over).map(|news| news.text.as_str()), Some("said"));
    assert_eq!(core.step(TopEvent::LookDue, NOW), [TopEffect::Look(vec![(job, 2)])]);
    press(&mut core, "\u{1b}");
    assert_eq!(core.followed, None);
}

#[test]
fn what_differs_from_the_look_before_is_told_and_nothing_of_what_an_agent_said() {
    let mut core = core_of(vec![row(1, Running)]);
    assert!(core.events.is_empty(), "the first look is no news");
    let mut next = look(vec![row(1, Failed), row(2, Queued)], vec![host(7, 2)]);
    next.news.push((row(1, Running).id, vec![entry(1, AgentEvent::Text { text: "secret".to_owned() })]));
    core.step(TopEvent::Looked(Box::new(next)), NOW);
    let told: Vec<&str> = core.events.iter().map(|event| event.text.as_str()).collect();
    assert_eq!(
        told,
        [
            "00000001 claude is failed (agent_stalled), $0.2500",
            "00000002 codex is queued",
            "server 7: worker of generation 2 begins after worker_lost"
        ]
    );
    core.step(TopEvent::Looked(Box::new(look(Vec::new(), Vec::new()))), NOW);
    assert_eq!(core.events.back().map(|event| event.text.as_str()), Some("server 7 is gone"));
    for n in 0..2 * EVENTS_MOST {
        core.happened(NOW, format!("{n}"));
    }
    assert_eq!(core.events.len(), EVENTS_MOST);
}
