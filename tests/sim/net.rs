//! One link: a byte stream each way, in the production frames.
//!
//! Bytes keep their order and arrive late, in pieces of any length. A stream may stall (bytes are accepted and do not
//! arrive), end at any byte, or have one bit changed on the way. The receiver's production reader must refuse the last;
//! a link that delivers a changed frame to the machine would be a fault of the format.

use std::collections::VecDeque;

use repblk::units::{ConnectionId, Term};
use repblk::wire::frame::HEADER_LEN;
use repblk::wire::{FrameHeader, FrameReader, FrameWriter, Message};

/// One direction of a link.
#[derive(Clone, Debug)]
pub(crate) struct Stream {
    writer: FrameWriter,
    reader: FrameReader,
    header: Option<FrameHeader>,
    flying: VecDeque<Piece>,
    /// What has arrived; the receiver has read it up to `read`.
    arrived: Vec<u8>,
    read: usize,
    /// Nothing arrives while set.
    pub(crate) stalled: bool,
    /// When the youngest piece arrives; pieces keep their order.
    pub(crate) last_arrival: u64,
    /// Bytes sent and not yet read by the receiver.
    pub(crate) unread: usize,
}

#[derive(Clone, Debug)]
struct Piece {
    arrives: u64,
    bytes: Vec<u8>,
}

/// A frame that came through.
#[derive(Debug)]
pub(crate) struct Arrived {
    /// The sender's term.
    pub(crate) term: Term,
    /// The message.
    pub(crate) message: Message,
    /// Its payload, if it has one.
    pub(crate) payload: Option<Vec<u8>>,
}

impl Stream {
    fn new(connection: ConnectionId) -> Self {
        Self {
            writer: FrameWriter::new(connection),
            reader: FrameReader::new(connection),
            header: None,
            flying: VecDeque::new(),
            arrived: Vec::new(),
            read: 0,
            stalled: false,
            last_arrival: 0,
            unread: 0,
        }
    }

    /// Sends one frame that arrives at `arrives`, or with the one before it if that is later. Gives the arrival.
    pub(crate) fn send(&mut self, term: Term, message: &Message, payload: &[u8], arrives: u64) -> u64 {
        let mut bytes = Vec::with_capacity(HEADER_LEN + payload.len());
        self.writer.encode(term, message, payload, &mut bytes);
        bytes.extend_from_slice(payload);
        self.unread += bytes.len();
        self.last_arrival = self.last_arrival.max(arrives);
        self.flying.push_back(Piece { arrives: self.last_arrival, bytes });
        self.last_arrival
    }

    /// Bytes under way.
    pub(crate) fn in_flight(&self) -> bool {
        self.unread > 0
    }

    /// Flips one bit of what is under way; false when there is nothing.
    pub(crate) fn damage(&mut self, at: u64) -> bool {
        let total: usize = self.flying.iter().map(|p| p.bytes.len()).sum();
        if total == 0 {
            return false;
        }
        let mut bit = usize::try_from(at % (total as u64 * 8)).expect("of a usize");
        for piece in &mut self.flying {
            if bit < piece.bytes.len() * 8 {
                piece.bytes[bit / 8] ^= 1 << (bit % 8);
                return true;
            }
            bit -= piece.bytes.len() * 8;
        }
        false
    }

    /// The stream ends: of what is under way only a part, `at` of it, still comes; gives when the last of it does.
    pub(crate) fn cut(&mut self, at: u64) -> u64 {
        let total: usize = self.flying.iter().map(|p| p.bytes.len()).sum();
        let mut left =
            if total == 0 || self.stalled { 0 } else { usize::try_from(at % total as u64).expect("of a usize") };
        let mut kept = VecDeque::new();
        for mut piece in std::mem::take(&mut self.flying) {
            piece.bytes.truncate(left);
            left -= piece.bytes.len();
            if !piece.bytes.is_empty() {
                kept.push_back(piece);
            }
        }
        self.flying = kept;
        self.flying.back().map_or(0, |p| p.arrives)
    }

