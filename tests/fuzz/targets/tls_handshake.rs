//! TLS with whoever connects, at the acceptor of links and agents and at that of NBD clients: bytes that are no handshake, and handshakes of
//! all kinds of client that are damaged on their way.
//!
//! Input: a byte of switches; then the bytes as they are, or what is done to those of a client. A client's random numbers differ in each run,
//! so that a failure may need several tries to be repeated.

use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime};

use super::input::Input;
use super::notes::{note, note_text};
use super::rng::Rng;
use repblk::tls::{AGENT_PROTOCOL, Authority, Folder, Holder, Keyring, Keys, Kind, LINK_PROTOCOL, sentence};
use repblk::units::ClusterId;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::{
    ClientConfig, ClientConnection, Connection, DigitallySignedStruct, Error, ServerConfig, ServerConnection,
    SignatureScheme,
};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};

/// Most that an acceptor takes from somebody who does not come to an end, and most that it answers.
const TAKEN_MAX: usize = 200_000;
const ANSWER_MAX: usize = 16_384;
const DAY: Duration = Duration::from_secs(86_400);
const CLUSTER: ClusterId = ClusterId(7);

/// Somebody who connects.
struct Visitor {
    /// Whom a certificate says it is; none without one, or with one that must not be believed.
    holder: Option<Holder>,
    /// It may finish a handshake where certificates are wanted, where they are welcome.
    may: [bool; 2],
    config: ClientConfig,
}

struct World {
    keys: Arc<Keys>,
    /// Of links and agents, and of NBD clients that may show a certificate.
    acceptors: [Arc<ServerConfig>; 2],
    visitors: Vec<Visitor>,
}

pub fn run(data: &[u8]) {
    static WORLD: OnceLock<World> = OnceLock::new();
    let world = WORLD.get_or_init(World::new);
    let mut input = Input::new(data);
    let switches = input.u8();
    let place = usize::from(switches & 1);
    if switches & 2 == 0 {
        return no_handshake(&world.acceptors[place], input.rest());
    }
    let visitor = &world.visitors[input.index(world.visitors.len())];
    let protocols: [&[&[u8]]; 4] = [&[], &[LINK_PROTOCOL], &[AGENT_PROTOCOL], &[b"h2", LINK_PROTOCOL]];
    let protocols = protocols[input.index(4)];
    let damages = (0..switches >> 2 & 3).map(|_| Damage::new(&mut input)).collect();
    handshake(world, place, visitor, protocols, damages, &mut input.rng());
}

/// Bytes that a stranger makes up: there is an end to what is taken, and nobody is believed.
fn no_handshake(acceptor: &Arc<ServerConfig>, bytes: &[u8]) {
    let mut server = Side::new(ServerConnection::new(Arc::clone(acceptor)).expect("good keys").into());
    // Over and over, as somebody would who wants to fill memory.
    while server.failure.is_none() && server.taken < TAKEN_MAX && !bytes.is_empty() {
        server.take(bytes);
        drop(server.give());
        assert!(server.connection.is_handshaking(), "nobody has shown a key");
        if server.taken >= 4 * bytes.len() {
            break;
        }
    }
    assert!(server.given <= ANSWER_MAX, "{} bytes answer {}", server.given, server.taken);
    server.judge();
}

/// What is done to what a client sends.
struct Damage {
    /// Behind so many bytes.
    at: usize,
    what: u8,
    bytes: Vec<u8>,
}

impl Damage {
    fn new(input: &mut Input<'_>) -> Self {
        let (at, what) = (usize::from(input.u16()) % 2600, input.u8());
        let len = usize::from(input.u8() % 32);
        Self { at, what, bytes: input.bytes(len).to_vec() }
    }

    /// True when it changed something in `bytes`, which begin behind `sent` others.
    fn harm(&self, sent: usize, bytes: &mut Vec<u8>) -> bool {
        let Some(at) = self.at.checked_sub(sent).filter(|at| *at < bytes.len()) else { return false };
        match self.what % 4 {
            0 => bytes[at] ^= self.what | 1,
            1 => drop(bytes.splice(at..at, self.bytes.iter().copied())),
            2 => drop(bytes.drain(at..(at + 1 + self.bytes.len()).min(bytes.len()))),
            _ => {
                let copy = bytes[at..].to_vec();
                bytes.extend(copy);
            }
        }
        self.what % 4 != 1 || !self.bytes.is_empty()
    }
}

