//! Where tools run: in the host's own process, or in one of their own.
//!
//! Owns: that choice. May not know: how either keeps its worker.

use std::sync::Arc;

use ractor::ActorRef;
use tokio::sync::mpsc;

use super::lifeline::Keeping;
use super::messages::{WorkerMsg, WorkersMsg};
use super::process::ProcessBackend;
use super::{in_process, process};
use crate::base::fault::Fault;
use crate::base::ids::Generation;
use crate::config::WorkerIsolation;
use crate::failpoints::Faults;

/// Where tools run, and what that takes.
#[derive(Clone)]
pub enum Backend {
    /// In the host's own process, where this is to break.
    InProcess(Faults),
    /// In a process of their own.
    Process(Arc<ProcessBackend>),
}

impl Backend {
    /// Which of the two it is.
    #[must_use]
    pub fn isolation(&self) -> WorkerIsolation {
        match self {
            Self::InProcess(_) => WorkerIsolation::InProcess,
            Self::Process(_) => WorkerIsolation::Process,
        }
    }

    /// Keeps a worker until it has ended; returns why it did.
    pub(super) async fn keep(
        self,
        generation: Generation,
        inbox: mpsc::UnboundedReceiver<WorkerMsg>,
        keeping: &mut Keeping,
        workers: &ActorRef<WorkersMsg>,
    ) -> Fault {
        let workers = workers.clone();
        let up = move |pid| drop(workers.cast(WorkersMsg::Up { generation, pid }));
        match self {
            Self::InProcess(faults) => in_process::keep(inbox, keeping, up, faults).await,
            Self::Process(backend) => process::keep(backend, generation, inbox, keeping, up).await,
        }
    }
}
