//! Bytes from a socket: many small messages from one large receive, large bodies straight into place.
//!
//! A receive goes into a fresh chunk of the pool, which is then cut to what arrived; bodies that lie in it whole are used
//! where they lie. A body that does not gets a buffer of its own: what has arrived is moved there once, and the rest is
//! received behind it. A beginning of a header is kept aside. So between two turns nothing of the pool is held but bodies that
//! are arriving, and a full pool can never be full of idle connections.

use std::io::{self, IoSliceMut, Read};

use socket2::Socket;

use super::pool::{Area, ChunkId, Pool};
use crate::units::BufId;

/// Longest header of any protocol received here, in bytes.
const HEADER_MAX: usize = 72;
/// Size of a receive when there is memory.
const CHUNK_LEN: usize = 256 << 10;
/// Size of a receive that had to wait for memory, and least size of any.
const SCARCE_LEN: usize = 32 << 10;
/// While more than this of a body is missing, little is received beyond it: the next body is probably large too.
const LARGE: usize = 64 << 10;
/// What is received beyond a large body.
const BEYOND_LARGE: usize = 4 << 10;

/// How a receive went.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Received {
    /// Bytes came. `drained` when the socket has no more for now.
    Bytes {
        /// How many.
        count: usize,
        /// No more for now.
        drained: bool,
    },
    /// None are there.
    Nothing,
    /// The other side has ended.
    End,
    /// There is no memory for what would come.
    NoMemory,
}

#[derive(Debug)]
struct Window {
    chunk: ChunkId,
    at: usize,
    end: usize,
}

#[derive(Debug)]
enum Body {
    /// Between two messages.
    None,
    /// In the window whole.
    Here { len: usize },
    /// Its memory is awaited; what has arrived is kept aside.
    Waiting { len: usize, begun: Vec<u8> },
    /// Arriving in place.
    Filling { chunk: ChunkId, len: usize, filled: usize },
    /// To be thrown away.
    Draining { left: u64 },
}

/// The receiving half of a connection.
#[derive(Debug)]
pub(super) struct Receiver {
    area: Area,
    head: [u8; HEADER_MAX],
    head_len: usize,
    window: Option<Window>,
    body: Body,
    /// Bytes that came before this receiver did.
    early: Vec<u8>,
}

impl Receiver {
    /// A receiver whose memory comes from `area`. `early` came from the socket before.
    pub(super) fn new(area: Area, early: Vec<u8>) -> Self {
        Self { area, head: [0; HEADER_MAX], head_len: 0, window: None, body: Body::None, early }
    }

    /// True while received bytes have not been looked at.
    pub(super) fn has_window(&self) -> bool {
        self.window.is_some()
    }

    /// True while there are bytes that did not come from the socket.
    pub(super) fn has_early(&self) -> bool {
        !self.early.is_empty()
    }

    /// True while memory of the pool is held.
    pub(super) fn holds_memory(&self) -> bool {
        self.window.is_some() || matches!(self.body, Body::Filling { .. })
    }

    /// True while a body waits for memory.
    pub(super) fn waits_for_memory(&self) -> bool {
        matches!(self.body, Body::Waiting { .. })
    }

    /// Gives the awaited body its memory, if there is any. False while there is none.
    pub(super) fn grant(&mut self, pool: &mut Pool) -> bool {
        let Body::Waiting { len, begun } = &self.body else { return true };
        let Some(chunk) = pool.allocate(self.area, *len) else { return false };
        pool.chunk_bytes_mut(chunk, 0, begun.len()).copy_from_slice(begun);
        self.body = Body::Filling { chunk, len: *len, filled: begun.len() };
        true
    }

    /// Receives once. `scarce`: others wait for memory, so take little.
    ///
    /// # Errors
    /// When the connection is broken.
    pub(super) fn receive(&mut self, socket: &Socket, pool: &mut Pool, scarce: bool) -> io::Result<Received> {
        assert!(self.window.is_none(), "what came before is looked at first");
        let filling = match &mut self.body {
            Body::Waiting { .. } => return Ok(Received::NoMemory),
            Body::Filling { chunk, len, filled } if self.early.is_empty() => Some((*chunk, *len, filled)),
            _ => None,
        };
        let Some((body, body_len, filled)) = filling else {
            let Some(chunk) = pool.allocate_between(self.area, SCARCE_LEN, if scarce { SCARCE_LEN } else { CHUNK_LEN })
            else {
                return Ok(Received::NoMemory);
            };
            let room = pool.chunk_len(chunk);
            let space = pool.chunk_bytes_mut(chunk, 0, room);
            let result = if self.early.is_empty() {
                read(socket, &mut [IoSliceMut::new(space)])
            } else {
                let count = self.early.len().min(room);
                space[..count].copy_from_slice(&self.early[..count]);
                self.early.drain(..count);
                Ok(Received::Bytes { count, drained: false })
            };
            self.keep(pool, chunk, 0, &result);
            return result;
        };
        let missing = body_len - *filled;
        let beyond = if missing > LARGE || scarce { BEYOND_LARGE } else { CHUNK_LEN };
        let Some(chunk) = pool.allocate_between(self.area, BEYOND_LARGE, beyond) else {
            let space = pool.chunk_bytes_mut(body, *filled, missing);
            let mut result = read(socket, &mut [IoSliceMut::new(space)]);
            if let Ok(Received::Bytes { count, drained }) = &mut result {
                *filled += *count;
                *drained = *count < missing;
            }
            return result;
        };
        let room = pool.chunk_len(chunk);
        let (rest, space) = pool.two_chunks_mut((body, *filled, missing), (chunk, 0, room));
        let mut result = read(socket, &mut [IoSliceMut::new(rest), IoSliceMut::new(space)]);
        let mut in_body = 0;
        if let Ok(Received::Bytes { count, drained }) = &mut result {
            in_body = missing.min(*count);
            *filled += in_body;
            *drained = *count < missing + room;
        }
        self.keep(pool, chunk, in_body, &result);
        result
    }

