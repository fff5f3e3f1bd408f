//! `repblk init`: makes a copy out of a device.
//!
//! Looks first and writes last. What it finds on the device (older metadata, a file system, a partition table) stops it
//! unless the operator insists, with a sentence that names what was found.
//!
//! `adopt` keeps the data and declares it good: the copy starts a generation of its own and is UpToDate, so that the
//! peer's fresh copy is filled from it. With internal metadata the tail of the device is needed, and a file system that
//! reaches into it would be damaged. An ext, XFS or btrfs superblock says how far it reaches; of anything else nobody
//! knows, and `force` is asked for.

use std::fs::{File, OpenOptions};
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::{FileExt, FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use super::config::{Config, CopySpec, MetadataPlace, VolumeSpec};
use super::identity::{cluster_id, random_u64, random_u128, volume_id};
use super::signature::{self, Found, HEAD_LEN, TAIL_LEN};
use crate::condition::DiskState;
use crate::generation::Lineage;
use crate::meta::superblock::{Superblock, SuperblockError};
use crate::meta::{self, FormatParams, Layout, MetaPage, PAGE_LEN, Page};
use crate::units::{DiskInstance, GenerationId};

/// What the operator allows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Permission {
    /// Overwrite what is found.
    pub force: bool,
    /// The device's data is the volume's data.
    pub adopt: bool,
}

/// What was made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Initialised {
    /// Identity of the new copy.
    pub instance: DiskInstance,
    /// Bytes of the volume.
    pub data_len: u64,
    /// Bytes of the metadata area.
    pub metadata_len: u64,
    /// The generation of adopted data; none for a fresh copy.
    pub generation: GenerationId,
}

/// Why no copy was made.
#[derive(Debug, thiserror::Error)]
pub enum InitError {
    /// A rule of caution forbids it.
    #[error("{0}")]
    Refused(String),
    /// The device or its system failed.
    #[error("{0}")]
    Failed(String),
}

/// The open files of a copy.
struct Target {
    device: File,
    device_len: u64,
    /// The file that the metadata is written to, where the area starts in it, and how it is called.
    metadata: File,
    offset: u64,
    place: PathBuf,
    data_len: u64,
    layout: Layout,
}

/// Makes the copy of `volume` on the node of `copy`.
///
/// # Errors
/// [`InitError`]. Nothing was written when it is `Refused`.
pub fn init(
    config: &Config,
    volume: &VolumeSpec,
    copy: &CopySpec,
    permission: Permission,
) -> Result<Initialised, InitError> {
    let target = Target::open(copy)?;
    if !permission.force {
        look_for_metadata(&target, copy)?;
        look_for_strangers(&target, copy, permission.adopt)?;
    }
    check_tail(&target, copy, permission)?;
    let params = FormatParams {
        cluster: cluster_id(&config.cluster),
        cluster_name: config.cluster.clone(),
        volume: volume_id(&config.cluster, &volume.name),
        volume_name: volume.name.clone(),
        instance: DiskInstance(random_u128().map_err(|error| no_entropy(&error))?),
        data_len: target.data_len,
        al_slots: volume.activity_log_slots,
        ..FormatParams::default()
    };
    let generation = match permission.adopt {
        true => GenerationId(random_u64().map_err(|error| no_entropy(&error))?),
        false => GenerationId::NONE,
    };
    target.write(&pages(&params, generation))?;
    let metadata_len = target.layout.total_len();
    Ok(Initialised { instance: params.instance, data_len: target.data_len, metadata_len, generation })
}

/// The pages of a fresh copy, or of one whose data starts `generation`.
fn pages(params: &FormatParams, generation: GenerationId) -> Vec<MetaPage> {
    let mut pages = meta::format(params);
    if generation.is_some() {
        let second = Superblock {
            lineage: Lineage::starting_with(generation),
            disk: DiskState::UpToDate,
            ..params.superblock()
        };
        let first = Superblock { sequence: second.sequence - 1, ..second.clone() };
        // In the place of the two superblocks of a fresh copy, which stand last.
        pages.truncate(pages.len() - 2);
        pages.extend([first.encode(), second.encode()]);
    }
    pages
}

