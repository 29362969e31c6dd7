//! What is to be written to a pipe: small messages in one piece, large texts as they are.
//!
//! Owns: the order of the bytes. May not know: what they mean.
//!
//! Invariant: bytes leave in the order they came, each once; a large text is shared with whoever had it, not copied.

use std::collections::VecDeque;

use bytes::{Buf, BufMut, Bytes, BytesMut};

/// From here on a text is not copied into the piece before it: a write of its own costs less than that.
const LARGE: usize = 32 * 1024;

/// Room kept between turns; more is given back.
const KEPT: usize = 256 * 1024;

/// Bytes that wait to be written.
#[derive(Debug, Default)]
pub struct Outbox {
    ready: VecDeque<Bytes>,
    ready_bytes: usize,
    tail: BytesMut,
}

impl Outbox {
    /// Where small messages are appended.
    pub fn tail(&mut self) -> &mut BytesMut {
        &mut self.tail
    }

    /// Appends a text.
    pub fn attach(&mut self, text: &Bytes) {
        if text.len() < LARGE {
            self.tail.put_slice(text);
            return;
        }
        for piece in [self.tail.split().freeze(), text.clone()] {
            self.ready_bytes += piece.len();
            if !piece.is_empty() {
                self.ready.push_back(piece);
            }
        }
    }

    /// Whether nothing waits.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.ready.is_empty() && self.tail.is_empty()
    }

    /// Bytes that wait.
    #[must_use]
    pub fn len(&self) -> usize {
        self.ready_bytes + self.tail.len()
    }

    /// What is to be written next; empty only when nothing waits.
    #[must_use]
    pub fn front(&self) -> &[u8] {
        self.ready.front().map_or(&self.tail[..], |piece| &piece[..])
    }

    /// So many bytes of [`Outbox::front`] were written.
    pub fn written(&mut self, count: usize) {
        if let Some(piece) = self.ready.front_mut() {
            piece.advance(count);
            self.ready_bytes -= count;
            if piece.is_empty() {
                self.ready.pop_front();
            }
            return;
        }
        self.tail.advance(count);
        if self.tail.is_empty() {
            if self.tail.capacity() > KEPT {
                self.tail = BytesMut::new();
            } else {
                self.tail.clear();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_leave_in_the_order_they_came_whatever_their_pieces() {
        let large = Bytes::from(vec![b'L'; LARGE]);
        let mut out = Outbox::default();
        out.tail().put_slice(b"one,");
        out.attach(&Bytes::from_static(b"two,"));
        out.attach(&large);
        out.attach(&large);
        out.tail().put_slice(b",three");
        let mut want = b"one,two,".to_vec();
        want.extend_from_slice(&large);
        want.extend_from_slice(&large);
        want.extend_from_slice(b",three");
        assert_eq!(out.len(), want.len());
        let mut got = Vec::new();
        while !out.is_empty() {
            let some = out.front().len().min(1000);
            got.extend_from_slice(&out.front()[..some]);
            out.written(some);
            assert_eq!(out.len(), want.len() - got.len());
        }
        assert!(got == want);
    }
}
