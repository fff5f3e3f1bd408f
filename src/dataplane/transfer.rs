//! One transfer between memory and disk, cut into jobs.
//!
//! A buffered transfer goes straight. A direct one goes straight where memory, place and length are aligned; elsewhere in
//! windows through an aligned copy, and a window that is written only in part is read first.

use std::os::fd::RawFd;

use super::backend::Job;
use super::pool::{Area, ChunkId, Pool};
use crate::units::{BLOCK_SIZE, ByteRange};
use crate::volume::io::BufSlice;

/// Alignment of direct I/O, of memory as of places; no disk asks for more.
const ALIGNMENT: usize = 4096;
/// Longest window.
const WINDOW_LEN: u64 = 64 << 10;

#[repr(align(4096))]
struct Zeros([u8; 256 << 10]);
static ZEROS: Zeros = Zeros([0; 256 << 10]);

#[derive(Clone, Copy, Debug)]
enum Memory {
    /// Read into or written from.
    Slice(BufSlice),
    /// Written as zeros.
    Zeros,
}

#[derive(Clone, Copy, Debug)]
enum Step {
    /// Nothing runs.
    Ready,
    /// So many bytes move straight.
    Straight(u64),
    /// The window is read: into the reader's hands, or to be changed and written.
    Fetching(ByteRange, ChunkId),
    /// The window is in the copy, changed.
    Changed(ByteRange, ChunkId),
    /// The window is written.
    Storing(ByteRange, ChunkId),
}

/// What is next.
pub(super) enum Advance {
    /// This job.
    Run(Job),
    /// Memory for a copy.
    NoMemory,
    /// Nothing.
    Complete,
}

/// A transfer.
#[derive(Debug)]
pub(super) struct Transfer {
    range: ByteRange,
    /// Everything before it is done.
    at: u64,
    memory: Memory,
    write: bool,
    direct: bool,
    step: Step,
    /// What is left of the running job: place, address and length.
    job: (u64, usize, usize),
}

impl Transfer {
    /// Reads `range` into `into`, whose first `here` bytes have been read already.
    pub(super) fn read(range: ByteRange, here: u64, into: BufSlice, direct: bool) -> Self {
        Self::new(range, range.start() + here, Memory::Slice(into), false, direct)
    }

    /// Writes `from` to `range`.
    pub(super) fn write(range: ByteRange, from: BufSlice, direct: bool) -> Self {
        Self::new(range, range.start(), Memory::Slice(from), true, direct)
    }

    /// Writes zeros to `range`.
    pub(super) fn zeros(range: ByteRange, direct: bool) -> Self {
        Self::new(range, range.start(), Memory::Zeros, true, direct)
    }

    fn new(range: ByteRange, at: u64, memory: Memory, write: bool, direct: bool) -> Self {
        Self { range, at, memory, write, direct, step: Step::Ready, job: (0, 0, 0) }
    }

    /// The next job. Called when none runs.
    pub(super) fn advance(&mut self, fd: RawFd, pool: &mut Pool) -> Advance {
        if self.job.2 == 0 {
            if let Step::Changed(window, chunk) = self.step {
                self.step = Step::Storing(window, chunk);
                self.job = (window.start(), pool.chunk_address(chunk).addr(), narrow(window.len()));
            } else if self.at == self.range.end() {
                return Advance::Complete;
            } else if !self.next_piece(pool) {
                return Advance::NoMemory;
            }
        }
        let (at, address, len) = self.job;
        let address = self.pointer(pool, address);
        Advance::Run(
            if matches!(self.step, Step::Storing(..)) || (self.write && matches!(self.step, Step::Straight(_))) {
                Job::Write { fd, at, address: address.cast_const(), len }
            } else {
                Job::Read { fd, at, address, len }
            },
        )
    }

    /// The address as a pointer that may be used for what it points into.
    fn pointer(&self, pool: &Pool, address: usize) -> *mut u8 {
        let base = match (self.step, self.memory) {
            (Step::Straight(_), Memory::Slice(slice)) => pool.address(slice),
            (Step::Straight(_) | Step::Ready, _) => (&raw const ZEROS.0).cast::<u8>().cast_mut(),
            (Step::Fetching(_, chunk) | Step::Changed(_, chunk) | Step::Storing(_, chunk), _) => {
                pool.chunk_address(chunk)
            }
        };
        base.with_addr(address)
    }

