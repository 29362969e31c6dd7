//! What a daemon hands on to its next image.
//!
//! Owns: the form of it, what of it changes while the daemon lives. May not know: how an image is replaced.

use std::sync::{Mutex, PoisonError};

use phone_opus::internals::base::descriptors::PassedPipe;
use phone_opus::internals::base::ids::DaemonId;
use phone_opus::internals::daemon::listener::SocketPlace;
use phone_opus::internals::system::handover::{Luggage, Packed};
use serde::{Deserialize, Serialize};

use crate::daemon::page::{OpenPage, PassedPage};

/// What a daemon tells its next image of itself.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct PassedDaemon {
    pub(super) generation: DaemonId,
    pub(super) lock: PassedPipe,
    pub(super) place: SocketPlace,
    pub(super) activated: bool,
    pub(super) paused: bool,
    #[serde(default)]
    pub(super) page: Option<PassedPage>,
}

impl PassedDaemon {
    pub(super) fn read(told: &serde_json::Value) -> Option<Self> {
        serde_json::from_value(told.clone())
            .inspect_err(|error| tracing::warn!(%error, "the daemon before this one cannot be understood"))
            .ok()
    }
}

/// What goes into the next image, as it is now; nothing while it ends.
pub(super) struct Trunk(pub(super) Mutex<Option<PassedDaemon>>, pub(super) OpenPage);

impl Trunk {
    pub(super) fn change(&self, change: impl FnOnce(&mut PassedDaemon)) {
        if let Some(passed) = &mut *self.0.lock().unwrap_or_else(PoisonError::into_inner) {
            change(passed);
        }
    }

    pub(super) fn empty(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}

impl Luggage for Trunk {
    fn pack(&self) -> Packed {
        let mut passed = self.0.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some(passed) = &mut passed {
            passed.page = self.1.passed();
        }
        let page = passed.iter().filter_map(|passed| Some(passed.page.as_ref()?.port));
        let files = passed.iter().map(|passed| passed.lock).chain(page).collect();
        Packed { state: serde_json::json!(passed), files }
    }
}
