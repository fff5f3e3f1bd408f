//! The table `[arbiter]`: who decides about failover, and its times.
//!
//! A key that belongs to another kind of arbiter than the one that is chosen is refused: it would do nothing.

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::parse::{PATH, absolute, values};
use super::reader::{At, Document, Section};
use super::{Node, Security};
use crate::failover::config::{Arbiter, Timing};
use crate::failover::detector::Tuning;
use crate::tls::Visitor;

/// Most members of an etcd.
const ENDPOINTS_MAX: usize = 9;

/// Keys that only `kind = "etcd"` has.
const ETCD_KEYS: &[&str] = &[
    "endpoints",
    "user",
    "password_file",
    "ca",
    "certificate",
    "key",
    "insecure",
    "prefix",
    "lease_ms",
    "renew_ms",
    "arbiter_timeout_ms",
    "clock_rate_error_ppm",
    "guard_ms",
    "hand_over_ms",
];
/// Keys that only `kind = "fence"` has.
const FENCE_KEYS: &[&str] = &["command", "command_timeout_ms", "fence_delay_ms", "fence_again_ms"];
/// Keys about the agents of the hosts, for `kind = "agent"` and `kind = "etcd"`.
const AGENT_KEYS: &[&str] = &["agent_timeout_ms", "agent_again_ms", "agent_hang_ms"];
const AGENT_WHY: &str = "it belongs to kind = \"agent\" and kind = \"etcd\"";

/// Who decides whether a lost peer can be excluded or replaced.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ArbiterSpec {
    /// How it decides, with what only that way needs.
    pub kind: ArbiterKind,
    /// Times of the failover machine; checked.
    pub timing: Timing,
    /// A standby takes over by itself.
    pub automatic: bool,
    /// Automatic failovers that an hour may see.
    pub automatic_per_hour: usize,
    /// Must answer a ping, or this node takes nothing over.
    pub gateway: Option<IpAddr>,
    /// The times of the agents; they are asked where the nodes have one.
    pub agent: AgentSpec,
}

/// How agents are asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AgentSpec {
    /// One that has not answered for so long has proved nothing.
    pub timeout: Duration,
    /// A daemon that does not answer its own host's agent for so long hangs, and is killed.
    pub hang: Duration,
}

impl Default for AgentSpec {
    fn default() -> Self {
        Self { timeout: Duration::from_secs(10), hang: Duration::from_secs(3) }
    }
}

/// The kinds of arbiter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ArbiterKind {
    /// An operator.
    None {
        /// With a gateway: silence of the peer promotes, and two primaries are possible.
        accept_split_brain: bool,
    },
    /// A record in an etcd.
    Etcd(EtcdSpec),
    /// A command that switches the peer off.
    Fence(FenceSpec),
    /// The agent of the peer's host.
    Agent,
}

/// Where the record is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EtcdSpec {
    /// `HOST:PORT` of each member.
    pub endpoints: Vec<String>,
    /// How TLS is spoken with them; none in the clear.
    pub tls: Option<EtcdTls>,
    /// The user, and the file with its password.
    pub login: Option<(String, PathBuf)>,
    /// What the keys begin with; no slash at its end.
    pub prefix: String,
    /// Packets to etcd may be read and changed on the way, and the operator knows.
    pub insecure: bool,
}

/// How an etcd and its client prove who they are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EtcdTls {
    /// With the keys of the nodes.
    Keys,
    /// With files of their own.
    Files(Visitor),
}

/// How the peer is fenced.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FenceSpec {
    /// The program and its arguments.
    pub command: Vec<String>,
    /// It is killed after this long, and has proved nothing.
    pub timeout: Duration,
}

impl ArbiterSpec {
    /// As the failover machine calls the kind.
    #[must_use]
    pub fn arbiter(&self) -> Arbiter {
        match self.kind {
            ArbiterKind::None { .. } => Arbiter::None,
            ArbiterKind::Etcd(_) => Arbiter::Etcd,
            ArbiterKind::Fence(_) => Arbiter::Fence,
            ArbiterKind::Agent => Arbiter::Agent,
        }
    }

    /// The configuration accepts two primaries.
    #[must_use]
    pub fn accepts_split_brain(&self) -> bool {
        matches!(self.kind, ArbiterKind::None { accept_split_brain: true })
    }

