//! The machine's disk effects as system calls.
//!
//! Buffered data is read and written on the spot, since the page cache answers faster than any hand-over; what would wait for
//! the device (a cold read, a flush, a hole) runs in the [`Backend`]. With direct I/O every transfer runs there, through an
//! aligned copy where the memory or the range is not aligned. The machine never has two overlapping transfers running, with
//! ranges rounded to blocks, so that reading, changing and writing back a block needs no lock.
//!
//! Pages of metadata are written through the page cache on the spot too. Then the metadata area is made stable, not the file that it lies in:
//! with internal metadata that is the data's, and a write to a cold extent would wait for all that was written lately (ADR 15).

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::FileExt;
use std::time::Duration;

use super::backend::{Backend, BackendChoice, Done, Job};
use super::pool::Pool;
use super::sync_queue::SyncQueue;
use super::sys::{self, EventFd};
use super::transfer::{Advance, Transfer};
use crate::meta::MetaPage;
use crate::nbd::{Allocation, Extents};
use crate::units::{BLOCK_SIZE, BufId, ByteRange, OpId};
use crate::volume::io::{BufSlice, DiskError};

/// Tokens above every task's index.
const DATA_SYNC: u64 = u64::MAX;
const META_SYNC: u64 = u64::MAX - 1;

/// An operation that ended.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// Answers a disk effect; a read that succeeded brings its buffer.
    Disk { op: OpId, result: Result<Option<BufId>, DiskError> },
    /// Answers a metadata commit.
    Meta { op: OpId, result: Result<(), DiskError> },
}

#[derive(Debug)]
enum Work {
    Read(BufId),
    Write(BufSlice),
    /// The middle is being made a hole, with this mode; then the edges are written.
    Hole {
        mode: libc::c_int,
        unmap: bool,
        middle: ByteRange,
    },
    /// Zeros are being written.
    Zeros,
}

#[derive(Debug)]
struct Task {
    op: OpId,
    work: Work,
    transfer: Option<Transfer>,
    /// Still to be filled with zeros.
    rest: Vec<ByteRange>,
}

/// The files of an open disk.
#[derive(Debug)]
pub(super) struct Files {
    /// For data.
    pub(super) data: File,
    /// For metadata, always through the page cache: another open file, so that each learns of write-back errors.
    pub(super) metadata: File,
    /// Where the metadata area lies in its file.
    pub(super) metadata_area: ByteRange,
    /// Data bypasses the page cache.
    pub(super) direct: bool,
    /// A block device, not a file.
    pub(super) block_device: bool,
}

/// Runs the disk operations of one volume.
#[derive(Debug)]
pub(super) struct Engine {
    files: Files,
    backend: Backend,
    tasks: Vec<Option<Task>>,
    free: Vec<usize>,
    /// Tasks that wait for an aligned copy's memory.
    starved: VecDeque<usize>,
    data_sync: SyncQueue,
    metadata_sync: SyncQueue,
    reads_may_fail_fast: bool,
    can_punch: bool,
    can_zero: bool,
    done: Vec<Done>,
}

impl Engine {
    /// An engine over open files.
    ///
    /// # Errors
    /// When no backend can be had.
    pub(super) fn new(files: Files, choice: BackendChoice) -> io::Result<Self> {
        Ok(Self {
            data_sync: SyncQueue::new(&files.data, None, DATA_SYNC),
            // The whole area and not the pages: what an earlier process wrote and did not live to sync was read as if it were stable.
            metadata_sync: SyncQueue::new(&files.metadata, Some(files.metadata_area), META_SYNC),
            files,
            backend: Backend::open(choice)?,
            tasks: Vec::new(),
            free: Vec::new(),
            starved: VecDeque::new(),
            reads_may_fail_fast: true,
            can_punch: true,
            can_zero: true,
            done: Vec::new(),
        })
    }

    /// Becomes readable when an operation ends.
    pub(super) fn wake(&self) -> &EventFd {
        self.backend.wake()
    }

    /// True while operations run.
    pub(super) fn is_busy(&self) -> bool {
        self.backend.running() > 0
    }

