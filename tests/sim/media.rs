//! What a disk remembers, sector by sector. The fault model of everything stored:
//!
//! - A sector has a *durable* content and, above it, the *versions* that were written since and are not yet stable, oldest
//!   first. Readers see the youngest version (the volatile image): the drive's or the kernel's cache.
//! - A flush makes stable what was written and completed before the flush **started**. What completes while it runs may
//!   or may not become stable; here it does not.
//! - A power loss takes, for each sector on its own, the durable content or any of the versions above it: a cache writes back
//!   in any order and at any time, and a sector that was written twice may be left with its middle version. So a 4 KiB
//!   write may be torn between sectors, and a later write may survive an earlier one. A sector itself is never mixed.
//! - A killed process loses nothing that was written: the image stays in the kernel's cache, stable or not.
//! - A failed flush *curses* the versions it covered: no later flush makes them stable, and the cache may forget them
//!   whenever it likes. That is what a kernel does to dirty pages after a failed fsync.
//! - Bit rot and misdirected writes change the durable content behind everybody's back.

use std::collections::BTreeMap;

use crate::rng::Rng;

/// The sectors of one device.
#[derive(Clone, Debug)]
pub(crate) struct Media<S> {
    durable: Vec<S>,
    volatile: Vec<S>,
    above: BTreeMap<usize, Vec<Version<S>>>,
    tick: u64,
    /// Sectors that readers may see changed since somebody asked last, if anybody does.
    touched: Option<Vec<usize>>,
}

#[derive(Clone, Copy, Debug)]
struct Version<S> {
    tick: u64,
    content: S,
    cursed: bool,
}

/// How a cache ends when the power goes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Loss {
    /// Nothing unflushed survives.
    Everything,
    /// Everything unflushed survives: the cache had just been written back, or is protected.
    Nothing,
    /// Each sector for itself.
    Anything,
}

impl<S: Copy + PartialEq> Media<S> {
    /// A stable device of `len` equal sectors.
    pub(crate) fn new(len: usize, content: S) -> Self {
        Self {
            durable: vec![content; len],
            volatile: vec![content; len],
            above: BTreeMap::new(),
            tick: 0,
            touched: None,
        }
    }

    /// Sectors that may have changed since the last call, in no order and with repetitions; at the first call, every one.
    pub(crate) fn take_touched(&mut self) -> Vec<usize> {
        self.touched.replace(Vec::new()).unwrap_or_else(|| (0..self.volatile.len()).collect())
    }

    /// Something took this device's place: every sector may have changed.
    pub(crate) fn touch_all(&mut self) {
        self.touched = None;
    }

    fn touch(&mut self, sector: usize) {
        if let Some(touched) = &mut self.touched {
            touched.push(sector);
        }
    }

    /// The image that readers see.
    pub(crate) fn view(&self) -> &[S] {
        &self.volatile
    }

    /// The stable image.
    pub(crate) fn durable(&self) -> &[S] {
        &self.durable
    }

    /// One sector was written.
    pub(crate) fn write(&mut self, sector: usize, content: S) {
        self.tick += 1;
        self.touch(sector);
        self.volatile[sector] = content;
        self.above.entry(sector).or_default().push(Version { tick: self.tick, content, cursed: false });
    }

    /// Where a flush that starts now reaches.
    pub(crate) fn mark(&self) -> u64 {
        self.tick
    }

    /// A flush that reaches `mark` succeeded.
    pub(crate) fn flushed(&mut self, mark: u64) {
        let durable = &mut self.durable;
        self.above.retain(|&sector, versions| {
            if let Some(last) = versions.iter().rfind(|v| v.tick <= mark && !v.cursed) {
                durable[sector] = last.content;
                let stable = last.tick;
                versions.retain(|v| v.tick > stable);
            }
            !versions.is_empty()
        });
    }

    /// A flush that reaches `mark` failed.
    pub(crate) fn flush_failed(&mut self, mark: u64) {
        for version in self.above.values_mut().flatten().filter(|v| v.tick <= mark) {
            version.cursed = true;
        }
    }

    /// The cache forgets what a failed flush has cursed.
    pub(crate) fn forget_cursed(&mut self) {
        let (durable, volatile, touched) = (&self.durable, &mut self.volatile, &mut self.touched);
        self.above.retain(|&sector, versions| {
            let before = versions.len();
            versions.retain(|v| !v.cursed);
            if versions.len() < before {
                touched.iter_mut().for_each(|touched| touched.push(sector));
            }
            volatile[sector] = versions.last().map_or(durable[sector], |v| v.content);
            !versions.is_empty()
        });
    }

    /// The power goes.
    pub(crate) fn power_loss(&mut self, loss: Loss, rng: &mut Rng) {
        self.power_cut(&mut |versions| match loss {
            Loss::Everything => 0,
            Loss::Nothing => versions,
            Loss::Anything => rng.index(versions + 1),
        });
    }

    /// Sectors whose youngest content is not stable.
    pub(crate) fn unflushed(&self) -> usize {
        self.above.len()
    }

    /// The power goes; `keep` is asked of each unflushed sector, lowest first, how many of its versions had reached the medium.
    pub(crate) fn power_cut(&mut self, keep: &mut dyn FnMut(usize) -> usize) {
        for (sector, versions) in std::mem::take(&mut self.above) {
            let kept = keep(versions.len());
            if kept > 0 {
                self.durable[sector] = versions[kept - 1].content;
            }
            self.touch(sector);
            self.volatile[sector] = self.durable[sector];
        }
    }

    /// The stable content of a sector rots. A younger version in the cache hides that until the cache is lost, or writes over it.
    pub(crate) fn decay(&mut self, sector: usize, content: S) {
        self.durable[sector] = content;
        if !self.above.contains_key(&sector) {
            self.touch(sector);
            self.volatile[sector] = content;
        }
    }

    /// The content changes behind everybody's back, for readers too: another sector's write that came here.
    pub(crate) fn rot(&mut self, sector: usize, content: S) {
        self.above.remove(&sector);
        self.touch(sector);
        self.durable[sector] = content;
        self.volatile[sector] = content;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flush_covers_what_was_written_before_it_started() {
        let mut media = Media::new(4, 0u64);
        media.write(0, 1);
        let mark = media.mark();
        media.write(0, 2);
        media.write(1, 3);
        media.flushed(mark);
        assert_eq!(media.view(), [2, 3, 0, 0]);
        assert_eq!(media.durable(), [1, 0, 0, 0]);
        media.power_loss(Loss::Everything, &mut Rng::new(1));
        assert_eq!(media.view(), [1, 0, 0, 0]);
    }

    #[test]
    fn a_power_loss_may_leave_any_version() {
        let mut seen = std::collections::BTreeSet::new();
        for seed in 0..64 {
            let mut media = Media::new(1, 0u64);
            media.write(0, 1);
            media.write(0, 2);
            media.power_loss(Loss::Anything, &mut Rng::new(seed));
            seen.insert(media.view()[0]);
        }
        assert_eq!(seen.into_iter().collect::<Vec<_>>(), [0, 1, 2]);
    }

    #[test]
    fn a_failed_flush_is_not_made_good_by_the_next() {
        let mut media = Media::new(2, 0u64);
        media.write(0, 1);
        media.flush_failed(media.mark());
        media.write(1, 2);
        media.flushed(media.mark());
        assert_eq!(media.durable(), [0, 2]);
        assert_eq!(media.view(), [1, 2]);
        media.forget_cursed();
        assert_eq!(media.view(), [0, 2]);
    }
}
