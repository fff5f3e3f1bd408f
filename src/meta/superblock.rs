//! The superblock: who this copy is and what its data is worth. Two copies, written in turn.
//!
//! Each change writes the whole superblock with the next sequence number into the copy that does *not* hold the present
//! one (sequence even: copy 0, odd: copy 1). A power loss in the middle leaves the present one untouched. The payload
//! of the [`sectors`](super) format:
//!
//! ```text
//! offset size field
//!      0   16 cluster                        240    8 term
//!     16   64 name of the cluster            248    1 disk state
//!     80   16 volume                         249    1 was primary
//!     96   64 name of the volume             250    1 clean
//!    160    8 length of the data, bytes      251    5 reserved, zero
//!    168    4 length of an extent, bytes     256   16 boot
//!    172    4 slots of the activity log      272  128 former generations, youngest first
//!    176    8 epoch of the activity log      400  3 x 104 peer records
//!    184    8 current generation             712      reserved, zero
//!    192   48 reserved, zero
//! peer record: name 64, instance 16, base 8, full 1, reserved 15
//! ```
//! Names are a length byte, at most 63 bytes of UTF-8, and zeros. The disk instance is in the header of each sector.

use crate::condition::DiskState;
use crate::generation::{HISTORY_LEN, Lineage};
use crate::meta::activity_log::AL_SLOTS_MAX;
use crate::meta::cursor::{PayloadReader, PayloadWriter, TEXT_LEN_MAX};
use crate::meta::layout::{DATA_LEN_MAX, Layout};
use crate::meta::sectors::{self, Kind, Sector, Stamp};
use crate::meta::{MetaPage, PEER_SLOTS, Page};
use crate::units::{BLOCK_SIZE, ByteRange, ClusterId, DiskInstance, ExtentNo, GenerationId, Term, VolumeId};

/// Longest name of a cluster, a volume or a peer, in bytes.
pub const NAME_LEN_MAX: usize = TEXT_LEN_MAX;
/// Smallest extent of the activity log, in bytes.
pub const EXTENT_LEN_MIN: u32 = 64 << 10;
/// Largest extent of the activity log, in bytes.
pub const EXTENT_LEN_MAX: u32 = 4 << 20;
/// Extent of the activity log unless chosen otherwise, in bytes.
pub const EXTENT_LEN_DEFAULT: u32 = 256 << 10;
/// Least number of slots in the activity log.
pub const AL_SLOTS_MIN: u32 = 8;
/// Slots of the activity log unless chosen otherwise: 1 GiB may be hot with the default extent.
pub const AL_SLOTS_DEFAULT: u32 = 4096;

/// What sequence numbers and epochs stay below: they are counted up from 1, so a greater one was not counted, and the next one
/// must be possible.
const COUNT_END: u64 = 1 << 63;

const KIND: Kind = Kind { magic: u32::from_le_bytes(*b"RBS1"), version: 1 };

const _: () = assert!((EXTENT_LEN_MIN as u64).is_multiple_of(BLOCK_SIZE));
const _: () = assert!(DATA_LEN_MAX / (EXTENT_LEN_MIN as u64) < u32::MAX as u64, "u32::MAX names no extent");
const _: () = assert!(AL_SLOTS_DEFAULT <= AL_SLOTS_MAX);

/// Why no superblock can be had.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SuperblockError {
    /// Nothing of repblk's stands there.
    #[error("no repblk metadata here: the device was never formatted, or it was overwritten; `repblk init` formats it")]
    NotFormatted,
    /// Something of repblk's stands there, and no copy is usable.
    #[error(
        "the repblk metadata here is damaged: no copy of the superblock is whole; restore it, or `repblk init` this \
         device afresh and let it resync from the peer"
    )]
    Damaged,
    /// A newer program wrote it.
    #[error(
        "the superblock has version {found}, this repblk reads up to {known}; use the repblk that wrote it, or a newer"
    )]
    TooNew {
        /// Version on disk.
        found: u16,
        /// Newest version known.
        known: u16,
    },
    /// Intact, and its content makes no sense.
    #[error("the superblock is intact but not valid: {why}; it was written by a faulty or foreign program")]
    Malformed {
        /// What is wrong.
        why: &'static str,
    },
    /// The two copies belong to different formattings.
    #[error(
        "the two copies of the superblock belong to different disk instances ({0} and {1}): an `init` did not finish, or \
         devices were mixed up; run `repblk init` again if this device's data may go"
    )]
    DifferentInstances(DiskInstance, DiskInstance),
}

