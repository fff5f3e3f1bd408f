//! NBD clients: accepting them, negotiating, and giving the socket to the volume.
//!
//! A client has so long for its negotiation as `[limits]` says, and sits in a lobby meanwhile: those that never agree lose their seats to
//! newcomers and keep nobody out. From a node that is not primary it gets a refusal that names the
//! primary, at once; nothing waits for a promotion. What it may not have it is not told of, but for the rule when it asks by name.
//!
//! A client that is served and silent is left alone, for a database at night is as silent as that: `client_idle_s` is 0 unless an operator
//! knows better. What is ended is a connection whose host is gone: the kernel asks it for a sign of life after `client_keepalive_s`.
//!
//! With keys a client may, or must, ask for TLS first (`STARTTLS`). The handshake is part of the negotiation and of its time.

use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use socket2::{SockRef, TcpKeepalive};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UnixStream};
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tracing::{debug, info, warn};

use super::admission::{Caller, Door, Places, Quota, Source, turn_away};
use super::config::{Config, NbdRule, NbdTlsMode};
use super::handle::{Client, VolumeHandle};
use super::lobby::Lobby;
use super::security::Guard;
use super::sockets::UnixSocket;
use super::stream::{Stream, explain};
use crate::condition::Role;
use crate::dataplane::Negotiated;
use crate::dataplane::mailbox::{ClientManners, State};
use crate::generation::Lineage;
use crate::nbd::constants::BASE_ALLOCATION_ID;
use crate::nbd::{
    ExportInfo, ExportListing, ExportRefusal, Exports, FOLLOW_SUFFIX, Handover, Mode, Negotiation, Next, RefusalCode,
    Standing, Tls, follow_name,
};
use crate::units::SessionId;
use crate::volume::io::Snapshot;

/// Most clients that negotiate at one time.
const LOBBY_SEATS: usize = 128;
/// Questions for a sign of life, within one `client_keepalive_s`.
const KEEPALIVE_QUESTIONS: u32 = 3;

/// Everything that negotiations share.
pub(super) struct ExportDesk {
    volumes: Vec<Arc<VolumeHandle>>,
    config: Arc<Config>,
    node: String,
    lobby: Arc<Lobby>,
    places: Arc<Places>,
    door: Door,
    /// Lines in the log about clients that are not believed, or may not have what they ask for.
    strangers: Quota,
    guard: Arc<Guard>,
    next_session: AtomicU64,
}

/// A connected stream that can be handed to the data plane.
pub(super) trait Transport: AsyncRead + AsyncWrite + Unpin + Send + 'static {
    /// The bare socket, watched over as `keepalive` says.
    fn into_socket(self, keepalive: Duration) -> std::io::Result<OwnedFd>;
}

impl Transport for TcpStream {
    fn into_socket(self, keepalive: Duration) -> std::io::Result<OwnedFd> {
        self.set_nodelay(true)?;
        let interval = (keepalive / KEEPALIVE_QUESTIONS).max(Duration::from_secs(1));
        let keepalive = TcpKeepalive::new().with_time(keepalive).with_interval(interval);
        SockRef::from(&self).set_tcp_keepalive(&keepalive.with_retries(KEEPALIVE_QUESTIONS))?;
        Ok(self.into_std()?.into())
    }
}

impl Transport for UnixStream {
    fn into_socket(self, _keepalive: Duration) -> std::io::Result<OwnedFd> {
        Ok(self.into_std()?.into())
    }
}

impl ExportDesk {
    pub(super) fn new(
        volumes: Vec<Arc<VolumeHandle>>,
        config: Arc<Config>,
        node: &str,
        guard: Arc<Guard>,
    ) -> Arc<Self> {
        let limits = &config.limits;
        let places = Places::new(limits.clients, limits.clients_per_address);
        let door = Door::new("connections of NBD clients", limits.rate(), Arc::clone(&guard.turned_away));
        let (lobby, next_session) = (Arc::new(Lobby::new(LOBBY_SEATS)), AtomicU64::new(1));
        Arc::new(Self {
            volumes,
            config,
            node: node.to_owned(),
            lobby,
            places,
            door,
            strangers: Quota::of_strangers(),
            guard,
            next_session,
        })
    }

