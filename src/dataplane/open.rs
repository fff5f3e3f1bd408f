//! Opening a disk for oneself alone, and the reads and writes of the time before the volume runs.

use std::fs::{File, Metadata, OpenOptions, TryLockError};
use std::io::{self, Seek, SeekFrom};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::backend::BackendChoice;
use super::engine::{Engine, Files};
use super::pool::{Area, Pool};
use super::sys;
use crate::meta::{Layout, LayoutError, MetaPage};
use crate::units::ByteRange;

/// Where a copy's metadata lives.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum MetadataPlace {
    /// At the tail of the device.
    Internal,
    /// In a file or on a device of its own.
    External(PathBuf),
}

/// What to open.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DiskConfig {
    /// The block device or regular file that holds the data.
    pub device: PathBuf,
    /// Where the metadata lives.
    pub metadata: MetadataPlace,
    /// An external metadata file that does not exist is made. For `init` alone.
    pub create_metadata: bool,
    /// Data bypasses the page cache.
    pub direct: bool,
    /// Where operations run that would hold up the volume.
    pub backend: BackendChoice,
}

/// Why a disk cannot be opened. Nothing was changed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// There is no such file.
    #[error("{path}: there is no such file or device; check the path in the configuration")]
    NotFound {
        /// Which.
        path: PathBuf,
    },
    /// This user may not.
    #[error("{path}: permission denied; run as root, or give this user read and write access to it")]
    Permission {
        /// Which.
        path: PathBuf,
    },
    /// It cannot be written.
    #[error(
        "{path}: is read-only; a copy must be writable (blockdev --setrw for a device, chattr -i for an immutable file, or \
         mount the file system read-write)"
    )]
    ReadOnly {
        /// Which.
        path: PathBuf,
    },
    /// Another process has it.
    #[error("{path}: is in use by another process; a second daemon on the same device would destroy it. {hint}")]
    InUse {
        /// Which.
        path: PathBuf,
        /// What to look for.
        hint: &'static str,
    },
    /// It is neither a block device nor a regular file.
    #[error("{path}: is neither a block device nor a regular file")]
    WrongType {
        /// Which.
        path: PathBuf,
    },
    /// It cannot hold a volume.
    #[error("{path}: {source}")]
    Size {
        /// Which.
        path: PathBuf,
        /// Why.
        source: LayoutError,
    },
    /// The metadata file is too short for the device.
    #[error(
        "{path}: the metadata area is {found} bytes long where {needed} are needed; it was cut off, or belongs to another device"
    )]
    MetadataLength {
        /// Which.
        path: PathBuf,
        /// Its length in bytes.
        found: u64,
        /// Length needed in bytes.
        needed: u64,
    },
    /// Direct I/O does not work here.
    #[error("{path}: direct I/O is refused ({source}); set direct = false, or use another file system")]
    Direct {
        /// Which.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Anything else the system says.
    #[error("{path}: {what}: {source}")]
    Io {
        /// Which.
        path: PathBuf,
        /// What was tried.
        what: &'static str,
        /// What the system said.
        source: io::Error,
    },
}

/// A disk that is open and locked by this process.
#[derive(Debug)]
pub struct Disk {
    files: Files,
    backend: BackendChoice,
    device_len: u64,
    data_len: u64,
    layout: Layout,
    metadata_path: PathBuf,
    write_through: bool,
}

impl Disk {
    /// Opens and locks what `config` names.
    ///
    /// # Errors
    /// When it cannot be used; see [`OpenError`].
    pub fn open(config: &DiskConfig) -> Result<Self, OpenError> {
        let path = &config.device;
        let (data, block_device) = open_locked(path, config.direct, false)?;
        let device_len = length(&data).map_err(|e| io_error(path, "its length cannot be found", e))?;
        let size = |source| OpenError::Size { path: path.clone(), source };
        let (data_len, layout, metadata, metadata_start, metadata_path) = match &config.metadata {
            MetadataPlace::Internal => {
                let (data_len, layout) = Layout::internal(device_len).map_err(size)?;
                // Already locked through `data`.
                let again = reopen(path, &data)?;
                (data_len, layout, again, data_len, path.clone())
            }
            MetadataPlace::External(place) => {
                let (data_len, layout) = Layout::external(device_len).map_err(size)?;
                let (metadata, is_device) = open_locked(place, false, config.create_metadata)?;
                let mut found = length(&metadata).map_err(|e| io_error(place, "its length cannot be found", e))?;
                if config.create_metadata && !is_device && found < layout.total_len() {
                    found = layout.total_len();
                    metadata.set_len(found).map_err(|e| io_error(place, "it cannot be made long enough", e))?;
                }
                if found < layout.total_len() {
                    return Err(OpenError::MetadataLength { path: place.clone(), found, needed: layout.total_len() });
                }
                (data_len, layout, metadata, 0, place.clone())
            }
        };
        let metadata_area = ByteRange::new(metadata_start, layout.total_len());
        let files = Files { data, metadata, metadata_area, direct: config.direct, block_device };
        if config.direct {
            try_direct(&files).map_err(|source| OpenError::Direct { path: path.clone(), source })?;
        }
        let write_through = sys::is_in_memory(&files.data)
            || config.direct && block_device && has_no_cache(Path::new("/sys/dev/block"), &files.data);
        if write_through {
            // An earlier life may have written through the page cache.
            files.data.sync_data().map_err(|e| io_error(path, "it cannot be flushed", e))?;
        }
        Ok(Self { files, backend: config.backend, device_len, data_len, layout, metadata_path, write_through })
    }

