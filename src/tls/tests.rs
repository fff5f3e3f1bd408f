//! Whole handshakes in memory, with certificates of every kind.

use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rustls::{ClientConfig, ClientConnection, Connection, ServerConfig, ServerConnection};
use rustls_pki_types::ServerName;

use super::*;
use crate::units::ClusterId;

const DAYS: Duration = Duration::from_secs(86_400);

/// A folder of keys and the authority that signs in it.
struct Place {
    dir: tempfile::TempDir,
    authority: Authority,
}

impl Place {
    fn new() -> Self {
        let dir = tempfile::tempdir().expect("a folder");
        let authority = Authority::create("plant7", AUTHORITY_DAYS).expect("made");
        let place = Self { dir, authority };
        place.folder().write_authority(&place.authority).expect("written");
        place.folder().write_secrets(&[Folder::fresh_secret().expect("random")]).expect("written");
        place
    }

    fn folder(&self) -> Folder {
        Folder::new(self.dir.path())
    }

    /// Puts a certificate of `holder` where that of `name` belongs.
    fn put(&self, name: &str, holder: &Holder, from: SystemTime, days: u32) {
        let issued = self.authority.issue(holder, &[], from, days).expect("issued");
        self.folder().write_issued(name, &issued).expect("written");
    }

    fn keyring(&self, name: &str) -> Result<Keyring, FolderError> {
        self.put_if_absent(name);
        Keyring::open(self.dir.path(), node(name))
    }

    fn put_if_absent(&self, name: &str) {
        if !self.folder().certificate_file(name).exists() {
            self.put(name, &node(name), SystemTime::now(), NODE_DAYS);
        }
    }
}

fn node(name: &str) -> Holder {
    Holder::node(ClusterId(7), name)
}

/// What one side says at the end: who the other one is, or why there is no connection.
type Word = Result<Option<String>, String>;

/// Both sides' word on a handshake of the dialler `keys` with the acceptor `theirs`, which must be `peer`.
fn shake(keys: &Keys, theirs: &Keys, peer: &str) -> (Word, Word) {
    let (dialler, acceptor) = (keys.dialler(peer, LINK_PROTOCOL).expect("good keys"), theirs.acceptor());
    shake_with((keys, dialler), (theirs, acceptor), |keys, side| keys.node_of(side.peer_certificates()))
}

/// The same, as an NBD client that must show a certificate.
fn shake_nbd(keys: &Keys, theirs: &Keys, peer: &str) -> (Word, Word) {
    let (dialler, acceptor) =
        (keys.nbd_dialler(peer).expect("good keys"), theirs.nbd_acceptor(true).expect("good keys"));
    shake_with((keys, dialler), (theirs, acceptor), |keys, side| {
        keys.client_of(side.peer_certificates()).map(|holder| holder.name)
    })
}

fn shake_with(
    (keys, dialler): (&Keys, Arc<ClientConfig>),
    (theirs, acceptor): (&Keys, Arc<ServerConfig>),
    who: impl Fn(&Keys, &Connection) -> Option<String>,
) -> (Word, Word) {
    let name = ServerName::try_from("node").expect("a name");
    let dialler = ClientConnection::new(dialler, name).expect("starts");
    let acceptor = ServerConnection::new(acceptor).expect("starts");
    let (mut dialler, mut acceptor) = (Connection::from(dialler), Connection::from(acceptor));
    let (mut of_dialler, mut of_acceptor) = (None, None);
    for _ in 0..10 {
        pass(&mut dialler, &mut acceptor, &mut of_acceptor);
        pass(&mut acceptor, &mut dialler, &mut of_dialler);
    }
    let word = |failure: Option<String>, side: &Connection, keys: &Keys| match failure {
        Some(why) => Err(why),
        None if side.is_handshaking() => Err("it does not go on".to_owned()),
        None => Ok(who(keys, side)),
    };
    (word(of_dialler, &dialler, keys), word(of_acceptor, &acceptor, theirs))
}

fn pass(from: &mut Connection, to: &mut Connection, failure: &mut Option<String>) {
    let mut bytes = Vec::new();
    while from.wants_write() {
        from.write_tls(&mut bytes).expect("memory takes all");
    }
    let mut rest = &bytes[..];
    while !rest.is_empty() && failure.is_none() {
        to.read_tls(&mut rest).expect("memory gives all");
        if let Err(error) = to.process_new_packets() {
            *failure = Some(sentence(&error));
        }
    }
}

