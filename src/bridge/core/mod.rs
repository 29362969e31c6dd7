//! What a bridge decides: which lines of its client it answers, which it passes on, and what becomes of them when whoever
//! serves is lost.
//!
//! Owns: the client's session as far as it can be served without anybody, the requests somebody else answers ([`calls`]), who
//! that is ([`search`]), what it has been told of the client, whose question is whose. May not know: sockets, processes,
//! clocks (`now` is passed in), what a tool does.
//!
//! ```text
//!  client ──line──▶ answered here: initialize, ping, server/discover, tools/list, whatever is no request of ours
//!                └▶ held ──its turn──▶ sent to whoever serves ──its answer, as it is──▶ client
//!                     ▲                 │ lost
//!                     └─ may go again ◀─┴─▶ told what is known
//!  daemon ──question──▶ under an id of ours ──▶ client ──answer──▶ under its own id ──▶ the same daemon, or nobody
//! ```
//!
//! Invariants: (1) L1: each of the client's requests is answered once, under its id as it was written, and not after it was
//! withdrawn; (2) no call is sent twice whose contract forbids it; (3) whoever serves was told of the client what the client
//! said of itself, before it gets a request; (4) what is held is bounded, and beyond the bound a request is refused at once.

mod calls;
mod client;
mod search;
mod served;

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::{BufMut as _, Bytes, BytesMut};

use self::calls::{Calls, FailsAs, Held, Kind, LostAs};
use self::search::{Search, SearchEffect, SearchEvent};
use crate::base::fault::{Fault, FaultCode};
use crate::protocol::envelope::IdToken;
use crate::protocol::frame::Frame;
use crate::protocol::session::SessionCore;
use crate::protocol::version::Version;
use crate::protocol::wire::{self, Identity, ToolReply};
use crate::tools::ReplayContract;

/// How long answers are waited for once the client has closed its end. What is asked in a script and read at once is answered
/// within that, also where a daemon has to be started first.
const LINGER: Duration = Duration::from_secs(3);

/// Daemons at once that answer what they have. Beyond it the oldest is left, and what it had goes out again where it may.
const LEAVING: usize = 4;

/// Questions to the client that are open at once; the oldest is given up. A session of ours has one.
const QUESTIONS: usize = 64;

/// A connection to whoever serves, and this process's own host counts as one. Never used again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LinkNumber(pub u64);

/// What happened.
#[derive(Debug)]
pub enum BridgeEvent {
    /// The bridge begins.
    Begun,
    /// A line of the client.
    Client(Frame),
    /// The client has closed its end.
    ClientEnded,
    /// What came of the try to connect.
    Reached(Reach),
    /// What came of the try to connect while this process serves.
    Peeked(Reach),
    /// There is a connection to a daemon that was started or came meanwhile, or why there is none.
    Started(Result<LinkNumber, String>),
    /// This process serves, or why not.
    Hosted(Result<LinkNumber, String>),
    /// A line of whoever serves.
    Line(LinkNumber, Frame),
    /// A connection is over.
    Lost(LinkNumber),
    /// The connection takes a line.
    Room(LinkNumber),
    /// Time has passed.
    Woke,
    /// The bridge is told to end, while its client may still wait.
    Stopped,
}

/// What came of a try to connect.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reach {
    /// A connection.
    There(LinkNumber),
    /// Nobody listens.
    Absent,
    /// This process may not, or cannot: why.
    Denied(String),
}

/// What is to be done, in this order.
#[derive(Debug, PartialEq, Eq)]
pub enum BridgeEffect {
    /// Send this to the connection.
    Send(LinkNumber, Bytes),
    /// Try to connect.
    Reach,
    /// Try to connect, while this process serves.
    Peek,
    /// Start a daemon.
    Start,
    /// Serve in this process, because of this.
    HostHere(String),
    /// Close the connection.
    Close(LinkNumber),
    /// Say on the connection that nothing more is sent.
    EndInput(LinkNumber),
    /// Note this where people look for it.
    Note(String),
    /// The bridge is over once the client has what was written.
    End,
}

/// What a bridge is made from.
pub struct BridgeSetup {
    /// The client's session, as far as it needs nobody: with the tools as this program has them.
    pub local: SessionCore,
    /// Who it says it is.
    pub identity: Arc<Identity>,
    /// When a call of a tool may run again.
    pub contracts: Vec<(String, ReplayContract)>,
    /// Opens the client's session at a daemon; without the line's end.
    pub opening: Bytes,
    /// What begins the ids of the bridge's own requests. Nobody else's do.
    pub own: String,
    /// Makes a request's key.
    pub key: Box<dyn FnMut() -> String + Send>,
    /// How long a client of this name is kept waiting for a consult that does not say.
    pub wait: WaitOf,
}

