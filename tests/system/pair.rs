//! A pair of nodes on the loopback network, with a proxy in the data link.

use std::fmt::Write as _;
use std::path::Path;
use std::time::Duration;

use serde_json::Value;
use tempfile::TempDir;

use crate::node::{Node, VOLUME};
use crate::proxy::Proxy;
use crate::tools::{LONG, SHORT, folder, sparse};

pub(crate) const MIB: u64 = 1 << 20;

/// What a pair shall be like.
pub(crate) struct Setup {
    /// Bytes of each device.
    pub(crate) size: u64,
    pub(crate) mode: &'static str,
    /// More lines for the table of the volume.
    pub(crate) volume_keys: &'static str,
    /// Metadata in files of their own.
    pub(crate) external: bool,
    /// The lines of `[arbiter]`; empty for none.
    pub(crate) arbiter: String,
    /// The nodes have keys: TLS on the data link.
    pub(crate) keys: bool,
    /// More lines for `[security]`, with keys.
    pub(crate) nbd_tls: &'static str,
    /// There is an address for an agent of each node.
    pub(crate) agents: bool,
}

impl Default for Setup {
    fn default() -> Self {
        Self {
            size: 32 * MIB,
            mode: "sync",
            volume_keys: "",
            external: false,
            arbiter: String::new(),
            keys: false,
            nbd_tls: "",
            agents: false,
        }
    }
}

/// Two nodes. `alpha` dials `beta` through the proxy; the heartbeats go straight.
pub(crate) struct Pair {
    // Daemons end before the proxy, the proxy before the files: fields are dropped in this order.
    pub(crate) alpha: Node,
    pub(crate) beta: Node,
    pub(crate) proxy: Proxy,
    pub(crate) dir: TempDir,
}

impl Pair {
    /// Configured, with devices, and nothing else.
    pub(crate) fn new(setup: &Setup) -> Self {
        Self::within(folder(), setup)
    }

    /// The same, with all files in `dir`.
    pub(crate) fn within(dir: TempDir, setup: &Setup) -> Self {
        let (alpha, beta) = (Node::new("alpha", dir.path()), Node::new("beta", dir.path()));
        let door = beta.data.replace(":7789", ":7788");
        let proxy = Proxy::start(&door, &beta.data);
        write_config(&alpha, &alpha.data, &door, &alpha, &beta, setup);
        write_config(&beta, &alpha.data, &beta.data, &alpha, &beta, setup);
        for node in [&alpha, &beta] {
            sparse(&node.device, setup.size);
        }
        if setup.keys {
            alpha.cli(&["cert", "init"]).ok();
        }
        Self { alpha, beta, proxy, dir }
    }

    /// Formatted and started; both are secondary and fresh.
    #[track_caller]
    pub(crate) fn fresh(setup: &Setup) -> Self {
        Self::new(setup).begin()
    }

    /// What is configured, formatted and started.
    #[track_caller]
    pub(crate) fn begin(mut self) -> Self {
        for node in [&mut self.alpha, &mut self.beta] {
            node.cli(&["init"]).ok();
            node.start();
        }
        self.wait_connected();
        self
    }

    /// In sync, `alpha` primary.
    #[track_caller]
    pub(crate) fn up(setup: &Setup) -> Self {
        Self::new(setup).found()
    }

    /// What is configured, in sync, `alpha` primary.
    #[track_caller]
    pub(crate) fn found(self) -> Self {
        let pair = self.begin();
        pair.alpha.cli(&["promote", "--force"]).ok();
        pair.wait_in_sync();
        pair
    }

    #[track_caller]
    pub(crate) fn wait_connected(&self) {
        for node in [&self.alpha, &self.beta] {
            node.wait("the link", SHORT, |volume| volume["peers"][0]["connection"] == "connected");
        }
    }

    /// Waits until both nodes say that both copies are good and the same; returns both states.
    #[track_caller]
    pub(crate) fn wait_in_sync(&self) -> (Value, Value) {
        (self.alpha.wait("both in sync", LONG, in_sync), self.beta.wait("both in sync", LONG, in_sync))
    }

