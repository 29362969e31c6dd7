//! Laws: L9 (who reads slowly holds a page), and that events come in order, each once, to the end.

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use futures_util::StreamExt as _;
use futures_util::future::BoxFuture;

use super::*;
use crate::base::ids::{InvocationId, UnixMillis};
use crate::jobs::client::{Accepted, FollowBackend, Glimpse, JobsBackend, View};
use crate::jobs::{ConsultRequest, JobState, JournalEvent, NewJob};

/// A journal and the news about it, as a test lets them come.
#[derive(Default)]
struct Written {
    journal: Vec<JournalEntry>,
    /// News that were not told yet.
    news: VecDeque<News>,
}

#[derive(Clone, Default)]
struct Fake {
    written: Arc<Mutex<Written>>,
    told: Arc<tokio::sync::Notify>,
    refusals: Arc<AtomicUsize>,
    most_read: Arc<AtomicUsize>,
}

impl Fake {
    fn write(&self, seqs: impl IntoIterator<Item = u64>) {
        let entry = |seq| JournalEntry { seq, at: UnixMillis(1), event: JournalEvent::Dispatched };
        self.written.lock().expect("whole").journal.extend(seqs.into_iter().map(entry));
    }

    fn tell(&self, news: News) {
        self.written.lock().expect("whole").news.push_back(news);
        self.told.notify_one();
    }

    fn end(&self) -> Arc<JobRecord> {
        let record = Arc::new(JobRecord::plain(JobState::Succeeded, ConsultRequest::new("why?").cwd("/w")));
        self.tell(News::Finished(Arc::clone(&record)));
        record
    }

    fn events(&self, cursor: Cursor) -> JobEvents {
        JobEvents::of(JobsHandle::new(self.clone()), JobId::random(), cursor)
    }
}

fn nobody<T: Send + 'static>() -> BoxFuture<'static, Result<T, Fault>> {
    Box::pin(std::future::ready(Err(Fault::new(FaultCode::Internal, "nobody asks that here."))))
}

impl JobsBackend for Fake {
    fn accept(&self, _: NewJob, _: Option<InvocationId>) -> BoxFuture<'_, Result<Accepted, Fault>> {
        nobody()
    }

    fn follow(&self, _: JobId) -> BoxFuture<'_, Result<Follow, Fault>> {
        Box::pin(std::future::ready(Ok(Follow::new(self.clone()))))
    }

    fn record(&self, _: JobId) -> BoxFuture<'_, Result<JobRecord, Fault>> {
        nobody()
    }

    fn events(&self, _: JobId, after: u64, limit: usize) -> BoxFuture<'_, Result<Vec<JournalEntry>, Fault>> {
        let refused =
            self.refusals.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1)).is_ok();
        if refused {
            let fault = Fault::new(FaultCode::StoreUnavailable, "the store is held.");
            return Box::pin(std::future::ready(Err(fault)));
        }
        let written = self.written.lock().expect("whole");
        let read: Vec<_> = written.journal.iter().filter(|entry| entry.seq > after).take(limit).cloned().collect();
        self.most_read.fetch_max(read.len(), Ordering::SeqCst);
        Box::pin(std::future::ready(Ok(read)))
    }

    fn hand_over(&self, _: JobId) -> BoxFuture<'_, Result<(), Fault>> {
        nobody()
    }

    fn mark_read(&self, _: JobId) -> BoxFuture<'_, ()> {
        Box::pin(std::future::ready(()))
    }

    fn unread(&self, _: std::path::PathBuf) -> BoxFuture<'_, Result<Vec<JobId>, Fault>> {
        nobody()
    }

    fn queue_place(&self, _: JobId) -> BoxFuture<'_, Result<Option<usize>, Fault>> {
        nobody()
    }
}

