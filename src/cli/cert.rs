//! `repblk cert`: the keys of a cluster, made without a daemon.

use std::io::Write as _;
use std::path::PathBuf;
use std::time::SystemTime;

use super::args::CertCommand;
use super::exit::{Exit, Stop};
use super::local::Place;
use crate::daemon::accounts;
use crate::daemon::config::{Config, NbdAddress, Node, Security};
use crate::daemon::identity::cluster_id;
use crate::tls::{
    AUTHORITY_DAYS, Authority, DAY, DEFAULT_FOLDER, Folder, FolderError, Holder, Kind, WARNING_DAYS, day_of, unix_now,
};

/// `repblk cert ...`.
pub(super) fn cert(place: &Place, command: CertCommand) -> Result<(), Stop> {
    let config = place.load()?;
    let path = config.security.keys().cloned().unwrap_or_else(|| PathBuf::from(DEFAULT_FOLDER));
    let desk = Desk { config: &config, folder: Folder::new(&path) };
    let mut text = match command {
        CertCommand::Init { days, owner } => desk.init(days, owner.as_deref())?,
        CertCommand::Issue { name, client, server, host, days } => {
            let kind = match (client, server) {
                (true, _) => Kind::Client,
                (_, true) => Kind::Server,
                _ => Kind::Node,
            };
            desk.issue(&name, kind, host, days)?
        }
        CertCommand::Renew { name, secret, days } => desk.renew(name.as_deref(), secret, days)?,
        CertCommand::Show => desk.show()?,
    };
    if config.security == Security::Loopback {
        text.push_str("note: all addresses of nodes are of this host, and nothing uses keys unless [security] names their folder\n");
    }
    std::io::stdout().write_all(text.as_bytes()).map_err(Stop::from)
}

/// Where keys are made.
struct Desk<'c> {
    config: &'c Config,
    folder: Folder,
}

