//! What `top` shows of what it knows.
//!
//! Owns: the places of things, the words, the colours. May not know: keys, stores, the terminal.
//!
//! ```text
//!  one line: where, how busy, today's cost
//!  servers: each with its worker's generation and restarts, its sessions under it
//!  jobs: what runs, what waits, what ended
//!  what happened; or the job that is followed
//!  one line: the keys, a question, or what went wrong
//! ```
//!
//! Invariants: (1) a terminal is shown no character it would obey; (2) nothing is drawn outside of the window, however small it is; (3)
//! where no colour is wanted there is none.

use phone_opus::internals::base::ids::UnixMillis;
use phone_opus::internals::base::lenient;
use phone_opus::internals::jobs::JobState;
use phone_opus::internals::jobs::hosts::{SessionSeen, TreeSaid, WaitsFor};
use phone_opus::internals::jobs::live::Phase;
use phone_opus::internals::jobs::row::JobRow;
use phone_opus::internals::seen::live::Live;
use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Block, Borders, Cell, Paragraph, Row, Table, TableState};

use super::core::{TopCore, TopMode};
use crate::job_word::short;
use crate::screen::ages;

/// Whether there are colours.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Paint {
    Colours,
    None,
}

impl Paint {
    fn of(self, colour: Color) -> Style {
        match self {
            Self::Colours => Style::new().fg(colour),
            Self::None => Style::new(),
        }
    }

    fn state(self, state: JobState) -> Style {
        match state {
            JobState::Running => self.of(Color::Cyan),
            JobState::Succeeded => self.of(Color::Green),
            JobState::Failed | JobState::Interrupted => self.of(Color::Red),
            JobState::Cancelled => self.of(Color::Yellow),
            _ => Style::new(),
        }
    }
}

/// Fills the window.
pub(crate) fn draw(frame: &mut Frame<'_>, core: &TopCore, paint: Paint, now: UnixMillis) {
    let area = frame.area();
    let servers = servers(core, paint, now);
    // A third of the window for each of the other two at most; jobs have what is left.
    let third = area.height / 3;
    let tree = u16::try_from(servers.len()).unwrap_or(u16::MAX).saturating_add(1).min(third);
    let lower = if area.height < 12 { 0 } else { third.max(4) };
    let parts = Layout::vertical([
        Constraint::Length(1),
        Constraint::Length(tree),
        Constraint::Min(1),
        Constraint::Length(lower),
        Constraint::Length(1),
    ]);
    let [head, upper, middle, below, foot] = parts.areas(area);
    frame.render_widget(Paragraph::new(heading(core, now)).style(Style::new().add_modifier(Modifier::BOLD)), head);
    frame.render_widget(Paragraph::new(servers).block(titled("servers")), upper);
    jobs(frame, middle, core, paint, now);
    match core.followed {
        Some(job) => {
            let title = format!("job {} (Esc: back)", short(job));
            frame.render_widget(Paragraph::new(followed(core, below, paint)).block(titled(&title)), below);
        }
        None => frame.render_widget(Paragraph::new(events(core, below)).block(titled("what happened")), below),
    }
    frame.render_widget(Paragraph::new(footer(core, paint)), foot);
}

fn titled(title: &str) -> Block<'static> {
    Block::new().borders(Borders::TOP).title(format!(" {title} "))
}

/// A text as a terminal may be shown it, on one line.
fn shown(text: &str) -> String {
    lenient::visible(text).replace(['\n', '\t'], " ")
}

fn heading(core: &TopCore, now: UnixMillis) -> Line<'static> {
    let time = now.to_iso8601();
    let time = time.get(11..19).unwrap_or_default().to_owned();
    let Some(live) = &core.live else { return Line::from(format!("phone-opus {time} UTC · looking")) };
    let waiting = live.queue.len() - live.running();
    let cost = live.today.as_ref().map(|today| format!(" · ${:.2} today", today.cost_usd)).unwrap_or_default();
    let limits = match live.limits.len() {
        0 => String::new(),
        n => format!(" · {}", ages::counted(n as u64, "usage limit")),
    };
    let filter = if core.filter.is_empty() { String::new() } else { format!(" · only {}", shown(&core.filter)) };
    let (running, of) = (live.running(), live.places());
    Line::from(format!("phone-opus {time} UTC · {running} of {of} places · {waiting} wait{cost}{limits}{filter}"))
}

