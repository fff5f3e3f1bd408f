//! The two kinds of socket in a turn: clients and peers.

use super::link::Incoming;
use super::mailbox::News;
use super::pool::Area;
use super::receiver::Received;
use super::session::{Arrived, Kind, Why};
use super::share::{Holders, Share};
use super::shell::{Machine, Shell};
use crate::condition::DiskState;
use crate::nbd::{Allocation, Extents, NbdError, Request};
use crate::units::ByteRange;
use crate::volume::io::{HostOp, Input};

/// Receives from one link in one turn; others have their turn then.
const RECEIVES_PER_TURN: usize = 4;
/// Frames taken from one link in one turn. What they led to is told before the rest is looked at, so that the other side has
/// something to do meanwhile: were a window of 32 writes passed on in one piece, all would wait for whoever holds it.
const FRAMES_PER_TURN: usize = 16;
/// The same for a client's requests; but a client that has more under way than this gets as many again, since parts that small cost
/// more than they gain then.
const REQUESTS_PER_TURN: usize = 16;

impl<M: Machine> Shell<M> {
    /// Takes in what clients sent: one receive each, those that waited for memory first.
    pub(super) fn serve_clients(&mut self) {
        self.holders = Holders {
            receiving: self.sessions.iter().filter(|session| session.holds_received()).count(),
            unread: self.sessions.iter().filter(|session| session.unread() > 0).count(),
        };
        while let Some(&id) = self.memory_queue.front() {
            let Some(i) = self.session_at(id) else {
                self.memory_queue.pop_front();
                continue;
            };
            self.give_share(i);
            let session = &mut self.sessions[i];
            let served = if session.waits_for_memory() {
                Ok(session.grant(&mut self.pool))
            } else {
                session.receive(&mut self.pool, true).map(|received| received != Received::NoMemory)
            };
            match served {
                Ok(false) => {
                    self.memory_frees = self.pool.frees(Area::Clients);
                    break;
                }
                Ok(true) => {
                    self.memory_queue.pop_front();
                    self.sessions[i].queued_for_memory = false;
                    self.moved = true;
                    self.take_requests(i);
                }
                Err(why) => {
                    self.memory_queue.pop_front();
                    self.doomed.push((id, why));
                }
            }
        }
        let count = self.sessions.len();
        for n in 0..count {
            let i = (self.first_session + n) % count;
            if self.sessions[i].has_work()
                && let Err(why) = self.serve_client(i)
            {
                self.doomed.push((self.sessions[i].id, why));
            }
        }
        self.first_session = self.first_session.wrapping_add(1);
        self.bury();
    }

    fn serve_client(&mut self, i: usize) -> Result<(), Why> {
        self.give_share(i);
        let others_wait = !self.memory_queue.is_empty();
        let session = &mut self.sessions[i];
        let received = if others_wait && session.needs_memory() {
            Received::NoMemory
        } else {
            session.receive(&mut self.pool, others_wait)?
        };
        match received {
            Received::NoMemory => self.queue_for_memory(i),
            Received::Bytes { count, .. } => self.moved |= count > 0,
            Received::Nothing | Received::End => {}
        }
        self.take_requests(i);
        Ok(())
    }

    /// Tells a client what it may hold if it comes to hold memory now.
    fn give_share(&mut self, i: usize) {
        let session = &mut self.sessions[i];
        self.holders.receiving += usize::from(!session.holds_received());
        self.holders.unread += usize::from(session.unread() == 0);
        session.share = Share::among(self.holders, &self.pool);
    }

    fn queue_for_memory(&mut self, i: usize) {
        let session = &mut self.sessions[i];
        if !session.queued_for_memory {
            session.queued_for_memory = true;
            self.memory_queue.push_back(session.id);
            self.memory_frees = self.pool.frees(Area::Clients);
        }
    }

    /// Gives the machine requests that came whole. Those beyond this turn's part are the next turn's.
    fn take_requests(&mut self, i: usize) {
        let part = self.sessions[i].outstanding().max(REQUESTS_PER_TURN);
        for _ in 0..part {
            let others_wait = !self.memory_queue.is_empty();
            match self.sessions[i].next(&mut self.pool, others_wait) {
                Ok(Some(arrived)) => self.request(i, arrived),
                Ok(None) => break,
                Err(why) => {
                    self.doomed.push((self.sessions[i].id, why));
                    break;
                }
            }
        }
        if self.sessions[i].waits_for_memory() {
            self.queue_for_memory(i);
        }
    }

