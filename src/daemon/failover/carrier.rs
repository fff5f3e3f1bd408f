//! Has this node a network that leads to its peer? One without a carrier suspects itself before its peer.
//!
//! The interface of a path is that of the narrowest route to the peer's address, in the kernel's tables under `/proc/net`; its carrier is a
//! file under `/sys`. Where nothing is known of either, nothing is wrong: the question is only whether a cable is out.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use tracing::{info, warn};

const INTERVAL: Duration = Duration::from_millis(500);
/// Of a route: it is not in use, or rejects.
const REJECT: u32 = 0x0200;
const UP: u32 = 0x0001;

/// Looks for ever, and tells each change. It begins with a carrier.
pub(super) async fn keep_looking(peers: Vec<IpAddr>, tell: impl Fn(bool)) {
    let mut told = true;
    loop {
        let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
        let (v4, v6) = (read("/proc/net/route"), read("/proc/net/ipv6_route"));
        let interface = |peer: &IpAddr| match peer {
            // This host needs no cable to itself.
            peer if peer.is_loopback() => None,
            IpAddr::V4(peer) => leads_v4(&v4, *peer),
            IpAddr::V6(peer) => leads_v6(&v6, *peer),
        };
        let carrier = peers.iter().any(|peer| interface(peer).is_none_or(|name| has_carrier(&name)));
        if carrier != told {
            if carrier {
                info!("a network that leads to the peer has a carrier again");
            } else {
                warn!("no network that leads to the peer has a carrier: this node suspects itself");
            }
            told = carrier;
            tell(carrier);
        }
        tokio::time::sleep(INTERVAL).await;
    }
}

fn has_carrier(interface: &str) -> bool {
    // The file of an interface that is switched off cannot be read; one that is not there at all says nothing.
    let folder = std::path::Path::new("/sys/class/net").join(interface);
    !folder.exists() || std::fs::read_to_string(folder.join("carrier")).is_ok_and(|text| text.trim() == "1")
}

/// The interface of the narrowest route to `to` in the text of `/proc/net/route`.
fn leads_v4(table: &str, to: Ipv4Addr) -> Option<String> {
    let route = |line: &str| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        // The kernel writes an address as the number that its bytes are on this machine.
        let address = |text: &str| Some(u32::from_be(u32::from_str_radix(text, 16).ok()?));
        let (net, mask) = (address(fields.get(1)?)?, address(fields.get(7)?)?);
        let flags = u32::from_str_radix(fields.get(3)?, 16).ok()?;
        let leads = flags & UP != 0 && flags & REJECT == 0 && u32::from(to) & mask == net;
        leads.then(|| (mask, fields[0].to_owned()))
    };
    table.lines().skip(1).filter_map(route).max_by_key(|(mask, _)| *mask).map(|(_, interface)| interface)
}

/// The same in the text of `/proc/net/ipv6_route`.
fn leads_v6(table: &str, to: Ipv6Addr) -> Option<String> {
    let route = |line: &str| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let net = u128::from_str_radix(fields.first()?, 16).ok()?;
        let bits = u32::from_str_radix(fields.get(1)?, 16).ok().filter(|bits| *bits <= 128)?;
        let flags = u32::from_str_radix(fields.get(8)?, 16).ok()?;
        let mask = u128::MAX.checked_shl(128 - bits).unwrap_or(0);
        let leads = flags & UP != 0 && flags & REJECT == 0 && u128::from(to) & mask == net;
        leads.then(|| (bits, fields.get(9).map(|name| (*name).to_owned())))
    };
    table.lines().filter_map(route).max_by_key(|(bits, _)| *bits).and_then(|(_, interface)| interface)
}

#[cfg(test)]
mod tests {
    use super::*;

    const V4: &str = "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT\n\
        eth0\t00000000\t0102000A\t0003\t0\t0\t0\t00000000\t0\t0\t0\n\
        eth1\t0001000A\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0\n\
        down\t0201000A\t00000000\t0000\t0\t0\t0\tFFFFFFFF\t0\t0\t0\n";
    const V6: &str = "fd000000000000000000000000000000 40 00000000000000000000000000000000 00 00000000000000000000000000000000 00000100 00000001 00000000 00000001     eth1\n\
        00000000000000000000000000000000 00 00000000000000000000000000000000 00 00000000000000000000000000000000 ffffffff 00000001 00000000 00200200       lo\n";

    #[test]
    #[cfg(target_endian = "little")]
    fn the_narrowest_route_that_is_up_leads() {
        let to = |text: &str| text.parse().expect("an address");
        assert_eq!(leads_v4(V4, to("10.0.1.2")).as_deref(), Some("eth1"), "a route that is down leads nowhere");
        assert_eq!(leads_v4(V4, to("192.0.2.1")).as_deref(), Some("eth0"));
        assert_eq!(leads_v4("", to("10.0.1.2")), None);
        assert_eq!(leads_v4("x\ny z\n", to("10.0.1.2")), None);
    }

    #[test]
    fn the_same_with_the_longer_addresses() {
        let to = |text: &str| text.parse().expect("an address");
        assert_eq!(leads_v6(V6, to("fd00::2")).as_deref(), Some("eth1"));
        assert_eq!(leads_v6(V6, to("2001:db8::1")), None, "a route that rejects leads nowhere");
    }

    #[test]
    fn what_is_not_known_is_no_reason() {
        assert!(has_carrier("no-such-interface"));
    }
}
