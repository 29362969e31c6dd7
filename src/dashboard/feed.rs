//! What changed since a page last heard, in order and bounded.
//!
//! Owns: the picture that pages show, the batches between two pictures, what a page that comes or comes again is sent. Pure. May
//! not know: the store, connections, what a section means.
//!
//! ```text
//! Picture ──▶ Feed::show ── differs ──▶ a batch, numbered ──▶ the ring
//!                                         a page without a number, or one that is too old ──▶ the whole picture
//!                                         a page with a number ──▶ the batches after it
//! ```
//!
//! Invariants: (1) whoever applies what it is sent, whenever it came and came again, has the last picture; (2) the ring is bounded
//! in batches and bytes: who falls behind it gets the whole; (3) a number of another life of the server is none of ours.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use serde_json::{Map, Value, json};

/// Batches that are kept for pages that come again: four minutes at the pace of a busy store.
const KEPT: usize = 1024;

/// Bytes of them.
const KEPT_BYTES: usize = 4 * 1024 * 1024;

/// What pages show.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Picture {
    /// Whatever is small enough to be sent whole when it changes.
    pub sections: BTreeMap<&'static str, Value>,
    /// The jobs, by their ids. Shared: a picture is taken more often than the jobs change.
    pub jobs: Arc<BTreeMap<String, Value>>,
}

/// What is sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FeedFrame {
    /// Up to where whoever has it has heard.
    pub seq: u64,
    /// An event as `text/event-stream` has it.
    pub text: Arc<str>,
}

/// The last picture and how it came about.
#[derive(Debug)]
pub struct Feed {
    life: String,
    seq: u64,
    picture: Picture,
    ring: VecDeque<FeedFrame>,
    bytes: usize,
}

impl Feed {
    /// One that has shown nothing, in this life of the server.
    #[must_use]
    pub fn new(life: String) -> Self {
        Self { life, seq: 0, picture: Picture::default(), ring: VecDeque::new(), bytes: 0 }
    }

    /// How far it is.
    #[must_use]
    pub const fn seq(&self) -> u64 {
        self.seq
    }

    /// Takes the next picture. True when it differs from the last one.
    pub fn show(&mut self, next: Picture) -> bool {
        let mut change = Map::new();
        let sections: Map<String, Value> = next
            .sections
            .iter()
            .filter(|(name, value)| self.picture.sections.get(*name) != Some(value))
            .map(|(name, value)| ((*name).to_owned(), value.clone()))
            .collect();
        let (mut jobs, mut gone): (Vec<&Value>, Vec<&String>) = (Vec::new(), Vec::new());
        if !Arc::ptr_eq(&next.jobs, &self.picture.jobs) {
            let was = &self.picture.jobs;
            jobs.extend(next.jobs.iter().filter(|(id, row)| was.get(*id) != Some(row)).map(|(_, row)| row));
            gone.extend(was.keys().filter(|id| !next.jobs.contains_key(*id)));
        }
        if sections.is_empty() && jobs.is_empty() && gone.is_empty() {
            return false;
        }
        if !sections.is_empty() {
            change.insert("sections".to_owned(), Value::Object(sections));
        }
        if !jobs.is_empty() {
            change.insert("jobs".to_owned(), json!(jobs));
        }
        if !gone.is_empty() {
            change.insert("gone".to_owned(), json!(gone));
        }
        self.seq += 1;
        let text = event(&self.id(self.seq), "change", &Value::Object(change));
        self.bytes += text.len();
        self.ring.push_back(FeedFrame { seq: self.seq, text: text.into() });
        while self.ring.len() > KEPT || self.bytes > KEPT_BYTES {
            let Some(oldest) = self.ring.pop_front() else { break };
            self.bytes -= oldest.text.len();
        }
        self.picture = next;
        true
    }

    /// The whole picture, as one object.
    #[must_use]
    pub fn whole(&self) -> Value {
        json!({"sections": self.picture.sections, "jobs": self.picture.jobs.values().collect::<Vec<_>>()})
    }

    /// What somebody is sent who has heard so far; `None` for who has heard nothing of this life.
    #[must_use]
    pub fn after(&self, heard: Option<u64>) -> Vec<FeedFrame> {
        let first = self.ring.front().map_or(self.seq + 1, |frame| frame.seq);
        match heard {
            Some(heard) if heard <= self.seq && heard + 1 >= first => {
                self.ring.iter().filter(|frame| frame.seq > heard).cloned().collect()
            }
            _ => vec![FeedFrame { seq: self.seq, text: event(&self.id(self.seq), "whole", &self.whole()).into() }],
        }
    }

    /// The number in an id that a page says it heard last.
    #[must_use]
    pub fn heard(&self, id: &str) -> Option<u64> {
        let (life, seq) = id.split_once('.')?;
        (life == self.life).then_some(())?;
        seq.parse().ok()
    }

    fn id(&self, seq: u64) -> String {
        format!("{}.{seq}", self.life)
    }
}

