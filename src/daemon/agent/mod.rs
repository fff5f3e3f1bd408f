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
use tokio::sync::{Mutex, Semaphore};
use tokio::time::timeout;
use tracing::{debug, info, warn};

use self::words::{Answered, Asked, LINE_LEN_MAX, Word};
use super::config::{Config, Node};
use super::security::Guard;
use super::{handshake, sockets};
use crate::tls::AGENT_PROTOCOL;

/// Longest time for the asker to say its question, or to take the answer.
const ASKER_TIME: Duration = Duration::from_secs(2);
/// Askers at one time.
const ASKERS_MAX: usize = 16;

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
    /// Two askers must not have the same daemon proved dead at once.
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
    let agent = Arc::new(Agent { config, me, guard, proving: Mutex::default() });
    let places = Arc::new(Semaphore::new(ASKERS_MAX));
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            _ = terminate.recv() => return Ok(()),
            _ = interrupt.recv() => return Ok(()),
        };
        match accepted {
            Ok((stream, from)) => {
                // One too many hears nothing, which proves nothing.
                let Ok(place) = Arc::clone(&places).try_acquire_owned() else { continue };
                let agent = Arc::clone(&agent);
                tokio::spawn(async move {
                    agent.answer(stream, from).await;
                    drop(place);
                });
            }
            Err(error) => {
                warn!(%error, "an asker cannot be accepted");
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
        }
    }
}

impl Agent {
    async fn answer(&self, stream: TcpStream, from: SocketAddr) {
        let (mut stream, proved) = match handshake::accept(stream, AGENT_PROTOCOL, &self.guard).await {
            Ok(accepted) => accepted,
            Err(error) => {
                debug!(%from, "who asks is not believed: {error}");
                return;
            }
        };
        let mut line = Vec::new();
        let limit = u64::try_from(LINE_LEN_MAX).expect("a small constant");
        let mut reader = BufReader::new(&mut stream).take(limit);
        let heard = timeout(ASKER_TIME, reader.read_until(b'\n', &mut line)).await;
        let asked = match heard {
            Ok(Ok(_)) => Asked::parse(&line),
            _ => return,
        };
        let (word, why) = match asked.and_then(|asked| self.known(&asked, from.ip(), proved.as_deref()).map(|()| asked))
        {
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
        if !matches!(timeout(ASKER_TIME, answering).await, Ok(Ok(()))) {
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
