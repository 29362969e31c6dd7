//! What a daemon says of itself, and to whom it gives a session.
//!
//! Owns: the two answers, made beside the loop. May not know: what is decided.

use std::sync::Arc;

use phone_opus::internals::actors::callers::opened;
use phone_opus::internals::actors::doors::desk::ControlReply;
use phone_opus::internals::base::ids::SessionNumber;
use phone_opus::internals::daemon::PROTOCOL;
use phone_opus::internals::daemon::control::{DaemonAnswer, DaemonStatus, Opening, SessionOpened};
use phone_opus::internals::jobs::hosts::{HostSaid, TreeSaid};

use super::{ASK, Daemon};

impl Daemon {
    pub(super) fn status(&mut self, reply: ControlReply) {
        let status = DaemonStatus {
            protocol: PROTOCOL,
            build: env!("CARGO_PKG_VERSION").to_owned(),
            generation: self.about.generation,
            pid: self.about.pid,
            state: self.life.state(),
            uptime_s: self.began.elapsed().as_secs(),
            connections: *self.connections.borrow(),
            attached_jobs: 0,
            queued: 0,
            running: 0,
            idle_s: self.idle.map(|idle| idle.as_secs()),
            scope: self.scope.clone(),
            host: Some(self.system.host()),
            max_running: self.side.config.max_running,
            sessions: Vec::new(),
            jobs: Vec::new(),
            tree: TreeSaid::default(),
            rollout_rejected: None,
        };
        let (system, jobs) = (self.system.clone(), self.system.jobs().clone());
        self.answering.spawn(async move {
            // A store that does not answer is no reason to say nothing; who asks sees zeros, and health says why.
            let counts = tokio::time::timeout(ASK / 2, jobs.counts()).await.ok().and_then(Result::ok);
            let attached = tokio::time::timeout(ASK / 2, jobs.attached()).await.unwrap_or(0);
            let (queued, running) = counts.map_or((0, 0), |counts| (counts.queued, counts.running));
            let HostSaid { sessions, jobs, tree, rollout_rejected, .. } = system.seen().await;
            let said = DaemonStatus { sessions, jobs, tree, rollout_rejected, ..status };
            let counted = DaemonStatus { attached_jobs: attached, queued, running, ..said };
            reply.answer(DaemonAnswer::Status(counted).line());
        });
    }

    /// Makes the session its caller's.
    pub(super) fn open_session(&mut self, session: SessionNumber, opening: Opening, reply: ControlReply) {
        let answer = SessionOpened {
            protocol: PROTOCOL,
            build: env!("CARGO_PKG_VERSION").to_owned(),
            generation: self.about.generation,
            catalog: format!("{:016x}", self.system.catalog_digest()),
            resumed: self.keys.note(&opening.session),
            settings_ignored: opening.settings_ignored(&self.side.config),
        };
        let (side, callers) = (Arc::clone(&self.side), self.system.callers().clone());
        self.answering.spawn(async move {
            match opened(opening, side).await {
                Ok(context) => {
                    callers.set(session, context);
                    reply.answer(DaemonAnswer::SessionOpened(answer).line());
                }
                Err(refusal) => reply.refuse(&refusal),
            }
        });
    }
}
