//! The page of a daemon.
//!
//! Owns: when it is served and when no longer, who is told its address, what the next image goes on with. May not know: what it shows
//! (`phone_opus::internals::dashboard`), the daemon's life.
//!
//! ```text
//! closed ── asked for an address ──▶ open ── nobody connected for 30 min · told to · the daemon ends ──▶ closed
//! ```
//!
//! Invariants: (1) nothing is listened at before somebody asks; (2) an image that takes the place of this one goes on with the same
//! port, passed on open, so that nobody else can take it meanwhile and be sent a page's secrets.

use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use phone_opus::internals::actors::doors::desk::ControlReply;
use phone_opus::internals::base::descriptors::PassedPipe;
use phone_opus::internals::base::state_dir::StateDir;
use phone_opus::internals::daemon::control::{self, ControlRefusal, DaemonAnswer, PageAsk};
use phone_opus::internals::dashboard::desk::Desk;
use phone_opus::internals::dashboard::keys::PassedKeys;
use phone_opus::internals::dashboard::server::Dashboard;
use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;
use tokio::task::JoinSet;

use crate::settings::chain;

/// How long nobody may be connected before it ends: longer than a browser that sleeps is missed, shorter than a forgotten one matters.
const UNUSED: Duration = Duration::from_secs(30 * 60);

/// What the next image is told.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct PassedPage {
    /// The port.
    pub(super) port: PassedPipe,
    keys: PassedKeys,
}

/// The page that is open, as others see it. Cheap to clone; its lock is never held over an await.
#[derive(Clone, Default)]
pub(super) struct OpenPage(Arc<Mutex<Option<(Desk, PassedPipe)>>>);

impl OpenPage {
    fn get(&self) -> MutexGuard<'_, Option<(Desk, PassedPipe)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What goes into the next image, as it is now.
    pub(super) fn passed(&self) -> Option<PassedPage> {
        let open = self.get();
        let (desk, port) = open.as_ref()?;
        let keys = desk.keys().passed(Instant::now());
        Some(PassedPage { port: *port, keys })
    }
}

/// The page.
pub(super) struct Page {
    dir: StateDir,
    open: OpenPage,
    stop: Option<oneshot::Sender<()>>,
    serving: JoinSet<()>,
}

impl Page {
    /// One that is closed.
    pub(super) fn new(dir: StateDir) -> Self {
        Self { dir, open: OpenPage::default(), stop: None, serving: JoinSet::new() }
    }

    /// How others see it.
    pub(super) fn seen(&self) -> OpenPage {
        self.open.clone()
    }

    /// Goes on with the one of the image before.
    pub(super) fn go_on(&mut self, passed: PassedPage, port: OwnedFd) {
        let gone_on = Dashboard::go_on(self.dir.clone(), port, passed.keys);
        if let Err(why) = gone_on.map_err(|error| chain(&error)).and_then(|dashboard| self.serve(dashboard).map(drop)) {
            tracing::warn!(why, "the page of the version before is not served any more");
        }
    }

    /// Does what was asked, and says so.
    pub(super) async fn asked(&mut self, ask: PageAsk, reply: ControlReply) {
        match ask {
            PageAsk::Close => {
                self.stop();
                reply.answer(control::done("dashboard"));
            }
            PageAsk::Open { port } => match self.link(port).await {
                Ok(url) => reply.answer(DaemonAnswer::Dashboard { url }.line()),
                Err(why) => reply.refuse(&ControlRefusal::new("dashboard", why)),
            },
        }
    }

    async fn link(&mut self, port: u16) -> Result<String, String> {
        let open = self.open.get().as_ref().map(|(desk, _)| desk.clone());
        match open {
            Some(desk) if port != 0 && desk.port() != port => Err(format!(
                "the page is served at port {} already; `phone-opus dashboard --stop` ends that",
                desk.port()
            )),
            Some(desk) => Ok(desk.link()),
            None => {
                // One that is ending gives up its socket first.
                while self.serving.join_next().await.is_some() {}
                let listening = Dashboard::listen(self.dir.clone(), port, None).await;
                Ok(self.serve(listening.map_err(|error| format!("failed to {}", chain(&error)))?)?.link())
            }
        }
    }

    fn serve(&mut self, dashboard: Dashboard) -> Result<Desk, String> {
        let port = dashboard.passed_port().map_err(|error| format!("failed to look at the port: {error}"))?;
        let (desk, open) = (dashboard.desk().clone(), self.open.clone());
        *open.get() = Some((desk.clone(), port));
        let (stop, stopped) = oneshot::channel();
        self.stop = Some(stop);
        let used = desk.clone();
        self.serving.spawn(async move {
            let end = async {
                tokio::select! {
                    _ = stopped => {}
                    () = used.unused(UNUSED) => {}
                }
                open.get().take();
            };
            dashboard.serve(end).await;
        });
        Ok(desk)
    }

    fn stop(&mut self) {
        self.open.get().take();
        drop(self.stop.take());
    }

    /// It has ended.
    pub(super) async fn ended(&mut self) -> Option<()> {
        self.serving.join_next().await.map(drop)
    }

    /// Ends it in order.
    pub(super) async fn close(&mut self) {
        self.stop();
        while self.serving.join_next().await.is_some() {}
    }
}
