//! What happens, as `repblk events` tells it, and how it reaches those who listen.
//!
//! A listener that does not keep up loses events and is told how many; nobody waits for it.

use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};
use tokio::sync::broadcast;

use super::status::{SCHEMA, VolumeStatus};

/// Events kept for a listener that is behind.
const KEPT: usize = 512;

/// One line of `repblk events --json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Event {
    /// Version of this format.
    pub schema: u32,
    /// Milliseconds since 1970, by this host's clock.
    pub time_ms: u64,
    /// The node that tells it.
    pub node: String,
    /// The volume; empty for what concerns the listener itself.
    pub volume: String,
    /// What happened.
    #[serde(flatten)]
    pub what: Happening,
}

/// What happened.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Happening {
    /// How things are when listening begins.
    Exists {
        /// The volume.
        status: Box<VolumeStatus>,
    },
    /// The initial dump is over; from here on, changes.
    ExistsEnd,
    /// A state changed.
    Changed {
        /// Which.
        what: String,
        /// Before.
        old: String,
        /// After.
        new: String,
        /// Because.
        why: String,
    },
    /// A resync began.
    ResyncStarted(ResyncEvent),
    /// A resync goes on.
    ResyncProgress(ResyncEvent),
    /// A resync is over.
    ResyncFinished(ResyncEvent),
    /// Both copies hold acknowledged writes that the other lacks.
    SplitBrain {
        /// The peer.
        peer: String,
        /// What each side has.
        detail: String,
    },
    /// Something an operator should read.
    Note {
        /// The sentence.
        text: String,
        /// It is a problem.
        warning: bool,
    },
    /// A client finished its negotiation.
    ClientConnected {
        /// Number of the connection.
        session: u64,
        /// Where it comes from.
        from: String,
    },
    /// A client is gone.
    ClientGone {
        /// Number of the connection.
        session: u64,
        /// Why.
        why: String,
    },
    /// A data link was established.
    LinkUp {
        /// The peer.
        peer: String,
    },
    /// A data link ended.
    LinkDown {
        /// The peer.
        peer: String,
        /// Why.
        why: String,
    },
    /// The listener was too slow and missed events.
    Lost {
        /// How many.
        events: u64,
    },
}

/// Progress of a resync.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ResyncEvent {
    /// The peer.
    pub peer: String,
    /// `source` or `target`: this node's part.
    pub part: String,
    /// Bytes copied.
    pub bytes: u64,
    /// Bytes to copy in all.
    pub bytes_total: u64,
    /// Since it began.
    pub duration_ms: u64,
}

/// Hands events to everybody who listens.
#[derive(Debug, Clone)]
pub(super) struct EventHub {
    node: String,
    sender: broadcast::Sender<Event>,
}

impl EventHub {
    pub(super) fn new(node: &str) -> Self {
        Self { node: node.to_owned(), sender: broadcast::Sender::new(KEPT) }
    }

    /// The event of now.
    pub(super) fn event(&self, volume: &str, what: Happening) -> Event {
        Event { schema: SCHEMA, time_ms: now_ms(), node: self.node.clone(), volume: volume.to_owned(), what }
    }

    pub(super) fn tell(&self, volume: &str, what: Happening) {
        // An error says that nobody listens.
        let _ = self.sender.send(self.event(volume, what));
    }

    pub(super) fn listen(&self) -> broadcast::Receiver<Event> {
        self.sender.subscribe()
    }
}

/// Milliseconds since 1970.
pub(super) fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_one_flat_object_and_comes_back() {
        let hub = EventHub::new("alpha");
        let resync =
            ResyncEvent { peer: "beta".into(), part: "source".into(), bytes: 7, bytes_total: 8, duration_ms: 9 };
        let event = hub.event("mes", Happening::ResyncFinished(resync));
        let value = serde_json::to_value(&event).expect("events are plain values");
        assert_eq!((&value["event"], &value["volume"]), (&"resync_finished".into(), &"mes".into()));
        assert_eq!((&value["bytes"], &value["duration_ms"], &value["schema"]), (&7.into(), &9.into(), &1.into()));
        assert_eq!(serde_json::from_value::<Event>(value).expect("comes back"), event);
    }

    #[tokio::test]
    async fn a_slow_listener_loses_events_and_holds_nobody_up() {
        let hub = EventHub::new("alpha");
        let mut slow = hub.listen();
        for _ in 0..KEPT + 10 {
            hub.tell("mes", Happening::ExistsEnd);
        }
        assert!(matches!(slow.recv().await, Err(broadcast::error::RecvError::Lagged(10))));
        assert!(slow.recv().await.is_ok());
    }
}
