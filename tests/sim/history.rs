//! What clients did, and what a sector may therefore hold.
//!
//! Every write (and zero, and trim) is a *version* of the sectors it covers. It begins, and it ends: acknowledged, or with
//! its session or its node. One version is *before* another when it ended before the other began; versions that overlap in
//! time may be applied in either order.
//!
//! An acknowledged version is *guaranteed* while some node must still hold it: `held` has the nodes that must have it
//! written, `stable` those that must have it past a power loss. Who they are follows from the contract: at the
//! acknowledgement of a write the nodes in sync, at the acknowledgement of a flush the nodes in sync become `stable`, at the
//! end of a resync the target joins. A power loss takes a node out of `held`; a lost disk out of both. So two nodes
//! that lose power at once leave exactly what was flushed, and one node that does leaves everything.
//!
//! A sector may hold any version that is not before a guaranteed one that had ended. What a client has read of a sector that
//! nobody was writing is a fact from then on, and counts like an acknowledged write: data does not flip back.

use std::collections::BTreeSet;

use crate::node::NODES_MAX;
use crate::stamp;

/// Both nodes of a pair.
#[cfg(test)]
const BOTH: u8 = 0b11;

/// A node as a bit.
pub(crate) fn bit(node: usize) -> u8 {
    1 << node
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Content {
    /// A stamp of its own in each sector.
    Stamped,
    /// Zeros.
    Zero,
    /// Read from one sector.
    Seen(u64),
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum End {
    /// Still going on.
    Open,
    /// No longer going on in the node that it was sent to; its peer may still be busy with it.
    Loose(u64),
    /// Over everywhere.
    Over(u64),
}

impl End {
    fn at(self) -> Option<u64> {
        match self {
            Self::Open => None,
            Self::Loose(at) | Self::Over(at) => Some(at),
        }
    }
}

#[derive(Clone, Debug)]
struct Version {
    content: Content,
    begun: u64,
    end: End,
    acknowledged: bool,
    held: u8,
    stable: u8,
}

impl Version {
    fn guaranteed(&self) -> bool {
        self.acknowledged && (self.held | self.stable) != 0
    }

    fn stands_in(&self, number: u32, sector: usize) -> u64 {
        match self.content {
            Content::Stamped => stamp::stamp(u64::from(number) + 1, sector),
            Content::Zero => stamp::ZERO,
            Content::Seen(stamp) => stamp,
        }
    }
}

/// The record of one run.
#[derive(Clone, Debug)]
pub(crate) struct History {
    /// Every node, as bits.
    all: u8,
    versions: Vec<Version>,
    sectors: Vec<Vec<u32>>,
    clock: u64,
    /// When each node lost power last.
    lost: [u64; NODES_MAX],
    /// When each node lost its disk last.
    broken: [u64; NODES_MAX],
    /// What disks that lied have put or left into sectors. Nobody can be blamed for it.
    excused: BTreeSet<(usize, u64)>,
}

/// Versions of one sector that are kept before old ones are looked through.
const KEPT: usize = 10;

impl History {
    /// Nothing was ever written.
    pub(crate) fn new(sectors: usize, nodes: usize) -> Self {
        Self {
            all: (1 << nodes) - 1,
            versions: Vec::new(),
            sectors: vec![Vec::new(); sectors],
            clock: 0,
            lost: [0; NODES_MAX],
            broken: [0; NODES_MAX],
            excused: BTreeSet::new(),
        }
    }

    /// A disk has lied: `sector` may hold this from now on.
    pub(crate) fn excuse(&mut self, sector: usize, stamp: u64) {
        self.excused.insert((sector, stamp));
    }

    /// True when a lying disk is the reason for what the sector holds.
    pub(crate) fn is_excused(&self, sector: usize, stamp: u64) -> bool {
        self.excused.contains(&(sector, stamp))
    }

    /// The next point on the record's own clock.
    pub(crate) fn tick(&mut self) -> u64 {
        self.clock += 1;
        self.clock
    }

    /// A write of sectors begins; with `zero`, one of zeros. Gives its number and the stamps to be written.
    pub(crate) fn begin(&mut self, first: usize, len: usize, zero: bool) -> (u32, Vec<u64>) {
        let number = u32::try_from(self.versions.len()).expect("runs are short");
        let content = if zero { Content::Zero } else { Content::Stamped };
        let begun = self.tick();
        self.versions.push(Version { content, begun, end: End::Open, acknowledged: false, held: 0, stable: 0 });
        for sector in first..first + len {
            self.add(sector, number);
        }
        let version = &self.versions[number as usize];
        (number, (first..first + len).map(|sector| version.stands_in(number, sector)).collect())
    }

    fn add(&mut self, sector: usize, number: u32) {
        let (versions, list) = (&self.versions, &mut self.sectors[sector]);
        if list.len() > KEPT {
            let safe = |v: &&Version| v.acknowledged && v.stable == self.all;
            let floor = list.iter().map(|&n| &versions[n as usize]).filter(safe).map(|v| v.begun).max();
            list.retain(|&n| versions[n as usize].end.at().is_none_or(|end| floor.is_none_or(|f| end > f)));
        }
        list.push(number);
    }

    /// A write was acknowledged while the nodes of `held` were in sync; it was stable on those of `stable`.
    pub(crate) fn acknowledged(&mut self, number: u32, held: u8, stable: u8) {
        let now = self.tick();
        let version = &mut self.versions[number as usize];
        assert_eq!(version.end, End::Open, "a write is acknowledged once");
        // A node that lost power or its disk after it had said that it has it, and before the client was told, need not have it.
        let since = |loss: &[u64; NODES_MAX]| {
            (0..NODES_MAX).filter(|&node| loss[node] < version.begun).fold(0, |bits, node| bits | bit(node))
        };
        let (powered, whole) = (since(&self.lost), since(&self.broken));
        let (held, stable) = (held & (powered | stable) & whole, stable & whole);
        *version = Version { end: End::Over(now), acknowledged: true, held, stable, ..version.clone() };
    }

    /// The machine is done with a write that it will not acknowledge.
    pub(crate) fn loose(&mut self, number: u32) {
        let now = self.tick();
        let version = &mut self.versions[number as usize];
        if version.end == End::Open {
            version.end = End::Loose(now);
        }
    }

    /// The node that had a write is dead.
    pub(crate) fn over(&mut self, number: u32) {
        let now = self.tick();
        let version = &mut self.versions[number as usize];
        if !version.acknowledged {
            version.end = End::Over(version.end.at().unwrap_or(now));
        }
    }

    /// A flush that began at `begun` was acknowledged while the nodes of `stable` were in sync.
    pub(crate) fn flushed(&mut self, begun: u64, stable: u8) {
        let whole = (0..NODES_MAX).filter(|&node| self.broken[node] < begun).fold(0, |bits, node| bits | bit(node));
        let stable = stable & whole;
        for version in &mut self.versions {
            // What was lost before is not there to be flushed.
            if version.guaranteed() && version.end.at().is_some_and(|end| end < begun) {
                version.stable |= stable;
            }
        }
    }

    /// A node lost power: what was not stable on it is not held by it any more.
    pub(crate) fn power_lost(&mut self, node: usize) {
        self.lost[node] = self.tick();
        for version in &mut self.versions {
            version.held &= !bit(node);
        }
    }

    /// A node lost its disk.
    pub(crate) fn disk_lost(&mut self, node: usize) {
        self.broken[node] = self.tick();
        for version in &mut self.versions {
            version.held &= !bit(node);
            version.stable &= !bit(node);
        }
    }

    /// `target` has become equal to `source`. Unless `written`, only what is stable counts: in `async` the last primary's
    /// copy decides after its power loss, and what it had not flushed is gone even where its peer still has it.
    pub(crate) fn joined(&mut self, source: usize, target: usize, written: bool) {
        for version in &mut self.versions {
            if written && version.held & bit(source) != 0 {
                version.held |= bit(target);
            }
            if version.stable & bit(source) != 0 {
                version.held |= bit(target);
                version.stable |= bit(target);
            }
        }
    }

    /// The operator lets `node` go on although another node may have more: what only others hold is no longer guaranteed.
    pub(crate) fn forgive_all_but(&mut self, node: usize) {
        for version in &mut self.versions {
            if (version.held | version.stable) & bit(node) == 0 {
                version.held = 0;
                version.stable = 0;
            } else {
                version.held &= bit(node);
                version.stable &= bit(node);
            }
        }
    }

    /// True when `node` must hold everything that is guaranteed.
    pub(crate) fn complete_on(&self, node: usize) -> bool {
        self.versions.iter().all(|v| !v.guaranteed() || (v.held | v.stable) & bit(node) != 0)
    }

    /// Acknowledged writes.
    pub(crate) fn acknowledgements(&self) -> usize {
        self.versions.iter().filter(|v| v.acknowledged).count()
    }

    /// Checks what was seen in `first ..` by somebody who began to look at `begun`.
    ///
    /// # Errors
    /// The sector that holds what it must not.
    pub(crate) fn check(&self, first: usize, seen: &[u64], begun: u64) -> Result<(), String> {
        for (i, &stamp) in seen.iter().enumerate() {
            let sector = first + i;
            if !self.may_hold(sector, stamp, begun) && !self.is_excused(sector, stamp) {
                return Err(self.accusation(sector, stamp, begun));
            }
        }
        Ok(())
    }

    /// When the youngest version began that a reader from `begun` on must see, if nothing younger.
    fn floor(&self, sector: usize, begun: u64) -> u64 {
        let versions = self.sectors[sector].iter().map(|&n| &self.versions[n as usize]);
        let must = versions.filter(|v| v.guaranteed() && v.end.at().is_some_and(|end| end <= begun));
        must.map(|v| v.begun).max().unwrap_or(0)
    }

    fn may_hold(&self, sector: usize, stamp: u64, begun: u64) -> bool {
        let floor = self.floor(sector, begun);
        let possible = |&n: &u32| {
            let version = &self.versions[n as usize];
            version.end.at().is_none_or(|end| end > floor) && version.stands_in(n, sector) == stamp
        };
        floor == 0 && stamp == stamp::ZERO || self.sectors[sector].iter().any(possible)
    }

    fn accusation(&self, sector: usize, stamp: u64, begun: u64) -> String {
        let mut text = format!("sector {sector} holds {}, which it must not at {begun}:", stamp::show(stamp));
        for &n in &self.sectors[sector] {
            let v = &self.versions[n as usize];
            let shown = stamp::show(v.stands_in(n, sector));
            let ack = if v.acknowledged { "acknowledged" } else { "unacknowledged" };
            text += &format!(
                "\n    {shown} begun {} end {:?} {ack} held {:02b} stable {:02b}",
                v.begun, v.end, v.held, v.stable
            );
        }
        text
    }

    /// Makes facts of what a client has read of sectors that nobody was writing. `held` are the nodes in sync.
    pub(crate) fn seen(&mut self, first: usize, seen: &[u64], begun: u64, held: u8) {
        for (i, &stamp) in seen.iter().enumerate() {
            let sector = first + i;
            let quiet = |&n: &u32| matches!(self.versions[n as usize].end, End::Over(at) if at <= begun);
            if self.is_excused(sector, stamp) || !self.sectors[sector].iter().all(quiet) {
                continue;
            }
            let floor = self.floor(sector, begun);
            let open = |&&n: &&u32| self.versions[n as usize].end.at().is_none_or(|end| end > floor);
            let choices = self.sectors[sector].iter().filter(open).count() + usize::from(floor == 0);
            if choices > 1 {
                let stable = self.stability_of(sector, stamp, floor);
                let now = self.tick();
                let number = u32::try_from(self.versions.len()).expect("runs are short");
                let content = Content::Seen(stamp);
                let end = End::Over(now);
                self.versions.push(Version { content, begun: now - 1, end, acknowledged: true, held, stable });
                self.sectors[sector].push(number);
            }
        }
    }

    /// Where what was seen must be stable: one of several versions that look alike may be any of them, but none from before `floor`.
    fn stability_of(&self, sector: usize, stamp: u64, floor: u64) -> u8 {
        let versions = self.sectors[sector].iter().map(|&n| (n, &self.versions[n as usize]));
        let seen =
            versions.filter(|(n, v)| v.stands_in(*n, sector) == stamp && v.end.at().is_none_or(|end| end > floor));
        seen.map(|(_, v)| v.stable).reduce(|a, b| a & b).unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one() -> (History, u32, u64, u32, u64) {
        let mut h = History::new(1, 2);
        let (a, sa) = h.begin(0, 1, false);
        h.acknowledged(a, BOTH, 0);
        let (b, sb) = h.begin(0, 1, false);
        (h, a, sa[0], b, sb[0])
    }

    #[test]
    fn the_last_acknowledged_or_a_later_one() {
        let (mut h, _, sa, b, sb) = one();
        let now = h.tick();
        assert!(h.check(0, &[sa], now).is_ok() && h.check(0, &[sb], now).is_ok());
        assert!(h.check(0, &[stamp::ZERO], now).is_err());
        h.acknowledged(b, BOTH, 0);
        let now = h.tick();
        assert!(h.check(0, &[sa], now).is_err() && h.check(0, &[sb], now).is_ok());
        assert!(h.check(0, &[sa], b.into()).is_ok(), "who began to read before may see the older");
    }

    #[test]
    fn one_power_loss_keeps_everything_and_two_keep_what_was_flushed() {
        let (mut h, _, sa, b, sb) = one();
        let flush = h.tick();
        h.flushed(flush, BOTH);
        h.acknowledged(b, BOTH, 0);
        h.power_lost(0);
        let now = h.tick();
        assert!(h.check(0, &[sa], now).is_err());
        h.power_lost(1);
        assert!(h.check(0, &[sa], now).is_ok() && h.check(0, &[sb], now).is_ok());
        assert!(h.check(0, &[stamp::ZERO], now).is_err(), "what was flushed stays");
    }

    #[test]
    fn what_was_read_does_not_flip() {
        let (mut h, _, sa, b, sb) = one();
        h.over(b);
        let now = h.tick();
        h.seen(0, &[sa], now, BOTH);
        let now = h.tick();
        assert!(h.check(0, &[sa], now).is_ok());
        assert!(h.check(0, &[sb], now).is_err());
    }
}
