//! Metadata pages by the text of the format alone: damage, and checksums that are made right again afterwards.

use super::input::Input;
use super::rng::Rng;
use repblk::condition::DiskState;
use repblk::generation::{HISTORY_LEN, Lineage};
use repblk::meta::superblock::{AL_SLOTS_MIN, EXTENT_LEN_MIN};
use repblk::meta::{MetaPage, PAGE_LEN, Page, PeerRecord, Superblock};
use repblk::units::{BLOCK_SIZE, ByteRange, ClusterId, DiskInstance, GenerationId, Term, VolumeId};

pub const INSTANCE: DiskInstance = DiskInstance(0x1122_3344_5566_7788_99aa_bbcc_ddee_ff00);
pub const SECTORS: usize = 8;
const SECTOR_LEN: usize = 512;
const STAMP: std::ops::Range<usize> = 32..48;
const PAGE_CRC: std::ops::Range<usize> = 48..52;
const PAYLOAD: std::ops::Range<usize> = 52..508;
const SECTOR_CRC: std::ops::Range<usize> = 508..512;

/// Makes the checksums of a page of sectors right: that of the payload in all sectors, and that of each sector.
pub fn mend(page: &mut Page, payload: bool) {
    let mut hasher = crc32fast::Hasher::new();
    page.chunks_exact(SECTOR_LEN).for_each(|sector| hasher.update(&sector[PAYLOAD]));
    let page_crc = hasher.finalize().to_le_bytes();
    for sector in page.chunks_exact_mut(SECTOR_LEN) {
        if payload {
            sector[PAGE_CRC].copy_from_slice(&page_crc);
        }
        let crc = crc32fast::hash(&sector[..SECTOR_CRC.start]);
        sector[SECTOR_CRC].copy_from_slice(&crc.to_le_bytes());
    }
}

/// Gives all sectors of a page another stamp; the checksums are wrong then.
pub fn stamp(page: &mut Page, epoch: u64, sequence: u64) {
    for sector in page.chunks_exact_mut(SECTOR_LEN) {
        sector[STAMP].copy_from_slice(&[epoch.to_le_bytes(), sequence.to_le_bytes()].concat());
    }
}

/// Changes at most seven bytes as the input says. True when the page is another one afterwards.
pub fn patch(page: &mut Page, input: &mut Input<'_>) -> bool {
    let before = *page;
    for _ in 0..input.u8() & 7 {
        let at = usize::from(input.u16()) % PAGE_LEN;
        page[at] = input.u8();
    }
    *page != before
}

/// Overwrites the sectors in `mask` with noise, as a disk that rots.
pub(crate) fn rot(page: &mut Page, mask: u8, rng: &mut Rng) {
    for (i, sector) in page.chunks_exact_mut(SECTOR_LEN).enumerate() {
        if mask >> i & 1 == 1 {
            // The magic number may survive.
            let from = 4 * rng.index(2);
            sector[from..].iter_mut().for_each(|byte| *byte = rng.next().to_le_bytes()[0]);
        }
    }
}

/// A valid superblock for small volumes.
pub fn superblock(input: &mut Input<'_>) -> Superblock {
    let mut history = [GenerationId::NONE; HISTORY_LEN];
    history[0] = GenerationId(input.number());
    Superblock {
        sequence: input.number().clamp(1, (1 << 63) - 3),
        cluster: ClusterId(input.number().into()),
        cluster_name: name(input),
        volume: VolumeId(input.number().into()),
        volume_name: name(input),
        instance: if input.u8() & 7 == 7 { DiskInstance(9) } else { INSTANCE },
        data_len: (u64::from(input.u16()) + 256) * BLOCK_SIZE,
        extent_len: EXTENT_LEN_MIN << input.index(7),
        al_slots: AL_SLOTS_MIN + u32::from(input.u16()) % 2400,
        al_epoch: input.number().clamp(1, (1 << 63) - 3),
        lineage: Lineage { current: GenerationId(input.number()), history },
        disk: disk_state(input),
        term: Term(input.number()),
        was_primary: input.flag(),
        clean: input.flag(),
        boot: input.number().into(),
        peers: std::array::from_fn(|_| peer(input)),
    }
}

pub fn disk_state(input: &mut Input<'_>) -> DiskState {
    use DiskState::{Diverged, Failed, Inconsistent, Outdated, UpToDate};
    input.pick(&[UpToDate, Failed, Inconsistent, Diverged, Outdated])
}

pub fn peer(input: &mut Input<'_>) -> PeerRecord {
    PeerRecord {
        name: name(input),
        instance: DiskInstance(input.number().into()),
        base: GenerationId(input.number()),
        full: input.u8() & 3 == 3,
    }
}

fn name(input: &mut Input<'_>) -> String {
    let len = usize::from(input.u8()) % 64;
    input.bytes(len).iter().map(|&byte| char::from(byte & 0x7f)).collect()
}

/// A range of the data, in bytes, not empty.
pub fn range(input: &mut Input<'_>, data_len: u64) -> ByteRange {
    let start = (u64::from(input.u16()) * 1021 * 512) % data_len;
    ByteRange::new(start, (1 + u64::from(input.u16()) * 64).min(data_len - start))
}

/// A disk's metadata area in memory.
#[derive(Clone)]
pub struct Image(pub Vec<u8>);

impl Image {
    pub fn blank(len: u64) -> Self {
        Self(vec![0xa5; usize::try_from(len).expect("volumes here are small")])
    }

    pub fn write(&mut self, page: &MetaPage) {
        self.write_torn(page, u8::MAX);
    }

    /// Only the sectors in `mask` reach the disk.
    pub fn write_torn(&mut self, page: &MetaPage, mask: u8) {
        let there = self.page_mut(page.offset).chunks_exact_mut(SECTOR_LEN);
        for (i, (old, new)) in there.zip(page.bytes.chunks_exact(SECTOR_LEN)).enumerate() {
            if mask >> i & 1 == 1 {
                old.copy_from_slice(new);
            }
        }
    }

    pub fn page_mut(&mut self, offset: u64) -> &mut Page {
        let offset = usize::try_from(offset).expect("the image is small");
        self.0[offset..].first_chunk_mut().expect("pages are whole")
    }

    pub fn page(&self, offset: u64) -> &Page {
        let offset = usize::try_from(offset).expect("the image is small");
        self.0[offset..].first_chunk().expect("pages are whole")
    }

    pub fn read(&self, range: ByteRange) -> &[u8] {
        let at = |byte: u64| usize::try_from(byte).expect("the image is small");
        &self.0[at(range.start())..at(range.end())]
    }
}
