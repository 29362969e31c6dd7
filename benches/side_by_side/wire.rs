//! Wire: requests that are ready before the clock starts, and replies checked to the byte.
//!
//! Owns: what a request looks like, which reply is right, the tally of what came back.
//! May not know: clocks, processes, descriptors.
//! Invariants:
//! 1. An id is used once per session, and every echo carries its own id in its text: swapped replies cannot pass.
//! 2. A reply counts as right only if it is, byte for byte, one that a full parse has found right, up to its id.
//! 3. Nothing is forgotten: each id sent is answered exactly once or shows up in the tally.

use serde_json::{Value, json};

/// Digits of an id. Fixed, so that requests and replies of one kind are all of one length.
const DIGITS: usize = 8;
/// The first id of a session.
const FIRST: u32 = 10_000_000;

/// The text on which an echo tool with code of its own panics.
pub(crate) const PANIC_TEXT: &str = "please panic";

/// A request's id: eight digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Id(u32);

/// Hands out ids, each once.
#[derive(Debug)]
pub(crate) struct Ids(u32);

impl Ids {
    /// The ids of a new session.
    pub(crate) const fn new() -> Self {
        Self(FIRST)
    }

    /// The next one.
    pub(crate) fn next(&mut self) -> Id {
        let id = Id(self.0);
        self.0 += 1;
        id
    }
}

impl Id {
    fn digits(self) -> [u8; DIGITS] {
        let mut digits = [b'0'; DIGITS];
        let mut rest = self.0;
        for digit in digits.iter_mut().rev() {
            *digit += (rest % 10) as u8;
            rest /= 10;
        }
        digits
    }

    fn from_digits(digits: &[u8]) -> Option<Self> {
        let mut number = 0_u32;
        for digit in digits {
            number = number.checked_mul(10)?.checked_add(u32::from(digit.checked_sub(b'0').filter(|d| *d < 10)?))?;
        }
        Some(Self(number))
    }

    /// The id of a parsed message, if it has one of ours.
    pub(crate) fn of(message: &Value) -> Option<Self> {
        message["id"].as_u64().and_then(|number| u32::try_from(number).ok()).map(Self)
    }

    /// The number, as it stands in a message.
    pub(crate) const fn number(self) -> u32 {
        self.0
    }
}

/// Which of the two protocols a request speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Era {
    /// After a handshake.
    Legacy,
    /// The 2026-07-28 revision: no handshake, an envelope in each request.
    Modern,
}

/// What a request asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ask {
    /// A call of the echo tool, with a text of so many bytes (at least 9: the id and a space come first).
    Echo(usize),
    /// A call of the sink, with such a text.
    Sink(usize),
    /// `ping`.
    Ping,
    /// `tools/list`.
    List,
}

/// A request, complete but for its id.
#[derive(Debug)]
pub(crate) struct Template {
    bytes: Vec<u8>,
    places: Vec<usize>,
    expected: Expected,
}

/// What the reply to a request has to be.
#[derive(Debug, Clone)]
struct Expected {
    ask: Ask,
    era: Era,
    /// The text after the id.
    filler: String,
}

