//! One link to a peer: frames in, frames out.
//!
//! A frame's header is checked before its body is awaited and the body before anyone sees it. Whatever does not fit ends
//! the link: the two machines agree again on the next one.

use std::os::fd::AsFd;
use std::time::Duration;

use socket2::{Domain, Socket, TcpKeepalive};

use super::line::{Line, Negotiated};
use super::outbox::Outbox;
use super::pool::{Area, Pool};
use super::receiver::{Body, CHUNK_LEN, Received, Receiver};
use super::sys;
use crate::meta::Page;
use crate::units::{BufId, ConnectionId, Moment, PeerNo, Term};
use crate::volume::io::SendBody;
use crate::wire::frame::{FrameHeader, HEADER_LEN};
use crate::wire::{FrameReader, FrameWriter, Message};

/// More than this waiting means that the machine's limits were broken, or the peer is dead: the link is closed.
const QUEUED_MAX: usize = 96 << 20;
/// How long a link that is being closed may take to send what waits.
const CLOSING_TIME: Duration = Duration::from_secs(1);
/// Unacknowledged bytes older than this end the connection in the kernel; the machine's own time-outs are shorter.
const USER_TIMEOUT: Duration = Duration::from_secs(10);

/// A peer that answers within this is on the same local network.
const NEAR: Duration = Duration::from_millis(1);

/// A message that came whole.
#[derive(Debug)]
pub(super) enum Incoming {
    /// With its payload, if it has one.
    Message { term: Term, message: Message, buf: Option<BufId> },
    /// A bitmap page, out of the pool already.
    Page { index: u64, page: Box<Page> },
}

/// A link.
#[derive(Debug)]
pub(super) struct Link {
    pub(super) peer: PeerNo,
    pub(super) connection: ConnectionId,
    /// Names the link towards epoll.
    pub(super) token: u64,
    pub(super) line: Line,
    /// The socket may have bytes to read.
    pub(super) readable: bool,
    /// The peer has ended: the end is still to be read, and no event will say so again.
    pub(super) ending: bool,
    /// The socket may take bytes.
    pub(super) writable: bool,
    /// Epoll tells when it does.
    pub(super) room_watched: bool,
    /// The machine closed it: until when it may send the rest, and why it was closed.
    pub(super) closing: Option<(Moment, String)>,
    /// Frees of the links' area when there was no memory.
    starved: Option<u64>,
    /// Received bytes were left for the next turn.
    left: bool,
    /// The end of the stream is said.
    ended: bool,
    reader: FrameReader,
    writer: FrameWriter,
    receiver: Receiver,
    outbox: Outbox,
    awaited: Option<FrameHeader>,
}

impl Link {
    /// A link; its socket is made non-blocking by whoever watches it.
    pub(super) fn new(peer: PeerNo, connection: ConnectionId, token: u64, negotiated: Negotiated) -> Self {
        let line = Line::new(negotiated, CHUNK_LEN);
        tune(line.socket());
        Self {
            peer,
            connection,
            token,
            line,
            readable: true,
            ending: false,
            writable: true,
            room_watched: false,
            closing: None,
            starved: None,
            left: false,
            ended: false,
            reader: FrameReader::new(connection),
            writer: FrameWriter::new(connection),
            receiver: Receiver::new(Area::Links, Vec::new()),
            outbox: Outbox::default(),
            awaited: None,
        }
    }

    /// True when the link could go on without anything happening outside.
    pub(super) fn has_work(&self, pool: &Pool) -> bool {
        self.left || (self.readable && self.starved.is_none_or(|frees| frees != pool.frees(Area::Links)))
    }

    /// Says that what came and was not looked at is the next turn's.
    pub(super) fn leave_rest(&mut self) {
        self.left = self.receiver.has_window();
    }

    /// True when nothing waits to be sent.
    pub(super) fn is_flushed(&self) -> bool {
        self.outbox.is_empty() && self.line.is_flushed()
    }

    /// Receives once; the bytes that came.
    ///
    /// # Errors
    /// Why the link is over.
    pub(super) fn receive(&mut self, pool: &mut Pool) -> Result<usize, String> {
        self.starved = None;
        if !self.receiver.grant(pool) {
            self.starved = Some(pool.frees(Area::Links));
            return Ok(0);
        }
        match self.receiver.receive(&mut self.line, pool, CHUNK_LEN, false) {
            Ok(Received::Bytes { count, drained }) => {
                self.readable = !drained || self.ending;
                Ok(count)
            }
            Ok(Received::Nothing) => {
                self.readable = false;
                Ok(0)
            }
            Ok(Received::NoMemory) => {
                self.starved = Some(pool.frees(Area::Links));
                Ok(0)
            }
            Ok(Received::End) => Err("the peer closed the link".to_owned()),
            Err(e) => Err(format!("receiving from the peer failed: {e}")),
        }
    }

