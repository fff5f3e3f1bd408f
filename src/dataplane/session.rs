//! One NBD client: its requests as they come, its replies as they may go.
//!
//! The session parses, refuses what the protocol refuses, and bounds what a client may have outstanding; what a request does is
//! decided elsewhere. A client that sends too much or reads too little stops only itself: what it may hold by that is its
//! [`Share`], and a request that is larger goes to the machine in pieces. A write's are those that arrive; a read's follow each
//! other as the client takes them, and then the reply stands alone: nothing else is under way until its end.

use super::asked::{Asked, AskedNo, Requests};
use super::line::Line;
use super::mailbox::ClientManners;
use super::outbox::Outbox;
use super::pool::{Area, Pool, block_len};
use super::receiver::{Body, Received, Receiver};
use super::share::Share;
use crate::nbd::{self, ExportInfo, Handover, Header, MetaContexts, Mode, NbdError, ReplyTo, Request, Terms};
use crate::units::{BLOCK_SIZE, BufId, ByteRange, GenerationId, Moment, SessionId};
use crate::volume::io::HostError;

/// Pieces of requests a client may have outstanding; more are left in its socket.
const IN_FLIGHT_MAX: usize = 128;
/// Longest piece of a write that had to wait for its memory, in bytes.
const SCARCE_PIECE: usize = 64 << 10;

/// What a request was, for its reply.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Kind {
    Read,
    Write,
    Flush,
    Hole,
}

/// A request, or a piece of one, that is ready for the machine.
#[derive(Debug)]
pub(super) struct Arrived {
    pub(super) request: Request,
    pub(super) to: ReplyTo,
    /// The payload of a write.
    pub(super) payload: Option<BufId>,
    /// The request that this is a piece of, and whether it is the last one.
    pub(super) piece_of: Option<(AskedNo, bool)>,
}

/// What the machine's answer led to.
#[derive(Debug)]
pub(super) enum Outcome {
    /// More of the request is to come.
    Pending,
    /// The request is answered.
    Done(Asked),
    /// The request is done when a flush with this tag is.
    Flush(u64),
}

/// Why a connection cannot go on.
pub(super) type Why = String;

#[derive(Debug)]
enum Stage {
    /// A header is next.
    Header,
    /// The payload of this write is arriving. The machine has all before `rest`.
    Payload { to: ReplyTo, range: ByteRange, fua: bool, rest: ByteRange, no: Option<AskedNo> },
    /// This read awaits its share of memory. With a number, it is answered in pieces, and all before `rest` is on its way.
    Read { to: ReplyTo, df: bool, rest: ByteRange, no: Option<AskedNo> },
    /// The payload of a refused request is thrown away.
    Refused { to: ReplyTo, reject: nbd::Reject },
    /// The client said goodbye.
    Disconnecting,
}

/// A connected client.
#[derive(Debug)]
pub(super) struct Session {
    pub(super) id: SessionId,
    pub(super) line: Line,
    pub(super) from: String,
    /// As [`ClientManners::follows`].
    pub(super) follows: Option<GenerationId>,
    /// The socket may have bytes to read.
    pub(super) readable: bool,
    /// The client has ended: the end is still to be read, and no event will say so again.
    pub(super) ending: bool,
    /// The socket may take bytes.
    pub(super) writable: bool,
    /// Epoll tells when it does.
    pub(super) room_watched: bool,
    /// In the queue for memory.
    pub(super) queued_for_memory: bool,
    /// What it may hold.
    pub(super) share: Share,
    /// When it was last seen to be busy.
    pub(super) busy_at: Moment,
    /// Sending failed: replies are dropped, but what the client sent before it went is still done.
    deaf: bool,
    terms: Terms,
    stage: Stage,
    receiver: Receiver,
    outbox: Outbox,
    requests: Requests,
    /// Memory that outstanding reads take, in bytes.
    reading: usize,
}

impl Session {
    /// A session on a non-blocking socket, for an export of `size` bytes.
    pub(super) fn new(
        id: SessionId,
        line: Line,
        manners: ClientManners,
        size: u64,
        early: Vec<u8>,
        from: String,
        share: Share,
    ) -> Self {
        let mode = match manners {
            ClientManners { extended: true, .. } => Mode::Extended,
            ClientManners { structured: true, .. } => Mode::Structured,
            ClientManners { .. } => Mode::Simple,
        };
        let contexts = MetaContexts { allocation: manners.allocation_context.is_some() };
        let terms = Handover { export: ExportInfo::new(String::new(), size), mode, contexts }.terms();
        Self {
            id,
            line,
            from,
            follows: manners.follows,
            readable: true,
            ending: false,
            writable: true,
            room_watched: false,
            queued_for_memory: false,
            share,
            busy_at: Moment::default(),
            deaf: false,
            terms,
            stage: Stage::Header,
            receiver: Receiver::new(Area::Clients, early),
            outbox: Outbox::default(),
            requests: Requests::default(),
            reading: 0,
        }
    }

