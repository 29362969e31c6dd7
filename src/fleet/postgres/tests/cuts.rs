//! A way to the database that breaks in the middle of an answer, and what every verb makes of it.
//!
//! Owns: the proxy that breaks it, and one scene a verb: how things stand before, how they stand when it was done, and what it answers
//! when it is asked again. Laws: L3, L4, L19.

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicU64;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{UnixListener, UnixStream};
use tokio::task::JoinHandle;

use super::*;

/// Seeded places at which each verb's answer is cut. `all` (`.ci/long fleet-backend`): after each of its bytes.
const CUTS_VARIABLE: &str = "PHONE_OPUS_FLEET_CUTS";
const CUTS: usize = 4;

/// Stands between a host and the database's socket.
struct Proxy {
    dir: tempfile::TempDir,
    /// Bytes of answers that are still let through; negative for all of them.
    left: Arc<AtomicI64>,
    /// Bytes of answers that were let through.
    told: Arc<AtomicU64>,
    task: JoinHandle<()>,
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Proxy {
    fn new(server: &Path) -> Self {
        let dir = tempfile::Builder::new().prefix("pg").tempdir_in("/tmp").expect("a directory");
        std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o700)).expect("private");
        let listener = UnixListener::bind(dir.path().join(".s.PGSQL.5432")).expect("a socket");
        let (left, told) = (Arc::new(AtomicI64::new(-1)), Arc::new(AtomicU64::new(0)));
        let task = tokio::spawn(forward(listener, server.join(".s.PGSQL.5432"), Arc::clone(&left), Arc::clone(&told)));
        Self { dir, left, told, task }
    }

    fn settings(&self, database: &str) -> String {
        format!("host={} user=fleet dbname={database}", self.dir.path().display())
    }

    /// The connection whose answers make these bytes full is cut after them; those after it are whole.
    fn cut_after(&self, bytes: u64) {
        self.left.store(i64::try_from(bytes).expect("few"), Ordering::SeqCst);
    }

    fn cut_no_more(&self) {
        self.left.store(-1, Ordering::SeqCst);
    }
}

async fn forward(listener: UnixListener, server: PathBuf, left: Arc<AtomicI64>, told: Arc<AtomicU64>) {
    // Its connections end with it.
    let mut connections = JoinSet::new();
    while let Ok((client, _)) = listener.accept().await {
        let server = UnixStream::connect(&server).await.expect("the server");
        connections.spawn(connection(client, server, Arc::clone(&left), Arc::clone(&told)));
    }
}

async fn connection(client: UnixStream, server: UnixStream, left: Arc<AtomicI64>, told: Arc<AtomicU64>) {
    let ((mut from_client, mut to_client), (mut from_server, mut to_server)) =
        (client.into_split(), server.into_split());
    let asking = async { tokio::io::copy(&mut from_client, &mut to_server).await.map(drop) };
    let answering = async {
        let mut bytes = vec![0; 4096];
        loop {
            let read = from_server.read(&mut bytes).await.unwrap_or(0);
            if read == 0 {
                return;
            }
            let may = left.load(Ordering::SeqCst);
            let passes = usize::try_from(may).map_or(read, |may| read.min(may));
            told.fetch_add(u64::try_from(passes).expect("few"), Ordering::SeqCst);
            if to_client.write_all(&bytes[..passes]).await.is_err() {
                return;
            }
            if may >= 0 {
                let rest = may - i64::try_from(passes).expect("few");
                left.store(if passes < read { -1 } else { rest }, Ordering::SeqCst);
            }
            if passes < read {
                return;
            }
        }
    };
    tokio::select! {
        _ = asking => {}
        () = answering => {}
    }
}

/// A verb with a job to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Scene {
    Accept,
    Claim,
    Start,
    Renew,
    Finish,
    Late,
    Sweep,
    CancelQueued,
    CancelRunning,
    Wait,
}

