//! How much of the pool one client may hold by what it does not send and does not read.
//!
//! Such memory comes back only when the client moves, which it need not do. So the sum of what all clients can hold must leave
//! room, whoever they are and in whatever order they come; then no client ever waits for another one, and nobody needs to be
//! put out for being slow.
//!
//! A client that begins to hold memory gets an eighth of the area, divided by the number of those that hold any, itself
//! included. Of those that hold memory at some moment, the k-th that began counted at least k. With the largest number of
//! clients that the daemon admits (256), all together hold at most 1/8 · (1 + 1/2 + … + 1/256) < 0.77 of the area, each as much
//! as it was ever given. The rest serves everybody else: it is held only by what the machine works on, and that comes back by itself.

use super::pool::{Area, Pool};
use super::receiver::CHUNK_LEN;

/// Part of an area that all who hold memory divide.
const DIVIDED: usize = 8;
/// Least share in bytes: a block.
const SHARE_MIN: usize = 4096;

/// What one client may hold, in bytes, each a power of two.
#[derive(Clone, Copy, Debug)]
pub(super) struct Share {
    /// Of what it sends: one chunk of this length that is arriving, and one that came and cannot be used yet.
    pub(super) receive: usize,
    /// Of what it is to read: outstanding reads, and replies that are not sent.
    pub(super) unread: usize,
}

/// How many clients hold memory, in one turn.
#[derive(Clone, Copy, Default, Debug)]
pub(super) struct Holders {
    /// By what they send.
    pub(super) receiving: usize,
    /// By what they do not read.
    pub(super) unread: usize,
}

impl Share {
    /// The share of a client that is one of these.
    pub(super) fn among(holders: Holders, pool: &Pool) -> Self {
        let part = |area, holders: usize| pool.area_len(area) / DIVIDED / holders.max(1);
        let floor = |len: usize| 1 << len.max(SHARE_MIN).ilog2();
        Self {
            receive: floor((part(Area::Clients, holders.receiving) / 2).min(CHUNK_LEN)),
            unread: floor(part(Area::Reads, holders.unread)),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::dataplane::pool::PoolSizes;

    /// As the daemon admits.
    const CLIENTS_MAX: usize = 256;

    proptest! {
        /// In whatever order clients begin to hold memory and let go of it, a quarter of each area is left. Each keeps the
        /// largest share it was ever given, and twice what it receives: a chunk that arrives and one that has come.
        #[test]
        fn clients_together_never_hold_all(steps in prop::collection::vec(any::<(bool, prop::sample::Index)>(), 0..2000)) {
            let pool = Pool::new(PoolSizes::default()).expect("mapped");
            let mut held: Vec<Share> = Vec::new();
            for (come, pick) in steps {
                if come && held.len() < CLIENTS_MAX {
                    let count = held.len() + 1;
                    held.push(Share::among(Holders { receiving: count, unread: count }, &pool));
                } else if !held.is_empty() {
                    held.swap_remove(pick.index(held.len()));
                }
                let receiving: usize = held.iter().map(|share| 2 * share.receive).sum();
                let unread: usize = held.iter().map(|share| share.unread).sum();
                prop_assert!(receiving <= pool.area_len(Area::Clients) / 4 * 3, "{receiving} of what they send");
                prop_assert!(unread <= pool.area_len(Area::Reads) / 4 * 3, "{unread} of what they read");
            }
        }
    }

    #[test]
    fn the_worst_order_of_the_most_clients_leaves_a_quarter() {
        let pool = Pool::new(PoolSizes::default()).expect("mapped");
        let share = |n| Share::among(Holders { receiving: n, unread: n }, &pool);
        let total = |of: fn(Share) -> usize| (1..=CLIENTS_MAX).map(|n| of(share(n))).sum::<usize>();
        assert!(total(|share| 2 * share.receive) <= pool.area_len(Area::Clients) / 4 * 3);
        assert!(total(|share| share.unread) <= pool.area_len(Area::Reads) / 4 * 3);
        assert_eq!((share(1).receive, share(1).unread), (256 << 10, 2 << 20), "one client alone");
        assert_eq!((share(CLIENTS_MAX).receive, share(CLIENTS_MAX).unread), (8 << 10, 8 << 10));
    }
}
