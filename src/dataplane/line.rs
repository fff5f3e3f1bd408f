//! A connection: its socket, and the TLS that is spoken over it, if any.
//!
//! TLS lies between the socket and whoever parses: the same thread that works on a volume encrypts what it sends, a batch of frames at a time,
//! and decrypts into the memory that the bytes are for. The handshake is over when a connection comes here; what came after it is
//! kept in the [`Connection`].

use std::io::{self, IoSlice, IoSliceMut, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustls::Connection;
use socket2::Socket;

use super::receiver::Received;

/// Receives from the socket for one read; a peer that sends records without content keeps nobody longer.
const RECEIVES_MAX: usize = 8;

/// A connected socket, and what is spoken over it.
#[derive(Debug)]
pub struct Negotiated {
    /// The socket.
    pub socket: OwnedFd,
    /// The connection after its handshake; none without TLS.
    pub tls: Option<Box<Connection>>,
}

impl From<OwnedFd> for Negotiated {
    fn from(socket: OwnedFd) -> Self {
        Self { socket, tls: None }
    }
}

/// A connection that is in use.
#[derive(Debug)]
pub(super) struct Line {
    socket: Socket,
    tls: Option<Box<Tls>>,
}

#[derive(Debug)]
struct Tls {
    connection: Connection,
    /// What was received and not decrypted yet: `sealed[at..end]`.
    sealed: Box<[u8]>,
    at: usize,
    end: usize,
    /// Nothing more will come.
    ended: bool,
}

impl Line {
    /// A connection; with TLS, so many bytes are received at once.
    pub(super) fn new(negotiated: Negotiated, receive: usize) -> Self {
        let tls = negotiated.tls.map(|connection| {
            Box::new(Tls { connection: *connection, sealed: vec![0; receive].into(), at: 0, end: 0, ended: false })
        });
        Self { socket: Socket::from(negotiated.socket), tls }
    }

    pub(super) fn socket(&self) -> &Socket {
        &self.socket
    }

    /// True when everything that was taken by [`Line::write`] is with the kernel.
    pub(super) fn is_flushed(&self) -> bool {
        self.tls.as_ref().is_none_or(|tls| !tls.connection.wants_write())
    }

    /// Reads once into `into`, which has room.
    ///
    /// # Errors
    /// When the connection is broken, or what came was not sealed by the other side.
    pub(super) fn read(&mut self, into: &mut [IoSliceMut<'_>]) -> io::Result<Received> {
        match &mut self.tls {
            None => receive(&self.socket, into),
            Some(tls) => tls.read(&self.socket, into),
        }
    }

    /// Takes bytes of `parts` from the front, and sends what the socket takes. How many it took.
    ///
    /// # Errors
    /// `WouldBlock` when the socket is full, and when the connection is broken.
    pub(super) fn write(&mut self, parts: &[IoSlice<'_>]) -> io::Result<usize> {
        let Some(tls) = &mut self.tls else {
            return send(&self.socket, parts);
        };
        tls.flush(&self.socket)?;
        let taken = tls.connection.writer().write_vectored(parts)?;
        match tls.flush(&self.socket) {
            // It is sealed, and goes when there is room.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(taken),
            flushed => flushed.map(|()| taken),
        }
    }

    /// Sends what was taken before.
    ///
    /// # Errors
    /// As [`Line::write`].
    pub(super) fn flush(&mut self) -> io::Result<()> {
        match &mut self.tls {
            None => Ok(()),
            Some(tls) => tls.flush(&self.socket),
        }
    }

    /// Says that nothing more will be written; it is sent by the next [`Line::flush`].
    pub(super) fn say_goodbye(&mut self) {
        if let Some(tls) = &mut self.tls {
            tls.connection.send_close_notify();
        }
    }
}

impl AsFd for Line {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl Tls {
    fn read(&mut self, socket: &Socket, into: &mut [IoSliceMut<'_>]) -> io::Result<Received> {
        let room: usize = into.iter().map(|part| part.len()).sum();
        let (mut count, mut dry) = (0, false);
        for _ in 0..RECEIVES_MAX {
            count += self.open(into, count)?;
            if count == room {
                return Ok(Received::Bytes { count, drained: false });
            }
            // All that came is decrypted.
            if self.ended || dry {
                break;
            }
            let mut socket = socket;
            match socket.read(&mut self.sealed) {
                Ok(0) => self.ended = true,
                Ok(received) => {
                    (self.at, self.end) = (0, received);
                    dry = received < self.sealed.len();
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => dry = true,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        count += self.open(into, count)?;
        Ok(match count {
            0 if self.ended => Received::End,
            0 if dry => Received::Nothing,
            // The end is heard at the next read.
            _ => Received::Bytes { count, drained: dry && count < room && !self.ended },
        })
    }

    /// Decrypts what was received, as far as there is room behind the first `filled` bytes of `into`.
    fn open(&mut self, into: &mut [IoSliceMut<'_>], mut filled: usize) -> io::Result<usize> {
        let before = filled;
        loop {
            filled += self.take(into, filled)?;
            if self.at == self.end || into.iter().map(|part| part.len()).sum::<usize>() == filled {
                return Ok(filled - before);
            }
            let mut rest = &self.sealed[self.at..self.end];
            self.connection.read_tls(&mut rest)?;
            self.at = self.end - rest.len();
            let state = self.connection.process_new_packets();
            let state = state.map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
            if state.peer_has_closed() {
                (self.ended, self.at) = (true, self.end);
            }
        }
    }

    /// Moves what is decrypted behind the first `filled` bytes of `into`.
    fn take(&mut self, into: &mut [IoSliceMut<'_>], filled: usize) -> io::Result<usize> {
        let (mut skip, mut taken) = (filled, 0);
        for part in into {
            let from = skip.min(part.len());
            skip -= from;
            let mut rest = &mut part[from..];
            while !rest.is_empty() {
                match self.connection.reader().read(rest) {
                    Ok(0) => return Ok(taken),
                    Ok(count) => {
                        taken += count;
                        rest = &mut rest[count..];
                    }
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(taken),
                    Err(error) => return Err(error),
                }
            }
        }
        Ok(taken)
    }

    fn flush(&mut self, socket: &Socket) -> io::Result<()> {
        while self.connection.wants_write() {
            match self.connection.write_tls(&mut Sending(socket)) {
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

/// The socket as TLS writes to it.
struct Sending<'s>(&'s Socket);

impl Write for Sending<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        send(self.0, &[IoSlice::new(bytes)])
    }

    fn write_vectored(&mut self, parts: &[IoSlice<'_>]) -> io::Result<usize> {
        send(self.0, parts)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn send(socket: &Socket, parts: &[IoSlice<'_>]) -> io::Result<usize> {
    socket.send_vectored_with_flags(parts, libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL)
}

fn receive(socket: &Socket, into: &mut [IoSliceMut<'_>]) -> io::Result<Received> {
    let room: usize = into.iter().map(|part| part.len()).sum();
    let mut socket = socket;
    match socket.read_vectored(into) {
        Ok(0) => Ok(Received::End),
        Ok(count) => Ok(Received::Bytes { count, drained: count < room }),
        Err(e) if matches!(e.kind(), io::ErrorKind::WouldBlock) => Ok(Received::Nothing),
        Err(e) if matches!(e.kind(), io::ErrorKind::Interrupted) => Ok(Received::Bytes { count: 0, drained: false }),
        Err(e) => Err(e),
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::os::unix::net::UnixStream;
    use std::sync::Arc;
    use std::time::SystemTime;

    use proptest::prelude::*;
    use rustls::{ClientConnection, ServerConnection};
    use rustls_pki_types::ServerName;

    use super::*;
    use crate::tls::{Authority, Folder, Holder, Keyring, LINK_PROTOCOL};
    use crate::units::ClusterId;

    /// Both ends of a TLS connection between two nodes, after the handshake.
    pub(in crate::dataplane) fn tls_pair() -> (Connection, Connection) {
        let dir = tempfile::tempdir().expect("a folder");
        let (folder, authority) = (Folder::new(dir.path()), Authority::create("c", 10).expect("made"));
        folder.write_authority(&authority).expect("written");
        folder.write_secrets(&[Folder::fresh_secret().expect("random")]).expect("written");
        let keys = ["a", "b"].map(|name| {
            let holder = Holder::node(ClusterId(1), name);
            let issued = authority.issue(&holder, &[], SystemTime::now(), 10).expect("issued");
            folder.write_issued(name, &issued).expect("written");
            Keyring::open(dir.path(), holder).expect("good").now()
        });
        let name = ServerName::try_from("node").expect("a name");
        let dialler = ClientConnection::new(keys[0].dialler("b", LINK_PROTOCOL).expect("good"), name).expect("starts");
        let acceptor = ServerConnection::new(keys[1].acceptor()).expect("starts");
        shake(dialler.into(), acceptor.into())
    }

    fn shake(mut dialler: Connection, mut acceptor: Connection) -> (Connection, Connection) {
        while dialler.is_handshaking() || acceptor.is_handshaking() {
            pass(&mut dialler, &mut acceptor);
            pass(&mut acceptor, &mut dialler);
        }
        (dialler, acceptor)
    }

    fn pass(from: &mut Connection, to: &mut Connection) {
        let mut bytes = Vec::new();
        while from.wants_write() {
            from.write_tls(&mut bytes).expect("memory");
        }
        let mut rest = &bytes[..];
        while !rest.is_empty() {
            to.read_tls(&mut rest).expect("memory");
            to.process_new_packets().expect("they agree");
        }
    }

    fn lines((one, other): (Connection, Connection), receive: usize) -> (Line, Line) {
        let (near, far) = UnixStream::pair().expect("a pair");
        let line = |stream: UnixStream, connection| {
            stream.set_nonblocking(true).expect("set");
            Line::new(Negotiated { socket: stream.into(), tls: Some(Box::new(connection)) }, receive)
        };
        (line(near, one), line(far, other))
    }

    /// Reads what is there into two parts of memory.
    fn read(line: &mut Line, first: usize, second: usize, into: &mut Vec<u8>) -> Received {
        let (mut a, mut b) = (vec![0; first], vec![0; second]);
        let got = line.read(&mut [IoSliceMut::new(&mut a), IoSliceMut::new(&mut b)]).expect("whole");
        if let Received::Bytes { count, .. } = got {
            into.extend_from_slice(&[a, b].concat()[..count]);
        }
        got
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]
        /// Whatever the sizes of writes, reads and of what the socket gives at once: all bytes arrive, in order, and then the end.
        #[test]
        fn bytes_arrive_in_order_whatever_the_sizes(
            writes in proptest::collection::vec((0usize..40_000, 0usize..40_000), 1..12),
            reads in proptest::collection::vec((1usize..9000, 0usize..90_000), 1..8),
            receive in 100usize..70_000,
        ) {
            let (mut near, mut far) = lines(tls_pair(), receive);
            let (mut sent, mut got) = (Vec::new(), Vec::new());
            let mut reads = reads.into_iter().cycle();
            for (i, (a, b)) in writes.into_iter().enumerate() {
                let part = |salt: usize, len: usize| -> Vec<u8> {
                    (0..len).map(|at| u8::try_from((at * 7 + i * 31 + salt) % 251).expect("small")).collect()
                };
                let bytes = [part(0, a), part(1, b)].concat();
                let mut rest = &bytes[..];
                while !rest.is_empty() {
                    let (front, back) = rest.split_at(a.min(rest.len()));
                    match near.write(&[IoSlice::new(front), IoSlice::new(back)]) {
                        Ok(count) => rest = &rest[count..],
                        Err(error) => prop_assert_eq!(error.kind(), io::ErrorKind::WouldBlock),
                    }
                    let (first, second) = reads.next().expect("endless");
                    read(&mut far, first, second, &mut got);
                }
                sent.extend_from_slice(&bytes);
            }
            near.say_goodbye();
            loop {
                match near.flush() {
                    Err(error) => prop_assert_eq!(error.kind(), io::ErrorKind::WouldBlock),
                    Ok(()) => prop_assert!(near.is_flushed()),
                }
                let (first, second) = reads.next().expect("endless");
                if read(&mut far, first, second, &mut got) == Received::End {
                    break;
                }
            }
            prop_assert_eq!(got.len(), sent.len());
            prop_assert!(got == sent);
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]
        /// Whatever is done on the way to what was sealed, nothing comes out but a beginning of what was sent, and it comes to an end.
        #[test]
        fn nothing_but_a_beginning_of_what_was_sent_comes_out(
            sizes in proptest::collection::vec(0usize..3000, 1..6),
            damages in proptest::collection::vec((any::<prop::sample::Index>(), 0u8..6, any::<[u8; 8]>()), 0..4),
            receive in 100usize..5000,
            first in 1usize..500,
            second in 0usize..500,
        ) {
            let (mut dialler, acceptor) = tls_pair();
            let (mut sent, mut sealed) = (Vec::new(), Vec::new());
            for (i, size) in sizes.into_iter().enumerate() {
                let bytes: Vec<u8> = (0..size).map(|at| u8::try_from((at + 7 * i) % 251).expect("small")).collect();
                dialler.writer().write_all(&bytes).expect("room");
                sent.extend(bytes);
            }
            dialler.send_close_notify();
            while dialler.wants_write() {
                dialler.write_tls(&mut sealed).expect("memory");
            }
            let whole = sealed.clone();
            for (at, what, bytes) in damages {
                let at = at.index(sealed.len());
                match what {
                    0 => sealed[at] ^= bytes[0] | 1,
                    1 => drop(sealed.splice(at..at, bytes)),
                    2 => drop(sealed.drain(at..(at + 1 + usize::from(bytes[0])).min(sealed.len()))),
                    3 => sealed.extend_from_within(at..),
                    // Records in the clear, where only sealed ones are to come: data, and an end that nobody has signed.
                    4 => drop(sealed.splice(0..0, [&[23, 3, 3, 0, 8][..], &bytes].concat())),
                    _ => drop(sealed.splice(0..0, [21, 3, 3, 0, 2, 1, 0])),
                }
                if sealed.is_empty() {
                    sealed = bytes.to_vec();
                }
            }
            // A socket has room for it.
            sealed.truncate(60_000);
            let (mut near, far) = UnixStream::pair().expect("a pair");
            far.set_nonblocking(true).expect("set");
            let mut line = Line::new(Negotiated { socket: far.into(), tls: Some(Box::new(acceptor)) }, receive);
            near.write_all(&sealed).expect("connected");
            drop(near);
            let mut got = Vec::new();
            let mut ended = None;
            for _ in 0..sealed.len() + 10 {
                let (mut a, mut b) = (vec![0; first], vec![0; second]);
                match line.read(&mut [IoSliceMut::new(&mut a), IoSliceMut::new(&mut b)]) {
                    Ok(Received::Bytes { count, .. }) => got.extend_from_slice(&[a, b].concat()[..count]),
                    Ok(Received::Nothing | Received::NoMemory) => {}
                    Ok(Received::End) => ended = Some(true),
                    Err(_) => ended = Some(false),
                }
                if ended.is_some() {
                    break;
                }
            }
            prop_assert!(ended.is_some(), "it goes on for ever");
            prop_assert!(sent.starts_with(&got));
            if sealed == whole {
                prop_assert!(ended == Some(true) && got == sent);
            }
        }
    }

    #[test]
    fn a_changed_byte_ends_the_connection() {
        let (mut dialler, acceptor) = tls_pair();
        let (mut near, far) = UnixStream::pair().expect("a pair");
        far.set_nonblocking(true).expect("set");
        let mut line = Line::new(Negotiated { socket: far.into(), tls: Some(Box::new(acceptor)) }, 4096);
        dialler.writer().write_all(b"a frame").expect("room");
        let mut bytes = Vec::new();
        dialler.write_tls(&mut bytes).expect("memory");
        let last = bytes.len() - 1;
        bytes[last] ^= 1;
        near.write_all(&bytes).expect("room");
        let mut memory = [0; 100];
        let error = line.read(&mut [IoSliceMut::new(&mut memory)]).expect_err("damaged");
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
    }

    /// A suite may be used for so many records only; long before a real one's end is reached, keys are changed while data flows.
    #[test]
    fn keys_are_changed_when_a_suite_wants_it() {
        use rustls::crypto::ring::{cipher_suite::TLS13_AES_128_GCM_SHA256, default_provider};
        let rustls::SupportedCipherSuite::Tls13(original) = TLS13_AES_128_GCM_SHA256 else {
            unreachable!("it is named so");
        };
        let common = rustls::crypto::CipherSuiteCommon { confidentiality_limit: 50, ..suite_common(&original.common) };
        let short: &'static _ = Box::leak(Box::new(rustls::Tls13CipherSuite { common, ..*original }));
        let provider = rustls::crypto::CryptoProvider {
            cipher_suites: vec![rustls::SupportedCipherSuite::Tls13(short)],
            ..default_provider()
        };
        let authority = Authority::create("c", 10).expect("made");
        let issued = authority.issue(&Holder::node(ClusterId(1), "b"), &["b".to_owned()], SystemTime::now(), 5);
        let issued = issued.expect("issued");
        use rustls_pki_types::pem::PemObject;
        use rustls_pki_types::{CertificateDer, PrivateKeyDer};
        let mut roots = rustls::RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(authority.certificate().as_bytes()).expect("PEM")).expect("a root");
        let chain = vec![CertificateDer::from_pem_slice(issued.certificate.as_bytes()).expect("PEM")];
        let key = PrivateKeyDer::from_pem_slice(issued.key.as_bytes()).expect("PEM");
        let provider = Arc::new(provider);
        let server = rustls::ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_protocol_versions(&[&rustls::version::TLS13])
            .expect("1.3")
            .with_no_client_auth()
            .with_single_cert(chain, key)
            .expect("a pair");
        let client = rustls::ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .expect("1.3")
            .with_root_certificates(roots)
            .with_no_client_auth();
        let name = ServerName::try_from("b").expect("a name");
        let dialler = ClientConnection::new(Arc::new(client), name).expect("starts");
        let pair = shake(dialler.into(), ServerConnection::new(Arc::new(server)).expect("starts").into());
        let (mut near, mut far) = lines(pair, 5000);
        for round in 0..400u32 {
            let body = vec![u8::try_from(round % 251).expect("small"); 20_000];
            for (from, to) in [(0, 1), (1, 0)] {
                let ends = [&mut near, &mut far];
                let mut rest = &body[..];
                let mut got = Vec::new();
                while got.len() < body.len() {
                    if !rest.is_empty() {
                        let taken = ends[from].write(&[IoSlice::new(rest)]).expect("goes on");
                        rest = &rest[taken..];
                    }
                    read(ends[to], 8192, 8192, &mut got);
                }
                assert!(got == body, "round {round}");
            }
        }
    }

    fn suite_common(common: &rustls::crypto::CipherSuiteCommon) -> rustls::crypto::CipherSuiteCommon {
        rustls::crypto::CipherSuiteCommon {
            suite: common.suite,
            hash_provider: common.hash_provider,
            confidentiality_limit: common.confidentiality_limit,
        }
    }
}
