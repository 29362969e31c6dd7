//! Reading the lines of host and worker.
//!
//! Owns: what is a message, and the short way to those that are on the path of every call. May not know: who reads, and what
//! comes of it.

use super::{Execute, ExecuteHead, FromWorker, Json, SettledAttempt, ToWorker};
use crate::base::ids::{Generation, SessionNumber};
use crate::protocol::scan;

/// Reads a line of a host.
///
/// # Errors
///
/// It is no message.
pub fn read_host(line: &[u8]) -> Result<ToWorker<'_>, serde_json::Error> {
    let Some(rest) = line.strip_prefix(b"{\"execute\":") else { return serde_json::from_slice(line) };
    let (head, end) = match plain_head(rest) {
        Some(plain) => plain,
        None => {
            let mut heads = serde_json::Deserializer::from_slice(rest).into_iter::<ExecuteHead<'_>>();
            let head = heads.next().unwrap_or_else(|| Err(no_message()))?;
            (head, heads.byte_offset())
        }
    };
    let arguments = rest[end..].strip_prefix(b",\"arguments\":").and_then(|rest| rest.strip_suffix(b"}"));
    match arguments {
        Some(arguments) if arguments.starts_with(b"{") && arguments.ends_with(b"}") => {
            Ok(ToWorker::Execute(Execute { head, arguments }))
        }
        _ => Err(no_message()),
    }
}

/// The head of an attempt as nearly every one is written, and where it ends; the parser reads all others. It is on the
/// path of every call.
fn plain_head(rest: &[u8]) -> Option<(ExecuteHead<'_>, usize)> {
    const TOOL: &[u8] = b",\"tool\":";
    let (g, s, c, at) = keyed_head(rest)?;
    let start = at + TOOL.len();
    let end = scan::string(rest, start).filter(|_| rest[at..].starts_with(TOOL))?;
    let tool = std::str::from_utf8(&rest[start + 1..end - 1]).ok().filter(|tool| !tool.contains('\\'))?;
    let mut at = end;
    let mut client = None;
    if let Some(value) = rest[at..].strip_prefix(b",\"client\":") {
        let end = scan::value(value, 0)?;
        client = Some(Json(std::str::from_utf8(&value[..end]).ok()?));
        at = rest.len() - value.len() + end;
    }
    if rest.get(at) != Some(&b'}') {
        return None;
    }
    let head = ExecuteHead { g, s, c, tool: tool.into(), progress: false, evidence: None, client };
    Some((head, at + 1))
}

/// `{"g":…,"s":…,"c":…` as we write it, and where it ends.
fn keyed_head(text: &[u8]) -> Option<(Generation, SessionNumber, u64, usize)> {
    let mut at = 0;
    let mut number = |name: &[u8]| {
        at += text[at..].starts_with(name).then_some(name.len())?;
        let digits = text[at..].iter().take_while(|byte| byte.is_ascii_digit()).count();
        // What overflows, or leads with a zero, the parser may judge.
        if !(1..20).contains(&digits) || (digits > 1 && text[at] == b'0') {
            return None;
        }
        let value = text[at..at + digits].iter().fold(0_u64, |value, digit| value * 10 + u64::from(digit - b'0'));
        at += digits;
        Some(value)
    };
    let (g, s, c) = (number(b"{\"g\":")?, number(b",\"s\":")?, number(b",\"c\":")?);
    Some((Generation(g), SessionNumber(s), c, at))
}

/// Reads a line of a worker.
///
/// # Errors
///
/// It is no message.
pub fn read_worker(line: &str) -> Result<FromWorker<'_>, serde_json::Error> {
    match plain_settled(line) {
        Some(settled) => Ok(FromWorker::Settled(settled)),
        None => serde_json::from_str(line),
    }
}

/// An outcome as nearly every one is written: a text and nothing else. The parser reads all others.
fn plain_settled(line: &str) -> Option<SettledAttempt<'_>> {
    const TEXT: &[u8] = b",\"text\":";
    let body = line.strip_prefix("{\"settled\":")?;
    let bytes = body.as_bytes();
    let (g, s, c, at) = keyed_head(bytes)?;
    let start = at + TEXT.len();
    let end = scan::string(bytes, start).filter(|_| bytes[at..].starts_with(TEXT))?;
    if &bytes[end..] != b"}}" {
        return None;
    }
    let text = Some(Json(&body[start..end]));
    let ends = Vec::new();
    let (fault, code, job, path, structured) = (None, None, None, None, None);
    Some(SettledAttempt { g, s, c, fault, code, job, path, text, structured, end: false, ends })
}