/// What this copy knows of one peer's copy. An empty name marks an unused slot.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PeerRecord {
    /// The peer's name, at most [`NAME_LEN_MAX`] bytes; empty: the slot is unused.
    pub name: String,
    /// The peer's disk, [`DiskInstance::NONE`] until it was met.
    pub instance: DiskInstance,
    /// The generation at which the peer stopped following; the bitmap counts from there. None: in sync.
    pub base: GenerationId,
    /// Every block counts as dirty, and the bitmap's pages are not to be trusted. Cleared only when every page of the
    /// bitmap has been written and is stable.
    pub full: bool,
}

impl PeerRecord {
    /// True when the slot belongs to a peer.
    #[must_use]
    pub fn is_used(&self) -> bool {
        !self.name.is_empty()
    }
}

/// Identity and condition of one copy. The fields are the format's; who changes which, and when, is the volume's matter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Superblock {
    /// Counts the superblocks written since the format. Its parity chooses the copy.
    pub sequence: u64,
    /// The cluster.
    pub cluster: ClusterId,
    /// Its name, at most [`NAME_LEN_MAX`] bytes.
    pub cluster_name: String,
    /// The volume.
    pub volume: VolumeId,
    /// Its name, at most [`NAME_LEN_MAX`] bytes.
    pub volume_name: String,
    /// This copy. Never [`DiskInstance::NONE`].
    pub instance: DiskInstance,
    /// Length of the data in bytes; a multiple of [`BLOCK_SIZE`], not 0.
    pub data_len: u64,
    /// Length of an activity-log extent in bytes; a power of two, [`EXTENT_LEN_MIN`] to [`EXTENT_LEN_MAX`].
    pub extent_len: u32,
    /// Slots of the activity log, [`AL_SLOTS_MIN`] to [`AL_SLOTS_MAX`].
    pub al_slots: u32,
    /// Epoch of the activity log, from 1. Grows with each attach; a superblock with the new epoch is stable before the
    /// first transaction of that epoch is written.
    pub al_epoch: u64,
    /// Descent of the data.
    pub lineage: Lineage,
    /// What the data is worth.
    pub disk: DiskState,
    /// Highest term that this copy has taken or promised.
    pub term: Term,
    /// The node was primary when this was written.
    pub was_primary: bool,
    /// Detached in order: nothing in flight, everything flushed, the bitmaps' pages written.
    pub clean: bool,
    /// Identity of the host's boot under which this was written; 0 when unknown.
    pub boot: u128,
    /// The peers.
    pub peers: [PeerRecord; PEER_SLOTS],
}

/// The superblock found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Choice {
    /// The newest whole superblock.
    pub superblock: Superblock,
    /// The other copy is no whole superblock. Every durable change stands in both, so nothing is lost.
    pub other_is_damaged: bool,
}

impl Superblock {
    /// The page that holds this superblock; its copy follows from the sequence's parity.
    ///
    /// # Panics
    /// When a field is outside of what its documentation says.
    #[must_use]
    pub fn encode(&self) -> MetaPage {
        assert_eq!(self.fault(), None, "only valid superblocks are written");
        let mut w = PayloadWriter::new();
        w.u128(self.cluster.0);
        w.text(&self.cluster_name);
        w.u128(self.volume.0);
        w.text(&self.volume_name);
        w.u64(self.data_len);
        w.u32(self.extent_len);
        w.u32(self.al_slots);
        w.u64(self.al_epoch);
        w.u64(self.lineage.current.0);
        w.zeros(48);
        w.u64(self.term.0);
        w.u8(disk_code(self.disk));
        w.flag(self.was_primary);
        w.flag(self.clean);
        w.zeros(5);
        w.u128(self.boot);
        for generation in self.lineage.history {
            w.u64(generation.0);
        }
        for peer in &self.peers {
            w.text(&peer.name);
            w.u128(peer.instance.0);
            w.u64(peer.base.0);
            w.flag(peer.full);
            w.zeros(15);
        }
        let offset = Layout::superblock_offset(self.copy());
        let bytes = sectors::seal(KIND, self.instance, offset, self.stamp(), &w.finish());
        MetaPage { offset, bytes }
    }

