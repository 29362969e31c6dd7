//! Handing over to the next image of the program, in place: same process, same descriptors, same children.
//!
//! Owns: the snapshot ([`HostSnapshot`]), the sequence that freezes, passes on and thaws (`sequence`), the `exec`
//! (`image`). May not know: when an upgrade is wanted and whether the new program is any good.
//!
//! ```text
//!  serving ──freeze──▶ quiet ──workers ended──▶ jobs let go ──still──▶ written ──exec──▶ (next image) restored ──▶ serving
//!     ▲                                                                   │
//!     └───────────────── thawed, in the reverse order ◀── anything failed ┘
//! ```
//!
//! Invariants: (1) L15: every byte read, said and not written, every call in flight and every runner's pipe is in exactly one
//! place, the snapshot or a descriptor; (2) until the `exec` has happened the old image can go on, and does; (3) a snapshot
//! is read once, by one image, of the same format; (4) nothing is charged to a call for an upgrade.

mod image;
mod in_place;
mod luggage;
mod sequence;

use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

pub use self::image::{NewImage, RESTORE};
pub(crate) use self::in_place::InPlace;
pub use self::luggage::{Luggage, Packed};
pub use self::sequence::HandOverError;
pub(crate) use self::sequence::{HandOverDesk, Underway};
use crate::actors::connections::{ConnectionSnapshot, Connections};
use crate::actors::doors::table::DoorTable;
use crate::actors::doors::unix::{DoorSnapshot, ListeningSocket};
use crate::actors::jobs::attachments::Attachments;
use crate::actors::jobs::custody::passed::{CustodySnapshot, inherit_the_rest};
use crate::actors::jobs::host_life::HostLife;
use crate::actors::jobs::means::Means;
use crate::actors::jobs::room::RoomSnapshot;
use crate::actors::session::{Gauges, SessionSnapshot};
use crate::actors::workers::messages::WorkersSnapshot;
use crate::base::descriptors::{InheritedPipes, PassedPipe};
use crate::base::ids::{HostId, UnixMillis};
use crate::base::state_dir::StateDir;
use crate::config::Config;
use crate::protocol::session::Unreadable;
use crate::rollout::Carried;
pub use crate::rollout::snapshot_file::{Nameless, Restore, SnapshotFile};
use crate::telemetry::TelemetryHandle;
use crate::telemetry::counters::CountersSnapshot;
use crate::telemetry::traces::PassedFacts;

/// The format of a snapshot of a host with one connection on the standard streams. It grows with every change that an image
/// with another number could not make sense of.
pub const FORMAT: u32 = crate::rollout::selfcheck::SNAPSHOT_FORMAT;

/// The format of one that has more: an image that knows only the other would lose the rest without a word.
const FORMAT_OF_MORE: u32 = FORMAT + 1;

/// Why a snapshot cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    /// Its file cannot be written, read or removed.
    #[error("use the snapshot {file}")]
    File {
        /// The file, as a command line names it.
        file: String,
        /// The system's words.
        #[source]
        source: io::Error,
    },
    /// It is of another format.
    #[error(
        "read a snapshot of format {format} by {program}: this program reads formats {FORMAT} and {FORMAT_OF_MORE}"
    )]
    Format {
        /// Its format.
        format: u32,
        /// The version of the program that wrote it.
        program: String,
    },
    /// It is cut off, or no snapshot.
    #[error("read a snapshot: {reason}")]
    Damaged {
        /// What is wrong.
        reason: String,
    },
    /// Something in it makes no sense.
    #[error("restore a snapshot")]
    Unreadable(#[from] Unreadable),
    /// The system it is to be restored into cannot be put together.
    #[error("restore a snapshot: {reason}")]
    NoSystem {
        /// What the part that did not start said.
        reason: String,
    },
}

/// What tells whether the rest can be read at all.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Head {
    format: u32,
    program: String,
}