/// One event of a stream. JSON has no line ends of its own, so its data is one line.
#[must_use]
pub fn event(id: &str, name: &str, data: &Value) -> String {
    format!("id: {id}\nevent: {name}\ndata: {data}\n\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A page: what it heard, and what it shows.
    #[derive(Default)]
    struct Page {
        heard: Option<String>,
        sections: BTreeMap<String, Value>,
        jobs: BTreeMap<String, Value>,
        wholes: usize,
    }

    impl Page {
        fn hear(&mut self, feed: &Feed) {
            let heard = self.heard.as_deref().and_then(|id| feed.heard(id));
            for frame in feed.after(heard) {
                let mut lines = frame.text.lines();
                let mut member = |name: &str| lines.next()?.strip_prefix(name)?.strip_prefix(": ").map(str::to_owned);
                self.heard = Some(member("id").expect("an id"));
                let name = member("event").expect("a name");
                let data: Value = serde_json::from_str(&member("data").expect("data")).expect("JSON");
                if name == "whole" {
                    (self.sections, self.jobs) = Default::default();
                    self.wholes += 1;
                }
                let object = |value: &Value| value.as_object().cloned().unwrap_or_default();
                self.sections.extend(object(&data["sections"]));
                let rows = data["jobs"].as_array().cloned().unwrap_or_default();
                self.jobs.extend(rows.into_iter().map(|row| (row["id"].as_str().expect("an id").to_owned(), row)));
                for id in data["gone"].as_array().into_iter().flatten() {
                    self.jobs.remove(id.as_str().expect("an id"));
                }
            }
        }

        fn shows(&self, picture: &Picture) -> bool {
            let sections: BTreeMap<String, Value> =
                picture.sections.iter().map(|(name, value)| ((*name).to_owned(), value.clone())).collect();
            self.sections == sections && self.jobs == *picture.jobs
        }
    }

    fn job(id: usize, state: u32) -> (String, Value) {
        (format!("job{id}"), json!({"id": format!("job{id}"), "state": state, "text": "a\n\u{2028}b"}))
    }

    #[test]
    fn whoever_hears_now_and_then_shows_the_last_picture_in_every_random_life() {
        for seed in 0..60 {
            let mut dice = fastrand::Rng::with_seed(seed);
            let mut feed = Feed::new("a".to_owned());
            let mut pages: Vec<Page> = (0..4).map(|_| Page::default()).collect();
            let mut picture = Picture::default();
            for _ in 0..dice.usize(1..2500) {
                match dice.u8(0..4) {
                    0 => drop(picture.sections.insert("counts", json!(dice.u32(0..3)))),
                    1 | 2 => Arc::make_mut(&mut picture.jobs).extend([job(dice.usize(0..9), dice.u32(0..3))]),
                    _ => drop(Arc::make_mut(&mut picture.jobs).remove(&job(dice.usize(0..9), 0).0)),
                }
                feed.show(picture.clone());
                if dice.u8(0..50) == 0 {
                    let page = &mut pages[dice.usize(0..3)];
                    page.hear(&feed);
                    assert!(page.shows(&picture), "seed {seed}");
                }
                if dice.u16(0..800) == 0 {
                    // A server that starts anew has forgotten everything, and knows nothing of earlier numbers.
                    feed = Feed::new(format!("life{}", dice.u32(..)));
                    feed.show(picture.clone());
                }
            }
            for page in &mut pages {
                page.hear(&feed);
                assert!(page.shows(&picture), "seed {seed}");
            }
            assert!(feed.ring.len() <= KEPT && feed.bytes <= KEPT_BYTES);
        }
    }

    #[test]
    fn an_equal_picture_is_no_news_and_who_is_up_to_date_hears_nothing() {
        let mut feed = Feed::new("a".to_owned());
        let picture = Picture { jobs: Arc::new([job(1, 1)].into()), ..Picture::default() };
        assert!(feed.show(picture.clone()) && !feed.show(picture.clone()));
        let mut page = Page::default();
        page.hear(&feed);
        assert_eq!((page.wholes, feed.after(Some(1)).len(), feed.seq()), (1, 0, 1));
        // Numbers that were never given out, and those of another life.
        for heard in ["a.2", "a.99999999999999999999", "b.1", "a", "", "a.-1"] {
            let frames = feed.after(feed.heard(heard));
            assert!(frames.len() == 1 && frames[0].text.contains("event: whole"), "{heard}");
        }
    }

    #[test]
    fn who_falls_behind_the_ring_gets_the_whole() {
        let mut feed = Feed::new("a".to_owned());
        let mut page = Page::default();
        page.hear(&feed);
        let wide = |at: usize| json!("x".repeat(KEPT_BYTES / 3 + at));
        for at in 0..9 {
            feed.show(Picture { sections: [("wide", wide(at))].into(), ..Picture::default() });
        }
        assert!(feed.bytes <= KEPT_BYTES && feed.ring.len() < 4);
        page.hear(&feed);
        assert_eq!((page.wholes, &page.sections["wide"]), (2, &wide(8)));
    }
}
