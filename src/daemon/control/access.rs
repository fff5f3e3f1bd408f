//! Who may say what on the control socket.
//!
//! The kernel says who connected: the user, the group and the further groups that the process had at that moment, which nothing it does later
//! changes. There is one socket for all. Its permissions keep out whoever may do nothing; those who get in are judged here, command by command.

use std::io;
use std::os::fd::AsFd;

use tokio::net::UnixStream;
use tracing::warn;

use super::protocol::{Ask, Reply};
use crate::daemon::accounts;
use crate::daemon::config::{ControlSpec, Readers};
use crate::dataplane::peer_groups;

/// What somebody may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Access {
    /// Everything.
    All,
    /// Look.
    Read,
    /// Nothing.
    Nothing,
}

/// Who is at the other end of a connection, as the kernel says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Peer {
    pub(super) user: u32,
    pub(super) group: u32,
    pub(super) more_groups: Vec<u32>,
    /// None in a namespace of processes that this one does not see.
    pub(super) process: Option<i32>,
}

impl Peer {
    /// Asks the kernel.
    pub(super) fn of(stream: &UnixStream) -> io::Result<Self> {
        let credentials = stream.peer_cred()?;
        let more_groups = peer_groups(stream.as_fd()).unwrap_or_else(|error| {
            // Fewer groups are fewer rights.
            warn!(%error, "the groups of a control client cannot be learned");
            Vec::new()
        });
        Ok(Self { user: credentials.uid(), group: credentials.gid(), more_groups, process: credentials.pid() })
    }
}

/// Decides who may do what.
#[derive(Debug, Clone)]
pub(in crate::daemon) struct Doorkeeper {
    node: String,
    /// Whom this process runs as.
    owner: u32,
    group_name: String,
    /// None when the host has no such group.
    group: Option<u32>,
    readers: Readers,
}

impl Doorkeeper {
    /// For the daemon of `node`, which runs in this process.
    ///
    /// # Errors
    /// A sentence, when the system does not say who this process is.
    pub(in crate::daemon) fn new(node: &str, spec: &ControlSpec) -> Result<Self, String> {
        let own = UnixStream::pair().and_then(|(one, _)| one.peer_cred());
        let own = own.map_err(|error| format!("the system does not say which user this process runs as: {error}"))?;
        let group = accounts::group(&spec.group).unwrap_or_else(|error| {
            warn!(%error, "the groups of this host cannot be read");
            None
        });
        if group.is_none() && spec.group_is_named {
            warn!(
                group = spec.group,
                "this host has no such group: only root and the daemon's own user may use the control socket"
            );
        }
        let (node, group_name) = (node.to_owned(), spec.group.clone());
        Ok(Self { node, owner: own.uid(), group_name, group, readers: spec.read })
    }

    /// The group that the socket is to have.
    pub(in crate::daemon) fn group(&self) -> Option<u32> {
        self.group
    }

    /// The permissions of the socket.
    pub(in crate::daemon) fn mode(&self) -> u32 {
        match (self.readers, self.group) {
            (Readers::Everyone, _) => 0o666,
            (Readers::Group, Some(_)) => 0o660,
            (Readers::Group, None) => 0o600,
        }
    }

    /// What `peer` may do.
    pub(super) fn access(&self, peer: &Peer) -> Access {
        let member = |group: u32| peer.group == group || peer.more_groups.contains(&group);
        match self.readers {
            _ if peer.user == 0 || peer.user == self.owner || self.group.is_some_and(member) => Access::All,
            Readers::Everyone => Access::Read,
            Readers::Group => Access::Nothing,
        }
    }