    /// Takes clients over TCP, for ever.
    pub(super) async fn keep_accepting_tcp(self: Arc<Self>, listener: TcpListener) {
        let unknown = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
        let rule = self.config.nbd_tls.rule(Some(listener.local_addr().map_or(unknown, |address| address.ip())));
        loop {
            match listener.accept().await {
                Ok((stream, from)) if self.door.admits(from.ip()) => {
                    self.clone().welcome(stream, rule, format!("tcp:{from}"), Some(from.ip()));
                }
                Ok((stream, _)) => turn_away(&stream),
                Err(error) => cannot_accept(&error).await,
            }
        }
    }

    /// Takes clients over a Unix socket, for ever.
    pub(super) async fn keep_accepting_unix(self: Arc<Self>, socket: UnixSocket) {
        let rule = self.config.nbd_tls.rule(None);
        loop {
            match socket.listener.accept().await {
                Ok((stream, _)) => {
                    let pid = stream.peer_cred().ok().and_then(|peer| peer.pid());
                    let from = pid.map_or_else(|| "unix".to_owned(), |pid| format!("unix:pid {pid}"));
                    self.clone().welcome(stream, rule, from, None);
                }
                Err(error) => cannot_accept(&error).await,
            }
        }
    }

    fn welcome(self: Arc<Self>, stream: impl Transport, rule: NbdRule, from: String, address: Option<IpAddr>) {
        tokio::spawn(async move {
            match self.serve(stream, rule, &from, address).await {
                Ok(()) => {}
                Err(why) => debug!(from, "NBD client left: {why}"),
            }
        });
    }

    /// Negotiates and hands over.
    async fn serve(
        &self,
        stream: impl Transport,
        rule: NbdRule,
        from: &str,
        address: Option<IpAddr>,
    ) -> Result<(), String> {
        let (limits, source) = (&self.config.limits, address.map(Source::of));
        let negotiation = self.negotiate(stream, rule, Caller { address, certificate: None });
        let seated = self.lobby.seat_from(source, timeout(limits.negotiation, negotiation)).await;
        let agreed = seated.ok_or("newcomers needed its seat before there was agreement")?;
        let late = |_| format!("no agreement within {} ms", limits.negotiation.as_millis());
        let (stream, handover, leftover) = agreed.map_err(late)??;
        let place = self.places.take(source)?;
        let name = handover.export.name.as_str();
        let (name, follows) = name.strip_suffix(FOLLOW_SUFFIX).map_or((name, false), |name| (name, true));
        let volume = self.volumes.iter().find(|volume| volume.name() == name);
        let volume = volume.ok_or("the export is gone")?;
        let mut manners = manners(&handover);
        if follows {
            // As the client was told; what has changed since ends the connection.
            manners.follows = handover.export.description.parse().ok().map(|told: Standing| told.lineage.current);
        }
        let session = SessionId(self.next_session.fetch_add(1, Ordering::Relaxed));
        let (stream, tls) = stream.into_parts();
        let line =
            Negotiated { socket: stream.into_socket(limits.client_keepalive).map_err(|error| error.to_string())?, tls };
        let encrypted = line.tls.is_some();
        let client = Client { session, line, manners, leftover, from: from.to_owned() };
        volume.adopt_client(client, place)?;
        info!(volume = volume.name(), session = session.0, from, mode = ?handover.mode, tls = encrypted, "NBD client connected");
        Ok(())
    }

    /// Speaks TLS from here on; the name in the certificate, if one was shown.
    async fn encrypt<S: Transport>(&self, stream: S, rule: NbdRule) -> Result<(Stream<S>, Option<String>), String> {
        let keys = self.guard.keys().ok_or("there are no keys")?;
        let config = keys.nbd_acceptor(rule.certificates)?;
        let stream = TlsAcceptor::from(config).accept(stream).await.map_err(|error| explain(&error))?;
        let shown = stream.get_ref().1.peer_certificates();
        let holder = keys.client_of(shown);
        if shown.is_some() && holder.is_none() {
            return Err("its certificate is of no node and no client in this cluster".to_owned());
        }
        Ok((Stream::Tls(Box::new(stream.into())), holder.map(|holder| holder.name)))
    }

