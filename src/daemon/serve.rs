//! The daemon from its start to its end.

use std::sync::Arc;
use std::time::Duration;

use tokio::net::UdpSocket;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::timeout;
use tracing::{error, info, warn};

use super::beat_path::BeatPaths;
use super::config::{Config, NbdAddress, Node, Security};
use super::control::access::Doorkeeper;
use super::control::server::{ControlDesk, Room};
use super::events::EventHub;
use super::exports::ExportDesk;
use super::failover::{self, Post, Surroundings};
use super::handle::VolumeHandle;
use super::heartbeat::{Ear, Heartbeat};
use super::identity::random_u64;
use super::security::Guard;
use super::sockets::{self, UnixSocket};
use super::start::{self, Started};
use super::{links, promise};
use crate::dataplane::Mailbox;
use crate::dataplane::mailbox::Letter;
use crate::failover::config::Arbiter;
use crate::failover::io::Ask;
use crate::volume::io::Command;

/// Longest time for the volumes to settle after SIGTERM.
const SHUTDOWN_TIME: Duration = Duration::from_secs(10);
/// Longest time for a volume's thread to end when it was told to stop.
const STOP_TIME: Duration = Duration::from_secs(2);

/// Runs the daemon of `me` until SIGTERM or SIGINT.
///
/// # Errors
/// A sentence, when the daemon cannot start, when a volume did not settle in time at the end, or when the threads of all
/// volumes have ended.
pub fn serve(config: Config, me: Node) -> Result<(), String> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| format!("the control plane cannot be started: {error}"))?;
    let served = runtime.block_on(async { Daemon::start(Arc::new(config), me)?.run().await });
    // A task that hangs in the system must not keep the process.
    runtime.shutdown_timeout(Duration::from_millis(200));
    served
}

/// Everything that listens. Bound before a disk is touched: a second daemon stops here.
struct Listeners {
    control: UnixSocket,
    data: tokio::net::TcpListener,
    nbd_unix: Vec<UnixSocket>,
    nbd_tcp: Vec<tokio::net::TcpListener>,
    heartbeat: Vec<Arc<UdpSocket>>,
}

struct Daemon {
    me: Node,
    volumes: Vec<Arc<VolumeHandle>>,
    /// The drivers of failover, in the order of the volumes.
    posts: Vec<Post>,
    mailboxes: Vec<Mailbox>,
    /// Lets clients and links in; ended first.
    doors: Vec<JoinHandle<()>>,
    /// Control and heartbeats; ended last.
    services: Vec<JoinHandle<()>>,
    terminate: Signal,
    interrupt: Signal,
}

impl Listeners {
    fn bind(me: &Node, keeper: &Doorkeeper) -> Result<Self, String> {
        let control = UnixSocket::bind_for(&me.control, keeper.mode(), keeper.group(), "control")?;
        let data = sockets::tcp(me.data, "data links")?;
        let (mut nbd_unix, mut nbd_tcp) = (Vec::new(), Vec::new());
        for address in &me.nbd {
            match address {
                // Whoever may write to the device may connect; the folder's permissions narrow that further.
                NbdAddress::Unix(path) => nbd_unix.push(UnixSocket::bind(path, 0o660, "NBD clients")?),
                NbdAddress::Tcp(address) => nbd_tcp.push(sockets::tcp(*address, "NBD clients")?),
            }
        }
        let heartbeat = me.heartbeat.iter().map(|address| sockets::udp(*address, "heartbeats").map(Arc::new));
        Ok(Self { control, data, nbd_unix, nbd_tcp, heartbeat: heartbeat.collect::<Result<_, _>>()? })
    }
}

