//! The exporter: carries what traces are told, and the metrics, to a collector.
//!
//! Owns: when something is sent, in which batches, what of a job is read for it. May not know: how a collector is spoken to, what
//! spans are called.
//!
//! There is one only where a collector is configured. Nobody waits for it: a collector that is away, slow or refuses costs what finds no
//! room in the intake, which is counted (L10), and at the end of the system at most [`LAST`]. Its crash costs the batch it had in hand,
//! counted too.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::{Instant, sleep_until, timeout};

use super::child;
use super::kept::Kept;
use super::pump::Pumped;
use crate::base::fault::Fault;
use crate::base::ids::{HostId, JobId, SessionNumber};
use crate::failpoints::{FaultPoint, Faults, Operation};
use crate::jobs::store::StoreHandle;
use crate::jobs::{JobRecord, JournalEntry};
use crate::telemetry::TelemetryHandle;
use crate::telemetry::collector::{Collector, Deliveries, ExportAnswer, Say, Then};
use crate::telemetry::counters::{Counters, CountersReport};
use crate::telemetry::metrics::{RunMeter, metrics};
use crate::telemetry::traces::spans::{self, Span};
use crate::telemetry::traces::{TraceFact, Traces};

/// How long facts are gathered, so that what belongs together is sent together, and little is sent often.
const GATHER: Duration = Duration::from_millis(500);

/// Facts in one hand: calls, or jobs that count as this many.
const IN_HAND: usize = 512;
const JOB: usize = 64;

/// Spans in one request; a megabyte or so.
const REQUEST: usize = 2048;

/// What is read of the store for one fact may take so long; then the fact is lost.
const READ: Duration = Duration::from_secs(5);

/// Entries of a journal that are read for one job, and how many at a time.
const ENTRIES: usize = 8 * 1024;
const PAGE: usize = 512;
const PAGE_BYTES: usize = 1024 * 1024;

/// What the last sending may take when the system stops. A collector that did not answer before is not asked again.
const LAST: Duration = Duration::from_millis(700);

/// What the exporter, a [`Pump`](super::pump::Pump), is started with.
#[derive(Clone)]
pub struct ExporterArguments {
    /// What is told.
    pub telemetry: TelemetryHandle,
    /// Where jobs are read.
    pub store: StoreHandle,
    /// Whether there are any.
    pub has_jobs: bool,
    /// Who is told.
    pub collector: Arc<dyn Collector>,
    /// This system.
    pub host: HostId,
    /// What was counted, which outlives telemetry and so can be told last.
    pub counters: Arc<Kept<Counters>>,
    /// Fault plan.
    pub faults: Faults,
}

impl Pumped for ExporterArguments {
    const NAME: &'static str = "the exporter's pump";

    async fn run(self, stopped: oneshot::Receiver<()>) {
        Courier::new(self).run(stopped).await;
    }
}

/// Carries facts to the collector.
struct Courier {
    a: ExporterArguments,
    runs: RunMeter,
    delivery: Deliveries,
    /// Of metrics, which may be refused where spans are taken.
    measured: Deliveries,
    /// When metrics are due, where they are sent.
    due: Option<Instant>,
}

impl Courier {
    fn new(a: ExporterArguments) -> Self {
        let due = a.collector.metrics_every().map(|every| Instant::now() + every);
        Self { a, runs: RunMeter::default(), delivery: Deliveries::default(), measured: Deliveries::default(), due }
    }

    fn traces(&self) -> &Traces {
        self.a.telemetry.traces()
    }

    async fn run(mut self, mut stopped: oneshot::Receiver<()>) {
        // What the incarnation before had in hand may have been sent, or be what it failed at.
        self.traces().give_up();
        tokio::select! {
            biased;
            _ = &mut stopped => {}
            _ = self.carry_on() => return,
        }
        // What was in hand when the stop came is tried once more with the rest.
        if !self.delivery.fails() {
            let _ = timeout(LAST, self.carry_last()).await;
        }
    }