    /// What is guaranteed: for the start, `status` and `config check`.
    #[must_use]
    pub fn guarantee(&self) -> &'static str {
        if self.accepts_split_brain() {
            "accept_split_brain is set: a standby that hears nothing of its primary and reaches the gateway takes over; when only the \
             network between the nodes is cut, BOTH nodes acknowledge writes, and one node's writes will be given up"
        } else {
            self.arbiter().guarantee()
        }
    }
}

/// Reads the table; `section` is none when there is none. `interval` is the time between heartbeats.
pub(super) fn arbiter(doc: &Document<'_>, section: Option<Section<'_>>, interval: Duration) -> ArbiterSpec {
    let mut timing = Timing { detector: Tuning::of_interval(interval), ..Timing::default() };
    let none = ArbiterKind::None { accept_split_brain: false };
    let Some(mut section) = section else {
        let agent = AgentSpec::default();
        return ArbiterSpec { kind: none, timing, automatic: true, automatic_per_hour: 2, gateway: None, agent };
    };
    let line = section.line;
    let kinds = "it must be \"etcd\", \"fence\", \"agent\" or \"none\"";
    let words = ["etcd", "fence", "none", "agent"];
    let kind = section.parsed("kind", kinds, |text| words.iter().position(|word| *word == text));
    if !section.has("kind") {
        section.missing("kind", kinds);
    }
    let floor = section.number("heartbeat_timeout_ms", ms(timing.detector.floor), 80..=600_000);
    let cap = section.number("heartbeat_timeout_max_ms", ms(timing.detector.cap.max(of(floor))), 80..=600_000);
    (timing.detector.floor, timing.detector.cap) = (of(floor), of(cap));
    timing.dwell = of(section.number("dwell_ms", ms(timing.dwell), 0..=86_400_000));
    timing.settled = of(section.number("settled_ms", ms(timing.settled), 0..=86_400_000));
    let automatic = section.switch("automatic", true);
    let per_hour = section.number("automatic_per_hour", 2, 1..=16);
    let gateway = section.parsed("gateway", "it must be an IP address", |text| text.parse::<IpAddr>().ok());
    let mut agent = AgentSpec::default();
    let kind = match kind.map(|at| at.value) {
        Some(0) => {
            agent = agents(&mut section, &mut timing);
            etcd(&mut section, &mut timing)
        }
        Some(1) => fence(&mut section, &mut timing),
        Some(3) => {
            section.forbid(ETCD_KEYS, "it belongs to kind = \"etcd\"");
            section.forbid(FENCE_KEYS, "it belongs to kind = \"fence\"");
            section.forbid(&["accept_split_brain"], "it belongs to kind = \"none\"");
            agent = agents(&mut section, &mut timing);
            ArbiterKind::Agent
        }
        _ => alone(&mut section, gateway.as_ref()),
    };
    section.finish();
    let spec = ArbiterSpec {
        timing,
        automatic,
        automatic_per_hour: usize::try_from(per_hour.value).expect("a small number"),
        gateway: gateway.map(|at| at.value),
        kind,
        agent,
    };
    let checked = match spec.kind {
        ArbiterKind::Etcd(_) => spec.timing.check(),
        ArbiterKind::Fence(_) | ArbiterKind::Agent | ArbiterKind::None { .. } => spec.timing.check_detector(),
    };
    if let Err(error) = checked {
        doc.problem(line, format!("[arbiter]: {error}"));
    }
    spec
}

fn agents(section: &mut Section<'_>, timing: &mut Timing) -> AgentSpec {
    let default = AgentSpec::default();
    timing.proof_again = of(section.number("agent_again_ms", 1000, 100..=3_600_000));
    AgentSpec {
        timeout: of(section.number("agent_timeout_ms", ms(default.timeout), 100..=600_000)),
        // A daemon whose volume hangs answers all the same, and takes a moment for it.
        hang: of(section.number("agent_hang_ms", ms(default.hang), 2000..=600_000)),
    }
}

fn alone(section: &mut Section<'_>, gateway: Option<&At<IpAddr>>) -> ArbiterKind {
    section.forbid(AGENT_KEYS, AGENT_WHY);
    section.forbid(ETCD_KEYS, "it belongs to kind = \"etcd\"");
    section.forbid(FENCE_KEYS, "it belongs to kind = \"fence\"");
    let accept_split_brain = section.switch("accept_split_brain", false);
    match (accept_split_brain, gateway) {
        (true, None) => section.missing(
            "gateway",
            "with accept_split_brain = true, a standby takes over when it reaches the gateway and not its peer",
        ),
        (false, Some(gateway)) => section.problem(
            gateway.line,
            "without an arbiter a gateway permits nothing, since both sides of a cut may reach it; choose another kind, \
             or accept_split_brain = true and its danger",
        ),
        _ => {}
    }
    ArbiterKind::None { accept_split_brain }
}

