//! What can be typed.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};
use clap_complete::Shell;

use super::exit;
use crate::daemon::config::DEFAULT_PATH;
use crate::daemon::logs::LogFormat;
use crate::follower::DEFAULT_FOLDER;
use crate::tls::{AUTHORITY_DAYS, NODE_DAYS};

const EXAMPLES: &str = "\
Examples:
  repblk config check                   is the configuration right?
  repblk init mes                       format this node's copy of volume mes
  repblk serve                          run the daemon
  repblk promote --force                first start of a new pair: this empty copy is the good one
  repblk status --watch                 how things are, every second
  repblk switchover                     hand the role to the peer, without loss and without an error
  repblk promote --peer-is-down         the other node is off for certain: take over

";

/// A replicated block device: NBD in front, a mirrored copy behind.
#[derive(Debug, Clone, PartialEq, Eq, Parser)]
#[command(name = "repblk", version, about, long_about = None, after_help = exit::TABLE)]
#[command(after_long_help = format!("{EXAMPLES}{}", exit::TABLE), disable_help_subcommand = true)]
pub(super) struct Cli {
    /// The configuration, the same file on every node
    #[arg(long, global = true, value_name = "FILE", default_value = DEFAULT_PATH, env = "REPBLK_CONFIG")]
    pub(super) config: PathBuf,
    /// Which node of the configuration this is [default: the one called like this host]
    #[arg(long, global = true, value_name = "NAME", env = "REPBLK_NODE")]
    pub(super) node: Option<String>,
    /// What to do
    #[command(subcommand)]
    pub(super) command: Command,
}

