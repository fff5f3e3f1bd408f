//! Bytes from a socket: many small messages from one large receive, large bodies straight into place.
//!
//! A receive goes into a fresh chunk of the pool, which is then cut to what arrived; bodies that lie in it whole are used
//! where they lie. A body that does not gets a buffer of its own: what has arrived is moved there once, and the rest is
//! received behind it. A beginning of a header is kept aside. So between two turns nothing of the pool is held but what has come
//! and cannot be used yet, and the rest of a body that is arriving: both at most as long as the owner says.

use std::io::{self, IoSliceMut};

use super::line::Line;
use super::pool::{Area, ChunkId, Pool};
use crate::units::BufId;

/// Longest header of any protocol received here, in bytes.
const HEADER_MAX: usize = 72;
/// Size of a receive when there is memory.
pub(super) const CHUNK_LEN: usize = 256 << 10;
/// Size of a receive that had to wait for memory.
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

/// A body, or the next piece of one.
#[derive(Clone, Copy, Debug)]
pub(super) struct Body {
    /// Its length in bytes; not 0.
    pub(super) len: usize,
    /// Its length if it has to wait for memory.
    pub(super) scarce_len: usize,
    /// Bytes of the message that are still to come, those of this body included.
    pub(super) message_left: usize,
}

impl Body {
    /// A body in one piece.
    pub(super) fn whole(len: usize) -> Self {
        Self { len, scarce_len: len, message_left: len }
    }
}

#[derive(Debug)]
enum Stage {
    /// Between two messages.
    None,
    /// In the window whole.
    Here { len: usize },
    /// Its memory is awaited; what has arrived stays in the window.
    Waiting { len: usize, last: bool },
    /// Arriving in place. `last` when another message follows, and not another piece.
    Filling { chunk: ChunkId, len: usize, filled: usize, last: bool },
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
    body: Stage,
    /// Bytes that came before this receiver did.
    early: Vec<u8>,
}

impl Receiver {
    /// A receiver whose memory comes from `area`. `early` came from the socket before.
    pub(super) fn new(area: Area, early: Vec<u8>) -> Self {
        Self { area, head: [0; HEADER_MAX], head_len: 0, window: None, body: Stage::None, early }
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
        self.window.is_some() || matches!(self.body, Stage::Filling { .. })
    }

    /// True while a body waits for memory.
    pub(super) fn waits_for_memory(&self) -> bool {
        matches!(self.body, Stage::Waiting { .. })
    }

    /// Gives the awaited body its memory, if there is any. False while there is none.
    pub(super) fn grant(&mut self, pool: &mut Pool) -> bool {
        let Stage::Waiting { len, last } = self.body else { return true };
        self.fill(pool, len, last)
    }

    /// Gives a body its memory, if there is any, and moves there what has come of it.
    fn fill(&mut self, pool: &mut Pool, len: usize, last: bool) -> bool {
        let Some(chunk) = pool.allocate(self.area, len) else { return false };
        let mut filled = 0;
        if let Some(window) = &self.window {
            filled = (window.end - window.at).min(len);
            let (from, to) = pool.two_chunks_mut((window.chunk, window.at, filled), (chunk, 0, filled));
            to.copy_from_slice(from);
        }
        self.consume(pool, filled);
        self.body = Stage::Filling { chunk, len, filled, last };
        true
    }

    /// Receives once, at most `most` bytes into fresh memory. `scarce`: others wait for memory, so take little.
    ///
    /// # Errors
    /// When the connection is broken.
    pub(super) fn receive(
        &mut self,
        line: &mut Line,
        pool: &mut Pool,
        most: usize,
        scarce: bool,
    ) -> io::Result<Received> {
        assert!(self.window.is_none(), "what came before is looked at first");
        let filling = match &mut self.body {
            Stage::Waiting { .. } => return Ok(Received::NoMemory),
            Stage::Filling { chunk, len, filled, last } if self.early.is_empty() => Some((*chunk, *len, filled, *last)),
            _ => None,
        };
        let Some((body, body_len, filled, last)) = filling else {
            let most = if scarce { most.min(SCARCE_LEN) } else { most };
            let Some(chunk) = pool.allocate_between(self.area, most.min(SCARCE_LEN), most) else {
                return Ok(Received::NoMemory);
            };
            let room = pool.chunk_len(chunk);
            let space = pool.chunk_bytes_mut(chunk, 0, room);
            let result = if self.early.is_empty() {
                line.read(&mut [IoSliceMut::new(space)])
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
        let beyond = if missing > LARGE || scarce { BEYOND_LARGE } else { most };
        let chunk = if last { pool.allocate_between(self.area, BEYOND_LARGE, beyond) } else { None };
        let Some(chunk) = chunk else {
            let space = pool.chunk_bytes_mut(body, *filled, missing);
            let mut result = line.read(&mut [IoSliceMut::new(space)]);
            if let Ok(Received::Bytes { count, drained }) = &mut result {
                *filled += *count;
                *drained = *count < missing;
            }
            return result;
        };
        let room = pool.chunk_len(chunk);
        let (rest, space) = pool.two_chunks_mut((body, *filled, missing), (chunk, 0, room));
        let mut result = line.read(&mut [IoSliceMut::new(rest), IoSliceMut::new(space)]);
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
        assert!(len <= HEADER_MAX && matches!(self.body, Stage::None), "one message after the other");
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

    /// Says that a body, or a piece of one, follows what was taken last.
    pub(super) fn begin_body(&mut self, pool: &mut Pool, body: Body, others_wait: bool) {
        let Body { len, scarce_len, message_left } = body;
        assert!(len > 0 && matches!(self.body, Stage::None));
        let here = self.window.as_ref().map_or(0, |w| w.end - w.at);
        if here >= len {
            self.body = Stage::Here { len };
        } else if others_wait || !self.fill(pool, len, len == message_left) {
            self.body = if here >= scarce_len {
                Stage::Here { len: scarce_len }
            } else {
                Stage::Waiting { len: scarce_len, last: scarce_len == message_left }
            };
        }
    }

    /// The body, when it is there whole. The caller becomes its user.
    pub(super) fn take_body(&mut self, pool: &mut Pool) -> Option<BufId> {
        match self.body {
            Stage::Here { len } => {
                let window = self.window.as_ref().expect("the body lies in it");
                let buf = pool.slice(window.chunk, window.at, len);
                self.consume(pool, len);
                self.body = Stage::None;
                Some(buf)
            }
            Stage::Filling { chunk, len, filled, .. } if filled == len => {
                let buf = pool.slice(chunk, 0, len);
                pool.drop_chunk(chunk);
                self.body = Stage::None;
                Some(buf)
            }
            _ => None,
        }
    }

    /// Says that `len` bytes follow which nobody wants.
    pub(super) fn begin_drain(&mut self, len: u64) {
        assert!(matches!(self.body, Stage::None));
        self.body = Stage::Draining { left: len };
    }

    /// Throws away what has come of the unwanted bytes. True when none are left to come.
    pub(super) fn is_drained(&mut self, pool: &mut Pool) -> bool {
        let Stage::Draining { left } = self.body else { return true };
        let here = self.window.as_ref().map_or(0, |w| w.end - w.at);
        let count = usize::try_from(left).unwrap_or(usize::MAX).min(here);
        self.consume(pool, count);
        let left = left - u64::try_from(count).expect("usize has at most 64 bits");
        self.body = if left == 0 { Stage::None } else { Stage::Draining { left } };
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
        if let Stage::Filling { chunk, .. } = self.body {
            pool.drop_chunk(chunk);
        }
        self.body = Stage::None;
        self.early.clear();
    }
}
