//! The portable way to run disk jobs beside the volume's thread: one helper thread, for systems that refuse io_uring.

use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use super::backend::{Done, Job};
use super::sys::{self, EventFd};

#[derive(Debug, Default)]
struct Queues {
    todo: VecDeque<(u64, Job)>,
    done: Vec<Done>,
    stop: bool,
}

#[derive(Debug)]
struct Shared {
    queues: Mutex<Queues>,
    ready: Condvar,
    wake: Arc<EventFd>,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Queues> {
        // A panic ends the process, or in a test the test; the queues are whole at every unlock.
        self.queues.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The helper thread and its queues.
#[derive(Debug)]
pub(super) struct Worker {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl Worker {
    /// Starts the thread. It signals `wake` when a job is done.
    pub(super) fn start(wake: Arc<EventFd>) -> io::Result<Self> {
        let shared = Arc::new(Shared { queues: Mutex::default(), ready: Condvar::new(), wake });
        let theirs = Arc::clone(&shared);
        let thread = std::thread::Builder::new().name("disk-helper".to_owned()).spawn(move || run(&theirs))?;
        Ok(Self { shared, thread: Some(thread) })
    }

    pub(super) fn submit(&mut self, token: u64, job: Job) {
        self.shared.lock().todo.push_back((token, job));
        self.shared.ready.notify_one();
    }

    pub(super) fn reap(&mut self, out: &mut Vec<Done>) {
        out.append(&mut self.shared.lock().done);
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.shared.lock().stop = true;
        self.shared.ready.notify_one();
        if let Some(thread) = self.thread.take() {
            // The thread ends by itself; its panic, if any, was already told.
            let _ = thread.join();
        }
    }
}

fn run(shared: &Shared) {
    loop {
        let mut queues = shared.lock();
        let (token, job) = loop {
            if let Some(next) = queues.todo.pop_front() {
                break next;
            }
            if queues.stop {
                return;
            }
            queues = shared.ready.wait(queues).unwrap_or_else(PoisonError::into_inner);
        };
        drop(queues);
        let result = perform(&job).map_err(|e| sys::errno(&e));
        shared.lock().done.push(Done { token, result });
        shared.wake.signal();
    }
}

fn perform(job: &Job) -> io::Result<usize> {
    loop {
        let result = match *job {
            // SAFETY: whoever made the job keeps the memory valid and untouched until the job is reaped.
            Job::Read { fd, at, address, len } => unsafe { sys::read_into(fd, at, address, len) },
            // SAFETY: as above.
            Job::Write { fd, at, address, len } => unsafe { sys::write_from(fd, at, address, len) },
            Job::Sync { fd, part } => {
                part.map_or_else(|| sys::sync_data(fd), |part| sys::sync_part(fd, part)).map(|()| 0)
            }
            Job::Allocate { fd, mode, range } => sys::allocate(fd, mode, range).map(|()| 0),
        };
        match result {
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            other => return other,
        }
    }
}
