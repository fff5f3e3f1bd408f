//! Group commit: however many ask while a sync runs, one more covers them all.

use std::os::fd::RawFd;

use super::backend::{Backend, Job};
use crate::units::OpId;
use crate::volume::io::DiskError;

/// The syncs of one file.
#[derive(Debug)]
pub(super) struct SyncQueue {
    fd: RawFd,
    token: u64,
    /// Covered by the running sync.
    running: Vec<OpId>,
    /// Asked after it began: it may not cover what they wait for.
    waiting: Vec<OpId>,
    /// The kernel tells of a failed write-back once and then forgets it; this queue does not.
    failed: Option<DiskError>,
}

impl SyncQueue {
    /// The queue of `fd`, whose jobs carry `token`.
    pub(super) fn new(fd: RawFd, token: u64) -> Self {
        Self { fd, token, running: Vec::new(), waiting: Vec::new(), failed: None }
    }

    /// Asks for a sync of everything written so far. The error, when an earlier sync has failed.
    pub(super) fn ask(&mut self, op: OpId, backend: &mut Backend) -> Option<DiskError> {
        if self.failed.is_some() {
            return self.failed;
        }
        if self.running.is_empty() {
            self.running.push(op);
            backend.submit(self.token, Job::Sync { fd: self.fd });
        } else {
            self.waiting.push(op);
        }
        None
    }

    /// The running sync ended; each operation it covered is told, and after a failure those that wait too.
    pub(super) fn ended(&mut self, failed: Option<DiskError>, backend: &mut Backend, mut tell: impl FnMut(OpId)) {
        self.running.drain(..).for_each(&mut tell);
        if failed.is_some() {
            self.failed = failed;
            self.waiting.drain(..).for_each(tell);
        } else if !self.waiting.is_empty() {
            std::mem::swap(&mut self.running, &mut self.waiting);
            backend.submit(self.token, Job::Sync { fd: self.fd });
        }
    }
}