    /// For as long as nobody stops it.
    ///
    /// # Errors
    ///
    /// It stood still.
    ///
    /// # Cancel safety
    ///
    /// Safe: what is in hand stays there.
    async fn carry_on(&mut self) -> Result<Infallible, Fault> {
        let traces = self.traces().clone();
        loop {
            if traces.is_empty() {
                let due = self.due;
                tokio::select! {
                    biased;
                    () = traces.woken() => {}
                    () = until(due) => {
                        self.send_metrics().await;
                        continue;
                    }
                }
            }
            tokio::time::sleep(GATHER).await;
            while !traces.is_empty() {
                if let Some(pause) = self.delivery.pause() {
                    tokio::time::sleep(pause).await;
                }
                self.carry().await?;
                if self.due.is_some_and(|due| due <= Instant::now()) {
                    self.send_metrics().await;
                }
            }
        }
    }

    /// What there is, each batch once.
    async fn carry_last(&mut self) {
        self.traces().put_back();
        while !self.traces().is_empty() {
            let spans = self.look_at_some().await;
            if self.a.faults.meet(FaultPoint::ExporterCarry, Operation::None).await.is_some() {
                return;
            }
            for request in spans.chunks(REQUEST) {
                if !matches!(self.a.collector.spans(request).await, ExportAnswer::Taken { .. }) {
                    return;
                }
            }
            self.traces().exported();
        }
        if self.due.is_some() && !self.measured.fails() {
            // Telemetry is stopped by now, and its counters are back.
            let report = self.a.counters.lend().await.and_then(|mut lent| Some(lent.get()?.snapshot()));
            if let Some(report) = report {
                self.send_these(self.a.telemetry.with_losses(report)).await;
            }
        }
    }

    /// Takes some facts and has them delivered, or gives them up.
    async fn carry(&mut self) -> Result<(), Fault> {
        let spans = self.look_at_some().await;
        if child::in_time(self.a.faults.meet(FaultPoint::ExporterCarry, Operation::None)).await?.is_some() {
            self.traces().give_up();
            return Ok(());
        }
        for request in spans.chunks(REQUEST) {
            if !self.deliver(request).await {
                self.traces().give_up();
                return Ok(());
            }
        }
        self.traces().exported();
        Ok(())
    }

    async fn look_at_some(&mut self) -> Vec<Span> {
        let facts = self.traces().take(IN_HAND, |fact| match fact {
            TraceFact::Call(_) => 1,
            TraceFact::Job(_) => JOB,
        });
        let mut spans = Vec::new();
        for fact in facts {
            match timeout(READ, self.look_at(&fact)).await {
                Ok(Some(more)) => spans.extend(more),
                Ok(None) | Err(_) => self.traces().lose(1),
            }
        }
        spans
    }

    /// The spans of a fact; `None` where it cannot be looked at.
    async fn look_at(&mut self, fact: &TraceFact) -> Option<Vec<Span>> {
        match fact {
            TraceFact::Call(call) => {
                let place = self.traces().place(self.a.host, SessionNumber(call.session), &call.trace);
                let about = match call.job.filter(|_| place.sampled && self.a.has_jobs) {
                    // A job that was forgotten meanwhile costs a link.
                    Some(job) => self.a.store.job(job).await.ok().and_then(|record| Some((job, record.trace?))),
                    None => None,
                };
                let about = about.as_ref().map(|(job, trace)| (*job, trace));
                Some(spans::of_call(call, self.a.host, place, about))
            }
            TraceFact::Job(job) => {
                let record = self.a.store.job(*job).await.ok()?;
                self.runs.add(&record);
                let told = record.trace.as_ref().is_some_and(|trace| trace.told && trace.sampled);
                let journal = if told { self.journal(*job, &record).await? } else { Vec::new() };
                let mut all = spans::of_job(&record, &journal);
                all.extend(spans::of_lost_call(&record, self.a.host));
                Some(all)
            }
        }
    }

    async fn journal(&self, job: JobId, record: &JobRecord) -> Option<Vec<JournalEntry>> {
        let mut journal: Vec<JournalEntry> = Vec::new();
        loop {
            let after = journal.last().map_or(0, |entry| entry.seq);
            if after >= record.last_event || journal.len() >= ENTRIES {
                return Some(journal);
            }
            let more = self.a.store.events(job, after, PAGE, PAGE_BYTES).await.ok()?;
            if more.is_empty() {
                return Some(journal);
            }
            journal.extend(more);
        }
    }

    /// Whether it was taken in the end.
    async fn deliver(&mut self, request: &[Span]) -> bool {
        loop {
            let sent = self.a.collector.spans(request).await;
            if let ExportAnswer::Taken { rejected } = sent {
                self.traces().lose(rejected);
            }
            match self.judge(sent) {
                Then::Next => return true,
                Then::Again(after) => tokio::time::sleep(after).await,
                Then::GiveUp => return false,
            }
        }
    }