impl Desk<'_> {
    fn init(&self, days: u32, owner: Option<&str>) -> Result<String, Stop> {
        let owner = owner.map(user).transpose()?;
        for file in [self.folder.authority_file(), self.folder.authority_key_file(), self.folder.secret_file()] {
            if file.exists() {
                return Err(Stop::new(
                    Exit::Refused,
                    format!(
                        "{} exists: the cluster has keys, and new ones would part its nodes. `repblk cert renew` renews \
                         certificates, `repblk cert issue` makes more; move the folder away to begin anew",
                        file.display()
                    ),
                ));
            }
        }
        let authority = Authority::create(&self.config.cluster, AUTHORITY_DAYS).map_err(|error| failed(&error))?;
        let secret = Folder::fresh_secret().map_err(|error| failed(&error))?;
        self.folder.make(owner)?;
        self.folder.write_secrets(&[secret])?;
        self.folder.write_authority(&authority)?;
        let mut text = format!("{}: made the authority of cluster {}\n", self.shown(), self.config.cluster);
        for node in &self.config.nodes {
            text += &self.make(&authority, &self.node(&node.name), &hosts_of(node), days)?;
        }
        for node in &self.config.nodes {
            text += &self.to_be_copied(&node.name);
        }
        text += "ca.key stays here: whoever has it can make a node\n";
        if let Some(owner) = self.folder.owner().filter(|&owner| owner != 0) {
            let name = accounts::user_name(owner);
            text += &format!(
                "the daemon's files belong to user {name}, as their folder does; on the other nodes make them his, too: chown {name}:\n"
            );
        }
        Ok(text)
    }

    fn issue(&self, name: &str, kind: Kind, mut hosts: Vec<String>, days: u32) -> Result<String, Stop> {
        let node = self.config.node(name);
        match (node, kind) {
            (None, Kind::Node) => {
                let what = format!(
                    "the configuration has no node {name:?}; for an NBD client say --client, for etcd --server"
                );
                return Err(Stop::new(Exit::Usage, what));
            }
            (Some(_), Kind::Client | Kind::Server) => {
                let what = format!("{name:?} is the name of a node; give the {} another", kind.word());
                return Err(Stop::new(Exit::Usage, what));
            }
            _ => {}
        }
        // It becomes the name of a file and a part of a URI.
        if !crate::daemon::config::is_name(name) || name == "ca" {
            let what =
                format!("{name:?} is no name: 1 to 63 letters, digits, '-', '_' or '.', first a letter or digit");
            return Err(Stop::new(Exit::Usage, what));
        }
        hosts.splice(0..0, node.map(hosts_of).unwrap_or_default());
        let holder = Holder { kind, ..self.node(name) };
        let mut text = self.make(&self.folder.authority()?, &holder, &hosts, days)?;
        text += &match kind {
            Kind::Node => self.to_be_copied(name),
            Kind::Client => format!(
                "for client {name}: copy ca.pem, {name}.pem and {name}.key to its {}; `repblk attach` there uses them\n",
                self.shown()
            ),
            Kind::Server => format!("for server {name}: copy ca.pem, {name}.pem and {name}.key\n"),
        };
        Ok(text)
    }

    fn renew(&self, name: Option<&str>, secret: bool, days: u32) -> Result<String, Stop> {
        let authority = self.folder.authority()?;
        let mut text = String::new();
        let names = name.map_or_else(|| self.folder.names(), |name| vec![name.to_owned()]);
        for name in &names {
            let old = self.folder.certificate(name)?;
            let Some(holder) = old.holder else {
                let what =
                    format!("{}: not made here; renew it where it was", self.folder.certificate_file(name).display());
                return Err(Stop::new(Exit::Usage, what));
            };
            text += &self.make(&authority, &holder, &old.hosts, days)?;
        }
        if secret {
            let mut secrets = self.folder.secrets()?;
            secrets.insert(0, Folder::fresh_secret().map_err(|error| failed(&error))?);
            secrets.truncate(2);
            self.folder.write_secrets(&secrets)?;
            text += "made a new cluster.secret; the one before is accepted until the next time\n";
        }
        text +=
            "copy the new files to their nodes; running daemons take them up by themselves, and no link is broken\n";
        Ok(text)
    }

    fn show(&self) -> Result<String, Stop> {
        let mut text = format!("{}\n", self.shown());
        let authority = self.folder.trusted()?;
        for certificate in authority.iter().filter_map(crate::tls::Certificate::read) {
            text += &row("ca", &certificate.subject, certificate.not_after);
        }
        for name in self.folder.names() {
            let certificate = self.folder.certificate(&name)?;
            let who = match &certificate.holder {
                Some(holder) if holder.cluster == cluster_id(&self.config.cluster) => holder.kind.word().to_owned(),
                Some(holder) => format!("{} OF ANOTHER CLUSTER", holder.kind.word()),
                None => certificate.subject.clone(),
            };
            let hosts = if certificate.hosts.is_empty() {
                String::new()
            } else {
                format!(" ({})", certificate.hosts.join(", "))
            };
            text += &row(&name, &format!("{who}{hosts}"), certificate.not_after);
        }
        match self.folder.secrets() {
            Ok(secrets) => text += &format!("  {:<12} {} accepted\n", "secret", secrets.len()),
            Err(error) => text += &format!("  {:<12} {error}\n", "secret"),
        }
        for (file, owner) in self.folder.owner().map(|owner| self.folder.not_of(owner)).into_iter().flatten() {
            let (owner, right) =
                (accounts::user_name(owner), self.folder.owner().map(accounts::user_name).unwrap_or_default());
            text += &format!(
                "  {} BELONGS TO {owner}, its folder to {right}, as whom the daemon cannot read it: chown {right}: {0}\n",
                file.display()
            );
        }
        let signs = if self.folder.authority_key_file().exists() { "here" } else { "not here" };
        text += &format!("  {:<12} {signs}\n", "ca.key");
        Ok(text)
    }

    fn make(&self, authority: &Authority, holder: &Holder, hosts: &[String], days: u32) -> Result<String, Stop> {
        let issued = authority.issue(holder, hosts, SystemTime::now(), days).map_err(|error| failed(&error))?;
        self.folder.write_issued(&holder.name, &issued)?;
        let until = day_of(unix_now() + i64::from(days) * DAY);
        Ok(format!(
            "made {} {}: {}.pem and {}.key, valid until {until}\n",
            holder.kind.word(),
            holder.name,
            holder.name,
            holder.name
        ))
    }

    fn node(&self, name: &str) -> Holder {
        Holder::node(cluster_id(&self.config.cluster), name)
    }

    fn shown(&self) -> String {
        self.folder.path().display().to_string()
    }

    fn to_be_copied(&self, name: &str) -> String {
        format!("for node {name}: copy ca.pem, cluster.secret, {name}.pem and {name}.key to its {}\n", self.shown())
    }
}