    fn request(&mut self, i: usize, arrived: Arrived) {
        let Arrived { request, to, payload, piece_of } = arrived;
        if !self.machine.is_serving() {
            if let Some(buf) = payload {
                self.pool.release(buf);
            }
            self.doomed.push((self.sessions[i].id, "this node is not primary any more".to_owned()));
            return;
        }
        let session = &mut self.sessions[i];
        let nowhere = ByteRange::new(0, 0);
        let (kind, op, range, fua) = match request {
            Request::Read { range, df: _ } => (Kind::Read, HostOp::Read, range, false),
            Request::Write { range, fua } => {
                let buf = payload.expect("a write comes with its payload");
                (Kind::Write, HostOp::Write { buf }, range, fua)
            }
            Request::Flush => (Kind::Flush, HostOp::Flush, nowhere, false),
            Request::Trim { range, fua } => (Kind::Hole, HostOp::Trim, range, fua),
            Request::WriteZeroes { fast: true, no_hole, .. } if no_hole || !self.engine.zeroes_fast() => {
                return session.refuse(to, NbdError::NotSupported, "zeroes are no faster than a write here");
            }
            Request::WriteZeroes { range, fua, no_hole, fast: _ } => {
                (Kind::Hole, HostOp::Zero { unmap: !no_hole }, range, fua)
            }
            Request::Cache { range } => {
                self.engine.prefetch(range);
                return session.succeed(to);
            }
            Request::BlockStatus { range, req_one } => {
                // What the local disk says of a range is only worth something while its data is.
                let extents = if self.machine.snapshot(self.now).disk == DiskState::UpToDate {
                    self.engine.extents(range, req_one)
                } else {
                    let mut extents = Extents::new(range.len(), req_one);
                    extents.push(range.len(), Allocation::Data);
                    extents
                };
                return session.tell_status(to, &extents);
            }
            Request::Nothing => {
                // A write of no bytes has no payload either.
                return session.succeed_at_nothing(to);
            }
            Request::Disconnect => unreachable!("the session keeps it to itself"),
        };
        self.heard += 1;
        self.moved = true;
        session.busy_at = self.now;
        let tag = session.admit(piece_of, to, kind, range);
        let session = session.id;
        self.step(Input::Host { session, tag, op, range, fua });
    }

    /// Sends the clients' replies and ends those that are done.
    pub(super) fn answer_clients(&mut self) {
        let generation = self.machine.generation();
        for i in 0..self.sessions.len() {
            let leased = self.is_leased();
            let session = &mut self.sessions[i];
            if session.follows.is_some_and(|told| told != generation) {
                let why = "it follows the volume, whose generation is another now; it asks again";
                self.doomed.push((session.id, why.to_owned()));
                continue;
            }
            // Without a lease what is ready is kept.
            if leased {
                session.flush(&mut self.pool);
            }
            if session.is_finished() {
                self.doomed.push((session.id, "the client said goodbye".to_owned()));
            }
        }
    }

    /// Ends the doomed connections.
    pub(super) fn bury(&mut self) {
        while let Some((id, why)) = self.doomed.pop() {
            let Some(i) = self.session_at(id) else { continue };
            let mut session = self.sessions.remove(i);
            session.clear(&mut self.pool);
            if session.queued_for_memory {
                self.memory_queue.retain(|&queued| queued != id);
            }
            self.step(Input::HostGone { session: id });
            tracing::debug!(session = id.0, from = session.from, why, "client gone");
            self.news.tell(News::ClientGone { session: id, why });
        }
    }

    /// Takes in what peers sent.
    pub(super) fn hear_peers(&mut self) {
        let mut i = 0;
        while i < self.links.len() {
            match if self.links[i].closing.is_some() { Ok(()) } else { self.hear_peer(i) } {
                Ok(()) => i += 1,
                Err(why) => self.drop_link(i, why),
            }
        }
    }

    fn hear_peer(&mut self, i: usize) -> Result<(), Why> {
        let mut frames = FRAMES_PER_TURN;
        for _ in 0..RECEIVES_PER_TURN {
            self.take_frames(i, &mut frames)?;
            if frames == 0 || !self.links[i].readable {
                return Ok(());
            }
            let count = self.links[i].receive(&mut self.pool)?;
            if count == 0 {
                return Ok(());
            }
            self.moved = true;
            self.counters.link_bytes_received += u64::try_from(count).expect("usize has at most 64 bits");
        }
        self.take_frames(i, &mut frames)
    }

    /// Gives the machine at most so many frames that came whole.
    fn take_frames(&mut self, i: usize, most: &mut usize) -> Result<(), Why> {
        let (peer, connection) = (self.links[i].peer, self.links[i].connection);
        while *most > 0 {
            let Some(incoming) = self.links[i].next(&mut self.pool)? else { return Ok(()) };
            *most -= 1;
            self.counters.frames_received += 1;
            self.heard += 1;
            self.moved = true;
            self.step(match incoming {
                Incoming::Message { term, message, buf } => Input::Peer { peer, connection, term, message, buf },
                Incoming::Page { index, page } => Input::PeerPage { peer, connection, index, page },
            });
        }
        self.links[i].leave_rest();
        Ok(())
    }

    /// Sends what waits for the peers.
    pub(super) fn flush_links(&mut self) {
        let mut i = 0;
        while i < self.links.len() {
            match self.links[i].flush(&mut self.pool) {
                Ok(sent) => {
                    self.moved |= sent > 0;
                    self.counters.link_bytes_sent += u64::try_from(sent).expect("usize has at most 64 bits");
                    i += 1;
                }
                Err(why) => self.drop_link(i, why),
            }
        }
    }

    /// Ends links that the machine closed and that have said what they had to say, or took too long.
    pub(super) fn close_links(&mut self) {
        self.flush_links();
        let mut i = 0;
        while i < self.links.len() {
            let link = &mut self.links[i];
            let Some((end, why)) = link.closing.clone() else {
                i += 1;
                continue;
            };
            let peer_ended = link.discard(&mut self.pool).is_err();
            if (peer_ended && link.is_flushed()) || self.now >= end {
                self.drop_link(i, why);
            } else {
                i += 1;
            }
        }
    }

    /// Ends a link at once.
    pub(super) fn drop_link(&mut self, i: usize, why: Why) {
        let mut link = self.links.remove(i);
        link.clear(&mut self.pool);
        let (peer, connection) = (link.peer, link.connection);
        self.step(Input::LinkDown { peer, connection, why: why.clone() });
        self.news.tell(News::LinkClosed { peer, connection, why });
    }
}
