//! The transmission phase from the client's side: compact requests out, simple replies in.

use super::constants::{REQUEST_LEN, REQUEST_MAGIC, SIMPLE_REPLY_LEN, SIMPLE_REPLY_MAGIC};
use super::fields::Fields;
use super::request::Header;

/// A compact request, to be followed by the payload of a write.
///
/// # Panics
/// When the length needs more than 32 bits, which no compact request can carry.
#[must_use]
pub fn request(header: &Header) -> [u8; REQUEST_LEN] {
    let length = u32::try_from(header.length).expect("a compact request has a length of 32 bits");
    let mut bytes = [0; REQUEST_LEN];
    bytes[..4].copy_from_slice(&REQUEST_MAGIC.to_be_bytes());
    bytes[4..6].copy_from_slice(&header.flags.to_be_bytes());
    bytes[6..8].copy_from_slice(&header.command.to_be_bytes());
    bytes[8..16].copy_from_slice(&header.cookie.to_be_bytes());
    bytes[16..24].copy_from_slice(&header.offset.to_be_bytes());
    bytes[24..].copy_from_slice(&length.to_be_bytes());
    bytes
}

/// A simple reply's header.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SimpleReply {
    /// The request's cookie.
    pub cookie: u64,
    /// 0, or an error value; then no data follows.
    pub error: u32,
}

/// Bytes that are no simple reply.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("the server sent {0:#010x} where a reply begins; it has lost step")]
pub struct NoReply(u32);

/// Reads a reply's header.
///
/// # Errors
/// [`NoReply`], after which the connection can only be closed.
pub fn simple_reply(bytes: &[u8; SIMPLE_REPLY_LEN]) -> Result<SimpleReply, NoReply> {
    const WHOLE: &str = "the header is 16 bytes long";
    let mut fields = Fields(bytes);
    let magic = fields.u32().expect(WHOLE);
    if magic != SIMPLE_REPLY_MAGIC {
        return Err(NoReply(magic));
    }
    Ok(SimpleReply { error: fields.u32().expect(WHOLE), cookie: fields.u64().expect(WHOLE) })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::{ExportInfo, Handover, MetaContexts, Mode, NbdError, ReplyTo, parse_header, reply};
    use super::*;

    proptest! {
        #[test]
        fn the_server_reads_what_the_client_writes(flags: u16, cookie: u64, offset: u64, length in 0..=1u64 << 20) {
            let header = Header { flags, command: 1, cookie, offset, length };
            let handover = Handover {
                export: ExportInfo::new("v", 1 << 30), mode: Mode::Simple, contexts: MetaContexts::default(),
            };
            prop_assert_eq!(parse_header(&handover.terms(), &request(&header)), Ok(Some(header)));
        }

        #[test]
        fn the_client_reads_what_the_server_writes(cookie: u64) {
            let to = ReplyTo { mode: Mode::Simple, cookie, offset: 0 };
            let mut bytes = Vec::new();
            reply::error(to, NbdError::NoSpace, "no room", &mut bytes);
            let whole: [u8; SIMPLE_REPLY_LEN] = bytes.try_into().expect("a header");
            prop_assert_eq!(simple_reply(&whole), Ok(SimpleReply { cookie, error: 28 }));
            let whole: [u8; SIMPLE_REPLY_LEN] = reply::success(to).as_slice().try_into().expect("a header");
            prop_assert_eq!(simple_reply(&whole), Ok(SimpleReply { cookie, error: 0 }));
        }
    }

    #[test]
    fn other_bytes_are_no_reply() {
        assert_eq!(simple_reply(&[0; SIMPLE_REPLY_LEN]), Err(NoReply(0)));
    }
}