impl Daemon {
    fn start(config: Arc<Config>, me: Node) -> Result<Self, String> {
        let handler = |kind| signal(kind).map_err(|error| format!("signals cannot be received: {error}"));
        let (terminate, interrupt) = (handler(SignalKind::terminate())?, handler(SignalKind::interrupt())?);
        if config.volumes_of(&me.name).next().is_none() {
            return Err(format!("no volume has a copy on node {}; there is nothing to serve", me.name));
        }
        let keeper = Doorkeeper::new(&me.name, &config.control)?;
        let listeners = Listeners::bind(&me, &keeper)?;
        let incarnation = random_u64().map_err(|error| format!("no random number can be had: {error}"))?;
        let events = EventHub::new(&me.name);
        let guard = Guard::new(&config, &me)?;
        let paths = Arc::new(BeatPaths::new(&config, &me, &listeners.heartbeat, incarnation, &guard));
        let mut started = Vec::new();
        for (spec, copy) in config.volumes_of(&me.name) {
            started.push(start::start(&config, &me, spec, copy, events.clone())?);
        }
        let (mut services, mut volumes, mut mailboxes) = (Vec::new(), Vec::new(), Vec::new());
        for Started { handle, mut news, mailbox } in started {
            let hearing = Arc::clone(&handle);
            services.push(tokio::spawn(async move {
                while let Some(news) = news.recv().await {
                    hearing.hear(news);
                }
            }));
            volumes.push(handle);
            mailboxes.push(mailbox);
        }
        let around = Surroundings {
            config: Arc::clone(&config),
            me: me.clone(),
            paths: Arc::clone(&paths),
            incarnation,
            guard: Arc::clone(&guard),
        };
        let posts = volumes.iter().map(|volume| failover::start(&around, volume, &mut services));
        let posts = posts.collect::<Result<Vec<Post>, String>>()?;
        let mut daemon = Self { me, volumes, posts, mailboxes, doors: Vec::new(), services, terminate, interrupt };
        daemon.open(&config, (listeners, keeper), events, (incarnation, paths, guard));
        daemon.greet(&config);
        Ok(daemon)
    }

    /// Starts everything that listens or speaks.
    fn open(
        &mut self,
        config: &Arc<Config>,
        (listeners, keeper): (Listeners, Doorkeeper),
        events: EventHub,
        (incarnation, paths, guard): (u64, Arc<BeatPaths>, Arc<Guard>),
    ) {
        let Listeners { control, data, nbd_unix, nbd_tcp, heartbeat } = listeners;
        let (me, volumes) = (self.me.clone(), self.volumes.clone());
        let ear = Arc::new(Ear::new(config.heartbeat_interval));
        let desk = ControlDesk {
            config: Arc::clone(config),
            node: me.name.clone(),
            volumes: volumes.clone(),
            posts: self.posts.clone(),
            ear: Arc::clone(&ear),
            guard: Arc::clone(&guard),
            events,
            keeper,
            operators: Room::for_operators(),
            readers: Room::for_readers(),
        };
        self.services.push(tokio::spawn(Arc::new(desk).keep_serving(control)));
        let beats = Arc::new(Heartbeat {
            config: Arc::clone(config),
            me: me.clone(),
            volumes: volumes.clone(),
            ear,
            incarnation,
            posts: self.posts.clone(),
            paths: Arc::clone(&paths),
            guard: Arc::clone(&guard),
        });
        self.services.push(tokio::spawn(Arc::clone(&guard).keep_warning()));
        self.services.push(tokio::spawn(paths.keep_secrets(Arc::clone(&guard))));
        for (path, socket) in heartbeat.iter().enumerate() {
            self.services.push(tokio::spawn(Arc::clone(&beats).keep_listening(path, Arc::clone(socket))));
        }
        self.services.push(tokio::spawn(beats.keep_sending()));
        let exports = ExportDesk::new(volumes.clone(), Arc::clone(config), &me.name, Arc::clone(&guard));
        for socket in nbd_unix {
            self.doors.push(tokio::spawn(Arc::clone(&exports).keep_accepting_unix(socket)));
        }
        for listener in nbd_tcp {
            self.doors.push(tokio::spawn(Arc::clone(&exports).keep_accepting_tcp(listener)));
        }
        for volume in &volumes {
            for peer in volume.peers.iter().filter(|peer| links::dials(&me.name, peer)) {
                let Some(peer) = config.node(peer).cloned() else { continue };
                let who = (me.clone(), config.cluster.clone());
                let dialling = links::keep_dialling(Arc::clone(volume), who, peer, Arc::clone(&guard));
                self.doors.push(tokio::spawn(dialling));
            }
        }
        self.doors.push(tokio::spawn(links::keep_accepting(data, volumes, me, Arc::clone(config), guard)));
    }