/// Everything an image passes on to the next one, besides descriptors and children.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct HostSnapshot {
    #[serde(flatten)]
    head: Head,
    taken_at: UnixMillis,
    pub(crate) host: HostId,
    pub(crate) uptime: Duration,
    /// The number of the next session.
    pub(crate) next_session: u64,
    /// What clients were told about the tools, as a number.
    pub(crate) catalog: u64,
    /// The session on the standard streams.
    pub(crate) session: Option<SessionSnapshot>,
    /// Those by sockets.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) connections: Vec<ConnectionSnapshot>,
    /// Where more of them come in.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) doors: Vec<DoorSnapshot>,
    /// What the embedding program passes on itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) packed: Option<Packed>,
    pub(crate) workers: WorkersSnapshot,
    pub(crate) jobs: Vec<CustodySnapshot>,
    /// Who waits with those whose turn has not come.
    #[serde(default)]
    pub(crate) waiting: Option<RoomSnapshot>,
    /// The lock by which others see that this host lives.
    #[serde(default)]
    pub(crate) host_lock: Option<PassedPipe>,
    pub(crate) telemetry: Option<CountersSnapshot>,
    /// Records telemetry lost.
    pub(crate) dropped: u64,
    /// What traces were told and nobody has exported.
    #[serde(default)]
    pub(crate) traces: PassedFacts,
    pub(crate) stale: u64,
    pub(crate) replays: u64,
    pub(crate) broken_laws: Vec<String>,
    /// Where spent fault points are counted.
    pub(crate) fault_counts: Option<PathBuf>,
    /// What is known about rollouts.
    pub(crate) rollout: Carried,
    /// The configuration in force, as it is written; absent where it is no text, or an older version wrote this.
    #[serde(default)]
    pub(crate) config: Option<serde_json::Value>,
    /// Where jobs are kept; absent where it is no text, or an older version wrote this.
    #[serde(default)]
    pub(crate) state_dir: Option<String>,
}

impl HostSnapshot {
    fn head(format: u32) -> Head {
        Head { format, program: env!("CARGO_PKG_VERSION").to_owned() }
    }

    /// With the format that what it holds asks for.
    fn with_its_format(mut self) -> Self {
        let more = !self.connections.is_empty() || !self.doors.is_empty() || self.packed.is_some();
        self.head = Self::head(if more { FORMAT_OF_MORE } else { FORMAT });
        self
    }

    /// One of a server nobody is connected to, for trying what restores it.
    #[cfg(any(test, feature = "testkit"))]
    #[must_use]
    pub fn of_nothing() -> Self {
        Self {
            head: HostSnapshot::head(FORMAT),
            taken_at: UnixMillis::now(),
            host: HostId::random(),
            uptime: Duration::from_secs(7),
            next_session: 2,
            catalog: 1,
            session: None,
            connections: Vec::new(),
            doors: Vec::new(),
            packed: None,
            workers: WorkersSnapshot {
                generation: crate::base::ids::Generation(3),
                isolation: crate::config::WorkerIsolation::InProcess,
                pid: None,
                alive: true,
                gave_up: false,
                restarts: 2,
                consecutive_failures: 0,
                losses: Vec::new(),
            },
            jobs: Vec::new(),
            waiting: None,
            host_lock: None,
            telemetry: Some(CountersSnapshot::default()),
            dropped: 0,
            traces: PassedFacts::default(),
            stale: 0,
            replays: 0,
            broken_laws: Vec::new(),
            fault_counts: None,
            rollout: Carried { adopted: 1, from: "0".into(), by: "signal".into() },
            config: serde_json::to_value(Config::default()).ok(),
            state_dir: None,
        }
    }

    /// The version of the program that made it.
    #[must_use]
    pub fn program(&self) -> &str {
        &self.head.program
    }

    /// Where spent fault points are counted, if any are armed.
    #[must_use]
    pub fn fault_counts(&self) -> Option<&Path> {
        self.fault_counts.as_deref()
    }

    /// The configuration that was in force. `None` where this program cannot make one of it: then its own is what there is.
    #[must_use]
    pub fn config(&self) -> Option<Config> {
        serde_json::from_value(self.config.clone()?).ok()
    }

    /// Where jobs were kept. The next image keeps them there too, whatever its own environment says by now.
    #[must_use]
    pub fn state_dir(&self) -> Option<StateDir> {
        self.state_dir.as_deref().map(Path::new).filter(|dir| dir.is_absolute()).map(StateDir::at)
    }

    /// How long ago it was taken, by the clock on the wall.
    #[must_use]
    pub fn age(&self) -> Duration {
        Duration::from_millis(UnixMillis::now().since(self.taken_at))
    }

    /// What the program that wrote it passed on itself, in its own words.
    #[must_use]
    pub fn luggage(&self) -> Option<&serde_json::Value> {
        self.packed.as_ref().map(|packed| &packed.state)
    }

    /// Takes an open file of that; each is there once, and closes on `exec` from here on.
    pub fn take_file(&mut self, file: &PassedPipe) -> Option<OwnedFd> {
        let files = &mut self.packed.as_mut()?.files;
        let at = files.iter().position(|passed| passed == file)?;
        let file = files.swap_remove(at);
        InheritedPipes::these(std::iter::once(&file)).take(&file)
    }

    /// The pipes and sockets that a system goes on with.
    fn pipes(&self) -> impl Iterator<Item = &PassedPipe> {
        let waiting = self.waiting.iter().flat_map(RoomSnapshot::pipes);
        let sockets = self.connections.iter().map(|connection| &connection.socket);
        let doors = self.doors.iter().map(|door| &door.socket);
        let ours = self.jobs.iter().flat_map(CustodySnapshot::pipes).chain(waiting).chain(&self.host_lock);
        ours.chain(sockets).chain(doors)
    }

