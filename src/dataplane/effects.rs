//! What the machine wants, done.

use std::io;

use super::engine;
use super::mailbox::{Counters, News};
use super::pool::Area;
use super::session::{Kind, Outcome};
use super::shell::{Machine, Shell};
use crate::meta::MetaPage;
use crate::units::{BufId, ByteRange, OpId, SessionId};
use crate::volume::io::{BufSlice, DiskError, Effect, HostError, HostOp, Input, Report};

/// An effect on the local disk; it waits until the peers have been told.
#[derive(Debug)]
pub(super) enum Local {
    Read(OpId, ByteRange),
    ReadSparse(OpId, ByteRange),
    /// Counted as a user of its buffer.
    Write(OpId, ByteRange, BufSlice),
    Zero(OpId, ByteRange, bool),
    Flush(OpId),
    Commit(OpId, Vec<MetaPage>),
}

impl<M: Machine> Shell<M> {
    /// Does what the machine wants, tells it what came of it, and so on until it wants nothing more.
    pub(super) fn settle(&mut self) -> io::Result<()> {
        loop {
            while !self.effects.is_empty() {
                let mut effects = std::mem::replace(&mut self.effects, std::mem::take(&mut self.spare));
                for effect in effects.drain(..) {
                    self.perform(effect);
                }
                self.spare = effects;
                self.flush_links();
                self.run_local();
                for buf in self.releases.drain(..) {
                    self.pool.release(buf);
                }
                self.tell_outcomes();
            }
            // Also when nothing was wanted: what was reaped may have led to jobs by itself.
            self.engine.start()?;
            if self.doomed.is_empty() {
                return Ok(());
            }
            self.bury();
        }
    }

    fn perform(&mut self, effect: Effect) {
        match effect {
            Effect::DiskRead { op, range } => self.local.push(Local::Read(op, range)),
            Effect::DiskReadSparse { op, range } => {
                self.sparse_reads.push((op, range));
                self.local.push(Local::ReadSparse(op, range));
            }
            Effect::DiskWrite { op, range, data } => {
                self.pool.retain(data.buf);
                self.local.push(Local::Write(op, range, data));
            }
            Effect::DiskZero { op, range, unmap } => self.local.push(Local::Zero(op, range, unmap)),
            Effect::DiskFlush { op } => self.local.push(Local::Flush(op)),
            Effect::MetaCommit { op, pages } => self.local.push(Local::Commit(op, pages)),
            Effect::Send { peer, connection, term, message, body } => {
                if let Some(link) = self.links.iter_mut().find(|l| l.peer == peer && l.connection == connection)
                    && link.closing.is_none()
                {
                    link.push(&mut self.pool, term, &message, body);
                    self.counters.frames_sent += 1;
                }
            }
            Effect::CloseLink { peer, connection, why } => {
                let now = self.now;
                if let Some(link) = self.links.iter_mut().find(|l| l.peer == peer && l.connection == connection) {
                    link.close(now, why);
                }
            }
            Effect::Reply { session, tag, result, buf, more } => self.reply(session, tag, result, buf, more),
            // Others may use the buffer in this same batch, in any order.
            Effect::Release(buf) => self.releases.push(buf),
            Effect::Answer { ticket, result } => self.news.tell(News::Answer { ticket, result }),
            Effect::Report(report) => {
                if report == Report::DisconnectClients {
                    let why = "this node is not primary any more";
                    self.doomed.extend(self.sessions.iter().map(|session| (session.id, why.to_owned())));
                }
                self.news.tell(News::Report(report));
            }
        }
    }

