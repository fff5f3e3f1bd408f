//! The beginning of a data link: who speaks, and whether the two copies belong together.
//!
//! ```text
//!   dialer ── hello ─────────────► acceptor     judges it
//!   dialer ◄───────────── hello ── acceptor     or a refusal, and the end
//!   dialer ── hello, again ──────► acceptor     or a refusal, and the end
//! ```
//! The third one says that the dialer accepts, too: only then do both hand the socket over. Lengths are read exactly, so
//! that no byte of the first frame is lost. Each side says why it refuses, and both log the same sentence.

use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use super::stream::explain;
use crate::wire::hello::{self, Hello, HelloError};

/// Longest time for the whole exchange.
pub(super) const EXCHANGE_TIME: Duration = Duration::from_secs(3);

/// Why a link did not come about.
#[derive(Debug, thiserror::Error)]
pub(super) enum ExchangeError {
    /// The connection failed.
    #[error("the connection failed during the hello: {}", explain(.0))]
    Io(#[from] std::io::Error),
    /// The other side did not prove who it is, or does not believe this one.
    #[error("{0}")]
    Distrust(String),
    /// The other side is too slow.
    #[error("the other side did not finish its hello within {} s", EXCHANGE_TIME.as_secs())]
    Slow,
    /// The other side's bytes make no hello.
    #[error(transparent)]
    Hello(#[from] HelloError),
    /// This node refuses.
    #[error("this node refuses the link: {0}")]
    Refused(String),
    /// The other side refuses.
    #[error("{node} refuses the link: {why}")]
    RefusedByPeer {
        /// Its name.
        node: String,
        /// Its reason.
        why: String,
    },
}

/// Dials: says `mine`, and returns the other side's hello when both accept.
///
/// # Errors
/// [`ExchangeError`]; the connection is then to be closed.
pub(super) async fn dial<S>(stream: &mut S, mine: &Hello, peer: &str) -> Result<Hello, ExchangeError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    within_time(async {
        send(stream, mine).await?;
        let theirs = receive(stream).await?;
        match judge(mine, &theirs, Some(peer)) {
            Ok(()) => send(stream, mine).await?,
            Err(why) => return refuse(stream, mine, why).await,
        }
        Ok(theirs)
    })
    .await
}

/// Accepts: reads a hello, lets `answer` find what to say to it, and returns both hellos and what `answer` found.
///
/// `answer` gives this node's hello for the volume that was asked for, or a hello to refuse with and the reason.
///
/// # Errors
/// [`ExchangeError`]; the connection is then to be closed.
pub(super) async fn accept<S, T, F>(
    stream: &mut S,
    answer: impl FnOnce(Hello) -> F,
) -> Result<(Hello, Hello, T), ExchangeError>
where
    S: AsyncRead + AsyncWrite + Unpin,
    F: Future<Output = Result<(Hello, T), Box<(Hello, String)>>>,
{
    within_time(async {
        let theirs = receive(stream).await?;
        let (mine, found) = match answer(theirs.clone()).await {
            Ok(found) => found,
            Err(refusal) => return refuse(stream, &refusal.0, refusal.1).await,
        };
        if let Err(why) = judge(&mine, &theirs, None) {
            return refuse(stream, &mine, why).await;
        }
        send(stream, &mine).await?;
        let again = receive(stream).await?;
        if again != theirs {
            return Err(ExchangeError::Refused("its second hello differs from its first".to_owned()));
        }
        Ok((mine, theirs, found))
    })
    .await
}

async fn within_time<T>(exchange: impl Future<Output = Result<T, ExchangeError>>) -> Result<T, ExchangeError> {
    tokio::time::timeout(EXCHANGE_TIME, exchange).await.unwrap_or(Err(ExchangeError::Slow))
}

async fn receive<S: AsyncRead + Unpin>(stream: &mut S) -> Result<Hello, ExchangeError> {
    let mut prefix = [0; hello::PREFIX_LEN];
    stream.read_exact(&mut prefix).await?;
    let prefix = Hello::prefix(&prefix)?;
    let mut body = vec![0; prefix.body_len];
    stream.read_exact(&mut body).await?;
    let theirs = Hello::decode(&prefix, &body)?;
    if theirs.refusal.is_empty() {
        Ok(theirs)
    } else {
        Err(ExchangeError::RefusedByPeer { node: printable(&theirs.node), why: printable(&theirs.refusal) })
    }
}

async fn send<S: AsyncWrite + Unpin>(stream: &mut S, hello: &Hello) -> std::io::Result<()> {
    stream.write_all(&hello.encode()).await?;
    // What is encrypted may wait in memory.
    stream.flush().await
}

async fn refuse<S: AsyncWrite + Unpin, T>(stream: &mut S, mine: &Hello, why: String) -> Result<T, ExchangeError> {
    /// Bytes of a reason that surely fit into a hello beside three names.
    const REASON_LEN_MAX: usize = 600;
    let end = (0..=why.len().min(REASON_LEN_MAX)).rev().find(|&end| why.is_char_boundary(end)).unwrap_or(0);
    let refusal = Hello { refusal: why[..end].to_owned(), ..mine.clone() };
    send(stream, &refusal).await?;
    // The other side reads it before it sees the end; what it still sends is of no interest.
    stream.shutdown().await?;
    Err(ExchangeError::Refused(why))
}

/// Whether two hellos fit together; `expected` is the node that was dialled.
///
/// # Errors
/// The reason, as both nodes' logs will have it.
fn judge(mine: &Hello, theirs: &Hello, expected: Option<&str>) -> Result<(), String> {
    let (me, they) = (&mine.node, printable(&theirs.node));
    if theirs.instance == mine.instance {
        return Err(format!(
            "node {they} shows the disk instance of node {me}: an address leads a node to itself, or one copy was cloned \
             with its metadata; check the data addresses, or run `repblk init` on the clone"
        ));
    }
    if theirs.cluster_name != mine.cluster_name {
        let theirs = printable(&theirs.cluster_name);
        return Err(format!("node {me} is in cluster {:?}, node {they} in cluster {theirs:?}", mine.cluster_name));
    }
    if theirs.volume_name != mine.volume_name {
        let theirs = printable(&theirs.volume_name);
        return Err(format!("node {me} speaks of volume {:?}, node {they} of volume {theirs:?}", mine.volume_name));
    }
    if let Some(expected) = expected.filter(|expected| *expected != theirs.node) {
        return Err(format!("node {expected} was dialled and node {they} answers; check the data addresses"));
    }
    if theirs.node == mine.node {
        return Err(format!("both nodes are called {me}; start one of them with another --node"));
    }
    let ids_known = [mine.cluster.is_some(), theirs.cluster.is_some(), mine.volume.is_some(), theirs.volume.is_some()];
    if ids_known == [true; 4] && (mine.cluster, mine.volume) != (theirs.cluster, theirs.volume) {
        return Err(format!(
            "the names agree, and the metadata of node {me} and of node {they} were formatted for different clusters or \
             volumes ({}/{} and {}/{}); run `repblk init` on the copy that does not belong here",
            mine.cluster, mine.volume, theirs.cluster, theirs.volume
        ));
    }
    if theirs.size != mine.size {
        return Err(format!(
            "volume {} has {} bytes on node {me} and {} bytes on node {they}; give both devices the same size and place of \
             metadata, and run `repblk init` on the one that was wrong",
            mine.volume_name, mine.size, theirs.size
        ));
    }
    Ok(())
}

/// A stranger's text without control characters, for the log.
fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '?' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::units::{ClusterId, DiskInstance, VolumeId};

