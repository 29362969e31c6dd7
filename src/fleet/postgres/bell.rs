//! A connection that does nothing but hear that something changed.
//!
//! Owns: that connection, and its way back. May not know: what changed; whoever hears it looks at everything it waits for.
//!
//! Invariants: (1) whatever is heard or missed, nobody depends on it: everybody looks each [`POLL`] besides; (2) a connection that may
//! be deaf, as behind a pooler, is noticed within [`PROBE_EVERY`] and made anew; (3) each new one rings once, for what was missed; (4) of
//! hosts that hear each other one probes: the server wakes all that listen, whatever they listen for.

use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};

use super::link::Way;
use crate::base::tasks;
use crate::fleet::POLL;

/// Where all hosts of a database's fleet hear of changes.
pub(super) const CHANNEL: &str = "phone_opus_fleet";

/// Where they hear that somebody made sure that anything is heard.
const PROBES: &str = "phone_opus_probe";

/// How long nothing is heard until it is made sure that something would be.
const PROBE_EVERY: Duration = Duration::from_secs(60);

/// Longest an answer of its own takes.
const PROBE_BOUND: Duration = Duration::from_secs(5);

/// A bell that rings when the fleet changed. It ends with this.
#[derive(Debug)]
pub(super) struct Bell {
    rings: watch::Receiver<u64>,
    task: JoinHandle<()>,
}

impl Drop for Bell {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Bell {
    /// Begins to listen.
    pub(super) fn hang(way: Way) -> Self {
        let (sender, rings) = watch::channel(0);
        Self { rings, task: tasks::spawn(listen(way, sender)) }
    }

    /// Whoever has this is told of each ring.
    pub(super) fn rings(&self) -> watch::Receiver<u64> {
        self.rings.clone()
    }
}

async fn listen(way: Way, rings: watch::Sender<u64>) {
    loop {
        listen_once(&way, &rings).await;
        sleep(Duration::from_secs(1)).await;
    }
}

/// Listens until the connection is lost or deaf.
async fn listen_once(way: &Way, rings: &watch::Sender<u64>) -> Option<()> {
    let (hears, mut heard) = mpsc::channel(1);
    let on_message = {
        let rings = rings.clone();
        move |channel: &str| {
            if channel == CHANNEL {
                rings.send_modify(|rung| *rung += 1);
            }
            // One that waits says as much as two.
            let _ = hears.try_send(());
        }
    };
    let link = timeout(POLL, way.dial(on_message)).await.ok()?.ok()?;
    timeout(POLL, link.client.batch_execute(&format!("LISTEN {CHANNEL}; LISTEN {PROBES}"))).await.ok()?.ok()?;
    rings.send_modify(|rung| *rung += 1);
    let probe = format!("NOTIFY {PROBES}");
    loop {
        timeout(PROBE_BOUND, link.client.batch_execute(&probe)).await.ok()?.ok()?;
        timeout(PROBE_BOUND, heard.recv()).await.ok()??;
        // Whatever is heard proves it, and another host's probe with it. The sender is the driver's: it is gone when the connection is.
        while let Ok(message) = timeout(super::jittered(PROBE_EVERY), heard.recv()).await {
            message?;
        }
    }
}
