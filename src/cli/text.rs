//! Status and events as people read them.

use std::fmt::Write as _;

use crate::daemon::events::{Event, Happening, ResyncEvent};
use crate::daemon::failover::look::PlanStatus;
use crate::daemon::status::{PeerStatus, ResyncStatus, Status, VolumeStatus};
use crate::failover::history::{Cause, Episode};

/// `repblk status`.
pub(super) fn status(status: &Status) -> String {
    let mut text = format!("{} node {}, repblk {}, pid {}", status.cluster, status.node, status.version, status.pid);
    match status.arbiter.as_str() {
        "none" => text.push_str(", no arbiter\n"),
        arbiter => {
            // Writing to a string cannot fail.
            let _ = write!(text, ", arbiter {arbiter}\n{}\n", status.guarantee);
        }
    }
    let security = &status.security;
    match (security.mode.as_str(), &security.certificate_until) {
        ("insecure", _) => text.push_str("INSECURE: nothing that leaves the nodes is encrypted or authenticated\n"),
        (_, Some(until)) => {
            // Writing to a string cannot fail.
            let _ = writeln!(text, "TLS between the nodes, certificate until {until}");
        }
        _ => {}
    }
    for warning in [&security.warning, &security.nbd_warning].into_iter().flatten() {
        let _ = writeln!(text, "WARNING: {warning}");
    }
    if security.heartbeats_forged > 0 {
        let _ = writeln!(text, "{} heartbeats were forged, and not believed", security.heartbeats_forged);
    }
    if security.connections_turned_away > 0 {
        let _ = writeln!(text, "{} connections came too fast, and were turned away", security.connections_turned_away);
    }
    for volume in &status.volumes {
        text.push('\n');
        text.push_str(&self::volume(volume));
    }
    text
}

fn volume(v: &VolumeStatus) -> String {
    let mut text = String::new();
    let mut row = |name: &str, value: String| {
        // Writing to a string cannot fail.
        let _ = writeln!(text, "  {name:<12} {value}");
    };
    if let Some(trouble) = &v.trouble {
        row("TROUBLE", format!("{trouble}; what follows is old"));
    }
    if let Some(frozen) = &v.frozen {
        row("FROZEN", format!("{} (for {})", frozen.reason, time(frozen.for_ms / 1000)));
    }
    for peer in v.peers.iter().filter(|peer| peer.why.starts_with("split brain")) {
        row("SPLIT BRAIN", format!("this node and {} each hold acknowledged writes that the other lacks", peer.name));
        row("", "nothing is overwritten; decide which copy to keep, and on the other node".to_owned());
        row("", "run `repblk resync --discard-local`".to_owned());
    }
    row("state", format!("{}, {}, {}", v.role, v.disk_state, v.mode));
    row("data", format!("{} on {}, generation {}, term {}", bytes(v.size_bytes), v.device, v.generation, v.term));
    let listen = if v.nbd.listen.is_empty() { "nowhere".to_owned() } else { v.nbd.listen.join(", ") };
    row("clients", format!("{} (listening on {listen})", v.nbd.clients));
    for peer in &v.peers {
        row("peer", self::peer(peer));
    }
    if let Some(r) = &v.resync {
        row("resync", resync(r));
    }
    if !v.failover.rule.is_empty() {
        let lease = v.failover.lease_ms.filter(|_| v.role == "primary");
        let lease = lease.map_or(String::new(), |ms| format!(", lease for {}.{} s", ms / 1000, ms % 1000 / 100));
        let maintenance = if v.failover.maintenance { "MAINTENANCE, " } else { "" };
        row("failover", format!("{maintenance}{}{lease}: {}", v.failover.rule, v.failover.sentence));
    }
    for service in &v.services {
        let why = if service.why.is_empty() { String::new() } else { format!(" ({})", service.why) };
        let state = if service.why.is_empty() { service.state.clone() } else { service.state.to_uppercase() };
        row("service", format!("{}: {state}{why}", service.name));
    }
    match v.promotable.yes {
        true => row("promotable", "yes".to_owned()),
        // That a primary cannot be promoted is no news.
        false if v.role == "primary" => {}
        false => {
            row("promotable", format!("no, {}: {}", v.promotable.rule.as_deref().unwrap_or("?"), v.promotable.reason))
        }
    }
    format!("volume {}\n{text}", v.volume)
}

fn peer(p: &PeerStatus) -> String {
    let mut text = format!("{}: {} for {}", p.name, p.connection, time(p.connection_ms / 1000));
    let _ = match (p.connection == "connected", p.role.as_str(), p.disk_state.as_str()) {
        (true, role, disk) => write!(text, ", {}, {role} {disk}", p.replication),
        (false, "unknown", "unknown") => write!(text, ", state unknown"),
        // What it said before it was lost. It may be something else by now.
        (false, role, "unknown") => write!(text, ", last heard as {role}"),
        (false, "unknown", disk) => write!(text, ", last heard as {disk}"),
        (false, role, disk) => write!(text, ", last heard as {role} {disk}"),
    };
    if p.out_of_sync_bytes > 0 {
        let _ = write!(text, ", {} out of sync", bytes(p.out_of_sync_bytes));
    }
    if !p.why.is_empty() {
        let _ = write!(text, " ({})", p.why);
    }
    for path in &p.heartbeat {
        let state = match path.age_ms {
            Some(age) if path.alive => format!("{age} ms ago"),
            Some(age) => format!("SILENT for {}", time(age / 1000)),
            None => "never heard".to_owned(),
        };
        let _ = write!(text, "; heartbeat {} {state}", path.address);
    }
    text
}

