//! The page of a daemon, in a program that was built without it.

use std::convert::Infallible;
use std::os::fd::OwnedFd;

use phone_opus::internals::actors::doors::desk::ControlReply;
use phone_opus::internals::base::descriptors::PassedPipe;
use phone_opus::internals::base::state_dir::StateDir;
use phone_opus::internals::daemon::control::{ControlRefusal, PageAsk};
use serde::{Deserialize, Serialize};

/// What the next image is told: nothing.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct PassedPage {
    /// What an image before may have passed on, which had the page.
    pub(super) port: PassedPipe,
}

/// No page.
#[derive(Clone, Default)]
pub(super) struct OpenPage;

impl OpenPage {
    pub(super) fn passed(&self) -> Option<PassedPage> {
        None
    }
}

/// No page.
pub(super) struct Page;

impl Page {
    pub(super) fn new(_: StateDir) -> Self {
        Self
    }

    pub(super) fn seen(&self) -> OpenPage {
        OpenPage
    }

    pub(super) fn go_on(&mut self, _: PassedPage, port: OwnedFd) {
        drop(port);
        tracing::warn!("this version was built without the page, which the version before served");
    }

    pub(super) async fn asked(&mut self, _: PageAsk, reply: ControlReply) {
        let why = "this daemon's program was built without the dashboard (feature `see`)";
        reply.refuse(&ControlRefusal::new("dashboard", why));
    }

    pub(super) async fn ended(&mut self) -> Option<Infallible> {
        None
    }

    pub(super) async fn close(&mut self) {}
}
