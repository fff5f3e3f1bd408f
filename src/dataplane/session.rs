//! One NBD client: its requests as they come, its replies as they may go.
//!
//! The session parses, refuses what the protocol refuses, and bounds what a client may have outstanding; what a request does is
//! decided elsewhere. A client that sends too much or reads too little stops only itself.

use socket2::Socket;

use super::mailbox::ClientManners;
use super::outbox::Outbox;
use super::pool::{Area, Pool};
use super::receiver::{Received, Receiver};
use crate::nbd::{self, ExportInfo, Handover, Header, MetaContexts, Mode, NbdError, ReplyTo, Request, Terms};
use crate::units::{BufId, ByteRange, GenerationId, Moment, SessionId};
use crate::volume::io::HostError;

/// Requests a client may have outstanding; more are left in its socket.
const IN_FLIGHT_MAX: usize = 128;
/// Bytes of reads a client may have outstanding or unsent; one read may exceed it alone.
const READ_BYTES_MAX: u64 = 8 << 20;
/// Encoded replies a client may leave unread.
const UNREAD_MAX: usize = 16 << 20;

/// What a request was, for its reply.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Kind {
    Read,
    Write,
    Flush,
    Hole,
}

/// A request that the machine has.
#[derive(Clone, Copy, Debug)]
pub(super) struct Outstanding {
    to: ReplyTo,
    pub(super) kind: Kind,
    pub(super) range: ByteRange,
}

/// A request that came whole.
#[derive(Debug)]
pub(super) struct Arrived {
    pub(super) request: Request,
    pub(super) to: ReplyTo,
    /// The payload of a write.
    pub(super) payload: Option<BufId>,
}

/// Why a connection cannot go on.
pub(super) type Why = String;

#[derive(Debug)]
enum Stage {
    /// A header is next.
    Header,
    /// The payload of this write is arriving.
    Payload { header: Header, request: Request },
    /// The payload of a refused request is thrown away.
    Refused { to: ReplyTo, reject: nbd::Reject },
    /// The client said goodbye.
    Disconnecting,
}

/// A connected client.
#[derive(Debug)]
pub(super) struct Session {
    pub(super) id: SessionId,
    pub(super) socket: Socket,
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
    /// When bytes last moved in either direction.
    pub(super) moved: Moment,
    /// Sending failed: replies are dropped, but what the client sent before it went is still done.
    deaf: bool,
    terms: Terms,
    stage: Stage,
    receiver: Receiver,
    outbox: Outbox,
    outstanding: Vec<Option<Outstanding>>,
    free_tags: Vec<usize>,
    reading: u64,
}

