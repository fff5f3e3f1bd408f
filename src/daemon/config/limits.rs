//! The table `[limits]`: what anybody can cost others.

use std::time::Duration;

use super::reader::Section;
use crate::daemon::admission::Rate;

/// Most clients that a node can serve at one time: the data plane's shares of memory are reckoned for as many.
pub const CLIENTS_MAX: usize = 256;

/// What anybody can cost others.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// NBD clients that a node serves at one time.
    pub clients: usize,
    /// The same from one address, over TCP.
    pub clients_per_address: usize,
    /// New connections that one address may open in a second at one listener.
    pub connections_per_second: u32,
    /// The same at once, after a pause.
    pub connections_burst: u32,
    /// Longest time that an NBD client may take to agree on an export.
    pub negotiation: Duration,
    /// A client over TCP whose host has given no sign of life for so long is asked for one; its connection ends when there is none for
    /// as long again.
    pub client_keepalive: Duration,
    /// A client that asks for nothing for so long is disconnected; none: never.
    pub client_idle: Option<Duration>,
}

impl Default for Limits {
    fn default() -> Self {
        limits(None)
    }
}

impl Limits {
    /// How fast one address may open connections.
    pub(in crate::daemon) fn rate(&self) -> Rate {
        Rate { token: Duration::from_secs(1) / self.connections_per_second, burst: self.connections_burst }
    }
}

/// Reads the table; `section` is none when there is none.
pub(super) fn limits(mut section: Option<Section<'_>>) -> Limits {
    let mut number = |key, default, allowed: std::ops::RangeInclusive<u64>| {
        section.as_mut().map_or(default, |section| section.number(key, default, allowed).value)
    };
    let small = |number: u64| u32::try_from(number).expect("bounded where it was read");
    let count = |number: u64| usize::try_from(number).expect("bounded where it was read");
    let clients_max = u64::try_from(CLIENTS_MAX).expect("a small constant");
    let limits = Limits {
        clients: count(number("clients", clients_max, 1..=clients_max)),
        clients_per_address: count(number("clients_per_address", 64, 1..=clients_max)),
        connections_per_second: small(number("connections_per_second", 20, 1..=100_000)),
        connections_burst: small(number("connections_burst", 200, 1..=100_000)),
        negotiation: Duration::from_millis(number("negotiation_ms", 10_000, 500..=120_000)),
        client_keepalive: Duration::from_secs(number("client_keepalive_s", 30, 3..=7200)),
        client_idle: match number("client_idle_s", 0, 0..=2_592_000) {
            0 => None,
            seconds => Some(Duration::from_secs(seconds)),
        },
    };
    if let Some(section) = section {
        if section.has("clients_per_address") && limits.clients_per_address > limits.clients {
            section.problem(
                section.line,
                format!(
                    "clients_per_address = {} is more than clients = {}, and would keep nobody out; make it less, or take it away",
                    limits.clients_per_address, limits.clients
                ),
            );
        }
        section.finish();
    }
    limits
}
