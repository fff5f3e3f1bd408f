//! Values that the tests of the metadata share: a superblock, a disk in memory, a power loss.

use proptest::prelude::*;
use repblk::condition::DiskState;
use repblk::generation::{HISTORY_LEN, Lineage};
use repblk::meta::superblock::{AL_SLOTS_MIN, EXTENT_LEN_DEFAULT, NAME_LEN_MAX};
use repblk::meta::{FormatParams, MetaPage, PAGE_LEN, Page, PeerRecord, Superblock, format};
use repblk::units::{ByteRange, ClusterId, DiskInstance, GenerationId, Term, VolumeId};

pub(crate) const INSTANCE: DiskInstance = DiskInstance(0x1122_3344_5566_7788_99aa_bbcc_ddee_ff00);
pub(crate) const SECTOR_LEN: usize = 512;

pub(crate) fn params(data_len: u64) -> FormatParams {
    FormatParams {
        cluster: ClusterId(7),
        cluster_name: "harbour".into(),
        volume: VolumeId(8),
        volume_name: "pgdata".into(),
        instance: INSTANCE,
        data_len,
        extent_len: EXTENT_LEN_DEFAULT,
        al_slots: AL_SLOTS_MIN,
    }
}

/// A superblock with every field set to something of its own.
pub(crate) fn rich_superblock() -> Superblock {
    let mut lineage = Lineage::default();
    for i in 1..=18u64 {
        lineage.advance(GenerationId(0x0101_0101_0101_0101 * i));
    }
    Superblock {
        sequence: 41,
        al_epoch: 5,
        al_slots: 4096,
        lineage,
        disk: DiskState::UpToDate,
        term: Term(12),
        was_primary: true,
        clean: false,
        boot: 0x0bad_cafe << 64 | 0xf00d,
        peers: [
            PeerRecord { name: "böb".into(), instance: DiskInstance(3), base: GenerationId::NONE, full: false },
            PeerRecord {
                name: "n".repeat(NAME_LEN_MAX),
                instance: DiskInstance::NONE,
                base: GenerationId(9),
                full: true,
            },
            PeerRecord::default(),
        ],
        ..params(10 << 30).superblock()
    }
}

/// A metadata area in memory.
#[derive(Clone)]
pub(crate) struct Area(pub(crate) Vec<u8>);

impl Area {
    /// A formatted area for `params`, over bytes that mean nothing.
    pub(crate) fn formatted(params: &FormatParams) -> Self {
        let len = usize::try_from(params.superblock().layout().total_len()).expect("tests use small devices");
        let mut area = Self(vec![0xa5; len]);
        for page in format(params) {
            area.write(&page);
        }
        area
    }

    pub(crate) fn write(&mut self, page: &MetaPage) {
        self.write_sectors(page, 0xff);
    }

    /// A write torn by a power loss: only the sectors in `mask` reach the disk.
    pub(crate) fn write_sectors(&mut self, page: &MetaPage, mask: u8) {
        let offset = usize::try_from(page.offset).expect("tests use small devices");
        for sector in (0..8).filter(|s| mask >> s & 1 == 1) {
            let at = sector * SECTOR_LEN;
            self.0[offset + at..offset + at + SECTOR_LEN].copy_from_slice(&page.bytes[at..at + SECTOR_LEN]);
        }
    }

    pub(crate) fn read(&self, range: ByteRange) -> &[u8] {
        let at = |n| usize::try_from(n).expect("tests use small devices");
        &self.0[at(range.start())..at(range.end())]
    }

    pub(crate) fn page(&self, offset: u64) -> &Page {
        let at = usize::try_from(offset).expect("tests use small devices");
        self.0[at..at + PAGE_LEN].try_into().expect("a page long")
    }

    /// Rot: one bit of the byte at `offset` turns.
    pub(crate) fn rot(&mut self, offset: u64, bit: u8) {
        self.0[usize::try_from(offset).expect("tests use small devices")] ^= 1 << (bit % 8);
    }
}

fn name() -> impl Strategy<Value = String> {
    prop_oneof![Just(String::new()), "[a-zé漢]{1,21}", Just("x".repeat(NAME_LEN_MAX))]
}

fn peer() -> impl Strategy<Value = PeerRecord> {
    (name(), any::<u128>(), any::<u64>(), any::<bool>()).prop_map(|(name, instance, base, full)| PeerRecord {
        name,
        instance: DiskInstance(instance),
        base: GenerationId(base),
        full,
    })
}

/// Any valid superblock.
pub(crate) fn superblocks() -> impl Strategy<Value = Superblock> {
    let identity = (1u64..(1 << 63) - 1, any::<u128>(), name(), any::<u128>(), name(), 1..=u128::MAX);
    let disks = prop_oneof![
        Just(DiskState::Failed),
        Just(DiskState::Inconsistent),
        Just(DiskState::Diverged),
        Just(DiskState::Outdated),
        Just(DiskState::UpToDate)
    ];
    let shape = (1u64..=1 << 34, 16u32..=22, 8u32..=48_112, 1u64..1 << 63);
    let data = (any::<u64>(), any::<[u64; HISTORY_LEN]>(), disks, any::<u64>());
    let rest = (any::<bool>(), any::<bool>(), any::<u128>(), [peer(), peer(), peer()]);
    (identity, shape, data, rest).prop_map(|(identity, shape, data, rest)| Superblock {
        sequence: identity.0,
        cluster: ClusterId(identity.1),
        cluster_name: identity.2,
        volume: VolumeId(identity.3),
        volume_name: identity.4,
        instance: DiskInstance(identity.5),
        data_len: shape.0 * 4096,
        extent_len: 1 << shape.1,
        al_slots: shape.2,
        al_epoch: shape.3,
        lineage: Lineage { current: GenerationId(data.0), history: data.1.map(GenerationId) },
        disk: data.2,
        term: Term(data.3),
        was_primary: rest.0,
        clean: rest.1,
        boot: rest.2,
        peers: rest.3,
    })
}
