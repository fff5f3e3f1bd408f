//! Replies at the end of a lease: held, never an error, and gone with the role.

use std::io::{ErrorKind, Read, Write};

use super::mailbox::{ClientManners, Letter};
use super::pool::PoolSizes;
use super::shell_tests::{Node, request, simple, state};
use super::sys;
use crate::units::{Moment, Ticket};
use crate::volume::io::Command;

/// Waits until the machine has answered `reads` reads and the turn in which it did is over.
fn answered(node: &mut Node, reads: u64) {
    while state(node).counters.reads < reads {}
    state(node);
}

fn hears_nothing(stream: &mut std::os::unix::net::UnixStream) {
    stream.set_nonblocking(true).expect("set");
    let heard = stream.read(&mut [0; 1]).expect_err("nothing is said");
    assert_eq!(heard.kind(), ErrorKind::WouldBlock);
    stream.set_nonblocking(false).expect("set");
}

#[test]
fn without_a_lease_replies_are_held_and_with_a_new_one_they_go_out() {
    let mut node = Node::new(PoolSizes::default());
    let mut stream = node.client(1, ClientManners::default());
    node.mailbox.set_lease(sys::now());
    stream.write_all(&request(0, 0, 7, 0, 512)).expect("sent");
    answered(&mut node, 1);
    hears_nothing(&mut stream);
    node.mailbox.set_lease(Moment(u64::MAX - 1));
    assert_eq!(simple(&mut stream), (7, 0), "it was held, and is no error");
    stream.read_exact(&mut [0; 512]).expect("the data");
    node.stop();
}

#[test]
fn what_was_held_is_gone_when_the_role_is() {
    let mut node = Node::new(PoolSizes::default());
    let mut stream = node.client(1, ClientManners::default());
    node.mailbox.set_lease(sys::now());
    stream.write_all(&request(0, 0, 7, 0, 512)).expect("sent");
    answered(&mut node, 1);
    let command = Command::Demote { disconnect_clients: true };
    node.mailbox.post(Letter::Command { ticket: Ticket(5), command }).expect("taken");
    node.wait_gone(1);
    node.mailbox.set_lease(Moment(u64::MAX));
    let mut rest = Vec::new();
    stream.read_to_end(&mut rest).expect("closed");
    assert!(rest.is_empty(), "nothing is said");
    node.stop();
}