    /// Length of the device in bytes.
    #[must_use]
    pub fn device_len(&self) -> u64 {
        self.device_len
    }

    /// Bytes the device offers for data. The superblock says how many the volume has.
    #[must_use]
    pub fn data_len(&self) -> u64 {
        self.data_len
    }

    /// The zones of the metadata area.
    #[must_use]
    pub fn layout(&self) -> Layout {
        self.layout
    }

    /// True when data that is written is stable at once: nothing lies between this program and a medium that forgets it with the power, or
    /// the medium forgets everything anyway. What was written before is stable too then.
    #[must_use]
    pub fn is_write_through(&self) -> bool {
        self.write_through
    }

    /// Reads a range of the metadata area.
    ///
    /// # Errors
    /// When the disk fails, or ends before the range does.
    pub fn read_meta(&self, range: ByteRange) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; usize::try_from(range.len()).map_err(|_| io::ErrorKind::OutOfMemory)?];
        self.files.metadata.read_exact_at(&mut bytes, self.files.metadata_area.start() + range.start())?;
        Ok(bytes)
    }

    /// Writes pages of the metadata area and makes them stable before it returns.
    ///
    /// # Errors
    /// When the disk fails; some pages may then be written.
    pub fn write_meta_now(&self, pages: &[MetaPage]) -> io::Result<()> {
        for page in pages {
            self.files.metadata.write_all_at(&page.bytes[..], self.files.metadata_area.start() + page.offset)?;
        }
        self.files.metadata.sync_all()?;
        if let Some(directory) = self.metadata_path.parent().filter(|p| !self.files.block_device && p.is_dir()) {
            // A file that was just made must also be found again.
            File::open(directory)?.sync_all()?;
        }
        Ok(())
    }

    /// Reads a range of the device as it is, for a look at what is on it.
    ///
    /// # Errors
    /// When the disk fails, or ends before the range does.
    pub fn read_device(&self, range: ByteRange) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; usize::try_from(range.len()).map_err(|_| io::ErrorKind::OutOfMemory)?];
        let path = format!("/proc/self/fd/{}", self.files.data.as_raw_fd());
        // The data's own descriptor may be for direct I/O, which is particular about memory.
        File::open(path)?.read_exact_at(&mut bytes, range.start())?;
        Ok(bytes)
    }

    /// Starts the engine.
    pub(super) fn into_engine(self) -> io::Result<Engine> {
        Engine::new(self.files, self.backend)
    }
}

fn io_error(path: &Path, what: &'static str, source: io::Error) -> OpenError {
    OpenError::Io { path: path.to_owned(), what, source }
}

fn length(file: &File) -> io::Result<u64> {
    // Also right for block devices, whose metadata says 0.
    let mut file = file;
    file.seek(SeekFrom::End(0))
}

/// Longest wait for another process to let go of a disk.
const RELEASE_TIME: Duration = Duration::from_secs(3);

/// Opens `path` for reading and writing and locks it. True when it is a block device.
///
/// One that is in use is tried again for [`RELEASE_TIME`]: a daemon that was killed keeps its disk until the kernel has
/// taken its ring apart, some time after the process is gone. Who restarts it at once must not find the disk taken.
fn open_locked(path: &Path, direct: bool, create: bool) -> Result<(File, bool), OpenError> {
    let deadline = Instant::now() + RELEASE_TIME;
    loop {
        match try_open_locked(path, direct, create) {
            Err(OpenError::InUse { .. }) if Instant::now() < deadline => std::thread::sleep(Duration::from_millis(20)),
            outcome => return outcome,
        }
    }
}