fn handshake(world: &World, place: usize, visitor: &Visitor, protocols: &[&[u8]], damages: Vec<Damage>, rng: &mut Rng) {
    let mut config = visitor.config.clone();
    config.alpn_protocols = protocols.iter().map(|protocol| protocol.to_vec()).collect();
    let name = ServerName::try_from("node").expect("a name");
    let mut client = Side::new(ClientConnection::new(Arc::new(config), name).expect("starts").into());
    let mut server = Side::new(ServerConnection::new(Arc::clone(&world.acceptors[place])).expect("good keys").into());
    let (mut sent, mut harmed) = (0, false);
    for _ in 0..8 {
        let mut bytes = client.give();
        let whole = bytes.len();
        for damage in &damages {
            harmed |= damage.harm(sent, &mut bytes);
        }
        sent += whole;
        // In pieces, as the network gives them.
        let mut rest = &bytes[..];
        while !rest.is_empty() {
            let (piece, behind) = rest.split_at(1 + rng.index(rest.len()));
            server.take(piece);
            rest = behind;
        }
        client.take(&server.give());
    }
    assert!(server.given <= ANSWER_MAX, "{} bytes are answered", server.given);
    server.judge();
    let done = server.failure.is_none() && !server.connection.is_handshaking();
    note((place, done, harmed, visitor.holder.as_ref().map(|holder| holder.kind.word())));
    // What TLS itself refuses, and nothing of ours: no protocol in common.
    let agreed = place == 1 || protocols.is_empty() || protocols.iter().any(|protocol| *protocol != b"h2");
    if !harmed {
        assert_eq!(done, visitor.may[place] && agreed, "{:?} at {place}: {:?}", visitor.holder, server.failure);
    }
    if done {
        assert!(visitor.may[place], "{:?} got in at {place}", visitor.holder);
        let shown = server.connection.peer_certificates();
        let node = visitor.holder.as_ref().filter(|holder| holder.kind == Kind::Node).map(|holder| holder.name.clone());
        assert_eq!(world.keys.node_of(shown), node, "nobody passes for another node");
        let client = visitor.holder.clone().filter(|holder| holder.kind != Kind::Server);
        assert_eq!(world.keys.client_of(shown), client, "nobody passes for another client");
    }
}

/// One side of a connection.
struct Side {
    connection: Connection,
    failure: Option<Error>,
    taken: usize,
    given: usize,
}

impl Side {
    fn new(connection: Connection) -> Self {
        Self { connection, failure: None, taken: 0, given: 0 }
    }

    fn take(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() && self.failure.is_none() {
            let before = bytes.len();
            self.connection.read_tls(&mut bytes).expect("memory gives all");
            self.taken += before - bytes.len();
            assert!(bytes.len() < before, "it takes what comes until it fails");
            self.failure = self.connection.process_new_packets().err();
        }
    }

    fn give(&mut self) -> Vec<u8> {
        let mut bytes = Vec::new();
        while self.connection.wants_write() {
            self.connection.write_tls(&mut bytes).expect("memory takes all");
        }
        self.given += bytes.len();
        bytes
    }

    /// What went wrong is told in a sentence that fits a log.
    fn judge(&self) {
        let Some(error) = &self.failure else { return };
        let told = sentence(error);
        assert!(!told.trim().is_empty() && !told.contains(char::is_control) && told.len() < 600, "{told:?}");
        note_text("failed", &told);
        note(std::mem::discriminant(error));
    }
}

impl World {
    fn new() -> Self {
        let dir = tempfile::tempdir().expect("a folder");
        let folder = Folder::new(dir.path());
        let authority = Authority::create("c", 100).expect("made");
        let foreign = Authority::create("c", 100).expect("made");
        let now = SystemTime::now();
        folder.write_authority(&authority).expect("written");
        folder.write_secrets(&[Folder::fresh_secret().expect("random")]).expect("written");
        let alpha = Holder::node(CLUSTER, "alpha");
        folder.write_issued("alpha", &authority.issue(&alpha, &[], now, 50).expect("issued")).expect("written");
        let keys = Keyring::open(dir.path(), alpha).expect("good").now();
        let holder = |kind: Kind, name: &str| Holder { kind, ..Holder::node(CLUSTER, name) };
        let elsewhere = Holder::node(ClusterId(8), "beta");
        let visitor = |authority: &Authority, holder: &Holder, from: SystemTime, believed: bool, may: [bool; 2]| {
            let issued = authority.issue(holder, &["beta".to_owned()], from, 20).expect("issued");
            let chain = vec![CertificateDer::from_pem_slice(issued.certificate.as_bytes()).expect("PEM")];
            let key = PrivateKeyDer::from_pem_slice(issued.key.as_bytes()).expect("PEM");
            Visitor { holder: believed.then(|| holder.clone()), may, config: client(Some((chain, key))) }
        };
        let visitors = vec![
            visitor(&authority, &holder(Kind::Node, "beta"), now, true, [true, true]),
            visitor(&authority, &holder(Kind::Node, "gamma"), now, true, [true, true]),
            visitor(&authority, &holder(Kind::Client, "db1"), now, true, [false, true]),
            visitor(&authority, &holder(Kind::Server, "etcd"), now, true, [false, true]),
            // Signed by the authority, for another cluster: whoever takes NBD clients refuses it afterwards.
            visitor(&authority, &elsewhere, now, false, [false, true]),
            visitor(&foreign, &holder(Kind::Node, "beta"), now, false, [false, false]),
            visitor(&authority, &holder(Kind::Node, "beta"), now - 40 * DAY, false, [false, false]),
            visitor(&authority, &holder(Kind::Node, "beta"), now + 3 * DAY, false, [false, false]),
            Visitor { holder: None, may: [false, true], config: client(None) },
        ];
        let acceptors = [keys.acceptor(), keys.nbd_acceptor(false).expect("good keys")];
        Self { keys, acceptors, visitors }
    }
}

type Shown = (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>);

fn client(shown: Option<Shown>) -> ClientConfig {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let algorithms = provider.signature_verification_algorithms.supported_schemes();
    let config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("TLS 1.3")
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Anybody(algorithms)));
    match shown {
        Some((chain, key)) => config.with_client_auth_cert(chain, key).expect("they go together"),
        None => config.with_no_client_auth(),
    }
}

/// What a stranger does with the acceptor's certificate is its own matter.
#[derive(Debug)]
struct Anybody(Vec<SignatureScheme>);

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.clone()
    }
}