    /// True when freeing a range that reads as zeros afterwards is quicker than writing zeros.
    pub(super) fn zeroes_fast(&self) -> bool {
        self.can_punch && !self.files.block_device
    }

    /// Reads `range` into `buf`, which is as long. The result, when there is one at once.
    pub(super) fn read(&mut self, op: OpId, range: ByteRange, buf: BufId, pool: &mut Pool) -> Option<Outcome> {
        let slice = pool.whole(buf);
        let mut here = 0;
        if !self.files.direct {
            match self.read_now(range, pool.bytes_mut(slice)) {
                Ok(n) if n == range.len() => return Some(Outcome::Disk { op, result: Ok(Some(buf)) }),
                Ok(n) => here = n,
                Err(e) => return Some(self.failed_read(op, buf, sys::errno(&e), pool)),
            }
        }
        let transfer = Transfer::read(range, here, slice, self.files.direct);
        self.begin(Task { op, work: Work::Read(buf), transfer: Some(transfer), rest: Vec::new() }, pool)
    }

    /// Reads what the page cache has, or everything where it cannot be asked without waiting.
    fn read_now(&mut self, range: ByteRange, into: &mut [u8]) -> io::Result<u64> {
        if self.reads_may_fail_fast {
            match sys::read_cached(self.files.data.as_fd(), range.start(), into) {
                Ok(n) => return Ok(u64::try_from(n).expect("usize has at most 64 bits")),
                Err(e) if e.raw_os_error() == Some(libc::EAGAIN) => return Ok(0),
                Err(e) if matches!(e.raw_os_error(), Some(libc::EOPNOTSUPP | libc::ENOSYS | libc::EINVAL)) => {
                    self.reads_may_fail_fast = false;
                }
                Err(e) if e.kind() == io::ErrorKind::Interrupted => return Ok(0),
                Err(e) => return Err(e),
            }
        }
        sys::read_all(&self.files.data, into, range.start())?;
        Ok(range.len())
    }

    fn failed_read(&mut self, op: OpId, buf: BufId, errno: i32, pool: &mut Pool) -> Outcome {
        pool.release(buf);
        Outcome::Disk { op, result: Err(DiskError { errno }) }
    }

    /// Writes `data` to `range`. The result, when there is one at once; otherwise the engine is one of the buffer's users
    /// until it has.
    pub(super) fn write(&mut self, op: OpId, range: ByteRange, data: BufSlice, pool: &mut Pool) -> Option<Outcome> {
        assert_eq!(range.len(), u64::from(data.len), "the data is as long as its range");
        if !self.files.direct {
            let result = sys::write_all(&self.files.data, pool.bytes(data), range.start());
            let result = result.map(|()| None).map_err(|e| DiskError { errno: sys::errno(&e) });
            return Some(Outcome::Disk { op, result });
        }
        pool.retain(data.buf);
        let transfer = Transfer::write(range, data, true);
        self.begin(Task { op, work: Work::Write(data), transfer: Some(transfer), rest: Vec::new() }, pool)
    }

    /// Makes `range` read as zeros. The whole blocks in it become a hole or an unwritten extent where the disk can do that;
    /// the rest is written.
    pub(super) fn zero(&mut self, op: OpId, range: ByteRange, unmap: bool, pool: &mut Pool) -> Option<Outcome> {
        let middle = range.round_in(BLOCK_SIZE);
        if middle.is_empty() {
            return self.begin(Task { op, work: Work::Zeros, transfer: None, rest: vec![range] }, pool);
        }
        let edges = [
            ByteRange::new(range.start(), middle.start() - range.start()),
            ByteRange::new(middle.end(), range.end() - middle.end()),
        ];
        let rest = edges.into_iter().filter(|edge| !edge.is_empty()).collect();
        let (work, rest) = self.hole(unmap, middle, rest);
        self.begin(Task { op, work, transfer: None, rest }, pool)
    }