    /// Every descriptor that goes with it.
    pub(crate) fn descriptors(&self) -> impl Iterator<Item = &PassedPipe> {
        self.pipes().chain(self.packed.iter().flat_map(|packed| &packed.files))
    }

    /// Makes a system that is being put together go on with it. What of it makes no sense is left out, and said: calls that
    /// were in it are answered with a fault.
    pub(crate) fn restore_into(
        &self,
        (connections, doors): (&Connections, &DoorTable),
        attachments: &Attachments,
        gauges: &Gauges,
        telemetry: &TelemetryHandle,
        means: Option<&Means>,
        life: &HostLife,
    ) {
        gauges.inherit(self.stale, self.replays, &self.broken_laws);
        telemetry.lose(self.dropped);
        telemetry.traces().inherit_facts(&self.traces);
        inherit_the_rest(&self.jobs, self.waiting.as_ref());
        let mut pipes = InheritedPipes::these(self.pipes());
        if let Some(lock) = self.host_lock.as_ref().and_then(|lock| pipes.take(lock)) {
            life.inherit(lock);
        }
        if let Some(waiting) = &self.waiting {
            attachments.room().inherit(waiting, &mut pipes);
        }
        if let Some(means) = means {
            self.jobs.iter().for_each(|job| attachments.inherit(job, &mut pipes, means.clone()));
        }
        for door in &self.doors {
            match pipes.take(&door.socket) {
                Some(socket) => doors.inherit(ListeningSocket::passed(socket, door.place.clone())),
                None => tracing::error!("a listening socket that was passed on is not there"),
            }
        }
        let mut by_sockets = Vec::new();
        for connection in &self.connections {
            match pipes.take(&connection.socket) {
                Some(socket) => by_sockets.push((connection.clone(), Some(socket))),
                None => {
                    let session = connection.session.number;
                    tracing::error!(%session, "a connection that was passed on is not there");
                }
            }
        }
        if let Err(error) = self.inherit_connections(connections, by_sockets) {
            // A program that says so in its dry run is not handed over to. The client has to greet us again.
            tracing::error!(%error, "a connection could not be restored");
        }
    }

    fn inherit_connections(
        &self,
        connections: &Connections,
        by_sockets: Vec<(ConnectionSnapshot, Option<OwnedFd>)>,
    ) -> Result<(), Unreadable> {
        connections.inherit(self.next_session, self.session.as_ref(), by_sockets, self.catalog, self.age())
    }

    /// Takes the connections in for a dry run, without what they come by.
    ///
    /// # Errors
    ///
    /// Something in one makes no sense.
    pub(crate) fn try_connections(&self, connections: &Connections) -> Result<(), Unreadable> {
        let by_sockets = self.connections.iter().map(|connection| (connection.clone(), None)).collect();
        self.inherit_connections(connections, by_sockets)
    }

    /// Writes it into a file without a name, in this directory where it does not lie in memory.
    ///
    /// # Errors
    ///
    /// There is no room for it; nothing is left of it.
    pub fn write(&self, dir: &Path, place: Nameless) -> Result<SnapshotFile, SnapshotError> {
        let written = serde_json::to_vec(self).map_err(io::Error::from);
        written
            .and_then(|text| SnapshotFile::holding(&text, dir, place))
            .map_err(|source| SnapshotError::File { file: "to be passed on".to_owned(), source })
    }

    /// Takes it: the file is closed or removed before anything is made of it, so that it is used once, whatever comes of that.
    ///
    /// # Errors
    ///
    /// It cannot be read, is of another format, or damaged.
    pub fn take(from: &Restore) -> Result<Self, SnapshotError> {
        Self::parse(&from.take().map_err(|source| SnapshotError::File { file: from.to_string(), source })?)
    }

    /// Reads it, and leaves it for whoever takes it.
    ///
    /// # Errors
    ///
    /// As [`HostSnapshot::take`].
    pub fn read(from: &Restore) -> Result<Self, SnapshotError> {
        Self::parse(&from.bytes().map_err(|source| SnapshotError::File { file: from.to_string(), source })?)
    }

