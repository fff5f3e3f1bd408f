//! The pages that make a new metadata area.

use crate::condition::DiskState;
use crate::generation::Lineage;
use crate::meta::superblock::{AL_SLOTS_DEFAULT, EXTENT_LEN_DEFAULT, Superblock};
use crate::meta::{MetaPage, activity_log};
use crate::units::{ClusterId, DiskInstance, Term, VolumeId};

/// What a new copy is told about itself. Names and lengths are bounded as in [`Superblock`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FormatParams {
    /// The cluster.
    pub cluster: ClusterId,
    /// Its name.
    pub cluster_name: String,
    /// The volume.
    pub volume: VolumeId,
    /// Its name.
    pub volume_name: String,
    /// Identity of the new copy, drawn for this format and never used before.
    pub instance: DiskInstance,
    /// Length of the data in bytes.
    pub data_len: u64,
    /// Length of an activity-log extent in bytes; [`EXTENT_LEN_DEFAULT`] is a good choice.
    pub extent_len: u32,
    /// Slots of the activity log; [`AL_SLOTS_DEFAULT`] is a good choice.
    pub al_slots: u32,
}

impl FormatParams {
    /// The superblock of the new copy: no data of the volume, no peers, term 0. Ready to be attached.
    #[must_use]
    pub fn superblock(&self) -> Superblock {
        Superblock {
            sequence: 2,
            cluster: self.cluster,
            cluster_name: self.cluster_name.clone(),
            volume: self.volume,
            volume_name: self.volume_name.clone(),
            instance: self.instance,
            data_len: self.data_len,
            extent_len: self.extent_len,
            al_slots: self.al_slots,
            al_epoch: 1,
            lineage: Lineage::default(),
            disk: DiskState::Inconsistent,
            term: Term(0),
            was_primary: false,
            clean: true,
            boot: 0,
            peers: Default::default(),
        }
    }
}

impl Default for FormatParams {
    fn default() -> Self {
        Self {
            cluster: ClusterId::NONE,
            cluster_name: String::new(),
            volume: VolumeId::NONE,
            volume_name: String::new(),
            instance: DiskInstance::NONE,
            data_len: 0,
            extent_len: EXTENT_LEN_DEFAULT,
            al_slots: AL_SLOTS_DEFAULT,
        }
    }
}

/// The pages of a new metadata area, to be written in order, with a flush at the end: the ring of the activity log, and
/// then both copies of the superblock, alike but for their sequence numbers (1 in copy 1, 2 in copy 0). Interrupted
/// before its end it leaves what was there, or an area that refuses to be attached; it can simply be run again.
///
/// The bitmaps' zones are not written: a peer's slot comes into use with `full` set, and that is cleared only when all
/// pages were written. Old bytes there are of another disk instance and are refused.
///
/// # Panics
/// When a parameter is outside of what [`Superblock`] allows.
#[must_use]
pub fn format(params: &FormatParams) -> Vec<MetaPage> {
    let second = params.superblock();
    let first = Superblock { sequence: 1, ..second.clone() };
    activity_log::blank_pages(params.instance).chain([first.encode(), second.encode()]).collect()
}
