//! Where disk jobs run that must not hold up the volume's thread: in the kernel's ring, or on a helper thread.

use std::io;
use std::os::fd::RawFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::ring::Ring;
use super::sys::EventFd;
use super::worker::Worker;
use crate::units::ByteRange;

/// One thing to do. Its memory and descriptor stay valid and untouched until it is reaped.
#[derive(Debug)]
pub(super) enum Job {
    /// Read; the result is the number of bytes, 0 at the end of the file.
    Read { fd: RawFd, at: u64, address: *mut u8, len: usize },
    /// Write; the result is the number of bytes.
    Write { fd: RawFd, at: u64, address: *const u8, len: usize },
    /// Make written data stable: in this part of the file, or in all of it. More than the part may become so.
    Sync { fd: RawFd, part: Option<ByteRange> },
    /// fallocate(2).
    Allocate { fd: RawFd, mode: libc::c_int, range: ByteRange },
}

// SAFETY: the addresses are only passed to the kernel; the memory behind them is kept valid and untouched by the engine
// until the job is reaped, on whatever thread it runs.
unsafe impl Send for Job {}

/// A job that ended.
#[derive(Debug)]
pub(super) struct Done {
    /// As given.
    pub(super) token: u64,
    /// Bytes, or the operating system's error number.
    pub(super) result: Result<usize, i32>,
}

/// Which backend is wanted.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum BackendChoice {
    /// io_uring, or the helper thread where the system refuses it.
    #[default]
    Auto,
    /// The helper thread.
    Thread,
}

/// A backend.
#[derive(Debug)]
pub(super) struct Backend {
    kind: Kind,
    wake: Arc<EventFd>,
    running: usize,
}

#[derive(Debug)]
enum Kind {
    Ring(Box<Ring>),
    Thread(Worker),
}

impl Backend {
    /// Opens the backend.
    ///
    /// # Errors
    /// When neither can be had.
    pub(super) fn open(choice: BackendChoice) -> io::Result<Self> {
        let wake = Arc::new(EventFd::new()?);
        let ring = match choice {
            BackendChoice::Auto => Ring::open(&wake)
                .inspect_err(|e| tracing::info!("io_uring is not to be had ({e}); a helper thread does its work"))
                .ok(),
            BackendChoice::Thread => None,
        };
        let kind = match ring {
            Some(ring) => Kind::Ring(Box::new(ring)),
            None => Kind::Thread(Worker::start(Arc::clone(&wake))?),
        };
        Ok(Self { kind, wake, running: 0 })
    }

    /// Becomes readable when a job ends.
    pub(super) fn wake(&self) -> &EventFd {
        &self.wake
    }

    /// Jobs not reaped.
    pub(super) fn running(&self) -> usize {
        self.running
    }

    /// Takes a job. It runs after the next [`Backend::start`] at the latest.
    pub(super) fn submit(&mut self, token: u64, job: Job) {
        self.running += 1;
        match &mut self.kind {
            Kind::Ring(ring) => ring.submit(token, job),
            Kind::Thread(worker) => worker.submit(token, job),
        }
    }

    /// Starts what was taken.
    ///
    /// # Errors
    /// When the ring itself is broken; no job can be trusted to end then.
    pub(super) fn start(&mut self) -> io::Result<()> {
        match &mut self.kind {
            Kind::Ring(ring) => ring.start(),
            Kind::Thread(_) => Ok(()),
        }
    }

    /// True when [`Backend::start`] must be called again.
    pub(super) fn is_held_up(&self) -> bool {
        matches!(&self.kind, Kind::Ring(ring) if ring.is_held_up())
    }

    /// Appends the jobs that ended.
    pub(super) fn reap(&mut self, out: &mut Vec<Done>) {
        let before = out.len();
        match &mut self.kind {
            Kind::Ring(ring) => ring.reap(out),
            Kind::Thread(worker) => worker.reap(out),
        }
        self.running -= out.len() - before;
    }

    /// Waits until every job has ended, at most for `limit`. False when some have not: their memory must never be freed.
    pub(super) fn settle(&mut self, limit: Duration) -> bool {
        let (begun, mut done) = (Instant::now(), Vec::new());
        while self.running > 0 {
            if begun.elapsed() > limit || self.start().is_err() {
                return false;
            }
            self.reap(&mut done);
            std::thread::yield_now();
        }
        true
    }
}