impl Target {
    fn open(copy: &CopySpec) -> Result<Self, InitError> {
        let (device, device_len) = open(&copy.device)?;
        let too_odd = |error| InitError::Refused(format!("{}: {error}", copy.device.display()));
        match &copy.metadata {
            MetadataPlace::Internal => {
                let (data_len, layout) = Layout::internal(device_len).map_err(too_odd)?;
                let metadata = device.try_clone().map_err(|error| failed("open", &copy.device, &error))?;
                let place = copy.device.clone();
                Ok(Self { device, device_len, metadata, offset: data_len, place, data_len, layout })
            }
            MetadataPlace::External(path) => {
                let (data_len, layout) = Layout::external(device_len).map_err(too_odd)?;
                let metadata = open_metadata(path, layout.total_len())?;
                Ok(Self { device, device_len, metadata, offset: 0, place: path.clone(), data_len, layout })
            }
        }
    }

    fn write(&self, pages: &[MetaPage]) -> Result<(), InitError> {
        let write = || {
            for page in pages {
                self.metadata.write_all_at(&page.bytes[..], self.offset + page.offset)?;
            }
            self.metadata.sync_all()
        };
        write().map_err(|error| failed("write the metadata to", &self.place, &error))
    }
}

/// Opens a device for writing and says how long it is.
fn open(path: &Path) -> Result<(File, u64), InitError> {
    let facts = std::fs::metadata(path).map_err(|error| failed("open", path, &error))?;
    let is_device = facts.file_type().is_block_device();
    if !is_device && !facts.is_file() {
        return Err(InitError::Refused(format!(
            "{} is neither a block device nor a file; correct `device` in the configuration",
            path.display()
        )));
    }
    let mut options = OpenOptions::new();
    options.read(true).write(true);
    if is_device {
        // The kernel refuses this for a device that is mounted or part of something else.
        options.custom_flags(libc::O_EXCL);
    }
    let mut file = options.open(path).map_err(|error| failed("open", path, &error))?;
    if file.try_lock().is_err() {
        return Err(InitError::Refused(format!("{} is locked by another process; stop it first", path.display())));
    }
    let len = file.seek(SeekFrom::End(0)).map_err(|error| failed("measure", path, &error))?;
    if len == 0 {
        return Err(InitError::Refused(format!(
            "{} has no bytes; give it a size first, for instance with `truncate -s 1G {}` for a file",
            path.display(),
            path.display()
        )));
    }
    Ok((file, len))
}

/// Opens the place of external metadata; a file that is not there is made, and one that is too short made longer.
fn open_metadata(path: &Path, needed: u64) -> Result<File, InitError> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false).mode(0o600);
    let mut file = options.open(path).map_err(|error| failed("open", path, &error))?;
    let len = file.seek(SeekFrom::End(0)).map_err(|error| failed("measure", path, &error))?;
    if len < needed {
        let is_file = file.metadata().is_ok_and(|facts| facts.is_file());
        if !is_file {
            return Err(InitError::Refused(format!(
                "{} has {len} bytes, and the metadata needs {needed}; name a larger device",
                path.display()
            )));
        }
        file.set_len(needed).map_err(|error| failed("make room in", path, &error))?;
    }
    Ok(file)
}

fn look_for_metadata(target: &Target, copy: &CopySpec) -> Result<(), InitError> {
    let mut places = vec![(&target.metadata, target.offset, &target.place)];
    if let (MetadataPlace::External(_), Ok((offset, _))) = (&copy.metadata, Layout::internal(target.device_len)) {
        places.push((&target.device, offset, &copy.device));
    }
    for (file, offset, path) in places {
        let page = |number| read_page(file, offset + Layout::superblock_offset(number), path);
        let (first, second) = (page(0)?, page(1)?);
        let what = match Superblock::choose(&first, &second) {
            Err(SuperblockError::NotFormatted) => {
                if !has_log(file, offset, path)? {
                    continue;
                }
                "the remains of repblk metadata: both superblocks are gone, the activity log is there".to_owned()
            }
            Ok(choice) => format!(
                "metadata of volume {:?} of cluster {:?} (disk instance {})",
                choice.superblock.volume_name, choice.superblock.cluster_name, choice.superblock.instance
            ),
            Err(error) => format!("repblk metadata that cannot be used ({error})"),
        };
        return Err(InitError::Refused(format!(
            "{} has {what}; nothing was changed. If that copy may be forgotten, run `repblk init --force`",
            path.display()
        )));
    }
    Ok(())
}

/// True when an activity log stands in the metadata area at `offset`. Its place is the same in every layout.
fn has_log(file: &File, offset: u64, path: &Path) -> Result<bool, InitError> {
    let ring = Layout::for_data_len(0).activity_log_range();
    for at in (ring.start()..ring.end()).step_by(PAGE_LEN) {
        if meta::activity_log::is_of_a_log(&*read_page(file, offset + at, path)?) {
            return Ok(true);
        }
    }
    Ok(false)
}

