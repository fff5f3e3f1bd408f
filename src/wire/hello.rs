//! The hello: what two nodes tell each other before a link carries frames. The only file that knows bincode.
//!
//! ```text
//! offset size field
//!      0    8 magic "REPBLK\r\n"
//!      8    2 lowest protocol version the sender speaks
//!     10    2 highest protocol version the sender speaks
//!     12    4 length of the body, at most BODY_LEN_MAX
//!     16    4 CRC-32 of the body
//!     20    4 CRC-32 of bytes 0..20
//!     24      body
//! ```
//! The 24 bytes never change, so that any two versions can tell each other why they do not fit.

use crate::units::{ClusterId, ConnectionId, DiskInstance, VolumeId};

/// First eight bytes of a hello.
pub const MAGIC: [u8; 8] = *b"REPBLK\r\n";
/// How a connection begins that means to speak TLS.
const TLS_HANDSHAKE: [u8; 2] = [22, 3];
/// Length of the fixed part in bytes.
pub const PREFIX_LEN: usize = 24;
/// Largest body of a hello or greeting, in bytes.
pub const BODY_LEN_MAX: usize = 1024;
/// Lowest protocol version spoken here.
pub const VERSION_MIN: u16 = 1;
/// Highest protocol version spoken here.
pub const VERSION_MAX: u16 = 1;

/// Who speaks, for which volume.
#[derive(Clone, PartialEq, Eq, Debug, serde::Serialize, serde::Deserialize)]
pub struct Hello {
    /// Name of the cluster in the configuration; compared first, because people read it.
    pub cluster_name: String,
    /// Identity of the cluster; none before the first contact of a fresh copy.
    pub cluster: ClusterId,
    /// Name of the volume.
    pub volume_name: String,
    /// Identity of the volume; none before the first contact of a fresh copy.
    pub volume: VolumeId,
    /// Identity of the sender's copy.
    pub instance: DiskInstance,
    /// Name of the sending node.
    pub node: String,
    /// Size of the volume as the sender's metadata has it, in bytes.
    pub size: u64,
    /// Random number of this attempt; both make the connection's identity.
    pub nonce: u64,
    /// Why the sender refuses; empty in a hello that does not refuse. A refusal is the last thing sent.
    pub refusal: String,
}

/// The checked fixed part of a hello.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Prefix {
    /// Length of the body that follows, in bytes.
    pub body_len: usize,
    /// The version both speak.
    pub version: u16,
    body_crc: u32,
}

/// Why a hello was not accepted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum HelloError {
    /// Something else speaks on that port.
    #[error("what answers is not repblk; check the data address of the peer")]
    Magic,
    /// TLS where none is spoken.
    #[error(
        "the peer speaks TLS, and this node has no keys; give both nodes the same configuration, with its table [security]"
    )]
    Encrypted,
    /// Damaged bytes.
    #[error("the hello was damaged in transit")]
    Checksum,
    /// No common version.
    #[error(
        "the peer speaks protocol {their_min} to {their_max}, this node {VERSION_MIN} to {VERSION_MAX}; upgrade the older node"
    )]
    Version {
        /// Lowest the peer speaks.
        their_min: u16,
        /// Highest the peer speaks.
        their_max: u16,
    },
    /// Too long a body.
    #[error("the hello announces {len} bytes, more than {BODY_LEN_MAX}")]
    Length {
        /// Announced length.
        len: usize,
    },
    /// The body cannot be read.
    #[error("the hello's body is not readable")]
    Body,
}

