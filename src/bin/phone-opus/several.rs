//! `consult --agents`: several agents at once, from the command line.
//!
//! Owns: what a person sees while they are waited for, and when they are ended. May not know: how they are asked, how an answer
//! is shown.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use phone_opus::internals::protocol::wire::ReplyText;
use phone_opus::internals::system::System;
use phone_opus::internals::tools::consult::Caller;
use phone_opus::internals::tools::reply::{Detail, Reader, Render, Shape};
use phone_opus::internals::tools::several::{Consulted, Several, Standing, WhoAsks};
use tokio::time::MissedTickBehavior;

use crate::answer::{self, EVERYTHING, Form};
use crate::cli::ConsultFlags;
use crate::consult::{CANCEL_WAIT, arguments, failed};
use crate::job_word::short;
use crate::output::{draw, erase, err, is_lost, say};
use crate::progress::{FRAME, turn};
use crate::screen::{Face, Line, ages, layout, paint};

/// Asks all of them, shows how far each is, and what they answered. `stopped` is ready when they are to be ended.
pub(crate) async fn consult(
    system: &System,
    options: &ConsultFlags,
    prompt: String,
    form: Form,
    stopped: impl Future<Output = ()>,
) -> ExitCode {
    let desk = system.desk();
    let read = async {
        let arguments = arguments(options, &desk.config, prompt)?.to_string();
        desk.read_each(arguments.as_bytes(), None, Caller::Owner).await
    };
    let each = match read.await {
        Ok((each, _)) => each,
        Err(fault) => return failed(&fault),
    };
    let mut several = Several::new(desk, &each, WhoAsks::Person);
    let shown = !options.quiet && form != Form::Json && err().terminal;
    let ended = tokio::select! {
        () = wait(&mut several, shown) => true,
        () = stopped => false,
    };
    erase();
    if !ended {
        say("phone-opus: cancelled");
        // How they ended is told as far as it is known by then.
        let _ = tokio::time::timeout(CANCEL_WAIT, several.cancel()).await;
    }
    let render = if form == Form::Json { Render::Json } else { Render::Porcelain };
    let budget = EVERYTHING * each.len();
    let shape = Shape { render, detail: Detail::Concise, budget, structured: false };
    let reply = several.reply(shape, Reader::Person, None).await;
    if let ReplyText::Plain(text) = &reply.text {
        answer::of_several(several.agents(), text, form);
    }
    if !is_lost() {
        for job in &reply.ends {
            system.jobs().mark_read(*job).await;
        }
    }
    match (ended, reply.fault) {
        (false, _) => ExitCode::from(3),
        (true, Some(_)) => ExitCode::FAILURE,
        (true, None) => ExitCode::SUCCESS,
    }
}

/// Waits for all of them.
async fn wait(several: &mut Several<'_>, shown: bool) {
    several.begin().await;
    if shown && !several.is_complete() {
        for told in several.agents() {
            if let Standing::Open(record) = &told.standing {
                say(&format!("job {} asks {}; Ctrl-C ends all of them", short(record.id), told.agent));
            }
        }
    }
    let (began, mut frame) = (Instant::now(), 0);
    let mut frames = tokio::time::interval(FRAME);
    frames.set_missed_tick_behavior(MissedTickBehavior::Delay);
    while !several.is_complete() {
        tokio::select! {
            () = several.news() => {}
            _ = frames.tick(), if shown && err().moves => {
                draw(&picture(several.agents(), err(), frame, began.elapsed()));
                frame += 1;
            }
        }
    }
}

/// A row for each: what it is doing. The mark turns while any of them is at work.
fn picture(agents: &[Consulted], face: Face, frame: usize, after: Duration) -> Vec<Line> {
    // In the last column some terminals begin the next line.
    let width = face.width.saturating_sub(1);
    let longest = agents.iter().map(|told| layout::width(&told.agent)).max().unwrap_or(0);
    let row = |told: &Consulted| {
        let (style, mark) = match &told.standing {
            Standing::Open(_) | Standing::Unasked => (paint::BUSY, turn(frame)),
            Standing::Over { .. } => (paint::PLAIN, "·"),
            Standing::Refused(_) | Standing::Lost { .. } => (paint::BAD, "!"),
        };
        let mut line = Line::of(style, mark);
        line.push(paint::PLAIN, &format!(" {:longest$}  {}", told.agent, told.phase()));
        if let Some(record) = told.standing.record() {
            line.push(paint::DIM, &format!(" · job {}", short(record.id)));
        }
        layout::cut(&line, width)
    };
    let mut rows: Vec<Line> = agents.iter().map(row).collect();
    rows.push(layout::cut(&Line::of(paint::DIM, &ages::elapsed(after.as_secs())), width));
    rows
}
