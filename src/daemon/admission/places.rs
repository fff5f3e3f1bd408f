//! Clients that are served: on the node, and of one address.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::source::Source;

/// The places of a node.
#[derive(Debug)]
pub(in crate::daemon) struct Places {
    all_max: usize,
    source_max: usize,
    taken: Mutex<Taken>,
}

#[derive(Debug, Default)]
struct Taken {
    all: usize,
    by_source: BTreeMap<Source, usize>,
}

/// A place in use; given back when it is dropped.
#[derive(Debug)]
pub(in crate::daemon) struct Place {
    places: Arc<Places>,
    source: Option<Source>,
}

impl Places {
    /// So many for all, and so many of them for one address.
    pub(in crate::daemon) fn new(all_max: usize, source_max: usize) -> Arc<Self> {
        Arc::new(Self { all_max, source_max, taken: Mutex::default() })
    }

    fn taken(&self) -> MutexGuard<'_, Taken> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Why there is no place for a client from `source`, none for a Unix socket, if there is none.
    pub(in crate::daemon) fn why_full(&self, source: Option<Source>) -> Option<String> {
        self.why(&self.taken(), source)
    }

    fn why(&self, taken: &Taken, source: Option<Source>) -> Option<String> {
        if taken.all >= self.all_max {
            return Some(format!(
                "refused by the rule node-full: {} clients are connected to this node already, and it takes no more; end some of them, \
                 or raise `clients` in [limits]",
                taken.all
            ));
        }
        let source = source?;
        let count = taken.by_source.get(&source).copied().unwrap_or(0);
        (count >= self.source_max).then(|| {
            format!(
                "refused by the rule address-full: {count} clients from {source} are connected to this node already, and it takes no more \
                 of them; end some, or raise `clients_per_address` in [limits]"
            )
        })
    }

    /// A place for a client from `source`, none for a Unix socket.
    ///
    /// # Errors
    /// Why there is none.
    pub(in crate::daemon) fn take(self: &Arc<Self>, source: Option<Source>) -> Result<Place, String> {
        let mut taken = self.taken();
        if let Some(why) = self.why(&taken, source) {
            return Err(why);
        }
        taken.all += 1;
        if let Some(source) = source {
            *taken.by_source.entry(source).or_default() += 1;
        }
        drop(taken);
        Ok(Place { places: Arc::clone(self), source })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut taken = self.places.taken();
        taken.all -= 1;
        let Some(source) = self.source else { return };
        if let Some(count) = taken.by_source.get_mut(&source) {
            *count -= 1;
            if *count == 0 {
                taken.by_source.remove(&source);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use super::*;

    #[test]
    fn an_address_takes_its_part_and_no_more_and_gives_it_back() {
        let places = Places::new(5, 2);
        let [one, other] = [1u8, 2].map(|end| Some(Source::of(IpAddr::from([10, 0, 0, end]))));
        let first = places.take(one).expect("room");
        let second = places.take(one).expect("room");
        let why = places.take(one).expect_err("its part is taken");
        assert!(
            why.contains("by the rule address-full: 2 clients from 10.0.0.1 ") && why.contains("clients_per_address"),
            "{why}"
        );
        assert_eq!(places.why_full(one), Some(why));
        let third = places.take(other).expect("others have room");
        let local = [(); 2].map(|()| places.take(None).expect("a Unix socket has no address"));
        let why = places.take(None).expect_err("the node is full");
        assert!(why.contains("by the rule node-full: 5 clients ") && why.contains("`clients`"), "{why}");
        drop(first);
        let again = places.take(one).expect("a place was given back");
        drop((second, third, local, again));
        let taken = places.taken();
        assert!(taken.all == 0 && taken.by_source.is_empty(), "{taken:?}");
    }
}
