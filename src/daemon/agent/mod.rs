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
use tokio::net::{TcpListener, TcpStream};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{Mutex, Semaphore};
use tokio::time::timeout;
use tracing::{debug, info, warn};

use self::words::{Answered, Asked, LINE_LEN_MAX, Word};
use super::config::{Config, Node};
use super::lobby::Lobby;
use super::security::Guard;
use super::stream::Stream;
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
    tokio::select! {
        () = agent.keep_answering(listener) => {}
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    Ok(())
}

impl Agent {
    /// Answers whoever asks, for ever.
    async fn keep_answering(self: Arc<Self>, listener: TcpListener) {
        let lobby = Arc::new(Lobby::new(ASKERS_MAX));
        let places = Arc::new(Semaphore::new(ASKERS_MAX));
        loop {
            match listener.accept().await {
                Ok((stream, from)) => {
                    let (agent, lobby, places) = (Arc::clone(&self), Arc::clone(&lobby), Arc::clone(&places));
                    tokio::spawn(async move {
                        // Whoever says nothing loses its seat to the next one.
                        let Some(Some((stream, proved, line))) = lobby.seat(agent.hear(stream, from)).await else {
                            return;
                        };
                        // One too many hears nothing, which proves nothing.
                        let Ok(_place) = places.try_acquire() else { return };
                        agent.answer((stream, from), proved.as_deref(), &line).await;
                    });
                }
                Err(error) => {
                    warn!(%error, "an asker cannot be accepted");
                    tokio::time::sleep(Duration::from_millis(200)).await;
                }
            }
        }
    }

    /// Who asks, as far as it has proved that, and its question; none when it does not get so far.
    async fn hear(&self, stream: TcpStream, from: SocketAddr) -> Option<(Stream<TcpStream>, Option<String>, Vec<u8>)> {
        let accepted = handshake::accept(stream, AGENT_PROTOCOL, &self.guard).await;
        let (mut stream, proved) =
            accepted.inspect_err(|error| debug!(%from, "who asks is not believed: {error}")).ok()?;
        let mut line = Vec::new();
        let limit = u64::try_from(LINE_LEN_MAX).expect("a small constant");
        let mut reader = BufReader::new(&mut stream).take(limit);
        timeout(ASKER_TIME, reader.read_until(b'\n', &mut line)).await.ok()?.ok()?;
        Some((stream, proved, line))
    }

    async fn answer(&self, (mut stream, from): (Stream<TcpStream>, SocketAddr), proved: Option<&str>, line: &[u8]) {
        let asked = Asked::parse(line);
        let (word, why) = match asked.and_then(|asked| self.known(&asked, from.ip(), proved).map(|()| asked)) {
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

#[cfg(test)]
mod tests {
    use super::*;

    /// An agent of node alpha of the example, on loopback.
    fn agent() -> Arc<Agent> {
        let example = include_str!("../../../docs/repblk.example.toml");
        let mut config = Config::parse(example, std::path::Path::new("example")).expect("the example is right");
        for node in &mut config.nodes {
            node.data.set_ip(IpAddr::from([127, 0, 0, 1]));
        }
        let me = config.node("alpha").expect("it has one").clone();
        let (guard, proving) = (Guard::without_keys(), Mutex::default());
        Arc::new(Agent { config, me, guard, proving })
    }

    /// Found by review: sixteen connections that said nothing kept the peer from asking, and so from taking over, for as long as somebody cared to
    /// make them anew.
    #[tokio::test]
    async fn strangers_who_say_nothing_keep_nobody_from_asking() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("is bound");
        let serving = tokio::spawn(agent().keep_answering(listener));
        let mut silent = Vec::new();
        for _ in 0..4 * ASKERS_MAX {
            silent.push(TcpStream::connect(address).await.expect("is taken"));
        }
        let mut stream = TcpStream::connect(address).await.expect("is taken");
        let asked = Asked::new("c", "mes", "beta", "0f");
        let mut line = Vec::new();
        let ask = async {
            stream.write_all(&asked.encode()).await.expect("is there");
            BufReader::new(&mut stream).read_until(b'\n', &mut line).await.expect("is there")
        };
        timeout(Duration::from_secs(1), ask).await.expect("an answer while the others are silent");
        let answered = Answered::parse(&line).expect("an answer");
        assert!(answered.word == Word::Nothing && answered.why.contains("no peer"), "{answered:?}");
        serving.abort();
    }
}