    /// Waits until nothing is under way, then compares the data areas byte by byte.
    #[track_caller]
    pub(crate) fn assert_identical(&self) {
        self.wait_in_sync();
        let primary = if self.alpha.status()["role"] == "primary" { &self.alpha } else { &self.beta };
        if primary.status()["role"] == "primary" {
            // In async the last writes may still be on their way; a flush that comes back says nothing about them.
            primary.wait("the backlog to drain", LONG, |v| v["unstable_writes"] == 0 || v["mode"] != "async");
        }
        let len = self.alpha.data_len();
        assert_eq!(len, self.beta.data_len(), "both show a volume of the same size");
        let chunk = 4 * MIB;
        for at in (0..len).step_by(usize::try_from(chunk).expect("small")) {
            let bytes = usize::try_from(chunk.min(len - at)).expect("small");
            let read = |node: &Node| node.read_device(&node.device_path(), at, bytes);
            let (ours, theirs) = (read(&self.alpha), read(&self.beta));
            if let Some(place) = (0..bytes).find(|&i| ours[i] != theirs[i]) {
                panic!("the copies differ at byte {}", at + u64::try_from(place).expect("small"));
            }
        }
    }
}

impl Drop for Pair {
    fn drop(&mut self) {
        if std::thread::panicking() {
            for node in [&self.alpha, &self.beta] {
                eprintln!("--- end of the log of {}\n{}", node.name, node.log_end());
            }
        }
    }
}

/// What a status says when all is well.
pub(crate) fn in_sync(volume: &Value) -> bool {
    let peer = &volume["peers"][0];
    volume["disk_state"] == "uptodate"
        && peer["connection"] == "connected"
        && peer["replication"] == "established"
        && peer["disk_state"] == "uptodate"
        && peer["out_of_sync_bytes"] == 0
}

/// Duration of the bound within which a silent peer is dropped, as the default configuration has it.
pub(crate) const PEER_TIMEOUT: Duration = Duration::from_millis(2500);

fn write_config(of: &Node, alpha_data: &str, beta_data: &str, alpha: &Node, beta: &Node, setup: &Setup) {
    let mut text = "cluster = \"test\"\n".to_owned();
    if setup.keys {
        let keys = of.config.with_file_name("keys");
        write!(text, "\n[security]\nkeys = \"{}\"\n{}\n", keys.display(), setup.nbd_tls)
            .expect("a string takes everything");
    }
    if !setup.arbiter.is_empty() {
        write!(text, "\n[arbiter]\n{}\n", setup.arbiter).expect("a string takes everything");
    }
    for (node, data) in [(alpha, alpha_data), (beta, beta_data)] {
        let heartbeat = node.data.replace(":7789", ":7790");
        write!(
            text,
            "\n[[node]]\nname = \"{}\"\ndata = \"{data}\"\nheartbeat = [\"{heartbeat}\"]\ncontrol = \"{}\"\n\
             nbd = [\"unix:{}\", \"tcp:{}\"]\nsaved = \"{}\"\nstate = \"{}\"\n",
            node.name,
            node.control.display(),
            node.nbd_unix.display(),
            node.nbd_tcp,
            node.device.with_extension("saved").display(),
            node.device.with_extension("state").display()
        )
        .expect("a string takes everything");
        if setup.agents {
            writeln!(text, "agent = \"{}\"", node.data.replace(":7789", ":7791")).expect("a string takes everything");
        }
    }
    write!(text, "\n[[volume]]\nname = \"{VOLUME}\"\nmode = \"{}\"\n{}\n", setup.mode, setup.volume_keys)
        .expect("a string takes everything");
    for node in [alpha, beta] {
        let metadata = match setup.external {
            true => node.device.with_extension("meta").display().to_string(),
            false => "internal".to_owned(),
        };
        write!(
            text,
            "\n[volume.on.{}]\ndevice = \"{}\"\nmetadata = \"{metadata}\"\n",
            node.name,
            node.device.display()
        )
        .expect("a string takes everything");
    }
    std::fs::write(&of.config, text).expect("the test's folder can be written");
}

/// Replaces text in a node's configuration.
#[track_caller]
pub(crate) fn reconfigure(config: &Path, old: &str, new: &str) {
    let text = std::fs::read_to_string(config).expect("it was written before");
    assert!(text.contains(old), "the configuration has no {old:?}");
    std::fs::write(config, text.replace(old, new)).expect("the test's folder can be written");
}
