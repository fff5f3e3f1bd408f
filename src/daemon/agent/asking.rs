//! The side of the daemon that asks the agent of its peer's host.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpSocket;
use tokio::time::timeout;
use tracing::{info, warn};

use super::words::{Answered, Asked, LINE_LEN_MAX};
use crate::daemon::handshake;
use crate::daemon::security::Guard;
use crate::daemon::services::run::Case;
use crate::failover::io::ProofWord;
use crate::tls::AGENT_PROTOCOL;
use crate::units::DiskInstance;

/// What is asked, and where.
#[derive(Debug, Clone)]
pub(in crate::daemon) struct Question {
    pub(in crate::daemon) at: SocketAddr,
    /// This node's address there: the agent knows the peer by it.
    pub(in crate::daemon) from: Option<IpAddr>,
    pub(in crate::daemon) case: Case,
    /// This node's copy.
    pub(in crate::daemon) instance: DiskInstance,
    /// Without an answer for so long, nothing is proved.
    pub(in crate::daemon) timeout: Duration,
    /// Both sides prove who they are by these keys, where there are any.
    pub(in crate::daemon) guard: Arc<Guard>,
}

impl Question {
    /// Asks once.
    pub(in crate::daemon) async fn ask(&self) -> ProofWord {
        let (volume, peer) = (&self.case.volume, &self.case.peer);
        let answered = timeout(self.timeout, self.converse()).await;
        match answered.unwrap_or_else(|_| Err(format!("no answer within {} ms", self.timeout.as_millis()))) {
            Ok(answered) => {
                info!(volume, peer, word = answered.word.text(), "the agent of the peer's host: {}", answered.why);
                answered.word.proof()
            }
            Err(why) => {
                warn!(volume, peer, address = %self.at, "the agent of the peer's host proves nothing: {why}");
                ProofWord::Nothing
            }
        }
    }

    async fn converse(&self) -> Result<Answered, String> {
        let unreached = |error| format!("it is not reached: {error}");
        let socket = if self.at.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }.map_err(unreached)?;
        if let Some(from) = self.from {
            socket.bind(SocketAddr::new(from, 0)).map_err(unreached)?;
        }
        let stream = socket.connect(self.at).await.map_err(unreached)?;
        let Case { cluster, node, volume, peer } = &self.case;
        let shaken = handshake::dial(stream, peer, AGENT_PROTOCOL, &self.guard).await;
        let mut stream = shaken.map_err(|error| error.to_string())?;
        let asked = Asked::new(cluster, volume, node, &self.instance.to_string());
        stream.write_all(&asked.encode()).await.map_err(|error| error.to_string())?;
        let mut line = Vec::new();
        let limit = u64::try_from(LINE_LEN_MAX).expect("a small constant");
        BufReader::new(&mut stream)
            .take(limit)
            .read_until(b'\n', &mut line)
            .await
            .map_err(|error| error.to_string())?;
        Answered::parse(&line)
    }
}
