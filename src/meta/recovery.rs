//! From the bytes of a metadata area to what can be believed of a copy.
//!
//! Two types, so that nobody works with what was not recovered: [`Unrecovered`] has a superblock and says what to read
//! next, [`Recovered`] has the bitmaps that follow from all zones together. Whatever cannot be believed makes blocks
//! dirty, never clean, and leaves a [`Note`] for the operator.
//!
//! Recovery changes nothing on disk and may be repeated. The caller then writes the modified bitmap pages, and when they
//! are stable a superblock with the next activity-log epoch; only that forgets the old log. After [`Note::LogUnusable`]
//! it also writes [`activity_log::blank_pages`], when the bitmaps are stable and before that superblock, so that the damage
//! does not outlive this attach.

use crate::condition::Continuity;
use crate::meta::activity_log::{self, LogError};
use crate::meta::bitmap::Bitmap;
use crate::meta::layout::Layout;
use crate::meta::superblock::{Superblock, SuperblockError};
use crate::meta::{PEER_SLOTS, Page, wide};
use crate::units::{ByteRange, ExtentNo, PeerNo};
use std::fmt;

/// What the shell knows of the device, or devices, in its hand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DeviceFacts {
    /// Room for data in bytes: what [`Layout::internal`] or [`Layout::external`] say.
    pub data_len: u64,
    /// Room for the metadata area in bytes.
    pub metadata_len: u64,
}

/// Why a copy cannot be attached.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RecoveryError {
    /// There is no usable superblock.
    #[error(transparent)]
    Superblock(#[from] SuperblockError),
    /// The device lost bytes since it was formatted.
    #[error(
        "the volume has {expected} bytes of data, the device offers {found}: it shrank, or it is another device than \
         the one that was formatted"
    )]
    DataLen {
        /// Bytes on the device.
        found: u64,
        /// Bytes of the volume.
        expected: u64,
    },
    /// The metadata's device is too short.
    #[error("the metadata area needs {expected} bytes, the device offers {found}")]
    MetadataLen {
        /// Bytes on the device.
        found: u64,
        /// Bytes of the area.
        expected: u64,
    },
}

/// Something that the operator's log must say about an attach.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Note {
    /// One copy of the superblock is torn or damaged.
    SuperblockCopy,
    /// The activity log does not tell what was hot.
    LogUnusable(LogError),
    /// The activity log names an extent behind the data.
    ExtentBehindData(ExtentNo),
    /// Pages of a peer's bitmap are not valid.
    BitmapPages {
        /// The peer.
        peer: String,
        /// Number of invalid pages.
        invalid: u64,
        /// Number of all pages.
        pages: u64,
    },
}

impl fmt::Display for Note {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::SuperblockCopy => write!(
                f,
                "one of the two copies of the superblock is torn or damaged; the other one is whole, is used, and replaces \
                 it. After a power loss this is ordinary; after anything else check this disk"
            ),
            Self::LogUnusable(e) => write!(f, "{e}: every block counts as dirty towards every peer"),
            Self::ExtentBehindData(extent) => write!(
                f,
                "the activity log names extent {extent}, which lies behind the data: every block counts as dirty towards \
                 every peer"
            ),
            Self::BitmapPages { peer, invalid, pages } => write!(
                f,
                "{invalid} of {pages} pages of the dirty bitmap for {peer} are torn, damaged or unreadable: their blocks \
                 count as dirty"
            ),
        }
    }
}

/// A superblock, and nothing else believed yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unrecovered {
    /// The newest whole superblock.
    pub superblock: Superblock,
    /// Where the other zones stand.
    pub layout: Layout,
    other_is_damaged: bool,
}

/// A copy as it may be attached.
#[derive(Debug)]
pub struct Recovered {
    /// The newest whole superblock, as it was read.
    pub superblock: Superblock,
    /// Where the zones stand.
    pub layout: Layout,
    /// For each used slot, the blocks that the peer may not have. Modified pages are to be written.
    pub bitmaps: [Option<Bitmap>; PEER_SLOTS],
    /// What may have been lost of writes that were not flushed.
    pub continuity: Continuity,
    /// Extents that the activity log made dirty.
    pub hot_extents: usize,
    /// For the operator's log.
    pub notes: Vec<Note>,
}