/// How long a client is kept waiting, by its name.
pub type WaitOf = Box<dyn Fn(Option<&str>) -> Duration + Send>;

/// How the tools are listed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Lists {
    /// As this program has them.
    Here,
    /// As whoever serves has them.
    There,
}

/// What the client said of itself.
#[derive(Debug)]
struct Greeting {
    /// The parameters of its `initialize`.
    params: String,
    /// Its name.
    client: Option<String>,
    /// Whether it said that it is ready.
    initialized: bool,
}

/// What goes out before any request.
#[derive(Debug, PartialEq, Eq)]
enum Urgent {
    Line(Bytes),
    /// What the client said of itself, as it stands then.
    Greeting,
    /// The client's roots changed.
    RootsChanged,
}

/// A request of the bridge's own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum OwnRequest {
    Greeting,
    /// Its answer comes after all that was answered to what was withdrawn before.
    Barrier(u64),
}

/// A withdrawn request whose answer may be under way.
#[derive(Debug, Clone, Copy)]
struct Barred {
    link: LinkNumber,
    barrier: u64,
}

/// A question of whoever serves.
#[derive(Debug)]
struct Question {
    link: LinkNumber,
    id: IdToken,
}

/// The answers of a batch, until all are there.
#[derive(Debug)]
struct Gathered {
    open: usize,
    parts: BytesMut,
}

/// All a bridge knows. What its client is to read is appended to `out`.
pub struct BridgeCore {
    setup: BridgeSetup,
    search: Search,
    link: Option<LinkNumber>,
    /// That to the system in this process.
    own_link: Option<LinkNumber>,
    /// Connections to daemons that take nothing new and answer what they have.
    leaving: BTreeSet<LinkNumber>,
    calls: Calls,
    urgent: VecDeque<Urgent>,
    greeting: Option<Greeting>,
    own: HashMap<IdToken, (LinkNumber, OwnRequest)>,
    next_own: u64,
    /// Ids of withdrawn requests whose answers may be under way, and behind which barrier none comes.
    barred: HashMap<IdToken, Barred>,
    questions: BTreeMap<u64, Question>,
    next_question: u64,
    batches: HashMap<u64, Gathered>,
    next_batch: u64,
    lists: Lists,
    /// The tools the client was told of last, by their digest; `None` before it asked.
    told: Option<u64>,
    /// The tools of whoever serves.
    catalog: u64,
    /// The client has closed its end: until when answers are waited for.
    ending: Option<Instant>,
    input_ended: bool,
    over: bool,
}

impl BridgeCore {
    /// Before the first event; `ours` is the version of this program.
    #[must_use]
    pub fn new(setup: BridgeSetup, ours: &'static str, now: Instant) -> Self {
        let catalog = setup.local.catalog().digest();
        Self {
            setup,
            search: Search::new(ours, now),
            link: None,
            own_link: None,
            leaving: BTreeSet::new(),
            calls: Calls::default(),
            urgent: VecDeque::new(),
            greeting: None,
            own: HashMap::new(),
            next_own: 1,
            barred: HashMap::new(),
            questions: BTreeMap::new(),
            next_question: 1,
            batches: HashMap::new(),
            next_batch: 1,
            lists: Lists::Here,
            told: None,
            catalog,
            ending: None,
            input_ended: false,
            over: false,
        }
    }

    /// When it wants to be asked again.
    #[must_use]
    pub fn wakes(&self) -> Option<Instant> {
        [self.search.wakes(), self.ending].into_iter().flatten().min()
    }

    /// Which connection a line waits for.
    #[must_use]
    pub fn wants_room(&self) -> Option<LinkNumber> {
        let waits = !self.urgent.is_empty() || self.calls.may_send(|id| self.barred.contains_key(id));
        self.link.filter(|_| waits && self.search.is_served())
    }

