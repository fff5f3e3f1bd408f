//! Honest clients in a crowd of hostile ones, and what they waited for.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::pair::{MIB, Pair};
use crate::raw_nbd::Raw;
use crate::tools::noise;

/// Where clients beside a ledger write: behind the ledger's blocks, which are in the first MiB.
pub(crate) const PLAYGROUND: u64 = 4 * MIB;
/// How long honest clients are watched in a crowd.
pub(crate) const CROWDED: Duration = Duration::from_secs(3);

/// Three clients that write and read.
pub(crate) struct Honest {
    stop: Arc<AtomicBool>,
    clients: Vec<JoinHandle<Vec<Duration>>>,
}

impl Honest {
    /// Clients that write and read back 4 KiB and 1 MiB.
    pub(crate) fn start(pair: &Pair) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let clients = [(pair.alpha.place(), 4096), (pair.alpha.nbd_tcp.clone(), 4096), (pair.alpha.place(), 1 << 20)];
        let start = |(number, (place, len)): (u64, (String, usize))| {
            let stop = Arc::clone(&stop);
            std::thread::spawn(move || {
                let mut raw = Raw::connect(&place).expect("is served");
                let (at, mut waits) = (PLAYGROUND + number * 2 * MIB, Vec::new());
                for round in 0.. {
                    if stop.load(Ordering::Relaxed) {
                        break;
                    }
                    let bytes = noise(round, len);
                    let began = Instant::now();
                    assert_eq!(raw.write(at, &bytes, 0).expect("is answered"), 0);
                    assert!(raw.read(at, len).expect("is answered") == bytes, "what was written is read");
                    waits.push(began.elapsed());
                }
                waits
            })
        };
        Self { clients: (0..).zip(clients).map(start).collect(), stop }
    }

    /// Ends them after `time`; each was served all the while.
    #[track_caller]
    pub(crate) fn were_served(self, time: Duration, what: &str) {
        std::thread::sleep(time);
        self.stop.store(true, Ordering::Relaxed);
        for client in self.clients {
            let waits = client.join().expect("an honest client is served");
            let (worst, count) = (waits.iter().max().expect("served"), waits.len());
            println!("{what}: {count} honest pairs of requests, the slowest took {worst:?}");
            assert!(*worst < Duration::from_secs(2), "{what}: an honest client waited {worst:?}");
            assert!(count > 10, "{what}: an honest client was served only {count} times");
        }
    }
}
