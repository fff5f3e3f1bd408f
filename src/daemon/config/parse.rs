//! From TOML to [`Config`]: which keys there are, what they may be, and what they are when absent.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use toml::de::DeTable;

use super::reader::{At, ConfigError, Document, Section};
use super::{
    Config, CopySpec, Engine, MetadataPlace, NAME_LEN_MAX, NbdAddress, Node, VolumeSpec, allow, arbiter, check,
    control, limits, security, services,
};
use crate::condition::Mode;
use crate::daemon::printable::one_line;
use crate::meta::activity_log::AL_SLOTS_MAX;
use crate::meta::superblock::{AL_SLOTS_DEFAULT, AL_SLOTS_MIN};

/// Longest path of a Unix socket, in bytes.
const SOCKET_PATH_MAX: usize = 107;
/// Where diverged blocks are saved when the configuration does not say.
const SAVED_DEFAULT: &str = "/var/lib/repblk";
/// Where failover keeps what it must not forget when the configuration does not say.
const STATE_DEFAULT: &str = "/var/lib/repblk";
const MIB: u64 = 1 << 20;

const NAME: &str = "a name has 1 to 63 letters, digits, '-', '_' or '.', and starts with a letter or digit";
const ADDRESS: &str = "it must be an IP address and a port, such as \"10.0.0.1:7789\" or \"[fd00::1]:7789\"";
pub(super) const PATH: &str = "it must be an absolute path";

pub(super) fn config(text: &str, file: &Path) -> Result<Config, ConfigError> {
    let document = Document::new(text);
    let root = DeTable::parse(text).map_err(|error| {
        let line = error.span().map_or(0, |span| document.line_of(&span));
        ConfigError { file: file.to_path_buf(), problems: vec![(line, one_line(&error.message().replace('\n', "; ")))] }
    })?;
    let mut root = Section::new(&document, "the file", 1, root.get_ref());
    let cluster = name_of(&mut root, "cluster", "write cluster = \"NAME\" at the top, the same on every node");
    let interval = root.number("heartbeat_interval_ms", 200, 20..=10_000);
    let interval = Duration::from_millis(interval.value);
    let security = security::security(root.table("security"));
    let limits = limits::limits(root.table("limits"));
    let control = control::control(root.table("control"));
    let table = root.table("arbiter");
    let arbiter_line = table.as_ref().map_or(1, |table| table.line);
    let arbiter = arbiter::arbiter(&document, table, interval);
    let nodes: Vec<At<Node>> = root.sections("node").into_iter().map(node).collect();
    let volumes: Vec<At<VolumeSpec>> = root.sections("volume").into_iter().map(volume).collect();
    root.finish();
    check::nodes(&document, &nodes);
    check::volumes(&document, &nodes, &volumes);
    arbiter::fits_nodes(&document, &arbiter, &nodes);
    let (security, nbd_tls) = security::resolve(&document, security, &nodes);
    arbiter::fits_keys(&document, &arbiter, arbiter_line, &security);
    allow::fits_keys(&document, &volumes, &security, nbd_tls);
    document.finish(file)?;
    let mut config = Config {
        cluster: cluster.value,
        heartbeat_interval: interval,
        security,
        nbd_tls,
        limits,
        control,
        arbiter,
        nodes: nodes.into_iter().map(|node| node.value).collect(),
        volumes: volumes.into_iter().map(|volume| volume.value).collect(),
    };
    // The slot numbers of peers follow the order of the nodes, not the order of the tables in a volume.
    let order: Vec<String> = config.nodes.iter().map(|node| node.name.clone()).collect();
    for volume in &mut config.volumes {
        volume.copies.sort_by_key(|copy| order.iter().position(|name| *name == copy.node));
    }
    Ok(config)
}

