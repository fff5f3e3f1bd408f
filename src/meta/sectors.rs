//! Pages made of eight sectors that each prove their own identity.
//!
//! The superblock and the activity log must tell two damages apart. A page *torn* by a power loss holds sectors of the
//! page that was being written and sectors of what stood there before; the write never completed, nothing relied on it,
//! and the page may be forgotten. A page that *rotted* after its write completed is relied on, and forgetting it loses
//! data. One checksum over the page cannot tell them. So each sector carries its own:
//!
//! ```text
//! offset size field
//!      0    4 magic: the zone
//!      4    2 version
//!      6    2 reserved, zero
//!      8   16 disk instance
//!     24    8 offset of this sector from the start of the metadata area
//!     32    8 epoch     \ the stamp: the same in all eight sectors
//!     40    8 sequence  / of one write
//!     48    4 CRC-32 of the whole page's payload: the same in all eight sectors of one write
//!     52  456 payload
//!    508    4 CRC-32 of bytes 0..508
//! ```
//! Place and size of magic, version and CRC hold for all versions to come, so that an older program can say what it met.
//!
//! From this follows the rule that recovery rests on: *when a write completed, all eight sectors carry its stamp and its
//! payload's CRC; one intact sector with another stamp, or two with different CRCs, prove that it did not complete.* The
//! CRC of the payload tells two tries of one update apart: a sequence number is used again when its first try was lost
//! in a power loss, and a page mixed of both tries is no superblock.

use crate::meta::{PAGE_LEN, Page, wide};
use crate::units::{DiskInstance, SECTOR_SIZE};

/// Sectors of a page.
pub(super) const SECTORS: usize = 8;
/// Length of a sector in bytes.
pub(super) const SECTOR_LEN: usize = 512;
const OFF_VERSION: usize = 4;
const OFF_RESERVED: usize = OFF_VERSION + 2;
const OFF_INSTANCE: usize = OFF_RESERVED + 2;
const OFF_OFFSET: usize = OFF_INSTANCE + 16;
const OFF_EPOCH: usize = OFF_OFFSET + 8;
const OFF_SEQUENCE: usize = OFF_EPOCH + 8;
const OFF_PAGE_CRC: usize = OFF_SEQUENCE + 8;
const OFF_PAYLOAD: usize = OFF_PAGE_CRC + 4;
const OFF_CRC: usize = OFF_PAYLOAD + SHARE_LEN;
/// Payload bytes of one sector.
const SHARE_LEN: usize = 456;
/// Payload bytes of a page.
pub(super) const PAYLOAD_LEN: usize = SECTORS * SHARE_LEN;

const _: () = assert!(OFF_CRC + 4 == SECTOR_LEN);
const _: () = assert!(SECTORS * SECTOR_LEN == PAGE_LEN);
const _: () = assert!(SECTOR_LEN as u64 == SECTOR_SIZE);

/// What a zone's sectors are recognised by.
#[derive(Debug, Clone, Copy)]
pub(super) struct Kind {
    /// First four bytes.
    pub(super) magic: u32,
    /// Version written, and the newest understood.
    pub(super) version: u16,
}

/// Which write a sector belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Stamp {
    pub(super) epoch: u64,
    pub(super) sequence: u64,
}

/// What one sector proves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Sector {
    /// Intact, in its place, written by this disk instance under this stamp.
    Intact { instance: DiskInstance, stamp: Stamp, page_crc: u32 },
    /// Intact, but of a version that this program does not know.
    Newer { version: u16 },
    /// Begins with the zone's magic and proves nothing: damaged, or it belongs elsewhere.
    Damaged,
    /// Not a sector of this zone at all.
    Foreign,
}

/// True when the sectors of a page prove that the write of `instance` under `stamp` did not complete there.
pub(super) fn disprove(sectors: &[Sector; SECTORS], instance: DiskInstance, stamp: Stamp) -> bool {
    let mut crcs = [None; SECTORS];
    for (sector, crc) in sectors.iter().zip(&mut crcs) {
        match *sector {
            Sector::Intact { instance: i, stamp: s, .. } if i != instance || s != stamp => return true,
            Sector::Intact { page_crc, .. } => *crc = Some(page_crc),
            Sector::Newer { .. } | Sector::Damaged | Sector::Foreign => {}
        }
    }
    let mut crcs = crcs.into_iter().flatten();
    let first = crcs.next();
    crcs.any(|crc| Some(crc) != first)
}

