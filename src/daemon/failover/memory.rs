//! What failover of one volume must not forget when the daemon ends: the highest term of the arbiter's record, and the last changes of the
//! writer where no record keeps them.
//!
//! One small JSON file in the node's directory `state`. It is written under another name, made stable and renamed, so that it is always whole.

use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tracing::warn;

use crate::failover::history::History;
use crate::units::{Term, VolumeId};

/// The version this code writes, and the only one it reads.
const VERSION: u16 = 1;

/// What is remembered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Memory {
    /// The highest term that the record is known to have had.
    pub(super) floor: Term,
    pub(super) past: History,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Text {
    version: u16,
    /// Of the volume, in hexadecimal: a file under the wrong name is noticed.
    volume: String,
    term: u64,
    history: History,
}

/// The file.
#[derive(Debug, Clone)]
pub(super) struct MemoryFile {
    path: PathBuf,
    volume: VolumeId,
}

impl MemoryFile {
    pub(super) fn new(directory: &Path, node: &str, volume: (&str, VolumeId)) -> Self {
        Self { path: directory.join(format!("{node}-{}.failover", volume.0)), volume: volume.1 }
    }

    /// Reads it; nothing is remembered when there is no file.
    ///
    /// # Errors
    /// A sentence, when there is a file that cannot be understood.
    pub(super) fn read(&self) -> Result<Memory, String> {
        let text = match std::fs::read_to_string(&self.path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Ok(Memory { floor: Term(0), past: History::default() });
            }
            Err(error) => return Err(self.fault("cannot be read", &error)),
        };
        let text: Text = serde_json::from_str(&text).map_err(|error| self.fault("cannot be understood", &error))?;
        if text.version != VERSION || text.volume != self.volume.to_string() || !text.history.is_bounded() {
            return Err(self.fault("cannot be used", &"it is of another version or volume"));
        }
        Ok(Memory { floor: Term(text.term), past: text.history })
    }

    fn fault(&self, what: &str, error: &dyn std::fmt::Display) -> String {
        format!(
            "what failover remembers in {} {what}: {error}. Mend that, or remove the file: then a record that was restored from a backup \
             is not noticed, and the history of this node is lost",
            self.path.display()
        )
    }

    /// Writes it durably.
    ///
    /// # Errors
    /// A sentence.
    pub(super) fn write(&self, memory: &Memory) -> Result<(), String> {
        let write = || -> io::Result<()> {
            let directory = self.path.parent().unwrap_or_else(|| Path::new("/"));
            std::fs::create_dir_all(directory)?;
            let text = Text {
                version: VERSION,
                volume: self.volume.to_string(),
                term: memory.floor.0,
                history: memory.past.clone(),
            };
            let part = self.path.with_extension("part");
            let mut file = File::create(&part)?;
            serde_json::to_writer(&mut file, &text)?;
            file.write_all(b"\n")?;
            file.sync_all()?;
            std::fs::rename(&part, &self.path)?;
            File::open(directory)?.sync_all()
        };
        write().map_err(|error| {
            format!(
                "what failover must remember cannot be written to {}: {error}; make room there, or set `state` of this node",
                self.path.display()
            )
        })
    }

    /// Writes what comes, for ever. A disk that hangs holds up nobody else; what came meanwhile is written once.
    pub(super) async fn keep_writing(self, mut news: watch::Receiver<Memory>) {
        while news.changed().await.is_ok() {
            let (file, memory) = (self.clone(), news.borrow_and_update().clone());
            let written = tokio::task::spawn_blocking(move || file.write(&memory)).await;
            if let Ok(Err(why)) = written {
                warn!("{why}");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::failover::history::{Cause, Episode};

    fn memory() -> Memory {
        let mut past = History::default();
        past.add(Episode {
            at_unix_ms: 5,
            term: 7,
            to: "a".into(),
            cause: Cause::Automatic,
            rule: "take-over-fenced".into(),
            evidence: "x".into(),
        });
        Memory { floor: Term(7), past }
    }

    #[test]
    fn what_was_written_is_read_and_what_is_strange_is_refused() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = MemoryFile::new(&folder.path().join("new"), "a", ("mes", VolumeId(9)));
        assert_eq!(file.read(), Ok(Memory { floor: Term(0), past: History::default() }));
        file.write(&memory()).expect("is written");
        assert_eq!(file.read(), Ok(memory()));
        let other = MemoryFile { volume: VolumeId(8), ..file.clone() };
        assert!(other.read().expect_err("another volume").contains("remove the file"));
        std::fs::write(&file.path, "{").expect("can be written");
        assert!(file.read().expect_err("cut off").contains("cannot be understood"));
        let nowhere = MemoryFile::new(Path::new("/proc/nowhere"), "a", ("mes", VolumeId(9)));
        assert!(nowhere.write(&memory()).expect_err("no such place").contains("`state`"));
    }

    #[tokio::test]
    async fn the_youngest_is_on_the_disk_in_the_end() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = MemoryFile::new(folder.path(), "a", ("mes", VolumeId(9)));
        let (sender, receiver) = watch::channel(memory());
        let writing = tokio::spawn(file.clone().keep_writing(receiver));
        for term in 8..60 {
            sender.send_modify(|memory| memory.floor = Term(term));
        }
        drop(sender);
        writing.await.expect("ends with its sender");
        assert_eq!(file.read().map(|memory| memory.floor), Ok(Term(59)));
    }
}
