//! What waits to be sent on a socket: encoded bytes and slices of the pool, in order.
//!
//! A turn's answers and frames gather here and leave in as few system calls as their number allows.

use std::collections::VecDeque;
use std::io::{self, IoSlice};

use super::line::Line;
use super::pool::Pool;
use crate::volume::io::BufSlice;

/// Parts given to the kernel in one call.
const BATCH: usize = 256;
/// Sent bytes kept before the rest is moved to the front.
const COMPACT_AT: usize = 64 << 10;

#[derive(Clone, Copy, Debug)]
enum Part {
    /// The next so many of the encoded bytes.
    Bytes(usize),
    /// From the pool; released when sent.
    Slice(BufSlice),
}

/// The queue of one socket.
#[derive(Debug, Default)]
pub(super) struct Outbox {
    bytes: Vec<u8>,
    /// Bytes at the front of `bytes` that are sent.
    consumed: usize,
    parts: VecDeque<Part>,
    queued: usize,
    /// Memory of the pool that the slices keep, in bytes.
    pooled: usize,
}

impl Outbox {
    /// Bytes waiting.
    pub(super) fn queued(&self) -> usize {
        self.queued
    }

    /// Memory taken by what waits, in bytes: a slice keeps all of its buffer until it is sent.
    pub(super) fn held(&self) -> usize {
        self.pooled + self.bytes.len() - self.consumed
    }

    /// True when nothing waits.
    pub(super) fn is_empty(&self) -> bool {
        self.queued == 0
    }

    /// Appends what `encode` writes.
    pub(super) fn push_encoded(&mut self, encode: impl FnOnce(&mut Vec<u8>)) {
        let before = self.bytes.len();
        encode(&mut self.bytes);
        let len = self.bytes.len() - before;
        match self.parts.back_mut() {
            _ if len == 0 => {}
            Some(Part::Bytes(last)) => *last += len,
            _ => self.parts.push_back(Part::Bytes(len)),
        }
        self.queued += len;
    }

    /// Appends a slice. The outbox becomes one of its buffer's users.
    pub(super) fn push_slice(&mut self, pool: &Pool, slice: BufSlice) {
        self.pooled += pool.footprint(slice.buf);
        let len = usize::try_from(slice.len).expect("usize has at least 32 bits");
        self.parts.push_back(Part::Slice(slice));
        self.queued += len;
    }

    /// Sends until everything is gone or the socket takes no more. Returns the bytes sent.
    ///
    /// # Errors
    /// When the connection is broken.
    pub(super) fn flush(&mut self, line: &mut Line, pool: &mut Pool) -> io::Result<usize> {
        let mut total = 0;
        match line.flush() {
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(0),
            flushed => flushed?,
        }
        while self.queued > 0 {
            let mut vector = [IoSlice::new(&[]); BATCH];
            let (mut count, mut from) = (0, self.consumed);
            for (part, place) in self.parts.iter().zip(&mut vector) {
                *place = IoSlice::new(match *part {
                    Part::Bytes(len) => {
                        from += len;
                        &self.bytes[from - len..from]
                    }
                    Part::Slice(slice) => pool.bytes(slice),
                });
                count += 1;
            }
            match line.write(&vector[..count]) {
                Ok(sent) => {
                    self.advance(sent, pool);
                    total += sent;
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => break,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        Ok(total)
    }

    fn advance(&mut self, mut sent: usize, pool: &mut Pool) {
        self.queued -= sent;
        // A slice of no bytes at the front goes too.
        while let Some(part) = self.parts.front_mut() {
            let len = match part {
                Part::Bytes(len) => *len,
                Part::Slice(slice) => usize::try_from(slice.len).expect("usize has at least 32 bits"),
            };
            let gone = len.min(sent);
            sent -= gone;
            if let Part::Bytes(_) = part {
                self.consumed += gone;
            }
            if gone == len {
                if let Part::Slice(slice) = *part {
                    self.pooled -= pool.footprint(slice.buf);
                    pool.release(slice.buf);
                }
                self.parts.pop_front();
                continue;
            }
            match part {
                Part::Bytes(len) => *len -= gone,
                Part::Slice(slice) => {
                    let gone = u32::try_from(gone).expect("less than the slice");
                    slice.offset += gone;
                    slice.len -= gone;
                }
            }
            break;
        }
        if self.consumed == self.bytes.len() || self.consumed >= COMPACT_AT {
            self.bytes.drain(..self.consumed);
            self.consumed = 0;
        }
    }

    /// Forgets everything and lets go of the buffers.
    pub(super) fn clear(&mut self, pool: &mut Pool) {
        for part in self.parts.drain(..) {
            if let Part::Slice(slice) = part {
                pool.release(slice.buf);
            }
        }
        self.bytes.clear();
        (self.consumed, self.queued, self.pooled) = (0, 0, 0);
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::os::unix::net::UnixStream;

    use super::*;
    use crate::dataplane::pool::{Area, PoolSizes};

    /// More parts than one call takes, and more bytes than the socket holds: order and content survive, buffers return.
    #[test]
    fn everything_arrives_in_order_and_buffers_return() {
        let mut pool = Pool::new(PoolSizes::default()).expect("mapped");
        let (ours, mut theirs) = UnixStream::pair().expect("a pair");
        let mut line = Line::new(std::os::fd::OwnedFd::from(ours).into(), 0);
        line.socket().set_nonblocking(true).expect("set");
        theirs.set_nonblocking(true).expect("set");
        let mut outbox = Outbox::default();
        let mut expected = Vec::new();
        for i in 0..700u32 {
            let mark = i.to_be_bytes();
            outbox.push_encoded(|out| out.extend_from_slice(&mark));
            expected.extend_from_slice(&mark);
            let buf = pool.allocate_buffer(Area::Reads, 3000).expect("room for all");
            let whole = pool.whole(buf);
            pool.bytes_mut(whole).fill(mark[3]);
            outbox.push_slice(&pool, whole);
            expected.extend(std::iter::repeat_n(mark[3], 3000));
        }
        assert_eq!(outbox.queued(), expected.len());
        let (mut got, mut blocked) = (Vec::new(), false);
        while !outbox.is_empty() {
            outbox.flush(&mut line, &mut pool).expect("open");
            blocked |= !outbox.is_empty();
            let mut chunk = vec![0; 100_000];
            let n = theirs.read(&mut chunk).expect("readable");
            got.extend_from_slice(&chunk[..n]);
        }
        drop(line);
        theirs.read_to_end(&mut got).expect("the end");
        assert!(blocked, "the socket was never full: the test shows nothing");
        assert_eq!(got.len(), expected.len());
        assert!(got == expected);
        assert!(pool.is_unused());
    }
}
