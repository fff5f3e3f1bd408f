//! Where connections wait that have not said yet what they want, or do not take what they were told.
//!
//! Its seats are few, and who comes to a full lobby takes the seat of whoever has sat longest. So any number of silent strangers
//! never keep anybody out: an honest client leaves its seat within milliseconds. Over the network the seat that is taken is one of the address
//! that has most of them: an address that opens many connections puts out its own.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::oneshot;

use super::admission::Source;

/// A lobby.
#[derive(Debug)]
pub(crate) struct Lobby {
    seats_max: usize,
    seats: Mutex<Seats>,
}

#[derive(Debug, Default)]
struct Seats {
    next: u64,
    taken: BTreeMap<u64, Guest>,
}

#[derive(Debug)]
struct Guest {
    /// None: of this host.
    source: Option<Source>,
    /// Dropping it puts the guest out.
    _put_out: oneshot::Sender<()>,
}

impl Lobby {
    /// A lobby with so many seats, at least one.
    pub(crate) fn new(seats_max: usize) -> Self {
        Self { seats_max, seats: Mutex::default() }
    }

    /// Does something that depends on the will of a guest of this host. `None` when the guest was put out meanwhile.
    pub(crate) async fn seat<T>(self: &Arc<Self>, what: impl Future<Output = T>) -> Option<T> {
        self.seat_from(None, what).await
    }

    /// The same for a guest from `source`, none: of this host.
    pub(super) async fn seat_from<T>(
        self: &Arc<Self>,
        source: Option<Source>,
        what: impl Future<Output = T>,
    ) -> Option<T> {
        let mut seat = self.sit(source);
        tokio::select! {
            biased;
            done = what => Some(done),
            _ = &mut seat.put_out => None,
        }
    }

    #[cfg(test)]
    pub(super) fn is_empty(&self) -> bool {
        self.seats.lock().unwrap_or_else(PoisonError::into_inner).taken.is_empty()
    }

    fn sit(self: &Arc<Self>, source: Option<Source>) -> Seat {
        let (sender, put_out) = oneshot::channel();
        let mut seats = self.seats.lock().unwrap_or_else(PoisonError::into_inner);
        if seats.taken.len() >= self.seats_max {
            let leaving = seats.who_makes_room();
            seats.taken.remove(&leaving);
        }
        let number = seats.next;
        seats.next += 1;
        seats.taken.insert(number, Guest { source, _put_out: sender });
        Seat { lobby: Arc::clone(self), number, put_out }
    }
}

impl Seats {
    /// The oldest guest of the source that has most seats; where no source has two, the oldest of all.
    fn who_makes_room(&self) -> u64 {
        let mut sources: BTreeMap<Source, (usize, u64)> = BTreeMap::new();
        for (&number, guest) in &self.taken {
            let Some(source) = guest.source else { continue };
            sources.entry(source).or_insert((0, number)).0 += 1;
        }
        let crowd =
            sources.into_values().filter(|(count, _)| *count > 1).max_by_key(|&(count, oldest)| (count, !oldest));
        crowd.map(|(_, oldest)| oldest).or_else(|| self.taken.keys().next().copied()).unwrap_or_default()
    }
}

/// A seat in use.
struct Seat {
    lobby: Arc<Lobby>,
    number: u64,
    put_out: oneshot::Receiver<()>,
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.lobby.seats.lock().unwrap_or_else(PoisonError::into_inner).taken.remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_address_with_many_seats_puts_out_its_own() {
        let lobby = Arc::new(Lobby::new(4));
        let waiting = |end: Option<u8>| {
            let (lobby, source) = (Arc::clone(&lobby), end.map(|end| Source::of([10, 0, 0, end].into())));
            tokio::spawn(async move { lobby.seat_from(source, std::future::pending::<()>()).await })
        };
        // Of this host, a stranger, and two of a crowd.
        let guests = [None, Some(1), Some(2), Some(2)].map(waiting);
        tokio::task::yield_now().await;
        let more = [Some(2), Some(3)].map(waiting);
        for _ in 0..3 {
            tokio::task::yield_now().await;
        }
        assert_eq!(guests.each_ref().map(tokio::task::JoinHandle::is_finished), [false, false, true, true]);
        // Nobody has two seats any more: the oldest goes.
        let last = waiting(Some(4));
        for _ in 0..3 {
            tokio::task::yield_now().await;
        }
        assert!(guests[0].is_finished() && !guests[1].is_finished());
        let [_, stranger, _, _] = guests;
        for guest in more.into_iter().chain([stranger, last]) {
            assert!(!guest.is_finished());
            guest.abort();
        }
    }

    #[tokio::test]
    async fn the_oldest_guest_makes_room_and_who_left_counts_no_more() {
        let lobby = Arc::new(Lobby::new(2));
        let waiting = || {
            let lobby = Arc::clone(&lobby);
            tokio::spawn(async move { lobby.seat(std::future::pending::<()>()).await })
        };
        let (first, second) = (waiting(), waiting());
        tokio::task::yield_now().await;
        assert_eq!(lobby.seat(async { 7 }).await, Some(7), "a newcomer is served");
        assert_eq!(first.await.expect("ends"), None, "the oldest was put out");
        assert_eq!(lobby.seat(async { 8 }).await, Some(8));
        tokio::task::yield_now().await;
        assert!(!second.is_finished(), "there was room for both");
        second.abort();
        assert!(second.await.is_err());
        assert!(lobby.is_empty());
    }
}