    /// The best way left to zero whole blocks.
    fn hole(&self, unmap: bool, middle: ByteRange, mut rest: Vec<ByteRange>) -> (Work, Vec<ByteRange>) {
        let mode = if unmap && self.can_punch {
            libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE
        } else if self.can_zero {
            libc::FALLOC_FL_ZERO_RANGE | libc::FALLOC_FL_KEEP_SIZE
        } else {
            rest.push(middle);
            return (Work::Zeros, rest);
        };
        (Work::Hole { mode, unmap, middle }, rest)
    }

    /// Makes everything written so far stable.
    pub(super) fn flush(&mut self, op: OpId) -> Option<Outcome> {
        let result = self.data_sync.ask(op, &mut self.backend)?;
        Some(Outcome::Disk { op, result: result.map(|()| None) })
    }

    /// Writes the pages and makes them stable.
    pub(super) fn commit(&mut self, op: OpId, pages: &[MetaPage]) -> Option<Outcome> {
        let start = self.files.metadata_area.start();
        for page in pages {
            if let Err(e) = self.files.metadata.write_all_at(&page.bytes[..], start + page.offset) {
                return Some(Outcome::Meta { op, result: Err(DiskError { errno: sys::errno(&e) }) });
            }
        }
        let result = self.metadata_sync.ask(op, &mut self.backend)?;
        Some(Outcome::Meta { op, result })
    }

    /// Starts what was asked for. Called once after a batch of operations.
    ///
    /// # Errors
    /// When the ring is broken.
    pub(super) fn start(&mut self) -> io::Result<()> {
        self.backend.start()
    }

    /// True when [`Engine::start`] must be called again soon.
    pub(super) fn is_held_up(&self) -> bool {
        self.backend.is_held_up()
    }

    /// Appends the operations that ended since the last call.
    pub(super) fn reap(&mut self, pool: &mut Pool, out: &mut Vec<Outcome>) {
        let mut done = std::mem::take(&mut self.done);
        self.backend.reap(&mut done);
        for Done { token, result } in done.drain(..) {
            match token {
                DATA_SYNC => {
                    let failed = result.err().map(|errno| DiskError { errno });
                    self.data_sync.ended(failed, &mut self.backend, |op| {
                        out.push(Outcome::Disk { op, result: failed.map_or(Ok(None), Err) });
                    });
                }
                META_SYNC => {
                    let failed = result.err().map(|errno| DiskError { errno });
                    self.metadata_sync.ended(failed, &mut self.backend, |op| {
                        out.push(Outcome::Meta { op, result: failed.map_or(Ok(()), Err) });
                    });
                }
                task => {
                    let id = usize::try_from(task).expect("tokens of tasks are indices");
                    out.extend(self.ended(id, result, pool));
                }
            }
        }
        self.done = done;
        // What waits for memory goes on in its order.
        while let Some(&id) = self.starved.front() {
            match self.next_job(id, pool) {
                Next::Starved => break,
                Next::Running => {
                    self.starved.pop_front();
                }
                Next::Ended => {
                    self.starved.pop_front();
                    out.push(self.finish(id, Ok(()), pool));
                }
            }
        }
    }

    /// Waits until nothing runs, at most for `limit`; false when something still does. The pool must outlive what runs.
    pub(super) fn settle(&mut self, limit: Duration) -> bool {
        self.backend.settle(limit)
    }

    fn begin(&mut self, task: Task, pool: &mut Pool) -> Option<Outcome> {
        let id = match self.free.pop() {
            Some(id) => {
                self.tasks[id] = Some(task);
                id
            }
            None => {
                self.tasks.push(Some(task));
                self.tasks.len() - 1
            }
        };
        let first_in_line = self.starved.is_empty();
        match if first_in_line { self.next_job(id, pool) } else { Next::Starved } {
            Next::Running => None,
            Next::Ended => Some(self.finish(id, Ok(()), pool)),
            Next::Starved => {
                self.starved.push_back(id);
                None
            }
        }
    }