    fn reply(
        &mut self,
        session: SessionId,
        tag: u64,
        result: Result<(), HostError>,
        mut buf: Option<BufId>,
        mut more: Vec<BufId>,
    ) {
        // What a peer read for a client may wait for that client, and links never wait for clients.
        for buf in buf.iter_mut().chain(&mut more) {
            let (moved, old) = self.pool.out_of(Area::Links, Area::Reads, *buf);
            *buf = moved;
            self.releases.extend(old);
        }
        let data = buf.into_iter().chain(more);
        let place = self.session_at(session);
        let (Some(i), false) = (place, result == Err(HostError::NotPrimary)) else {
            if place.is_some() {
                self.doomed.push((session, "this node is not primary any more".to_owned()));
            }
            // Counted elsewhere too, perhaps, in this same batch.
            return self.releases.extend(data);
        };
        match self.sessions[i].answer(&mut self.pool, tag, result, data) {
            Ok(Outcome::Pending) => {}
            Ok(Outcome::Done(asked)) => count(&mut self.counters, asked.kind, asked.range, !asked.failed),
            Ok(Outcome::Flush(tag)) => {
                let (op, range) = (HostOp::Flush, ByteRange::new(0, 0));
                self.step(Input::Host { session, tag, op, range, fua: false });
            }
            Err(why) => self.doomed.push((session, why)),
        }
    }

    /// Runs what waits for the local disk.
    fn run_local(&mut self) {
        let mut local = std::mem::take(&mut self.local);
        for job in local.drain(..) {
            let outcome = match job {
                Local::Read(op, range) => {
                    self.reads.push(op, range);
                    None
                }
                Local::ReadSparse(op, range) => {
                    self.resync_reads.push(op, range);
                    None
                }
                Local::Write(op, range, data) => {
                    let outcome = self.engine.write(op, range, data, &mut self.pool);
                    self.pool.release(data.buf);
                    outcome
                }
                Local::Zero(op, range, unmap) => self.engine.zero(op, range, unmap, &mut self.pool),
                Local::Flush(op) => {
                    self.counters.disk_flushes += 1;
                    self.engine.flush(op)
                }
                Local::Commit(op, pages) => {
                    self.counters.metadata_commits += 1;
                    self.engine.commit(op, &pages)
                }
            };
            self.outcomes.extend(outcome);
        }
        self.local = local;
        self.start_reads();
    }

    fn start_reads(&mut self) {
        for queue in [&mut self.reads, &mut self.resync_reads] {
            while let Some((op, range, buf)) = queue.next(&mut self.pool) {
                self.outcomes.extend(self.engine.read(op, range, buf, &mut self.pool));
            }
        }
    }

    /// Starts reads that waited for memory.
    pub(super) fn serve_reads(&mut self) {
        self.start_reads();
        self.tell_outcomes();
    }

    /// What came of an operation; a sparse read that found only zeros keeps no buffer.
    fn without_zeros(
        &mut self,
        op: OpId,
        result: Result<Option<BufId>, DiskError>,
    ) -> Result<Option<BufId>, DiskError> {
        let Some(at) = self.sparse_reads.iter().position(|&(sparse, _)| sparse == op) else { return result };
        let (_, range) = self.sparse_reads.swap_remove(at);
        let Ok(Some(buf)) = result else { return result };
        let len = u32::try_from(range.len()).expect("a segment of resync");
        if !is_zero(self.pool.bytes(BufSlice { buf, offset: 0, len })) {
            return result;
        }
        self.pool.release(buf);
        Ok(None)
    }

    /// Tells the machine what came of its disk operations.
    pub(super) fn tell_outcomes(&mut self) {
        let mut outcomes = std::mem::take(&mut self.outcomes);
        for outcome in outcomes.drain(..) {
            let input = match outcome {
                engine::Outcome::Disk { op, result } => Input::DiskDone { op, result: self.without_zeros(op, result) },
                engine::Outcome::Meta { op, result } => Input::MetaDone { op, result },
            };
            self.step(input);
        }
        self.outcomes = outcomes;
    }
}

/// True when all `bytes` are zero. A whole line at a time, which compilers turn into wide instructions.
fn is_zero(bytes: &[u8]) -> bool {
    let (lines, rest) = bytes.as_chunks::<64>();
    lines.iter().all(|line| line.iter().fold(0, |all, &byte| all | byte) == 0) && rest.iter().all(|&byte| byte == 0)
}

fn count(counters: &mut Counters, kind: Kind, range: ByteRange, succeeded: bool) {
    match kind {
        _ if !succeeded => counters.errors += 1,
        Kind::Read => {
            counters.reads += 1;
            counters.read_bytes += range.len();
        }
        Kind::Write => {
            counters.writes += 1;
            counters.write_bytes += range.len();
        }
        Kind::Flush => counters.flushes += 1,
        Kind::Hole => counters.holes += 1,
    }
}
