//! Two threads and a link between them, in the clear and with TLS.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;

use rustls::Connection;

use super::line::Negotiated;
use super::line::tests::tls_pair;
use super::mailbox::{ClientManners, Letter};
use super::pool::PoolSizes;
use super::shell_tests::{Node, link, pattern, request, simple, state, tcp_pair};
use crate::units::{ConnectionId, SessionId, Term};
use crate::wire::Message;
use crate::wire::frame::FrameWriter;

/// Two nodes with a link between them.
fn pair(tls: bool) -> (Node, Node) {
    let (a, b) = (Node::new(PoolSizes::default()), Node::new(PoolSizes::default()));
    let (near, far) = tcp_pair();
    let (one, other) = if tls {
        let (one, other) = tls_pair();
        (Some(Box::new(one)), Some(Box::new(other)))
    } else {
        (None, None)
    };
    link(&a, 3, Negotiated { socket: near, tls: one });
    link(&b, 3, Negotiated { socket: OwnedFd::from(far), tls: other });
    (a, b)
}

/// What is acknowledged is on both disks, whatever its size.
#[test]
fn writes_are_mirrored_over_a_link() {
    for tls in [false, true] {
        let (mut a, mut b) = pair(tls);
        assert_eq!(state(&mut a).clients, 0);
        let mut stream = a.client(1, ClientManners::default());
        let mut model = vec![0u8; 40 << 20];
        for (i, size) in [4096, 100, 70_000, 4096, 1 << 20, 4096, 32 << 20, 512, 200_000].into_iter().enumerate() {
            let at = i * 700_001;
            let data = pattern(i, size);
            stream.write_all(&request(1, 0, i as u64, at as u64, u32::try_from(size).expect("small"))).expect("sent");
            stream.write_all(&data).expect("sent");
            assert_eq!(simple(&mut stream), (i as u64, 0));
            model[at..at + size].copy_from_slice(&data);
        }
        let counters = state(&mut a).counters;
        // Large ones go in pieces, as they arrive; they are nine writes all the same.
        assert_eq!(counters.writes, 9);
        assert!(counters.frames_sent > 7 + (32 << 20) / (256 << 10), "{} frames", counters.frames_sent);
        assert_eq!(state(&mut b).counters.frames_received, counters.frames_sent);
        for node in [a, b] {
            let file = node.stop();
            let disk = std::fs::read(file.path()).expect("readable");
            assert!(disk[..model.len()] == model, "tls {tls}");
        }
    }
}

/// What of the link an eavesdropper sees is neither the data nor the frames around it.
#[test]
fn nothing_of_a_write_is_on_the_wire_in_the_clear() {
    let a = Node::new(PoolSizes::default());
    let (near, mut far) = tcp_pair();
    let (one, _other) = tls_pair();
    link(&a, 3, Negotiated { socket: near, tls: Some(Box::new(one)) });
    let mut stream = a.client(1, ClientManners::default());
    stream.write_all(&request(1, 0, 1, 0, 4096)).expect("sent");
    stream.write_all(&[0x5a; 4096]).expect("sent");
    let mut seen = vec![0; 4096 + 72];
    far.read_exact(&mut seen).expect("a frame and more");
    assert_eq!(&seen[..3], [23, 3, 3], "a record of TLS");
    assert!(!seen.windows(8).any(|bytes| bytes == [0x5a; 8] || bytes.starts_with(b"RBF1")));
    a.stop();
}

/// What had come with the last message of the handshake is not lost, and needs no further byte to be noticed.
#[test]
fn a_frame_that_came_with_the_handshake_is_heard() {
    let mut node = Node::new(PoolSizes::default());
    let (near, _far) = tcp_pair();
    let (mut one, mut other) = tls_pair();
    let (mut writer, mut bytes) = (FrameWriter::new(ConnectionId(3)), Vec::new());
    writer.encode(Term(1), &Message::Pong, &[], &mut bytes);
    carry(&mut other, &bytes, &mut one);
    link(&node, 3, Negotiated { socket: near, tls: Some(Box::new(one)) });
    while state(&mut node).counters.frames_received == 0 {}
    node.stop();
}

/// A client with TLS is served as any other; its requests and the replies pass the same memory.
#[test]
fn a_client_with_tls_is_served() {
    let mut node = Node::new(PoolSizes::default());
    let (near, far) = UnixStream::pair().expect("a pair");
    let (one, other) = tls_pair();
    let line = Negotiated { socket: near.into(), tls: Some(Box::new(one)) };
    let (manners, from) = (ClientManners::default(), "test".to_owned());
    let letter = Letter::AdoptClient { session: SessionId(7), line, manners, leftover: Vec::new(), from };
    node.mailbox.post(letter).expect("taken");
    let Connection::Server(other) = other else { panic!("the acceptor's end") };
    let mut stream = rustls::StreamOwned::new(other, far);
    let data = pattern(3, 3 << 20);
    stream.write_all(&request(1, 0, 1, 4096, 3 << 20)).expect("sent");
    stream.write_all(&data).expect("sent");
    let mut reply = [0; 16];
    stream.read_exact(&mut reply).expect("a reply");
    stream.write_all(&request(0, 0, 2, 4096, 3 << 20)).expect("sent");
    let mut back = vec![0; 16 + (3 << 20)];
    stream.read_exact(&mut back).expect("a reply");
    assert!(back[16..] == data);
    stream.sock.shutdown(Shutdown::Both).expect("open");
    assert!(node.wait_gone(7).contains("closed the connection"));
    node.stop();
}

/// Encrypts `bytes` on one side and has the other receive them, but not read.
fn carry(from: &mut Connection, bytes: &[u8], to: &mut Connection) {
    from.writer().write_all(bytes).expect("room");
    let mut records = Vec::new();
    from.write_tls(&mut records).expect("memory");
    let mut rest = &records[..];
    while !rest.is_empty() {
        to.read_tls(&mut rest).expect("memory");
        to.process_new_packets().expect("genuine");
    }
}
