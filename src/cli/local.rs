//! The commands that need no daemon, or become it.

use std::fmt::Write as _;
use std::io::Write as _;
use std::path::PathBuf;

use super::client::Client;
use super::exit::{Exit, Stop};
use super::text::bytes;
use crate::daemon::config::{ArbiterKind, Config, CopySpec, NbdRule, Node, VolumeSpec};
use crate::daemon::init::{self, InitError, Permission};
use crate::daemon::logs::{self, LogFormat};
use crate::daemon::{self};

/// Which configuration, and which node of it.
pub(super) struct Place {
    pub(super) config: PathBuf,
    pub(super) node: Option<String>,
}

impl Place {
    pub(super) fn load(&self) -> Result<Config, Stop> {
        Config::load(&self.config).map_err(|error| Stop::new(Exit::Usage, error.to_string()))
    }

    pub(super) fn choose<'c>(&self, config: &'c Config) -> Result<&'c Node, Stop> {
        config.choose_node(self.node.as_deref(), &host()).map_err(|why| Stop::new(Exit::Usage, why))
    }
}

/// What this host is called.
pub(super) fn host() -> String {
    std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default().trim().to_owned()
}

/// `repblk serve`.
pub(super) fn serve(place: &Place, format: LogFormat, level: &str) -> Result<(), Stop> {
    let config = place.load()?;
    let node = place.choose(&config)?.clone();
    logs::start(format, level).map_err(|why| Stop::new(Exit::Usage, why))?;
    daemon::serve(config, node).map_err(|why| Stop::new(Exit::Failed, why))
}

/// `repblk agent`.
pub(super) fn agent(place: &Place, format: LogFormat, level: &str) -> Result<(), Stop> {
    let config = place.load()?;
    let node = place.choose(&config)?.clone();
    logs::start(format, level).map_err(|why| Stop::new(Exit::Usage, why))?;
    daemon::agent::serve(config, node).map_err(|why| Stop::new(Exit::Failed, why))
}

/// `repblk init`.
pub(super) fn init(place: &Place, volume: Option<&str>, force: bool, adopt: bool) -> Result<(), Stop> {
    let config = place.load()?;
    let node = place.choose(&config)?;
    let (volume, copy) = volume_of(&config, &node.name, volume)?;
    refuse_if_served(node, volume)?;
    let made = init::init(&config, volume, copy, Permission { force, adopt }).map_err(|error| match error {
        InitError::Refused(why) => Stop::new(Exit::Refused, why),
        InitError::Failed(why) => Stop::new(Exit::Failed, why),
    })?;
    let state = match adopt {
        true => format!("its data is kept as generation {}, the good copy", made.generation),
        false => "it holds no data of the volume yet".to_owned(),
    };
    let text = format!(
        "volume {} on node {}: {} formatted, {} of data and {} of metadata ({}), disk instance {}; {state}\n",
        volume.name,
        node.name,
        copy.device.display(),
        bytes(made.data_len),
        bytes(made.metadata_len),
        copy.metadata,
        made.instance
    );
    std::io::stdout().write_all(text.as_bytes()).map_err(Stop::from)
}

/// A daemon that serves the volume has the device open and would write over the new metadata.
fn refuse_if_served(node: &Node, volume: &VolumeSpec) -> Result<(), Stop> {
    let Ok(status) = Client::connect(&node.control).and_then(|mut client| client.status()) else { return Ok(()) };
    if status.volumes.iter().all(|served| served.volume != volume.name) {
        return Ok(());
    }
    let what =
        format!("the daemon of node {} (pid {}) serves volume {}; stop it first", node.name, status.pid, volume.name);
    Err(Stop::new(Exit::Refused, what))
}