/// `45.50 % of 1.0 GiB, 98.0 MiB/s, 0:05 to go`
pub(super) fn resync(r: &ResyncStatus) -> String {
    let direction = if r.part == "source" { "to" } else { "from" };
    let mut text =
        format!("{direction} {}: {:.2} % of {}, {}/s", r.peer, r.percent, bytes(r.bytes_total), bytes(r.rate));
    match r.eta_s {
        _ if r.paused => text.push_str(", PAUSED"),
        Some(eta) => {
            let _ = write!(text, ", {} to go", time(eta));
        }
        None => {}
    }
    text
}

/// One question of `repblk plan`, with its answer.
pub(super) fn plan(plan: &PlanStatus) -> String {
    let question = match plan.question.as_str() {
        "now" => "now",
        "peer-lost" => "if the peer's host were lost",
        "reconnect" => "if the peer and its link came back",
        "promote" => "if an operator said `promote` here",
        "switchover" => "if an operator said `switchover` here",
        other => other,
    };
    let mut text = format!("{question}: {} ({})\n  {}\n", plan.verdict, plan.rule, plan.sentence);
    for (i, step) in plan.steps.iter().enumerate() {
        // Writing to a string cannot fail.
        let _ = writeln!(text, "  {}. {step}", i + 1);
    }
    let _ = writeln!(text, "  evidence: {}", plan.evidence);
    text
}

/// One change of the primary.
pub(super) fn episode(episode: &Episode) -> String {
    let cause = match episode.cause {
        Cause::Automatic => "automatic",
        Cause::Operator => "operator",
        Cause::Orderly => "orderly",
    };
    format!(
        "{} {}: {} became primary at term {} by {}\n  evidence: {}\n",
        date(episode.at_unix_ms),
        cause,
        episode.to,
        episode.term,
        episode.rule,
        episode.evidence
    )
}

/// One event on one line.
pub(super) fn event(event: &Event) -> String {
    let what = match &event.what {
        Happening::Exists { status } => {
            let peers = status.peers.iter().map(|p| format!("; peer {}", peer(p))).collect::<String>();
            format!("is {}, {}, {}{peers}", status.role, status.disk_state, status.mode)
        }
        Happening::ExistsEnd => "changes from here on".to_owned(),
        Happening::Changed { what, old, new, why } => format!("{what}: {old} -> {new} ({why})"),
        Happening::ResyncStarted(r) => format!("resync started: {}", progress(r)),
        Happening::ResyncProgress(r) => format!("resync: {}", progress(r)),
        Happening::ResyncFinished(r) => format!("resync finished: {} in {} ms", progress(r), r.duration_ms),
        Happening::SplitBrain { peer, detail } => format!("SPLIT BRAIN with {peer}: {detail}"),
        Happening::Note { text, warning } => format!("{}{text}", if *warning { "WARNING: " } else { "" }),
        Happening::ClientConnected { session, from } => format!("NBD client {session} connected from {from}"),
        Happening::ClientGone { session, why } => format!("NBD client {session} gone: {why}"),
        Happening::LinkUp { peer } => format!("link to {peer} up"),
        Happening::LinkDown { peer, why } => format!("link to {peer} down: {why}"),
        Happening::Lost { events } => format!("{events} events were lost: this reader is too slow"),
    };
    let (volume, space) = if event.volume.is_empty() { ("", "") } else { (event.volume.as_str(), " ") };
    format!("{} {volume}{space}{what}", clock(event.time_ms))
}

fn progress(r: &ResyncEvent) -> String {
    let direction = if r.part == "source" { "to" } else { "from" };
    format!("{} of {} {direction} {}", bytes(r.bytes), bytes(r.bytes_total), r.peer)
}

/// A number of bytes with a unit, cut after one decimal.
pub(super) fn bytes(n: u64) -> String {
    const UNITS: [&str; 5] = ["KiB", "MiB", "GiB", "TiB", "PiB"];
    if n < 1024 {
        return format!("{n} B");
    }
    let (mut unit, mut tenths) = (0, u128::from(n) * 10 / 1024);
    while tenths >= 10_240 && unit + 1 < UNITS.len() {
        tenths /= 1024;
        unit += 1;
    }
    format!("{}.{} {}", tenths / 10, tenths % 10, UNITS[unit])
}

/// `0:05`, `12:34`, `1:02:03`.
pub(super) fn time(seconds: u64) -> String {
    let (h, m, s) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    if h > 0 { format!("{h}:{m:02}:{s:02}") } else { format!("{m}:{s:02}") }
}