/// What to do.
#[derive(Debug, Clone, PartialEq, Eq, Subcommand)]
pub(super) enum Command {
    /// Format this node's copy of a volume
    #[command(after_long_help = "\
Refuses to touch a device that has repblk metadata, a file system, a partition table or the like on it, and names what \
it found. Run it on both nodes, then `repblk serve` on both, then `repblk promote --force` on the one whose copy shall \
be the good one; or `repblk init --adopt` on the node whose device has the data already.")]
    Init {
        /// The volume; may be left out when this node has only one
        volume: Option<String>,
        /// Overwrite what is found on the device
        #[arg(long)]
        force: bool,
        /// Keep the data on the device: it is the good copy from which the peer's is filled
        #[arg(long)]
        adopt: bool,
    },
    /// Run the daemon of this node, in the foreground
    Serve {
        /// How log lines look
        #[arg(long, value_enum, default_value_t)]
        log_format: LogFormat,
        /// error, warn, info, debug or trace
        #[arg(long, default_value = "info", env = "REPBLK_LOG")]
        log_level: String,
    },
    /// Run the agent of this host, in the foreground: a process of its own that can prove the daemon dead
    #[command(after_long_help = "\
The peer's daemon asks it when the data link is down. It answers that this host's daemon lives, or proves it dead, makes durable that its copy \
is behind, stops its services, and says so. A daemon that hangs is killed. It needs the same rights as the daemon, and nothing of it.")]
    Agent {
        /// How log lines look
        #[arg(long, value_enum, default_value_t)]
        log_format: LogFormat,
        /// error, warn, info, debug or trace
        #[arg(long, default_value = "info", env = "REPBLK_LOG")]
        log_level: String,
    },
    /// Show how this node and its volumes are
    Status {
        /// One JSON object, schema 1
        #[arg(long)]
        json: bool,
        /// Again every second, until interrupted
        #[arg(long)]
        watch: bool,
    },
    /// Make this node primary
    #[command(after_long_help = "\
With the peer connected it must consent: it is secondary, promises not to serve, and nothing is lost. Without it, this \
node cannot know whether the peer still serves; two primaries would part the data for good. Say --peer-is-down when the \
peer is off for certain (fenced, unplugged, its daemon stopped).")]
    Promote {
        #[command(flatten)]
        target: Target,
        /// Also when acknowledged writes may be lost: this copy is fresh, outdated, inconsistent or diverged. Includes
        /// --peer-is-down
        #[arg(long)]
        force: bool,
        /// You vouch that the peer, which cannot be seen, is off
        #[arg(long)]
        peer_is_down: bool,
    },
    /// Make this node secondary, everything flushed on both copies
    Demote {
        #[command(flatten)]
        target: Target,
        /// Also while NBD clients are connected; they are disconnected without an error and may reconnect to the peer
        #[arg(long)]
        disconnect_clients: bool,
    },
    /// Hand the role to the peer, without loss and without an error to clients
    Switchover {
        #[command(flatten)]
        target: Target,
    },
    /// Say what a loss of the peer, its return, a promotion or a switchover would lead to now, and why; nothing is changed
    Plan {
        /// The volume; may be left out when this node has only one
        #[arg(long, value_name = "NAME")]
        volume: Option<String>,
        /// One JSON object a line
        #[arg(long)]
        json: bool,
    },
    /// Show the last changes of the primary, with what was known when they were decided
    History {
        /// The volume; may be left out when this node has only one
        #[arg(long, value_name = "NAME")]
        volume: Option<String>,
        /// One JSON object a line
        #[arg(long)]
        json: bool,
    },
    /// Stop, or allow again, what is done automatically; needs an arbiter that keeps a record
    #[command(after_long_help = "\
For both nodes, and until it is switched off again. Safety never rests: a primary that is not the one of the record stops, and nothing is \
acknowledged alone before the record says so.")]
    Maintenance {
        /// What shall be
        switch: Switch,
        #[command(flatten)]
        target: Target,
    },
    /// Stop what runs on the primary, or start it again, also after something could not be started
    #[command(after_long_help = "\
They are stopped in reverse order and stay stopped until `repblk services start`, or until this node is not primary any more.")]
    Services {
        /// What shall be
        order: Order,
        #[command(flatten)]
        target: Target,
    },
    /// Copy again what may differ
    Resync {
        #[command(flatten)]
        target: Target,
        /// Every block, whatever is known of it
        #[arg(long)]
        full: bool,
        /// After a split brain: give up what only this copy has, and take the peer's blocks instead. The blocks are saved
        /// first, in the directory `saved` of this node's configuration
        #[arg(long)]
        discard_local: bool,
        /// Do not save what is given up
        #[arg(long, requires = "discard_local")]
        unsaved: bool,
        /// Show the progress until it is over
        #[arg(long)]
        watch: bool,
    },
    /// Let data links in again
    Connect {
        #[command(flatten)]
        target: Target,
    },
    /// Close the data links and let none in until `connect`
    Disconnect {
        #[command(flatten)]
        target: Target,
    },
    /// Suspend resync
    Pause {
        #[command(flatten)]
        target: Target,
    },
    /// Go on with resync
    Resume {
        #[command(flatten)]
        target: Target,
    },
    /// Show what happens: first how things are, then every change
    Events {
        /// One JSON object a line
        #[arg(long)]
        json: bool,
    },
    /// On the database host: make a volume a device that follows the primary
    #[command(after_long_help = "\
Runs in the foreground and serves an NBD socket, DIR/attach-VOLUME.nbd, for nbdfuse, QEMU and other clients. When the \
primary is lost, requests wait until another node is primary, and go on there: the user of the device sees a pause and \
no error. They go on only where everything that was acknowledged is certain to be. Where it is not (mode async, a \
promotion by force), nothing is sent and nothing is answered until an operator decides; `--status` says why.

To nodes on other hosts it speaks TLS and nothing else, unless the configuration says insecure = true. It shows the certificate of NAME, made by \
`repblk cert issue NAME --client` or a node's own, and goes on only with a node of the cluster that proves to be the one at that address. In DIR are \
ca.pem, NAME.pem and NAME.key; renewed files are used for the next connection. On Unix sockets and loopback it speaks TLS when --keys or \
--name is given, or the nodes require it.")]
    Attach {
        /// The volume; may be left out when the configuration has only one
        volume: Option<String>,
        /// Show how the attached device is, instead of attaching
        #[arg(long)]
        status: bool,
        /// With --status: one JSON object
        #[arg(long, requires = "status")]
        json: bool,
        /// Make /dev/nbdX of it, with the kernel's NBD client, instead of a socket
        #[arg(long, value_name = "/dev/nbdX", value_parser = device)]
        device: Option<u32>,
        /// What to do when acknowledged data may be missing: hold all requests, or answer them with errors
        #[arg(long, value_enum, default_value = "hold")]
        on_doubt: Doubt,
        /// Folder of the keys. Default: the one that the configuration names
        #[arg(long, value_name = "DIR")]
        keys: Option<PathBuf>,
        /// Whose certificate and key to use [default: --node, or this host's, or the only one in the folder]
        #[arg(long, value_name = "NAME")]
        name: Option<String>,
        #[command(flatten)]
        folder: Folder,
        /// How log lines look
        #[arg(long, value_enum, default_value_t)]
        log_format: LogFormat,
        /// error, warn, info, debug or trace
        #[arg(long, default_value = "info", env = "REPBLK_LOG")]
        log_level: String,
    },
    /// On the database host: end `repblk attach`, and forget what the device was acknowledged
    #[command(after_long_help = "\
Stop what uses the device first: whoever still does gets errors. An `attach` that is ended in another way, such as by \
SIGTERM, goes on where it was when it is started again.")]
    Detach {
        /// The volume; may be left out when the configuration has only one
        volume: Option<String>,
        #[command(flatten)]
        folder: Folder,
    },
    /// Look at the configuration
    Config {
        /// What to do with it
        #[command(subcommand)]
        command: ConfigCommand,
    },
    /// Make and renew the keys with which nodes prove who they are
    #[command(after_long_help = "\
Keys are kept in the folder that [security] names, /etc/repblk/keys if it names none. `init` makes everything, on one host; what it prints \
says which files to copy to which node. Running daemons take up renewed files by themselves.")]
    Cert {
        /// What to do with them
        #[command(subcommand)]
        command: CertCommand,
    },
    /// Write a completion script for a shell to standard output
    Completions {
        /// The shell
        shell: Shell,
    },
}

