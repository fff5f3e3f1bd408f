//! A range of IP addresses, `10.0.2.0/24` or one address alone. Pure.

use std::fmt;
use std::net::IpAddr;

/// The addresses whose first bits are these.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Prefix {
    /// Its first address.
    network: IpAddr,
    /// Bits that are compared.
    len: u8,
}

impl Prefix {
    /// Reads `IP` or `IP/BITS`.
    ///
    /// # Errors
    /// What is wrong, and what would be right.
    pub fn parse(text: &str) -> Result<Self, String> {
        const FORM: &str = "write an IP address, or a prefix such as \"10.0.2.0/24\" or \"fd00::/64\"";
        let (address, len) = text.split_once('/').map_or((text, None), |(address, len)| (address, Some(len)));
        let network: IpAddr = address.parse().map_err(|_| format!("{address:?} is no IP address; {FORM}"))?;
        if network != network.to_canonical() {
            return Err(format!(
                "{text:?} is an IPv4 address in the clothes of IPv6; write {}",
                network.to_canonical()
            ));
        }
        let (_, width) = bits(network);
        let len = match len {
            None => width,
            Some(len) => {
                let digits = !len.is_empty() && len.bytes().all(|byte| byte.is_ascii_digit());
                let len = len.parse().ok().filter(|&len: &u8| digits && len <= width);
                len.ok_or_else(|| format!("{text:?} must have 0 to {width} bits behind the slash; {FORM}"))?
            }
        };
        let first = first_of(network, len);
        if first != network {
            return Err(format!("{text:?} has bits behind its prefix; write \"{first}/{len}\", or {network} alone"));
        }
        Ok(Self { network, len })
    }

    /// Whether the address is one of them. An IPv4 address that came over an IPv6 socket is an IPv4 address.
    #[must_use]
    pub fn contains(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        address.is_ipv4() == self.network.is_ipv4() && first_of(address, self.len) == self.network
    }
}

impl fmt::Display for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.network, self.len)
    }
}

/// The address as a number whose first bit is the address's first one, and how many bits count.
fn bits(address: IpAddr) -> (u128, u8) {
    match address {
        IpAddr::V4(address) => (u128::from(address.to_bits()) << 96, 32),
        IpAddr::V6(address) => (address.to_bits(), 128),
    }
}

/// The first address that shares `len` bits with `address`.
pub(super) fn first_of(address: IpAddr, len: u8) -> IpAddr {
    let mask = u128::MAX.checked_shl(128 - u32::from(len)).unwrap_or(0);
    let first = bits(address).0 & mask;
    match address {
        IpAddr::V4(_) => IpAddr::V4(u32::try_from(first >> 96).expect("32 bits are left").into()),
        IpAddr::V6(_) => IpAddr::V6(first.into()),
    }
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, Ipv6Addr};

    use proptest::prelude::*;

    use super::*;

    /// Whether the first `len` bits are the same, one by one.
    fn same_bits(a: &[u8], b: &[u8], len: u8) -> bool {
        let bit = |bytes: &[u8], i: usize| bytes[i / 8] >> (7 - i % 8) & 1;
        (0..usize::from(len)).all(|i| bit(a, i) == bit(b, i))
    }

    fn octets(address: IpAddr) -> Vec<u8> {
        match address {
            IpAddr::V4(address) => address.octets().to_vec(),
            IpAddr::V6(address) => address.octets().to_vec(),
        }
    }

    fn address() -> impl Strategy<Value = IpAddr> {
        prop_oneof![
            any::<u32>().prop_map(|bits| IpAddr::V4(bits.into())),
            any::<u128>().prop_map(|b| IpAddr::V6(b.into()))
        ]
    }

    proptest! {
        /// What contains an address is what agrees with it in its first bits; and text and value go back and forth.
        #[test]
        fn a_prefix_contains_what_shares_its_first_bits(
            network in address(),
            other in address(),
            len in 0u8..=128,
            flipped in 0u8..128,
        ) {
            prop_assume!(network == network.to_canonical() && other == other.to_canonical());
            let width = bits(network).1;
            let len = len % (width + 1);
            let prefix = Prefix::parse(&format!("{}/{len}", first_of(network, len))).expect("right");
            prop_assert_eq!(Prefix::parse(&prefix.to_string()), Ok(prefix));
            let same_kind = |address: IpAddr| address.is_ipv4() == network.is_ipv4();
            let expected = |address| same_kind(address) && same_bits(&octets(network), &octets(address), len);
            // A neighbour that differs in one bit decides at the edge, where an address drawn at random never is.
            let at = flipped % width;
            let bit = 1u128 << (127 - u32::from(at));
            let near = bits(network).0 ^ bit;
            let near = match network {
                IpAddr::V4(_) => IpAddr::V4(u32::try_from(near >> 96).expect("fits").into()),
                IpAddr::V6(_) => IpAddr::V6(near.into()),
            };
            prop_assume!(near == near.to_canonical());
            for address in [network, other, near] {
                prop_assert_eq!(prefix.contains(address), expected(address), "{} in {}", address, prefix);
            }
            prop_assert_eq!(prefix.contains(near), at >= len);
        }

        /// An IPv4 client is the same whether the listener speaks IPv4 or both.
        #[test]
        fn an_address_mapped_into_ipv6_is_itself(client in any::<u32>(), network in any::<u32>(), len in 0u8..=32) {
            let (client, network) = (Ipv4Addr::from_bits(client), IpAddr::V4(network.into()));
            let prefix = Prefix::parse(&format!("{}/{len}", first_of(network, len))).expect("right");
            prop_assert_eq!(prefix.contains(client.into()), prefix.contains(client.to_ipv6_mapped().into()));
        }

        /// Whatever stands there is a prefix or a complaint.
        #[test]
        fn any_text_is_judged(text in "[0-9a-f:./ +-]{0,24}") {
            if let Ok(prefix) = Prefix::parse(&text) {
                prop_assert!(prefix.contains(prefix.network));
            }
        }
    }

    #[test]
    fn nonsense_is_refused_and_what_would_be_right_is_said() {
        let cases = [
            ("10.0.2.7/24", "write \"10.0.2.0/24\", or 10.0.2.7 alone"),
            ("10.0.2.0/33", "0 to 32 bits"),
            ("fd00::/129", "0 to 128 bits"),
            ("10.0.2.0/", "0 to 32 bits"),
            ("10.0.2.0/+8", "0 to 32 bits"),
            ("10.0.2.0/255.255.255.0", "0 to 32 bits"),
            ("::ffff:10.0.2.0/120", "write 10.0.2.0"),
            ("10.0.2", "is no IP address"),
            ("db1.plant.example", "is no IP address"),
            ("", "is no IP address"),
        ];
        for (text, right) in cases {
            let why = Prefix::parse(text).expect_err(text);
            assert!(why.contains(right), "{text}: {why}");
        }
        assert_eq!(Prefix::parse("::1").map(|prefix| prefix.to_string()), Ok("::1/128".to_owned()));
        assert!(Prefix::parse("0.0.0.0/0").expect("every one").contains(Ipv4Addr::BROADCAST.into()));
        assert!(!Prefix::parse("0.0.0.0/0").expect("every one of IPv4").contains(Ipv6Addr::LOCALHOST.into()));
    }
}