fn servers(core: &TopCore, paint: Paint, now: UnixMillis) -> Vec<Line<'static>> {
    let mut lines = Vec::new();
    let Some(Live { daemon, hosts, .. }) = &core.live else { return lines };
    let mut server = |name: String, tree: &TreeSaid, rejected: Option<&String>, sessions: &[SessionSeen]| {
        let mut line = vec![Span::styled(name, Style::new().add_modifier(Modifier::BOLD))];
        let words = tree.in_words();
        if !words.is_empty() {
            let doubt = tree.worker_restarts > 0 || tree.worker_gave_up;
            line.push(Span::styled(
                format!("  {}", shown(&words)),
                if doubt { paint.of(Color::Yellow) } else { Style::new() },
            ));
        }
        if let Some(verdict) = rejected {
            line.push(Span::styled(format!(", refused a new version: {}", shown(verdict)), paint.of(Color::Red)));
        }
        lines.push(Line::from(line));
        // Who asks a daemon how it is, is no client.
        for seen in sessions.iter().filter(|seen| seen.client.is_some()) {
            let (client, calls) = (seen.client.as_deref().unwrap_or_default(), seen.calls as u64);
            let place = seen.directory.as_deref().unwrap_or("no directory");
            let age = ages::elapsed(now.since(seen.since) / 1000);
            lines.push(Line::from(format!(
                "  └ session {} {} in {}, {age}, {}",
                seen.session.0,
                shown(client),
                shown(place),
                ages::counted(calls, "call")
            )));
        }
    };
    if let Some(d) = daemon {
        let state = serde_json::json!(d.state);
        let name = format!("daemon {} {} {}", d.pid, d.build, state.as_str().unwrap_or_default());
        server(shown(&name), &d.tree, d.rollout_rejected.as_ref(), &d.sessions);
    }
    for row in hosts {
        let state = serde_json::json!(row.seen.state);
        let name = format!("{} {} {} {}", row.kind.as_str(), row.pid, row.build, state.as_str().unwrap_or_default());
        server(shown(&name), &row.seen.tree, row.seen.rollout_rejected.as_ref(), &row.seen.sessions);
    }
    if lines.is_empty() {
        lines.push(Line::from("nobody serves here"));
    }
    lines
}

fn jobs(frame: &mut Frame<'_>, area: Rect, core: &TopCore, paint: Paint, now: UnixMillis) {
    let waits = core.waits();
    let all = core.jobs();
    let room = usize::from(area.width) / 5;
    let texts = |row: &&JobRow| {
        let age = match row.finished_at {
            Some(ended) => ended.since(row.started_at.unwrap_or(row.accepted_at)),
            None => now.since(row.started_at.unwrap_or(row.accepted_at)),
        };
        [
            short(row.id),
            row.state.as_str().to_owned(),
            shown(&row.agent),
            ages::elapsed(age / 1000),
            does(core, row, waits.get(&row.id).copied()),
            row.cost_usd.map(|cost| format!("${cost:.4}")).unwrap_or_default(),
            end_of(&row.workspace.display().to_string(), room),
        ]
    };
    let texts: Vec<_> = all.iter().map(texts).collect();
    let widths = widths(&texts, area.width);
    let rows = all.iter().zip(texts).map(|(row, [id, state, agent, age, does, cost, workspace])| {
        Row::new([
            Cell::from(id).style(Style::new().add_modifier(Modifier::BOLD)),
            Cell::from(state).style(paint.state(row.state)),
            Cell::from(agent),
            Cell::from(age),
            Cell::from(does),
            Cell::from(cost),
            Cell::from(workspace),
        ])
    });
    let header = Row::new(HEADS);
    let title = format!("jobs, {}", all.len());
    let table = Table::new(rows, widths)
        .header(header.style(Style::new().add_modifier(Modifier::DIM)))
        .row_highlight_style(Style::new().add_modifier(Modifier::REVERSED))
        .block(titled(&title));
    let mut state = TableState::new().with_selected(core.position());
    frame.render_stateful_widget(table, area, &mut state);
}

/// What stands above the columns of the jobs.
const HEADS: [&str; 7] = ["JOB", "STATUS", "AGENT", "AGE", "DOES", "COST", "WORKSPACE"];

/// Each column as wide as what is in it, within its bounds; what a job does has the rest.
fn widths(rows: &[[String; 7]], all: u16) -> [Constraint; 7] {
    const MOST: [u16; 7] = [8, 11, 8, 12, 0, 9, u16::MAX];
    std::array::from_fn(|column| {
        let texts = rows.iter().filter_map(|row| row.get(column)).map(|text| Line::from(text.as_str()).width());
        let head = HEADS.get(column).map_or(0, |head| head.len());
        let widest = u16::try_from(texts.max().unwrap_or(0).max(head)).unwrap_or(u16::MAX);
        match MOST.get(column) {
            None | Some(0) => Constraint::Fill(1),
            Some(&u16::MAX) => Constraint::Length(widest.min(all / 5)),
            Some(&most) => Constraint::Length(widest.min(most)),
        }
    })
}

