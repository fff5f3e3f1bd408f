//! What counts as one address. Pure.

use std::net::IpAddr;

use super::prefix::first_of;

/// Where connections come from, as they are counted: an IPv4 address, or the 64 bits of an IPv6 address that name its network, since a host
/// has all the rest for itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(in crate::daemon) struct Source(IpAddr);

impl Source {
    /// That of a client at `address`.
    pub(in crate::daemon) fn of(address: IpAddr) -> Self {
        let address = address.to_canonical();
        Self(if address.is_ipv6() { first_of(address, 64) } else { address })
    }
}

impl std::fmt::Display for Source {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let end = if self.0.is_ipv6() { "/64" } else { "" };
        write!(f, "{}{end}", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_host_is_one_source_however_many_addresses_it_has() {
        let of = |text: &str| Source::of(text.parse().expect("an address"));
        assert_eq!(of("fd00::1"), of("fd00::ffff:1:2:3"));
        assert_ne!(of("fd00::1"), of("fd00:0:0:1::1"));
        assert_eq!(of("10.0.0.1"), of("::ffff:10.0.0.1"));
        assert_ne!(of("10.0.0.1"), of("10.0.0.2"));
        assert_eq!((of("10.0.0.1").to_string(), of("fd00::1").to_string()), ("10.0.0.1".into(), "fd00::/64".into()));
    }
}
