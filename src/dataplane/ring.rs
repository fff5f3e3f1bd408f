//! Disk jobs through io_uring.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, AsRawFd};

use io_uring::{IoUring, Probe, opcode, squeue, types};

use super::backend::{Done, Job};
use super::sys::EventFd;

/// Entries of the ring, and jobs given to the kernel at once.
const ENTRIES: u32 = 256;

/// The ring of one volume.
pub(super) struct Ring {
    ring: IoUring,
    running: u32,
    /// Pushed and not submitted.
    fresh: bool,
    backlog: VecDeque<(u64, Job)>,
}

impl std::fmt::Debug for Ring {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ring").field("running", &self.running).field("backlog", &self.backlog.len()).finish()
    }
}

impl Ring {
    /// Sets up the ring; completions signal `wake`.
    ///
    /// # Errors
    /// When the system has no io_uring, forbids it, or lacks an operation.
    pub(super) fn open(wake: &EventFd) -> io::Result<Self> {
        let ring = IoUring::new(ENTRIES)?;
        let mut probe = Probe::new();
        ring.submitter().register_probe(&mut probe)?;
        let needed = [opcode::Read::CODE, opcode::Write::CODE, opcode::Fsync::CODE, opcode::Fallocate::CODE];
        if !needed.iter().all(|&code| probe.is_supported(code)) {
            return Err(io::Error::from(io::ErrorKind::Unsupported));
        }
        ring.submitter().register_eventfd(wake.as_fd().as_raw_fd())?;
        Ok(Self { ring, running: 0, fresh: false, backlog: VecDeque::new() })
    }

    pub(super) fn submit(&mut self, token: u64, job: Job) {
        if self.running == ENTRIES || !self.backlog.is_empty() {
            self.backlog.push_back((token, job));
        } else {
            self.push(token, &job);
        }
    }

    fn push(&mut self, token: u64, job: &Job) {
        let entry = entry(job).user_data(token);
        // SAFETY: whoever made the job keeps its memory and descriptor valid until the completion is reaped.
        let pushed = unsafe { self.ring.submission().push(&entry) };
        pushed.expect("at most ENTRIES jobs run, and each has a place in the queue");
        self.running += 1;
        self.fresh = true;
    }

    /// Hands the kernel what was pushed.
    pub(super) fn start(&mut self) -> io::Result<()> {
        if !self.fresh {
            return Ok(());
        }
        loop {
            match self.ring.submit() {
                Ok(_) => {
                    self.fresh = !self.ring.submission().is_empty();
                    return Ok(());
                }
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                // The kernel is short of memory or of places for completions: reaping makes room.
                Err(e) if matches!(e.raw_os_error(), Some(libc::EAGAIN | libc::EBUSY)) => return Ok(()),
                Err(e) => return Err(e),
            }
        }
    }

    /// True when something pushed could not be handed over yet.
    pub(super) fn is_held_up(&self) -> bool {
        self.fresh
    }

    pub(super) fn reap(&mut self, out: &mut Vec<Done>) {
        loop {
            let before = out.len();
            for completion in self.ring.completion() {
                let result = usize::try_from(completion.result()).map_err(|_| -completion.result());
                out.push(Done { token: completion.user_data(), result });
            }
            let count = u32::try_from(out.len() - before).expect("bounded by the ring");
            self.running -= count;
            if count == 0 {
                break;
            }
        }
        while self.running < ENTRIES
            && let Some((token, job)) = self.backlog.pop_front()
        {
            self.push(token, &job);
        }
    }
}

fn entry(job: &Job) -> squeue::Entry {
    // One request is far shorter than the kernel's limit; a longer one would just be done in parts.
    let bounded = |len: usize| u32::try_from(len).unwrap_or(1 << 30);
    match *job {
        Job::Read { fd, at, address, len } => {
            opcode::Read::new(types::Fd(fd), address, bounded(len)).offset(at).build()
        }
        Job::Write { fd, at, address, len } => {
            opcode::Write::new(types::Fd(fd), address, bounded(len)).offset(at).build()
        }
        Job::Sync { fd, part } => {
            // An entry has 32 bits for the length. Zero twice is all of the file, which a longer part is in too.
            let part = part.and_then(|part| Some((part.start(), u32::try_from(part.len()).ok()?)));
            let (start, len) = part.unwrap_or_default();
            opcode::Fsync::new(types::Fd(fd)).flags(types::FsyncFlags::DATASYNC).offset(start).len(len).build()
        }
        Job::Allocate { fd, mode, range } => {
            opcode::Fallocate::new(types::Fd(fd), range.len()).offset(range.start()).mode(mode).build()
        }
    }
}
