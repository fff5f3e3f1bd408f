//! `repblk attach` over TLS: nothing in the clear, nobody else in a node's place, and not one write lost for it.

use std::io::{ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, SystemTime};

use repblk::daemon::identity::cluster_id;
use repblk::tls::{Folder, Holder, Kind};
use serde_json::Value;

use crate::attach::Attached;
use crate::failover::take_over;
use crate::ledger::Ledger;
use crate::node::Node;
use crate::pair::{Pair, Setup, reconfigure};
use crate::proxy::{Proxy, Way};
use crate::raw_nbd::{FUA, Raw};
use crate::tools::{LONG, SHORT, wait_for};

/// Nodes that serve nobody in the clear on TCP, and nobody without a certificate.
fn strict() -> Pair {
    Pair::up(&Setup { keys: true, nbd_tls: "nbd_tls = \"require\"", ..Setup::default() })
}

fn keys(pair: &Pair) -> Folder {
    Folder::new(&pair.dir.path().join("keys"))
}

/// The folder of keys on the database host: the authority's certificate, and its own.
fn host_keys(pair: &Pair) -> PathBuf {
    pair.alpha.cli(&["cert", "issue", "db1", "--client"]).ok();
    let folder = pair.dir.path().join("host-keys");
    std::fs::create_dir(&folder).expect("made");
    for file in ["ca.pem", "db1.pem", "db1.key"] {
        std::fs::copy(keys(pair).path().join(file), folder.join(file)).expect("copied");
    }
    folder
}

/// The database host's view: each node at one TCP address, which may be somebody else's.
fn host(pair: &Pair, alpha: &str, beta: &str) -> Attached {
    let attached = Attached::new(pair);
    for (node, address) in [(&pair.alpha, alpha), (&pair.beta, beta)] {
        let theirs = format!("\"unix:{}\", \"tcp:{}\"", node.nbd_unix.display(), node.nbd_tcp);
        reconfigure(&attached.config, &theirs, &format!("\"tcp:{address}\""));
    }
    attached
}

/// A free address beside that of a node.
fn door_of(node: &Node) -> String {
    node.nbd_tcp.replace(":10809", ":10808")
}

fn refusal<'s>(status: &'s Value, address: &str) -> &'s str {
    let servers = status["servers"].as_array().expect("a list");
    let server = servers.iter().find(|server| server["address"] == format!("tcp:{address}"));
    server.and_then(|server| server["last_refusal"].as_str()).unwrap_or_default()
}

#[track_caller]
fn wait_refusal(attached: &Attached, address: &str, why: &str) {
    attached.wait(&format!("the refusal {why:?}"), |status| refusal(status, address).contains(why));
    let log = attached.log();
    assert!(log.lines().any(|line| line.contains("WARN") && line.contains(why)), "the log names it, too:\n{log}");
}

/// The connection is cut, a byte on it is changed, and then its primary is lost: requests wait and go on, over TLS each time.
#[test]
fn over_tls_the_loss_of_the_primary_is_a_pause() {
    let mut pair = strict();
    let door = door_of(&pair.alpha);
    let proxy = Proxy::start(&door, &pair.alpha.nbd_tcp);
    let mut attached = host(&pair, &door, &pair.beta.nbd_tcp);
    let keys = host_keys(&pair).display().to_string();
    attached.begin(&["--keys", &keys]);
    let status = attached.wait("the device", |status| status["state"] == "following");
    assert_eq!((&status["proves"], &status["warning"]), (&"NBD client db1".into(), &Value::Null), "{status}");
    wait_for("the socket", SHORT, || Raw::connect(&attached.place()).ok());
    let ledger = Ledger::start(&[attached.place()], 4, 64);
    ledger.wait_more(300, SHORT);
    for way in [Way::Forth, Way::Back] {
        proxy.damage(way, 64);
        wait_for("the damage", SHORT, || Some(()).filter(|()| proxy.has_damaged()));
        ledger.wait_more(100, SHORT);
    }
    proxy.reset();
    ledger.wait_more(300, SHORT);
    pair.alpha.kill();
    take_over(&pair.beta, &["promote", "--peer-is-down"]);
    ledger.wait_more(300, SHORT);
    pair.alpha.start();
    pair.wait_in_sync();
    let status = attached.status().expect("it runs");
    assert!(status["failovers"].as_u64() >= Some(4) && status["node"] == "beta", "{status}");
    // A large request passes in pieces and comes back whole.
    let mut client = Raw::connect(&attached.place()).expect("it takes clients");
    let large = crate::tools::noise(7, 8 << 20);
    assert_eq!(client.write(16 << 20, &large, FUA).expect("answered"), 0);
    assert!(client.read(16 << 20, large.len()).expect("reads") == large, "it came back as it went");
    let book = ledger.stop();
    assert_eq!(book.reconnects, 0, "the device was there all the time");
    book.audit(&mut pair.beta.client());
    pair.assert_identical();
}