/// Makes the page of one write.
pub(super) fn seal(
    kind: Kind,
    instance: DiskInstance,
    page_offset: u64,
    stamp: Stamp,
    payload: &[u8; PAYLOAD_LEN],
) -> Box<Page> {
    let mut page = Box::new([0u8; PAGE_LEN]);
    let page_crc = crc32fast::hash(payload);
    for (i, (sector, share)) in page.chunks_exact_mut(SECTOR_LEN).zip(payload.chunks_exact(SHARE_LEN)).enumerate() {
        let offset = page_offset + wide(i) * SECTOR_SIZE;
        sector[..OFF_VERSION].copy_from_slice(&kind.magic.to_le_bytes());
        sector[OFF_VERSION..OFF_RESERVED].copy_from_slice(&kind.version.to_le_bytes());
        sector[OFF_INSTANCE..OFF_OFFSET].copy_from_slice(&instance.0.to_le_bytes());
        sector[OFF_OFFSET..OFF_EPOCH].copy_from_slice(&offset.to_le_bytes());
        sector[OFF_EPOCH..OFF_SEQUENCE].copy_from_slice(&stamp.epoch.to_le_bytes());
        sector[OFF_SEQUENCE..OFF_PAGE_CRC].copy_from_slice(&stamp.sequence.to_le_bytes());
        sector[OFF_PAGE_CRC..OFF_PAYLOAD].copy_from_slice(&page_crc.to_le_bytes());
        sector[OFF_PAYLOAD..OFF_CRC].copy_from_slice(share);
        let crc = crc32fast::hash(&sector[..OFF_CRC]);
        sector[OFF_CRC..].copy_from_slice(&crc.to_le_bytes());
    }
    page
}

/// Looks at the eight sectors of a page read from `page_offset`.
pub(super) fn inspect(kind: Kind, page_offset: u64, page: &Page) -> [Sector; SECTORS] {
    std::array::from_fn(|i| {
        let bytes = &page[i * SECTOR_LEN..(i + 1) * SECTOR_LEN];
        inspect_sector(kind, page_offset + wide(i) * SECTOR_SIZE, bytes)
    })
}

fn inspect_sector(kind: Kind, offset: u64, bytes: &[u8]) -> Sector {
    if u32::from_le_bytes(field(bytes, 0)) != kind.magic {
        return Sector::Foreign;
    }
    if u32::from_le_bytes(field(bytes, OFF_CRC)) != crc32fast::hash(&bytes[..OFF_CRC]) {
        return Sector::Damaged;
    }
    let version = u16::from_le_bytes(field(bytes, OFF_VERSION));
    if version > kind.version {
        return Sector::Newer { version };
    }
    let in_place = u64::from_le_bytes(field(bytes, OFF_OFFSET)) == offset;
    if version != kind.version || !in_place || bytes[OFF_RESERVED..OFF_INSTANCE] != [0, 0] {
        return Sector::Damaged;
    }
    Sector::Intact {
        instance: DiskInstance(u128::from_le_bytes(field(bytes, OFF_INSTANCE))),
        stamp: Stamp {
            epoch: u64::from_le_bytes(field(bytes, OFF_EPOCH)),
            sequence: u64::from_le_bytes(field(bytes, OFF_SEQUENCE)),
        },
        page_crc: u32::from_le_bytes(field(bytes, OFF_PAGE_CRC)),
    }
}

/// Instance and stamp of a page whose eight sectors are intact and of one write, which carries the payload it says.
pub(super) fn whole(sectors: &[Sector; SECTORS], page: &Page) -> Option<(DiskInstance, Stamp)> {
    match sectors[0] {
        Sector::Intact { instance, stamp, page_crc }
            if sectors.iter().all(|s| *s == sectors[0]) && crc32fast::hash(&payload(page)[..]) == page_crc =>
        {
            Some((instance, stamp))
        }
        _ => None,
    }
}

/// The payload of a page that is [`whole`].
pub(super) fn payload(page: &Page) -> Box<[u8; PAYLOAD_LEN]> {
    let mut payload = Box::new([0u8; PAYLOAD_LEN]);
    for (share, sector) in payload.chunks_exact_mut(SHARE_LEN).zip(page.chunks_exact(SECTOR_LEN)) {
        share.copy_from_slice(&sector[OFF_PAYLOAD..OFF_CRC]);
    }
    payload
}

fn field<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    bytes[at..at + N].try_into().expect("the layout is fixed")
}