    /// One step.
    pub fn step(&mut self, event: BridgeEvent, now: Instant, out: &mut BytesMut, effects: &mut Vec<BridgeEffect>) {
        if self.over {
            return;
        }
        match event {
            BridgeEvent::Begun => self.look(SearchEvent::Wanted, now, out, effects),
            BridgeEvent::Client(frame) => self.on_client(&frame, now, out, effects),
            BridgeEvent::ClientEnded => self.ending = Some(now + LINGER),
            BridgeEvent::Reached(reach) => self.on_reached(reach, now, out, effects),
            BridgeEvent::Peeked(Reach::There(link)) if self.search.stands_in() => {
                self.move_on(out, effects);
                self.link = Some(link);
                self.look(SearchEvent::Back, now, out, effects);
            }
            BridgeEvent::Peeked(Reach::There(link)) => effects.push(BridgeEffect::Close(link)),
            BridgeEvent::Peeked(Reach::Absent | Reach::Denied(_)) => {}
            BridgeEvent::Started(result) => {
                let result = result.map(|link| self.link = Some(link));
                self.look(SearchEvent::Started(result), now, out, effects);
            }
            BridgeEvent::Hosted(result) => {
                let result = result.map(|link| (self.link, self.own_link) = (Some(link), Some(link)));
                // The tools of this process are those the client is told of here.
                self.catalog = self.setup.local.catalog().digest();
                self.look(SearchEvent::Hosted(result), now, out, effects);
            }
            BridgeEvent::Line(link, frame) => {
                if self.link == Some(link) || self.leaving.contains(&link) {
                    self.on_line(link, &frame, now, out, effects);
                }
            }
            BridgeEvent::Lost(link) => {
                let served = self.link.take_if(|known| *known == link).is_some();
                // Told that the client has gone, whoever served has answered what it would.
                let ends = served && self.input_ended;
                self.on_lost(link, out);
                if ends {
                    self.over = true;
                    return effects.push(BridgeEffect::End);
                }
                if served {
                    self.look(SearchEvent::Ended, now, out, effects);
                }
            }
            BridgeEvent::Room(link) => {
                if self.wants_room() == Some(link)
                    && let Some(line) = self.next_line(link, now)
                {
                    effects.push(BridgeEffect::Send(link, line));
                }
            }
            BridgeEvent::Woke => self.look(SearchEvent::Woke, now, out, effects),
            BridgeEvent::Stopped => return self.stop(out, effects),
        }
        self.leave_own(effects);
        self.end_in_time(now, effects);
    }

    /// Every request is answered, and every subscription ended, before the bridge is over.
    fn stop(&mut self, out: &mut BytesMut, effects: &mut Vec<BridgeEffect>) {
        let fault = Fault::new(FaultCode::Stopping, "the server is stopping.")
            .hint("A job that was accepted is kept; find it with consult_jobs when the server is back.");
        let numbers: Vec<u64> = self.calls.all().map(|(number, _)| number).collect();
        for number in numbers {
            if self.calls.get_mut(number).is_some_and(|held| held.kind.is_stream())
                && let Some(held) = self.calls.take(number)
            {
                wire::unsubscribed(out, &held.id, &self.setup.identity);
            } else {
                self.fail(number, &fault, out);
            }
        }
        self.over = true;
        effects.push(BridgeEffect::End);
    }

    /// The client closed its end: what it asked is waited for, but not for ever.
    fn end_in_time(&mut self, now: Instant, effects: &mut Vec<BridgeEffect>) {
        let Some(end) = self.ending else { return };
        let asked = self.calls.all().any(|(_, held)| !held.kind.is_stream());
        if !asked || now >= end {
            self.over = true;
            return effects.push(BridgeEffect::End);
        }
        if let Some(link) = self.link
            && self.search.is_served()
            && self.wants_room().is_none()
            && !std::mem::replace(&mut self.input_ended, true)
        {
            effects.push(BridgeEffect::EndInput(link));
        }
    }

    fn on_reached(&mut self, reach: Reach, now: Instant, out: &mut BytesMut, effects: &mut Vec<BridgeEffect>) {
        let event = match reach {
            Reach::There(link) => {
                self.link = Some(link);
                SearchEvent::Connected
            }
            Reach::Absent => SearchEvent::Absent,
            Reach::Denied(why) => SearchEvent::Denied(why),
        };
        self.look(event, now, out, effects);
    }

    /// The search for whoever serves goes on.
    fn look(&mut self, event: SearchEvent, now: Instant, out: &mut BytesMut, effects: &mut Vec<BridgeEffect>) {
        for effect in self.search.step(event, now) {
            let link = self.link;
            let say = |line: &[u8]| link.map(|link| BridgeEffect::Send(link, ended(line)));
            match effect {
                SearchEffect::Reach => effects.push(BridgeEffect::Reach),
                SearchEffect::Peek => effects.push(BridgeEffect::Peek),
                SearchEffect::Start => effects.push(BridgeEffect::Start),
                SearchEffect::Open => effects.extend(say(&self.setup.opening)),
                SearchEffect::AskWho => effects.extend(say(HELLO)),
                SearchEffect::AskReload => effects.extend(say(RELOAD)),
                SearchEffect::LetGo => effects.extend(self.link.take().map(BridgeEffect::Close)),
                SearchEffect::HostHere(why) => {
                    effects.push(BridgeEffect::Note(format!("serving in this process: {why}")));
                    effects.push(BridgeEffect::HostHere(why));
                }
                SearchEffect::Serve => self.serve(out),
                SearchEffect::GiveUp(why) => self.give_up(&why, out, effects),
            }
        }
    }