    /// Makes what a receive brought beyond `elsewhere` bytes the window.
    fn keep(&mut self, pool: &mut Pool, chunk: ChunkId, elsewhere: usize, result: &io::Result<Received>) {
        let count = if let Ok(Received::Bytes { count, .. }) = result { count - elsewhere } else { 0 };
        if count == 0 {
            pool.drop_chunk(chunk);
        } else {
            pool.shrink(chunk, count);
            self.window = Some(Window { chunk, at: 0, end: count });
        }
    }

    /// The next header of `len` bytes, when it is there whole. It is then consumed.
    ///
    /// Only between two messages: after [`Receiver::take_body`] or [`Receiver::is_drained`] said that the last one is done.
    pub(super) fn header(&mut self, pool: &mut Pool, len: usize) -> Option<[u8; HEADER_MAX]> {
        assert!(len <= HEADER_MAX && matches!(self.body, Body::None), "one message after the other");
        let window = self.window.as_ref()?;
        let count = (len - self.head_len).min(window.end - window.at);
        let part = pool.chunk_bytes(window.chunk, window.at, count);
        self.head[self.head_len..self.head_len + count].copy_from_slice(part);
        self.head_len += count;
        self.consume(pool, count);
        if self.head_len < len {
            return None;
        }
        self.head_len = 0;
        Some(self.head)
    }

    /// What has come of the next header, for a look at its first bytes.
    pub(super) fn partial_header(&self) -> &[u8] {
        &self.head[..self.head_len]
    }

    /// Says that `len` bytes of body follow the header just taken; `len` is not 0.
    pub(super) fn begin_body(&mut self, pool: &mut Pool, len: usize, others_wait: bool) {
        assert!(len > 0 && matches!(self.body, Body::None));
        let here = self.window.as_ref().map_or(0, |w| w.end - w.at);
        if here >= len {
            self.body = Body::Here { len };
            return;
        }
        let chunk = if others_wait { None } else { pool.allocate(self.area, len) };
        match (chunk, &self.window) {
            (Some(chunk), Some(window)) => {
                let (from, to) = pool.two_chunks_mut((window.chunk, window.at, here), (chunk, 0, here));
                to.copy_from_slice(from);
            }
            (Some(_), None) => {}
            (None, window) => {
                let begun = window.as_ref().map_or_else(Vec::new, |w| pool.chunk_bytes(w.chunk, w.at, here).to_vec());
                self.consume(pool, here);
                self.body = Body::Waiting { len, begun };
                return;
            }
        }
        if let Some(chunk) = chunk {
            self.body = Body::Filling { chunk, len, filled: here };
        }
        self.consume(pool, here);
    }

    /// The body, when it is there whole. The caller becomes its user.
    pub(super) fn take_body(&mut self, pool: &mut Pool) -> Option<BufId> {
        match self.body {
            Body::Here { len } => {
                let window = self.window.as_ref().expect("the body lies in it");
                let buf = pool.slice(window.chunk, window.at, len);
                self.consume(pool, len);
                self.body = Body::None;
                Some(buf)
            }
            Body::Filling { chunk, len, filled } if filled == len => {
                let buf = pool.slice(chunk, 0, len);
                pool.drop_chunk(chunk);
                self.body = Body::None;
                Some(buf)
            }
            _ => None,
        }
    }

    /// Says that `len` bytes follow which nobody wants.
    pub(super) fn begin_drain(&mut self, len: u64) {
        assert!(matches!(self.body, Body::None));
        self.body = Body::Draining { left: len };
    }

    /// Throws away what has come of the unwanted bytes. True when none are left to come.
    pub(super) fn is_drained(&mut self, pool: &mut Pool) -> bool {
        let Body::Draining { left } = self.body else { return true };
        let here = self.window.as_ref().map_or(0, |w| w.end - w.at);
        let count = usize::try_from(left).unwrap_or(usize::MAX).min(here);
        self.consume(pool, count);
        let left = left - u64::try_from(count).expect("usize has at most 64 bits");
        self.body = if left == 0 { Body::None } else { Body::Draining { left } };
        left == 0
    }

    fn consume(&mut self, pool: &mut Pool, count: usize) {
        let Some(window) = &mut self.window else { return };
        window.at += count;
        if window.at == window.end {
            pool.drop_chunk(window.chunk);
            self.window = None;
        }
    }

    /// Lets go of all memory; nothing more will be received.
    pub(super) fn clear(&mut self, pool: &mut Pool) {
        if let Some(window) = self.window.take() {
            pool.drop_chunk(window.chunk);
        }
        if let Body::Filling { chunk, .. } = self.body {
            pool.drop_chunk(chunk);
        }
        self.body = Body::None;
        self.early.clear();
    }
}

fn read(socket: &Socket, into: &mut [IoSliceMut<'_>]) -> io::Result<Received> {
    let room: usize = into.iter().map(|part| part.len()).sum();
    let mut socket = socket;
    match socket.read_vectored(into) {
        Ok(0) => Ok(Received::End),
        Ok(count) => Ok(Received::Bytes { count, drained: count < room }),
        Err(e) if matches!(e.kind(), io::ErrorKind::WouldBlock) => Ok(Received::Nothing),
        Err(e) if matches!(e.kind(), io::ErrorKind::Interrupted) => Ok(Received::Bytes { count: 0, drained: false }),
        Err(e) => Err(e),
    }
}
