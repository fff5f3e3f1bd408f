//! Clients that follow the volume, at the edge of two generations.

use std::io::{Read, Write};
use std::sync::atomic::Ordering;

use super::mailbox::ClientManners;
use super::pool::PoolSizes;
use super::shell_tests::{Node, request};
use crate::units::GenerationId;

#[test]
fn who_follows_is_told_nothing_under_a_generation_it_does_not_know() {
    let mut node = Node::new(PoolSizes::default());
    node.seen.generation.store(5, Ordering::SeqCst);
    let mut ordinary = node.client(1, ClientManners::default());
    let mut follower = node.client(2, ClientManners { follows: Some(GenerationId(5)), ..ClientManners::default() });
    let mut reply = [0; 16];
    follower.write_all(&request(3, 0, 7, 0, 0)).expect("sent");
    follower.read_exact(&mut reply).expect("answered under the generation it knows");
    // Its next answer is ready when the generation has changed.
    node.seen.frozen.store(true, Ordering::SeqCst);
    follower.write_all(&request(3, 0, 8, 0, 0)).expect("sent");
    node.wait_requests(2);
    node.seen.generation.store(6, Ordering::SeqCst);
    node.seen.frozen.store(false, Ordering::SeqCst);
    ordinary.write_all(&request(3, 0, 9, 0, 0)).expect("sent");
    ordinary.read_exact(&mut reply).expect("others go on");
    assert_eq!(follower.read(&mut reply).expect("the end"), 0, "nothing more is said");
    assert!(node.wait_gone(2).contains("generation is another"));
    node.stop();
}