    /// Somebody serves: it is told of the client first. A client that was told of other tools hears that they differ.
    fn serve(&mut self, out: &mut BytesMut) {
        self.urgent.clear();
        if self.greeting.is_some() {
            self.urgent.push_back(Urgent::Greeting);
        }
        let here = self.setup.local.catalog().digest();
        self.lists = if self.catalog == here { Lists::Here } else { Lists::There };
        if self.told.is_some_and(|told| told != self.catalog) {
            self.told = Some(self.catalog);
            self.tools_changed(out);
        }
    }

    /// Tells the client that its tools differ: its legacy session, and each subscription that asked and stands.
    fn tools_changed(&mut self, out: &mut BytesMut) {
        self.setup.local.on_tools_changed(out);
        for (_, held) in self.calls.all() {
            if matches!(held.kind, Kind::Listen { tools: true, acknowledged: true }) {
                wire::tools_changed(out, Some(&held.id));
            }
        }
    }

    /// Whoever serves takes nothing new: what it has it answers, and somebody else is looked for.
    fn on_leaving(&mut self, why: SearchEvent, now: Instant, out: &mut BytesMut, effects: &mut Vec<BridgeEffect>) {
        self.move_on(out, effects);
        self.look(why, now, out, effects);
    }

    /// The system in this process is let go of when it has answered what it had: a daemon serves.
    fn leave_own(&mut self, effects: &mut Vec<BridgeEffect>) {
        let Some(own) = self.own_link.filter(|own| self.leaving.contains(own)) else { return };
        let has_calls = self.calls.all().any(|(number, _)| self.calls.sent_to(number) == Some(own));
        if !has_calls {
            self.leaving.remove(&own);
            self.own_link = None;
            self.own.retain(|_, (to, _)| *to != own);
            self.barred.retain(|_, barred| barred.link != own);
            effects.push(BridgeEffect::Close(own));
        }
    }

    /// The connection that is used becomes one on which answers are waited for, and nothing more.
    fn move_on(&mut self, out: &mut BytesMut, effects: &mut Vec<BridgeEffect>) {
        let Some(link) = self.link.take() else { return };
        self.leaving.insert(link);
        // What was withdrawn of it is still to be told there, and what it asked is still answered.
        for urgent in self.urgent.drain(..) {
            if let Urgent::Line(line) = urgent {
                effects.push(BridgeEffect::Send(link, ended(&line)));
            }
        }
        self.input_ended = false;
        if self.leaving.len() > LEAVING
            && let Some(oldest) = self.leaving.first().copied()
        {
            effects.push(BridgeEffect::Close(oldest));
            self.on_lost(oldest, out);
        }
        // A subscription is kept by who stays.
        let streams: Vec<u64> = self.calls.all().filter(|(_, held)| held.kind.is_stream()).map(|(n, _)| n).collect();
        for number in streams {
            self.calls.again(number);
        }
    }

    /// A connection is gone, and with it what was under way to us.
    fn on_lost(&mut self, link: LinkNumber, out: &mut BytesMut) {
        if !self.leaving.remove(&link) {
            self.urgent.clear();
            self.input_ended = false;
        }
        self.own.retain(|_, (to, _)| *to != link);
        self.barred.retain(|_, barred| barred.link != link);
        for (number, why) in self.calls.lost(link) {
            self.fail(number, &lost(why), out);
        }
    }

    /// Nobody serves: what waits is told so. The next request has somebody looked for again.
    fn give_up(&mut self, why: &str, out: &mut BytesMut, effects: &mut Vec<BridgeEffect>) {
        effects.push(BridgeEffect::Note(format!("nobody serves: {why}")));
        let fault = Fault::new(FaultCode::Stopping, format!("nobody can serve this now: {why}"))
            .hint("Send the call again later; `phone-opus doctor` shows what is wrong.");
        let waiting = self.calls.all().map(|(number, _)| number).filter(|number| self.calls.sent_to(*number).is_none());
        for number in waiting.collect::<Vec<u64>>() {
            self.fail(number, &fault, out);
        }
    }