    /// Requests, and pieces of them, that the machine has not answered.
    pub(super) fn outstanding(&self) -> usize {
        self.requests.pieces()
    }

    /// Memory that reads and replies take until the client has read them, in bytes.
    pub(super) fn unread(&self) -> usize {
        self.reading + self.outbox.held()
    }

    /// True while bytes from the client that cannot go to the machine yet take memory of the pool.
    pub(super) fn holds_received(&self) -> bool {
        self.receiver.holds_memory()
    }

    /// True while the client may have one more request outstanding.
    fn may_ask(&self) -> bool {
        !matches!(self.stage, Stage::Disconnecting)
            && self.requests.pieces() < IN_FLIGHT_MAX
            && self.unread() < self.share.unread
    }

    /// True while the next step needs bytes from the client.
    fn wants_bytes(&self) -> bool {
        !matches!(self.stage, Stage::Read { .. })
    }

    /// True when the session could go on without anything happening outside.
    pub(super) fn has_work(&self) -> bool {
        !self.queued_for_memory
            && self.may_ask()
            && match self.stage {
                Stage::Read { rest, no, .. } => self.readable_len(rest, no).is_some(),
                _ => self.readable || self.receiver.has_window() || self.receiver.has_early(),
            }
    }

    /// How much of the read may go to the machine now. Whole where the share allows: then an error can still be told.
    fn readable_len(&self, rest: ByteRange, no: Option<AskedNo>) -> Option<u64> {
        if rest.is_empty() {
            return None;
        }
        let whole = usize::try_from(rest.len()).expect("at most the maximum payload");
        let idle = self.requests.pieces() == 0;
        let (len, free) = if no.is_none() && block_len(whole) <= self.share.unread {
            (whole, true)
        } else {
            (whole.min(self.share.unread / 2), idle)
        };
        let fits = self.unread() + block_len(len) <= self.share.unread || self.unread() == 0;
        (free && fits).then(|| u64::try_from(len).expect("usize has at most 64 bits"))
    }

    /// True when the client has nothing under way, has taken its replies, and owes no part of a request.
    pub(super) fn is_idle(&self) -> bool {
        let quiet = self.requests.pieces() == 0 && self.is_flushed() && self.unread() == 0;
        quiet && matches!(self.stage, Stage::Header) && !self.receiver.holds_memory() && !self.readable
    }

    /// True when a receive needs fresh memory.
    pub(super) fn needs_memory(&self) -> bool {
        self.wants_bytes() && !self.receiver.holds_memory()
    }

    /// True when everything the client asked before its goodbye is done.
    pub(super) fn is_finished(&self) -> bool {
        matches!(self.stage, Stage::Disconnecting) && self.requests.pieces() == 0 && (self.deaf || self.is_flushed())
    }

    /// Receives once, unless received bytes wait. `scarce` when others wait for memory.
    ///
    /// # Errors
    /// Why the connection is over.
    pub(super) fn receive(&mut self, pool: &mut Pool, scarce: bool) -> Result<Received, Why> {
        if self.receiver.has_window() || !self.wants_bytes() {
            return Ok(Received::Nothing);
        }
        let received = match self.receiver.receive(&mut self.line, pool, self.share.receive, scarce) {
            Ok(Received::End) => return Err("the client closed the connection".to_owned()),
            Ok(received) => received,
            Err(e) => return Err(format!("receiving from the client failed: {e}")),
        };
        match received {
            Received::Bytes { drained, .. } => self.readable = !drained || self.ending,
            Received::Nothing => self.readable = false,
            Received::End | Received::NoMemory => {}
        }
        Ok(received)
    }

    /// True while a payload waits for memory.
    pub(super) fn waits_for_memory(&self) -> bool {
        self.receiver.waits_for_memory()
    }

    /// Gives a waiting payload its memory, if there is any.
    pub(super) fn grant(&mut self, pool: &mut Pool) -> bool {
        self.receiver.grant(pool)
    }