impl Template {
    /// Writes the request down.
    pub(crate) fn new(ask: Ask, era: Era) -> Self {
        let mark = "\u{1}".repeat(DIGITS);
        let mut filler = String::new();
        let envelope = match era {
            Era::Legacy => "",
            Era::Modern => concat!(
                r#""_meta":{"io.modelcontextprotocol/protocolVersion":"2026-07-28","#,
                r#""io.modelcontextprotocol/clientCapabilities":{},"#,
                r#""io.modelcontextprotocol/clientInfo":{"name":"side_by_side","version":"1"}},"#
            ),
        };
        let rest = match ask {
            Ask::Echo(size) | Ask::Sink(size) => {
                let tool = if matches!(ask, Ask::Echo(_)) { "echo" } else { "sink" };
                filler = text_of(size.saturating_sub(DIGITS));
                format!(
                    r#""method":"tools/call","params":{{{envelope}"name":"{tool}","arguments":{{"text":"{mark}{filler}"}}}}"#
                )
            }
            Ask::Ping => r#""method":"ping""#.to_owned(),
            Ask::List if era == Era::Modern => {
                format!(r#""method":"tools/list","params":{{{}}}"#, envelope.trim_end_matches(','))
            }
            Ask::List => r#""method":"tools/list""#.to_owned(),
        };
        let mut bytes = format!("{{\"jsonrpc\":\"2.0\",\"id\":{mark},{rest}}}\n").into_bytes();
        let places: Vec<usize> = memchr::memmem::find_iter(&bytes, mark.as_bytes()).collect();
        for place in &places {
            bytes[*place..place + DIGITS].fill(b'0');
        }
        Self { bytes, places, expected: Expected { ask, era, filler } }
    }

    /// The bytes of the request with this id, newline included.
    pub(crate) fn stamp(&mut self, id: Id) -> &[u8] {
        let digits = id.digits();
        for place in &self.places {
            self.bytes[*place..place + DIGITS].copy_from_slice(&digits);
        }
        &self.bytes
    }

    /// How long the request is, newline included.
    pub(crate) fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Whether a parsed reply is what the request with this id should get; if not, why.
    pub(crate) fn check(&self, id: Id, reply: &Value) -> Result<(), String> {
        self.expected.check(id, reply)
    }
}

impl Expected {
    /// Whether a parsed reply is what the request with this id should get.
    fn check(&self, id: Id, reply: &Value) -> Result<(), String> {
        if let Some(error) = reply.get("error") {
            return Err(format!("request {} got the error {error}", id.number()));
        }
        let result = &reply["result"];
        if self.era == Era::Modern && result["resultType"] != "complete" {
            return Err("the modern era is not spoken: a result has no resultType".to_owned());
        }
        let right = match self.ask {
            Ask::Ping => result.is_object(),
            Ask::List => {
                result["tools"].as_array().is_some_and(|tools| tools.iter().any(|tool| tool["name"] == "echo"))
            }
            Ask::Sink(size) => {
                result["content"][0]["text"].as_str() == Some(size.to_string().as_str()) && result["isError"] != true
            }
            Ask::Echo(_) => {
                let text = result["content"][0]["text"].as_str().unwrap_or_default();
                let own = text.strip_suffix(self.filler.as_str()) == Some(id.number().to_string().as_str());
                if !own && text.get(DIGITS..) == Some(self.filler.as_str()) {
                    return Err(format!("request {} got the text of {}", id.number(), &text[..DIGITS]));
                }
                own && result["isError"] != true
            }
        };
        if right { Ok(()) } else { Err(format!("request {} got {}", id.number(), head(&reply.to_string()))) }
    }
}

/// So many bytes of text that no JSON writer has to escape.
fn text_of(size: usize) -> String {
    const WORDS: &str = " the quick brown fox phones the lazy dog, who is out and calls back";
    WORDS.chars().cycle().take(size).collect()
}

/// The beginning of something long.
pub(crate) fn head(text: &str) -> String {
    let mut short: String = text.chars().take(120).collect();
    if short.len() < text.len() {
        short.push_str("...");
    }
    short
}

/// What came back, beyond what was right.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Tally {
    /// Answered rightly, once.
    pub(crate) right: u64,
    /// Answers to an id that had its answer.
    pub(crate) doubled: u64,
    /// Answers with an error, another's text, or no sense.
    pub(crate) wrong: u64,
    /// The first thing that was not right.
    pub(crate) first_fault: Option<String>,
}

/// Checks the replies to one kind of request.
#[derive(Debug)]
pub(crate) struct Checker {
    expected: Expected,
    first: Option<Id>,
    /// By id, from `first`: whether it was answered.
    answered: Vec<bool>,
    waiting: usize,
    shape: Option<Shape>,
    tally: Tally,
}

/// A reply that was found right, and where its id stands in it.
#[derive(Debug)]
struct Shape {
    line: Vec<u8>,
    places: Vec<usize>,
}

impl Shape {
    /// A line that was found right and holds its id `count` times; otherwise every line is parsed in full.
    fn learn(line: &[u8], id: Id, count: usize) -> Option<Self> {
        let places: Vec<usize> = memchr::memmem::find_iter(line, &id.digits()).collect();
        (places.len() == count).then(|| Self { line: line.to_vec(), places })
    }

    /// The id of a line that differs from the learned one in nothing else.
    fn id_of(&self, line: &[u8]) -> Option<Id> {
        if line.len() != self.line.len() {
            return None;
        }
        let mut from = 0;
        let first = *self.places.first()?;
        let digits = &line[first..first + DIGITS];
        for place in &self.places {
            if line[from..*place] != self.line[from..*place] || &line[*place..place + DIGITS] != digits {
                return None;
            }
            from = place + DIGITS;
        }
        (line[from..] == self.line[from..]).then(|| Id::from_digits(digits))?
    }
}