impl Hello {
    /// The bytes of this hello.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        self.encode_for(VERSION_MIN, VERSION_MAX)
    }

    fn encode_for(&self, version_min: u16, version_max: u16) -> Vec<u8> {
        let body = encode_body(self);
        let mut bytes = Vec::with_capacity(PREFIX_LEN + body.len());
        bytes.extend_from_slice(&MAGIC);
        bytes.extend_from_slice(&version_min.to_le_bytes());
        bytes.extend_from_slice(&version_max.to_le_bytes());
        bytes.extend_from_slice(&u32::try_from(body.len()).expect("bounded by encode_body").to_le_bytes());
        bytes.extend_from_slice(&crc32fast::hash(&body).to_le_bytes());
        let crc = crc32fast::hash(&bytes);
        bytes.extend_from_slice(&crc.to_le_bytes());
        bytes.extend_from_slice(&body);
        bytes
    }

    /// Checks the fixed part and says how long the body is.
    ///
    /// # Errors
    /// [`HelloError`]; the connection is then closed.
    pub fn prefix(bytes: &[u8; PREFIX_LEN]) -> Result<Prefix, HelloError> {
        let word = |at: usize| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        if bytes[..2] == TLS_HANDSHAKE {
            return Err(HelloError::Encrypted);
        }
        if bytes[..8] != MAGIC {
            return Err(HelloError::Magic);
        }
        if crc32fast::hash(&bytes[..20]) != word(20) {
            return Err(HelloError::Checksum);
        }
        let their_min = u16::from_le_bytes([bytes[8], bytes[9]]);
        let their_max = u16::from_le_bytes([bytes[10], bytes[11]]);
        if their_min > VERSION_MAX || their_max < VERSION_MIN || their_min > their_max {
            return Err(HelloError::Version { their_min, their_max });
        }
        let body_len = usize::try_from(word(12)).expect("usize has at least 32 bits");
        if body_len > BODY_LEN_MAX {
            return Err(HelloError::Length { len: body_len });
        }
        Ok(Prefix { body_len, version: their_max.min(VERSION_MAX), body_crc: word(16) })
    }

    /// Reads the body that follows `prefix`.
    ///
    /// # Errors
    /// [`HelloError::Checksum`] or [`HelloError::Body`].
    pub fn decode(prefix: &Prefix, body: &[u8]) -> Result<Self, HelloError> {
        if crc32fast::hash(body) != prefix.body_crc {
            return Err(HelloError::Checksum);
        }
        decode_body(body)
    }

    /// The identity of the connection that `self` and `other` make, the same on both sides.
    #[must_use]
    pub fn connection(&self, other: &Self) -> ConnectionId {
        let (low, high) = if self.instance <= other.instance { (self, other) } else { (other, self) };
        let mut mixed = 0x9E37_79B9_7F4A_7C15u64;
        for hello in [low, high] {
            let parts = [hello.cluster.0, hello.volume.0, hello.instance.0, hello.nonce.into()];
            for part in parts {
                for byte in part.to_le_bytes() {
                    // FNV-1a: spreads every input bit; not a secret.
                    mixed = (mixed ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01B3);
                }
            }
        }
        ConnectionId(mixed | 1)
    }
}

/// Encodes a control body.
///
/// # Panics
/// When it is longer than [`BODY_LEN_MAX`]; names are bounded by the configuration.
pub(crate) fn encode_body<T: serde::Serialize>(value: &T) -> Vec<u8> {
    let bytes = bincode::serde::encode_to_vec(value, bincode::config::standard()).expect("plain values always encode");
    assert!(bytes.len() <= BODY_LEN_MAX, "configuration bounds the names");
    bytes
}

/// Decodes a control body, all of it. A body has one form: integers and lengths are as short as they can be.
///
/// # Errors
/// [`HelloError::Body`].
pub(crate) fn decode_body<T: serde::Serialize + serde::de::DeserializeOwned>(bytes: &[u8]) -> Result<T, HelloError> {
    // What is read is written again below, and is no longer then.
    if bytes.len() > BODY_LEN_MAX {
        return Err(HelloError::Body);
    }
    let config = bincode::config::standard().with_limit::<BODY_LEN_MAX>();
    match bincode::serde::decode_from_slice(bytes, config) {
        Ok((value, used)) if used == bytes.len() && encode_body(&value) == bytes => Ok(value),
        _ => Err(HelloError::Body),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Found by review: bincode counts a number by its length in memory, and a large one is longer when it is written. So a body could be read that
    /// was too long to be written again, and comparing the two ended the process.
    #[test]
    fn a_body_that_is_too_long_is_refused_and_ends_nothing() {
        let numbers = vec![u64::MAX; 120];
        let bytes = bincode::serde::encode_to_vec(&numbers, bincode::config::standard()).expect("plain values");
        assert!(bytes.len() > BODY_LEN_MAX && numbers.len() * 8 < BODY_LEN_MAX);
        assert_eq!(decode_body::<Vec<u64>>(&bytes), Err(HelloError::Body));
        let fits = vec![u64::MAX; 100];
        assert_eq!(decode_body::<Vec<u64>>(&encode_body(&fits)), Ok(fits));
    }
}
