//! The tables `[[volume.service]]`: what is started on the node that is primary, in the order of the file.

use std::net::IpAddr;
use std::path::Path;
use std::time::Duration;

use super::parse::{name_of, values};
use super::reader::{At, Section};

/// Most services of a volume.
const SERVICES_MAX: usize = 32;
/// Longest name of a network interface.
const INTERFACE_LEN_MAX: usize = 15;

/// One service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServiceSpec {
    /// Its name, for the log and `status`.
    pub name: String,
    /// What it is.
    pub kind: ServiceKind,
    /// It must be started within this time.
    pub start_limit: Duration,
    /// It must be stopped within this time.
    pub stop_limit: Duration,
}

/// The kinds of service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ServiceKind {
    /// Two programs with their arguments. Exit code 0: done, also when it was so before.
    Command {
        /// Starts it.
        start: Vec<String>,
        /// Stops it.
        stop: Vec<String>,
    },
    /// A unit of systemd.
    Unit(String),
    /// An address that the clients of the service know.
    Address {
        /// The address.
        address: IpAddr,
        /// Length of its network's prefix, in bits.
        prefix: u8,
        /// The network interface that carries it.
        interface: String,
    },
}

impl ServiceKind {
    /// The word in `status`.
    #[must_use]
    pub fn word(&self) -> &'static str {
        match self {
            Self::Command { .. } => "command",
            Self::Unit(_) => "unit",
            Self::Address { .. } => "address",
        }
    }
}

pub(super) fn services(volume: &mut Section<'_>) -> Vec<ServiceSpec> {
    let services: Vec<At<ServiceSpec>> = volume.sections("service").into_iter().map(service).collect();
    if let Some(extra) = services.get(SERVICES_MAX) {
        volume
            .problem(extra.line, format!("there are {} services; at most {SERVICES_MAX} are possible", services.len()));
    }
    let is_address = |at: &&At<ServiceSpec>| matches!(at.value.kind, ServiceKind::Address { .. });
    for (i, At { value, line }) in services.iter().enumerate() {
        let before = &services[..i];
        if before.iter().any(|other| other.value.name == value.name) {
            volume.problem(*line, format!("the service {:?} is there twice", value.name));
        }
        if let (Some(address), false) = (before.iter().find(is_address), is_address(&&services[i])) {
            volume.problem(
                *line,
                format!(
                    "the service {:?} stands after the address {:?}; clients that reach the address expect it to run, so addresses come last",
                    value.name, address.value.name
                ),
            );
        }
    }
    values(services)
}

fn service(mut section: Section<'_>) -> At<ServiceSpec> {
    section.place = "[[volume.service]]".to_owned();
    let name = name_of(&mut section, "name", "write name = \"NAME\", for the log and `repblk status`").value;
    section.place = format!("[[volume.service]] {name:?}");
    let limit = |at: At<u64>| Duration::from_millis(at.value);
    let start_limit = limit(section.number("start_timeout_ms", 60_000, 100..=3_600_000));
    let stop_limit = limit(section.number("stop_timeout_ms", 60_000, 100..=3_600_000));
    let kinds = ["start", "unit", "address"].into_iter().filter(|key| section.has(key)).count();
    if kinds != 1 {
        let what = if kinds == 0 { "no start, unit or address" } else { "more than one of start, unit and address" };
        section.problem(
            section.line,
            format!("it has {what}; write start and stop commands, or a systemd unit, or an address and its interface"),
        );
    }
    let kind = if section.has("unit") {
        section.forbid(&["stop", "interface"], "a unit is started and stopped by systemd");
        let right = "it must be the name of a systemd unit, such as \"postgresql.service\"";
        ServiceKind::Unit(section.parsed("unit", right, unit).map(|at| at.value).unwrap_or_default())
    } else if section.has("address") {
        section.forbid(&["stop"], "an address needs none");
        address(&mut section)
    } else {
        section.forbid(&["interface"], "it belongs to an address");
        ServiceKind::Command { start: command(&mut section, "start"), stop: command(&mut section, "stop") }
    };
    // One complaint about a mixture is enough.
    section.forbid(if kinds > 1 { &["start", "unit", "address"] } else { &[] }, "only one of them counts");
    let line = section.line;
    section.finish();
    At { value: ServiceSpec { name, kind, start_limit, stop_limit }, line }
}

fn command(section: &mut Section<'_>, key: &'static str) -> Vec<String> {
    let right = "it must be a list of texts: the absolute path of a program, and its arguments";
    let words = section.list(key, right, |text| (!text.contains('\0')).then(|| text.to_owned()));
    let words = values(words.unwrap_or_default());
    if words.first().is_none_or(|program| !Path::new(program).is_absolute()) {
        section.missing(&format!("usable {key}"), &format!("write {key} = [\"/absolute/path\", \"ARGUMENT\", ...]"));
    }
    words
}

fn address(section: &mut Section<'_>) -> ServiceKind {
    let right = "it must be an address with the length of its network's prefix, such as \"10.0.2.100/24\"";
    let found = section.parsed("address", right, |text| {
        let (address, prefix) = text.split_once('/')?;
        let (address, prefix): (IpAddr, u8) = (address.parse().ok()?, prefix.parse().ok()?);
        let bits = if address.is_ipv4() { 32 } else { 128 };
        (prefix <= bits && !address.is_unspecified() && !address.is_multicast()).then_some((address, prefix))
    });
    let interface = section.parsed("interface", "it must be the name of a network interface", |text| {
        let plain = |c: char| c.is_ascii_graphic() && c != '/' && c != ':';
        let good =
            (1..=INTERFACE_LEN_MAX).contains(&text.len()) && text.chars().all(plain) && !text.starts_with(['-', '.']);
        good.then(|| text.to_owned())
    });
    if !section.has("interface") {
        section.missing("interface", "write interface = \"NAME\", as `ip link` shows it on each node");
    }
    let (address, prefix) = found.map_or((IpAddr::from([0, 0, 0, 0]), 0), |at| at.value);
    ServiceKind::Address { address, prefix, interface: interface.map(|at| at.value).unwrap_or_default() }
}

fn unit(text: &str) -> Option<String> {
    let plain = |c: char| c.is_ascii_alphanumeric() || ":-_.\\@".contains(c);
    let good = !text.is_empty() && text.len() <= 255 && text.chars().all(plain) && !text.starts_with('-');
    good.then(|| text.to_owned())
}