    /// Starts on the bytes at `at`. False when there is no memory for a copy.
    fn next_piece(&mut self, pool: &mut Pool) -> bool {
        let left = self.range.end() - self.at;
        let (address, straight) = match self.memory {
            Memory::Slice(slice) => (pool.address(slice).addr() + narrow(self.at - self.range.start()), left),
            Memory::Zeros => ((&raw const ZEROS.0).addr(), left.min(ZEROS.0.len() as u64)),
        };
        let aligned = address.is_multiple_of(ALIGNMENT) && self.at.is_multiple_of(BLOCK_SIZE);
        let straight = match self.direct {
            false => straight,
            true if aligned => straight / BLOCK_SIZE * BLOCK_SIZE,
            true => 0,
        };
        if straight > 0 {
            self.step = Step::Straight(straight);
            self.job = (self.at, address, narrow(straight));
            return true;
        }
        let first = self.at / BLOCK_SIZE * BLOCK_SIZE;
        let end = self.range.end().div_ceil(BLOCK_SIZE) * BLOCK_SIZE;
        let window = ByteRange::new(first, (end - first).min(WINDOW_LEN));
        let Some(chunk) = pool.allocate(Area::Bounce, narrow(window.len())) else { return false };
        let covered = self.at == window.start() && self.range.end() >= window.end();
        self.job = (window.start(), pool.chunk_address(chunk).addr(), narrow(window.len()));
        self.step = if self.write && covered {
            self.change(window, chunk, pool);
            Step::Storing(window, chunk)
        } else {
            Step::Fetching(window, chunk)
        };
        true
    }

    /// The part of the window that is transferred: its offset in the window, and in the transfer's memory, and its length.
    fn part(&self, window: ByteRange) -> (usize, u64, u64) {
        let len = window.end().min(self.range.end()) - self.at;
        (narrow(self.at - window.start()), self.at - self.range.start(), len)
    }

    fn change(&self, window: ByteRange, chunk: ChunkId, pool: &mut Pool) {
        let (offset, from, len) = self.part(window);
        match self.memory {
            Memory::Slice(slice) => pool.copy_to_chunk(sub_slice(slice, from, len), chunk, offset),
            Memory::Zeros => pool.chunk_bytes_mut(chunk, offset, narrow(len)).fill(0),
        }
    }

    /// The running job ended.
    ///
    /// # Errors
    /// The operating system's error number; EIO when the disk ends before the range.
    pub(super) fn ended(&mut self, result: Result<usize, i32>, pool: &mut Pool) -> Result<(), i32> {
        let moved = match result {
            Ok(0) => return Err(libc::EIO),
            Ok(n) => n,
            Err(libc::EINTR | libc::EAGAIN) => 0,
            Err(errno) => return Err(errno),
        };
        let (at, address, len) = self.job;
        self.job = (at + moved as u64, address + moved, len - moved);
        if self.job.2 > 0 {
            return Ok(());
        }
        match self.step {
            Step::Straight(len) => self.at += len,
            Step::Fetching(window, chunk) if self.write => {
                self.change(window, chunk, pool);
                self.step = Step::Changed(window, chunk);
                return Ok(());
            }
            Step::Fetching(window, chunk) => {
                let (offset, to, len) = self.part(window);
                let Memory::Slice(slice) = self.memory else { unreachable!("zeros are not read") };
                pool.copy_from_chunk(chunk, offset, sub_slice(slice, to, len));
                pool.drop_chunk(chunk);
                self.at += len;
            }
            Step::Storing(window, chunk) => {
                self.at += self.part(window).2;
                pool.drop_chunk(chunk);
            }
            Step::Ready | Step::Changed(..) => unreachable!("no job runs then"),
        }
        self.step = Step::Ready;
        Ok(())
    }

    /// Lets go of the copy after a failure.
    pub(super) fn abandon(&mut self, pool: &mut Pool) {
        if let Step::Fetching(_, chunk) | Step::Changed(_, chunk) | Step::Storing(_, chunk) = self.step {
            pool.drop_chunk(chunk);
            self.step = Step::Ready;
        }
    }
}

fn sub_slice(slice: BufSlice, from: u64, len: u64) -> BufSlice {
    let small = |n: u64| u32::try_from(n).expect("inside a slice");
    BufSlice { buf: slice.buf, offset: slice.offset + small(from), len: small(len) }
}

fn narrow(n: u64) -> usize {
    usize::try_from(n).expect("a length in memory")
}
