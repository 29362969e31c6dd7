//! Progress of a call, on its way from the tool that reports it to whoever listens.
//!
//! Owns: the place in which the newest report waits. May not know: who listens, what a report looks like on a wire.
//!
//! Invariants: (1) reports decide nothing, so a new one takes the place of one that was not read yet; (2) however often a
//! tool reports, one message to its listener is under way.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

/// Hears that there is a report to read.
pub trait ProgressListener: Send + Sync {
    /// A report waits, and none did before. Must not block.
    fn reported(&self, latest: Latest);
}

/// Where a tool reports progress. Cheap to clone; all clones report to the same place.
///
/// ```
/// use phone_opus::ProgressSink;
///
/// fn work(progress: &ProgressSink) {                                  // `ToolCall::progress`
///     for step in 1..=3 {
///         if progress.is_wanted() {
///             progress.report(f64::from(step), format!("step {step} of 3"));
///         }
///     }
/// }
/// work(&ProgressSink::closed());                                      // in a test of your own
/// ```
#[derive(Clone)]
pub struct ProgressSink(Option<Latest>);

/// The report nobody has read yet.
#[derive(Clone)]
pub struct Latest(Arc<Shared<dyn ProgressListener>>);

/// One allocation for both, since a client that wants progress wants it of every call.
struct Shared<L: ?Sized> {
    report: Mutex<Option<(f64, String)>>,
    listener: L,
}

impl Latest {
    /// The report: a value that rises, and what is going on.
    #[must_use]
    pub fn take(&self) -> Option<(f64, String)> {
        self.0.report.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// Puts a report in its place; whether the listener has to be told.
    fn put(&self, value: f64, message: String) -> bool {
        self.0.report.lock().unwrap_or_else(PoisonError::into_inner).replace((value, message)).is_none()
    }
}

impl ProgressSink {
    /// A sink whose reports this listener hears of.
    #[doc(hidden)]
    pub fn new(listener: impl ProgressListener + 'static) -> Self {
        Self(Some(Latest(Arc::new(Shared { report: Mutex::new(None), listener }))))
    }

    /// A sink nobody listens to.
    #[must_use]
    pub const fn closed() -> Self {
        Self(None)
    }

    /// Whether anybody wants reports.
    #[must_use]
    pub fn is_wanted(&self) -> bool {
        self.0.is_some()
    }

    /// Reports; `value` must rise from report to report, `message` stays under 200 characters.
    pub fn report(&self, value: f64, message: String) {
        let Some(latest) = &self.0 else { return };
        if latest.put(value, message) {
            latest.0.listener.reported(latest.clone());
        }
    }
}

impl fmt::Debug for ProgressSink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ProgressSink").field("is_wanted", &self.is_wanted()).finish()
    }
}

/// Without the text: it may quote what the agent said.
impl fmt::Debug for Latest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Latest")
    }
}