/// What to do with the configuration.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Subcommand)]
pub(super) enum ConfigCommand {
    /// Say whether it is right, and what it means
    Check,
}

/// What to do with the keys.
#[derive(Debug, Clone, PartialEq, Eq, Subcommand)]
pub(super) enum CertCommand {
    /// Make the cluster's authority and secret, and a certificate for each node of the configuration
    Init {
        /// Days that the certificates of nodes are valid
        #[arg(long, default_value_t = NODE_DAYS, value_parser = days())]
        days: u32,
        /// The user that the daemon runs as: the folder is made his, and so is all in it but the authority's key. Needs root
        #[arg(long, value_name = "USER")]
        owner: Option<String>,
    },
    /// Make a certificate for one node, for an NBD client, or for etcd
    Issue {
        /// The node, client or server
        name: String,
        /// For an NBD client
        #[arg(long)]
        client: bool,
        /// For a server that the nodes visit: etcd
        #[arg(long, conflicts_with = "client", requires = "host")]
        server: bool,
        /// A name or IP address of the server, or a further one under which NBD clients reach the node
        #[arg(long, value_name = "HOST")]
        host: Vec<String>,
        /// Days that it is valid
        #[arg(long, default_value_t = NODE_DAYS, value_parser = days())]
        days: u32,
    },
    /// Make certificates anew, with new keys, for whom they were
    Renew {
        /// Whose; all when left out
        name: Option<String>,
        /// Make a new secret of the cluster, too
        #[arg(long)]
        secret: bool,
        /// Days that they are valid
        #[arg(long, default_value_t = NODE_DAYS, value_parser = days())]
        days: u32,
    },
    /// Show what there is, and until when it is valid
    Show,
}

fn days() -> clap::builder::RangedI64ValueParser<u32> {
    clap::value_parser!(u32).range(1..=i64::from(AUTHORITY_DAYS))
}

/// On or off.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum Switch {
    /// Nothing is done automatically.
    On,
    /// As configured.
    Off,
}

/// Start or stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum Order {
    /// In order.
    Start,
    /// In reverse.
    Stop,
}

/// What to do when acknowledged data may be missing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum Doubt {
    /// Answer nothing until an operator decides.
    Hold,
    /// Answer everything with an error.
    Fail,
}

/// Where the sockets of `repblk attach` are.
#[derive(Debug, Clone, PartialEq, Eq, Args)]
pub(super) struct Folder {
    /// Folder of the sockets, and of what must survive a restart of `attach` and must not survive one of the host
    #[arg(long = "dir", value_name = "DIR", default_value = DEFAULT_FOLDER)]
    pub(super) folder: PathBuf,
}

/// The number of a device of the kernel's NBD client.
fn device(text: &str) -> Result<u32, String> {
    let number = text.strip_prefix("/dev/nbd").and_then(|number| number.parse().ok());
    number.ok_or_else(|| "it must be /dev/nbd0, /dev/nbd1 or the like".to_owned())
}

/// Which volume, and how long to wait.
#[derive(Debug, Clone, PartialEq, Eq, Args)]
pub(super) struct Target {
    /// The volume; may be left out when this node has only one
    #[arg(long, value_name = "NAME")]
    pub(super) volume: Option<String>,
    /// Give up waiting after so many seconds; the daemon goes on
    #[arg(long, value_name = "SECONDS", default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..=86_400))]
    pub(super) timeout: u64,
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_definition_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn options_may_stand_before_and_after_the_command() {
        let before = Cli::try_parse_from(["repblk", "--config", "/c", "--node", "b", "status", "--json"]);
        let after = Cli::try_parse_from(["repblk", "status", "--json", "--node", "b", "--config", "/c"]);
        assert_eq!(before.expect("parses"), after.expect("parses"));
    }

    #[test]
    fn help_has_the_exit_codes() {
        let help = Cli::command().render_long_help().to_string();
        assert!(help.contains("refused by a rule") && help.contains("repblk switchover"), "{help}");
        assert!(Cli::command().render_help().to_string().contains("3  the daemon is not reachable"));
    }
}