fn volume_of<'c>(config: &'c Config, node: &str, name: Option<&str>) -> Result<(&'c VolumeSpec, &'c CopySpec), Stop> {
    let copies: Vec<_> = config.volumes.iter().filter_map(|volume| Some((volume, volume.copy_on(node)?))).collect();
    let names = copies.iter().map(|(volume, _)| volume.name.as_str()).collect::<Vec<_>>().join(", ");
    match (name, &copies[..]) {
        (None, [only]) => Ok(*only),
        (None, _) => {
            Err(Stop::new(Exit::Usage, format!("say which volume: repblk init VOLUME; node {node} has: {names}")))
        }
        (Some(name), copies) => copies.iter().find(|(volume, _)| volume.name == name).copied().ok_or_else(|| {
            Stop::new(Exit::Usage, format!("node {node} has no copy of a volume {name:?}; it has: {names}"))
        }),
    }
}

/// `repblk config check`.
pub(super) fn check(place: &Place) -> Result<(), Stop> {
    let config = place.load()?;
    if place.node.is_some() {
        place.choose(&config)?;
    }
    let text = format!("{}: right\n{}", place.config.display(), summary(&config));
    std::io::stdout().write_all(text.as_bytes()).map_err(Stop::from)
}

/// What is said of NBD where no other host reaches it.
const NBD_STAYS: &str =
    "no address is reached by clients of other hosts, and those of this host may speak in the clear";

fn summary(config: &Config) -> String {
    let list = |items: Vec<String>| if items.is_empty() { "nowhere".to_owned() } else { items.join(", ") };
    let clients = config.nbd_tls.remote(&config.nodes).map_or(NBD_STAYS, NbdRule::meaning);
    let mut text = format!(
        "cluster {}\nsecurity: {}\nNBD: {clients}\n{}",
        config.cluster,
        config.security.meaning(),
        arbiter(config)
    );
    for node in &config.nodes {
        let heartbeat = list(node.heartbeat.iter().map(ToString::to_string).collect());
        let nbd = list(node.nbd.iter().map(ToString::to_string).collect());
        // Writing to a string cannot fail.
        let _ = writeln!(
            text,
            "node {}: data link {}, heartbeat {heartbeat}, NBD {nbd}, control {}",
            node.name,
            node.data,
            node.control.display()
        );
    }
    for volume in &config.volumes {
        let copies = volume
            .copies
            .iter()
            .map(|copy| format!("{} {} (metadata {})", copy.node, copy.device.display(), copy.metadata));
        let _ = writeln!(
            text,
            "volume {}: {}: {}; copies: {}",
            volume.name,
            volume.mode,
            daemon::promise(volume.mode),
            copies.collect::<Vec<_>>().join(", ")
        );
    }
    text
}

/// The arbiter, what it guarantees, and how its times add up.
fn arbiter(config: &Config) -> String {
    let spec = &config.arbiter;
    let ms = |duration: std::time::Duration| duration.as_millis();
    let mut text = format!("arbiter {}: {}\n", spec.arbiter().word(), spec.guarantee());
    if matches!(spec.kind, ArbiterKind::Etcd(_)) {
        let timing = &spec.timing;
        let (lease, wait) = (ms(timing.lease), ms(timing.claim_wait()));
        // Writing to a string cannot fail.
        let _ = writeln!(
            text,
            "times: a primary answers for {lease} ms after a renewal; a standby claims its role no sooner than {wait} ms after the last one it saw \
             ({lease} ms with clocks {} ppm wrong, and {} ms); a silent host is replaced within about {} ms",
            timing.rate_error_ppm,
            ms(timing.guard),
            wait + ms(timing.renew / 4) + ms(timing.arbiter_timeout)
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_summary_of_the_example_says_what_it_means() {
        let text = include_str!("../../docs/repblk.example.toml");
        let config = Config::parse(text, std::path::Path::new("example")).expect("the example is right");
        let summary = summary(&config);
        assert!(summary.starts_with("cluster plant7\nsecurity: TLS between the nodes"), "{summary}");
        assert!(summary.contains("\nnode alpha: data link 10.0.0.1:7789, heartbeat"), "{summary}");
        assert!(summary.contains("no sooner than 5510 ms"), "{summary}");
        assert!(summary.contains("volume mes: sync: "), "{summary}");
        assert!(volume_of(&config, "alpha", None).is_ok() && volume_of(&config, "alpha", Some("x")).is_err());
    }
}
