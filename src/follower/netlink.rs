//! The Linux kernel's NBD client, over generic netlink: the four commands that are needed, written out.
//!
//! Netlink is the one format here in the byte order of the machine: both ends are on it.

use std::io::{self, Read as _, Write as _};
use std::os::fd::{AsRawFd, BorrowedFd};
use std::time::Duration;

use socket2::{Domain, Protocol, Socket, Type};

/// Header of a message, and that of generic netlink behind it.
const HEADER_LEN: usize = 16 + 4;
const REQUEST_AND_ACK: u16 = 1 | 4;
const TYPE_ERROR: u16 = 2;
/// The family that knows the numbers of the others.
const CONTROLLER: u16 = 0x10;
const GET_FAMILY: u8 = 3;
const FAMILY_ID: u16 = 1;
const FAMILY_NAME: u16 = 2;
const NESTED: u16 = 1 << 15;

const CONNECT: u8 = 1;
const DISCONNECT: u8 = 2;
const RECONFIGURE: u8 = 3;

const INDEX: u16 = 1;
const SIZE_BYTES: u16 = 2;
const BLOCK_SIZE_BYTES: u16 = 3;
const TIMEOUT: u16 = 4;
const SERVER_FLAGS: u16 = 5;
const SOCKETS: u16 = 7;
const DEAD_CONNECTION_TIMEOUT: u16 = 8;
const BACKEND_IDENTIFIER: u16 = 10;
const SOCKET_ITEM: u16 = 1;
const SOCKET_FD: u16 = 1;

/// The kernel answers at once.
const WORD_TIME: Duration = Duration::from_secs(5);

/// How a device is set up.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Terms<'a> {
    /// Number of the device.
    pub(super) index: u32,
    /// Size in bytes.
    pub(super) size: u64,
    /// Transmission flags.
    pub(super) flags: u16,
    /// Seconds without an answer after which the kernel takes the connection for dead.
    pub(super) timeout_s: u64,
    /// Seconds that requests wait for a new connection.
    pub(super) dead_s: u64,
    /// What is behind the device. The kernel refuses a later connection to anything else.
    pub(super) identity: &'a str,
}

/// A conversation with the kernel.
#[derive(Debug)]
pub(super) struct Netlink {
    socket: Socket,
    family: u16,
}

impl Netlink {
    /// Opens it.
    ///
    /// # Errors
    /// When the kernel has no NBD client, or this process may not use it.
    pub(super) fn open() -> Result<Self, String> {
        let open = || {
            let protocol = Protocol::from(libc::NETLINK_GENERIC);
            let socket = Socket::new(Domain::from(libc::AF_NETLINK), Type::RAW, Some(protocol))?;
            socket.set_read_timeout(Some(WORD_TIME))?;
            let mut netlink = Self { socket, family: CONTROLLER };
            let answer = netlink.ask(GET_FAMILY, &attribute(FAMILY_NAME, b"nbd\0"))?;
            let family = find(&answer, FAMILY_ID).and_then(|bytes| Some(u16_of(bytes.get(..2)?)));
            netlink.family = family.ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))?;
            Ok(netlink)
        };
        open().map_err(|error: io::Error| match error.kind() {
            io::ErrorKind::NotFound => {
                "the kernel's NBD client is not there; `modprobe nbd`, or attach without --device".to_owned()
            }
            _ => format!("the kernel's NBD client cannot be asked: {error}"),
        })
    }

    /// Makes a device of a socket that is ready for requests.
    ///
    /// # Errors
    /// What the kernel says.
    pub(super) fn connect(&mut self, terms: &Terms<'_>, socket: BorrowedFd<'_>) -> io::Result<()> {
        let mut attributes = attribute(INDEX, &bytes_of_u32(terms.index));
        attributes.extend(attribute(SIZE_BYTES, &bytes_of_u64(terms.size)));
        // The least that every file system can use; the node takes any alignment.
        attributes.extend(attribute(BLOCK_SIZE_BYTES, &bytes_of_u64(512)));
        attributes.extend(attribute(SERVER_FLAGS, &bytes_of_u64(terms.flags.into())));
        attributes.extend(lasting(terms));
        attributes.extend(sockets(socket));
        self.ask(CONNECT, &attributes).map(drop)
    }

    /// Gives a device whose connection is dead a new one. The kernel ignores it while none is dead.
    ///
    /// # Errors
    /// What the kernel says; `InvalidInput` when the device is another's.
    pub(super) fn reconfigure(&mut self, terms: &Terms<'_>, socket: BorrowedFd<'_>) -> io::Result<()> {
        let mut attributes = attribute(INDEX, &bytes_of_u32(terms.index));
        attributes.extend(lasting(terms));
        attributes.extend(sockets(socket));
        self.ask(RECONFIGURE, &attributes).map(drop)
    }

    /// Ends a device: what it is asked gets errors.
    ///
    /// # Errors
    /// What the kernel says.
    pub(super) fn disconnect(&mut self, index: u32) -> io::Result<()> {
        self.ask(DISCONNECT, &attribute(INDEX, &bytes_of_u32(index))).map(drop)
    }

    /// One question; the attributes of the answer, if it has any.
    fn ask(&mut self, command: u8, attributes: &[u8]) -> io::Result<Vec<u8>> {
        let length = u32::try_from(HEADER_LEN + attributes.len()).expect("a few attributes");
        let mut message = bytes_of_u32(length).to_vec();
        message.extend(bytes_of_u16(self.family));
        message.extend(bytes_of_u16(REQUEST_AND_ACK));
        message.extend([0; 8]);
        message.extend([command, 1, 0, 0]);
        message.extend(attributes);
        // Without an address it goes to the kernel.
        self.socket.write_all(&message)?;
        let mut answer = Vec::new();
        loop {
            let mut bytes = vec![0; 16 << 10];
            let got = self.socket.read(&mut bytes)?;
            let mut rest = &bytes[..got];
            while rest.len() >= 16 {
                let length = usize::try_from(u32_of(&rest[..4])).unwrap_or(usize::MAX);
                let kind = u16_of(&rest[4..6]);
                let Some(message) = rest.get(16..length) else { return Err(io::ErrorKind::InvalidData.into()) };
                if kind == TYPE_ERROR {
                    let code = message.get(..4).map_or(0, i32_of);
                    return if code == 0 { Ok(answer) } else { Err(io::Error::from_raw_os_error(-code)) };
                }
                answer = message.get(4..).unwrap_or_default().to_vec();
                rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
            }
        }
    }
}

