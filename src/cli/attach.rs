//! The commands of the database host.

use std::fmt::Write as _;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::args::{Doubt, Folder};
use super::exit::{Exit, Stop};
use super::local::{Place, host};
use super::text::bytes;
use crate::attach::OnDoubt;
use crate::daemon::config::{Config, NbdAddress, NbdTlsMode, Node, VolumeSpec};
use crate::daemon::identity::cluster_id;
use crate::daemon::logs::{self, LogFormat};
use crate::follower::{self, Files, Options, Server, Status};
use crate::tls::{self, FolderError, Holder, Keyring, Kind};

/// How to attach.
pub(super) struct How {
    pub(super) on_doubt: Doubt,
    /// Number of the kernel's device, if it shall be one.
    pub(super) device: Option<u32>,
    /// The folder of keys, if it is said.
    pub(super) keys: Option<PathBuf>,
    /// Whose keys of it, if it is said.
    pub(super) name: Option<String>,
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
    let servers = servers(&config, place, volume, &how)?;
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

/// Where the nodes of a volume take clients, and with what keys they are met. Where keys are configured nothing goes to another host without.
fn servers(config: &Config, place: &Place, volume: &VolumeSpec, how: &How) -> Result<Vec<Server>, Stop> {
    let nodes = volume.copies.iter().filter_map(|copy| config.node(&copy.node));
    let addresses: Vec<_> = nodes.flat_map(|node| node.nbd.iter().map(move |address| (node, address))).collect();
    if addresses.is_empty() {
        let what = format!("no node with a copy of {} has an `nbd` address in the configuration", volume.name);
        return Err(Stop::new(Exit::Usage, what));
    }
    let asked = how.keys.is_some() || how.name.is_some();
    let encrypted = |address: &NbdAddress| match address {
        NbdAddress::Unix(_) => false,
        NbdAddress::Tcp(_) if asked => true,
        NbdAddress::Tcp(_) if config.security.keys().is_none() => false,
        // What is only allowed there is refused here: nobody on the way may choose.
        NbdAddress::Tcp(at) => !at.ip().is_loopback() || config.nbd_tls.rule_at(address).mode == NbdTlsMode::Require,
    };
    let keys = match addresses.iter().any(|(_, address)| encrypted(address)) {
        true => Some(Arc::new(keyring(config, place, how)?)),
        false => None,
    };
    let server = |(node, address): (&Node, &NbdAddress)| Server {
        node: node.name.clone(),
        address: address.clone(),
        keys: keys.clone().filter(|_| encrypted(address)),
    };
    Ok(addresses.into_iter().map(server).collect())
}

/// With what this host proves who it is.
fn keyring(config: &Config, place: &Place, how: &How) -> Result<Keyring, Stop> {
    let configured = how.keys.as_ref().or(config.security.keys());
    let folder = tls::Folder::new(configured.map_or(Path::new(tls::DEFAULT_FOLDER), PathBuf::as_path));
    let name = match &how.name {
        Some(name) => name.clone(),
        None => own_name(&folder, place)?,
    };
    let open = || {
        let found = folder.certificate(&name)?.holder;
        // A node is a client of the others, too; whatever else it is, it must be a client.
        let kind = found.map(|holder| holder.kind).filter(|kind| *kind == Kind::Node).unwrap_or(Kind::Client);
        Keyring::open(folder.path(), Holder { cluster: cluster_id(&config.cluster), kind, name: name.clone() })
    };
    open().map_err(|error: FolderError| {
        let what = format!(
            "{error}. Clients of nodes on other hosts prove who they are: `repblk cert issue NAME --client` makes what is needed, see \
             docs/security.md"
        );
        Stop::new(Exit::Failed, what)
    })
}

/// Whose keys these are, when it is not said: those of this node or host, or the only ones.
fn own_name(folder: &tls::Folder, place: &Place) -> Result<String, Stop> {
    let names: Vec<String> = folder.names().into_iter().filter(|name| folder.key_file(name).exists()).collect();
    let host = host();
    let short = host.split('.').next().unwrap_or(&host);
    let own = place.node.as_deref().into_iter().chain([host.as_str(), short]);
    match own.into_iter().find(|name| names.iter().any(|known| known == name)) {
        Some(name) => Ok(name.to_owned()),
        None if names.len() == 1 => Ok(names.concat()),
        None => {
            let has = if names.is_empty() { "no key".to_owned() } else { names.join(", ") };
            let what = format!(
                "{} has no certificate and key of {short}; it has: {has}. Nodes on other hosts want to know who asks: say whose to use with \
                 --name, or make them with `repblk cert issue {short} --client` where the authority's key is, and copy ca.pem, {short}.pem and \
                 {short}.key here",
                folder.path().display()
            );
            Err(Stop::new(Exit::Usage, what))
        }
    }
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
    if let Some((who, until)) = status.proves.as_deref().zip(status.certificate_until.as_deref()) {
        let _ = writeln!(text, "  TLS          as {who}, certificate until {until}");
    }
    if let Some(warning) = &status.warning {
        let _ = writeln!(text, "  WARNING      {warning}");
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
    use std::time::SystemTime;

    use super::*;
    use crate::tls::Authority;

    /// The servers that the example leads to, after `change`, on a host that is node `node`.
    fn met(change: impl Fn(String) -> String, node: Option<&str>, how: &How) -> Result<Vec<Server>, Stop> {
        let text =
            change(include_str!("../../docs/repblk.example.toml").replace("\"unix:/run/repblk/beta-nbd.sock\", ", ""));
        let config = Config::parse(&text, Path::new("example")).expect("it is right");
        let place = Place { config: PathBuf::new(), node: node.map(str::to_owned) };
        servers(&config, &place, &config.volumes[0], how)
    }

    fn how(keys: Option<&Path>, name: Option<&str>) -> How {
        let (keys, name) = (keys.map(Path::to_path_buf), name.map(str::to_owned));
        How { on_doubt: Doubt::Hold, device: None, keys, name, folder: Folder { folder: PathBuf::new() } }
    }

    /// Which of the three addresses are met with TLS: alpha's Unix socket, its TCP address, and beta's.
    fn encrypted(servers: &[Server]) -> Vec<bool> {
        servers.iter().map(|server| server.keys.is_some()).collect()
    }

    #[test]
    fn what_leaves_the_host_is_never_asked_in_the_clear() {
        let dir = tempfile::tempdir().expect("a folder");
        let keyless = dir.path().join("none");
        let configured =
            |text: String| text.replace("/etc/repblk/keys", &dir.path().join("none").display().to_string());
        let failed = |how: &How| met(configured, None, how).expect_err("there are no keys");
        // No keys: it does not begin, and says what to do.
        for how in [how(None, None), how(Some(&keyless), None), how(None, Some("db1"))] {
            let stop = failed(&how);
            assert!(stop.message.contains("repblk cert issue"), "{stop:?}");
        }
        let folder = tls::Folder::new(dir.path());
        let authority = Authority::create("plant7", 10).expect("made");
        let put = |name: &str, kind: Kind| {
            let holder = Holder { kind, ..Holder::node(cluster_id("plant7"), name) };
            let issued = authority.issue(&holder, &[], SystemTime::now(), 10).expect("issued");
            folder.write_issued(name, &issued).expect("written");
        };
        folder.write_authority(&authority).expect("written");
        put("db1", Kind::Client);
        let allowed = |text: String| {
            text.replace("nbd_tls = \"require\"", "nbd_tls = \"allow\"").replace("nbd_client_certificates = true", "")
        };
        let here = how(Some(dir.path()), None);
        let servers = met(allowed, None, &here).expect("there are");
        assert_eq!(encrypted(&servers), [false, true, true], "whatever the nodes allow");
        assert_eq!(servers.iter().map(|server| server.node.as_str()).collect::<Vec<_>>(), ["alpha", "alpha", "beta"]);
        let own = servers[1].keys.as_ref().expect("keys").own();
        assert_eq!((own.kind, own.name.as_str()), (Kind::Client, "db1"), "the only one there");
        // Several: the node's own, the named one, or nobody's.
        put("alpha", Kind::Node);
        put("etcd", Kind::Server);
        let stop = met(configured, None, &here).expect_err("whose?");
        assert!(stop.exit == Exit::Usage && stop.message.contains("it has: alpha, db1, etcd"), "{stop:?}");
        let stop = met(configured, Some("alpha"), &here).expect_err("a node has the secret, too");
        assert!(stop.message.contains("cluster.secret"), "{stop:?}");
        folder.write_secrets(&[tls::Folder::fresh_secret().expect("random")]).expect("written");
        let servers = met(configured, Some("alpha"), &here).expect("there are");
        assert_eq!(servers[1].keys.as_ref().expect("keys").own().name, "alpha");
        met(configured, Some("alpha"), &how(Some(dir.path()), Some("db1"))).expect("named");
        let stop = met(configured, None, &how(Some(dir.path()), Some("etcd"))).expect_err("no client");
        assert!(stop.message.contains("which is no NBD client"), "{stop:?}");
        // On loopback, and where the configuration says that nothing is encrypted, only when it is asked for.
        let local = |text: String| allowed(text).replace("tcp:10.0.2.", "tcp:127.0.0.");
        assert_eq!(encrypted(&met(local, None, &how(None, None)).expect("there are")), [false; 3]);
        assert_eq!(encrypted(&met(local, Some("alpha"), &here).expect("there are")), [false, true, true]);
        let open = |text: String| {
            let text = allowed(text).replace("nbd_tls = \"allow\"", "").replace("https://10.0.3.1", "http://127.0.0.1");
            text.replace("keys = \"/etc/repblk/keys\"", "insecure = true")
        };
        assert_eq!(encrypted(&met(open, None, &how(None, None)).expect("there are")), [false; 3]);
        assert_eq!(encrypted(&met(open, Some("alpha"), &here).expect("there are")), [false, true, true]);
        let required = |text: String| text.replace("tcp:10.0.2.", "tcp:127.0.0.");
        assert_eq!(encrypted(&met(required, Some("alpha"), &here).expect("there are")), [false, true, true]);
    }

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
            proves: Some("NBD client db1".into()),
            certificate_until: Some("2031-04-05".into()),
            warning: None,
            servers: Vec::new(),
        };
        let said = text(&status);
        assert!(said.contains("  TLS          as NBD client db1, certificate until 2031-04-05\n"), "{said}");
        assert!(said.contains("following node alpha, term 3") && said.contains("the last took 40 ms"), "{said}");
        (status.state, status.doubt) = ("in doubt".into(), Some("it was promoted by force".into()));
        let said = text(&status);
        assert!(said.contains("in doubt, last acknowledged by node alpha") && said.contains("by force"), "{said}");
    }
}
