//! Identities that both nodes come to without talking, and numbers that nobody can guess.
//!
//! A cluster and a volume are what the configuration calls them: their identities are hashes of the names. So two copies
//! formatted on two nodes agree, and a copy formatted for another cluster or volume is refused by its numbers even when
//! somebody renames things.

use std::fs::File;
use std::io::{self, Read};

use crate::units::{ClusterId, VolumeId};

/// The identity of the cluster called `name`.
#[must_use]
pub fn cluster_id(name: &str) -> ClusterId {
    ClusterId(hash(&["cluster", name]))
}

/// The identity of the volume called `name` in `cluster`.
#[must_use]
pub fn volume_id(cluster: &str, name: &str) -> VolumeId {
    VolumeId(hash(&["volume", cluster, name]))
}

/// FNV-1a of 128 bits over the parts, each closed by a byte that no name has. Never 0.
fn hash(parts: &[&str]) -> u128 {
    let mut hash = 0x6c62_272e_07bb_0142_62b8_2175_6295_c58d_u128;
    for part in parts {
        for &byte in part.as_bytes().iter().chain(&[0xff]) {
            hash = (hash ^ u128::from(byte)).wrapping_mul(0x0000_0000_0100_0000_0000_0000_0000_013b);
        }
    }
    hash.max(1)
}

/// 16 random bytes of the operating system as a number, never 0.
///
/// # Errors
/// When `/dev/urandom` cannot be read.
pub fn random_u128() -> io::Result<u128> {
    let mut bytes = [0; 16];
    File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(u128::from_le_bytes(bytes).max(1))
}

/// 8 random bytes of the operating system as a number, never 0.
///
/// # Errors
/// As [`random_u128`].
pub fn random_u64() -> io::Result<u64> {
    let mut bytes = [0; 8];
    File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(u64::from_le_bytes(bytes).max(1))
}

/// Identity of the running host's boot; 0 when the kernel does not tell.
#[must_use]
pub fn boot_id() -> u128 {
    let text = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    u128::from_str_radix(&text.trim().replace('-', ""), 16).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn identities_are_fixed_for_ever_and_differ() {
        // Written into metadata: a change here would part every existing pair.
        assert_eq!(cluster_id("plant7").to_string(), "e69e658ab94ee479ebcead97958d65a1");
        assert_ne!(volume_id("plant7", "mes"), volume_id("plant7", "mes2"));
        assert_ne!(volume_id("a", "bc"), volume_id("ab", "c"));
        assert_ne!(cluster_id("x").0, volume_id("x", "").0);
    }

    #[test]
    fn random_numbers_differ() {
        assert_ne!(random_u64().expect("has entropy"), random_u64().expect("has entropy"));
        assert_ne!(random_u128().expect("has entropy"), random_u128().expect("has entropy"));
    }
}
