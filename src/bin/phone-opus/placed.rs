//! Consults that another machine may answer, and jobs of theirs, from the command line.
//!
//! Owns: what a person sees while such a consult is waited for, how it is ended, and where a job is looked for that this machine's
//! store does not have. May not know: the queue, how an answer is shown.
//!
//! A command only asks: it claims nothing, since nobody would be left to tell how that ended.

use std::cell::Cell;
use std::pin::pin;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use phone_opus::internals::base::fault::{Fault, FaultCode};
use phone_opus::internals::base::ids::JobId;
use phone_opus::internals::jobs::{JobRecord, JobState};
use phone_opus::internals::system::{Grace, System};
use phone_opus::internals::tools::consult::{Caller, ConsultOptions};
use phone_opus::internals::tools::placed::look::{Asking, Seen, end, see};
use phone_opus::internals::tools::reply::Detail;
use tokio::time::MissedTickBehavior;

use crate::answer::{self, Form};
use crate::cli::{Common, Overrides};
use crate::consult::{AskedJob, CANCEL_WAIT, ShownReply, show};
use crate::output::{out, say};
use crate::progress::{FRAME, Progress};
use crate::settings::configure;

/// How long a database that does not answer is asked again before whoever waits is told.
const AWAY_MOST: Duration = Duration::from_secs(60);

/// Between two times.
const AGAIN: Duration = Duration::from_secs(1);

/// Asks the fleet, and waits unless it is to go on in the background.
pub(crate) async fn consult(
    system: &System,
    read: ConsultOptions,
    shown: bool,
    asked: &Cell<Option<AskedJob>>,
) -> Result<ShownReply, Fault> {
    let (background, agent) = (read.background, read.request.agent.clone());
    let mut asking = Asking::begin(system.desk(), read).await?;
    if !background {
        asked.set(Some(AskedJob::OfFleet(asking.job())));
        let progress = shown.then(|| Progress::of_fleet(asking.job(), &agent));
        wait(&mut asking, progress).await?;
    }
    let Seen { record, context } = asking.told().await?;
    Ok(ShownReply { record: Arc::new(record), context })
}

/// Waits for its end, and shows for whom it waits or where it is.
async fn wait(asking: &mut Asking<'_>, mut progress: Option<Progress>) -> Result<(), Fault> {
    let (began, mut answered) = (Instant::now(), Instant::now());
    let mut frames = tokio::time::interval(FRAME);
    frames.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let phase = match answered.elapsed() {
            silent if silent > 2 * AGAIN => "the fleet's database does not answer".to_owned(),
            _ => asking.phase(),
        };
        let mut look = pin!(asking.looked());
        let looked = loop {
            tokio::select! {
                looked = &mut look => break looked,
                _ = frames.tick(), if progress.is_some() => if let Some(progress) = &mut progress {
                    progress.show(began.elapsed(), &phase, "");
                }
            }
        };
        match looked {
            Ok(true) => return Ok(()),
            Ok(false) => answered = Instant::now(),
            Err(fault) if fault.code == FaultCode::StoreUnavailable && answered.elapsed() < AWAY_MOST => {
                tokio::time::sleep(AGAIN).await;
            }
            Err(fault) => return Err(fault),
        }
    }
}

/// Ends the consult that is given up from the keyboard, on whichever machine it is, and shows what is known of it.
pub(crate) async fn cancelled(system: &System, job: JobId, form: Form) {
    say(&format!("phone-opus: cancelled job {job}"));
    let ended = async {
        match end(system.desk(), job, Caller::Owner, CANCEL_WAIT).await? {
            Some((record, _)) if record.state.is_terminal() => {
                see(system.desk(), job, Caller::Owner, Duration::ZERO).await
            }
            _ => Ok(None),
        }
    };
    match tokio::time::timeout(2 * CANCEL_WAIT, ended).await {
        Ok(Ok(Some(Seen { record, context }))) => {
            show(system, ShownReply { record: Arc::new(record), context }, form).await;
            if form != Form::Json {
                say(&format!("Read it again: phone-opus jobs show {job}"));
            }
        }
        Ok(Err(fault)) => {
            say(&format!("phone-opus: {fault} The job goes on unless it is cancelled: phone-opus jobs cancel {job}"))
        }
        _ => say(&format!("phone-opus: it is being ended; how it ended: phone-opus jobs show {job} --wait 60")),
    }
}

/// Runs with the fleet of the user's configuration; as if nothing had been found where there is none.
async fn with_fleet<T>(
    common: &Common,
    ask: impl AsyncFnOnce(&System) -> Result<Option<T>, Fault>,
) -> Result<Option<T>, Fault> {
    let prepared = configure(common, &Overrides::default())
        .map_err(|error| Fault::new(FaultCode::InvalidInput, format!("{error}.")))?;
    if prepared.config.fleet.is_none() {
        return Ok(None);
    }
    let system = prepared.system().claims(false).telemetry_log(false).start().await?;
    let found = ask(&system).await;
    system.shutdown(Grace::default()).await;
    found
}

/// Shows a job that this machine's store does not have; `unknown` is what is said where the fleet has none either.
pub(crate) async fn show_job(
    common: &Common,
    job: JobId,
    wait: Duration,
    (form, detail): (Form, Detail),
    unknown: Fault,
) -> Result<ExitCode, Fault> {
    let seen = with_fleet(common, async |system| see(system.desk(), job, Caller::Owner, wait).await).await?;
    let Seen { record, context } = seen.ok_or(unknown)?;
    if out().terminal {
        crate::jobs::leave_interrupts_to_the_pager();
    }
    answer::of_job(&record, &context, form, detail);
    Ok(ExitCode::SUCCESS)
}

/// Cancels such a job; how it stands then, and how it stood where it was over already.
pub(crate) async fn cancel_job(
    common: &Common,
    job: JobId,
    unknown: Fault,
) -> Result<(JobRecord, Option<JobState>), Fault> {
    let ended = with_fleet(common, async |system| end(system.desk(), job, Caller::Owner, CANCEL_WAIT).await).await?;
    ended.ok_or(unknown)
}

/// What is said of what happens in such a job.
pub(crate) async fn no_events(common: &Common, job: JobId, unknown: Fault) -> Fault {
    let seen = with_fleet(common, async |system| see(system.desk(), job, Caller::Owner, Duration::ZERO).await).await;
    match seen {
        Ok(None) => unknown,
        Ok(Some(seen)) => {
            let machine = seen.context.placed.and_then(|told| told.machine);
            let machine = machine.unwrap_or_else(|| "that will have it".to_owned());
            let detail = format!("job {job} is one of the fleet, and what happens in it is kept on machine {machine}.");
            Fault::new(FaultCode::UnknownJob, detail)
                .hint(format!("How it stands: phone-opus jobs show {job} --wait 60"))
        }
        Err(fault) => fault,
    }
}
