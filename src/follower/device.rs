//! A device of the kernel's NBD client that follows the primary.
//!
//! Requests never come here: the kernel holds them, and sends again what was not answered when it gets a new connection. This
//! finds the primary, judges it, and hands the socket to the kernel; with TLS, one end of a [`Tunnel`].
//!
//! - A connection ends when the node ends it, or when the kernel has had no answer for [`TIMEOUT_S`] and gives it up; either way the
//!   kernel shuts the socket down, which is seen here on a second handle of it.
//! - The kernel takes a new socket only for one that it knows to be dead, and ignores it otherwise; so it is offered several times.
//! - After a restart of this process there is no second handle. Then a connection counts as dead when requests are under way
//!   and none was completed for a while.
//! - What was acknowledged, and what of it a flush has covered, only the kernel knows: everything counts as acknowledged, and nothing
//!   as covered.

use std::io::ErrorKind;
use std::net::Shutdown;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use socket2::Socket;
use tokio::sync::{mpsc, oneshot, watch};
use tracing::{debug, error, info, warn};

use super::control::{Ask, Servers, Status};
use super::dial::{Found, Search};
use super::hub::Event;
use super::memory::Memory;
use super::netlink::{Netlink, Terms};
use super::tunnel::Tunnel;
use super::upstream::Wire;
use crate::attach::OnDoubt;
use crate::attach::judge::{Claim, Judgement, judge};
use crate::nbd::Standing;

/// Seconds without an answer after which the kernel gives a connection up: longer than a primary takes to go on without its peer,
/// and the time after which the kernel sends again what was under way.
const TIMEOUT_S: u64 = 5;
/// Seconds that the kernel's requests wait for a primary.
const DEAD_S: u64 = 24 * 3600;
/// When a socket is offered to the kernel again, which may be late in noticing that the old one is dead.
const OFFERS: [Duration; 7] = [
    Duration::from_millis(20),
    Duration::from_millis(80),
    Duration::from_millis(200),
    Duration::from_millis(700),
    Duration::from_secs(2),
    Duration::from_secs(4),
    Duration::from_secs(8),
];
/// Time between two looks at the connection that the kernel has.
const GLANCE: Duration = Duration::from_millis(50);
/// Time between two looks at a device whose connection cannot be seen.
const LOOK: Duration = Duration::from_secs(1);
/// Looks without progress after which that connection counts as dead.
const STALLED_LOOKS: u32 = 3;

/// The connection that the kernel has.
struct Live {
    /// A second handle of it.
    socket: Socket,
    standing: Box<Standing>,
    offered: usize,
    next_offer: Instant,
    _tunnel: Option<Tunnel>,
    _kept: oneshot::Sender<()>,
}

/// What the kernel says of the device's work.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
struct Work {
    completed: u64,
    under_way: u64,
}

pub(super) struct Device {
    volume: String,
    cluster: String,
    on_doubt: OnDoubt,
    index: u32,
    netlink: Netlink,
    memory: Memory,
    proven: Option<(Standing, u64)>,
    search: watch::Sender<Search>,
    servers: Servers,
    live: Option<Live>,
    /// The kernel has the device.
    connected: bool,
    doubt: Option<String>,
    failed: bool,
    failovers: u64,
    lost_at: Option<Instant>,
    gap_ms: Option<u64>,
    flags: u16,
    work: Work,
    looks: u32,
}

impl Device {
    /// Takes the device over, if it is connected already.
    ///
    /// # Errors
    /// A sentence when the kernel has no NBD client, or the device is another's.
    pub(super) fn new(
        (volume, cluster, on_doubt): (String, String, OnDoubt),
        index: u32,
        memory: Memory,
        search: watch::Sender<Search>,
        servers: Servers,
    ) -> Result<Self, String> {
        let netlink = Netlink::open()?;
        let proven = memory.load()?;
        let connected = std::fs::exists(format!("/sys/block/nbd{index}/pid")).unwrap_or(false);
        if connected {
            let ours = proven.as_ref().map(|(standing, _)| identity(standing));
            let theirs = std::fs::read_to_string(format!("/sys/block/nbd{index}/backend")).unwrap_or_default();
            if ours.as_deref() != Some(theirs.trim()) {
                return Err(format!(
                    "/dev/nbd{index} is connected already, to something else ({}); name a device that is free",
                    theirs.trim()
                ));
            }
        }
        Ok(Self {
            volume,
            cluster,
            on_doubt,
            index,
            netlink,
            memory,
            proven,
            search,
            servers,
            live: None,
            connected,
            doubt: None,
            failed: false,
            failovers: 0,
            lost_at: None,
            gap_ms: None,
            flags: 0,
            work: Work::default(),
            looks: 0,
        })
    }

