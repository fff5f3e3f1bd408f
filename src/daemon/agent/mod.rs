//! The agent of a host: a process of its own, beside the daemon, that the *peer's* daemon asks when its link is down. It alone can tell a dead
//! daemon from a broken cable, since it is where the daemon was.
//!
//! ```text
//!  peer's daemon --Asked: volume, my copy--> agent --> does the daemon of this host answer?  yes: it lives
//!                                                  --> silent for too long: killed
//!                                                  --> take its lock on the device: it is gone, and so is its last write
//!                                                  --> make durable that this copy is behind, if the asker's is not
//!                                                  --> stop the services
//!                <--Word: dead, behind, alive, nothing--
//! ```
//! One line of JSON each way, on a TCP connection of its own. Where the nodes have keys it is one of TLS, on which both sides prove which node they are
//! of: a false word of death would make two primaries. It keeps nothing in memory between two questions.
//!
//! | file | noun |
//! |---|---|
//! | `words` | what is said |
//! | `asking` | the peer's side |
//! | `proof` | what is done to prove it |

pub(super) mod asking;
mod proof;
pub mod words;

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::Mutex;
use tokio::time::timeout;
use tracing::{debug, info, warn};

use self::words::{Answered, Asked, LINE_LEN_MAX, Word};
use super::admission::{Door, Source, turn_away};
use super::config::{Config, Node};
use super::lobby::Lobby;
use super::security::Guard;
use super::stream::Stream;
use super::{handshake, sockets};
use crate::tls::AGENT_PROTOCOL;

/// Longest time for the asker to say its question, or to take the answer.
const ASKER_TIME: Duration = Duration::from_secs(2);
/// Askers at one time that have not asked yet, or do not take their answer. Who comes to a full lobby takes a stranger's seat: strangers do
/// not keep the peer from its proof.
const LOBBY_SEATS: usize = 16;

/// Runs the agent of `me` until SIGTERM or SIGINT.
///
/// # Errors
/// A sentence, when it cannot start.
pub fn serve(config: Config, me: Node) -> Result<(), String> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| format!("the agent cannot be started: {error}"))?;
    let served = runtime.block_on(keep_serving(config, me));
    runtime.shutdown_timeout(Duration::from_millis(200));
    served
}

struct Agent {
    config: Config,
    me: Node,
    guard: Arc<Guard>,
    lobby: Arc<Lobby>,
    /// Two askers must not have the same daemon proved dead at once. Only peers wait for it, each with few questions.
    proving: Mutex<()>,
}

async fn keep_serving(config: Config, me: Node) -> Result<(), String> {
    let handler = |kind| signal(kind).map_err(|error| format!("signals cannot be received: {error}"));
    let (mut terminate, mut interrupt) = (handler(SignalKind::terminate())?, handler(SignalKind::interrupt())?);
    let Some(address) = me.agent else {
        return Err(format!("node {} has no agent in the configuration; write agent = \"IP:PORT\"", me.name));
    };
    let guard = Guard::new(&config, &me)?;
    let listener = sockets::tcp(address, "the peer's questions")?;
    let (version, pid) = (env!("CARGO_PKG_VERSION"), std::process::id());
    info!(version, pid, cluster = config.cluster, node = me.name, %address, "repblk agent started");
    let door = Door::new("questions to the agent", config.limits.rate(), Arc::clone(&guard.turned_away));
    let lobby = Arc::new(Lobby::new(LOBBY_SEATS));
    let agent = Arc::new(Agent { config, me, guard, lobby, proving: Mutex::default() });
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            _ = terminate.recv() => return Ok(()),
            _ = interrupt.recv() => return Ok(()),
        };
        match accepted {
            // Who is turned away hears nothing, which proves nothing.
            Ok((stream, from)) if !door.admits(from.ip()) => turn_away(&stream),
            Ok((stream, from)) => {
                let agent = Arc::clone(&agent);
                tokio::spawn(async move { agent.answer(stream, from).await });
            }
            Err(error) => {
                warn!(%error, "an asker cannot be accepted");
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
        }
    }
}

impl Agent {
    /// Listens to a question. It ends when its seat is taken, since it may be a stranger's until it is known.
    async fn listen(
        &self,
        stream: TcpStream,
        from: SocketAddr,
    ) -> Result<(Stream<TcpStream>, Result<Asked, String>), String> {
        let accepted = handshake::accept(stream, AGENT_PROTOCOL, &self.guard).await;
        let (mut stream, proved) = accepted.map_err(|error| error.to_string())?;
        let mut line = Vec::new();
        let limit = u64::try_from(LINE_LEN_MAX).expect("a small constant");
        let mut reader = BufReader::new(&mut stream).take(limit);
        match timeout(ASKER_TIME, reader.read_until(b'\n', &mut line)).await {
            Ok(Ok(_)) => {}
            Ok(Err(error)) => return Err(error.to_string()),
            Err(_) => return Err(format!("it asked nothing within {} s", ASKER_TIME.as_secs())),
        }
        let asked = Asked::parse(&line);
        let asked = asked.and_then(|asked| self.known(&asked, from.ip(), proved.as_deref()).map(|()| asked));
        Ok((stream, asked))
    }

    async fn answer(&self, stream: TcpStream, from: SocketAddr) {
        let source = Some(Source::of(from.ip()));
        let listened = self.lobby.seat_from(source, self.listen(stream, from)).await;
        let (mut stream, asked) = match listened.unwrap_or_else(|| Err("others needed its seat".to_owned())) {
            Ok(heard) => heard,
            Err(why) => {
                debug!(%from, "nobody was answered: {why}");
                return;
            }
        };
        let (word, why) = match asked {
            Ok(asked) => {
                let _turn = self.proving.lock().await;
                proof::prove(&self.config, &self.me, &asked).await
            }
            Err(why) => (Word::Nothing, why),
        };
        info!(%from, word = word.text(), "{why}");
        let line = Answered { word, why }.encode();
        let answering = async {
            stream.write_all(&line).await?;
            stream.shutdown().await
        };
        if !matches!(self.lobby.seat_from(source, timeout(ASKER_TIME, answering)).await, Some(Ok(Ok(())))) {
            debug!(%from, "the answer was not taken");
        }
    }

    /// Whether the asker is the peer that it says to be: by its certificate, and without keys by its address.
    fn known(&self, asked: &Asked, from: IpAddr, proved: Option<&str>) -> Result<(), String> {
        let node = self.config.node(&asked.asker).filter(|node| node.name != self.me.name);
        let Some(node) = node.filter(|_| asked.cluster == self.config.cluster) else {
            return Err(format!("node {:?} of cluster {:?} is no peer of this one", asked.asker, asked.cluster));
        };
        if let Some(proved) = proved {
            let same = proved == node.name;
            return if same { Ok(()) } else { Err(format!("it says {}, and its certificate {proved}", node.name)) };
        }
        let addresses = node.heartbeat.iter().chain(node.agent.as_ref()).chain([&node.data]);
        let known = addresses.map(SocketAddr::ip).any(|ip| ip == from);
        if known { Ok(()) } else { Err(format!("{from} is no address of node {}", node.name)) }
    }
}
