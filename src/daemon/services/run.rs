//! One service started or stopped: a program, a unit of systemd, an address.

use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use tokio::process::{Child, Command};
use tokio::sync::oneshot;
use tokio::time::timeout;

use super::address;
use crate::daemon::config::{ServiceKind, ServiceSpec};
use crate::dataplane::kill_group;
use crate::services::Action;

/// A killed program must be gone within this time, or it hangs in the system.
const KILL_TIME: Duration = Duration::from_secs(2);

/// For whom it is done.
#[derive(Debug, Clone)]
pub(in crate::daemon) struct Case {
    pub(in crate::daemon) cluster: String,
    pub(in crate::daemon) node: String,
    pub(in crate::daemon) peer: String,
    pub(in crate::daemon) volume: String,
}

/// Starts or stops `spec`. It is ended when `kill` is told, or dropped.
pub(in crate::daemon) async fn run(
    spec: &ServiceSpec,
    action: Action,
    case: &Case,
    kill: oneshot::Receiver<()>,
) -> Result<(), String> {
    let words = match (&spec.kind, action) {
        (ServiceKind::Command { start, .. }, Action::Start) => start.clone(),
        (ServiceKind::Command { stop, .. }, Action::Stop) => stop.clone(),
        (ServiceKind::Unit(unit), Action::Start) => {
            ["systemctl", "--no-ask-password", "start", unit].map(str::to_owned).to_vec()
        }
        (ServiceKind::Unit(unit), Action::Stop) => {
            ["systemctl", "--no-ask-password", "stop", unit].map(str::to_owned).to_vec()
        }
        (ServiceKind::Address { address, prefix, interface }, action) => {
            if action == Action::Stop && !address::is_here(*address, interface).await? {
                return Ok(());
            }
            address::command(action, (*address, *prefix), interface)
        }
    };
    let kind = action_word(action);
    let Some((program, arguments)) = words.split_first() else { return Ok(()) };
    let mut command = Command::new(program);
    command.args(arguments).env("REPBLK_CLUSTER", &case.cluster).env("REPBLK_NODE", &case.node);
    command.env("REPBLK_PEER", &case.peer).env("REPBLK_VOLUME", &case.volume);
    command.env("REPBLK_SERVICE", &spec.name).env("REPBLK_ACTION", kind);
    // What it prints goes where the daemon's log goes; a pipe could be held open by whatever it leaves behind. The group is what it
    // started besides, to be ended with it when it takes too long.
    command.stdin(Stdio::null()).process_group(0);
    let mut child = command.spawn().map_err(|error| format!("{program} cannot be run: {error}"))?;
    let ended = tokio::select! {
        ended = child.wait() => ended.map_err(|error| error.to_string())?,
        _ = kill => end(&mut child).await?,
    };
    let here = matches!(spec.kind, ServiceKind::Address { .. }) && action == Action::Start;
    match &spec.kind {
        // It was there already.
        ServiceKind::Address { address, interface, .. } if here && !ended.success() => {
            let there = address::is_here(*address, interface).await?;
            if there { Ok(()) } else { judge(program, ended) }
        }
        _ => judge(program, ended),
    }
}

fn action_word(action: Action) -> &'static str {
    match action {
        Action::Start => "start",
        Action::Stop => "stop",
    }
}

fn judge(program: &str, ended: ExitStatus) -> Result<(), String> {
    if ended.success() { Ok(()) } else { Err(format!("{program} ended with {ended}")) }
}

async fn end(child: &mut Child) -> Result<ExitStatus, String> {
    if let Some(leader) = child.id() {
        kill_group(leader);
    }
    match timeout(KILL_TIME, child.wait()).await {
        Ok(ended) => ended.map_err(|error| error.to_string()),
        Err(_) => Err("it hangs in the system and cannot be ended".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(start: &str, stop: &str) -> ServiceSpec {
        let words = |script: &str| ["/bin/sh", "-c", script].map(str::to_owned).to_vec();
        ServiceSpec {
            name: "x".to_owned(),
            kind: ServiceKind::Command { start: words(start), stop: words(stop) },
            start_limit: Duration::from_secs(5),
            stop_limit: Duration::from_secs(5),
        }
    }

    fn case() -> Case {
        let name = |text: &str| text.to_owned();
        Case { cluster: name("c"), node: name("a"), peer: name("b"), volume: name("mes") }
    }

    #[tokio::test]
    async fn a_program_is_told_for_whom_it_runs_and_its_exit_code_counts() {
        let script = r#"[ "$REPBLK_CLUSTER/$REPBLK_NODE/$REPBLK_PEER/$REPBLK_VOLUME/$REPBLK_SERVICE/$REPBLK_ACTION" = c/a/b/mes/x/start ]"#;
        let (_keep, kill) = oneshot::channel();
        assert_eq!(run(&spec(script, "exit 3"), Action::Start, &case(), kill).await, Ok(()));
        let (_keep, kill) = oneshot::channel();
        let why = run(&spec(script, "exit 3"), Action::Stop, &case(), kill).await.expect_err("it failed");
        assert!(why.contains('3'), "{why}");
    }

    #[tokio::test]
    async fn what_takes_too_long_is_ended_with_all_that_it_started() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("late");
        let script = format!("(sleep 1; touch {}) & wait", file.display());
        let (kill, told) = oneshot::channel();
        kill.send(()).expect("it listens");
        let began = std::time::Instant::now();
        assert!(run(&spec(&script, ""), Action::Start, &case(), told).await.is_err());
        assert!(began.elapsed() < Duration::from_millis(900), "{:?}", began.elapsed());
        tokio::time::sleep(Duration::from_millis(1200)).await;
        assert!(!file.exists(), "what it started is ended, too");
    }
}