impl Scene {
    const ALL: [Self; 10] = [
        Self::Accept,
        Self::Claim,
        Self::Start,
        Self::Renew,
        Self::Finish,
        Self::Late,
        Self::Sweep,
        Self::CancelQueued,
        Self::CancelRunning,
        Self::Wait,
    ];
}

/// A job and a host in a database of nobody else's.
struct Stage {
    /// Without the proxy.
    fleet: PgFleet,
    host: HostId,
    new: NewFleetJob,
    ticket: Option<Ticket>,
}

impl Stage {
    /// As things stand before the verb of a scene.
    async fn set(settings: &str, scene: Scene) -> Self {
        let fleet = PgFleet::open(settings).await.expect("opened");
        statements(&fleet, "TRUNCATE phone_opus.job, phone_opus.late, phone_opus.host, phone_opus.turn").await;
        let host = HostId::random();
        let _ = fleet.renew(&renewal(host, 4)).await.expect("renewed");
        let mut stage = Self { fleet, host, new: new_job("one"), ticket: None };
        if scene == Scene::Accept {
            return stage;
        }
        assert_eq!(stage.fleet.accept(&stage.new).await, Ok(FleetAccept::Inserted(stage.new.id)));
        if matches!(scene, Scene::Claim | Scene::CancelQueued) {
            return stage;
        }
        let ticket = given(stage.fleet.claim(&asked(host, 1)).await.expect("claimed"))[0].ticket;
        stage.ticket = Some(ticket);
        if !matches!(scene, Scene::Start | Scene::Sweep) {
            assert_eq!(stage.fleet.start(ticket).await, Ok(FleetStart::Started));
        }
        if matches!(scene, Scene::Late | Scene::Sweep) {
            statements(&stage.fleet, "UPDATE phone_opus.host SET lease_until = '-infinity'").await;
        }
        if scene == Scene::Late {
            assert_eq!(stage.fleet.sweep().await.expect("swept").interrupted, [stage.new.id]);
        }
        if scene == Scene::Wait {
            assert_eq!(stage.fleet.finish(&finished(ticket)).await, Ok(FleetFinish::Finished));
        }
        stage
    }

    fn ticket(&self) -> Ticket {
        self.ticket.expect("a ticket")
    }

    /// Has a fleet do the verb. `Ok` with what it answered in words.
    async fn act(&self, scene: Scene, fleet: &PgFleet) -> Result<String, FleetError> {
        let text = |answer: &dyn fmt::Debug| format!("{answer:?}");
        Ok(match scene {
            Scene::Accept => text(&fleet.accept(&self.new).await?),
            Scene::Claim => text(&given(fleet.claim(&asked(self.host, 1)).await?).len()),
            Scene::Start => text(&fleet.start(self.ticket()).await?),
            Scene::Renew => text(&fleet.renew(&renewal(self.host, 4)).await?),
            Scene::Finish | Scene::Late => text(&fleet.finish(&finished(self.ticket())).await?),
            Scene::Sweep => text(&fleet.sweep().await?.requeued.len()),
            Scene::CancelQueued | Scene::CancelRunning => text(&fleet.cancel(self.new.id).await?),
            Scene::Wait => text(&fleet.wait(self.new.id, Duration::ZERO).await?.map(|view| view.state)),
        })
    }

    /// Everything that is in the tables, in words.
    async fn seen(&self) -> String {
        let tx = self.fleet.begin(Fate::default()).await.expect("begun");
        let see = "SELECT coalesce((SELECT string_agg(concat_ws(' ', id, state, host IS NOT NULL, fence IS NOT NULL, cancel IS NOT NULL,
                       hold_until IS NOT NULL, outcome IS NOT NULL), ',') FROM phone_opus.job), 'none')
                   || ' late ' || (SELECT count(*) FROM phone_opus.late) || ' seen ' || (SELECT coalesce(sum(seen), 0) FROM phone_opus.host)";
        let row = tx.row(see, &[]).await.expect("seen").expect("a row");
        let seen: String = column(&row, 0, "seen").expect("a text");
        tx.commit().await.expect("committed");
        seen
    }
}

