//! Who gets in, and what anybody can cost others: lists, limits and floods, against real daemons.

use std::io::{Read, Write};
use std::net::{TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use serde_json::Value;
use socket2::{Domain, Socket, Type};

use crate::ledger::Ledger;
use crate::node::{Node, VOLUME};
use crate::pair::{Pair, Setup, in_sync, reconfigure};
use crate::raw_nbd::Raw;
use crate::tools::{LONG, SHORT, run, wait_for};

const LIST: u32 = 3;
const GO: u32 = 7;
const SERVER: u32 = 2;
const ACK: u32 = 1;
const POLICY: u32 = 1 << 31 | 2;
const UNKNOWN: u32 = 1 << 31 | 6;

fn status(node: &Node) -> Value {
    serde_json::from_str(&node.cli(&["status", "--json"]).ok()).expect("JSON")
}

/// A connection to `to` from the address `from`.
fn dial_from(from: &str, to: &str) -> TcpStream {
    try_dial_from(from, to).expect("the port is open")
}

/// The same, where the other side may have turned it away before the call has returned.
fn try_dial_from(from: &str, to: &str) -> std::io::Result<TcpStream> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
    let address = |text: String| text.parse::<std::net::SocketAddr>().expect("an address");
    socket.bind(&address(format!("{from}:0")).into()).expect("any loopback address may be used");
    socket.connect(&address(to.to_owned()).into())?;
    Ok(socket.into())
}

/// What the server answers to one option of a new connection over `stream`: all replies, to the last.
fn asks(stream: TcpStream, option: u32, body: &[u8]) -> Vec<(u32, String)> {
    let mut raw = Raw::over(stream).expect("the server greets");
    raw.option(option, body).expect("is taken");
    let mut replies = Vec::new();
    loop {
        let (kind, body) = raw.option_reply().expect("an answer");
        replies.push((kind, String::from_utf8_lossy(&body).into_owned()));
        if kind == ACK || kind & 1 << 31 != 0 {
            return replies;
        }
    }
}

fn go(name: &str) -> Vec<u8> {
    let mut body = u32::try_from(name.len()).expect("short").to_be_bytes().to_vec();
    body.extend_from_slice(name.as_bytes());
    body.extend_from_slice(&[0, 0]);
    body
}

#[test]
fn an_address_that_is_on_no_list_gets_the_rule_and_no_names() {
    let pair = Pair::up(&Setup { volume_keys: "allow = [\"127.11.0.0/16\"]", ..Setup::default() });
    let place = &pair.alpha.nbd_tcp;
    let (inside, outside) = ("127.11.255.254", "127.12.0.1");
    let refused = asks(dial_from(outside, place), GO, &go(VOLUME));
    let (kind, why) = &refused[0];
    assert!(*kind == POLICY && why.contains("refused by the rule address-not-allowed: 127.12.0.1 "), "{refused:?}");
    assert!(why.contains("add it to `allow`"), "{why}");
    assert_eq!(asks(dial_from(outside, place), LIST, &[]), [(ACK, String::new())], "nothing is listed to it");
    let unknown = asks(dial_from(outside, place), GO, &go("guess"));
    assert!(unknown[0].0 == UNKNOWN && !unknown[0].1.contains(VOLUME), "nor named: {unknown:?}");
    // A follower is no other client.
    assert_eq!(asks(dial_from(outside, place), GO, &go(&format!("{VOLUME}/follow")))[0].0, POLICY);
    let served = asks(dial_from(inside, place), GO, &go(VOLUME));
    assert_eq!(served.last().map(|(kind, _)| *kind), Some(ACK), "{served:?}");
    let listed = asks(dial_from(inside, place), LIST, &[]);
    assert!(listed[0].0 == SERVER && listed[0].1.contains(VOLUME), "{listed:?}");
    // A Unix socket has its permissions.
    Raw::connect(&pair.alpha.place()).expect("is served");
    assert!(pair.alpha.log_text().contains("address-not-allowed"), "the operator can read of it");
}

/// Found by review: each question of a refused client was a line of the log, 256 in a connection.
#[test]
fn a_refused_client_that_asks_again_and_again_fills_no_log() {
    let pair = Pair::up(&Setup { volume_keys: "allow = [\"127.11.0.0/16\"]", ..Setup::default() });
    let mut raw = Raw::over(dial_from("127.12.0.1", &pair.alpha.nbd_tcp)).expect("the server greets");
    for _ in 0..200 {
        raw.option(GO, &go(VOLUME)).expect("is taken");
        assert_eq!(raw.option_reply().expect("an answer").0, POLICY);
    }
    let told = pair.alpha.log_text().matches("address-not-allowed").count();
    assert!((1..=30).contains(&told), "{told} lines");
}