    async fn negotiate<S: Transport>(
        &self,
        stream: S,
        rule: NbdRule,
        mut caller: Caller,
    ) -> Result<(Stream<S>, Handover, Vec<u8>), String> {
        let mut stream = Stream::Plain(stream);
        let mut out = Vec::new();
        let mut negotiation = Negotiation::start(&mut out).with_tls(match rule.mode {
            NbdTlsMode::Off => Tls::Off,
            NbdTlsMode::Allow => Tls::Allowed,
            NbdTlsMode::Require => Tls::Required,
        });
        let mut bytes = Vec::new();
        let mut wanted = negotiation.wanted();
        loop {
            send(&mut stream, &out).await?;
            out.clear();
            if bytes.is_empty() {
                bytes.resize(wanted, 0);
                let got = stream.read(&mut bytes).await.map_err(|error| explain(&error))?;
                bytes.truncate(got);
                if got == 0 {
                    return Err("it closed the connection during the negotiation".to_owned());
                }
            }
            let exports = self.exports_now(&caller, negotiation.asks(&bytes)).await;
            let progress = negotiation.receive(&bytes, &exports, &mut out);
            bytes.drain(..progress.consumed);
            match progress.next {
                Next::Read(more) => wanted = more,
                Next::StartTls => {
                    if !bytes.is_empty() {
                        return Err(
                            "it sent bytes in the clear behind STARTTLS, which may be somebody else's".to_owned()
                        );
                    }
                    send(&mut stream, &out).await?;
                    out.clear();
                    let Stream::Plain(plain) = stream else { return Err("TLS is spoken already".to_owned()) };
                    (stream, caller.certificate) = self.encrypt(plain, rule).await.inspect_err(|why| {
                        if self.strangers.take() {
                            info!(from = ?caller.address, "no TLS with an NBD client: {why}");
                        }
                    })?;
                    wanted = negotiation.wanted();
                }
                Next::Transmission(handover) => {
                    send(&mut stream, &out).await?;
                    return Ok((stream, *handover, bytes));
                }
                Next::Close(reason) => {
                    let _ = send(&mut stream, &out).await;
                    let _ = stream.shutdown().await;
                    return Err(reason.to_string());
                }
            }
        }
    }

    /// What `caller` may have; nothing is looked at unless it is `asked` for.
    async fn exports_now<'d>(&'d self, caller: &'d Caller, asked: bool) -> ExportsNow<'d> {
        let mut volumes = Vec::new();
        for volume in self.volumes.iter().filter(|_| asked) {
            volumes.push((volume.as_ref(), volume.ask().await));
        }
        ExportsNow { desk: self, caller, volumes }
    }
}

/// The exports as they are during one option.
struct ExportsNow<'d> {
    desk: &'d ExportDesk,
    caller: &'d Caller,
    volumes: Vec<(&'d VolumeHandle, Result<State, String>)>,
}

impl ExportsNow<'_> {
    /// Why a client cannot have the volume here, if it cannot.
    fn refusal(&self, volume: &VolumeHandle, state: &Result<State, String>) -> Option<String> {
        let state = match state {
            Ok(state) if state.volume.role == Role::Primary => {
                return self.desk.places.why_full(self.caller.address.map(Source::of));
            }
            Ok(state) => state,
            Err(why) => return Some(why.clone()),
        };
        let primary = state.volume.peers.iter().find(|peer| peer.role == Some(Role::Primary));
        let here = format!("volume {} is secondary on node {}", volume.name(), self.desk.node);
        Some(match primary {
            Some(primary) => {
                let node = self.desk.config.node(&primary.name);
                let places: Vec<_> = node.into_iter().flat_map(|node| &node.nbd).map(ToString::to_string).collect();
                let at = if places.is_empty() { String::new() } else { format!(" ({})", places.join(", ")) };
                format!("{here}; the primary is node {}{at}: connect there", primary.name)
            }
            None => format!("{here}, and no primary is known; `repblk promote` makes one"),
        })
    }
}

impl ExportsNow<'_> {
    /// Why the client may not have the volume anywhere, if it may not.
    fn not_allowed(&self, volume: &VolumeHandle) -> Option<String> {
        volume.spec.allow.judge(self.caller, volume.name()).err().map(|why| why.to_string())
    }

    /// The volumes that the client may have.
    fn allowed(&self) -> impl Iterator<Item = &(&VolumeHandle, Result<State, String>)> {
        self.volumes.iter().filter(|(volume, _)| self.not_allowed(volume).is_none())
    }

    /// What a follower is told.
    fn standing(&self, volume: &VolumeHandle, state: &Snapshot) -> Standing {
        Standing {
            cluster_name: self.desk.config.cluster.clone(),
            node: self.desk.node.clone(),
            cluster: volume.identity.cluster,
            volume: volume.identity.volume,
            instance: volume.identity.instance,
            lineage: Lineage { current: state.generation, history: state.history },
            term: state.term,
            whole_since: state.whole_since,
            mode: state.mode,
        }
    }
}