fn lasting(terms: &Terms<'_>) -> Vec<u8> {
    let mut identity = terms.identity.as_bytes().to_vec();
    identity.push(0);
    let mut attributes = attribute(TIMEOUT, &bytes_of_u64(terms.timeout_s));
    attributes.extend(attribute(DEAD_CONNECTION_TIMEOUT, &bytes_of_u64(terms.dead_s)));
    attributes.extend(attribute(BACKEND_IDENTIFIER, &identity));
    attributes
}

fn sockets(socket: BorrowedFd<'_>) -> Vec<u8> {
    let descriptor = u32::try_from(socket.as_raw_fd()).expect("an open descriptor is not negative");
    let item = attribute(SOCKET_ITEM | NESTED, &attribute(SOCKET_FD, &bytes_of_u32(descriptor)));
    attribute(SOCKETS | NESTED, &item)
}

/// An attribute, filled up to four bytes.
fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let mut bytes = bytes_of_u16(u16::try_from(value.len() + 4).expect("a short value")).to_vec();
    bytes.extend(bytes_of_u16(kind));
    bytes.extend(value);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

/// The value of the first attribute of a kind.
fn find(mut attributes: &[u8], kind: u16) -> Option<&[u8]> {
    loop {
        let length = usize::from(u16_of(attributes.get(..2)?));
        let value = attributes.get(4..length)?;
        if u16_of(attributes.get(2..4)?) & !NESTED == kind {
            return Some(value);
        }
        attributes = attributes.get(length.next_multiple_of(4)..)?;
    }
}

#[expect(clippy::host_endian_bytes, reason = "netlink speaks the byte order of the machine")]
mod native {
    pub(super) fn bytes_of_u16(value: u16) -> [u8; 2] {
        value.to_ne_bytes()
    }

    pub(super) fn bytes_of_u32(value: u32) -> [u8; 4] {
        value.to_ne_bytes()
    }

    pub(super) fn bytes_of_u64(value: u64) -> [u8; 8] {
        value.to_ne_bytes()
    }

    pub(super) fn u16_of(bytes: &[u8]) -> u16 {
        u16::from_ne_bytes(bytes.try_into().expect("two bytes"))
    }

    pub(super) fn u32_of(bytes: &[u8]) -> u32 {
        u32::from_ne_bytes(bytes.try_into().expect("four bytes"))
    }

    pub(super) fn i32_of(bytes: &[u8]) -> i32 {
        i32::from_ne_bytes(bytes.try_into().expect("four bytes"))
    }
}
use self::native::{bytes_of_u16, bytes_of_u32, bytes_of_u64, i32_of, u16_of, u32_of};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_are_filled_up_and_found_again() {
        let mut attributes = attribute(TIMEOUT, b"abcde");
        attributes.extend(attribute(SOCKETS | NESTED, &attribute(9, b"")));
        assert_eq!(attributes.len(), 12 + 8);
        assert_eq!(find(&attributes, TIMEOUT), Some(&b"abcde"[..]));
        assert_eq!(find(&attributes, SOCKETS).and_then(|inside| find(inside, 9)), Some(&b""[..]));
        assert_eq!(find(&attributes, 8), None);
        assert_eq!(find(&attributes[..3], TIMEOUT), None);
    }

    #[test]
    fn the_kernel_answers_or_says_what_is_missing() {
        match Netlink::open() {
            Ok(netlink) => assert_ne!(netlink.family, CONTROLLER),
            Err(why) => assert!(why.contains("NBD client"), "{why}"),
        }
    }
}