impl Checker {
    /// A checker of the replies to this request.
    pub(crate) fn new(template: &Template) -> Self {
        Self {
            expected: template.expected.clone(),
            first: None,
            answered: Vec::new(),
            waiting: 0,
            shape: None,
            tally: Tally::default(),
        }
    }

    /// Notes that the request went out with this id. Ids come in order, without gaps.
    pub(crate) fn sent(&mut self, id: Id) {
        self.first.get_or_insert(id);
        self.answered.push(false);
        self.waiting += 1;
    }

    /// How many are not answered yet.
    pub(crate) const fn waiting(&self) -> usize {
        self.waiting
    }

    /// What came back so far.
    pub(crate) const fn tally(&self) -> &Tally {
        &self.tally
    }

    /// Whether all is well so far.
    pub(crate) fn clean(&self) -> Result<(), String> {
        self.tally.first_fault.clone().map_or(Ok(()), Err)
    }

    /// Takes one line of the server, without its newline.
    pub(crate) fn reply(&mut self, line: &[u8]) {
        if let Some(id) = self.shape.as_ref().and_then(|shape| shape.id_of(line)) {
            return self.settle(id, Ok(()));
        }
        let Ok(reply) = serde_json::from_slice::<Value>(line) else {
            return self.fault(format!("a line that is not JSON: {}", head(&String::from_utf8_lossy(line))));
        };
        if reply.get("method").is_some() && reply.get("id").is_none() {
            return; // A notification; nothing waits for it.
        }
        let Some(id) = Id::of(&reply) else {
            return self.fault(format!("a reply to nobody: {}", head(&reply.to_string())));
        };
        let verdict = self.expected.check(id, &reply);
        if verdict.is_ok() && self.shape.is_none() {
            let count = if matches!(self.expected.ask, Ask::Echo(_)) { 2 } else { 1 };
            self.shape = Shape::learn(line, id, count);
        }
        self.settle(id, verdict);
    }

    fn settle(&mut self, id: Id, verdict: Result<(), String>) {
        let index = self.first.and_then(|first| id.0.checked_sub(first.0)).map(|index| index as usize);
        match index.and_then(|index| self.answered.get_mut(index)) {
            None => self.fault(format!("a reply to {}, which was not asked", id.number())),
            Some(true) => {
                self.tally.doubled += 1;
                self.tally.first_fault.get_or_insert(format!("request {} was answered twice", id.number()));
            }
            Some(answered) => {
                *answered = true;
                self.waiting -= 1;
                match verdict {
                    Ok(()) => self.tally.right += 1,
                    Err(fault) => self.fault(fault),
                }
            }
        }
    }

    fn fault(&mut self, fault: String) {
        self.tally.wrong += 1;
        self.tally.first_fault.get_or_insert(fault);
    }
}

/// Shows that the checker sees what it is for. A harness that cannot see a lost reply should not run.
pub(crate) fn self_check() -> Result<(), String> {
    let echo = |id: u64, text: String| {
        json!({"jsonrpc": "2.0", "id": id, "result": {"content": [{"type": "text", "text": text}]}}).to_string()
    };
    let template = Template::new(Ask::Echo(64), Era::Legacy);
    let own = |id: u64| echo(id, format!("{id}{}", template.expected.filler));
    let first = u64::from(FIRST);
    let cases: [(&str, Vec<String>, [u64; 4]); 6] = [
        ("right", vec![own(first + 1), own(first), own(first + 2)], [3, 0, 0, 0]),
        ("lost", vec![own(first), own(first + 2)], [2, 0, 0, 1]),
        ("doubled", vec![own(first), own(first + 1), own(first + 1), own(first + 2)], [3, 1, 0, 0]),
        (
            "swapped",
            vec![own(first), echo(first + 1, format!("{}{}", first + 2, template.expected.filler)), own(first + 2)],
            [2, 0, 1, 0],
        ),
        ("torn", vec![own(first), own(first + 1), own(first + 2)[..60].to_owned()], [2, 0, 1, 1]),
        ("foreign", vec![own(first), own(first + 1), own(first + 2), own(first + 3)], [3, 0, 1, 0]),
    ];
    for (name, lines, expected) in cases {
        let mut ids = Ids::new();
        let mut checker = Checker::new(&template);
        for _ in 0..3 {
            checker.sent(ids.next());
        }
        for line in lines {
            checker.reply(line.as_bytes());
        }
        let tally = checker.tally();
        let seen = [tally.right, tally.doubled, tally.wrong, checker.waiting() as u64];
        if seen != expected {
            return Err(format!("the checker saw {seen:?} for {name}, where {expected:?} is the case"));
        }
    }
    Ok(())
}