    /// The next request that came whole and may be executed, as long as the client may have one more outstanding.
    /// Refusals are answered here. `others_wait` when others wait for memory.
    ///
    /// # Errors
    /// Why the connection is over.
    pub(super) fn next(&mut self, pool: &mut Pool, others_wait: bool) -> Result<Option<Arrived>, Why> {
        let mode = self.terms.mode;
        while self.may_ask() {
            match self.stage {
                Stage::Header => {
                    let len = nbd::header_len(mode);
                    let Some(bytes) = self.receiver.header(pool, len) else {
                        // A wrong magic number is noticed before the rest has come.
                        nbd::parse_header(&self.terms, self.receiver.partial_header()).map_err(|e| e.to_string())?;
                        return Ok(None);
                    };
                    let header = nbd::parse_header(&self.terms, &bytes[..len])
                        .map_err(|e| e.to_string())?
                        .expect("the header is whole");
                    if let Some(arrived) = self.begin(pool, header, others_wait) {
                        return Ok(Some(arrived));
                    }
                }
                Stage::Payload { .. } => return Ok(self.written(pool, others_wait)),
                Stage::Read { to, df, rest, no } => return Ok(self.read(to, df, rest, no)),
                Stage::Refused { to, reject } => {
                    if !self.receiver.is_drained(pool) {
                        return Ok(None);
                    }
                    self.stage = Stage::Header;
                    self.refuse(to, reject.error, reject.message);
                }
                Stage::Disconnecting => return Ok(None),
            }
        }
        Ok(None)
    }

    fn begin(&mut self, pool: &mut Pool, header: Header, others_wait: bool) -> Option<Arrived> {
        let mode = self.terms.mode;
        let (to, payload_len) = (header.reply_to(mode), header.payload_len(mode));
        match nbd::validate(&self.terms, &header) {
            Ok(Request::Disconnect) => {
                self.stage = Stage::Disconnecting;
                self.receiver.clear(pool);
                None
            }
            Ok(Request::Write { range, fua }) => {
                assert_eq!(range.len(), payload_len, "validation compares them");
                self.stage = Stage::Payload { to, range, fua, rest: range, no: None };
                self.await_piece(pool, range, others_wait);
                None
            }
            Ok(Request::Read { range, df }) => {
                self.stage = Stage::Read { to, df, rest: range, no: None };
                None
            }
            Ok(request) if payload_len == 0 => Some(Arrived { request, to, payload: None, piece_of: None }),
            other => {
                let odd = nbd::Reject { error: NbdError::Invalid, message: "the command takes no payload" };
                self.stage = Stage::Refused { to, reject: other.err().unwrap_or(odd) };
                self.receiver.begin_drain(payload_len);
                None
            }
        }
    }

    /// Makes ready for the next piece of a write, which ends on a block so that no two pieces share one.
    fn await_piece(&mut self, pool: &mut Pool, rest: ByteRange, others_wait: bool) {
        let missing = usize::try_from(rest.len()).expect("at most the maximum payload");
        let beyond_block = usize::try_from(rest.start() % BLOCK_SIZE).expect("less than a block");
        let up_to = |len: usize| if missing <= len { missing } else { len - beyond_block };
        let body = Body {
            len: up_to(self.share.receive),
            scarce_len: up_to(self.share.receive.min(SCARCE_PIECE)),
            message_left: missing,
        };
        self.receiver.begin_body(pool, body, others_wait);
    }

    /// The piece of a write that has come whole.
    fn written(&mut self, pool: &mut Pool, others_wait: bool) -> Option<Arrived> {
        let Stage::Payload { to, range, fua, rest, ref mut no } = self.stage else { unreachable!("asked then only") };
        let payload = self.receiver.take_body(pool)?;
        let (piece, rest) = rest.split_at(u64::from(pool.whole(payload).len));
        let arrived = if piece == range {
            Arrived { request: Request::Write { range, fua }, to, payload: Some(payload), piece_of: None }
        } else {
            let no = *no.get_or_insert_with(|| self.requests.begin(to, Kind::Write, range, fua));
            let request = Request::Write { range: piece, fua: false };
            Arrived { request, to, payload: Some(payload), piece_of: Some((no, rest.is_empty())) }
        };
        if rest.is_empty() {
            self.stage = Stage::Header;
        } else {
            self.stage = Stage::Payload { to, range, fua, rest, no: arrived.piece_of.map(|(no, _)| no) };
            self.await_piece(pool, rest, others_wait);
        }
        Some(arrived)
    }

    /// As much of a read as may be on its way.
    fn read(&mut self, to: ReplyTo, df: bool, rest: ByteRange, no: Option<AskedNo>) -> Option<Arrived> {
        let len = self.readable_len(rest, no)?;
        if no.is_none() && len == rest.len() {
            self.stage = Stage::Header;
            return Some(Arrived { request: Request::Read { range: rest, df }, to, payload: None, piece_of: None });
        }
        let no = no.unwrap_or_else(|| self.requests.begin(to, Kind::Read, rest, false));
        let (piece, rest) = rest.split_at(len);
        // Until the last piece is answered nothing else is begun, whose reply might come between.
        self.stage = Stage::Read { to, df, rest, no: Some(no) };
        let request = Request::Read { range: piece, df };
        Some(Arrived { request, to, payload: None, piece_of: Some((no, rest.is_empty())) })
    }

