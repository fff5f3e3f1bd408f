//! The requests that are open, in the order they came.
//!
//! - A request is sent only when no earlier change that overlaps it is open. So no two changes of one block are ever under
//!   way at once, and sending everything again in any order comes to the same: a change that was carried out and
//!   not answered cannot be carried out again over a later one, and no reader sees a change that is taken back.
//! - A flush waits for nothing: it covers what was answered before it was sent.
//! - A request that was sent stays open until it is answered, also when its client has gone: until then it may still happen.

use std::collections::{BTreeMap, BTreeSet};

use super::Class;
use crate::units::ByteRange;

#[derive(Clone, Copy, Debug)]
pub(super) struct Open {
    pub(super) client: u64,
    pub(super) class: Class,
    pub(super) range: ByteRange,
    pub(super) fua: bool,
    /// On the present connection.
    pub(super) sent: bool,
    /// Nobody waits for the answer.
    pub(super) orphan: bool,
    /// Flushes: the changes that had been answered when it was sent.
    pub(super) covers: u64,
}

#[derive(Debug, Default)]
pub(super) struct Table {
    open: BTreeMap<u64, Open>,
    /// Those that have not been sent on the present connection.
    unsent: BTreeSet<u64>,
}

impl Table {
    pub(super) fn len(&self) -> usize {
        self.open.len()
    }

    /// Requests that have been sent on the present connection.
    pub(super) fn sent(&self) -> usize {
        self.open.len() - self.unsent.len()
    }

    pub(super) fn insert(&mut self, number: u64, open: Open) {
        self.unsent.insert(number);
        let before = self.open.insert(number, open);
        assert!(before.is_none(), "numbers are given once");
    }

    pub(super) fn remove(&mut self, number: u64) -> Option<Open> {
        self.unsent.remove(&number);
        self.open.remove(&number)
    }

    pub(super) fn is_sent(&self, number: u64) -> bool {
        self.open.get(&number).is_some_and(|open| open.sent)
    }

    /// The next request that may be sent, now noted as sent.
    pub(super) fn next(&mut self, answered_changes: u64) -> Option<u64> {
        let number = self.unsent.iter().copied().find(|&number| !self.is_held(number))?;
        self.unsent.remove(&number);
        let open = self.open.get_mut(&number).expect("what is unsent is open");
        open.sent = true;
        open.covers = answered_changes;
        Some(number)
    }

    /// True while an earlier change that overlaps is open.
    fn is_held(&self, number: u64) -> bool {
        let own = &self.open[&number];
        let holds = |earlier: &Open| earlier.class == Class::Change && earlier.range.overlaps(own.range);
        own.class != Class::Flush && self.open.range(..number).any(|(_, earlier)| holds(earlier))
    }

    /// The connection is gone: everything is to be sent again, but for what nobody waits for. Those are returned.
    pub(super) fn rewind(&mut self) -> Vec<u64> {
        let orphans: Vec<u64> = self.open.iter().filter(|(_, open)| open.orphan).map(|(&number, _)| number).collect();
        for number in &orphans {
            self.remove(*number);
        }
        for (number, open) in &mut self.open {
            open.sent = false;
            self.unsent.insert(*number);
        }
        orphans
    }

    /// A client has gone. The numbers of its requests that had not been sent and are dropped.
    pub(super) fn abandon(&mut self, client: u64) -> Vec<u64> {
        let theirs: Vec<u64> =
            self.open.iter().filter(|(_, open)| open.client == client).map(|(&number, _)| number).collect();
        let (sent, unsent): (Vec<u64>, Vec<u64>) = theirs.into_iter().partition(|&number| self.is_sent(number));
        for number in sent {
            self.open.get_mut(&number).expect("just found").orphan = true;
        }
        for number in &unsent {
            self.remove(*number);
        }
        unsent
    }

    /// Everything that is open, in order; nothing is open afterwards.
    pub(super) fn drain(&mut self) -> Vec<(u64, Open)> {
        self.unsent.clear();
        std::mem::take(&mut self.open).into_iter().collect()
    }
}
