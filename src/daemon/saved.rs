//! What only this copy holds, saved before it is given up (the contract, point 9: diverged data is never discarded silently).
//!
//! The blocks that this copy has and the peer may lack go to a sparse image in the directory `saved` of the node, each at
//! its own offset, with a text file beside it that lists their ranges. Both are made under other names and renamed when
//! they are stable, so that a file of the right name is complete. The volume is not served meanwhile; should it have
//! changed nevertheless, the machine refuses to give it up (rule `not-saved`).

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::handle::VolumeHandle;
use crate::condition::Role;
use crate::units::{BLOCK_SIZE, ByteRange, GenerationId};
use crate::volume::io::Discard;

/// What was saved.
pub(super) struct Saved {
    /// For the machine.
    pub(super) discard: Discard,
    /// For the operator; nothing if the copy is being served.
    pub(super) what: Option<String>,
}

/// Saves what `volume` holds alone in `directory`; `done` counts the bytes.
///
/// # Errors
/// A sentence; nothing is left under the final names then.
pub(super) async fn save(volume: &VolumeHandle, directory: &Path, done: Arc<AtomicU64>) -> Result<Saved, String> {
    let mut dirty = volume.ask_dirty(0).await?;
    if dirty.role == Role::Primary {
        // The machine refuses a primary, and nothing needs to be saved for that. Should it have been demoted in this moment, it
        // refuses as well: so many blocks no volume has.
        let discard = Discard::Saved { generation: GenerationId::NONE, blocks: u64::MAX };
        return Ok(Saved { discard, what: None });
    }
    let (generation, blocks) = (dirty.generation, dirty.blocks);
    let discard = Discard::Saved { generation, blocks };
    if dirty.runs.is_empty() {
        return Ok(Saved {
            discard,
            what: Some("this copy holds nothing that the peer may lack; nothing was saved".to_owned()),
        });
    }
    let mut album = {
        let (device, directory, size) = (volume.copy.device.clone(), directory.to_owned(), volume.identity.size);
        let name = format!("{}-{generation}", volume.name());
        blocking(move || Album::new(&device, &directory, &name, size)).await?
    };
    while let Some(last) = dirty.runs.last() {
        let next = last.end() / BLOCK_SIZE;
        let (runs, done) = (std::mem::take(&mut dirty.runs), Arc::clone(&done));
        album = blocking(move || album.add(&runs, &done)).await?;
        dirty = volume.ask_dirty(next).await?;
        check_unchanged((generation, blocks), (dirty.generation, dirty.blocks))?;
    }
    let image = blocking(move || album.finish()).await?;
    let bytes = done.load(Ordering::Relaxed);
    let what = format!(
        "{} blocks ({:.1} MiB) that only this copy holds were saved in {}; their ranges are in {}",
        bytes / BLOCK_SIZE,
        bytes as f64 / f64::from(1 << 20),
        image.display(),
        image.with_extension("ranges").display()
    );
    Ok(Saved { discard, what: Some(what) })
}

fn check_unchanged(first: (GenerationId, u64), now: (GenerationId, u64)) -> Result<(), String> {
    if first == now {
        return Ok(());
    }
    Err("the volume changed while it was being saved; nothing was given up. Say it again".to_owned())
}

async fn blocking<T: Send + 'static>(what: impl FnOnce() -> Result<T, String> + Send + 'static) -> Result<T, String> {
    tokio::task::spawn_blocking(what).await.map_err(|error| format!("saving ended: {error}"))?
}

/// An image in the making.
struct Album {
    device: File,
    image: File,
    ranges: BufWriter<File>,
    /// Final path of the image.
    path: PathBuf,
    finished: bool,
}

impl Album {
    fn new(device: &Path, directory: &Path, name: &str, size: u64) -> Result<Self, String> {
        let open = || -> io::Result<Self> {
            // They hold what the database holds: nobody else is to read them.
            DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
            let create =
                |path: &Path| OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(part(path));
            let path = directory.join(format!("{name}.img"));
            let image = create(&path)?;
            image.set_len(size)?;
            let ranges = BufWriter::new(create(&path.with_extension("ranges"))?);
            Ok(Self { device: File::open(device)?, image, ranges, path, finished: false })
        };
        open().map_err(|error| {
            fault(&format!("cannot save in {} what {} holds alone", directory.display(), device.display()), &error)
        })
    }

    fn add(mut self, runs: &[ByteRange], done: &AtomicU64) -> Result<Self, String> {
        let copy = |album: &mut Self, run: ByteRange| -> io::Result<()> {
            let mut bytes = vec![0; usize::try_from(run.len()).map_err(io::Error::other)?];
            album.device.read_exact_at(&mut bytes, run.start())?;
            // A hole reads as zeros, too.
            if bytes.iter().any(|&byte| byte != 0) {
                album.image.write_all_at(&bytes, run.start())?;
            }
            writeln!(album.ranges, "{} {}", run.start(), run.len())
        };
        for &run in runs {
            copy(&mut self, run).map_err(|error| {
                fault(&format!("cannot save {} bytes at {} in {}", run.len(), run.start(), self.path.display()), &error)
            })?;
            done.fetch_add(run.len(), Ordering::Relaxed);
        }
        Ok(self)
    }

    /// Makes both files stable under their final names; the image's path.
    fn finish(mut self) -> Result<PathBuf, String> {
        let end = |album: &mut Self| -> io::Result<()> {
            album.ranges.flush()?;
            album.ranges.get_ref().sync_all()?;
            album.image.sync_all()?;
            for path in [album.path.with_extension("ranges"), album.path.clone()] {
                std::fs::rename(part(&path), &path)?;
            }
            album.path.parent().map_or(Ok(()), |directory| File::open(directory)?.sync_all())
        };
        end(&mut self).map_err(|error| fault(&format!("cannot finish {}", self.path.display()), &error))?;
        self.finished = true;
        Ok(self.path.clone())
    }
}

impl Drop for Album {
    fn drop(&mut self) {
        if !self.finished {
            // What was not finished is of no use, and may have filled the disk.
            for path in [self.path.with_extension("ranges"), self.path.clone()] {
                let _ = std::fs::remove_file(part(&path));
            }
        }
    }
}

fn part(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".part");
    name.into()
}

fn fault(what: &str, error: &io::Error) -> String {
    format!(
        "{what}: {error}; nothing was given up. Make room there, or set `saved` of this node to another directory, or say \
         --unsaved if what only this copy holds may be lost"
    )
}
