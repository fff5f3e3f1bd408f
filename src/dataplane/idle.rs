//! Ends clients that have asked for nothing for long, where an operator wants that.
//!
//! By default nobody does: a database at night asks for nothing, and a socket that nobody uses costs a place and no more. A client is idle
//! when it owes no part of a request, nothing is under way for it, and it has taken its replies: one that is slow is not idle.

use std::time::Duration;

use super::shell::{Machine, Shell};
use crate::units::Moment;

/// Looks in the time after which a client is ended. So it is ended after that time at least, and a quarter of it later at most.
const LOOKS: u32 = 8;

/// When clients are looked at next.
#[derive(Debug, Default)]
pub(super) struct IdleWatch {
    limit: Option<Duration>,
    next: Moment,
}

impl IdleWatch {
    /// Ends clients that are idle for `limit`; none: never.
    pub(super) fn new(limit: Option<Duration>) -> Self {
        Self { limit, next: Moment::default() }
    }

    /// When there is something to look at.
    pub(super) fn deadline(&self) -> Option<Moment> {
        self.limit.map(|_| self.next)
    }
}

impl<M: Machine> Shell<M> {
    /// Ends the clients that are idle, if it is time to look.
    pub(super) fn end_idle_clients(&mut self) {
        let Some(limit) = self.idle.limit.filter(|_| self.idle.next <= self.now) else { return };
        let interval = limit / LOOKS;
        self.idle.next = self.now.after(interval);
        for session in &mut self.sessions {
            if !session.is_idle() {
                session.busy_at = self.now;
            } else if self.now.since(session.busy_at) >= limit + interval {
                let why =
                    format!("it asked for nothing for {} s, which is `client_idle_s` in [limits]", limit.as_secs());
                self.doomed.push((session.id, why));
            }
        }
    }
}