    /// Follows until it is told to end.
    ///
    /// # Errors
    /// A sentence when it cannot go on.
    pub(super) async fn run(mut self, mut inbox: mpsc::Receiver<Event>) -> Result<(), String> {
        if !self.connected {
            self.seek();
        }
        loop {
            let offer_at = self.live.as_ref().filter(|live| live.offered < OFFERS.len()).map(|live| live.next_offer);
            let look_at = (self.connected && self.live.is_none()).then(|| Instant::now() + LOOK);
            tokio::select! {
                event = inbox.recv() => {
                    if self.hear(event.ok_or("nobody looks for a primary any more")?)? {
                        return Ok(());
                    }
                }
                () = closed(self.live.as_ref()) => self.lost("the connection ended"),
                () = super::sleep_until(offer_at) => self.offer()?,
                () = super::sleep_until(look_at) => self.look(),
            }
        }
    }

    /// True when it is over.
    fn hear(&mut self, event: Event) -> Result<bool, String> {
        match event {
            Event::Found(found) => self.found(found)?,
            Event::NotFound { address, miss } => self.servers.note(&self.volume, address, miss),
            Event::Control { ask, answer } => {
                let _ = answer.send(self.status());
                if ask == Ask::Detach {
                    if self.connected {
                        self.netlink.disconnect(self.index).map_err(|error| format!("detaching failed: {error}"))?;
                    }
                    self.memory.clear()?;
                    info!(volume = self.volume, "detached");
                    return Ok(true);
                }
            }
            Event::Fatal(why) => return Err(why),
            // There are no local clients, and no connection is read here.
            Event::Asked(_) | Event::ClientHere | Event::ClientGone { .. } => {}
            Event::Replied { .. } | Event::Lost { .. } => {}
        }
        Ok(false)
    }

    fn seek(&mut self) {
        self.search.send_replace(Search::Primary { above: None });
    }

    fn lost(&mut self, why: &str) {
        warn!(volume = self.volume, why, "the primary is lost; the kernel holds what it is asked");
        self.live = None;
        self.lost_at.get_or_insert_with(Instant::now);
        self.seek();
    }

    fn found(&mut self, found: Found) -> Result<(), String> {
        let Found { wire, standing, size, flags, kept, .. } = found;
        if self.failed || self.live.as_ref().is_some_and(|live| standing.term <= live.standing.term) {
            return Ok(());
        }
        let claim = Claim {
            proven: self.proven.as_ref().map(|(standing, _)| standing),
            size: self.proven.as_ref().map(|&(_, size)| size),
            exposed: true,
            cluster: &self.cluster,
        };
        match judge(claim, &standing, size) {
            Judgement::Good => {}
            Judgement::Stale(why) => {
                debug!(volume = self.volume, why, "not followed");
                return Ok(());
            }
            Judgement::Doubt(why) => return self.in_doubt(why),
        }
        if let Some(old) = self.live.take() {
            // Before anything goes to the new one. The kernel notices, and holds what comes until it has the new one.
            let _ = old.socket.shutdown(Shutdown::Both);
            self.lost_at.get_or_insert_with(Instant::now);
        }
        // Before the kernel can be given its first answer there.
        self.memory.save(&standing, size)?;
        self.proven = Some(((*standing).clone(), size));
        self.flags = flags;
        self.doubt = None;
        let handed = hand_over(wire).map_err(|error| format!("the connection cannot be handed over: {error}"))?;
        let (socket, tunnel) = (Socket::from(handed.0), handed.1);
        let gap_ms = self.lost_at.take().map(|at| u64::try_from(at.elapsed().as_millis()).unwrap_or(u64::MAX));
        self.failovers += u64::from(gap_ms.is_some());
        self.gap_ms = gap_ms.or(self.gap_ms);
        let (node, term, generation) = (&standing.node, standing.term.0, standing.lineage.current);
        info!(volume = self.volume, node, term, %generation, gap_ms, "following the primary");
        self.search.send_replace(Search::Rest);
        self.live =
            Some(Live { socket, standing, offered: 0, next_offer: Instant::now(), _tunnel: tunnel, _kept: kept });
        self.offer()
    }

    /// Hands the socket to the kernel.
    fn offer(&mut self) -> Result<(), String> {
        let (Some(live), Some((standing, size))) = (&mut self.live, &self.proven) else { return Ok(()) };
        let identity = identity(standing);
        let terms = Terms {
            index: self.index,
            size: *size,
            flags: self.flags,
            timeout_s: TIMEOUT_S,
            dead_s: DEAD_S,
            identity: &identity,
        };
        let socket = live.socket.as_fd();
        let done = match self.connected {
            false => self.netlink.connect(&terms, socket),
            true => self.netlink.reconfigure(&terms, socket),
        };
        match done {
            Ok(()) if !self.connected => {
                info!(
                    volume = self.volume,
                    bytes = size,
                    device = format!("/dev/nbd{}", self.index),
                    "device is ready"
                );
                (self.connected, live.offered) = (true, OFFERS.len());
                Ok(())
            }
            Ok(()) => {
                live.next_offer = Instant::now() + OFFERS[live.offered];
                live.offered += 1;
                Ok(())
            }
            Err(error) => Err(format!("the kernel does not take the connection for /dev/nbd{}: {error}", self.index)),
        }
    }