    /// Lets arrive what is due at `now`.
    pub(crate) fn arrive(&mut self, now: u64) {
        while !self.stalled && self.flying.front().is_some_and(|p| p.arrives <= now) {
            let piece = self.flying.pop_front().expect("there is one");
            if self.arrived.is_empty() {
                self.arrived = piece.bytes;
            } else {
                self.arrived.extend_from_slice(&piece.bytes);
            }
        }
    }

    /// The receiver reads `len` bytes, if that many have arrived.
    fn take(&mut self, len: usize) -> Option<Vec<u8>> {
        let bytes = self.arrived.get(self.read..self.read + len)?.to_vec();
        self.read += len;
        self.unread -= len;
        if self.read == self.arrived.len() {
            self.arrived.clear();
            self.read = 0;
        }
        Some(bytes)
    }

    /// The next whole frame of what has arrived.
    pub(crate) fn next(&mut self) -> Option<Result<Arrived, String>> {
        if self.header.is_none() {
            let bytes = self.take(HEADER_LEN)?;
            match self.reader.header(bytes.as_slice().try_into().expect("a header's length")) {
                Ok(header) => self.header = Some(header),
                Err(e) => return Some(Err(e.to_string())),
            }
        }
        let header = self.header.expect("just read");
        let body = self.take(header.body_len)?;
        self.header = None;
        Some(match header.decode(&body) {
            Ok(message) => {
                let payload = (message.carries_payload() && !body.is_empty()).then_some(body);
                Ok(Arrived { term: header.term, message, payload })
            }
            Err(e) => Err(e.to_string()),
        })
    }
}

/// A link between two nodes.
#[derive(Clone, Debug)]
pub(crate) struct Link {
    /// Its identity.
    pub(crate) connection: ConnectionId,
    /// The nodes at its ends, the lower first. What follows is by end.
    pub(crate) ends: [usize; 2],
    /// What each node sends.
    pub(crate) streams: [Stream; 2],
    /// Which nodes have been told that it is up.
    pub(crate) up: [bool; 2],
    /// Which nodes have been told that it is down, or have closed it themselves.
    pub(crate) down: [bool; 2],
    /// It was cut: nothing more is sent.
    pub(crate) cut: bool,
}

impl Link {
    /// A new link.
    pub(crate) fn new(connection: ConnectionId, ends: [usize; 2]) -> Self {
        let stream = || Stream::new(connection);
        Self { connection, ends, streams: [stream(), stream()], up: [false; 2], down: [false; 2], cut: false }
    }

    /// The end at which a node is.
    pub(crate) fn end(&self, node: usize) -> usize {
        usize::from(self.ends[1] == node)
    }

    /// The node at the other end.
    pub(crate) fn other(&self, node: usize) -> usize {
        self.ends[1 - self.end(node)]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use repblk::units::{ByteRange, Seq};

    fn write(n: u64) -> Message {
        Message::Write { seq: Seq(n), range: ByteRange::new(0, 512), resync: false }
    }

    #[test]
    fn a_cut_stream_gives_whole_frames_only() {
        for at in 0..1200 {
            let mut stream = Stream::new(ConnectionId(9));
            stream.send(Term(1), &write(1), &[1; 512], 5);
            stream.send(Term(1), &write(2), &[2; 512], 6);
            stream.cut(at);
            stream.arrive(10);
            let frames = std::iter::from_fn(|| stream.next()).collect::<Vec<_>>();
            let whole = usize::try_from(at % 1168).expect("small") / 584;
            assert_eq!(frames.len(), whole);
            assert!(frames.iter().all(Result::is_ok));
        }
    }

    #[test]
    fn every_changed_bit_is_refused() {
        for bit in (0..584 * 8).step_by(7) {
            let mut stream = Stream::new(ConnectionId(9));
            stream.send(Term(1), &write(1), &[1; 512], 5);
            assert!(stream.damage(bit));
            stream.arrive(10);
            assert!(!matches!(stream.next(), Some(Ok(_))), "bit {bit} slipped through");
        }
    }
}