impl Exports for ExportsNow<'_> {
    fn find(&self, name: &[u8]) -> Result<ExportInfo, ExportRefusal> {
        let (name, follows) = name.strip_suffix(FOLLOW_SUFFIX.as_bytes()).map_or((name, false), |name| (name, true));
        let wanted = |volume: &VolumeHandle| volume.name().as_bytes() == name;
        // An empty name asks for the default: the only volume, if there is only one.
        let default = name.is_empty() && self.volumes.len() == 1;
        let found = self.volumes.iter().find(|(volume, _)| default || wanted(volume));
        let Some((volume, state)) = found else {
            let names: Vec<_> = self.allowed().map(|(volume, _)| volume.name()).collect();
            let has = if names.is_empty() { "none for this client".to_owned() } else { names.join(", ") };
            let message = format!("there is no such export on node {}; it has: {has}", self.desk.node);
            return Err(ExportRefusal { code: RefusalCode::Unknown, message });
        };
        if let Some(message) = self.not_allowed(volume) {
            if self.desk.strangers.take() {
                info!(volume = volume.name(), from = ?self.caller.address, "NBD client {message}");
            }
            return Err(ExportRefusal { code: RefusalCode::Policy, message });
        }
        if let Some(message) = self.refusal(volume, state) {
            return Err(ExportRefusal { code: RefusalCode::Policy, message });
        }
        let size = volume.identity.size;
        match state {
            Ok(state) if follows => Ok(ExportInfo {
                description: self.standing(volume, &state.volume).to_string(),
                ..ExportInfo::new(follow_name(volume.name()), size)
            }),
            _ => Ok(ExportInfo {
                description: format!("repblk volume {} of cluster {}", volume.name(), self.desk.config.cluster),
                ..ExportInfo::new(volume.name(), size)
            }),
        }
    }

    fn list(&self) -> Vec<ExportListing> {
        let listing = |(volume, state): &(&VolumeHandle, Result<State, String>)| ExportListing {
            name: volume.name().to_owned(),
            description: self.refusal(volume, state).unwrap_or_else(|| format!("primary on node {}", self.desk.node)),
        };
        self.allowed().map(listing).collect()
    }

    fn shutting_down(&self) -> bool {
        self.desk.volumes.iter().all(|volume| volume.ended().is_some())
    }
}

async fn send<S: AsyncWrite + Unpin>(stream: &mut S, bytes: &[u8]) -> Result<(), String> {
    stream.write_all(bytes).await.map_err(|error| explain(&error))?;
    // What is encrypted may wait in memory.
    stream.flush().await.map_err(|error| explain(&error))
}

fn manners(handover: &Handover) -> ClientManners {
    ClientManners {
        structured: handover.mode != Mode::Simple,
        extended: handover.mode == Mode::Extended,
        allocation_context: handover.contexts.allocation.then_some(BASE_ALLOCATION_ID),
        follows: None,
    }
}

async fn cannot_accept(error: &std::io::Error) {
    // Out of descriptors or memory: going on at once would only burn the processor.
    warn!(%error, "an NBD client cannot be accepted");
    tokio::time::sleep(Duration::from_millis(200)).await;
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A client's host is watched by the kernel, whatever the client does not say.
    #[tokio::test]
    async fn a_served_socket_has_a_keepalive_as_configured() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("bound");
        let _client = TcpStream::connect(listener.local_addr().expect("bound")).await.expect("connects");
        let (served, _) = listener.accept().await.expect("comes");
        let socket = socket2::Socket::from(served.into_socket(Duration::from_secs(30)).expect("a socket"));
        assert!(socket.keepalive().expect("told") && socket.tcp_nodelay().expect("told"));
        let told = (socket.tcp_keepalive_time(), socket.tcp_keepalive_interval(), socket.tcp_keepalive_retries());
        let told = (told.0.expect("told"), told.1.expect("told"), told.2.expect("told"));
        assert_eq!(told, (Duration::from_secs(30), Duration::from_secs(10), 3));
    }
}
