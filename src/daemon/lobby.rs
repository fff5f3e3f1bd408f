//! Where connections wait that have not said yet what they want, or do not take what they were told.
//!
//! Its seats are few, and who comes to a full lobby takes the seat of whoever has sat longest. So any number of silent strangers
//! never keep anybody out: an honest client leaves its seat within milliseconds.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::oneshot;

/// A lobby.
#[derive(Debug)]
pub(super) struct Lobby {
    seats_max: usize,
    seats: Mutex<Seats>,
}

#[derive(Debug, Default)]
struct Seats {
    next: u64,
    /// Dropping a sender puts the guest out.
    taken: BTreeMap<u64, oneshot::Sender<()>>,
}

impl Lobby {
    /// A lobby with so many seats, at least one.
    pub(super) fn new(seats_max: usize) -> Self {
        Self { seats_max, seats: Mutex::default() }
    }

    /// Does something that depends on the guest's will. `None` when the guest was put out meanwhile.
    pub(super) async fn seat<T>(self: &Arc<Self>, what: impl Future<Output = T>) -> Option<T> {
        let mut seat = self.sit();
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

    fn sit(self: &Arc<Self>) -> Seat {
        let (sender, put_out) = oneshot::channel();
        let mut seats = self.seats.lock().unwrap_or_else(PoisonError::into_inner);
        if seats.taken.len() >= self.seats_max {
            seats.taken.pop_first();
        }
        let number = seats.next;
        seats.next += 1;
        seats.taken.insert(number, sender);
        Seat { lobby: Arc::clone(self), number, put_out }
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