fn look_for_strangers(target: &Target, copy: &CopySpec, adopt: bool) -> Result<(), InitError> {
    let on_device = recognised(&target.device, target.device_len, &copy.device)?;
    if let (Some(found), false) = (on_device, adopt) {
        return Err(InitError::Refused(format!(
            "{} has {}; nothing was changed. To keep that data as the volume's, run `repblk init --adopt`; to let it be \
             overwritten, `repblk init --force`",
            copy.device.display(),
            found.what
        )));
    }
    if let MetadataPlace::External(path) = &copy.metadata {
        let len = target.layout.total_len();
        if let Some(found) = recognised(&target.metadata, len, path)? {
            return Err(InitError::Refused(format!(
                "{}, where the metadata would go, has {}; nothing was changed. Name another place, or run `repblk init \
                 --force` to overwrite it",
                path.display(),
                found.what
            )));
        }
    }
    Ok(())
}

/// Adopted data must not reach into the room of internal metadata.
fn check_tail(target: &Target, copy: &CopySpec, permission: Permission) -> Result<(), InitError> {
    if !permission.adopt || copy.metadata != MetadataPlace::Internal {
        return Ok(());
    }
    let (device, room) = (copy.device.display(), target.device_len - target.data_len);
    let way_out = "put the metadata elsewhere (`metadata = \"/path\"` in the configuration)";
    let found = recognised(&target.device, target.device_len, &copy.device)?;
    match found {
        Some(Found { what, len: Some(len) }) if len > target.data_len => Err(InitError::Refused(format!(
            "{device} has {what} of {len} bytes, and internal metadata needs the last {room} bytes of the device, from byte \
             {} on; nothing was changed. Shrink the file system to {} bytes or less, enlarge the device, or {way_out}",
            target.data_len, target.data_len
        ))),
        Some(Found { len: Some(_), .. }) => Ok(()),
        _ if permission.force => Ok(()),
        found => Err(InitError::Refused(format!(
            "{device} has {}, and nothing tells whether it uses the last {room} bytes of the device, which internal metadata \
             would overwrite; nothing was changed. If they are free, add --force; else {way_out}",
            found.map_or("no file system that is known here", |found| found.what)
        ))),
    }
}

fn recognised(file: &File, len: u64, path: &Path) -> Result<Option<Found>, InitError> {
    let read = || {
        let mut head = vec![0; HEAD_LEN.min(usize::try_from(len).unwrap_or(HEAD_LEN))];
        let mut tail = vec![0; TAIL_LEN.min(head.len())];
        let tail_len = u64::try_from(tail.len()).expect("a small constant bounds it");
        file.read_exact_at(&mut head, 0)?;
        file.read_exact_at(&mut tail, len - tail_len)?;
        Ok(signature::recognise(&head, &tail, len))
    };
    read().map_err(|error: io::Error| failed("read", path, &error))
}

fn read_page(file: &File, offset: u64, path: &Path) -> Result<Box<Page>, InitError> {
    let mut page = Box::new([0; PAGE_LEN]);
    file.read_exact_at(&mut page[..], offset).map_err(|error| failed("read", path, &error))?;
    Ok(page)
}

fn no_entropy(error: &io::Error) -> InitError {
    InitError::Failed(format!("no random number can be had from /dev/urandom: {error}"))
}

fn failed(verb: &str, path: &Path, error: &io::Error) -> InitError {
    let next = match error.kind() {
        io::ErrorKind::NotFound => "check `device` and `metadata` in the configuration, and that the disk is there",
        io::ErrorKind::PermissionDenied if error.raw_os_error() == Some(libc::EPERM) => {
            "not even root may: a file may be immutable (`lsattr`), a device set read-only (`blockdev --getro`)"
        }
        io::ErrorKind::PermissionDenied => "run this as root, or give this user the right to write there",
        io::ErrorKind::ReadOnlyFilesystem => "it is read-only; make it writable",
        io::ErrorKind::ResourceBusy => "it is mounted or part of something else (LVM, RAID, swap); release it first",
        io::ErrorKind::StorageFull => "there is no room; free some",
        _ => "check the disk and the kernel's log",
    };
    InitError::Failed(format!("cannot {verb} {}: {error}; {next}", path.display()))
}

#[cfg(test)]
mod tests;