#[test]
fn a_certificate_that_is_on_no_list_gets_the_rule_and_no_names() {
    let pair =
        Pair::up(&Setup { keys: true, volume_keys: "allow_certificates = [\"db1\", \"beta\"]", ..Setup::default() });
    let keys = pair.dir.path().join("keys");
    for client in ["db1", "db2"] {
        pair.alpha.cli(&["cert", "issue", client, "--client"]).ok();
    }
    let (host, port) = pair.alpha.nbd_tcp.split_once(':').expect("IP:PORT");
    let uri = |holder: Option<&str>, export: &str| {
        let folder = pair.dir.path().join(holder.unwrap_or("nobody"));
        if !folder.exists() {
            std::fs::create_dir(&folder).expect("made");
            std::fs::copy(keys.join("ca.pem"), folder.join("ca-cert.pem")).expect("copied");
            for (end, name) in [("pem", "client-cert.pem"), ("key", "client-key.pem")] {
                if let Some(holder) = holder {
                    std::fs::copy(keys.join(format!("{holder}.{end}")), folder.join(name)).expect("copied");
                }
            }
        }
        format!("nbds://{host}:{port}/{export}?tls-certificates={}", folder.display())
    };
    let info = |uri: &str| run("env", ["LIBNBD_DEBUG=1", "nbdinfo", "--size", uri], SHORT);
    for holder in ["db1", "beta"] {
        info(&uri(Some(holder), VOLUME)).ok();
    }
    let said = info(&uri(Some("db2"), VOLUME)).fails();
    assert!(said.contains("refused by the rule certificate-not-allowed: the certificate is that of \"db2\""), "{said}");
    let said = info(&uri(None, VOLUME)).fails();
    assert!(said.contains("refused by the rule certificate-missing"), "{said}");
    // Nor in the clear, which this server takes otherwise.
    let refused = asks(TcpStream::connect(&pair.alpha.nbd_tcp).expect("connects"), GO, &go(VOLUME));
    assert!(refused[0].0 == POLICY && refused[0].1.contains("certificate-missing"), "{refused:?}");
    let list = |holder: &str| run("nbdinfo", ["--list", "--json", &uri(Some(holder), "")], SHORT);
    assert!(list("db1").ok().contains("\"export-name\": \"mes\""));
    assert!(!list("db2").stdout.contains(VOLUME), "nothing is listed to who may not have it");
    Raw::connect(&pair.alpha.place()).expect("a Unix socket has its permissions");
}

#[test]
fn places_are_for_the_node_and_for_each_address() {
    let mut pair = Pair::new(&Setup::default());
    reconfigure(
        &pair.alpha.config,
        "cluster = \"test\"",
        "cluster = \"test\"\n[limits]\nclients = 5\nclients_per_address = 2",
    );
    pair = pair.found();
    let place = pair.alpha.nbd_tcp.clone();
    let served = |from: &str| {
        let mut raw = Raw::over(dial_from(from, &place)).expect("the server greets");
        raw.go(VOLUME).map(|()| raw)
    };
    let held = [served("127.11.0.1").expect("room"), served("127.11.0.1").expect("room")];
    let why = served("127.11.0.1").err().expect("its part is taken");
    assert!(why.contains("refused by the rule address-full: 2 clients from 127.11.0.1"), "{why}");
    let other = served("127.11.0.2").expect("another address has room");
    let local = [(); 2].map(|()| pair.alpha.client());
    let why = Raw::connect(&pair.alpha.place()).err().expect("the node is full");
    assert!(why.contains("refused by the rule node-full: 5 clients"), "{why}");
    drop(held);
    wait_for("the places to be free", SHORT, || served("127.11.0.1").ok());
    drop((other, local));
}

/// Connections as fast as one address can open them: most are turned away before a byte, an honest client comes from elsewhere at once, and the link,
/// which is made anew meanwhile, does not suffer.
#[test]
fn a_flood_of_connections_from_one_address_is_turned_away_and_hinders_nobody_else() {
    let pair = Pair::up(&Setup::default());
    let ledger = Ledger::start(&[pair.alpha.place()], 2, 64);
    ledger.wait_more(50, SHORT);
    let (mut closed, mut held) = (0, Vec::new());
    for _ in 0..600 {
        for port in [&pair.alpha.nbd_tcp, &pair.beta.data] {
            match try_dial_from("127.13.0.1", port) {
                Ok(stream) => held.push(stream),
                Err(error) => {
                    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset, "the port is open: {error}");
                    closed += 1;
                }
            }
        }
    }
    // The doors have room for 200 each, and a few that grew in between.
    let counted = |node: &Node| status(node)["security"]["connections_turned_away"].as_u64().expect("a number");
    for node in [&pair.alpha, &pair.beta] {
        wait_for("the flood to be counted", SHORT, || (counted(node) >= 300).then_some(()));
        let log = node.log_text();
        assert_eq!(log.matches("refused by the rule too-many-connections").count(), 1, "told once: {}", node.log_end());
    }
    pair.proxy.cut();
    pair.alpha.wait("the loss of the link", SHORT, |volume| volume["peers"][0]["connection"] != "connected");
    pair.proxy.mend();
    let came = Instant::now();
    Raw::over(dial_from("127.13.0.2", &pair.alpha.nbd_tcp))
        .and_then(|mut raw| raw.go(VOLUME).map_err(std::io::Error::other))
        .expect("an honest client is served");
    assert!(came.elapsed() < Duration::from_secs(2), "it waited {:?}", came.elapsed());
    pair.alpha.wait("the link", LONG, in_sync);
    for mut stream in held.drain(..) {
        stream.set_nonblocking(true).expect("sockets can do that");
        let mut said = [0; 64];
        // What is not turned away says the greeting, or nothing yet.
        let gone = |kind| kind == std::io::ErrorKind::ConnectionReset;
        closed += usize::from(stream.read(&mut said).is_err_and(|error| gone(error.kind())));
    }
    assert!(closed >= 600, "{closed} of 1200 were turned away");
    ledger.wait_more(100, SHORT);
    let book = ledger.stop();
    assert_eq!(book.reconnects, 0, "no client was dropped");
    book.audit(&mut pair.alpha.client());
    pair.assert_identical();
}