/// Number and group of a user of this host.
fn user(name: &str) -> Result<(u32, u32), Stop> {
    let found = accounts::user(name).map_err(|error| failed(&error))?;
    let way_out = "make it with `adduser --system --group`, or correct the name";
    found.ok_or_else(|| Stop::new(Exit::Usage, format!("this host has no user {name:?}: {way_out}")))
}

/// As what NBD clients reach a node.
fn hosts_of(node: &Node) -> Vec<String> {
    let nbd = node.nbd.iter().filter_map(|address| match address {
        NbdAddress::Tcp(address) if !address.ip().is_unspecified() => Some(address.ip()),
        NbdAddress::Tcp(_) | NbdAddress::Unix(_) => None,
    });
    let mut hosts = vec![node.name.clone()];
    for address in nbd.chain([node.data.ip()]) {
        if !hosts.contains(&address.to_string()) {
            hosts.push(address.to_string());
        }
    }
    hosts
}

fn row(name: &str, who: &str, not_after: i64) -> String {
    let left = (not_after - unix_now()).div_euclid(DAY);
    let left = match left {
        ..0 => "EXPIRED".to_owned(),
        0..WARNING_DAYS => format!("{left} DAYS LEFT"),
        _ => format!("{left} days left"),
    };
    format!("  {name:<12} {who}, until {} ({left})\n", day_of(not_after))
}

fn failed(error: &dyn std::fmt::Display) -> Stop {
    Stop::new(Exit::Failed, error.to_string())
}

impl From<FolderError> for Stop {
    fn from(error: FolderError) -> Self {
        Self::new(Exit::Failed, error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tls::{Keyring, NODE_DAYS};

    fn config(folder: &std::path::Path) -> Config {
        let example = include_str!("../../docs/repblk.example.toml");
        let keys = format!("keys = {:?}", folder.display().to_string());
        let text = example.replace("keys = \"/etc/repblk/keys\"", &keys);
        assert_ne!(text, example, "the example names the folder");
        Config::parse(&text, std::path::Path::new("example")).expect("it is right")
    }

    #[test]
    fn one_command_makes_all_keys_and_none_twice() {
        let dir = tempfile::tempdir().expect("a folder");
        let config = config(&dir.path().join("keys"));
        let desk = Desk { config: &config, folder: Folder::new(config.security.keys().expect("keys")) };
        let text = desk.init(NODE_DAYS, None).expect("made");
        assert!(text.contains("for node beta: copy ca.pem, cluster.secret, beta.pem and beta.key"), "{text}");
        for node in ["alpha", "beta"] {
            Keyring::open(desk.folder.path(), desk.node(node)).expect("good for its daemon");
        }
        let again = desk.init(NODE_DAYS, None).expect_err("would part the nodes");
        assert!(again.exit == Exit::Refused && again.message.contains("exists"), "{again:?}");
        let shown = desk.show().expect("readable");
        assert!(shown.contains("alpha        node (alpha, 10.0.2.1, 10.0.0.1), until 20"), "{shown}");
    }

    #[test]
    fn names_are_kept_apart_and_renewal_keeps_what_was_issued() {
        let dir = tempfile::tempdir().expect("a folder");
        let config = config(dir.path());
        let desk = Desk { config: &config, folder: Folder::new(dir.path()) };
        desk.init(5, None).expect("made");
        for (name, kind) in [
            ("gamma", Kind::Node),
            ("alpha", Kind::Client),
            ("../x", Kind::Client),
            ("ca", Kind::Client),
            ("", Kind::Client),
        ] {
            assert_eq!(desk.issue(name, kind, Vec::new(), 5).expect_err(name).exit, Exit::Usage);
        }
        desk.issue("db1", Kind::Client, vec!["db1.plant.example".to_owned()], 5).expect("issued");
        let before = desk.folder.certificate("db1").expect("is there");
        assert_eq!(before.holder.as_ref().map(|holder| holder.kind), Some(Kind::Client));
        let secret = desk.folder.secrets().expect("is there");
        desk.renew(None, true, 50).expect("renewed");
        let after = desk.folder.certificate("db1").expect("is there");
        assert!(after.not_after > before.not_after + 40 * DAY);
        assert_eq!((after.holder, after.hosts), (before.holder, before.hosts));
        assert_eq!(desk.folder.secrets().expect("is there")[1..], secret, "the one before is accepted");
        let shown = desk.show().expect("readable");
        // A moment may have passed since.
        assert_eq!(shown.matches("(50 days left").count() + shown.matches("(49 days left").count(), 3, "{shown}");
    }
}
