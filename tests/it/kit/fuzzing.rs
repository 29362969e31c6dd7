//! The fuzzers' corpus, and changes of it from a fixed seed, held to the laws of `testkit::fuzzing`.
//!
//! `PHONE_OPUS_FUZZ_SEED` and `PHONE_OPUS_FUZZ_ROUNDS` try others; a run prints what they were.
//!
//! Laws: L1, L11.

#![expect(clippy::expect_used, clippy::print_stdout, reason = "helpers of tests")]

use std::path::Path;

use fastrand::Rng;
use phone_opus::testkit::fuzzing;

/// Changes tried of each target; some seconds in a debug build.
const ROUNDS: u64 = 20_000;

/// What is written into lines and between them.
const WORDS: &[&[u8]] = &[
    b"\n",
    b"\r\n",
    b"\x01",
    b"\x02",
    b"\x03",
    b"\x04",
    b"\x05",
    b"\x06",
    b"\x07",
    b"\x08",
    b"\x0e",
    b"\"",
    b"\\",
    b"{",
    b"}",
    b"[",
    b"]",
    b",",
    b":",
    b"null",
    b"1",
    b"-0",
    b"1e400",
    b"\\ud83d",
    b"\xff",
    b"\xf0\x9f",
    b"\"id\":",
    b"\"id\":1,",
    b"\"method\":\"ping\"",
    b"\"task\":{}",
    b"\"_meta\":{}",
    b"tools/call",
    b"tasks/get",
    b"notifications/cancelled",
    b"2025-03-26",
    b"2026-07-28",
    b"process/start",
    b"process/read",
    b"\"waitMs\":9",
    b"{\"method\":\"initialized\"}\n",
];

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

/// The corpus of a target, in the order of its names.
fn corpus(target: &str) -> Vec<(String, Vec<u8>)> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(target);
    let mut files: Vec<_> =
        std::fs::read_dir(dir).expect("a corpus").map(|file| file.expect("a file").path()).collect();
    files.sort();
    assert!(files.len() > 1, "the corpus of {target} is gone");
    files.iter().map(|file| (file.display().to_string(), std::fs::read(file).expect("read"))).collect()
}

/// A place in the text; any, or after the end.
fn place(rng: &mut Rng, text: &[u8]) -> usize {
    rng.usize(..=text.len())
}

/// A piece of a text: some whole lines of it, or any part.
fn piece<'a>(rng: &mut Rng, text: &'a [u8]) -> &'a [u8] {
    let (one, other) = (place(rng, text), place(rng, text));
    let (mut from, mut to) = (one.min(other), one.max(other));
    if rng.bool() {
        from = text[..from].iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
        to = text[to..].iter().position(|byte| *byte == b'\n').map_or(text.len(), |at| to + at + 1);
    }
    &text[from..to]
}

/// One to six changes of one text, with pieces of the others.
fn changed(rng: &mut Rng, corpus: &[(String, Vec<u8>)]) -> Vec<u8> {
    let any = |rng: &mut Rng| &corpus[rng.usize(..corpus.len())].1;
    let mut text = any(rng).clone();
    for _ in 0..rng.usize(1..=6) {
        let at = place(rng, &text);
        match rng.u8(..7) {
            0 => drop(text.splice(at..at, WORDS[rng.usize(..WORDS.len())].iter().copied())),
            1 => {
                let other = any(rng);
                let piece = piece(rng, other).to_vec();
                drop(text.splice(at..at, piece));
            }
            2 => {
                let piece = piece(rng, &text).to_vec();
                drop(text.splice(at..at, piece));
            }
            3 => {
                let end = (at + rng.usize(..16)).min(text.len());
                drop(text.drain(at..end));
            }
            4 if at < text.len() => text[at] = rng.u8(..),
            5 if at < text.len() => text[at] ^= 1 << rng.u8(..8),
            _ => text.truncate(at),
        }
    }
    text
}

/// Plays the corpus, then changes of it; says what broke a law.
fn play(target: &str, law: fn(&[u8])) {
    let corpus = corpus(target);
    let (seed, rounds) = (number("PHONE_OPUS_FUZZ_SEED", 7), number("PHONE_OPUS_FUZZ_ROUNDS", ROUNDS));
    println!("PHONE_OPUS_FUZZ_SEED={seed} PHONE_OPUS_FUZZ_ROUNDS={rounds}");
    let tried = |what: &str, text: &[u8]| {
        let held = std::panic::catch_unwind(|| law(text));
        assert!(held.is_ok(), "{target} broke a law by {what}: b\"{}\"", text.escape_ascii());
    };
    for (name, text) in &corpus {
        tried(name, text);
    }
    let mut rng = Rng::with_seed(seed);
    for round in 0..rounds {
        tried(&format!("change {round}"), &changed(&mut rng, &corpus));
    }
}

#[test]
fn no_bytes_of_a_client_break_a_law_of_the_session() {
    play("session", fuzzing::session);
}

#[test]
fn no_bytes_are_split_into_other_lines_than_they_are() {
    play("frames", fuzzing::frames);
}

#[test]
fn no_bytes_of_a_peer_break_a_law_of_an_exec_server() {
    play("exec_server", fuzzing::exec_server);
}
