//! The fence: a command that switches the peer off, or reaches it and makes it outdated. Its exit code is all it says, and the codes are
//! those of DRBD's fence-peer handlers, so that such a script can be used as it is.
//!
//! | code | it says | taken for |
//! |---|---|---|
//! | 3, 4 | the peer is reached and durably inconsistent, outdated | [`ProofWord::PeerOutdated`] |
//! | 6 | the peer is primary | [`ProofWord::PeerPrimary`] |
//! | 7 | the peer is off | [`ProofWord::Off`] |
//! | 5 and every other, a signal, too late | nothing is proved | [`ProofWord::Nothing`] |

use std::process::Stdio;
use std::time::Duration;

use tokio::process::Command;
use tokio::time::timeout;
use tracing::{info, warn};

use crate::daemon::config::FenceSpec;
use crate::daemon::services::run::Case;
use crate::failover::io::ProofWord;

/// Runs the command once.
pub(super) async fn fence(spec: &FenceSpec, case: &Case) -> ProofWord {
    let Some((program, arguments)) = spec.command.split_first() else { return ProofWord::Nothing };
    let mut command = Command::new(program);
    command.args(arguments).env("REPBLK_CLUSTER", &case.cluster).env("REPBLK_NODE", &case.node);
    command.env("REPBLK_PEER", &case.peer).env("REPBLK_VOLUME", &case.volume);
    // What it prints goes where the daemon's log goes; a pipe could be held open by whatever it leaves behind.
    command.stdin(Stdio::null()).kill_on_drop(true);
    info!(volume = case.volume, peer = case.peer, program, "fencing the peer");
    let outcome = match command.spawn() {
        Ok(mut child) => timeout(spec.timeout, child.wait()).await,
        Err(error) => Ok(Err(error)),
    };
    let (word, what) = read(outcome, spec.timeout);
    match word {
        ProofWord::Nothing => {
            warn!(volume = case.volume, peer = case.peer, program, "the fence has proved nothing: {what}")
        }
        _ => info!(volume = case.volume, peer = case.peer, program, ?word, "the fence: {what}"),
    }
    word
}

type Waited = Result<std::io::Result<std::process::ExitStatus>, tokio::time::error::Elapsed>;

fn read(outcome: Waited, limit: Duration) -> (ProofWord, String) {
    let code = match outcome {
        Ok(Ok(status)) => match status.code() {
            Some(code) => code,
            None => return (ProofWord::Nothing, format!("it was ended by a signal ({status})")),
        },
        Ok(Err(error)) => return (ProofWord::Nothing, format!("it cannot be run: {error}")),
        Err(_) => {
            return (ProofWord::Nothing, format!("it did not end within {} ms and was killed", limit.as_millis()));
        }
    };
    let word = match code {
        3 | 4 => ProofWord::PeerOutdated,
        6 => ProofWord::PeerPrimary,
        7 => ProofWord::Off,
        _ => ProofWord::Nothing,
    };
    (word, format!("exit code {code}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn run(script: &str, limit_ms: u64) -> ProofWord {
        let command = ["/bin/sh", "-c", script].map(str::to_owned).to_vec();
        let spec = FenceSpec { command, timeout: Duration::from_millis(limit_ms) };
        let name = |text: &str| text.to_owned();
        let case = Case { cluster: name("c"), node: name("a"), peer: name("b"), volume: name("mes") };
        fence(&spec, &case).await
    }

    #[tokio::test]
    async fn exit_codes_are_those_of_drbd() {
        for code in 0..=10 {
            let expected = match code {
                3 | 4 => ProofWord::PeerOutdated,
                6 => ProofWord::PeerPrimary,
                7 => ProofWord::Off,
                _ => ProofWord::Nothing,
            };
            assert_eq!(run(&format!("exit {code}"), 10_000).await, expected, "{code}");
        }
        let script = r#"[ "$REPBLK_CLUSTER/$REPBLK_NODE/$REPBLK_PEER/$REPBLK_VOLUME" = c/a/b/mes ] && exit 7"#;
        assert_eq!(run(script, 10_000).await, ProofWord::Off);
    }

    #[tokio::test]
    async fn what_ends_otherwise_proves_nothing() {
        assert_eq!(run("kill -KILL $$", 10_000).await, ProofWord::Nothing);
        let began = std::time::Instant::now();
        assert_eq!(run("exec sleep 60", 50).await, ProofWord::Nothing);
        assert!(began.elapsed() < Duration::from_secs(20), "it is not waited for");
        let spec = FenceSpec { command: vec!["/nonexistent/fence".to_owned()], timeout: Duration::from_secs(1) };
        let nobody = Case { cluster: String::new(), node: String::new(), peer: String::new(), volume: String::new() };
        assert_eq!(fence(&spec, &nobody).await, ProofWord::Nothing);
    }
}
