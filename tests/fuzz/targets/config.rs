//! The configuration: any text gives a checked configuration or complaints that a person can use.
//!
//! Input: the text.

use super::notes::{note, note_text};
use repblk::daemon::config::{
    ArbiterKind, ArbiterSpec, Config, ConfigError, Engine, MetadataPlace, NODES_MAX, ServiceKind, ServiceSpec,
    VOLUMES_MAX, VolumeSpec,
};
use std::fmt::Write as _;
use std::path::Path;

const FILE: &str = "r.toml";

pub fn run(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    match Config::parse(&text, Path::new(FILE)) {
        Ok(config) => {
            possible(&config);
            let again = render(&config);
            assert_eq!(Config::parse(&again, Path::new(FILE)).as_ref(), Ok(&config), "{again}");
            let remark = format!("{text}\n# the end\n");
            assert_eq!(Config::parse(&remark, Path::new(FILE)), Ok(config), "a remark changes nothing");
        }
        Err(error) => {
            complaints(&text, &error);
            // The same text is told the same.
            assert_eq!(Config::parse(&text, Path::new(FILE)), Err(error));
        }
    }
}

/// What every accepted configuration is.
fn possible(config: &Config) {
    note(("good", config.nodes.len(), config.volumes.len()));
    assert!((1..=NODES_MAX).contains(&config.nodes.len()) && (1..=VOLUMES_MAX).contains(&config.volumes.len()));
    for node in &config.nodes {
        assert_eq!(config.choose_node(Some(&node.name), "x"), Ok(node));
        assert!(node.data.port() != 0 && !node.data.ip().is_unspecified() && node.control.is_absolute());
        assert_eq!(node.heartbeat.len(), config.nodes[0].heartbeat.len(), "every node is on every path");
    }
    for volume in &config.volumes {
        let [a, b] = &volume.copies[..] else { panic!("two copies: {volume:?}") };
        assert!(a.node != b.node && config.node(&a.node).is_some() && config.node(&b.node).is_some());
        assert_eq!(volume.peers_of(&a.node).collect::<Vec<_>>(), [&b.node]);
        assert!(volume.ping_interval * 2 <= volume.peer_timeout && volume.pool_bytes.is_power_of_two());
        assert!(volume.resync_rate_max.is_none_or(|max| max >= volume.resync_rate_min));
        assert!(volume.backlog_bytes >= 1 << 20 && volume.backlog_bytes <= 1 << 30);
    }
}

/// Each complaint is one line, names a line of the file, and can be shown on a terminal.
fn complaints(text: &str, error: &ConfigError) {
    let lines = text.bytes().filter(|&byte| byte == b'\n').count() + 1;
    assert!(!error.problems.is_empty() && error.problems.is_sorted_by_key(|(line, _)| *line), "{error:?}");
    for (line, what) in &error.problems {
        assert!(*line <= lines, "line {line} of {lines}: {what}");
        assert!(!what.trim().is_empty() && !what.chars().any(char::is_control), "{what:?}");
        note_text("problem", what);
    }
    let told = error.to_string();
    assert_eq!(told.lines().count(), error.problems.len(), "{told:?}");
    assert!(told.lines().all(|line| line.starts_with(FILE)), "{told:?}");
}

/// The configuration as text, with everything said.
fn render(config: &Config) -> String {
    let mut text = format!("cluster = {}\n", quoted(&config.cluster));
    let say = "text grows";
    writeln!(text, "heartbeat_interval_ms = {}", config.heartbeat_interval.as_millis()).expect(say);
    render_arbiter(&config.arbiter, &mut text);
    for node in &config.nodes {
        let list = |items: Vec<String>| items.iter().map(|item| quoted(item)).collect::<Vec<_>>().join(", ");
        let heartbeat = list(node.heartbeat.iter().map(ToString::to_string).collect());
        let nbd = list(node.nbd.iter().map(ToString::to_string).collect());
        writeln!(text, "[[node]]\nname = {}\ndata = {}", quoted(&node.name), quoted(&node.data.to_string()))
            .expect(say);
        writeln!(text, "heartbeat = [{heartbeat}]\nnbd = [{nbd}]").expect(say);
        writeln!(text, "control = {}\nsaved = {}", path(&node.control), path(&node.saved)).expect(say);
        writeln!(text, "state = {}", path(&node.state)).expect(say);
        if let Some(agent) = node.agent {
            writeln!(text, "agent = {}", quoted(&agent.to_string())).expect(say);
        }
    }
    for volume in &config.volumes {
        render_volume(volume, &mut text);
    }
    text
}

