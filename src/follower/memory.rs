//! What a device was acknowledged, kept for a `repblk attach` that restarts.
//!
//! Written whenever the standing changes under which answers are given, before the first of them. Lost at a reboot of
//! the host, as everything is that relied on those answers; so it lies where a reboot clears.

use std::io::Write as _;
use std::path::PathBuf;

use crate::nbd::Standing;

#[derive(Debug)]
pub(super) struct Memory {
    path: PathBuf,
}

impl Memory {
    pub(super) fn new(path: PathBuf) -> Self {
        Self { path }
    }

    /// What an earlier life left.
    ///
    /// # Errors
    /// A sentence when there is something that cannot be read: it is not passed over, since it may forbid something.
    pub(super) fn load(&self) -> Result<Option<(Standing, u64)>, String> {
        let place = self.path.display();
        let text = match std::fs::read_to_string(&self.path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(format!("{place} cannot be read: {error}")),
        };
        let read = || {
            let (size, standing) = text.trim_end().split_once(' ')?;
            Some((standing.parse().ok()?, size.parse().ok()?))
        };
        read().map(Some).ok_or_else(|| {
            format!(
                "{place} is damaged; if nothing has been using the device since it was written, `repblk detach` removes it"
            )
        })
    }

    /// Replaces what is kept.
    ///
    /// # Errors
    /// A sentence.
    pub(super) fn save(&self, standing: &Standing, size: u64) -> Result<(), String> {
        let new = self.path.with_extension("new");
        let write = || {
            let mut file = std::fs::File::create(&new)?;
            writeln!(file, "{size} {standing}")?;
            std::fs::rename(&new, &self.path)
        };
        write().map_err(|error| format!("{} cannot be written: {error}", self.path.display()))
    }

    /// Forgets.
    ///
    /// # Errors
    /// A sentence.
    pub(super) fn clear(&self) -> Result<bool, String> {
        match std::fs::remove_file(&self.path) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(format!("{} cannot be removed: {error}", self.path.display())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LINE: &str = "repblk-follow-1 cluster=a cluster-id=1 volume-id=2 node=n instance=3 mode=sync term=4 whole-since=4 \
                        generation=5 history=";

    #[test]
    fn what_is_kept_comes_back_and_damage_is_told() {
        let folder = tempfile::tempdir().expect("a folder");
        let memory = Memory::new(folder.path().join("attach-mes.standing"));
        assert_eq!(memory.load(), Ok(None));
        let standing: Standing = LINE.parse().expect("a standing");
        memory.save(&standing, 77).expect("saved");
        memory.save(&standing, 78).expect("replaced");
        assert_eq!(memory.load(), Ok(Some((standing, 78))));
        std::fs::write(&memory.path, "78 something").expect("damaged");
        assert!(memory.load().expect_err("damaged").contains("repblk detach"));
        assert_eq!((memory.clear(), memory.clear()), (Ok(true), Ok(false)));
    }
}