impl Session {
    /// A session on a non-blocking socket, for an export of `size` bytes.
    pub(super) fn new(
        id: SessionId,
        socket: Socket,
        manners: ClientManners,
        size: u64,
        early: Vec<u8>,
        from: String,
        now: Moment,
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
            socket,
            from,
            follows: manners.follows,
            readable: true,
            ending: false,
            writable: true,
            room_watched: false,
            queued_for_memory: false,
            moved: now,
            deaf: false,
            terms,
            stage: Stage::Header,
            receiver: Receiver::new(Area::Clients, early),
            outbox: Outbox::default(),
            outstanding: Vec::new(),
            free_tags: Vec::new(),
            reading: 0,
        }
    }

    /// Requests that the machine has.
    pub(super) fn in_flight(&self) -> usize {
        self.outstanding.len() - self.free_tags.len()
    }

    /// True while the client may have one more request outstanding.
    fn may_ask(&self) -> bool {
        let unsent = self.reading + u64::try_from(self.outbox.queued()).unwrap_or(u64::MAX);
        !matches!(self.stage, Stage::Disconnecting)
            && self.in_flight() < IN_FLIGHT_MAX
            && unsent < READ_BYTES_MAX
            && self.outbox.queued() < UNREAD_MAX
    }

    /// True when the session could go on without anything happening outside.
    pub(super) fn has_work(&self) -> bool {
        !self.queued_for_memory
            && self.may_ask()
            && (self.readable || self.receiver.has_window() || self.receiver.has_early())
    }

    /// True when a receive needs fresh memory.
    pub(super) fn needs_memory(&self) -> bool {
        !self.receiver.holds_memory()
    }

    /// True when pool memory is held for bytes that this client has yet to send or to read.
    pub(super) fn holds_up_memory(&self) -> bool {
        (self.receiver.holds_memory() && !self.readable) || (!self.outbox.is_empty() && !self.writable)
    }

    /// True when everything the client asked before its goodbye is done.
    pub(super) fn is_finished(&self) -> bool {
        matches!(self.stage, Stage::Disconnecting) && self.in_flight() == 0 && self.outbox.is_empty()
    }

    /// Receives once, unless received bytes wait. `scarce` when others wait for memory.
    ///
    /// # Errors
    /// Why the connection is over.
    pub(super) fn receive(&mut self, pool: &mut Pool, scarce: bool, now: Moment) -> Result<Received, Why> {
        if self.receiver.has_window() {
            return Ok(Received::Nothing);
        }
        let received = match self.receiver.receive(&self.socket, pool, scarce) {
            Ok(Received::End) => return Err("the client closed the connection".to_owned()),
            Ok(received) => received,
            Err(e) => return Err(format!("receiving from the client failed: {e}")),
        };
        match received {
            Received::Bytes { drained, .. } => {
                self.moved = now;
                self.readable = !drained || self.ending;
            }
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
                Stage::Payload { header, request } => {
                    let Some(payload) = self.receiver.take_body(pool) else { return Ok(None) };
                    self.stage = Stage::Header;
                    return Ok(Some(Arrived { request, to: header.reply_to(mode), payload: Some(payload) }));
                }
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
            Ok(request @ Request::Write { range, .. }) => {
                assert_eq!(range.len(), payload_len, "validation compares them");
                let len = usize::try_from(payload_len).expect("at most the maximum payload");
                self.stage = Stage::Payload { header, request };
                self.receiver.begin_body(pool, len, others_wait);
                None
            }
            Ok(request) if payload_len == 0 => Some(Arrived { request, to, payload: None }),
            other => {
                let odd = nbd::Reject { error: NbdError::Invalid, message: "the command takes no payload" };
                self.stage = Stage::Refused { to, reject: other.err().unwrap_or(odd) };
                self.receiver.begin_drain(payload_len);
                None
            }
        }
    }

    /// Notes a request that goes to the machine; its tag.
    pub(super) fn admit(&mut self, to: ReplyTo, kind: Kind, range: ByteRange) -> u64 {
        if kind == Kind::Read {
            self.reading += range.len();
        }
        let entry = Some(Outstanding { to, kind, range });
        let tag = match self.free_tags.pop() {
            Some(tag) => {
                self.outstanding[tag] = entry;
                tag
            }
            None => {
                self.outstanding.push(entry);
                self.outstanding.len() - 1
            }
        };
        u64::try_from(tag).expect("bounded by IN_FLIGHT_MAX")
    }

    /// Queues the machine's answer to `tag`; the buffers are the data of a read, and become the session's.
    ///
    /// # Panics
    /// When no such request is outstanding, or the data is not as long as what was asked.
    pub(super) fn answer(
        &mut self,
        pool: &mut Pool,
        tag: u64,
        result: Result<(), HostError>,
        data: impl Iterator<Item = BufId>,
    ) -> Outstanding {
        let tag = usize::try_from(tag).expect("tags are indices");
        let request = self.outstanding[tag].take().expect("each request is answered once");
        self.free_tags.push(tag);
        let read = request.kind == Kind::Read;
        if read {
            self.reading -= request.range.len();
        }
        match result {
            Ok(()) if read => {
                let head = nbd::reply::read(request.to, request.range);
                self.outbox.push_encoded(|out| out.extend_from_slice(head.as_slice()));
                let before = self.outbox.queued();
                for buf in data {
                    self.outbox.push_slice(pool.whole(buf));
                }
                let sent = u64::try_from(self.outbox.queued() - before).expect("usize has at most 64 bits");
                assert_eq!(sent, request.range.len(), "a read is answered with all its bytes");
            }
            Ok(()) => self.succeed(request.to),
            Err(_) => {
                data.for_each(|buf| pool.release(buf));
                self.refuse(request.to, NbdError::Io, "no copy of the volume could serve the request");
            }
        }
        request
    }

    /// Queues success of a request without data.
    pub(super) fn succeed(&mut self, to: ReplyTo) {
        let head = nbd::reply::success(to);
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

    /// Sends what the socket takes. A client that has gone is noticed by the next receive, after what it sent before.
    pub(super) fn flush(&mut self, pool: &mut Pool, now: Moment) {
        if self.outbox.is_empty() || !(self.writable || self.deaf) {
            return;
        }
        if !self.deaf {
            match self.outbox.flush(&self.socket, pool) {
                Ok(0) => {}
                Ok(_) => self.moved = now,
                Err(_) => self.deaf = true,
            }
        }
        if self.deaf {
            self.outbox.clear(pool);
            self.readable = true;
        }
        self.writable = self.outbox.is_empty();
    }

    /// Lets go of all memory.
    pub(super) fn clear(&mut self, pool: &mut Pool) {
        self.receiver.clear(pool);
        self.outbox.clear(pool);
    }
}