fn render_arbiter(spec: &ArbiterSpec, text: &mut String) {
    let timing = &spec.timing;
    let ms = |duration: std::time::Duration| duration.as_millis().to_string();
    let list = |items: &[String]| format!("[{}]", items.iter().map(|item| quoted(item)).collect::<Vec<_>>().join(", "));
    let mut keys = vec![
        ("kind", quoted(spec.arbiter().word())),
        ("heartbeat_timeout_ms", ms(timing.detector.floor)),
        ("heartbeat_timeout_max_ms", ms(timing.detector.cap)),
        ("dwell_ms", ms(timing.dwell)),
        ("settled_ms", ms(timing.settled)),
        ("automatic", spec.automatic.to_string()),
        ("automatic_per_hour", spec.automatic_per_hour.to_string()),
    ];
    keys.extend(spec.gateway.map(|gateway| ("gateway", quoted(&gateway.to_string()))));
    match &spec.kind {
        ArbiterKind::None { accept_split_brain } => keys.push(("accept_split_brain", accept_split_brain.to_string())),
        ArbiterKind::Fence(fence) => keys.extend([
            ("command", list(&fence.command)),
            ("command_timeout_ms", ms(fence.timeout)),
            ("fence_delay_ms", ms(timing.fence_delay)),
            ("fence_again_ms", ms(timing.proof_again)),
        ]),
        ArbiterKind::Agent => render_agents(spec, &mut keys),
        ArbiterKind::Etcd(etcd) => {
            render_agents(spec, &mut keys);
            let endpoints: Vec<String> = etcd.endpoints.iter().map(|endpoint| format!("http://{endpoint}")).collect();
            assert!(timing.check().is_ok() && !endpoints.is_empty());
            keys.extend([
                ("endpoints", list(&endpoints)),
                ("insecure", etcd.insecure.to_string()),
                ("prefix", quoted(&etcd.prefix)),
                ("lease_ms", ms(timing.lease)),
                ("renew_ms", ms(timing.renew)),
                ("arbiter_timeout_ms", ms(timing.arbiter_timeout)),
                ("clock_rate_error_ppm", timing.rate_error_ppm.to_string()),
                ("guard_ms", ms(timing.guard)),
                ("hand_over_ms", ms(timing.hand_over)),
            ]);
            if let Some((user, file)) = &etcd.login {
                keys.extend([("user", quoted(user)), ("password_file", path(file))]);
            }
        }
    }
    text.push_str("[arbiter]\n");
    for (key, value) in keys {
        writeln!(text, "{key} = {value}").expect("text grows");
    }
}

fn render_agents(spec: &ArbiterSpec, keys: &mut Vec<(&str, String)>) {
    keys.extend([
        ("agent_timeout_ms", spec.agent.timeout.as_millis().to_string()),
        ("agent_hang_ms", spec.agent.hang.as_millis().to_string()),
        ("agent_again_ms", spec.timing.proof_again.as_millis().to_string()),
    ]);
}

fn render_service(service: &ServiceSpec, text: &mut String) {
    let list = |items: &[String]| format!("[{}]", items.iter().map(|item| quoted(item)).collect::<Vec<_>>().join(", "));
    let mut keys = vec![
        ("name", quoted(&service.name)),
        ("start_timeout_ms", service.start_limit.as_millis().to_string()),
        ("stop_timeout_ms", service.stop_limit.as_millis().to_string()),
    ];
    match &service.kind {
        ServiceKind::Command { start, stop } => keys.extend([("start", list(start)), ("stop", list(stop))]),
        ServiceKind::Unit(unit) => keys.push(("unit", quoted(unit))),
        ServiceKind::Address { address, prefix, interface } => {
            keys.extend([("address", quoted(&format!("{address}/{prefix}"))), ("interface", quoted(interface))]);
        }
    }
    text.push_str("[[volume.service]]\n");
    for (key, value) in keys {
        writeln!(text, "{key} = {value}").expect("text grows");
    }
}

fn render_volume(volume: &VolumeSpec, text: &mut String) {
    let engine = match volume.engine {
        Engine::Auto => "auto",
        Engine::Thread => "thread",
    };
    let keys = [
        ("name", quoted(&volume.name)),
        ("mode", quoted(volume.mode.word())),
        ("engine", quoted(engine)),
        ("peer_timeout_ms", volume.peer_timeout.as_millis().to_string()),
        ("ping_interval_ms", volume.ping_interval.as_millis().to_string()),
        ("backlog_max_mib", (volume.backlog_bytes >> 20).to_string()),
        ("backlog_max_ms", volume.backlog_age.as_millis().to_string()),
        ("resync_rate_max_mib_s", (volume.resync_rate_max.unwrap_or(0) >> 20).to_string()),
        ("resync_rate_min_mib_s", (volume.resync_rate_min >> 20).to_string()),
        ("activity_log_slots", volume.activity_log_slots.to_string()),
        ("pool_mib", (volume.pool_bytes >> 20).to_string()),
        ("spin_us", volume.spin.as_micros().to_string()),
        ("direct", volume.direct.to_string()),
        ("resume_primary", volume.resume_primary.to_string()),
    ];
    text.push_str("[[volume]]\n");
    for (key, value) in keys {
        writeln!(text, "{key} = {value}").expect("text grows");
    }
    for service in &volume.services {
        render_service(service, text);
    }
    for copy in &volume.copies {
        let metadata = match &copy.metadata {
            MetadataPlace::Internal => quoted("internal"),
            MetadataPlace::External(file) => path(file),
        };
        let (node, device) = (quoted(&copy.node), path(&copy.device));
        writeln!(text, "[volume.on.{node}]\ndevice = {device}\nmetadata = {metadata}").expect("text grows");
    }
}

fn path(path: &Path) -> String {
    quoted(path.to_str().expect("the file was text"))
}

/// A basic string of TOML.
fn quoted(text: &str) -> String {
    let mut quoted = String::from('"');
    for c in text.chars() {
        match c {
            '"' | '\\' => quoted.extend(['\\', c]),
            c if c.is_control() => write!(quoted, "\\u{:04x}", u32::from(c)).expect("text grows"),
            c => quoted.push(c),
        }
    }
    quoted.push('"');
    quoted
}