#[test]
fn two_nodes_of_a_cluster_know_each_other_by_name() {
    let place = Place::new();
    let (alpha, beta) = (place.keyring("alpha").expect("good"), place.keyring("beta").expect("good"));
    let (of_alpha, of_beta) = shake(&alpha.now(), &beta.now(), "beta");
    assert_eq!(of_alpha, Ok(Some("beta".to_owned())));
    assert_eq!(of_beta, Ok(Some("alpha".to_owned())));
}

#[test]
fn whoever_is_not_who_it_must_be_is_refused_with_the_cause() {
    let now = SystemTime::now();
    let (place, elsewhere) = (Place::new(), Place::new());
    let (alpha, beta) = (place.keyring("alpha").expect("good"), place.keyring("beta").expect("good"));
    // The acceptor is another node than the one that was dialled.
    let (of_alpha, of_beta) = shake(&alpha.now(), &beta.now(), "gamma");
    assert!(
        of_alpha.clone().expect_err("not gamma").contains("\"beta\", and node \"gamma\" must be there"),
        "{of_alpha:?}"
    );
    assert!(of_beta.clone().expect_err("refused").contains("refuses this host's certificate"), "{of_beta:?}");
    // Another authority, on either side.
    let foreign = elsewhere.keyring("beta").expect("good there");
    let (of_alpha, of_beta) = shake(&alpha.now(), &foreign.now(), "beta");
    assert!(of_alpha.expect_err("a stranger").contains("not signed by the authority"));
    assert!(of_beta.expect_err("told").contains("does not trust the authority"));
    let foreign = elsewhere.keyring("alpha").expect("good there");
    let keys = Keys::trusting(&alpha.now(), &foreign);
    let (_, of_beta) = shake(&keys, &beta.now(), "beta");
    assert!(of_beta.expect_err("a stranger").contains("not signed by the authority"));
    // The right authority and the wrong certificate.
    let expired = now - DAYS * 20;
    let cases: [(&str, Holder, SystemTime, u32, &str); 5] = [
        ("expired", node("beta"), expired, 10, "its certificate expired on"),
        ("not yet", node("beta"), now + DAYS * 3, 10, "is valid from"),
        ("a client", Holder { kind: Kind::Client, ..node("beta") }, now, 10, "made for another purpose"),
        ("a cluster", Holder { cluster: ClusterId(8), ..node("beta") }, now, 10, "of another cluster"),
        ("a name", node("gamma"), now, 10, "\"gamma\", and node \"beta\" must be there"),
    ];
    for (what, holder, from, days, why) in cases {
        let issued = place.authority.issue(&holder, &[], from, days).expect("issued");
        let keys = Keys::with_certificate(&beta.now(), &issued);
        let (of_alpha, _) = shake(&alpha.now(), &keys, "beta");
        let of_alpha = of_alpha.expect_err(what);
        assert!(of_alpha.contains(why), "{what}: {of_alpha}");
        // And as dialler. The acceptor takes any node of the cluster: whether it is the right one, the hello says.
        let (_, of_alpha) = shake(&keys, &alpha.now(), "alpha");
        match what {
            "a name" => assert_eq!(of_alpha, Ok(Some("gamma".to_owned()))),
            "a client" => assert!(of_alpha.expect_err(what).contains("NBD client")),
            _ => assert!(of_alpha.expect_err(what).contains(why), "{what}"),
        }
    }
}