fn try_open_locked(path: &Path, direct: bool, create: bool) -> Result<(File, bool), OpenError> {
    let owned = || path.to_owned();
    let refused = |source: io::Error| match source.raw_os_error() {
        Some(libc::ENOENT) => OpenError::NotFound { path: owned() },
        Some(libc::EACCES) => OpenError::Permission { path: owned() },
        Some(libc::EROFS | libc::EPERM) => OpenError::ReadOnly { path: owned() },
        Some(libc::EISDIR) => OpenError::WrongType { path: owned() },
        Some(libc::EBUSY) => {
            OpenError::InUse { path: owned(), hint: "Is it mounted, part of a RAID or LVM, or open in another daemon?" }
        }
        Some(libc::EINVAL) if direct => OpenError::Direct { path: owned(), source },
        _ => OpenError::Io { path: owned(), what: "it cannot be opened", source },
    };
    let known = std::fs::metadata(path);
    let is_device = known.as_ref().is_ok_and(|m| m.file_type().is_block_device());
    if known.is_ok_and(|m| !is_device && !m.is_file()) {
        return Err(OpenError::WrongType { path: owned() });
    }
    let exclusive = if is_device { libc::O_EXCL } else { 0 };
    let flags = exclusive | if direct { libc::O_DIRECT } else { 0 };
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(create && !is_device)
        .custom_flags(flags)
        .open(path)
        .map_err(refused)?;
    let hint = "Is another repblk running for it?";
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => return Err(OpenError::InUse { path: owned(), hint }),
        Err(TryLockError::Error(e)) => return Err(io_error(path, "it cannot be locked", e)),
    }
    // Some programs look at the one kind of lock, some at the other.
    match sys::lock_description(&file) {
        Ok(true) => {}
        Ok(false) => return Err(OpenError::InUse { path: owned(), hint }),
        Err(e) => return Err(io_error(path, "it cannot be locked", e)),
    }
    if is_device && sys::block_device_is_read_only(&file).map_err(|e| io_error(path, "its state cannot be read", e))? {
        return Err(OpenError::ReadOnly { path: owned() });
    }
    Ok((file, is_device))
}

/// True when the kernel knows of no volatile cache in a block device, as of drives whose cache outlives a loss of power: then it makes
/// nothing of a flush itself. `by_number` is where sysfs lists devices by their numbers; a partition has its disk's queue.
fn has_no_cache(by_number: &Path, device: &File) -> bool {
    let Ok(about) = device.metadata() else { return false };
    let here = by_number.join(format!("{}:{}", libc::major(about.rdev()), libc::minor(about.rdev())));
    ["queue/write_cache", "../queue/write_cache"]
        .iter()
        .any(|place| std::fs::read_to_string(here.join(place)).is_ok_and(|cache| cache.trim_end() == "write through"))
}

/// Opens the same file once more, for the page cache.
fn reopen(path: &Path, original: &File) -> Result<File, OpenError> {
    let failed = |e| io_error(path, "it cannot be opened for metadata", e);
    let again = OpenOptions::new().read(true).write(true).open(path).map_err(failed)?;
    let identity = |m: Metadata| (m.dev(), m.ino(), m.rdev());
    let (first, second) = (original.metadata().map_err(failed)?, again.metadata().map_err(failed)?);
    if identity(first) != identity(second) {
        return Err(io_error(path, "it was exchanged while it was opened", io::ErrorKind::Other.into()));
    }
    Ok(again)
}

/// Reads one block directly, to learn now rather than in the first request whether that works.
fn try_direct(files: &Files) -> io::Result<()> {
    let mut pool =
        Pool::new(super::pool::PoolSizes { clients: 4096, reads: 4096, resync: 4096, links: 4096, bounce: 4096 })?;
    let chunk = pool.allocate(Area::Bounce, 4096).expect("an empty pool has a page");
    files.data.read_exact_at(pool.chunk_bytes_mut(chunk, 0, 4096), 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Says of `/dev/null` what sysfs says of a disk.
    fn answer(place: &str, cache: &str) -> bool {
        let (sysfs, device) = (tempfile::tempdir().expect("a folder"), File::open("/dev/null").expect("everywhere"));
        let (disk, partition) = (sysfs.path().join("disk"), sysfs.path().join("disk/part"));
        std::fs::create_dir_all(partition.join("queue")).expect("made");
        std::fs::create_dir_all(disk.join("queue")).expect("made");
        std::fs::write(sysfs.path().join(place), cache).expect("written");
        std::os::unix::fs::symlink(partition, sysfs.path().join("1:3")).expect("linked");
        has_no_cache(sysfs.path(), &device)
    }

    #[test]
    fn the_kernel_is_believed_about_a_cache() {
        assert!(answer("disk/part/queue/write_cache", "write through\n"));
        assert!(answer("disk/queue/write_cache", "write through\n"), "a partition has its disk's queue");
        assert!(!answer("disk/part/queue/write_cache", "write back\n"));
        assert!(!answer("disk/queue/rotational", "0\n"), "what nothing is known of may have one");
    }
}