    fn in_doubt(&mut self, why: String) -> Result<(), String> {
        if self.doubt.as_ref() != Some(&why) {
            error!(volume = self.volume, "{}", super::doubt_sentence(&self.volume, &why));
        }
        self.doubt = Some(why);
        if self.on_doubt == OnDoubt::Fail && self.live.is_none() && self.proven.is_some() {
            self.failed = true;
            self.search.send_replace(Search::Rest);
            if self.connected {
                let ended = self.netlink.disconnect(self.index);
                ended.map_err(|error| format!("the device cannot be ended: {error}"))?;
                self.connected = false;
            }
        }
        Ok(())
    }

    /// Looks whether a connection that an earlier life of this process made still works.
    fn look(&mut self) {
        if self.lost_at.is_some() {
            return;
        }
        let Some(work) = work(self.index) else { return };
        let stalled = work.under_way > 0 && work.completed == self.work.completed;
        self.looks = if stalled { self.looks + 1 } else { 0 };
        self.work = work;
        if self.looks >= STALLED_LOOKS {
            self.looks = 0;
            self.lost("requests are under way and none is completed");
        }
    }

    fn status(&self) -> Status {
        let live = self.live.as_ref().map(|live| &*live.standing);
        let standing = live.or(self.proven.as_ref().map(|(standing, _)| standing));
        let state = match (live, &self.doubt) {
            _ if self.failed => "failed",
            (Some(_), _) => "following",
            (None, Some(_)) => "in doubt",
            (None, None) if self.connected && self.lost_at.is_none() => "following",
            (None, None) => "seeking",
        };
        Status {
            clients: 0,
            open_requests: work(self.index).map_or(0, |work| usize::try_from(work.under_way).unwrap_or(usize::MAX)),
            failovers: self.failovers,
            last_gap_ms: self.gap_ms,
            size_bytes: self.proven.as_ref().map(|&(_, size)| size),
            doubt: self.doubt.clone(),
            ..Status::of(&self.volume, state, standing, &self.servers)
        }
    }
}

/// The socket for the kernel, and what carries it on over TLS.
fn hand_over(wire: Wire) -> std::io::Result<(OwnedFd, Option<Tunnel>)> {
    Ok(match wire {
        Wire::Tcp(stream) => (stream.into_std()?.into(), None),
        Wire::Unix(stream) => (stream.into_std()?.into(), None),
        Wire::Tls(stream) => {
            let (socket, tunnel) = Tunnel::open(stream)?;
            (socket, Some(tunnel))
        }
    })
}

/// What the kernel knows a device's content by.
fn identity(standing: &Standing) -> String {
    format!("repblk:{}:{}", standing.cluster, standing.volume)
}

/// Waits for the end of a connection.
async fn closed(live: Option<&Live>) {
    let Some(live) = live else { return std::future::pending().await };
    while !is_over(&live.socket) {
        tokio::time::sleep(GLANCE).await;
    }
}

/// True when the socket was shut down. Sending nothing tells, and is nothing to the other side.
fn is_over(socket: &Socket) -> bool {
    socket.send(&[]).is_err_and(|error| error.kind() != ErrorKind::WouldBlock)
}

/// What `/sys/block/nbdX/stat` says.
fn work(index: u32) -> Option<Work> {
    let text = std::fs::read_to_string(format!("/sys/block/nbd{index}/stat")).ok()?;
    work_of(&text)
}

fn work_of(stat: &str) -> Option<Work> {
    let numbers: Vec<u64> = stat.split_ascii_whitespace().map(str::parse).collect::<Result<_, _>>().ok()?;
    // Reads, writes, discards and flushes that were completed; the ninth number is what is under way.
    let completed = [0, 4, 11, 15].into_iter().filter_map(|at| numbers.get(at)).sum();
    Some(Work { completed, under_way: *numbers.get(8)? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_account_is_read() {
        let stat = "  446   0  21000  93  1203  0  99000  500  3  400  600  7  0  56 1  11 2";
        assert_eq!(work_of(stat), Some(Work { completed: 446 + 1203 + 7 + 11, under_way: 3 }));
        assert_eq!(work_of("1 2 3"), None);
        assert_eq!(work_of("one"), None);
    }

    #[test]
    fn the_end_of_a_connection_is_seen_and_its_data_is_not_taken() {
        let (ours, mut theirs) = std::os::unix::net::UnixStream::pair().expect("a pair");
        ours.set_nonblocking(true).expect("set");
        let mut kernels = ours.try_clone().expect("a second handle");
        let socket = Socket::from(OwnedFd::from(ours));
        std::io::Write::write_all(&mut theirs, b"data").expect("sent");
        assert!(!is_over(&socket), "data is no end");
        let mut data = [0; 4];
        std::io::Read::read_exact(&mut kernels, &mut data).expect("it is all there");
        kernels.shutdown(Shutdown::Both).expect("as the kernel does");
        assert!(is_over(&socket));
        assert_eq!(std::io::Read::read(&mut theirs, &mut data).expect("the end"), 0, "nothing came of looking");
    }
}
