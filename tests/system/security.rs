//! Nodes that prove who they are, and strangers that cannot.

use std::io::Write as _;
use std::net::TcpStream;
use std::time::{Duration, SystemTime};

use repblk::daemon::identity::cluster_id;
use repblk::tls::{Authority, Folder, Holder};
use serde_json::Value;

use crate::ledger::Ledger;
use crate::node::{Node, VOLUME};
use crate::pair::{Pair, Setup, in_sync, reconfigure};
use crate::tools::{LONG, SHORT, run, wait_for};

fn with_keys() -> Setup {
    Setup { keys: true, ..Setup::default() }
}

/// What the node says of its keys and of what it did not believe.
fn security(node: &Node) -> Value {
    let text = node.cli(&["status", "--json"]).ok();
    serde_json::from_str::<Value>(&text).expect("JSON")["security"].clone()
}

fn wait_security(node: &Node, what: &str, fits: impl Fn(&Value) -> bool) {
    wait_for(what, SHORT, || Some(()).filter(|()| fits(&security(node))));
}

/// Everything at once, under load: certificates and the secret are renewed, strangers stall in handshakes, the link is cut and comes back.
#[test]
fn a_pair_with_keys_renews_them_and_lets_no_stranger_hold_it_up() {
    let pair = Pair::up(&with_keys());
    assert_eq!(security(&pair.alpha)["mode"], "keys");
    let ledger = Ledger::start(&[pair.alpha.place()], 4, 64);
    ledger.wait_more(200, SHORT);
    pair.alpha.cli(&["cert", "renew", "--secret", "--days", "20"]).ok();
    for node in [&pair.alpha, &pair.beta] {
        wait_security(node, "the warning", |security| {
            security["warning"].as_str().is_some_and(|warning| warning.contains("in 19 days"))
        });
    }
    // The half of them begin a handshake. More than there are seats.
    let strangers: Vec<TcpStream> = (0..150)
        .map(|i| {
            let mut stranger = TcpStream::connect(&pair.beta.data).expect("beta listens");
            if i % 2 == 0 {
                stranger.write_all(&[22, 3, 1, 2, 0, 1, 0, 1, 252, 3, 3]).expect("room");
            }
            stranger
        })
        .collect();
    pair.proxy.cut();
    pair.alpha.wait("the loss of the link", SHORT, |volume| volume["peers"][0]["connection"] != "connected");
    pair.proxy.mend();
    pair.alpha.wait("the link in spite of the strangers", SHORT, in_sync);
    drop(strangers);
    ledger.wait_more(200, SHORT);
    let book = ledger.stop();
    assert_eq!(book.reconnects, 0, "no client was dropped");
    book.audit(&mut pair.alpha.client());
    // Heartbeats under the new secret are believed.
    for node in [&pair.alpha, &pair.beta] {
        let path = &node.status()["peers"][0]["heartbeat"][0];
        assert_eq!((&path["alive"], &path["heard_by_peer"]), (&Value::Bool(true), &Value::Bool(true)), "{path}");
        assert_eq!(security(node)["heartbeats_forged"], 0);
    }
    pair.assert_identical();
}

/// A date that has passed is no reason to stop mirroring; it is one to believe nobody new, and both nodes say so.
#[test]
fn an_expired_certificate_ends_no_link_and_makes_none() {
    let pair = Pair::up(&with_keys());
    let folder = Folder::new(&pair.dir.path().join("keys"));
    let put = |authority: &Authority, from: SystemTime| {
        let beta = Holder::node(cluster_id("test"), "beta");
        folder.write_issued("beta", &authority.issue(&beta, &[], from, 10).expect("issued")).expect("written");
    };
    let why = |says: &'static str| {
        pair.alpha
            .wait(says, SHORT, move |volume| volume["peers"][0]["why"].as_str().is_some_and(|why| why.contains(says)));
    };
    let authority = folder.authority().expect("it was made here");
    let linked = |node: &Node| node.status()["peers"][0]["connection_ms"].as_u64().expect("a number");
    let before = linked(&pair.alpha);
    put(&authority, SystemTime::now() - Duration::from_secs(20 * 86_400));
    wait_security(&pair.beta, "the warning", |security| {
        security["warning"].as_str().is_some_and(|warning| warning.contains("expired on"))
    });
    assert!(linked(&pair.alpha) > before, "the link stands");
    pair.proxy.cut();
    pair.alpha.wait("the loss of the link", SHORT, |volume| volume["peers"][0]["connection"] != "connected");
    pair.proxy.mend();
    why("its certificate expired on");
    // Made by a host whose clock is fast, or seen by one whose clock is slow.
    put(&authority, SystemTime::now() + Duration::from_secs(20 * 86_400));
    why("the clock of one of the two hosts is wrong");
    wait_security(&pair.beta, "the warning", |security| {
        security["warning"].as_str().is_some_and(|warning| warning.contains("this host's clock is wrong"))
    });
    // Somebody else's authority is no better.
    put(&Authority::create("test", 10).expect("made"), SystemTime::now());
    why("not signed by the authority that is trusted here");
    put(&authority, SystemTime::now());
    pair.alpha.wait("the link with a good certificate", LONG, in_sync);
    pair.assert_identical();
}