fn node(mut section: Section<'_>) -> At<Node> {
    let name = name_of(&mut section, "name", "write name = \"NAME\", best the host's name");
    section.place = format!("[[node]] {:?}", name.value);
    let data = address_of(&mut section, "data");
    let heartbeat = section.list("heartbeat", ADDRESS, dialable).unwrap_or_default();
    let control = section.parsed("control", "it must be an absolute path of at most 107 bytes", socket_path);
    let nbd =
        section.list("nbd", "it must be \"unix:/absolute/path\" or \"tcp:IP:PORT\"", nbd_address).unwrap_or_default();
    let saved = section.parsed("saved", PATH, absolute);
    let state = section.parsed("state", PATH, absolute);
    let agent = section.parsed("agent", ADDRESS, dialable).map(|at| at.value);
    let line = section.line;
    section.finish();
    let saved = saved.map_or_else(|| PathBuf::from(SAVED_DEFAULT), |at| at.value);
    let control = control.map_or_else(|| PathBuf::from(format!("/run/repblk/{}.sock", name.value)), |at| at.value);
    let state = state.map_or_else(|| PathBuf::from(STATE_DEFAULT), |at| at.value);
    let (heartbeat, nbd) = (values(heartbeat), values(nbd));
    let node = Node { name: name.value, data, heartbeat, control, nbd, saved, state, agent };
    At { value: node, line }
}

fn volume(mut section: Section<'_>) -> At<VolumeSpec> {
    let name = name_of(&mut section, "name", "write name = \"NAME\"; NBD clients ask for it");
    section.place = format!("[[volume]] {:?}", name.value);
    let modes = "it must be \"sync\", \"semisync\" or \"async\"";
    let mode = section.parsed("mode", modes, mode_of).map_or_else(Mode::default, |at| at.value);
    let peer_timeout = section.number("peer_timeout_ms", 2500, 200..=600_000);
    let ping_interval = section.number("ping_interval_ms", 500.min(peer_timeout.value / 4), 20..=200_000);
    if ping_interval.value * 2 > peer_timeout.value {
        section.problem(
            ping_interval.line,
            format!(
                "ping_interval_ms = {} is more than half of peer_timeout_ms = {}, so that one lost keep-alive would \
                     drop a good peer; make it at most {}",
                ping_interval.value,
                peer_timeout.value,
                peer_timeout.value / 2
            ),
        );
    }
    let backlog = section.number("backlog_max_mib", 32, 1..=1024);
    let backlog_age = section.number("backlog_max_ms", 5000, 10..=3_600_000);
    let rate_max = section.number("resync_rate_max_mib_s", 0, 0..=1_000_000);
    let rate_min = section.number("resync_rate_min_mib_s", 8, 1..=1_000_000);
    if rate_max.value != 0 && rate_max.value < rate_min.value {
        section.problem(
            rate_max.line,
            format!(
                "resync_rate_max_mib_s = {} is below resync_rate_min_mib_s = {}; raise it, or write 0 for no limit",
                rate_max.value, rate_min.value
            ),
        );
    }
    let slots =
        section.number("activity_log_slots", AL_SLOTS_DEFAULT.into(), AL_SLOTS_MIN.into()..=AL_SLOTS_MAX.into());
    let pool = section.number("pool_mib", 64, 64..=4096);
    if !pool.value.is_power_of_two() {
        let what = format!("pool_mib = {} is no power of two; write 64, 128, 256, 512, 1024, 2048 or 4096", pool.value);
        section.problem(pool.line, what);
    }
    let spin = section.number("spin_us", 100, 0..=10_000);
    let direct = section.switch("direct", false);
    let resume_primary = section.switch("resume_primary", true);
    let engine = section.parsed("engine", "it must be \"auto\" or \"thread\"", engine_of);
    let allow = allow::allow(&mut section);
    let services = services::services(&mut section);
    let copies = section.named("on").into_iter().map(|(node, section)| copy(node.value, section)).collect();
    let line = section.line;
    section.finish();
    let spec = VolumeSpec {
        name: name.value,
        mode,
        peer_timeout: Duration::from_millis(peer_timeout.value),
        ping_interval: Duration::from_millis(ping_interval.value),
        backlog_bytes: backlog.value * MIB,
        backlog_age: Duration::from_millis(backlog_age.value),
        resync_rate_max: (rate_max.value > 0).then_some(rate_max.value * MIB),
        resync_rate_min: rate_min.value * MIB,
        activity_log_slots: u32::try_from(slots.value).expect("bounded above"),
        pool_bytes: pool.value * MIB,
        spin: Duration::from_micros(spin.value),
        direct,
        resume_primary,
        engine: engine.map_or_else(Engine::default, |at| at.value),
        allow,
        services,
        copies,
    };
    At { value: spec, line }
}