/// What a job does, or what it waits for, or why it did not succeed.
fn does(core: &TopCore, row: &JobRow, waits_for: Option<WaitsFor>) -> String {
    let live = core.news(row.id).map(|news| &news.phase).filter(|phase| !matches!(phase, Phase::Queued(_)));
    let asked = if row.cancel_requested.is_some() && !row.state.is_terminal() { "asked to end; " } else { "" };
    let does = match (row.state, waits_for, live) {
        (JobState::Running, _, Some(phase)) => shown(&phase.describe()),
        (JobState::Running, _, None) => "starting the agent".to_owned(),
        (JobState::Queued, Some(WaitsFor::Start), _) => "begins".to_owned(),
        (JobState::Queued, Some(WaitsFor::Place), _) => "waits for a place".to_owned(),
        (JobState::Queued, Some(WaitsFor::Turn { place }), _) => format!("waits, number {place}"),
        (JobState::Queued, Some(WaitsFor::Session { job_id }), _) => format!("waits for {}", short(job_id)),
        _ => row.code.as_deref().map(shown).unwrap_or_default(),
    };
    format!("{asked}{does}")
}

/// The end of a path, which is what tells paths apart.
fn end_of(path: &str, most: usize) -> String {
    let path = shown(path);
    let count = path.chars().count();
    if count <= most || most == 0 {
        return path;
    }
    let end: String = path.chars().skip(count + 1 - most).collect();
    format!("…{end}")
}

fn events(core: &TopCore, area: Rect) -> Vec<Line<'static>> {
    let room = usize::from(area.height.saturating_sub(1));
    let from = core.events.len().saturating_sub(room);
    let line = |happened: &super::core::TopNews| {
        let time = happened.at.to_iso8601();
        Line::from(format!("{} {}", time.get(11..19).unwrap_or_default(), shown(&happened.text)))
    };
    core.events.iter().skip(from).map(line).collect()
}

/// The end of what the followed job's agent has said.
fn followed(core: &TopCore, area: Rect, paint: Paint) -> Vec<Line<'static>> {
    let Some(row) = core.followed.and_then(|job| core.row(job)) else { return Vec::new() };
    let width = usize::from(area.width).max(1);
    let room = usize::from(area.height.saturating_sub(2));
    let does = does(core, row, core.waits().get(&row.id).copied());
    let state = Span::styled(row.state.as_str(), paint.state(row.state));
    let mut lines = vec![Line::from(vec![state, Span::raw(format!("  {does}"))])];
    let said = core.news(row.id).map(|news| news.text.as_str()).unwrap_or_default();
    // More than these characters fill no window.
    let from = said.char_indices().rev().nth(room * width).map_or(0, |(at, _)| at);
    let visible = lenient::visible(said.get(from..).unwrap_or_default()).replace('\t', "    ");
    let mut text: Vec<String> = Vec::new();
    for line in visible.lines() {
        let broken = textwrap(line, width);
        text.extend(broken);
    }
    let from = text.len().saturating_sub(room);
    lines.extend(text.into_iter().skip(from).map(Line::from));
    lines
}

/// A line in lines of so many columns, broken at spaces where there are any.
fn textwrap(line: &str, width: usize) -> Vec<String> {
    let line = crate::screen::Line::of(crate::screen::paint::PLAIN, line);
    crate::screen::layout::wrap(&line, width).iter().map(crate::screen::Line::plain).collect()
}

fn footer(core: &TopCore, paint: Paint) -> Line<'static> {
    match core.mode {
        TopMode::Confirming(job) => {
            let ask = format!("End job {} and everything it started? y: yes, any other key: no", short(job));
            return Line::styled(ask, paint.of(Color::Red).add_modifier(Modifier::BOLD));
        }
        TopMode::Filtering => {
            return Line::from(format!("only jobs with: {}▏ Enter: keep, Esc: all", shown(&core.filter)));
        }
        TopMode::Browsing => {}
    }
    if let Some(message) = &core.message {
        return Line::from(shown(message));
    }
    if let Some(failure) = &core.failure {
        return Line::styled(format!("failed to {}", shown(failure)), paint.of(Color::Red));
    }
    Line::from("↑↓ select  Enter follow  c cancel  / filter  q quit")
}

#[cfg(test)]
mod tests {
    use phone_opus::internals::agents::AgentEvent;
    use phone_opus::internals::base::ids::SessionNumber;
    use ratatui::Terminal;
    use ratatui::backend::TestBackend;

    use super::super::core::TopEvent;
    use super::super::core::tests::{NOW, core_of, entry, host, look, press, row};
    use super::*;