/// A negotiation has its time, and the configuration says which.
#[test]
fn who_does_not_agree_in_time_is_ended() {
    let mut pair = Pair::new(&Setup::default());
    reconfigure(&pair.alpha.config, "cluster = \"test\"", "cluster = \"test\"\n[limits]\nnegotiation_ms = 500");
    pair = pair.found();
    let began = Instant::now();
    let mut raw = Raw::greet(&pair.alpha.nbd_tcp).expect("the server greets");
    assert!(raw.receive(1).expect("the end").is_empty());
    assert!((Duration::from_millis(500)..Duration::from_secs(5)).contains(&began.elapsed()), "{:?}", began.elapsed());
}

/// Bytes that belong to no handshake, without end: the connection ends, whatever it claims to be.
#[test]
fn a_handshake_without_end_ends() {
    let pair = Pair::up(&Setup { keys: true, ..Setup::default() });
    let stall = |mut stream: TcpStream, what: &str| {
        // Records of a handshake message that claims 16 MiB.
        let mut record = vec![22, 3, 1, 0x40, 0];
        record.extend_from_slice(&[1, 0xff, 0xff, 0xff]);
        record.resize(5 + 0x4000, 0);
        let mut sent = 0;
        while sent < 64 << 20 {
            match stream.write(&record) {
                Ok(0) => return,
                Ok(count) => sent += count,
                Err(error) => {
                    use std::io::ErrorKind::{BrokenPipe, ConnectionReset};
                    assert!(matches!(error.kind(), BrokenPipe | ConnectionReset), "{what}: {error}");
                    return;
                }
            }
        }
        panic!("{what}: {sent} bytes of no handshake were taken");
    };
    stall(TcpStream::connect(&pair.beta.data).expect("connects"), "data link");
    let mut stream = TcpStream::connect(&pair.alpha.nbd_tcp).expect("connects");
    stream.write_all(&[&3u32.to_be_bytes()[..], b"IHAVEOPT", &[0, 0, 0, 5, 0, 0, 0, 0]].concat()).expect("is taken");
    stream.read_exact(&mut [0; 18 + 20]).expect("STARTTLS is acknowledged");
    stall(stream, "NBD");
    pair.assert_identical();
}

/// 20,000 datagrams of a stranger in a second, and recordings of nothing: counted, and the peer is heard all the same.
#[test]
fn a_flood_of_datagrams_silences_no_heartbeat() {
    let pair = Pair::up(&Setup { keys: true, ..Setup::default() });
    let to = pair.alpha.data.replace(":7789", ":7790");
    let stranger = UdpSocket::bind("127.0.0.1:0").expect("a socket");
    let before = status(&pair.alpha)["security"]["datagrams_foreign"].as_u64().expect("a number");
    let began = Instant::now();
    let mut sent = 0u64;
    while began.elapsed() < Duration::from_secs(2) {
        while sent < u64::try_from(began.elapsed().as_millis()).expect("small") * 20 {
            stranger.send_to(&[0x5a; 300], &to).expect("is taken");
            sent += 1;
        }
        let path = pair.alpha.status()["peers"][0]["heartbeat"][0].clone();
        assert_eq!((&path["alive"], &path["heard_by_peer"]), (&Value::Bool(true), &Value::Bool(true)), "{path}");
    }
    wait_for("the flood to be counted", SHORT, || {
        let now = status(&pair.alpha)["security"]["datagrams_foreign"].as_u64().expect("a number");
        // A few may be lost on the way, as datagrams are.
        (now - before >= sent / 2).then_some(())
    });
    assert!(pair.alpha.status()["peers"][0]["connection"] == "connected");
}
