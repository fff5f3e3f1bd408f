//! Group commit: however many ask while a sync runs, one more covers them all.
//!
//! At most one sync of a file runs. The kernel tells an open file of a failed write-back once: of two syncs at the same time, one could take
//! the error that the other should have had.
//!
//! A sync waits for a device and runs beside the volume's thread. A file system in memory has none: its syncs do nothing, and are done
//! on the spot, since handing one over costs more than a write.

use std::fs::File;
use std::os::fd::{AsRawFd, RawFd};

use super::backend::{Backend, Job};
use super::sys;
use crate::units::{ByteRange, OpId};
use crate::volume::io::DiskError;

/// The syncs of one file, or of a part of it.
#[derive(Debug)]
pub(super) struct SyncQueue {
    fd: RawFd,
    part: Option<ByteRange>,
    token: u64,
    /// The file lives in memory.
    instant: bool,
    /// Covered by the running sync.
    running: Vec<OpId>,
    /// Asked after it began: it may not cover what they wait for.
    waiting: Vec<OpId>,
    /// The kernel tells of a failed write-back once and then forgets it; this queue does not.
    failed: Option<DiskError>,
}

impl SyncQueue {
    /// The queue of `file`, or of a part of it, whose jobs carry `token`. The file stays open longer than the queue lives.
    pub(super) fn new(file: &File, part: Option<ByteRange>, token: u64) -> Self {
        Self {
            fd: file.as_raw_fd(),
            part,
            token,
            instant: sys::is_in_memory(file),
            running: Vec::new(),
            waiting: Vec::new(),
            failed: None,
        }
    }

    /// Asks for a sync of everything written so far. The result, when there is one at once: an error when an earlier sync
    /// has failed.
    pub(super) fn ask(&mut self, op: OpId, backend: &mut Backend) -> Option<Result<(), DiskError>> {
        if let Some(error) = self.failed {
            return Some(Err(error));
        }
        if self.instant {
            let result = sys::sync_data(self.fd).map_err(|e| DiskError { errno: sys::errno(&e) });
            self.failed = result.err();
            return Some(result);
        }
        if self.running.is_empty() {
            self.running.push(op);
            backend.submit(self.token, Job::Sync { fd: self.fd, part: self.part });
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
            backend.submit(self.token, Job::Sync { fd: self.fd, part: self.part });
        }
    }
}