/// Keys on one side only: both sides say what is the matter, and nothing is mirrored in the clear.
#[test]
fn a_node_without_keys_is_not_let_in() {
    let mut pair = Pair::up(&with_keys());
    pair.beta.kill();
    reconfigure(&pair.beta.config, "[security]\nkeys = ", "# ");
    pair.beta.start();
    let says = |volume: &Value, what: &str| volume["peers"][0]["why"].as_str().is_some_and(|why| why.contains(what));
    pair.alpha.wait("the reason", SHORT, |volume| says(volume, "it has no keys configured"));
    wait_for("the other side's reason", SHORT, || {
        Some(()).filter(|()| pair.beta.log_end().contains("the peer speaks TLS, and this node has no keys"))
    });
    // Nor are its heartbeats believed.
    wait_security(&pair.alpha, "heartbeats not believed", |security| security["heartbeats_forged"] != 0);
    pair.alpha.wait("silence", SHORT, |volume| volume["peers"][0]["heartbeat"][0]["alive"] == false);
}

/// Folders of keys under the names that QEMU and libnbd look for: of somebody with a certificate, and of somebody without.
fn clients(pair: &Pair) -> (String, String) {
    let keys = pair.dir.path().join("keys");
    pair.alpha.cli(&["cert", "issue", "db1", "--client"]).ok();
    let client = |name: &str, with_certificate: bool| {
        let folder = pair.dir.path().join(name);
        std::fs::create_dir(&folder).expect("made");
        let copy = |from: &str, to: &str| {
            std::fs::copy(keys.join(from), folder.join(to)).expect("copied");
        };
        copy("ca.pem", "ca-cert.pem");
        if with_certificate {
            copy("db1.pem", "client-cert.pem");
            copy("db1.key", "client-key.pem");
        }
        folder.display().to_string()
    };
    (client("known", true), client("unknown", false))
}

/// Nothing is said of NBD: who comes from another host must speak TLS and show a certificate, and who is of this host need not.
#[test]
fn by_default_a_client_of_another_host_proves_who_it_is() {
    let pair = Pair::new(&with_keys());
    let port = std::net::TcpListener::bind("0.0.0.0:0").expect("ports are left").local_addr().expect("bound").port();
    for node in [&pair.alpha, &pair.beta] {
        let own = format!("\"tcp:{}\"", pair.alpha.nbd_tcp);
        reconfigure(&node.config, &own, &format!("{own}, \"tcp:0.0.0.0:{port}\""));
    }
    let checked = pair.alpha.cli(&["config", "check"]).ok();
    assert!(checked.contains("\nNBD: clients of other hosts speak TLS and show a certificate"), "{checked}");
    let pair = pair.found();
    assert_eq!(
        (&security(&pair.alpha)["nbd_tls"], &security(&pair.alpha)["nbd_warning"]),
        (&"require".into(), &Value::Null)
    );
    let (known, unknown) = clients(&pair);
    let (host, _) = pair.alpha.nbd_tcp.split_once(':').expect("IP:PORT");
    let uri = |folder: &str| format!("nbds://{host}:{port}/{VOLUME}?tls-certificates={folder}");
    run("nbdinfo", ["--size", &uri(&known)], SHORT).ok();
    run("nbdinfo", ["--size", &uri(&unknown)], SHORT).fails();
    run("nbdinfo", ["--size", &format!("nbd://{host}:{port}/{VOLUME}")], SHORT).fails();
    run("nbdinfo", ["--size", &format!("nbd://{}/{VOLUME}", pair.alpha.nbd_tcp)], SHORT).ok();
    // A choice that keeps nobody out is told as that, and none at all is refused.
    let chosen = |line: &str| {
        reconfigure(&pair.beta.config, "[security]\n", &format!("[security]\n{line}\n"));
        let checked = pair.beta.cli(&["config", "check"]);
        reconfigure(&pair.beta.config, &format!("{line}\n"), "");
        checked
    };
    let checked = chosen("nbd_tls = \"allow\"").ok();
    assert!(checked.contains("NOBODY IS KEPT OUT"), "{checked}");
    let refused = chosen("nbd_tls = \"off\"").exits(2);
    assert!(refused.contains(&format!("other hosts reach tcp:0.0.0.0:{port}")), "{refused}");
}