/// Somebody on the way, who answers in a node's place and keeps what it hears.
struct Middle {
    heard: Arc<Mutex<Vec<Vec<u8>>>>,
}

/// What an answer to `STARTTLS` begins with.
const OPTION_REPLY: [u8; 12] = [0, 3, 0xe8, 0x89, 4, 0x55, 0x65, 0xa9, 0, 0, 0, 5];

impl Middle {
    /// Greets like a node, answers the first option with `answer`, and then listens until the other side goes. For the rest of the test.
    fn start(address: &str, answer: &'static [u8]) -> Self {
        let listener = TcpListener::bind(address).expect("the address is this test's own");
        let heard = Arc::new(Mutex::new(Vec::new()));
        let kept = Arc::clone(&heard);
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let said = hear(stream, answer).unwrap_or_default();
                kept.lock().expect("nobody panics with it in hand").push(said);
            }
        });
        Self { heard }
    }

    /// What was said in each connection that is over.
    fn heard(&self) -> Vec<Vec<u8>> {
        self.heard.lock().expect("nobody panics with it in hand").clone()
    }
}

fn hear(mut stream: TcpStream, answer: &[u8]) -> std::io::Result<Vec<u8>> {
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    // Fixed newstyle, no zeroes.
    stream.write_all(b"NBDMAGICIHAVEOPT\0\x03")?;
    let mut said = vec![0; 20];
    stream.read_exact(&mut said)?;
    stream.write_all(&[&OPTION_REPLY[..], answer].concat())?;
    let mut rest = [0; 4096];
    loop {
        match stream.read(&mut rest) {
            Ok(0) => return Ok(said),
            Ok(len) => said.extend(&rest[..len]),
            Err(error) if error.kind() == ErrorKind::ConnectionReset => return Ok(said),
            Err(error) => return Err(error),
        }
    }
}

#[test]
fn who_strips_starttls_gets_nothing() {
    let pair = strict();
    let (no, yes) = (door_of(&pair.alpha), door_of(&pair.alpha).replace(":10808", ":10807"));
    // "No such option", as a node without keys says; and "yes", but then no TLS comes.
    let stripping = Middle::start(&no, &[0x80, 0, 0, 1, 0, 0, 0, 0]);
    let pretending = Middle::start(&yes, &[0, 0, 0, 1, 0, 0, 0, 0, b'h', b'a', b'l', b'l', b'o']);
    let mut attached = host(&pair, &no, &yes);
    attached.begin(&["--keys", &host_keys(&pair).display().to_string()]);
    wait_refusal(&attached, &no, "it offers no TLS");
    wait_refusal(&attached, &yes, "it does not speak TLS");
    wait_for("a second attempt", SHORT, || Some(()).filter(|()| stripping.heard().len() > 1));
    for said in stripping.heard() {
        assert_eq!(said, b"\0\0\0\x03IHAVEOPT\0\0\0\x05\0\0\0\0", "flags and STARTTLS, and not a byte more");
    }
    wait_for("an attempt", SHORT, || Some(()).filter(|()| !pretending.heard().is_empty()));
    for said in pretending.heard() {
        // Flags, STARTTLS, a record with the first message of a handshake; its padding and names are TLS's own.
        assert!(said.len() < 2048 && said[20..23] == [22, 3, 1], "{said:?}");
        assert!(!said.windows(3).any(|bytes| bytes == crate::node::VOLUME.as_bytes()), "the volume's name is not said");
    }
    assert_eq!(attached.status().expect("it runs")["size_bytes"], Value::Null);
    assert!(!Path::new(&attached.place()).exists(), "there is no device");
    // With no word about whose keys to use, where there are several, it does not start.
    attached.kill();
    attached.begin(&[]);
    wait_for("its end", SHORT, || Some(()).filter(|()| attached.log().contains("cert issue")));
    assert_eq!(stripping.heard().iter().map(Vec::len).max(), Some(20));
}

