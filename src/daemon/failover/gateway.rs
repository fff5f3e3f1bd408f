//! Does the gateway answer? A node that does not reach it may be the one that is cut off, and takes nothing over.
//!
//! It is asked by ICMP echo, over the kernel's unprivileged ICMP sockets where they are allowed, and a raw socket otherwise.

use std::io::{self, Read};
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use socket2::{Domain, Protocol, SockAddr, Socket, Type};
use tracing::{info, warn};

/// Time between two questions, and the longest wait for an answer.
const INTERVAL: Duration = Duration::from_millis(500);
/// So many unanswered questions in a row make it silent.
const MISSES: u32 = 3;
const ECHO_LEN: usize = 16;

/// Asks for ever, and tells at the beginning and at each change.
pub(super) async fn keep_asking(gateway: IpAddr, tell: impl Fn(Option<bool>)) {
    let (mut misses, mut told, mut sequence) = (0, None, 0_u16);
    let mut complaint = String::new();
    loop {
        sequence = sequence.wrapping_add(1);
        let began = Instant::now();
        let asked = tokio::task::spawn_blocking(move || ask(gateway, sequence, INTERVAL)).await;
        let answered = match asked {
            Ok(Ok(answered)) => answered,
            Ok(Err(error)) => {
                if complaint != error.to_string() {
                    complaint = error.to_string();
                    warn!(%gateway, "the gateway cannot be asked: {complaint}; it counts as silent");
                }
                false
            }
            Err(_) => false,
        };
        misses = if answered { 0 } else { misses + 1 };
        let now = if answered {
            Some(true)
        } else {
            told.filter(|_| misses < MISSES).or((misses >= MISSES).then_some(false))
        };
        if now != told {
            match now {
                Some(false) => warn!(%gateway, "the gateway does not answer"),
                _ => info!(%gateway, "the gateway answers"),
            }
            told = now;
            tell(now);
        }
        tokio::time::sleep(INTERVAL.saturating_sub(began.elapsed())).await;
    }
}

/// One question; false when nothing came back in time.
fn ask(gateway: IpAddr, sequence: u16, limit: Duration) -> io::Result<bool> {
    let (domain, protocol) = match gateway {
        IpAddr::V4(_) => (Domain::IPV4, Protocol::ICMPV4),
        IpAddr::V6(_) => (Domain::IPV6, Protocol::ICMPV6),
    };
    let socket =
        Socket::new(domain, Type::DGRAM, Some(protocol)).or_else(|_| Socket::new(domain, Type::RAW, Some(protocol)))?;
    // Only what comes from there.
    socket.connect(&SockAddr::from(SocketAddr::new(gateway, 0)))?;
    let echo = echo(gateway.is_ipv6(), sequence);
    socket.send(&echo)?;
    let deadline = Instant::now() + limit;
    let mut bytes = [0; 512];
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(false);
        }
        socket.set_read_timeout(Some(left))?;
        match (&socket).read(&mut bytes) {
            Ok(len) if answers(&bytes[..len], gateway.is_ipv6(), &echo) => return Ok(true),
            Ok(_) => {}
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {
                return Ok(false);
            }
            Err(error) => return Err(error),
        }
    }
}

/// An echo request. What makes it ours is its body: the kernel may choose the identifier.
fn echo(v6: bool, sequence: u16) -> [u8; ECHO_LEN] {
    let mut echo = [0; ECHO_LEN];
    echo[0] = if v6 { 128 } else { 8 };
    echo[4..6].copy_from_slice(&std::process::id().to_be_bytes()[2..]);
    echo[6..8].copy_from_slice(&sequence.to_be_bytes());
    echo[8..12].copy_from_slice(b"rpbk");
    echo[12..].copy_from_slice(&std::process::id().to_be_bytes());
    if !v6 {
        let sum: u32 = echo.chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum();
        let folded = (sum & 0xffff) + (sum >> 16);
        let folded = u16::try_from((folded & 0xffff) + (folded >> 16)).unwrap_or(u16::MAX);
        echo[2..4].copy_from_slice(&(!folded).to_be_bytes());
    }
    echo
}

/// True for the reply to `echo`; a raw IPv4 socket gives the IP header, too.
fn answers(bytes: &[u8], v6: bool, echo: &[u8; ECHO_LEN]) -> bool {
    let header = match bytes.first() {
        Some(first) if !v6 && first >> 4 == 4 => usize::from(first & 15) * 4,
        _ => 0,
    };
    let reply = if v6 { 129 } else { 0 };
    bytes.get(header..).is_some_and(|icmp| icmp.len() >= ECHO_LEN && icmp[0] == reply && icmp[6..ECHO_LEN] == echo[6..])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_host_answers() {
        let host = "127.0.0.1".parse().expect("an address");
        let answered = ask(host, 7, Duration::from_secs(1));
        assert!(answered.expect("ICMP sockets need root, or net.ipv4.ping_group_range"));
    }

    #[test]
    fn only_the_own_echo_is_an_answer() {
        let echo = echo(false, 9);
        let mut reply = echo;
        reply[0] = 0;
        assert!(answers(&reply, false, &echo));
        assert!(!answers(&echo, false, &echo), "a request is no reply");
        let mut with_header = vec![0x45; 20];
        with_header.extend_from_slice(&reply);
        assert!(answers(&with_header, false, &echo));
        reply[7] ^= 1;
        assert!(!answers(&reply, false, &echo), "an older one");
        assert!(!answers(&[], false, &echo) && !answers(&[0x4f; 10], false, &echo));
        let sum: u32 = echo.chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum();
        assert_eq!((sum & 0xffff) + (sum >> 16), 0xffff, "RFC 1071");
    }
}