    /// The next message that came whole.
    ///
    /// # Errors
    /// Why the link is over.
    pub(super) fn next(&mut self, pool: &mut Pool) -> Result<Option<Incoming>, String> {
        self.left = false;
        let header = match self.awaited {
            Some(header) => header,
            None => {
                let Some(bytes) = self.receiver.header(pool, HEADER_LEN) else { return Ok(None) };
                let header = self.reader.header(&bytes).map_err(|e| e.to_string())?;
                if header.body_len == 0 {
                    let message = header.decode(&[]).map_err(|e| e.to_string())?;
                    // An empty body is no buffer, also for a message that may carry one.
                    return Ok(Some(Incoming::Message { term: header.term, message, buf: None }));
                }
                self.receiver.begin_body(pool, Body::whole(header.body_len), false);
                self.awaited = Some(header);
                header
            }
        };
        let Some(buf) = self.receiver.take_body(pool) else { return Ok(None) };
        self.awaited = None;
        let bytes = pool.bytes(pool.whole(buf));
        let incoming = header.decode(bytes).map(|message| match message {
            Message::BitmapPage { index } => {
                let page = Box::new(bytes.try_into().expect("decoding checks the length"));
                Incoming::Page { index, page }
            }
            message => {
                let buf = message.carries_payload().then_some(buf);
                Incoming::Message { term: header.term, message, buf }
            }
        });
        if !matches!(incoming, Ok(Incoming::Message { buf: Some(_), .. })) {
            pool.release(buf);
        }
        incoming.map(Some).map_err(|e| e.to_string())
    }

    /// Queues a frame.
    pub(super) fn push(&mut self, pool: &mut Pool, term: Term, message: &Message, body: Option<SendBody>) {
        let writer = &mut self.writer;
        match body {
            None => self.outbox.push_encoded(|out| writer.encode(term, message, &[], out)),
            Some(SendBody::Slice(slice)) => {
                let bytes = pool.bytes(slice);
                self.outbox.push_encoded(|out| writer.encode(term, message, bytes, out));
                pool.retain(slice.buf);
                self.outbox.push_slice(pool, slice);
            }
            Some(SendBody::Page(page)) => self.outbox.push_encoded(|out| {
                writer.encode(term, message, page.as_slice(), out);
                out.extend_from_slice(page.as_slice());
            }),
        }
    }

    /// Sends what the socket takes; the bytes that went.
    ///
    /// # Errors
    /// Why the link is over.
    pub(super) fn flush(&mut self, pool: &mut Pool) -> Result<usize, String> {
        let mut sent = 0;
        if !self.is_flushed() && self.writable {
            sent = self.outbox.flush(&mut self.line, pool).map_err(|e| format!("sending to the peer failed: {e}"))?;
            self.writable = self.is_flushed();
        }
        if self.outbox.queued() > QUEUED_MAX {
            return Err(format!("more than {} MiB wait to be sent; the peer does not keep up", QUEUED_MAX >> 20));
        }
        if self.closing.is_some() && self.is_flushed() && !self.ended {
            self.ended = true;
            self.line.say_goodbye();
            // One that finds no room is done without: the stream ends with whole frames anyway.
            let _ = self.line.flush();
            // Only the end of what we send: closing at once would reset the connection under what is on its way.
            self.line
                .socket()
                .shutdown(std::net::Shutdown::Write)
                .map_err(|e| format!("ending the link failed: {e}"))?;
        }
        Ok(sent)
    }

    /// Sends what waits, takes nothing more in, and ends.
    pub(super) fn close(&mut self, now: Moment, why: String) {
        self.closing.get_or_insert_with(|| (now.after(CLOSING_TIME), why));
    }

    /// Throws away what the peer still sends on a link that is being closed.
    ///
    /// # Errors
    /// When the peer has ended too.
    pub(super) fn discard(&mut self, pool: &mut Pool) -> Result<(), String> {
        self.receiver.clear(pool);
        self.left = false;
        while self.has_work(pool) {
            self.receive(pool)?;
            self.receiver.clear(pool);
        }
        Ok(())
    }

    /// Lets go of all memory.
    pub(super) fn clear(&mut self, pool: &mut Pool) {
        self.receiver.clear(pool);
        self.outbox.clear(pool);
    }
}

/// Settings that make a link quick and its death noticed. A setting that the system refuses is done without. Buffer
/// sizes are left alone: the kernel grows them by itself, beyond what it lets a program ask for.
fn tune(socket: &Socket) {
    let refused = |what: &str, error: std::io::Error| tracing::debug!("link socket: {what} refused: {error}");
    if !matches!(socket.domain(), Ok(Domain::IPV4 | Domain::IPV6)) {
        return;
    }
    let keepalive = TcpKeepalive::new().with_time(Duration::from_secs(5)).with_interval(Duration::from_secs(2));
    let settings = [
        ("no delay", socket.set_tcp_nodelay(true)),
        ("user time-out", socket.set_tcp_user_timeout(Some(USER_TIMEOUT))),
        ("keep-alive", socket.set_tcp_keepalive(&keepalive)),
    ];
    for (what, result) in settings {
        result.unwrap_or_else(|e| refused(what, e));
    }
    // A control that paces its packets, as BBR does, gains nothing where there is no queue on the way, and costs a sixth of the
    // processor time of large writes. Every kernel has Reno, and any program may ask for it.
    if sys::round_trip(socket.as_fd()).is_ok_and(|time| time < NEAR) {
        socket.set_tcp_congestion(b"reno").unwrap_or_else(|e| refused("congestion control", e));
    }
}