/// An NBD client believes nobody but the node that it dialled, and is believed by name; it needs neither the secret nor a node's certificate.
#[test]
fn a_client_and_the_node_that_it_dials_know_each_other() {
    let now = SystemTime::now();
    let (place, elsewhere) = (Place::new(), Place::new());
    let client = |place: &Place, name: &str, from: SystemTime| {
        let holder = Holder { kind: Kind::Client, ..node(name) };
        place.put(name, &holder, from, 10);
        Keyring::open(place.dir.path(), holder).expect("good")
    };
    let beta = place.keyring("beta").expect("good");
    std::fs::remove_file(place.folder().secret_file()).expect("it is on nodes only");
    let db1 = client(&place, "db1", now);
    let (of_client, of_beta) = shake_nbd(&db1.now(), &beta.now(), "beta");
    assert_eq!(of_client.map(|_| ()), Ok(()));
    assert_eq!(of_beta, Ok(Some("db1".to_owned())));
    let (of_client, _) = shake_nbd(&db1.now(), &beta.now(), "alpha");
    assert!(of_client.expect_err("not alpha").contains("that of node \"beta\", and node \"alpha\" must be there"));
    // Whoever answers in a node's place.
    let cases: [(&str, Holder, SystemTime, &str); 5] = [
        ("expired", node("beta"), now - DAYS * 20, "its certificate expired on"),
        ("a client", Holder { kind: Kind::Client, ..node("beta") }, now, "made for another purpose"),
        ("etcd", Holder { kind: Kind::Server, ..node("beta") }, now, "that of the server \"beta\", which is no node"),
        ("a cluster", Holder { cluster: ClusterId(8), ..node("beta") }, now, "of another cluster"),
        ("a name", node("gamma"), now, "\"gamma\", and node \"beta\" must be there"),
    ];
    for (what, holder, from, why) in cases {
        let issued = place.authority.issue(&holder, &[], from, 10).expect("issued");
        let (of_client, _) = shake_nbd(&db1.now(), &Keys::with_certificate(&beta.now(), &issued), "beta");
        let of_client = of_client.expect_err(what);
        assert!(of_client.contains(why), "{what}: {of_client}");
    }
    // Whoever asks in a client's place.
    let stranger = client(&elsewhere, "db1", now);
    let (_, of_beta) = shake_nbd(&Keys::trusting(&beta.now(), &stranger), &beta.now(), "beta");
    assert!(of_beta.expect_err("a stranger").contains("not signed by the authority"));
    let late = client(&place, "late", now - DAYS * 20);
    let (_, of_beta) = shake_nbd(&late.now(), &beta.now(), "beta");
    assert!(of_beta.expect_err("too late").contains("its certificate expired on"));
    let warned = late.warning().expect("it has ended");
    assert!(warned.contains("of NBD client late expired on") && warned.contains("repblk cert renew late"), "{warned}");
    // What is no client's is not taken for one.
    place.put("etcd", &Holder { kind: Kind::Server, ..node("etcd") }, now, 10);
    let opened = Keyring::open(place.dir.path(), Holder { kind: Kind::Client, ..node("etcd") });
    assert!(
        opened.is_err_and(|error| error.to_string().contains("that of the server \"etcd\", which is no NBD client"))
    );
}

#[test]
fn a_renewed_certificate_is_used_at_once_and_a_broken_one_is_not() {
    let place = Place::new();
    place.put("alpha", &node("alpha"), SystemTime::now(), 10);
    let alpha = place.keyring("alpha").expect("good");
    let warned = alpha.warning().expect("it ends soon");
    assert!(warned.contains("expires on") && warned.contains("repblk cert renew alpha"), "{warned}");
    place.put("alpha", &node("alpha"), SystemTime::now(), NODE_DAYS);
    assert_eq!(alpha.warning(), None);
    let good = alpha.now().not_after;
    // What somebody copied without care.
    let cases: [(&str, &dyn Fn()); 4] = [
        ("does not go with its key", &|| {
            let other = place.authority.issue(&node("alpha"), &[], SystemTime::now(), 5).expect("issued");
            std::fs::write(place.folder().certificate_file("alpha"), other.certificate).expect("written");
        }),
        ("is not that of this node", &|| place.put("alpha", &node("beta"), SystemTime::now(), 5)),
        ("others than its owner may use it", &|| {
            place.put("alpha", &node("alpha"), SystemTime::now(), 5);
            let open = std::fs::Permissions::from_mode(0o640);
            std::fs::set_permissions(place.folder().key_file("alpha"), open).expect("set");
        }),
        ("cannot be read", &|| {
            place.put("alpha", &node("alpha"), SystemTime::now(), 5);
            std::fs::remove_file(place.folder().secret_file()).expect("removed");
        }),
    ];
    for (why, harm) in cases {
        harm();
        assert_eq!(alpha.now().not_after, good, "{why}: the good keys are used on");
        assert!(alpha.warning().is_some_and(|told| told.contains(why)), "{why}: {:?}", alpha.warning());
        assert!(Keyring::open(place.dir.path(), node("alpha")).is_err_and(|error| error.to_string().contains(why)));
    }
}

#[test]
fn the_warning_begins_thirty_days_before_the_end() {
    let place = Place::new();
    let keys = place.keyring("alpha").expect("good").now();
    let end = keys.not_after;
    assert_eq!(keys.warning(end - WARNING_DAYS * DAY), None);
    // Certificates begin a day before they are made, so that only a clock that is far off comes before.
    let made = end - i64::from(NODE_DAYS) * DAY;
    assert_eq!(keys.warning(made - DAY + 1), None);
    assert!(keys.warning(made - 2 * DAY).is_some_and(|told| told.contains("this host's clock is wrong")));
    assert!(keys.warning(end - WARNING_DAYS * DAY + 1).is_some_and(|told| told.contains("in 29 days")));
    assert!(keys.warning(end).is_some_and(|told| told.contains("in 0 days")));
    assert!(
        keys.warning(end + 1)
            .is_some_and(|told| told.contains("expired on") && told.contains("connections that stand go on"))
    );
}