#[test]
fn a_node_that_is_another_is_refused_with_the_cause() {
    let pair = strict();
    let host_keys = host_keys(&pair).display().to_string();
    // Each in the other's place.
    let mut attached = host(&pair, &pair.beta.nbd_tcp, &pair.alpha.nbd_tcp);
    attached.begin(&["--keys", &host_keys]);
    let (alpha, beta) = (pair.alpha.nbd_tcp.as_str(), pair.beta.nbd_tcp.as_str());
    wait_refusal(&attached, beta, "its certificate is that of node \"beta\", and node \"alpha\" must be there");
    wait_refusal(&attached, alpha, "its certificate is that of node \"alpha\", and node \"beta\" must be there");
    attached.kill();
    // Another cluster, of the same name, and one without keys.
    let (other, plain) = (strict(), Pair::up(&Setup::default()));
    let mut attached = host(&pair, &other.alpha.nbd_tcp, &plain.alpha.nbd_tcp);
    attached.begin(&["--keys", &host_keys]);
    wait_refusal(&attached, &other.alpha.nbd_tcp, "not signed by the authority that is trusted here");
    wait_refusal(&attached, &plain.alpha.nbd_tcp, "it offers no TLS (this server does not offer TLS)");
    assert_eq!(attached.status().expect("it runs")["node"], Value::Null);
    for stranger in [&other.alpha, &plain.alpha] {
        assert_eq!(stranger.status()["nbd"]["clients"], 0);
    }
}

/// Renewed files serve the next connection, and the one that stands is left alone; so does a certificate that has expired, until it is needed.
#[test]
fn a_renewed_certificate_serves_the_next_connection_and_an_expired_one_is_named() {
    let pair = strict();
    let door = door_of(&pair.alpha);
    let proxy = Proxy::start(&door, &pair.alpha.nbd_tcp);
    let mut attached = host(&pair, &door, &pair.beta.nbd_tcp);
    let folder = Folder::new(&host_keys(&pair));
    let authority = keys(&pair).authority().expect("it was made here");
    let put = |from: SystemTime| {
        let db1 = Holder { kind: Kind::Client, ..Holder::node(cluster_id("test"), "db1") };
        folder.write_issued("db1", &authority.issue(&db1, &[], from, 20).expect("issued")).expect("written");
    };
    attached.begin(&["--keys", &folder.path().display().to_string()]);
    attached.wait("the device", |status| status["state"] == "following");
    wait_for("the socket", SHORT, || Raw::connect(&attached.place()).ok());
    let ledger = Ledger::start(&[attached.place()], 2, 64);
    ledger.wait_more(100, SHORT);
    // One that ends soon is used for the next connection, and told.
    put(SystemTime::now());
    proxy.reset();
    attached.wait("the renewed one", |status| {
        status["warning"]
            .as_str()
            .is_some_and(|warning| warning.contains("client db1 expires on") && warning.contains("in 19 days"))
    });
    ledger.wait_more(100, SHORT);
    // One that has expired breaks nothing, and is told.
    let failovers = attached.status().expect("it runs")["failovers"].clone();
    put(SystemTime::now() - Duration::from_secs(40 * 86_400));
    attached.wait("the warning", |status| {
        status["warning"].as_str().is_some_and(|warning| warning.contains("client db1 expired on"))
    });
    ledger.wait_more(100, SHORT);
    assert_eq!(attached.status().expect("it runs")["failovers"], failovers, "the connection stands");
    proxy.reset();
    wait_refusal(&attached, &door, "the certificate of NBD client db1 expired on");
    assert_eq!(attached.status().expect("it runs")["state"], "seeking");
    put(SystemTime::now());
    ledger.wait_more(100, LONG);
    let book = ledger.stop();
    assert_eq!(book.reconnects, 0, "the device was there all the time");
    book.audit(&mut pair.alpha.client());
    pair.assert_identical();
}