    fn judge(&mut self, sent: ExportAnswer) -> Then {
        let (then, say) = self.delivery.step(sent);
        tell(say, "traces");
        then
    }

    /// The metrics as they are now. What is not taken is in the next ones.
    async fn send_metrics(&mut self) {
        let every = self.a.collector.metrics_every();
        self.due = every.map(|every| Instant::now() + every);
        if let Ok(Some(report)) = timeout(READ, self.a.telemetry.snapshot()).await {
            self.send_these(report).await;
        }
    }

    async fn send_these(&mut self, report: CountersReport) {
        let counts = match self.a.has_jobs {
            true => timeout(READ, self.a.store.counts()).await.ok().and_then(Result::ok),
            false => None,
        };
        let sent = self.a.collector.metrics(&metrics(&report, counts.as_ref(), &self.runs)).await;
        let (_, say) = self.measured.step(sent);
        tell(say, "metrics");
    }
}

fn tell(say: Option<Say>, what: &'static str) {
    match say {
        Some(Say::Fails(why)) => tracing::warn!(
            why,
            "the collector does not take {what}; consults go on, and lost traces are counted in telemetry_snapshot"
        ),
        Some(Say::IsWell) => tracing::info!("the collector takes {what} again"),
        None => {}
    }
}

async fn until(due: Option<Instant>) {
    match due {
        Some(due) => sleep_until(due).await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use futures_util::FutureExt as _;
    use futures_util::future::BoxFuture;

    use super::*;
    use crate::base::ids::{CallNumber, UnixMillis};
    use crate::base::state_dir::StateDir;
    use crate::telemetry::metrics::Metric;
    use crate::telemetry::traces::facts::CallEnd;
    use crate::telemetry::traces::sampling::Sampler;
    use crate::telemetry::traces::{CallFact, Telling};

    /// A collector that answers as it is told, and then takes everything.
    #[derive(Default)]
    struct Scripted {
        answers: Mutex<Vec<ExportAnswer>>,
        /// Spans of each request.
        came: Mutex<Vec<usize>>,
        /// Metrics of each request.
        measured: Mutex<Vec<usize>>,
        hangs: bool,
    }

    impl Collector for Scripted {
        fn spans<'a>(&'a self, spans: &'a [Span]) -> BoxFuture<'a, ExportAnswer> {
            self.came.lock().expect("nobody panics with it").push(spans.len());
            let answer = self.answers.lock().expect("nobody panics with it").pop();
            if self.hangs {
                return std::future::pending().boxed();
            }
            std::future::ready(answer.unwrap_or(ExportAnswer::Taken { rejected: 0 })).boxed()
        }

        fn metrics<'a>(&'a self, metrics: &'a [Metric]) -> BoxFuture<'a, ExportAnswer> {
            self.measured.lock().expect("nobody panics with it").push(metrics.len());
            std::future::ready(ExportAnswer::Taken { rejected: 0 }).boxed()
        }

        fn metrics_every(&self) -> Option<Duration> {
            Some(Duration::from_secs(3600))
        }
    }

    struct Stage {
        telemetry: TelemetryHandle,
        collector: Arc<Scripted>,
        stop: oneshot::Sender<()>,
        running: tokio::task::JoinHandle<()>,
    }

    fn stage(collector: Scripted) -> Stage {
        stage_with(collector, Faults::none())
    }

    fn stage_with(collector: Scripted, faults: Faults) -> Stage {
        let telemetry = TelemetryHandle::with_traces(Traces::new(Telling::Exporter(Sampler::default()), None));
        begin(telemetry, Arc::new(collector), faults)
    }

    fn begin(telemetry: TelemetryHandle, collector: Arc<Scripted>, faults: Faults) -> Stage {
        let arguments = ExporterArguments {
            telemetry: telemetry.clone(),
            store: StoreHandle::sqlite(StateDir::at("/nonexistent")),
            has_jobs: false,
            collector: Arc::clone(&collector) as Arc<dyn Collector>,
            host: HostId::random(),
            counters: Kept::new(Counters::default()),
            faults,
        };
        let (stop, stopped) = oneshot::channel();
        let running = tokio::spawn(Courier::new(arguments).run(stopped));
        Stage { telemetry, collector, stop, running }
    }

    impl Stage {
        /// A call is over.
        fn tell(&self) {
            let traces = self.telemetry.traces();
            traces.begin(SessionNumber(1), CallNumber(1), None);
            let trace = *traces.end(SessionNumber(1), CallNumber(1)).expect("it is told");
            traces.tell(TraceFact::Call(Box::new(CallFact {
                trace,
                session: 1,
                tool: "echo".to_owned(),
                at: UnixMillis(10),
                latency_us: 5,
                end: CallEnd::Success,
                job: None,
                workspace: None,
                replays: 0,
            })));
        }

        fn lost(&self) -> u64 {
            self.telemetry.traces().lost()
        }

        fn came(&self) -> Vec<usize> {
            self.collector.came.lock().expect("nobody panics with it").clone()
        }

        /// How long the end took.
        async fn end(self) -> (Duration, Arc<Scripted>) {
            let began = Instant::now();
            let _ = self.stop.send(());
            self.running.await.expect("no panic");
            (began.elapsed(), self.collector)
        }
    }

    fn later() -> ExportAnswer {
        ExportAnswer::Later { after: None, why: "away".to_owned() }
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_told_together_is_sent_together_and_again_until_it_is_taken() {
        let stage = stage(Scripted { answers: Mutex::new(vec![later(), later()]), ..Scripted::default() });
        stage.tell();
        stage.tell();
        tokio::time::sleep(Duration::from_secs(10)).await;
        assert_eq!((stage.came(), stage.lost()), (vec![2, 2, 2], 0));
        assert!(stage.telemetry.traces().passed_facts().facts.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_refused_is_counted_and_the_next_is_sent() {
        let refused = ExportAnswer::Refused { why: "no".to_owned() };
        let stage = stage(Scripted { answers: Mutex::new(vec![refused]), ..Scripted::default() });
        stage.tell();
        tokio::time::sleep(Duration::from_secs(2)).await;
        stage.tell();
        tokio::time::sleep(Duration::from_secs(2)).await;
        assert_eq!((stage.came(), stage.lost()), (vec![1, 1], 1));
    }

    #[tokio::test(start_paused = true)]
    async fn a_batch_that_a_crash_or_a_standstill_took_is_counted_before_anything_follows() {
        for action in ["panic", "hang"] {
            let faults = Faults::armed(&format!("exporter.carry={action}")).expect("a plan");
            let before = stage_with(Scripted::default(), faults);
            let (telemetry, collector) = (before.telemetry.clone(), Arc::clone(&before.collector));
            before.tell();
            before.tell();
            assert_eq!(before.running.await.is_err(), action == "panic", "it ends by itself");
            assert_eq!(telemetry.traces().lost(), 0);
            let next = begin(telemetry, collector, Faults::none());
            tokio::task::yield_now().await;
            assert_eq!((next.lost(), next.came()), (2, vec![]), "{action}");
            next.tell();
            tokio::time::sleep(Duration::from_secs(2)).await;
            assert_eq!((next.lost(), next.came()), (2, vec![1]), "{action}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn at_the_end_what_is_left_is_sent_and_the_metrics_once_more() {
        let stage = stage(Scripted::default());
        stage.tell();
        let (took, collector) = stage.end().await;
        assert!(took < Duration::from_millis(10), "{took:?}");
        assert_eq!(*collector.came.lock().expect("nobody panics with it"), [1]);
        assert_eq!(collector.measured.lock().expect("nobody panics with it").len(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn a_collector_that_hangs_or_did_not_answer_does_not_hold_up_the_end() {
        let hanging = stage(Scripted { hangs: true, ..Scripted::default() });
        hanging.tell();
        tokio::time::sleep(Duration::from_secs(2)).await;
        let (took, _) = hanging.end().await;
        assert!(took <= LAST + Duration::from_millis(10), "{took:?}");
        let away = stage(Scripted { answers: Mutex::new(vec![later(); 9]), ..Scripted::default() });
        away.tell();
        tokio::time::sleep(Duration::from_secs(2)).await;
        let before = away.came().len();
        let (took, collector) = away.end().await;
        assert!(took < Duration::from_millis(10), "{took:?}");
        assert_eq!(collector.came.lock().expect("nobody panics with it").len(), before, "it is not asked again");
    }
}
