//! The bucket at a listener: whether an address may open one more connection, before a byte of it is read.

use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use socket2::SockRef;
use tokio::net::TcpStream;
use tracing::warn;

use super::bucket::{Bucket, Buckets, Rate, Taken};
use super::source::Source;
use crate::units::Moment;

/// Lines of a log that strangers can cause: 20 at a time, and one more in 10 s. A disk is not filled with them.
const STRANGERS_LINES: Rate = Rate { token: Duration::from_secs(10), burst: 20 };

/// The door of one listener.
#[derive(Debug)]
pub(in crate::daemon) struct Door {
    /// What is listened for, for the log.
    what: &'static str,
    began: Instant,
    buckets: Mutex<Buckets>,
    quota: Quota,
    /// Connections that were turned away, of all doors.
    turned_away: Arc<AtomicU64>,
}

impl Door {
    /// Where each address may come at this rate.
    pub(in crate::daemon) fn new(what: &'static str, rate: Rate, turned_away: Arc<AtomicU64>) -> Self {
        let (began, buckets, quota) = (Instant::now(), Mutex::new(Buckets::new(rate)), Quota::of_strangers());
        Self { what, began, buckets, quota, turned_away }
    }

    /// Whether a connection from `address` may come in now. Who may not is counted, and told once.
    pub(in crate::daemon) fn admits(&self, address: IpAddr) -> bool {
        let (source, now) = (Source::of(address), moment(self.began));
        let taken = self.buckets.lock().unwrap_or_else(PoisonError::into_inner).take(source, now);
        let Taken::No { first } = taken else { return true };
        self.turned_away.fetch_add(1, Ordering::Relaxed);
        if first && self.quota.take() {
            let what = self.what;
            warn!(
                %source,
                "refused by the rule too-many-connections: {what} from there are opened faster than [limits] allows \
                 (`connections_per_second`, `connections_burst`); told once until it rests"
            );
        }
        false
    }
}

/// So many of something, as time goes on.
#[derive(Debug)]
pub(in crate::daemon) struct Quota {
    rate: Rate,
    began: Instant,
    bucket: Mutex<Bucket>,
}

impl Quota {
    /// Of lines in the log that strangers cause.
    pub(in crate::daemon) fn of_strangers() -> Self {
        Self { rate: STRANGERS_LINES, began: Instant::now(), bucket: Mutex::default() }
    }

    /// Takes one, if there is one.
    pub(in crate::daemon) fn take(&self) -> bool {
        let now = moment(self.began);
        self.bucket.lock().unwrap_or_else(PoisonError::into_inner).take(self.rate, now) == Taken::Yes
    }
}

fn moment(began: Instant) -> Moment {
    Moment(u64::try_from(began.elapsed().as_nanos()).unwrap_or(u64::MAX))
}

/// Ends a connection at once, and leaves nothing of it in the kernel.
pub(in crate::daemon) fn turn_away(stream: &TcpStream) {
    // Where it cannot be, the kernel keeps it for a minute, as it keeps others.
    let _ = SockRef::from(stream).set_linger(Some(Duration::ZERO));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_door_counts_whom_it_turns_away_and_the_log_is_bounded() {
        let turned_away = Arc::new(AtomicU64::new(0));
        let rate = Rate { token: Duration::from_secs(3600), burst: 2 };
        let door = Door::new("NBD clients", rate, Arc::clone(&turned_away));
        let [one, other] = [[10, 0, 0, 1], [10, 0, 0, 2]].map(IpAddr::from);
        assert_eq!([one, one, one, other].map(|address| door.admits(address)), [true, true, false, true]);
        assert_eq!(turned_away.load(Ordering::Relaxed), 1);
        let quota = Quota::of_strangers();
        assert_eq!((0..1000).filter(|_| quota.take()).count(), 20);
    }
}