    fn greet(&self, config: &Config) {
        let (version, pid) = (env!("CARGO_PKG_VERSION"), std::process::id());
        info!(version, pid, cluster = config.cluster, node = self.me.name, "repblk started");
        let (arbiter, guarantee) = (config.arbiter.arbiter(), config.arbiter.guarantee());
        if arbiter == Arbiter::None {
            warn!(arbiter = arbiter.word(), "{guarantee}");
        } else {
            info!(arbiter = arbiter.word(), "{guarantee}");
        }
        match &config.security {
            Security::Insecure => warn!("{}", config.security.meaning()),
            Security::Keys(_) | Security::Loopback => info!("{}", config.security.meaning()),
        }
        match config.nbd_tls.remote([&self.me]) {
            Some(rule) if rule.is_open() => warn!("NBD: {}", rule.meaning()),
            Some(rule) => info!("NBD: {}", rule.meaning()),
            None => {}
        }
        for volume in &self.volumes {
            let mode = volume.spec.mode;
            info!(volume = volume.name(), %mode, device = %volume.copy.device.display(), "{}", promise(mode));
        }
    }

    async fn run(mut self) -> Result<(), String> {
        let volumes = self.volumes.clone();
        let why = tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
            () = all_ended(&volumes) => {
                error!("the threads of all volumes have ended; so does the daemon");
                return Err("the threads of all volumes have ended; the log says why".to_owned());
            }
        };
        info!("{why}: settling the volumes, for at most {} s; again to leave at once", SHUTDOWN_TIME.as_secs());
        let (posts, doors) = (self.posts.clone(), std::mem::take(&mut self.doors));
        let leave = async {
            let services = posts.iter().filter_map(|post| post.services.as_ref());
            let services: Duration = services.map(|services| services.stop_limit).max().unwrap_or_default();
            timeout(SHUTDOWN_TIME + services, give_up(&posts)).await.unwrap_or_default();
            doors.iter().for_each(JoinHandle::abort);
            settle(&volumes).await
        };
        let settled = tokio::select! {
            settled = leave => settled,
            _ = self.terminate.recv() => Err("left at once, by a second signal".to_owned()),
            _ = self.interrupt.recv() => Err("left at once, by a second signal".to_owned()),
        };
        for volume in &self.volumes {
            // A volume that ended already needs no telling.
            let _ = volume.post(Letter::Stop);
        }
        if timeout(STOP_TIME, all_ended(&self.volumes)).await.is_ok() {
            self.mailboxes.iter().for_each(Mailbox::join);
        }
        self.services.iter().for_each(JoinHandle::abort);
        match settled {
            Ok(()) => info!("repblk stopped; everything is flushed and recorded"),
            Err(ref why) => {
                warn!("repblk stopped without order: {why}; nothing acknowledged is lost, a resync may follow")
            }
        }
        settled
    }
}

async fn all_ended(volumes: &[Arc<VolumeHandle>]) {
    for volume in volumes {
        while volume.ended().is_none() {
            // The pause bounds the time that a notice between the question and the wait is missed.
            let _ = timeout(Duration::from_millis(250), volume.end_news.notified()).await;
        }
    }
}

/// Hands over where that can be, and stops what runs on this node in any case.
async fn give_up(posts: &[Post]) {
    hand_over(posts).await;
    for services in posts.iter().filter_map(|post| post.services.as_ref()) {
        if let Err(why) = services.rest().await {
            warn!("{why}; the device goes away under it");
        }
    }
}

/// Where a record decides, gives the role of each volume to the peer, if that can take it; the others are left as they are. The machine
/// bounds the time.
async fn hand_over(posts: &[Post]) {
    for post in posts {
        let record = post.look(|failover, now| failover.view(now).arbiter == Arbiter::Etcd).await;
        if record == Some(true) {
            // A refusal says that there is nothing to hand over, or nobody to take it.
            let _ = post.ask(Ask::HandOver).await;
        }
    }
}

/// Lets every volume finish, flush and record that everything is in order.
async fn settle(volumes: &[Arc<VolumeHandle>]) -> Result<(), String> {
    let mut settling = JoinSet::new();
    for volume in volumes {
        let (name, answer) = (volume.name().to_owned(), volume.command(Command::Shutdown));
        settling.spawn(async move {
            match timeout(SHUTDOWN_TIME, answer).await {
                Ok(Ok(Ok(()))) => Ok(()),
                Ok(Ok(Err(refusal))) => Err(format!("volume {name}: {refusal}")),
                Ok(Err(_)) => Err(format!("the thread of volume {name} had ended")),
                Err(_) => Err(format!("volume {name} did not settle within {} s", SHUTDOWN_TIME.as_secs())),
            }
        });
    }
    settling.join_all().await.into_iter().collect()
}