    /// Notes a request or a piece that goes to the machine; its tag.
    pub(super) fn admit(&mut self, of: Option<(AskedNo, bool)>, to: ReplyTo, kind: Kind, range: ByteRange) -> u64 {
        if kind == Kind::Read {
            self.reading += read_len(range);
        }
        let (no, last) = of.unwrap_or_else(|| (self.requests.begin(to, kind, range, false), true));
        self.requests.piece(no, range, last)
    }

    /// Takes the machine's answer to `tag`, and queues the reply when it is the last; the buffers are the data of a read, and
    /// become the session's.
    ///
    /// # Errors
    /// Why the connection is over: what was promised cannot be said any more.
    ///
    /// # Panics
    /// When no such piece is outstanding, or the data is not as long as what was asked.
    pub(super) fn answer(
        &mut self,
        pool: &mut Pool,
        tag: u64,
        result: Result<(), HostError>,
        data: impl Iterator<Item = BufId>,
    ) -> Result<Outcome, Why> {
        let answered = self.requests.answer(tag, result.is_ok());
        let Asked { to, kind, range, flush_after, failed, .. } = answered.asked;
        if kind == Kind::Read {
            self.reading -= read_len(answered.range);
            let first = answered.range.start() == range.start();
            if result.is_ok() {
                if first {
                    let head = nbd::reply::read(to, range);
                    self.outbox.push_encoded(|out| out.extend_from_slice(head.as_slice()));
                }
                let before = self.outbox.queued();
                data.for_each(|buf| self.outbox.push_slice(pool, pool.whole(buf)));
                let queued = u64::try_from(self.outbox.queued() - before).expect("usize has at most 64 bits");
                assert_eq!(queued, answered.range.len(), "a read is answered with all its bytes");
            } else {
                data.for_each(|buf| pool.release(buf));
                if !first {
                    return Err("no copy could serve the rest of a read whose reply had begun".to_owned());
                }
                self.fail(to);
            }
            // After a failure the rest is not asked for.
            if result.is_ok() && !answered.complete {
                return Ok(Outcome::Pending);
            }
            if matches!(self.stage, Stage::Read { no, .. } if no == Some(answered.no)) {
                self.stage = Stage::Header;
            }
        } else {
            if !answered.complete {
                return Ok(Outcome::Pending);
            }
            if failed {
                self.fail(to);
            } else if flush_after {
                return Ok(Outcome::Flush(self.requests.flush(answered.no)));
            } else {
                self.succeed(to);
            }
        }
        self.requests.end(answered.no);
        Ok(Outcome::Done(answered.asked))
    }

    fn fail(&mut self, to: ReplyTo) {
        self.refuse(to, NbdError::Io, "no copy of the volume could serve the request");
    }

    /// Queues success of a request without data.
    pub(super) fn succeed(&mut self, to: ReplyTo) {
        let head = nbd::reply::success(to);
        self.outbox.push_encoded(|out| out.extend_from_slice(head.as_slice()));
    }

    /// Queues success of a request for no bytes.
    pub(super) fn succeed_at_nothing(&mut self, to: ReplyTo) {
        let head = nbd::reply::nothing(to);
        self.outbox.push_encoded(|out| out.extend_from_slice(head.as_slice()));
    }

    /// Queues an error.
    pub(super) fn refuse(&mut self, to: ReplyTo, error: NbdError, message: &str) {
        self.outbox.push_encoded(|out| nbd::reply::error(to, error, message, out));
    }

    /// Queues the answer to a block status request.
    pub(super) fn tell_status(&mut self, to: ReplyTo, extents: &nbd::Extents) {
        self.outbox.push_encoded(|out| nbd::reply::block_status(to, extents, out));
    }

    /// True when nothing waits to be sent.
    fn is_flushed(&self) -> bool {
        self.outbox.is_empty() && self.line.is_flushed()
    }

    /// Sends what the socket takes. A client that has gone is noticed by the next receive, after what it sent before.
    pub(super) fn flush(&mut self, pool: &mut Pool) {
        if self.is_flushed() || !(self.writable || self.deaf) {
            return;
        }
        self.deaf |= self.outbox.flush(&mut self.line, pool).is_err();
        if self.deaf {
            self.outbox.clear(pool);
            self.readable = true;
        }
        self.writable = self.deaf || self.is_flushed();
    }

    /// Lets go of all memory.
    pub(super) fn clear(&mut self, pool: &mut Pool) {
        self.receiver.clear(pool);
        self.outbox.clear(pool);
    }
}

/// Memory that a read takes, in bytes.
fn read_len(range: ByteRange) -> usize {
    block_len(usize::try_from(range.len()).expect("at most the maximum payload"))
}