fn copy(node: &str, mut section: Section<'_>) -> CopySpec {
    let device = section.parsed("device", PATH, absolute);
    if device.is_none() {
        section.missing("usable device", "write device = \"/dev/...\" or the absolute path of a file");
    }
    let right = "it must be \"internal\" or an absolute path";
    let metadata = section.parsed("metadata", right, |text| match text {
        "internal" => Some(MetadataPlace::Internal),
        _ => absolute(text).map(MetadataPlace::External),
    });
    section.finish();
    CopySpec {
        node: node.to_owned(),
        device: device.map(|at| at.value).unwrap_or_default(),
        metadata: metadata.map_or(MetadataPlace::Internal, |at| at.value),
    }
}

pub(super) fn name_of(section: &mut Section<'_>, key: &'static str, right: &str) -> At<String> {
    let line = section.line;
    match section.string(key, NAME) {
        None => {
            section.missing(key, right);
            At { value: String::new(), line }
        }
        Some(At { value, line }) => {
            if !is_name(value) {
                section.problem(line, format!("{key} = {value:?} is not a name; {NAME}"));
            }
            At { value: value.to_owned(), line }
        }
    }
}

fn address_of(section: &mut Section<'_>, key: &'static str) -> SocketAddr {
    section.parsed(key, ADDRESS, dialable).map_or_else(
        || {
            section.missing(&format!("usable {key}"), "write data = \"IP:PORT\", this node's address on the data link");
            SocketAddr::from(([0, 0, 0, 0], 0))
        },
        |at| at.value,
    )
}

/// True when `text` may name a cluster, node or volume.
#[must_use]
pub fn is_name(text: &str) -> bool {
    let mut bytes = text.bytes();
    text.len() <= NAME_LEN_MAX
        && bytes.next().is_some_and(|first| first.is_ascii_alphanumeric())
        && bytes.all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte))
}

/// An address that another node can reach: not a wildcard, and with a port.
fn dialable(text: &str) -> Option<SocketAddr> {
    text.parse().ok().filter(|address: &SocketAddr| address.port() != 0 && !address.ip().is_unspecified())
}

fn nbd_address(text: &str) -> Option<NbdAddress> {
    match text.split_once(':')? {
        ("unix", path) => socket_path(path).map(NbdAddress::Unix),
        ("tcp", address) => {
            address.parse().ok().filter(|address: &SocketAddr| address.port() != 0).map(NbdAddress::Tcp)
        }
        _ => None,
    }
}

fn socket_path(text: &str) -> Option<PathBuf> {
    absolute(text).filter(|_| text.len() <= SOCKET_PATH_MAX)
}

pub(super) fn absolute(text: &str) -> Option<PathBuf> {
    Some(PathBuf::from(text)).filter(|path| path.is_absolute() && !text.contains('\0'))
}

fn mode_of(text: &str) -> Option<Mode> {
    [Mode::Sync, Mode::SemiSync, Mode::Async].into_iter().find(|mode| mode.word() == text)
}

fn engine_of(text: &str) -> Option<Engine> {
    match text {
        "auto" => Some(Engine::Auto),
        "thread" => Some(Engine::Thread),
        _ => None,
    }
}

pub(super) fn values<T>(list: Vec<At<T>>) -> Vec<T> {
    list.into_iter().map(|at| at.value).collect()
}