    /// The superblock in a page read from the place of `copy`.
    ///
    /// # Errors
    /// When the page is not a whole, valid superblock of that copy.
    ///
    /// # Panics
    /// When `copy` is neither 0 nor 1.
    pub fn decode(page: &Page, copy: usize) -> Result<Self, SuperblockError> {
        let seen = sectors::inspect(KIND, Layout::superblock_offset(copy), page);
        if let Some((instance, stamp)) = sectors::whole(&seen, page) {
            let superblock = Self::read(instance, stamp, page).map_err(|why| SuperblockError::Malformed { why })?;
            return match superblock.fault() {
                Some(why) => Err(SuperblockError::Malformed { why }),
                None if superblock.copy() != copy => {
                    Err(SuperblockError::Malformed { why: "its sequence number belongs to the other copy" })
                }
                None => Ok(superblock),
            };
        }
        let newest = seen.iter().filter_map(|s| if let Sector::Newer { version } = s { Some(*version) } else { None });
        if let Some(found) = newest.max() {
            return Err(SuperblockError::TooNew { found, known: KIND.version });
        }
        let foreign = seen.iter().all(|s| *s == Sector::Foreign);
        Err(if foreign { SuperblockError::NotFormatted } else { SuperblockError::Damaged })
    }

    /// The newest whole superblock of the two copies.
    ///
    /// A change counts as durable when both copies carry it (`volume::book` writes one after the other). So each copy
    /// alone holds everything that anything relied on, and whether the other one was torn or rotted makes no difference.
    ///
    /// # Errors
    /// When no copy is usable, a newer program wrote one, or they belong to different disk instances.
    pub fn choose(a: &Page, b: &Page) -> Result<Choice, SuperblockError> {
        use SuperblockError::{Damaged, DifferentInstances, NotFormatted, TooNew};
        match (Self::decode(a, 0), Self::decode(b, 1)) {
            (Err(e @ TooNew { .. }), _) | (_, Err(e @ TooNew { .. })) => Err(e),
            (Ok(a), Ok(b)) if a.instance != b.instance => Err(DifferentInstances(a.instance, b.instance)),
            (Ok(a), Ok(b)) => {
                let superblock = if a.sequence > b.sequence { a } else { b };
                Ok(Choice { superblock, other_is_damaged: false })
            }
            (Ok(superblock), Err(_)) | (Err(_), Ok(superblock)) => Ok(Choice { superblock, other_is_damaged: true }),
            (Err(NotFormatted), Err(NotFormatted)) => Err(NotFormatted),
            (Err(e), Err(NotFormatted | Damaged)) | (Err(NotFormatted | Damaged), Err(e)) | (Err(e), Err(_)) => {
                Err(if e == NotFormatted { Damaged } else { e })
            }
        }
    }

    /// The layout of the metadata area that this superblock is part of.
    #[must_use]
    pub fn layout(&self) -> Layout {
        Layout::for_data_len(self.data_len)
    }

    /// Number of activity-log extents; the last one may be short.
    #[must_use]
    pub fn extents(&self) -> u32 {
        u32::try_from(self.data_len.div_ceil(u64::from(self.extent_len))).expect("a const assertion bounds it")
    }

    /// The bytes of an extent, cut at the end of the data.
    ///
    /// # Panics
    /// When the extent lies behind the data.
    #[must_use]
    pub fn extent_range(&self, extent: ExtentNo) -> ByteRange {
        let start = u64::from(extent.0) * u64::from(self.extent_len);
        assert!(start < self.data_len, "extents are bounded where they enter");
        ByteRange::new(start, u64::from(self.extent_len).min(self.data_len - start))
    }