    fn parse(text: &[u8]) -> Result<Self, SnapshotError> {
        let damaged = |error: serde_json::Error| SnapshotError::Damaged { reason: error.to_string() };
        let Head { format, program } = serde_json::from_slice(text).map_err(damaged)?;
        if !(FORMAT..=FORMAT_OF_MORE).contains(&format) {
            return Err(SnapshotError::Format { format, program });
        }
        serde_json::from_slice(text).map_err(damaged)
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::system::System;

    fn snapshot() -> HostSnapshot {
        HostSnapshot { fault_counts: Some(PathBuf::from("/counts")), ..HostSnapshot::of_nothing() }
    }

    #[test]
    fn a_snapshot_is_read_as_it_was_written_wherever_it_lies_and_taken_once_from_a_name() {
        let dir = tempfile::tempdir().expect("a directory");
        let written = snapshot();
        for place in [Nameless::Anywhere, Nameless::InDirectory] {
            let file = written.write(dir.path(), place).expect("it is written");
            assert_eq!(HostSnapshot::read(&file.here()).expect("it is read"), written);
            assert_eq!(fs::read_dir(dir.path()).expect("a directory").count(), 0);
        }
        // As an older version passes it on.
        let path = dir.path().join("handover-x.json");
        fs::write(&path, serde_json::to_vec(&written).expect("JSON")).expect("written");
        let named = Restore::Path(path);
        assert_eq!(HostSnapshot::take(&named).expect("it is taken"), written);
        assert!(matches!(HostSnapshot::take(&named), Err(SnapshotError::File { .. })));
    }

    #[test]
    fn what_an_older_version_wrote_is_understood_and_what_a_later_one_configures_is_not_in_the_way() {
        let mut value = serde_json::to_value(snapshot()).expect("JSON");
        let members = value.as_object_mut().expect("an object");
        // Without what was added since.
        for added in ["config", "state_dir", "host_lock"] {
            members.remove(added);
        }
        let old = HostSnapshot::parse(value.to_string().as_bytes()).expect("it is understood");
        assert_eq!((old.config(), old.state_dir()), (None, None));
        for (config, kept) in [
            (serde_json::json!({"max_running": 7, "of_a_later_version": [1]}), Some(7)),
            (serde_json::json!({"max_running": "many"}), None),
            (serde_json::json!("none"), None),
        ] {
            value["config"] = config;
            let read = HostSnapshot::parse(value.to_string().as_bytes()).expect("it is understood");
            assert_eq!(read.config().map(|config| config.max_running), kept);
        }
    }

    #[test]
    fn a_snapshot_of_another_format_or_a_damaged_one_is_refused_with_a_reason_and_not_left_there() {
        let dir = tempfile::tempdir().expect("a directory");
        let text = serde_json::to_string(&snapshot()).expect("JSON");
        let other = text.replacen(&format!("\"format\":{FORMAT}"), "\"format\":99", 1);
        for (text, wants) in [
            (other.as_str(), "format 99"),
            // The rest of another format need not make any sense.
            (r#"{"format":99,"program":"9.9.9"}"#, "by 9.9.9"),
            (&text[..text.len() / 2], "EOF"),
            ("", "EOF"),
            ("[]", "invalid"),
        ] {
            let path = dir.path().join("handover-x.json");
            fs::write(&path, text).expect("written");
            let error = HostSnapshot::take(&Restore::Path(path.clone())).expect_err("it is refused").to_string();
            assert!(error.contains(wants), "{error}");
            assert!(!path.exists());
        }
    }

    #[tokio::test]
    async fn a_system_that_serves_nobody_or_an_embedders_streams_is_not_handed_over() {
        let dir = tempfile::tempdir().expect("a directory");
        let state = StateDir::at(dir.path().join("state"));
        let system = System::builder().state_dir(state).start().await.expect("it starts");
        let image = NewImage::new("/bin/true", [], []);
        let error = system.hand_over(&image).await;
        assert!(matches!(error, HandOverError::Unfit(crate::actors::connections::Unfit::NoConnection)), "{error}");
        let (client, server) = tokio::io::duplex(1024);
        let (reader, writer) = tokio::io::split(server);
        let serving = tokio::spawn({
            let system = system.clone();
            async move { system.serve(reader, writer).await }
        });
        let error = loop {
            match system.hand_over(&image).await {
                HandOverError::Unfit(crate::actors::connections::Unfit::NoConnection) => tokio::task::yield_now().await,
                error => break error,
            }
        };
        assert!(matches!(error, HandOverError::Unfit(crate::actors::connections::Unfit::Elsewhere)), "{error}");
        assert!(system.peek().await.is_err());
        drop(client);
        serving.await.expect("no panic").expect("it was served");
        system.shutdown(crate::system::Grace::default()).await;
    }

    #[test]
    fn a_dry_run_takes_what_makes_sense() {
        System::builder().check(&snapshot()).expect("nothing was under way");
    }

    #[test]
    fn an_earlier_snapshot_is_not_named_again() {
        let words = ["phone-opus", "mcp", "serve", "--restore", "/a", "--restore=/b", "--isolation", "process"];
        let image = NewImage::new("/p", words.map(Into::into), []);
        let kept = NewImage::new("/p", ["phone-opus", "mcp", "serve", "--isolation", "process"].map(Into::into), []);
        assert_eq!(image, kept);
    }
}
