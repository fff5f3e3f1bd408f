//! As much of NBD as the clients here need: a negotiation with simple replies, and the header of a request.

use std::io::{Read, Write};

use super::Result;

pub(crate) const REQUEST_LEN: usize = 28;
pub(crate) const COMMAND_READ: u16 = 0;
const REQUEST_MAGIC: u32 = 0x2560_9513;
const OPTION_MAGIC: &[u8] = b"IHAVEOPT";
const OPTION_GO: u32 = 7;
const OPTION_REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;
const REPLY_ACK: u32 = 1;
const REPLY_INFO: u32 = 3;

pub(crate) trait Stream: Read + Write + Send {}
impl<S: Read + Write + Send> Stream for S {}

pub(crate) fn header(command: u16, cookie: u64, offset: u64, len: u32) -> [u8; REQUEST_LEN] {
    let mut bytes = [0; REQUEST_LEN];
    bytes[..4].copy_from_slice(&REQUEST_MAGIC.to_be_bytes());
    bytes[6..8].copy_from_slice(&command.to_be_bytes());
    bytes[8..16].copy_from_slice(&cookie.to_be_bytes());
    bytes[16..24].copy_from_slice(&offset.to_be_bytes());
    bytes[24..].copy_from_slice(&len.to_be_bytes());
    bytes
}

/// A big-endian number of up to eight bytes.
pub(crate) fn number(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0, |all, &byte| all << 8 | u64::from(byte))
}

/// The bytes of an option.
pub(crate) fn option(option: u32, body: &[u8]) -> Result<Vec<u8>> {
    let mut bytes = OPTION_MAGIC.to_vec();
    bytes.extend_from_slice(&option.to_be_bytes());
    bytes.extend_from_slice(&u32::try_from(body.len())?.to_be_bytes());
    bytes.extend_from_slice(body);
    Ok(bytes)
}

/// Asks for an export, with simple replies; its size.
pub(crate) fn negotiate(stream: &mut dyn Stream, export: &str) -> Result<u64> {
    let mut greeting = [0; 18];
    stream.read_exact(&mut greeting)?;
    if greeting[..8] != *b"NBDMAGIC" || greeting[8..16] != *OPTION_MAGIC || greeting[17] & 1 == 0 {
        return Err("not a server of the fixed newstyle negotiation".into());
    }
    stream.write_all(&u32::from(greeting[17] & 3).to_be_bytes())?;
    let mut go = u32::try_from(export.len())?.to_be_bytes().to_vec();
    go.extend_from_slice(export.as_bytes());
    go.extend_from_slice(&[0, 0]);
    stream.write_all(&option(OPTION_GO, &go)?)?;
    let mut size = None;
    loop {
        let mut head = [0; 20];
        stream.read_exact(&mut head)?;
        let mut body = vec![0; usize::try_from(number(&head[16..]))?];
        stream.read_exact(&mut body)?;
        match number(&head[12..16]) {
            _ if number(&head[..8]) != OPTION_REPLY_MAGIC => return Err("an option reply that is none".into()),
            kind if kind == u64::from(REPLY_INFO) && body.len() >= 10 && body[..2] == [0, 0] => {
                size = Some(number(&body[2..10]));
            }
            kind if kind == u64::from(REPLY_INFO) => {}
            kind if kind == u64::from(REPLY_ACK) => return size.ok_or_else(|| "the size was not said".into()),
            kind => {
                let why = String::from_utf8_lossy(&body);
                return Err(format!("the server refused: reply {kind:#x}: {why}").into());
            }
        }
    }
}