    /// Answers one of the client's requests with a fault: a call as its model can see it, all else as an error.
    fn fail(&mut self, number: u64, fault: &Fault, out: &mut BytesMut) {
        let Some(held) = self.calls.take(number) else { return };
        let mut answer = BytesMut::new();
        match held.kind {
            Kind::Call(_) if held.fails_as == FailsAs::Reply => {
                let reply = ToolReply::fault(fault);
                wire::called(&mut answer, &held.id, held.version, &reply, &self.setup.identity);
            }
            Kind::Call(_) | Kind::Ask | Kind::List | Kind::Listen { .. } => {
                wire::error(&mut answer, Some(&held.id), fault, None)
            }
        }
        self.deliver(&held, &answer, out);
    }

    /// Writes an answer where it belongs: on its own line, or into that of its batch.
    fn deliver(&mut self, held: &Held, answer: &[u8], out: &mut BytesMut) {
        match held.batch {
            None => out.put_slice(answer),
            Some(batch) => {
                self.gather(batch, answer);
                self.close_share(batch, out);
            }
        }
    }

    /// The next line for whoever serves: what it has to know first, then requests in the order of their arrival.
    fn next_line(&mut self, link: LinkNumber, now: Instant) -> Option<Bytes> {
        match self.urgent.pop_front() {
            Some(Urgent::Line(line)) => Some(ended(&line)),
            Some(Urgent::RootsChanged) => {
                Some(Bytes::from_static(b"{\"jsonrpc\":\"2.0\",\"method\":\"notifications/roots/list_changed\"}\n"))
            }
            Some(Urgent::Greeting) => self.greet(link),
            None => {
                let barred = &self.barred;
                self.calls.send(link, now, |id| barred.contains_key(id)).map(|line| ended(&line))
            }
        }
    }

    /// What the client said of itself.
    fn greet(&mut self, link: LinkNumber) -> Option<Bytes> {
        let id = self.own_request(link, OwnRequest::Greeting)?;
        let greeting = self.greeting.as_ref()?;
        let mut lines = BytesMut::new();
        lines.put_slice(b"{\"jsonrpc\":\"2.0\",\"id\":");
        lines.put_slice(id.as_bytes());
        lines.put_slice(b",\"method\":\"initialize\",\"params\":");
        lines.put_slice(greeting.params.as_bytes());
        lines.put_slice(b"}\n");
        if greeting.initialized {
            lines.put_slice(INITIALIZED);
            lines.put_slice(b"\n");
        }
        Some(lines.freeze())
    }

    /// The id of a new request of the bridge's own.
    fn own_request(&mut self, link: LinkNumber, request: OwnRequest) -> Option<IdToken> {
        let id = IdToken::from_json(&format!("\"{}{}\"", self.setup.own, self.next_own))?;
        self.next_own += 1;
        self.own.insert(id.clone(), (link, request));
        Some(id)
    }

    /// The version of the client's handshake.
    fn negotiated(&self) -> Option<Version> {
        self.setup.local.negotiated()
    }

    /// What holds after every step.
    ///
    /// # Errors
    ///
    /// What is broken, in words.
    #[cfg(test)]
    fn invariant_what_is_held_is_bounded(&self) -> Result<(), String> {
        self.calls.invariant_held_is_consistent_and_bounded()?;
        let most = self.calls.all().count() + self.barred.len() + QUESTIONS + 8;
        if self.urgent.len() > most || self.questions.len() > QUESTIONS {
            return Err(format!("{} lines and {} questions wait", self.urgent.len(), self.questions.len()));
        }
        Ok(())
    }
}

/// Asks a daemon who it is. Every version understands it.
const HELLO: &[u8] = b"{\"type\":\"hello\"}";

/// Asks a daemon to look for the next version of itself.
const RELOAD: &[u8] = b"{\"type\":\"reload\"}";

/// Says that the client is ready.
const INITIALIZED: &[u8] = b"{\"jsonrpc\":\"2.0\",\"method\":\"notifications/initialized\"}";

/// What is told of a request that was lost.
fn lost(why: LostAs) -> Fault {
    match why {
        LostAs::Unknown => {
            let detail = "the process that ran this call was lost, and what came of it is not known.";
            Fault::new(FaultCode::OutcomeUnknown, detail)
                .hint("A job that was accepted is kept; find it with consult_jobs.")
        }
        LostAs::Exhausted => {
            let detail = format!("each of {} processes that had this call was lost.", calls::SENDS);
            Fault::new(FaultCode::ReplayExhausted, detail)
        }
    }
}

/// A whole line.
fn ended(line: &[u8]) -> Bytes {
    let mut whole = BytesMut::with_capacity(line.len() + 1);
    whole.put_slice(line);
    whole.put_slice(b"\n");
    whole.freeze()
}

#[cfg(test)]
mod tests;
