//! The body of a heartbeat. Where the nodes have no keys, anybody can make one.
//!
//! Input: the body as it is.

use super::notes::note;
use repblk::daemon::beat::Datagram;
use repblk::wire::hello::BODY_LEN_MAX;

pub fn run(data: &[u8]) {
    match Datagram::decode(data) {
        Some(datagram) => {
            assert!(data.len() <= BODY_LEN_MAX);
            assert_eq!(datagram.encode(), data, "one beat has one form");
            match &datagram {
                Datagram::Node(beat) => note((beat.views.len().min(9), beat.hears_you, beat.node.len().min(3))),
                Datagram::Failover { node, .. } => note(("failover", node.len().min(3))),
            }
        }
        None => note(("refused", data.len().min(3), data.first().copied().min(Some(2)))),
    }
}
