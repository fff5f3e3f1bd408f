//! An address that moves with the role: given to an interface and taken from it by `ip`, and announced to the network, so that neighbours
//! and switches learn where it is now.
//!
//! IPv4 is announced by a gratuitous ARP (RFC 5227), IPv6 by an unsolicited neighbour advertisement (RFC 4861, section 7.2.6).

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};
use std::process::Stdio;

use socket2::{Domain, Protocol, SockAddr, Socket, Type};
use tokio::process::Command;

use crate::dataplane;
use crate::services::Action;

/// Every node of the link.
const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);

/// The command that gives the address to the interface, or takes it.
pub(super) fn command(action: Action, (address, prefix): (IpAddr, u8), interface: &str) -> Vec<String> {
    let word = if action == Action::Start { "add" } else { "del" };
    let mut words = ["ip", "address", word].map(str::to_owned).to_vec();
    words.extend([format!("{address}/{prefix}"), "dev".to_owned(), interface.to_owned()]);
    if action == Action::Start && address.is_ipv6() {
        // The other node may have had it a moment ago, and looking for it takes a second.
        words.push("nodad".to_owned());
    }
    words
}

/// True when the interface has the address.
///
/// # Errors
/// A sentence, when `ip` cannot be asked or knows no such interface.
pub(super) async fn is_here(address: IpAddr, interface: &str) -> Result<bool, String> {
    let mut command = Command::new("ip");
    command.args(["-oneline", "address", "show", "dev", interface, "to", &address.to_string()]);
    let asked = command.stdin(Stdio::null()).kill_on_drop(true).output().await;
    let output = asked.map_err(|error| format!("ip cannot be run: {error}"))?;
    if output.status.success() {
        return Ok(!output.stdout.is_empty());
    }
    let why = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    Err(format!("ip knows nothing of {interface}: {why}"))
}

/// Tells everybody on the interface's network that the address is here.
///
/// # Errors
/// When the interface is not there, or this process may not send so.
pub(super) fn announce(address: IpAddr, interface: &str) -> io::Result<()> {
    let (index, hardware) = dataplane::interface(interface)?;
    match address {
        IpAddr::V4(address) => dataplane::broadcast_arp(index, &arp(hardware, address)),
        IpAddr::V6(address) => {
            let socket = Socket::new(Domain::IPV6, Type::RAW, Some(Protocol::ICMPV6))?;
            socket.set_multicast_if_v6(index)?;
            // Whoever receives it with another number knows that it was not sent on this link.
            socket.set_multicast_hops_v6(255)?;
            socket.bind(&SockAddr::from(SocketAddr::from((address, 0))))?;
            let to = SocketAddrV6::new(ALL_NODES, 0, 0, index);
            socket.send_to(&advertisement(hardware, address), &SockAddr::from(to)).map(drop)
        }
    }
}

/// An ARP request in which the address asks for itself: every neighbour that knows it takes the new place over.
fn arp(hardware: [u8; 6], address: Ipv4Addr) -> [u8; 28] {
    let mut packet = [0; 28];
    // Ethernet, IPv4, their lengths, and that it is a request.
    packet[..8].copy_from_slice(&[0, 1, 8, 0, 6, 4, 0, 1]);
    packet[8..14].copy_from_slice(&hardware);
    packet[14..18].copy_from_slice(&address.octets());
    packet[24..].copy_from_slice(&address.octets());
    packet
}

/// An advertisement that overrides what neighbours know. The kernel fills the checksum in.
fn advertisement(hardware: [u8; 6], address: Ipv6Addr) -> [u8; 32] {
    const KIND: u8 = 136;
    const OVERRIDE: u8 = 0x20;
    const TARGET_HARDWARE: u8 = 2;
    let mut packet = [0; 32];
    (packet[0], packet[4]) = (KIND, OVERRIDE);
    packet[8..24].copy_from_slice(&address.octets());
    (packet[24], packet[25]) = (TARGET_HARDWARE, 1);
    packet[26..].copy_from_slice(&hardware);
    packet
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packets_are_as_the_standards_have_them() {
        let mac = [2, 0, 0x5e, 0x10, 0, 0xff];
        let arp = arp(mac, Ipv4Addr::new(10, 0, 2, 100));
        assert_eq!(arp[8..18], [2, 0, 0x5e, 0x10, 0, 0xff, 10, 0, 2, 100]);
        assert_eq!(arp[18..], [0, 0, 0, 0, 0, 0, 10, 0, 2, 100]);
        let address: Ipv6Addr = "fd00::64".parse().expect("an address");
        let told = advertisement(mac, address);
        assert_eq!((told[0], told[4], told[24], told[25]), (136, 0x20, 2, 1));
        assert_eq!(told[8..24], address.octets());
        assert_eq!(told[26..], mac);
    }

    #[test]
    fn an_address_is_given_and_taken_by_ip() {
        let place = ("10.0.2.100".parse().expect("an address"), 24);
        assert_eq!(command(Action::Start, place, "eth0").join(" "), "ip address add 10.0.2.100/24 dev eth0");
        assert_eq!(command(Action::Stop, place, "eth0").join(" "), "ip address del 10.0.2.100/24 dev eth0");
        let place = ("fd00::64".parse().expect("an address"), 64);
        assert!(command(Action::Start, place, "eth0").join(" ").ends_with("dev eth0 nodad"));
    }

    #[test]
    fn an_announcement_leaves_this_host() {
        let own = "127.0.0.1".parse().expect("an address");
        announce(own, "lo").expect("packet sockets need root, or CAP_NET_RAW");
        assert!(announce(own, "no-such").is_err());
    }

    #[tokio::test]
    async fn this_host_knows_its_own_address() {
        let at = |text: &str| text.parse::<IpAddr>().expect("an address");
        assert_eq!(is_here(at("127.0.0.1"), "lo").await, Ok(true));
        assert_eq!(is_here(at("192.0.2.77"), "lo").await, Ok(false));
        assert!(is_here(at("127.0.0.1"), "no-such").await.is_err());
    }
}
