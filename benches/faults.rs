//! What a fault point costs: unarmed, armed for another point, armed for another operation, against a loop that meets
//! none. Figures are for reading, as ratios of one run; nothing here passes or fails.
//!
//! ```sh
//! cargo bench --bench faults
//! ```

use std::hint::black_box;
use std::time::{Duration, Instant};

use futures_util::FutureExt;
use phone_opus::internals::failpoints::{Ends, FaultAction, FaultCounters, FaultPlan, FaultPoint, Faults, Operation};

/// Hits per measurement: some milliseconds even for the cheapest.
const HITS: u32 = 4_000_000;

/// Measurements of each case, taken in turns; the least disturbed one counts.
const ROUNDS: usize = 15;

fn armed(plan: &str) -> Faults {
    let plan = FaultPlan::parse(plan, 0).unwrap_or_default();
    Faults::arm(plan, Ends::Process, FaultCounters::Memory).unwrap_or_default()
}

fn timed(mut hit: impl FnMut()) -> Duration {
    let began = Instant::now();
    for _ in 0..HITS {
        hit();
    }
    began.elapsed()
}

fn meet(faults: &Faults) {
    let (point, operation) = (black_box(FaultPoint::WorkerBeforeExecute), black_box(Operation::Tool("consult")));
    let _ = black_box(black_box(faults).drawn(point, operation));
}

/// The same values come and go; only the question is missing.
fn nothing(faults: &Faults) {
    let _ = (black_box(FaultPoint::WorkerBeforeExecute), black_box(Operation::Tool("consult")));
    let _ = black_box(faults);
    let _ = black_box(None::<FaultAction>);
}

/// What it is called, what is armed, what each turn of the loop does.
type Case = (&'static str, Faults, fn(&Faults));

fn main() {
    let cases: [Case; 7] = [
        ("empty loop", Faults::none(), nothing),
        ("drawn, unarmed", Faults::none(), meet),
        ("drawn, armed for another point", armed("store.commit#*=hang"), meet),
        ("drawn, armed for another operation", armed("worker.before_execute@ping#*=hang"), meet),
        ("drawn, armed and spent", armed("worker.before_execute#1=drop"), meet),
        ("drawn, met and not due", armed("worker.before_execute#18446744073709551615=hang"), meet),
        ("meet, unarmed", Faults::none(), |faults| {
            let (point, operation) =
                (black_box(FaultPoint::WorkerBeforeExecute), black_box(Operation::Tool("consult")));
            let _ = black_box(black_box(faults).meet(point, operation).now_or_never());
        }),
    ];
    let mut least = [Duration::MAX; 7];
    for _ in 0..ROUNDS {
        for (best, (_, faults, hit)) in least.iter_mut().zip(&cases) {
            *best = (*best).min(timed(|| hit(faults)));
        }
    }
    let empty = least[0];
    show(&format!("{:<36} {:>10} {:>10} {:>10}", "", "ns a hit", "over empty", "ratio"));
    for ((name, ..), time) in cases.iter().zip(least) {
        let each = |time: Duration| time.as_secs_f64() * 1e9 / f64::from(HITS);
        let (ns, over) = (each(time), each(time) - each(empty));
        show(&format!("{name:<36} {ns:>10.2} {over:>10.2} {:>10.2}", time.as_secs_f64() / empty.as_secs_f64()));
    }
}

#[expect(clippy::print_stdout, reason = "the bench's own output")]
fn show(line: &str) {
    println!("{line}");
}