    fn hello(node: &str, instance: u128) -> Hello {
        Hello {
            cluster_name: "plant7".into(),
            cluster: ClusterId(1),
            volume_name: "mes".into(),
            volume: VolumeId(2),
            instance: DiskInstance(instance),
            node: node.into(),
            size: 1 << 30,
            nonce: 77,
            refusal: String::new(),
        }
    }

    async fn run(dialer: Hello, acceptor: Hello) -> (Result<Hello, ExchangeError>, Result<Hello, ExchangeError>) {
        let (mut a, mut b) = tokio::io::duplex(4096);
        let dialed = async move { dial(&mut a, &dialer, "beta").await };
        let accepted = async move { accept(&mut b, async |_| Ok((acceptor, ()))).await.map(|(_, theirs, ())| theirs) };
        tokio::join!(dialed, accepted)
    }

    #[tokio::test]
    async fn two_that_fit_come_together() {
        let (dialed, accepted) = run(hello("alpha", 1), hello("beta", 2)).await;
        assert_eq!(dialed.expect("accepts").node, "beta");
        assert_eq!(accepted.expect("accepts").node, "alpha");
    }

    #[tokio::test]
    async fn whatever_does_not_fit_is_told_to_both() {
        let beta = || hello("beta", 2);
        let cases = [
            (Hello { cluster_name: "plant8".into(), ..beta() }, "in cluster \"plant8\""),
            (Hello { volume_name: "logs".into(), ..beta() }, "of volume \"logs\""),
            (Hello { cluster: ClusterId(9), ..beta() }, "formatted for different clusters"),
            (Hello { volume: VolumeId(9), ..beta() }, "formatted for different clusters"),
            (Hello { size: 4096, ..beta() }, "give both devices the same size"),
            (hello("beta", 1), "an address leads a node to itself"),
            (hello("alpha", 2), "both nodes are called alpha"),
        ];
        for (acceptor, what) in cases {
            let (dialed, accepted) = run(hello("alpha", 1), acceptor).await;
            let (dialed, accepted) = (dialed.expect_err(what).to_string(), accepted.expect_err(what).to_string());
            assert!(accepted.contains("this node refuses") && accepted.contains(what), "{accepted}");
            assert!(dialed.contains("beta refuses") || dialed.contains("alpha refuses"), "{dialed}");
            assert!(dialed.contains(what), "{dialed}");
        }
    }

