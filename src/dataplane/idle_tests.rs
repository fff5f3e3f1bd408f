//! Clients that ask for nothing, where an operator wants them ended.

use std::io::{Read, Write};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::mailbox::ClientManners;
use super::pool::PoolSizes;
use super::shell_tests::{Node, request, simple};

#[test]
fn who_asks_for_nothing_is_ended_and_who_waits_for_an_answer_is_not() {
    let limit = Duration::from_millis(200);
    let mut node = Node::with_idle_limit(PoolSizes::default(), limit);
    let began = Instant::now();
    let mut waiting = node.client(1, ClientManners::default());
    node.seen.frozen.store(true, Ordering::SeqCst);
    waiting.write_all(&request(3, 0, 7, 0, 0)).expect("sent");
    node.wait_requests(1);
    // Half a request is owed; that is slow, and not idle.
    let mut slow = node.client(2, ClientManners::default());
    slow.write_all(&request(1, 0, 8, 0, 512)).expect("sent");
    slow.write_all(&[1; 100]).expect("sent");
    let mut idle = node.client(3, ClientManners::default());
    let why = node.wait_gone(3);
    assert!(why.contains("asked for nothing") && why.contains("client_idle_s"), "{why}");
    assert!(began.elapsed() >= limit, "not before its time: {:?}", began.elapsed());
    assert_eq!(idle.read(&mut [0; 1]).expect("the end"), 0);
    node.seen.frozen.store(false, Ordering::SeqCst);
    slow.write_all(&[1; 412]).expect("it is served still");
    assert_eq!(simple(&mut slow), (8, 0));
    assert_eq!(simple(&mut waiting), (7, 0));
    node.wait_gone(1);
    node.stop();
}