/// Clients that know nothing of repblk, over TLS: with the authority alone, without it, and with a certificate where one is required.
#[test]
fn clients_of_others_speak_tls_and_must_where_it_is_required() {
    let pair = Pair::up(&Setup { nbd_tls: "nbd_tls = \"require\"", ..with_keys() });
    let (known, unknown) = clients(&pair);
    let (host, port) = pair.alpha.nbd_tcp.split_once(':').expect("IP:PORT");
    let uri = |folder: &str| format!("nbds://{host}:{port}/{VOLUME}?tls-certificates={folder}");
    run("nbdinfo", ["--size", &uri(&known)], SHORT).ok();
    run("nbdinfo", ["--size", &uri(&unknown)], SHORT).fails();
    run("nbdinfo", ["--size", &format!("nbd://{host}:{port}/{VOLUME}")], SHORT).fails();
    // Over a Unix socket nothing leaves the host.
    run("nbdinfo", ["--size", &pair.alpha.unix_uri()], SHORT).ok();
    let qemu_with = |folder: &str, priority: &str, command: &str| {
        let tls = format!("tls-creds-x509,id=tls0,endpoint=client,dir={folder}{priority}");
        let image = format!("driver=nbd,host={host},port={port},export={VOLUME},tls-creds=tls0");
        run("qemu-io", ["--object", &tls, "--image-opts", &image, "-c", command], LONG)
    };
    let qemu = |folder: &str, command: &str| qemu_with(folder, "", command);
    qemu(&known, "write -P 7 1M 3M").ok();
    qemu(&known, "read -P 7 1M 3M").ok();
    qemu(&unknown, "read 0 4k").fails();
    // As programs do that know no TLS 1.3. What is older still is not spoken.
    let only = |version: &str| format!(",priority=NORMAL:-VERS-ALL:+VERS-TLS{version}");
    qemu_with(&known, &only("1.2"), "read -P 7 1M 3M").ok();
    qemu_with(&known, &only("1.2"), "write -P 8 5M 1M").ok();
    qemu_with(&unknown, &only("1.2"), "read 0 4k").fails();
    qemu_with(&known, &only("1.1"), "read 0 4k").fails();
    // nbd-client of Debian 12 is one of them, and wants each file by its name.
    let list = |files: &[(&str, String)]| {
        let files = files.iter().flat_map(|(option, file)| [(*option).to_owned(), file.clone()]);
        let fixed = ["-l", host, port, "-tlshostname", host].map(str::to_owned);
        run("nbd-client", fixed.into_iter().chain(files), SHORT)
    };
    let file = |folder: &str, name: &str| format!("{folder}/{name}.pem");
    let authority = ("-cacertfile", file(&known, "ca-cert"));
    let own = [("-certfile", file(&known, "client-cert")), ("-keyfile", file(&known, "client-key"))];
    let listed = list(&[&own[..], std::slice::from_ref(&authority)].concat()).ok();
    assert!(listed.contains(VOLUME), "{listed}");
    assert!(!list(&[authority]).fails().contains(VOLUME));
    assert!(!run("nbd-client", ["-l", host, port], SHORT).fails().contains(VOLUME));
    run("nbdcopy", [&uri(&known), &pair.dir.path().join("copy").display().to_string()], LONG).ok();
    let copy = std::fs::read(pair.dir.path().join("copy")).expect("made");
    assert!(copy[1 << 20..4 << 20].iter().all(|&byte| byte == 7) && copy[..1 << 20].iter().all(|&byte| byte == 0));
    pair.assert_identical();
}