impl FollowBackend for Fake {
    fn next(&mut self) -> BoxFuture<'_, Result<News, Fault>> {
        Box::pin(async {
            loop {
                let news = self.written.lock().expect("whole").news.pop_front();
                match news {
                    Some(news) => return Ok(news),
                    None => self.told.notified().await,
                }
            }
        })
    }

    fn glimpse(&self) -> BoxFuture<'_, Option<Glimpse>> {
        Box::pin(std::future::ready(None))
    }

    fn describe(&self) -> String {
        String::new()
    }

    fn view(&self) -> View {
        View::default()
    }
}

/// The numbers of the entries and what else was told, to the end.
async fn all(events: JobEvents) -> Vec<String> {
    let told = |event: Result<JobEvent, Fault>| match event {
        Ok(JobEvent::Entry(entry)) => entry.seq.to_string(),
        Ok(JobEvent::Lagged { missed }) => format!("lagged {missed}"),
        Ok(JobEvent::Ended(_)) => "ended".to_owned(),
        Err(fault) => fault.code.as_str().to_owned(),
    };
    events.map(told).collect().await
}

#[tokio::test]
async fn what_happened_is_told_from_the_cursor_on_in_pages_and_then_the_end() {
    let fake = Fake::default();
    fake.write(1..=200);
    fake.end();
    let expected = |from: u64| (from..=200).map(|seq| seq.to_string()).chain(["ended".to_owned()]).collect::<Vec<_>>();
    assert_eq!(all(fake.events(Cursor::START)).await, expected(1));
    fake.end();
    assert_eq!(all(fake.events(Cursor::after(150))).await, expected(151));
    fake.end();
    assert_eq!(all(fake.events(Cursor::after(999))).await, ["ended"], "a cursor past the end is at the end");
    assert_eq!(fake.most_read.load(Ordering::SeqCst), PAGE, "a page is held and no more");
}

#[tokio::test]
async fn what_is_not_there_any_more_is_said() {
    let fake = Fake::default();
    fake.write([3, 4, 9]);
    fake.end();
    assert_eq!(all(fake.events(Cursor::START)).await, ["lagged 2", "3", "4", "lagged 4", "9", "ended"]);
}

#[tokio::test(start_paused = true)]
async fn what_was_heard_of_is_looked_for_until_the_journal_has_it_and_the_end_comes_last() {
    let fake = Fake::default();
    let mut events = fake.events(Cursor::START);
    fake.tell(News::Changed);
    let writes_late = async {
        tokio::time::sleep(Duration::from_millis(400)).await;
        fake.write([1]);
    };
    let (first, ()) = tokio::join!(events.next(), writes_late);
    assert!(matches!(first, Some(Ok(JobEvent::Entry(entry))) if entry.seq == 1));
    assert_eq!(events.cursor(), Cursor::after(1));
    let record = fake.end();
    fake.write([2]);
    assert!(matches!(events.next().await, Some(Ok(JobEvent::Entry(entry))) if entry.seq == 2), "before the end");
    assert_eq!(events.next().await, Some(Ok(JobEvent::Ended(record))));
    assert_eq!(events.next().await, None);
}

#[tokio::test(start_paused = true)]
async fn a_wait_that_is_dropped_loses_nothing() {
    let fake = Fake::default();
    let mut events = fake.events(Cursor::START);
    for _ in 0..5 {
        assert!(tokio::time::timeout(Duration::from_millis(30), events.next()).await.is_err());
    }
    fake.write([1, 2]);
    fake.tell(News::Changed);
    fake.end();
    assert_eq!(all(events).await, ["1", "2", "ended"]);
}

#[tokio::test(start_paused = true)]
async fn a_store_that_is_held_for_a_moment_is_asked_again_and_one_that_stays_so_is_told() {
    let fake = Fake::default();
    fake.write([1]);
    fake.end();
    fake.refusals.store(usize::try_from(REFUSED).expect("small"), Ordering::SeqCst);
    assert_eq!(all(fake.events(Cursor::START)).await, ["1", "ended"]);
    fake.refusals.store(usize::MAX, Ordering::SeqCst);
    assert_eq!(all(fake.events(Cursor::START)).await, ["store_unavailable"], "and nothing comes after it");
}