    #[tokio::test]
    async fn the_dialer_refuses_what_answers_in_anothers_place() {
        let (dialed, accepted) = run(hello("alpha", 1), hello("gamma", 3)).await;
        assert!(dialed.expect_err("is not beta").to_string().contains("node gamma answers"));
        assert!(accepted.expect_err("hears it").to_string().contains("alpha refuses"));
    }

    #[tokio::test]
    async fn a_fresh_copy_without_identities_is_accepted() {
        let fresh = Hello { cluster: ClusterId::NONE, volume: VolumeId::NONE, ..hello("beta", 2) };
        let (dialed, accepted) = run(hello("alpha", 1), fresh).await;
        assert!(dialed.is_ok() && accepted.is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn silence_and_strangers_end_in_bounded_time() {
        let (mut a, _silent) = tokio::io::duplex(4096);
        let silent = dial(&mut a, &hello("alpha", 1), "beta").await;
        assert!(matches!(silent, Err(ExchangeError::Slow)));
        let (mut a, mut b) = tokio::io::duplex(4096);
        b.write_all(b"SSH-2.0-OpenSSH_9.2p1 Debian-2+deb12u3\r\n").await.expect("fits");
        let stranger = dial(&mut a, &hello("alpha", 1), "beta").await;
        assert!(matches!(stranger, Err(ExchangeError::Hello(HelloError::Magic))));
    }

    proptest! {
        /// Whatever comes, alone or behind good hellos: the exchange ends, answers one hello at most, and takes no byte of what follows it.
        #[test]
        fn whatever_comes_ends_the_exchange(
            good in 0usize..4,
            bytes in proptest::collection::vec(any::<u8>(), 0..2000),
            flip in proptest::option::of((any::<proptest::sample::Index>(), 1u8..)),
            closed: bool,
        ) {
            let theirs = hello("alpha", 1);
            let mut said = theirs.encode().repeat(good);
            let hello_len = theirs.encode().len();
            said.extend(&bytes);
            if let Some((at, bits)) = flip.filter(|_| !said.is_empty()) {
                let at = at.index(said.len());
                said[at] ^= bits;
            }
            let whole = good >= 2 && said[..2 * hello_len] == theirs.encode().repeat(2);
            let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
            runtime.expect("a runtime").block_on(async {
                let (mut a, mut b) = tokio::io::duplex(64 << 10);
                a.write_all(&said).await.expect("there is room");
                if closed {
                    a.shutdown().await.expect("open");
                }
                let accepted = accept(&mut b, async |_| Ok((hello("beta", 2), ()))).await;
                prop_assert_eq!(accepted.is_ok(), whole);
                if whole {
                    let mut rest = vec![0; said.len() - 2 * hello_len];
                    b.read_exact(&mut rest).await.expect("it is all there");
                    prop_assert_eq!(&rest[..], &said[2 * hello_len..]);
                }
                if let Err(error) = accepted {
                    let told = error.to_string();
                    prop_assert!(!told.contains(char::is_control) && told.len() < 2 * hello::BODY_LEN_MAX, "{:?}", told);
                }
                drop(b);
                let mut answer = Vec::new();
                a.read_to_end(&mut answer).await.expect("the end");
                prop_assert!(answer.len() <= hello::PREFIX_LEN + hello::BODY_LEN_MAX);
                Ok(())
            })?;
        }
    }

    #[test]
    fn a_strangers_text_cannot_break_the_log() {
        let theirs = Hello { cluster_name: "x\n2026 ERROR".into(), ..hello("beta", 2) };
        assert!(!judge(&hello("alpha", 1), &theirs, None).expect_err("differs").contains('\n'));
    }
}