fn etcd(section: &mut Section<'_>, timing: &mut Timing) -> ArbiterKind {
    section.forbid(FENCE_KEYS, "it belongs to kind = \"fence\"");
    section.forbid(&["accept_split_brain"], "it belongs to kind = \"none\"");
    let right = "it must be \"https://HOST:PORT\" or \"http://HOST:PORT\", such as \"https://10.0.3.1:2379\"";
    let endpoints = section.list("endpoints", right, endpoint).unwrap_or_default();
    let line = endpoints.first().map_or(section.line, |at| at.line);
    let (encrypted, endpoints): (Vec<bool>, Vec<String>) = values(endpoints).into_iter().unzip();
    if endpoints.is_empty() || endpoints.len() > ENDPOINTS_MAX {
        section
            .missing("usable endpoints", "write endpoints = [\"https://HOST:PORT\"], one for each member of the etcd");
    }
    if encrypted.iter().any(|&tls| tls != encrypted[0]) {
        section
            .problem(line, "some endpoints are https and some http; one in the clear is enough to change the record");
    }
    let tls = tls(section, encrypted.contains(&true));
    let insecure = section.switch("insecure", false);
    let clear = tls.is_none() && !insecure;
    if let Some(remote) = endpoints.iter().find(|endpoint| !is_own_host(endpoint)).filter(|_| clear) {
        section.problem(
            line,
            format!(
                "{remote} is on another host and is asked over plain HTTP: whoever can read or change packets on the way can make \
                 two primaries. Let etcd speak TLS and write https; or say insecure = true if that network is yours alone"
            ),
        );
    }
    let user = section.string("user", "it must be the name of a user of etcd").map(|at| at.value.to_owned());
    let password = section.parsed("password_file", PATH, absolute).map(|at| at.value);
    let login = match (user, password) {
        (Some(user), Some(file)) => Some((user, file)),
        (None, None) => None,
        _ => {
            section.missing("user or no password_file", "write both of user and password_file, or none");
            None
        }
    };
    let prefix = section.parsed("prefix", "it must begin with a slash and not end with one", prefix);
    timing.lease = of(section.number("lease_ms", ms(timing.lease), 500..=600_000));
    timing.renew = of(section.number("renew_ms", ms(timing.renew), 50..=200_000));
    timing.arbiter_timeout = of(section.number("arbiter_timeout_ms", ms(timing.arbiter_timeout), 50..=60_000));
    let ppm = section.number("clock_rate_error_ppm", timing.rate_error_ppm.into(), 100..=100_000);
    timing.rate_error_ppm = u32::try_from(ppm.value).expect("bounded above");
    timing.guard = of(section.number("guard_ms", ms(timing.guard), 100..=60_000));
    timing.hand_over = of(section.number("hand_over_ms", ms(timing.hand_over), 500..=60_000));
    let prefix = prefix.map_or_else(|| "/repblk".to_owned(), |at| at.value);
    ArbiterKind::Etcd(EtcdSpec { endpoints, tls, login, prefix, insecure })
}

/// The files for TLS with etcd.
fn tls(section: &mut Section<'_>, encrypted: bool) -> Option<EtcdTls> {
    if !encrypted {
        section.forbid(&["ca", "certificate", "key"], "endpoints are http; write https");
        return None;
    }
    section.forbid(&["insecure"], "endpoints are https");
    let mut file = |name| section.parsed(name, PATH, absolute).map(|at| at.value);
    let (authority, certificate, key) = (file("ca"), file("certificate"), file("key"));
    let own = match (certificate, key) {
        (Some(certificate), Some(key)) => Some((certificate, key)),
        (None, None) => None,
        _ => {
            section.missing("certificate or no key", "write both of certificate and key, or none");
            None
        }
    };
    match authority {
        Some(authority) => Some(EtcdTls::Files(Visitor { authority, own })),
        None if own.is_none() => Some(EtcdTls::Keys),
        None => {
            section.missing("ca", "write ca = \"/FILE\", with the certificate of the authority that made etcd's");
            None
        }
    }
}