/// What a verb answers the first time, and what it answers when it had been done before.
fn answers(scene: Scene, job: FleetJobId) -> [String; 2] {
    let text = |answer: &dyn fmt::Debug| format!("{answer:?}");
    let twice = |answer: &dyn fmt::Debug| [text(answer), text(answer)];
    match scene {
        Scene::Accept => [text(&FleetAccept::Inserted(job)), text(&FleetAccept::Joined(job))],
        // What it was given by the answer that was lost it is not given again.
        Scene::Claim => [text(&1), text(&0)],
        Scene::Start => twice(&FleetStart::Started),
        Scene::Renew => {
            twice(&FleetRenewed { drained: false, quiet: false, reasserted: 0, lease: FleetLease::default() })
        }
        Scene::Finish => [text(&FleetFinish::Finished), text(&FleetFinish::Already)],
        Scene::Late => twice(&FleetFinish::Late { state: FleetState::Interrupted }),
        Scene::Sweep => [text(&1), text(&0)],
        Scene::CancelQueued => [text(&FleetCancel::Ended), text(&FleetCancel::Over { state: FleetState::Cancelled })],
        Scene::CancelRunning => twice(&FleetCancel::Asked),
        Scene::Wait => twice(&Some(FleetState::Succeeded)),
    }
}

/// What is written no more often than once, whoever asks how often: a host may say twice that it lives.
fn once(seen: &str) -> &str {
    seen.split(" seen ").next().unwrap_or_default()
}

/// How often each thing happened.
#[derive(Debug, Default)]
struct Seen {
    answered: usize,
    undone: usize,
    unsure_undone: usize,
    unsure_done: usize,
}

/// One verb with its answer cut after so many bytes; asked again, things stand as if nothing had been cut.
async fn one_cut(ground: &Ground, scene: Scene, once_done: &str, bytes: u64, seen: &mut Seen) {
    let Ground { direct, database, proxy } = ground;
    let what = format!("{scene:?} cut after {bytes} bytes");
    let stage = Stage::set(direct, scene).await;
    let [first, again] = answers(scene, stage.new.id);
    let fleet = PgFleet::open(&proxy.settings(database)).await.expect("opened");
    let before = stage.seen().await;
    proxy.cut_after(bytes);
    let answer = stage.act(scene, &fleet).await;
    proxy.cut_no_more();
    let after = stage.seen().await;
    let is_done = once(&after) != once(&before);
    let reads = matches!(scene, Scene::Wait | Scene::Renew);
    match answer {
        Ok(answer) => {
            assert_eq!(answer, first, "{what}");
            seen.answered += 1;
        }
        Err(FleetError::Unavailable { .. }) => {
            assert_eq!(after, before, "{what}: it said that nothing was done");
            assert_eq!(stage.act(scene, &fleet).await, Ok(first), "{what}, asked again");
            seen.undone += 1;
        }
        Err(FleetError::Unsure { .. }) => {
            let expected = if is_done && !reads { again } else { first };
            assert_eq!(stage.act(scene, &fleet).await, Ok(expected), "{what}, asked again; done: {is_done}");
            if is_done { seen.unsure_done += 1 } else { seen.unsure_undone += 1 }
        }
        Err(error) => panic!("{what}: {error}"),
    }
    let done = stage.seen().await.replace(&stage.new.id.to_string(), "it");
    assert_eq!(once(&done), once(once_done), "{what}: as if it had been asked once");
}

/// Where scenes are played.
struct Ground {
    direct: String,
    database: String,
    proxy: Proxy,
}

impl Ground {
    async fn of(server: &PrivateServer) -> Self {
        let direct = server.database().await;
        let database = direct.rsplit('=').next().expect("a name").to_owned();
        Self { direct, database, proxy: Proxy::new(server.dir()) }
    }
}