    /// Submits the next job of a task.
    fn next_job(&mut self, id: usize, pool: &mut Pool) -> Next {
        let token = u64::try_from(id).expect("usize has at most 64 bits");
        let fd = self.files.data.as_raw_fd();
        let task = self.tasks[id].as_mut().expect("the task runs");
        loop {
            if let Work::Hole { mode, middle, .. } = task.work {
                self.backend.submit(token, Job::Allocate { fd, mode, range: middle });
                return Next::Running;
            }
            if task.transfer.is_none() {
                let Some(range) = task.rest.pop() else { return Next::Ended };
                task.transfer = Some(Transfer::zeros(range, self.files.direct));
            }
            let transfer = task.transfer.as_mut().expect("just looked at");
            match transfer.advance(fd, pool) {
                Advance::Run(job) => {
                    self.backend.submit(token, job);
                    return Next::Running;
                }
                Advance::NoMemory => return Next::Starved,
                Advance::Complete => task.transfer = None,
            }
        }
    }

    /// A task's job ended.
    fn ended(&mut self, id: usize, result: Result<usize, i32>, pool: &mut Pool) -> Option<Outcome> {
        let task = self.tasks[id].as_mut().expect("the task runs");
        if let Work::Hole { mode, unmap, middle } = task.work {
            match result {
                Ok(_) => task.work = Work::Zeros,
                Err(libc::EOPNOTSUPP | libc::ENOSYS) => {
                    let rest = std::mem::take(&mut task.rest);
                    if mode & libc::FALLOC_FL_PUNCH_HOLE != 0 {
                        self.can_punch = false;
                    } else {
                        self.can_zero = false;
                    }
                    let (work, rest) = self.hole(unmap, middle, rest);
                    let task = self.tasks[id].as_mut().expect("the task runs");
                    (task.work, task.rest) = (work, rest);
                }
                Err(errno) if errno != libc::EINTR => return Some(self.finish(id, Err(errno), pool)),
                Err(_) => {}
            }
        } else {
            let transfer = task.transfer.as_mut().expect("only transfers and holes have jobs");
            if let Err(errno) = transfer.ended(result, pool) {
                transfer.abandon(pool);
                return Some(self.finish(id, Err(errno), pool));
            }
        }
        match self.next_job(id, pool) {
            Next::Running => None,
            Next::Ended => Some(self.finish(id, Ok(()), pool)),
            Next::Starved => {
                // It has begun: it goes before those that have not.
                self.starved.push_front(id);
                None
            }
        }
    }

    fn finish(&mut self, id: usize, result: Result<(), i32>, pool: &mut Pool) -> Outcome {
        let task = self.tasks[id].take().expect("a task ends once");
        self.free.push(id);
        let op = task.op;
        let result = result.map_err(|errno| DiskError { errno });
        let result = match (task.work, result) {
            (Work::Read(buf), Ok(())) => Ok(Some(buf)),
            (Work::Read(buf), Err(e)) => {
                pool.release(buf);
                Err(e)
            }
            (Work::Write(data), result) => {
                pool.release(data.buf);
                result.map(|()| None)
            }
            (Work::Hole { .. } | Work::Zeros, result) => result.map(|()| None),
        };
        Outcome::Disk { op, result }
    }

    /// The allocation of `range`. Where the disk cannot tell, everything is data.
    pub(super) fn extents(&self, range: ByteRange, one: bool) -> Extents {
        let mut extents = Extents::new(range.len(), one);
        let (mut at, end) = (range.start(), range.end());
        while !self.files.block_device && at < end {
            let Ok(data) = sys::seek(&self.files.data, at, true) else { break };
            let data = data.map_or(end, |at| at.min(end));
            if data > at && !extents.push(data - at, Allocation::Hole) {
                return extents;
            }
            at = data;
            if at == end {
                return extents;
            }
            let Ok(hole) = sys::seek(&self.files.data, at, false) else { break };
            let hole = hole.map_or(end, |at| at.min(end));
            if hole <= at {
                break;
            }
            if !extents.push(hole - at, Allocation::Data) {
                return extents;
            }
            at = hole;
        }
        extents.push(end - at, Allocation::Data);
        extents
    }

    /// Asks the kernel to have `range` at hand soon.
    pub(super) fn prefetch(&self, range: ByteRange) {
        if !self.files.direct {
            sys::prefetch(&self.files.data, range);
        }
    }
}

enum Next {
    Running,
    Starved,
    Ended,
}