/// Date and time of day in UTC.
fn date(ms: u64) -> String {
    // Counted in eras of 400 years from 0000-03-01 on, so that a leap day is the last of its year.
    let days = ms / 86_400_000 + 719_468;
    let (era, day) = (days / 146_097, days % 146_097);
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let (day, month) = (day - (153 * month + 2) / 5 + 1, if month < 10 { month + 3 } else { month - 9 });
    let year = 400 * era + year + u64::from(month <= 2);
    format!("{year:04}-{month:02}-{day:02} {}", clock(ms))
}

/// The time of day in UTC.
fn clock(ms: u64) -> String {
    let s = ms / 1000;
    format!("{:02}:{:02}:{:02}.{:03}Z", s / 3600 % 24, s / 60 % 60, s % 60, ms % 1000)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::daemon::status::{Frozen, HeartbeatStatus};

    #[test]
    fn numbers_read_well() {
        for (n, text) in
            [(0, "0 B"), (1023, "1023 B"), (1024, "1.0 KiB"), (1 << 30, "1.0 GiB"), ((1 << 30) - 1, "1023.9 MiB")]
        {
            assert_eq!(bytes(n), text);
        }
        assert_eq!(bytes(u64::MAX), "16384.0 PiB".replace("16384.0", "16383.9"));
        assert_eq!((time(5), time(754), time(3723)), ("0:05".into(), "12:34".into(), "1:02:03".into()));
        assert_eq!(clock(86_400_000 + 3_723_004), "01:02:03.004Z");
        for (days, text) in [(0, "1970-01-01"), (11_016, "2000-02-29"), (19_782, "2024-02-29"), (20_819, "2027-01-01")]
        {
            assert_eq!(date(days * 86_400_000), format!("{text} 00:00:00.000Z"));
        }
    }

    #[test]
    fn the_status_of_a_degraded_volume_names_its_problems() {
        let heartbeat = HeartbeatStatus {
            address: "10.0.1.2:7790".into(),
            alive: false,
            age_ms: Some(61_000),
            heard_by_peer: false,
        };
        let peer = PeerStatus {
            name: "beta".into(),
            connection: "connecting".into(),
            connection_ms: 61_000,
            replication: "off".into(),
            disk_state: "outdated".into(),
            role: "unknown".into(),
            out_of_sync_bytes: 4096,
            why: "no answer".into(),
            heartbeat: vec![heartbeat],
        };
        let volume = VolumeStatus {
            volume: "mes".into(),
            role: "primary".into(),
            peers: vec![peer],
            frozen: Some(Frozen { reason: "the peer is asked".into(), since: 0, for_ms: 2500 }),
            trouble: Some("its thread hangs".into()),
            ..VolumeStatus::default()
        };
        let text = self::volume(&volume);
        for part in [
            "volume mes\n",
            "TROUBLE      its thread hangs; what follows is old",
            "FROZEN       the peer is asked (for 0:02)",
            "beta: connecting for 1:01, last heard as outdated, 4.0 KiB out of sync (no answer); heartbeat 10.0.1.2:7790 SILENT for 1:01",
        ] {
            assert!(text.contains(part), "{part}\n{text}");
        }
    }

    #[test]
    fn a_peer_that_is_not_connected_is_not_shown_as_if_it_were() {
        let mut p = PeerStatus {
            name: "b".into(),
            connection: "connected".into(),
            replication: "established".into(),
            role: "secondary".into(),
            disk_state: "uptodate".into(),
            ..PeerStatus::default()
        };
        assert_eq!(peer(&p), "b: connected for 0:00, established, secondary uptodate");
        p.connection = "standalone".into();
        assert_eq!(peer(&p), "b: standalone for 0:00, last heard as secondary uptodate");
        p.disk_state = "unknown".into();
        assert_eq!(peer(&p), "b: standalone for 0:00, last heard as secondary");
        p.role = "unknown".into();
        assert_eq!(peer(&p), "b: standalone for 0:00, state unknown");
    }

    #[test]
    fn a_split_brain_says_what_to_do() {
        let peer = PeerStatus { name: "beta".into(), why: "split brain (rule forked)".into(), ..PeerStatus::default() };
        let split = VolumeStatus { role: "primary".into(), peers: vec![peer], ..VolumeStatus::default() };
        let text = volume(&split);
        assert!(
            text.contains("SPLIT BRAIN  this node and beta") && text.contains("repblk resync --discard-local"),
            "{text}"
        );
        assert!(!text.contains("promotable"), "no news on a primary: {text}");
    }

    #[test]
    fn a_change_is_one_line_with_old_new_and_why() {
        let what = Happening::Changed {
            what: "role".into(),
            old: "secondary".into(),
            new: "primary".into(),
            why: "promoted".into(),
        };
        let event = Event { schema: 1, time_ms: 0, node: "a".into(), volume: "mes".into(), what };
        assert_eq!(self::event(&event), "00:00:00.000Z mes role: secondary -> primary (promoted)");
    }
}