    /// What `peer` is told when it may not ask this.
    pub(super) fn refusal(&self, peer: &Peer, ask: &Ask) -> Option<Reply> {
        let (rule, what) = match (self.access(peer), ask) {
            (Access::All, _) | (Access::Read, Ask::Status | Ask::Events | Ask::Plan { .. } | Ask::History { .. }) => {
                return None;
            }
            (Access::Read, Ask::Do { verb, .. }) => {
                ("control-read-only", format!("may look at node {} and not tell it to {}", self.node, verb.name()))
            }
            (Access::Nothing, _) => ("control-group", format!("may not use the control socket of node {}", self.node)),
        };
        let user = accounts::user_name(peer.user);
        let group = &self.group_name;
        let way_out = match self.group {
            Some(_) => format!(
                "It is for root, the daemon's user and members of the group {group}: use sudo, or become a member \
                 (`usermod --append --groups {group} {user}`, then log in again)."
            ),
            None => format!(
                "It is for root and the daemon's user, since this host has no group {group}: use sudo, or make the group \
                 (`groupadd --system {group}`) and restart the daemon."
            ),
        };
        Some(Reply::Forbidden { rule: rule.to_owned(), sentence: format!("user {user} {what}. {way_out}") })
    }
}

#[cfg(test)]
mod tests {
    use super::super::protocol::Verb;
    use super::*;

    fn keeper(group: Option<u32>, readers: Readers) -> Doorkeeper {
        Doorkeeper { node: "alpha".into(), owner: 990, group_name: "operators".into(), group, readers }
    }

    fn peer(user: u32, group: u32, more_groups: &[u32]) -> Peer {
        Peer { user, group, more_groups: more_groups.to_vec(), process: Some(7) }
    }

    #[test]
    fn root_the_daemon_and_the_group_may_do_everything_and_nobody_else() {
        let closed = keeper(Some(500), Readers::Group);
        let open = keeper(Some(500), Readers::Everyone);
        let alone = keeper(None, Readers::Group);
        for (peer, with_group, for_all, without) in [
            (peer(0, 0, &[]), Access::All, Access::All, Access::All),
            (peer(990, 990, &[]), Access::All, Access::All, Access::All),
            (peer(1000, 1000, &[4, 500]), Access::All, Access::All, Access::Nothing),
            (peer(1000, 500, &[]), Access::All, Access::All, Access::Nothing),
            (peer(1000, 1000, &[0, 990]), Access::Nothing, Access::Read, Access::Nothing),
            (peer(65534, 65534, &[]), Access::Nothing, Access::Read, Access::Nothing),
        ] {
            let found = [&closed, &open, &alone].map(|keeper| keeper.access(&peer));
            assert_eq!(found, [with_group, for_all, without], "{peer:?}");
        }
        assert_eq!([closed.mode(), open.mode(), alone.mode()], [0o660, 0o666, 0o600]);
    }

    #[test]
    fn a_refusal_names_its_rule_and_the_way_in() {
        let promote = Ask::Do { volume: None, verb: Verb::Promote { force: true, peer_is_down: false }, timeout_ms: 1 };
        let stranger = peer(4_000_000_000, 7, &[]);
        let told = |keeper: &Doorkeeper, ask: &Ask| match keeper.refusal(&stranger, ask) {
            Some(Reply::Forbidden { rule, sentence }) => format!("{rule}: {sentence}"),
            other => format!("{other:?}"),
        };
        let open = keeper(Some(500), Readers::Everyone);
        assert_eq!(told(&open, &Ask::Status), "None");
        assert_eq!(told(&open, &Ask::History { volume: None }), "None");
        let text = told(&open, &promote);
        assert!(
            text.starts_with("control-read-only: user 4000000000 may look at node alpha and not tell it to promote. ")
        );
        assert!(text.contains("usermod --append --groups operators 4000000000"), "{text}");
        let text = told(&keeper(None, Readers::Group), &Ask::Status);
        assert!(text.starts_with("control-group: ") && text.contains("groupadd --system operators"), "{text}");
    }

    #[tokio::test]
    async fn the_kernel_says_who_connected() {
        let (one, _other) = UnixStream::pair().expect("a pair");
        let found = Peer::of(&one).expect("told");
        assert_eq!(found.process.and_then(|pid| u32::try_from(pid).ok()), Some(std::process::id()));
        let status = std::fs::read_to_string("/proc/self/status").expect("Linux");
        let line = |name: &str| -> Vec<u32> {
            let line = status.lines().find_map(|line| line.strip_prefix(name)).expect("Linux says so");
            line.split_whitespace().map(|number| number.parse().expect("a number")).collect()
        };
        assert_eq!((found.user, found.group), (line("Uid:")[1], line("Gid:")[1]));
        assert_eq!(found.more_groups, line("Groups:"));
    }
}
