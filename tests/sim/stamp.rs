//! What stands in a sector: a stamp that names the write and the sector it was meant for.
//!
//! The disks keep one number per sector; only the link carries real bytes. Bytes that are no stamp (shifted, mixed,
//! damaged) become a stamp with [`GARBAGE`] set, which no write has.

/// Sector size as an index unit.
pub(crate) const SECTOR: usize = 512;
/// Marks content that no client ever wrote.
pub(crate) const GARBAGE: u64 = 1 << 63;
/// The content of a sector never written, or zeroed.
pub(crate) const ZERO: u64 = 0;

const SECTOR_BITS: u32 = 24;

/// The stamp of write number `write` for `sector`. Write numbers start at 1.
pub(crate) fn stamp(write: u64, sector: usize) -> u64 {
    assert!(write > 0 && write < 1 << 38 && sector < (1 << SECTOR_BITS) - 1, "a stamp has room");
    write << SECTOR_BITS | (sector as u64 + 1)
}

/// Write numbers from here on are no writes: a disk made them up. Such a stamp keeps its value on its way through bytes.
const ROT: u64 = 1 << 37;

/// The stamp that rot number `number` leaves in `sector`.
pub(crate) fn rot(number: u64, sector: usize) -> u64 {
    stamp(ROT + number, sector)
}

/// The stamp as a reader of traces wants it: `write@sector`.
pub(crate) fn show(stamp: u64) -> String {
    match stamp {
        ZERO => "zeros".to_owned(),
        s if s & GARBAGE != 0 => format!("garbage {:x}", s & !GARBAGE),
        s if s >> SECTOR_BITS >= ROT => {
            format!("rot{}@{}", (s >> SECTOR_BITS) - ROT, (s & ((1 << SECTOR_BITS) - 1)) - 1)
        }
        s => format!("w{}@{}", s >> SECTOR_BITS, (s & ((1 << SECTOR_BITS) - 1)) - 1),
    }
}

fn word(stamp: u64, i: usize) -> u64 {
    if stamp == ZERO { 0 } else { stamp ^ (i as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15) }
}

/// The bytes of the sectors with these stamps.
pub(crate) fn to_bytes(stamps: &[u64]) -> Vec<u8> {
    let mut bytes = vec![0; stamps.len() * SECTOR];
    let sectors = bytes.chunks_exact_mut(SECTOR).zip(stamps).filter(|&(_, &stamp)| stamp != ZERO);
    for (sector, &stamp) in sectors {
        for (i, place) in sector.as_chunks_mut::<8>().0.iter_mut().enumerate() {
            *place = word(stamp, i).to_le_bytes();
        }
    }
    bytes
}

/// The stamps of whole sectors of bytes.
pub(crate) fn of_bytes(bytes: &[u8]) -> Vec<u64> {
    assert!(bytes.len().is_multiple_of(SECTOR), "whole sectors only");
    bytes.chunks_exact(SECTOR).map(of_sector).collect()
}

fn of_sector(sector: &[u8]) -> u64 {
    let mut words = sector.as_chunks::<8>().0.iter().map(|&w| u64::from_le_bytes(w));
    let stamp = words.next().expect("a sector has words");
    let whole = words.enumerate().all(|(i, w)| w == word(stamp, i + 1));
    if whole && stamp & GARBAGE == 0 { stamp } else { GARBAGE | u64::from(crc32fast::hash(sector)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_give_their_stamps_back_and_damage_shows() {
        let stamps = [stamp(1, 0), ZERO, stamp(77, 4000)];
        let mut bytes = to_bytes(&stamps);
        assert_eq!(of_bytes(&bytes), stamps);
        bytes[700] = 1;
        bytes[1030] ^= 4;
        let damaged = of_bytes(&bytes);
        assert_eq!(damaged[0], stamps[0]);
        assert!(damaged[1] & GARBAGE != 0 && damaged[2] & GARBAGE != 0);
    }
}