fn no_message() -> serde_json::Error {
    serde::de::Error::custom("an attempt is not as it is written")
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::super::tests::{G, KEY, LIMIT, call, line, text};
    use super::super::write::{execute, settled};
    use super::*;
    use crate::protocol::session::{CallOutcome, ClientInfo};
    use crate::protocol::wire::ToolReply;
    use crate::tools::ToolCall;
    use crate::worker::outbox::Outbox;

    #[test]
    fn what_is_no_message_is_refused() {
        for wrong in [
            "",
            "{}",
            "[]",
            "null",
            "{\"settled\":{}}",
            "{\"settled\":{\"g\":1,\"s\":1,\"c\":1,\"text\":\"x}}",
            "{\"settled\":{\"g\":1,\"s\":1,\"c\":1,\"text\":tru}}",
            "{\"unheard\":{\"g\":1}}",
            "{\"alive\":{\"g\":1,\"n\":1,\"open\":0}} ",
            "{\"alive\":{\"g\":-1,\"n\":1,\"open\":0}}",
            "{\"alive\":{\"g\":1,\"n\":1,\"open\":0},\"alive\":{\"g\":1,\"n\":1,\"open\":0}}",
        ] {
            let read = read_worker(wrong);
            // White space around a message is no harm.
            assert_eq!(read.is_ok(), wrong.ends_with(' '), "{wrong}");
        }
        let no_text = r#"{"settled":{"g":1,"s":1,"c":1,"text":5}}"#;
        let line = Bytes::from_static(no_text.as_bytes());
        let Ok(FromWorker::Settled(read)) = read_worker(text(&line)) else { panic!("it reads") };
        assert!(read.outcome(&line).is_none(), "a text must be a string");
    }

    /// What is read without the parser is what the parser reads, and what is damaged is left to it.
    #[test]
    fn the_short_way_reads_what_the_parser_reads() {
        let clients = [
            ClientInfo::Unknown,
            ClientInfo::Name("a \"b\"".into()),
            ClientInfo::Raw(Bytes::from_static(b"{\"name\":[1]}")),
        ];
        for client in clients {
            let sent = ToolCall { evidence: None, ..call("{\"a\":1}", client) };
            let mut out = Outbox::default();
            execute(&mut out, KEY, "tool", &sent, LIMIT).expect("it fits");
            let line = line(out);
            let rest = line.strip_prefix(b"{\"execute\":").expect("an attempt");
            let (head, end) = plain_head(rest).expect("as nearly every one");
            let mut heads = serde_json::Deserializer::from_slice(rest).into_iter::<ExecuteHead<'_>>();
            let parsed = heads.next().expect("a head").expect("JSON");
            assert_eq!((format!("{head:?}"), end), (format!("{parsed:?}"), heads.byte_offset()));
        }
        let mut out = Outbox::default();
        settled(&mut out, G, KEY, &CallOutcome::Reply(Box::new(ToolReply::text("é \"x\"\n"))), LIMIT);
        let line = line(out);
        let line = text(&line);
        let parsed: FromWorker<'_> = serde_json::from_str(line).expect("a message");
        let FromWorker::Settled(parsed) = parsed else { panic!("{line}") };
        assert_eq!(format!("{:?}", plain_settled(line).expect("as nearly every one")), format!("{parsed:?}"));
        for cut in (0..line.len()).filter(|cut| line.is_char_boundary(*cut)) {
            assert!(read_worker(&line[..cut]).is_err(), "{cut}");
        }
        for (part, other) in
            [("\"g\":3", "\"g\":03"), ("\"c\":9", "\"c\":99999999999999999999"), ("\\n", "\\q"), ("}}", "}}}")]
        {
            let wrong = line.replacen(part, other, 1);
            assert!(wrong != line && read_worker(&wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn an_attempt_that_is_cut_is_refused() {
        let mut out = Outbox::default();
        execute(&mut out, KEY, "t", &call("{\"a\":{}}", ClientInfo::Unknown), LIMIT).expect("it fits");
        let line = line(out);
        assert!(read_host(&line).is_ok());
        for cut in 0..line.len() - 1 {
            // Two braces can be missing before it shows that one is; a host's pipe gives whole lines.
            assert!(read_host(&line[..cut]).is_err() || cut + 2 >= line.len(), "{cut} bytes");
        }
    }
}
