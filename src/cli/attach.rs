//! The commands of the database host.

use std::fmt::Write as _;
use std::io::Write as _;

use super::args::{Doubt, Folder};
use super::exit::{Exit, Stop};
use super::local::Place;
use super::text::bytes;
use crate::attach::OnDoubt;
use crate::daemon::config::{Config, VolumeSpec};
use crate::daemon::logs::{self, LogFormat};
use crate::follower::{self, Files, Options, Status};

/// How to attach.
pub(super) struct How {
    pub(super) on_doubt: Doubt,
    /// Number of the kernel's device, if it shall be one.
    pub(super) device: Option<u32>,
    pub(super) folder: Folder,
}

/// `repblk attach VOLUME`.
pub(super) fn attach(
    place: &Place,
    volume: Option<&str>,
    how: How,
    (format, level): (LogFormat, &str),
) -> Result<(), Stop> {
    let config = place.load()?;
    let volume = choose(&config, volume)?;
    let nodes = volume.copies.iter().filter_map(|copy| config.node(&copy.node));
    let servers: Vec<_> = nodes.flat_map(|node| node.nbd.clone()).collect();
    if servers.is_empty() {
        let what = format!("no node with a copy of {} has an `nbd` address in the configuration", volume.name);
        return Err(Stop::new(Exit::Usage, what));
    }
    let options = Options {
        volume: volume.name.clone(),
        cluster: config.cluster.clone(),
        servers,
        folder: how.folder.folder,
        device: how.device,
        on_doubt: match how.on_doubt {
            Doubt::Hold => OnDoubt::Hold,
            Doubt::Fail => OnDoubt::Fail,
        },
    };
    logs::start(format, level).map_err(|why| Stop::new(Exit::Usage, why))?;
    follower::attach(options).map_err(failed)
}

/// `repblk attach --status`.
pub(super) fn status(place: &Place, volume: Option<&str>, folder: &Folder, json: bool) -> Result<(), Stop> {
    let config = place.load()?;
    let name = &choose(&config, volume)?.name;
    let Some(status) = follower::ask_status(&Files::of(&folder.folder, name)).map_err(failed)? else {
        let what = format!("no `repblk attach {name}` runs with --dir {}", folder.folder.display());
        return Err(Stop::new(Exit::Unreachable, what));
    };
    let text = match json {
        true => {
            let line = serde_json::to_string(&status).map_err(|error| Stop::new(Exit::Failed, error.to_string()))?;
            format!("{line}\n")
        }
        false => text(&status),
    };
    std::io::stdout().write_all(text.as_bytes())?;
    match status.doubt {
        Some(why) => Err(Stop::new(Exit::Refused, format!("acknowledged data may be missing: {why}"))),
        None => Ok(()),
    }
}

/// `repblk detach VOLUME`.
pub(super) fn detach(place: &Place, volume: Option<&str>, folder: &Folder) -> Result<(), Stop> {
    let config = place.load()?;
    let name = &choose(&config, volume)?.name;
    let text = match follower::detach(&Files::of(&folder.folder, name)).map_err(failed)? {
        true => format!("volume {name}: detached\n"),
        false => format!("volume {name}: was not attached\n"),
    };
    std::io::stdout().write_all(text.as_bytes()).map_err(Stop::from)
}

fn failed(why: String) -> Stop {
    Stop::new(Exit::Failed, why)
}

fn choose<'c>(config: &'c Config, name: Option<&str>) -> Result<&'c VolumeSpec, Stop> {
    let names = || config.volumes.iter().map(|volume| volume.name.as_str()).collect::<Vec<_>>().join(", ");
    match (name, &config.volumes[..]) {
        (None, [only]) => Ok(only),
        (None, _) => Err(Stop::new(Exit::Usage, format!("say which volume; the configuration has: {}", names()))),
        (Some(name), volumes) => volumes.iter().find(|volume| volume.name == name).ok_or_else(|| {
            Stop::new(Exit::Usage, format!("the configuration has no volume {name:?}; it has: {}", names()))
        }),
    }
}

fn text(status: &Status) -> String {
    let Status { volume, state, node, term, generation, mode, .. } = status;
    let mut text = format!("volume {volume}\n  state        {state}");
    let known = node.as_deref().zip(*term).zip(generation.as_deref()).zip(mode.as_deref());
    // Writing to a string cannot fail.
    let _ = match known {
        Some((((node, term), generation), mode)) => {
            let last = if state == "following" { "" } else { ", last acknowledged by" };
            writeln!(text, "{last} node {node}, term {term}, generation {generation}, {mode}")
        }
        None => writeln!(text, ", never acknowledged anything"),
    };
    if let Some(doubt) = &status.doubt {
        let _ = writeln!(text, "  doubt        {doubt}");
    }
    let size = status.size_bytes.map_or("unknown".to_owned(), bytes);
    let _ = writeln!(text, "  device       {size}, {} clients, {} open requests", status.clients, status.open_requests);
    let last = status.last_gap_ms.map_or(String::new(), |gap| format!(", the last took {gap} ms"));
    let _ = writeln!(text, "  failovers    {}{last}", status.failovers);
    for server in &status.servers {
        let why = if server.last_refusal.is_empty() { "answered, or was not needed" } else { &server.last_refusal };
        let _ = writeln!(text, "  server       {}: {why}", server.address);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_text_says_where_it_is_and_why_it_is_nowhere() {
        let mut status = Status {
            schema: 1,
            volume: "mes".into(),
            pid: 1,
            state: "following".into(),
            doubt: None,
            node: Some("alpha".into()),
            term: Some(3),
            generation: Some("0a".into()),
            mode: Some("sync".into()),
            size_bytes: Some(1 << 30),
            clients: 1,
            open_requests: 2,
            failovers: 1,
            last_gap_ms: Some(40),
            servers: Vec::new(),
        };
        let said = text(&status);
        assert!(said.contains("following node alpha, term 3") && said.contains("the last took 40 ms"), "{said}");
        (status.state, status.doubt) = ("in doubt".into(), Some("it was promoted by force".into()));
        let said = text(&status);
        assert!(said.contains("in doubt, last acknowledged by node alpha") && said.contains("by force"), "{said}");
    }
}