#[tokio::test]
async fn an_answer_that_is_cut_after_any_byte_costs_no_job_and_doubles_none() {
    let Some(server) = PrivateServer::shared() else { return };
    let ground = Ground::of(&server).await;
    let Ground { direct, database, proxy } = &ground;
    let every = std::env::var(CUTS_VARIABLE).is_ok_and(|asked| asked == "all");
    let mut random = fastrand::Rng::with_seed(20_261_127);
    let mut all = Seen::default();
    for scene in Scene::ALL {
        // How long its answers are, the way it is asked below: on a connection that is there.
        let stage = Stage::set(direct, scene).await;
        let fleet = PgFleet::open(&proxy.settings(database)).await.expect("opened");
        let before = proxy.told.load(Ordering::SeqCst);
        assert_eq!(stage.act(scene, &fleet).await, Ok(answers(scene, stage.new.id)[0].clone()), "{scene:?}");
        let whole = proxy.told.load(Ordering::SeqCst) - before;
        drop(fleet);
        let once_done = stage.seen().await.replace(&stage.new.id.to_string(), "it");
        let drawn = |_| random.u64(0..whole);
        // The last one is that of the commit, without its last byte.
        let cuts: Vec<u64> =
            if every { (0..whole).collect() } else { (0..CUTS).map(drawn).chain([0, whole - 12, whole - 1]).collect() };
        let mut seen = Seen::default();
        for bytes in cuts {
            one_cut(&ground, scene, &once_done, bytes, &mut seen).await;
        }
        println!("{scene:?}: {whole} bytes, {seen:?}");
        all.answered += seen.answered;
        all.undone += seen.undone;
        all.unsure_done += seen.unsure_done;
    }
    assert!(all.undone > 0 && all.unsure_done > 0, "nothing was cut: {all:?}");
}

#[tokio::test]
async fn a_claim_that_nobody_heard_of_is_given_again_when_its_host_is_gone() {
    let Some(server) = PrivateServer::shared() else { return };
    let Ground { direct, database, proxy } = Ground::of(&server).await;
    let stage = Stage::set(&direct, Scene::Claim).await;
    let fleet = PgFleet::open(&proxy.settings(&database)).await.expect("opened");
    // The more is let through the later it is cut, until the commit is what is cut.
    let mut bytes = 0;
    let lost = loop {
        bytes += 16;
        proxy.cut_after(bytes);
        let claim = fleet.claim(&asked(stage.host, 1)).await;
        proxy.cut_no_more();
        match claim {
            Err(FleetError::Unsure { .. }) => {
                break number_of(&stage.fleet, "SELECT coalesce(fence, 0) FROM phone_opus.job").await;
            }
            Err(error) => assert!(matches!(error, FleetError::Unavailable { .. }), "{error}"),
            // The connection was made anew, and the cut was in its greeting.
            Ok(claim) => {
                assert_eq!(given(claim).len(), 1);
                statements(&stage.fleet, "UPDATE phone_opus.host SET lease_until = '-infinity'").await;
                let _ = stage.fleet.sweep().await.expect("swept");
                let _ = stage.fleet.renew(&renewal(stage.host, 4)).await.expect("renewed");
            }
        }
        assert!(bytes < 100_000, "no commit was ever cut");
    };
    statements(&stage.fleet, "UPDATE phone_opus.host SET lease_until = '-infinity'").await;
    let swept = stage.fleet.sweep().await.expect("swept");
    assert_eq!(swept.requeued.len(), usize::from(lost > 0), "{lost}");
    let next = HostId::random();
    let _ = fleet.renew(&renewal(next, 4)).await.expect("renewed");
    let ticket = given(fleet.claim(&asked(next, 1)).await.expect("claimed"))[0].ticket;
    assert!(ticket.fence.0 > u64::try_from(lost).expect("a fence"), "{ticket:?}, {lost}");
    assert_eq!(fleet.start(ticket).await, Ok(FleetStart::Started));
}