/// Found by reading: nobody was told, and after ten years no link would have come about.
#[test]
fn the_end_of_the_authority_is_warned_of_too() {
    let place = Place::new();
    let old = Authority::create("plant7", 20).expect("made");
    place.folder().write_authority(&old).expect("written");
    place
        .folder()
        .write_issued("alpha", &old.issue(&node("alpha"), &[], SystemTime::now(), 400).expect("issued"))
        .expect("written");
    let keyring = place.keyring("alpha").expect("good");
    let warned = keyring.warning().expect("it ends soon");
    assert!(warned.contains("the authority of the cluster (ca.pem) expires on"), "{warned}");
    // Both are trusted while certificates are renewed under the new one.
    let both = [old.certificate(), place.authority.certificate()].concat();
    std::fs::write(place.folder().authority_file(), both).expect("written");
    assert_eq!(keyring.warning(), None);
}

#[test]
fn every_file_is_its_owners_alone() {
    let place = Place::new();
    place.put_if_absent("alpha");
    let made: Vec<_> =
        std::fs::read_dir(place.dir.path()).expect("is there").map(|entry| entry.expect("read")).collect();
    assert_eq!(made.len(), 5, "{made:?}");
    for entry in made {
        assert_eq!(entry.metadata().expect("facts").permissions().mode() & 0o777, 0o600, "{entry:?}");
    }
    assert_eq!(place.folder().names(), ["alpha"]);
}

/// What etcd shows proves etcd, and opens no export.
#[test]
fn a_server_is_no_client() {
    let place = Place::new();
    let keys = place.keyring("alpha").expect("good").now();
    let may = |kind: Kind| {
        place.put("x", &Holder { kind, ..node("x") }, SystemTime::now(), 10);
        keys.client_of(Some(&place.folder().chain("x").expect("is there"))).is_some()
    };
    assert!(may(Kind::Client) && may(Kind::Node) && !may(Kind::Server));
}

/// Found by review: what is printed of an authority to find a fault had its private key in it.
#[test]
fn nothing_that_is_printed_shows_a_secret() {
    let place = Place::new();
    let keyring = place.keyring("alpha").expect("good");
    let (key, secret) = (place.authority.key(), place.folder().secrets().expect("is there")[0].digits());
    let node_key = std::fs::read_to_string(place.folder().key_file("alpha")).expect("is there");
    let printed = format!("{:?} {:?} {:?}", place.authority, keyring, keyring.now());
    for private in [key, &node_key, &secret] {
        for line in private.lines().filter(|line| !line.starts_with('-')) {
            assert!(!printed.contains(line), "a line of a secret is shown");
        }
    }
    assert!(!printed.contains("PRIVATE"), "{printed}");
}

/// Found by review: whoever may write what is trusted, or the folder that it is in, can make himself trusted.
#[test]
fn what_others_may_write_is_not_trusted() {
    let place = Place::new();
    let alpha = place.keyring("alpha").expect("good");
    let folder = place.dir.path().to_path_buf();
    let set = |file: &std::path::Path, mode: u32| {
        std::fs::set_permissions(file, std::fs::Permissions::from_mode(mode)).expect("set");
    };
    let cases = [
        (place.folder().authority_file(), 0o620, 0o600),
        (place.folder().authority_file(), 0o606, 0o644),
        (place.folder().certificate_file("alpha"), 0o622, 0o644),
        (folder.clone(), 0o770, 0o755),
        (folder, 0o707, 0o700),
    ];
    for (file, open, good) in cases {
        set(&file, open);
        let error = Keyring::open(place.dir.path(), node("alpha")).expect_err("is not used").to_string();
        assert!(error.contains("others than its owner may change it"), "{open:o}: {error}");
        assert!(error.contains(&file.display().to_string()), "{error}");
        set(&file, good);
        Keyring::open(place.dir.path(), node("alpha")).unwrap_or_else(|error| panic!("{good:o}: {error}"));
    }
    assert_eq!(alpha.warning(), None);
}

/// Found by review: root read keys that belonged to somebody else, who could read them and put others in their place.
#[test]
fn what_belongs_to_another_user_is_not_used() {
    let place = Place::new();
    place.put_if_absent("alpha");
    let key = place.folder().key_file("alpha");
    if let Err(error) = std::os::unix::fs::chown(&key, Some(65_534), None) {
        assert_eq!(error.kind(), std::io::ErrorKind::PermissionDenied, "only root may give files away");
        return;
    }
    let error = Keyring::open(place.dir.path(), node("alpha")).expect_err("is not used").to_string();
    assert!(error.contains("alpha.key: belongs to user 65534"), "{error}");
}