fn fence(section: &mut Section<'_>, timing: &mut Timing) -> ArbiterKind {
    section.forbid(AGENT_KEYS, AGENT_WHY);
    section.forbid(ETCD_KEYS, "it belongs to kind = \"etcd\"");
    section.forbid(&["accept_split_brain"], "it belongs to kind = \"none\"");
    let right = "it must be a list of texts: the absolute path of a program, and its arguments";
    let command = section.list("command", right, |text| (!text.contains('\0')).then(|| text.to_owned()));
    let command = values(command.unwrap_or_default());
    if command.first().is_none_or(|program| !Path::new(program).is_absolute()) {
        section.missing("usable command", "write command = [\"/absolute/path\", \"ARGUMENT\", ...]");
    }
    let timeout = of(section.number("command_timeout_ms", 60_000, 100..=3_600_000));
    timing.fence_delay = of(section.number("fence_delay_ms", ms(timing.fence_delay), 0..=600_000));
    timing.proof_again = of(section.number("fence_again_ms", ms(timing.proof_again), 100..=3_600_000));
    ArbiterKind::Fence(FenceSpec { command, timeout })
}

/// What failover needs of the nodes.
pub(super) fn fits_nodes(doc: &Document<'_>, spec: &ArbiterSpec, nodes: &[At<Node>]) {
    agents_fit(doc, spec, nodes);
    let automatic = spec.arbiter() != Arbiter::None || spec.accepts_split_brain();
    for At { value: node, line } in nodes.iter().filter(|node| automatic && node.value.heartbeat.is_empty()) {
        doc.problem(
            *line,
            format!(
                "node {:?} has no heartbeat address; automatic failover needs at least one heartbeat path beside the data link",
                node.name
            ),
        );
    }
}

/// What an etcd needs of the nodes' keys.
pub(super) fn fits_keys(doc: &Document<'_>, spec: &ArbiterSpec, line: usize, security: &Security) {
    if let (ArbiterKind::Etcd(EtcdSpec { tls: Some(EtcdTls::Keys), .. }), None) = (&spec.kind, security.keys()) {
        doc.problem(
            line,
            "etcd is asked over TLS, and there are no keys in [security] that could serve for it; write ca = \"/FILE\", with the \
             certificate of the authority that made etcd's",
        );
    }
}

/// Agents run on every host, or on none where they are not needed.
fn agents_fit(doc: &Document<'_>, spec: &ArbiterSpec, nodes: &[At<Node>]) {
    let some = nodes.iter().any(|node| node.value.agent.is_some());
    for At { value: node, line } in nodes {
        let what = match (spec.arbiter(), node.agent) {
            (Arbiter::Fence | Arbiter::None, Some(_)) => {
                "an agent, and nobody would ask it: only kind = \"agent\" and kind = \"etcd\" do"
            }
            (Arbiter::Agent, None) => "no agent; write agent = \"IP:PORT\", and run `repblk agent` on its host",
            (Arbiter::Etcd, None) if some => {
                "no agent, and another node has one; write agent = \"IP:PORT\" for each, or for none"
            }
            _ => continue,
        };
        doc.problem(*line, format!("node {:?} has {what}", node.name));
    }
}

fn endpoint(text: &str) -> Option<(bool, String)> {
    let encrypted = text.starts_with("https://");
    let text = text.strip_prefix(if encrypted { "https://" } else { "http://" })?;
    let (host, port) = text.trim_end_matches('/').rsplit_once(':')?;
    let port: u16 = port.parse().ok().filter(|&port| port != 0)?;
    let inside = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
    let good = match inside {
        Some(address) => address.parse::<std::net::Ipv6Addr>().is_ok(),
        None => !host.is_empty() && host.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-.".contains(&byte)),
    };
    good.then(|| (encrypted, format!("{host}:{port}")))
}

/// True for an address of the loopback network. A name may lead anywhere.
fn is_own_host(endpoint: &str) -> bool {
    endpoint.parse().is_ok_and(|address: SocketAddr| address.ip().is_loopback())
}

fn prefix(text: &str) -> Option<String> {
    let good = text.starts_with('/') && !text.ends_with('/') && text.len() <= 200 && !text.contains(char::is_control);
    good.then(|| text.to_owned())
}

fn of(at: At<u64>) -> Duration {
    Duration::from_millis(at.value)
}

fn ms(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).expect("defaults are small")
}
