//! The cluster's secret, and the keys that are derived from it.

use ring::{hkdf, hmac};
use zeroize::{Zeroize, Zeroizing};

use crate::units::ClusterId;

/// Length of a secret in bytes.
pub const SECRET_LEN: usize = 32;

/// A secret that all nodes of a cluster share. It is never shown, and overwritten when it is dropped.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret([u8; SECRET_LEN]);

/// Why a text is no secret. The text is not repeated.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a secret is one line of {} hexadecimal digits", 2 * SECRET_LEN)]
pub struct SecretError;

/// The way that a datagram takes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    /// The cluster.
    pub cluster: ClusterId,
    /// What the datagrams are for; those of another purpose are not accepted.
    pub purpose: &'static str,
    /// Number of the path.
    pub path: u16,
    /// Name of the sender.
    pub from: String,
    /// Name of the receiver.
    pub to: String,
}

impl Secret {
    /// A secret of random bytes.
    #[must_use]
    pub fn new(bytes: [u8; SECRET_LEN]) -> Self {
        Self(bytes)
    }

    /// What everybody knows, for networks that are trusted: a datagram under it is whole, and not proved to be anybody's.
    #[must_use]
    pub fn public() -> Self {
        Self([0; SECRET_LEN])
    }

    /// Reads hexadecimal digits.
    ///
    /// # Errors
    /// When it is anything else.
    pub fn parse(text: &str) -> Result<Self, SecretError> {
        let text = text.as_bytes();
        if text.len() != 2 * SECRET_LEN {
            return Err(SecretError);
        }
        let digit = |byte: u8| char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
        let mut bytes = [0; SECRET_LEN];
        for (byte, pair) in bytes.iter_mut().zip(text.chunks_exact(2)) {
            let (high, low) = (digit(pair[0]).ok_or(SecretError)?, digit(pair[1]).ok_or(SecretError)?);
            *byte = high << 4 | low;
        }
        Ok(Self(bytes))
    }

    /// The digits that [`Secret::parse`] reads, for the file that keeps them.
    #[must_use]
    pub fn digits(&self) -> Zeroizing<String> {
        let digit = |value: u8| char::from_digit(value.into(), 16).expect("less than 16");
        // Room for all of them from the start: what grows leaves copies behind.
        let mut digits = Zeroizing::new(String::with_capacity(2 * SECRET_LEN));
        digits.extend(self.0.iter().flat_map(|byte| [digit(byte >> 4), digit(byte & 15)]));
        digits
    }

    /// Names the secret to whoever has it, and tells others nothing of it.
    pub(super) fn name(&self) -> u32 {
        let (from, to) = (String::new(), String::new());
        let route = Route { cluster: ClusterId::NONE, purpose: "name of the secret", path: 0, from, to };
        let tag = hmac::sign(&self.key(&route), b"");
        u32::from_le_bytes(tag.as_ref()[..4].try_into().expect("four bytes"))
    }

    /// The key of a route.
    pub(super) fn key(&self, route: &Route) -> hmac::Key {
        let salt = hkdf::Salt::new(hkdf::HKDF_SHA256, b"repblk sealed datagram 1");
        let (cluster, path) = (route.cluster.0.to_le_bytes(), route.path.to_le_bytes());
        // No name has a byte of 0, so the parts cannot run into each other.
        let info: [&[u8]; 7] =
            [&cluster, &path, route.purpose.as_bytes(), &[0], route.from.as_bytes(), &[0], route.to.as_bytes()];
        let derived = salt.extract(&self.0);
        let key = derived.expand(&info, hmac::HMAC_SHA256).expect("the length is the hash's own");
        hmac::Key::from(key)
    }
}

impl Drop for Secret {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secret(..)")
    }
}

impl Route {
    /// The way back.
    #[must_use]
    pub fn back(&self) -> Self {
        Self { from: self.to.clone(), to: self.from.clone(), ..self.clone() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digits_come_back_and_nothing_else_is_read() {
        let secret = Secret::new(std::array::from_fn(|i| u8::try_from(i * 7).expect("small")));
        assert_eq!(Secret::parse(&secret.digits()), Ok(secret.clone()));
        assert_eq!(Secret::parse(&secret.digits().to_uppercase()), Ok(secret.clone()));
        for wrong in ["", "00", &"0".repeat(63), &"0".repeat(65), &"g".repeat(64), &"é".repeat(32)] {
            assert_eq!(Secret::parse(wrong), Err(SecretError), "{wrong}");
        }
        assert_eq!(format!("{secret:?}"), "Secret(..)");
    }
}