    fn drawn(core: &TopCore, width: u16, height: u16, paint: Paint) -> (Vec<String>, bool) {
        let mut terminal = Terminal::new(TestBackend::new(width, height)).expect("a terminal");
        terminal.draw(|frame| draw(frame, core, paint, NOW)).expect("drawn");
        let buffer = terminal.backend().buffer().clone();
        let line =
            |y: u16| (0..width).map(|x| buffer[(x, y)].symbol().to_owned()).collect::<String>().trim_end().to_owned();
        let colours = buffer.content().iter().any(|cell| cell.fg != Color::Reset || cell.bg != Color::Reset);
        ((0..height).map(line).collect(), colours)
    }

    fn busy() -> TopCore {
        let mut core = core_of(vec![row(1, JobState::Running)]);
        let mut server = host(7, 3);
        server.seen.sessions.push(SessionSeen {
            session: SessionNumber(4),
            client: Some("claude-code\u{1b}[2J".to_owned()),
            version: None,
            protocol: None,
            directory: Some("work\u{202e}".to_owned()),
            since: UnixMillis(NOW.0 - 61_000),
            calls: 1,
            environment: "own".to_owned(),
        });
        let rows = vec![row(1, JobState::Running), row(2, JobState::Queued), row(3, JobState::Failed)];
        let mut next = look(rows, vec![server]);
        let tool = AgentEvent::ToolUse { tool: "Read".to_owned() };
        let text = AgentEvent::Text { text: "one two three\n\u{1b}[31mred\u{202e}".to_owned() };
        next.news.push((row(1, JobState::Running).id, vec![entry(1, text), entry(2, tool)]));
        core.step(TopEvent::Looked(Box::new(next)), NOW);
        core
    }

    #[test]
    fn eighty_columns_have_the_tree_the_jobs_what_happened_and_the_keys() {
        let (lines, colours) = drawn(&busy(), 80, 24, Paint::Colours);
        let text = lines.join("\n");
        for part in [
            "0 of 3 places",
            "server 7 0.1.0 serving  worker of generation 3, 2 restarts, last fault",
            "└ session 4 claude-code\\u001b[2J in work\\u202e, 1 min 01 s, 1 call",
            "00000001 running claude 1 min 00 s using Read",
            "00000002 queued  codex  2 min 05 s",
            "00000003 failed",
            "$0.2500",
            "worker of generation 3 begins after worker_lost",
            "Enter follow",
        ] {
            assert!(text.contains(part), "{part}:\n{text}");
        }
        assert!(colours);
        assert!(!text.contains('\u{1b}') && !text.contains('\u{202e}'), "{text:?}");
        assert!(!text.contains("one two three"), "what an agent says is shown where it is followed: {text}");
    }

    #[test]
    fn what_a_job_does_has_the_room_that_the_other_columns_do_not_need() {
        let of = |texts: [&str; 7]| widths(&[texts.map(str::to_owned)], 80);
        let [job, status, agent, age, does, cost, workspace] =
            of(["1", "queued", "claude", "5 s", "waits", "", "/a/b"]);
        let [.., longest_cost, longest_workspace] =
            of(["1", "queued", "claude", "5 s", "", &"9".repeat(40), &"p".repeat(40)]);
        assert_eq!([job, status, agent, age], [3, 6, 6, 3].map(Constraint::Length));
        assert_eq!([does, cost, workspace], [Constraint::Fill(1), Constraint::Length(4), Constraint::Length(9)]);
        assert_eq!([longest_cost, longest_workspace], [Constraint::Length(9), Constraint::Length(16)]);
    }

    #[test]
    fn a_followed_job_shows_what_its_agent_says_and_a_cancel_asks_first() {
        let mut core = busy();
        press(&mut core, "\nc");
        let (lines, _) = drawn(&core, 200, 50, Paint::Colours);
        let text = lines.join("\n");
        for part in ["job 00000001 (Esc: back)", "one two three", "\\u001b[31mred\\u202e", "End job 00000001"] {
            assert!(text.contains(part), "{part}:\n{text}");
        }
        press(&mut core, "n/claude");
        let text = drawn(&core, 80, 24, Paint::Colours).0.join("\n");
        assert!(text.contains("only jobs with: claude▏") && text.contains("jobs, 2"), "{text}");
    }

    #[test]
    fn where_no_colour_is_wanted_there_is_none_and_no_window_is_too_small() {
        for (width, height) in [(80, 24), (200, 50), (40, 10), (20, 5), (1, 1), (3, 200), (200, 2)] {
            let mut core = busy();
            assert!(!drawn(&core, width, height, Paint::None).1, "{width}x{height}");
            press(&mut core, "\n");
            drawn(&core, width, height, Paint::Colours);
        }
        drawn(&TopCore::new(), 80, 24, Paint::Colours);
    }
}