    fn copy(&self) -> usize {
        usize::from(self.sequence % 2 == 1)
    }

    fn stamp(&self) -> Stamp {
        Stamp { epoch: 0, sequence: self.sequence }
    }

    fn read(instance: DiskInstance, stamp: Stamp, page: &Page) -> Result<Self, &'static str> {
        if stamp.epoch != 0 {
            return Err("a superblock has no epoch");
        }
        let payload = sectors::payload(page);
        let mut r = PayloadReader::new(&payload);
        let (cluster, cluster_name) = (ClusterId(r.u128()), r.text()?);
        let (volume, volume_name) = (VolumeId(r.u128()), r.text()?);
        let (data_len, extent_len, al_slots, al_epoch) = (r.u64(), r.u32(), r.u32(), r.u64());
        let current = GenerationId(r.u64());
        r.zeros(48)?;
        let (term, disk) = (Term(r.u64()), disk_from(r.u8())?);
        let (was_primary, clean) = (r.flag()?, r.flag()?);
        r.zeros(5)?;
        let boot = r.u128();
        let mut history = [GenerationId::NONE; HISTORY_LEN];
        for generation in &mut history {
            *generation = GenerationId(r.u64());
        }
        let mut peers: [PeerRecord; PEER_SLOTS] = Default::default();
        for peer in &mut peers {
            peer.name = r.text()?;
            peer.instance = DiskInstance(r.u128());
            peer.base = GenerationId(r.u64());
            peer.full = r.flag()?;
            r.zeros(15)?;
        }
        r.finish()?;
        Ok(Self {
            sequence: stamp.sequence,
            cluster,
            cluster_name,
            volume,
            volume_name,
            instance,
            data_len,
            extent_len,
            al_slots,
            al_epoch,
            lineage: Lineage { current, history },
            disk,
            term,
            was_primary,
            clean,
            boot,
            peers,
        })
    }

    /// What makes this superblock invalid, if anything. Checked before each write and after each read.
    fn fault(&self) -> Option<&'static str> {
        let names = [&self.cluster_name, &self.volume_name].into_iter().chain(self.peers.iter().map(|p| &p.name));
        let checks = [
            ((1..COUNT_END).contains(&self.sequence), "its sequence number is 0 or at its end"),
            (self.instance.is_some(), "it names no disk instance"),
            (self.data_len != 0 && self.data_len <= DATA_LEN_MAX, "the length of the data is out of bounds"),
            (self.data_len.is_multiple_of(BLOCK_SIZE), "the length of the data is not in whole blocks"),
            (self.extent_len.is_power_of_two(), "the length of an extent is no power of two"),
            ((EXTENT_LEN_MIN..=EXTENT_LEN_MAX).contains(&self.extent_len), "the length of an extent is out of bounds"),
            ((AL_SLOTS_MIN..=AL_SLOTS_MAX).contains(&self.al_slots), "the slots of the activity log are out of bounds"),
            ((1..COUNT_END).contains(&self.al_epoch), "the epoch of the activity log is 0 or at its end"),
            (names.into_iter().all(|n| n.len() <= NAME_LEN_MAX), "a name is too long"),
        ];
        checks.iter().find(|(holds, _)| !holds).map(|(_, why)| *why)
    }
}

fn disk_code(disk: DiskState) -> u8 {
    match disk {
        DiskState::Failed => 1,
        DiskState::Inconsistent => 2,
        DiskState::Diverged => 3,
        DiskState::Outdated => 4,
        DiskState::UpToDate => 5,
    }
}

fn disk_from(code: u8) -> Result<DiskState, &'static str> {
    Ok(match code {
        1 => DiskState::Failed,
        2 => DiskState::Inconsistent,
        3 => DiskState::Diverged,
        4 => DiskState::Outdated,
        5 => DiskState::UpToDate,
        _ => return Err("the disk state is unknown"),
    })
}