impl Unrecovered {
    /// Chooses among the two pages at [`Layout::superblock_offset`] 0 and 1.
    ///
    /// # Errors
    /// When there is no usable superblock, or the device is too short for what it says.
    pub fn read(a: &Page, b: &Page, facts: DeviceFacts) -> Result<Self, RecoveryError> {
        let choice = Superblock::choose(a, b)?;
        let superblock = choice.superblock;
        let layout = superblock.layout();
        if superblock.data_len > facts.data_len {
            return Err(RecoveryError::DataLen { found: facts.data_len, expected: superblock.data_len });
        }
        if layout.total_len() > facts.metadata_len {
            return Err(RecoveryError::MetadataLen { found: facts.metadata_len, expected: layout.total_len() });
        }
        Ok(Self { superblock, layout, other_is_damaged: choice.other_is_damaged })
    }

    /// The activity log's bytes to read, from the start of the metadata area; `None` when nothing can be hot.
    #[must_use]
    pub fn activity_log_range(&self) -> Option<ByteRange> {
        (!self.superblock.clean).then(|| self.layout.activity_log_range())
    }

    /// The bitmap zones to read, from the start of the metadata area; `None` for slots whose bitmap is not needed.
    #[must_use]
    pub fn bitmap_ranges(&self) -> [Option<ByteRange>; PEER_SLOTS] {
        slots().map(|slot| self.needs_bitmap(slot).then(|| self.layout.bitmap_range(slot)))
    }

    /// Puts the zones together. A zone that could not be read is given empty (the log) or `None` (a bitmap) and counts
    /// as damaged. `boot_now` is the identity of the running host's boot, 0 when unknown.
    #[must_use]
    pub fn recover(self, al_zone: &[u8], bitmap_zones: [Option<Vec<u8>>; PEER_SLOTS], boot_now: u128) -> Recovered {
        let mut notes = Vec::new();
        let superblock = &self.superblock;
        let hot = if superblock.clean { Some(Vec::new()) } else { self.hot(al_zone, &mut notes) };
        if self.other_is_damaged {
            notes.push(Note::SuperblockCopy);
        }
        let bitmaps = slots().map(|slot| {
            let record = &superblock.peers[usize::from(slot.0)];
            record.is_used().then(|| {
                let mut bitmap = if self.needs_bitmap(slot) {
                    self.read_bitmap(slot, bitmap_zones[usize::from(slot.0)].as_deref().unwrap_or_default(), &mut notes)
                } else {
                    Bitmap::new(superblock.data_len)
                };
                match &hot {
                    Some(hot) if !record.full => {
                        for &extent in hot {
                            bitmap.set(superblock.extent_range(extent));
                        }
                    }
                    Some(_) | None => bitmap.set_all(),
                }
                bitmap
            })
        });
        let continuity = if superblock.clean {
            Continuity::Clean
        } else if superblock.boot != 0 && superblock.boot == boot_now {
            Continuity::SameBoot
        } else {
            Continuity::Lost
        };
        Recovered {
            bitmaps,
            continuity,
            hot_extents: hot.map_or(0, |hot| hot.len()),
            notes,
            layout: self.layout,
            superblock: self.superblock,
        }
    }

    fn needs_bitmap(&self, slot: PeerNo) -> bool {
        let record = &self.superblock.peers[usize::from(slot.0)];
        record.is_used() && !record.full
    }

    /// The hot extents, or `None` when everything may have been.
    fn hot(&self, zone: &[u8], notes: &mut Vec<Note>) -> Option<Vec<ExtentNo>> {
        let superblock = &self.superblock;
        match activity_log::recover(zone, superblock.instance, superblock.al_epoch, superblock.al_slots) {
            Ok(hot) => match hot.iter().find(|extent| extent.0 >= superblock.extents()) {
                Some(&extent) => {
                    notes.push(Note::ExtentBehindData(extent));
                    None
                }
                None => Some(hot),
            },
            Err(e) => {
                notes.push(Note::LogUnusable(e));
                None
            }
        }
    }

    fn read_bitmap(&self, slot: PeerNo, zone: &[u8], notes: &mut Vec<Note>) -> Bitmap {
        let (data_len, instance) = (self.superblock.data_len, self.superblock.instance);
        let (bitmap, invalid) = Bitmap::decode_zone(data_len, zone, slot, instance, &self.layout);
        if !invalid.is_empty() {
            notes.push(Note::BitmapPages {
                peer: self.superblock.peers[usize::from(slot.0)].name.clone(),
                invalid: wide(invalid.len()),
                pages: bitmap.disk_pages(),
            });
        }
        bitmap
    }
}

fn slots() -> [PeerNo; PEER_SLOTS] {
    std::array::from_fn(|slot| PeerNo(u8::try_from(slot).expect("slots are few")))
}
