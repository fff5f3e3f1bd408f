//! A copy's metadata through several lives: written by the rules of the format, cut off at any write, torn, rotten at the
//! end. What recovery says may be more than what differs between the copies, and never less.
//!
//! Input: the size of the volume, then lives of operations. The target knows which blocks truly may differ.

use super::input::Input;
use super::notes::{note, note_text};
use super::pages::{INSTANCE, Image, disk_state, range, rot};
use repblk::condition::Continuity;
use repblk::meta::{
    Bitmap, DeviceFacts, FormatParams, Layout, LogWriter, MetaPage, Note, PEER_SLOTS, PeerRecord, Recovered,
    RecoveryError, Superblock, Unrecovered, format,
};
use repblk::units::{BLOCK_SIZE, ByteRange, ClusterId, ExtentNo, GenerationId, PeerNo, Term, VolumeId};

const LIVES_MAX: usize = 4;

pub fn run(data: &[u8]) {
    let mut input = Input::new(data);
    let mut copy = Copy::format(&mut input);
    for _ in 0..LIVES_MAX {
        let recovered = recover(&copy.image, &copy.stable, copy.boot).expect("no damage, so the copy can be attached");
        copy.judge(&recovered, false);
        copy.attach(recovered, &mut input);
        copy.live(&mut input);
        if input.is_empty() {
            break;
        }
    }
    let recovered = recover(&copy.image, &copy.stable, copy.boot).expect("no damage, so the copy can be attached");
    copy.judge(&recovered, false);
    copy.rot(&mut input);
    match recover(&copy.image, &copy.stable, copy.boot) {
        Ok(recovered) => copy.judge(&recovered, true),
        Err(error) => note_text("refused", &error.to_string()),
    }
}

fn recover(image: &Image, superblock: &Superblock, boot: u128) -> Result<Recovered, RecoveryError> {
    let metadata_len = u64::try_from(image.0.len()).expect("64 bits");
    let facts = DeviceFacts { data_len: superblock.data_len, metadata_len };
    let [a, b] = [0, 1].map(|copy| image.page(Layout::superblock_offset(copy)));
    let unrecovered = Unrecovered::read(a, b, facts)?;
    let log = unrecovered.activity_log_range().map_or(&[][..], |range| image.read(range)).to_vec();
    let zones = unrecovered.bitmap_ranges().map(|range| range.map(|range| image.read(range).to_vec()));
    Ok(unrecovered.recover(&log, zones, boot))
}

/// One copy, its disk, and what is true of it.
struct Copy {
    image: Image,
    layout: Layout,
    /// The newest superblock.
    stable: Superblock,
    /// What recovery may find: the superblock that both copies carry, and all that were written since, even torn.
    written: Vec<Superblock>,
    log: LogWriter,
    /// The dirty bitmaps in memory.
    bitmaps: [Option<Bitmap>; PEER_SLOTS],
    /// The blocks in which each peer truly may differ.
    truth: [Option<Bitmap>; PEER_SLOTS],
    boot: u128,
    /// Page writes until the power fails, and the sectors that the last one leaves.
    budget: Option<(u16, u8)>,
    powered: bool,
}

impl Copy {
    fn format(input: &mut Input<'_>) -> Self {
        let params = FormatParams {
            cluster: ClusterId(7),
            cluster_name: "harbour".into(),
            volume: VolumeId(8),
            volume_name: "mes".into(),
            instance: INSTANCE,
            data_len: input.pick(&[256, 5000, 40_000]) * BLOCK_SIZE,
            extent_len: input.pick(&[64 << 10, 256 << 10, 4 << 20]),
            al_slots: input.pick(&[8, 9, 777, 2000]),
        };
        let stable = params.superblock();
        let layout = stable.layout();
        let mut image = Image::blank(layout.total_len());
        format(&params).iter().for_each(|page| image.write(page));
        let log = LogWriter::new(INSTANCE, 1, stable.al_slots);
        let none = || [const { None }; PEER_SLOTS];
        Self {
            image,
            layout,
            written: vec![stable.clone()],
            stable,
            log,
            bitmaps: none(),
            truth: none(),
            boot: 1,
            budget: None,
            powered: true,
        }
    }

    /// Writes a page, unless the power is gone. True when it is stable.
    fn write(&mut self, page: &MetaPage) -> bool {
        match &mut self.budget {
            _ if !self.powered => false,
            Some((0, mask)) => {
                let mask = *mask;
                self.image.write_torn(page, mask);
                self.powered = false;
                false
            }
            budget => {
                if let Some((writes, _)) = budget {
                    *writes -= 1;
                }
                self.image.write(page);
                true
            }
        }
    }

    /// Writes a change of the superblock into one copy and then into the other. True when both carry it.
    fn commit(&mut self, change: impl FnOnce(&mut Superblock)) -> bool {
        let mut next = self.stable.clone();
        change(&mut next);
        for _ in 0..2 {
            next.sequence += 1;
            if !self.powered {
                return false;
            }
            self.written.push(next.clone());
            if !self.write(&next.encode()) {
                return false;
            }
            self.stable = next.clone();
        }
        self.written = vec![next];
        true
    }

    /// Writes the modified pages of a slot's bitmap that cover `range`.
    fn save(&mut self, slot: usize, range: ByteRange) -> bool {
        let pages = self.bitmaps[slot].as_ref().map_or(Vec::new(), |bitmap| bitmap.modified_in(range));
        pages.into_iter().all(|index| {
            let bitmap = self.bitmaps[slot].as_mut().expect("it has pages");
            let page = bitmap.encode_page(index, peer_no(slot), INSTANCE, &self.layout);
            self.write(&page)
        })
    }

    fn all(&self) -> ByteRange {
        ByteRange::new(0, self.stable.data_len)
    }

    /// What a daemon does first: the bitmaps, then a superblock that forgets the old log.
    fn attach(&mut self, recovered: Recovered, input: &mut Input<'_>) {
        self.powered = true;
        self.budget = input.flag().then(|| (u16::from(input.u8()), input.u8()));
        self.bitmaps = recovered.bitmaps;
        self.stable = recovered.superblock;
        for slot in 0..PEER_SLOTS {
            if self.stable.peers[slot].is_used() {
                // A slot that came into use by a write that was thought lost.
                let all = Bitmap::clone(self.bitmaps[slot].as_ref().expect("a used slot has a bitmap"));
                self.truth[slot].get_or_insert(all);
            } else {
                self.truth[slot] = None;
            }
            let keep = self.stable.peers[slot].full || self.save(slot, self.all());
            if !keep {
                return;
            }
        }
        let boot = self.boot;
        let attached = self.commit(|next| {
            next.al_epoch += 1;
            next.clean = false;
            next.boot = boot;
        });
        if attached {
            self.log = LogWriter::new(INSTANCE, self.stable.al_epoch, self.stable.al_slots);
        }
    }

    fn live(&mut self, input: &mut Input<'_>) {
        for _ in 0..input.u8() & 31 {
            if !self.powered {
                break;
            }
            match input.u8() & 15 {
                0..=7 => self.host_writes(input),
                8 | 9 => self.peer_catches_up(input),
                10 => self.meet_peer(input),
                11 => self.leave_full(input),
                12 => drop(self.commit(|next| next.disk = disk_state(input))),
                13 => drop(self.commit(|next| {
                    next.term = Term(next.term.0 + 1);
                    next.was_primary = input.flag();
                    next.lineage.current = GenerationId(input.u64());
                })),
                14 => {
                    self.stop();
                    break;
                }
                _ => {
                    let slot = input.index(PEER_SLOTS);
                    self.save(slot, self.all());
                }
            }
        }
        self.powered = false;
        if input.flag() {
            self.boot += 1;
        }
    }

    /// The host writes into a few extents at once: they become hot first, then blocks in them may differ.
    fn host_writes(&mut self, input: &mut Input<'_>) {
        let mut updates = Vec::new();
        let mut extents = Vec::new();
        for _ in 0..1 + (input.u8() & 3) {
            let extent = ExtentNo(u32::from(input.u16()) % self.stable.extents());
            extents.push(extent);
            if self.log.table().contains(&Some(extent)) || updates.iter().any(|&(_, e)| e == Some(extent)) {
                continue;
            }
            let slot = u32::from(input.u16()) % self.stable.al_slots;
            if updates.iter().any(|&(s, _)| s == slot) {
                extents.pop();
                continue;
            }
            let old = self.log.table()[usize::try_from(slot).expect("few slots")];
            if !old.is_none_or(|old| self.cool(old)) {
                return;
            }
            // What this transaction itself takes out of the log must not be written into.
            extents.retain(|&e| Some(e) != old);
            updates.push((slot, Some(extent)));
        }
        if !updates.is_empty() {
            let page = self.log.transaction(&updates);
            if !self.write(&page) {
                return;
            }
        }
        for extent in extents {
            let blocks = self.stable.extent_range(extent);
            let block = blocks.start() + u64::from(input.u16()) * BLOCK_SIZE % blocks.len();
            for truth in self.truth.iter_mut().flatten() {
                truth.set(ByteRange::new(block, 1));
            }
        }
    }

    /// Before an extent leaves the log, what may differ in it stands in stable bitmaps.
    fn cool(&mut self, extent: ExtentNo) -> bool {
        let range = self.stable.extent_range(extent);
        (0..PEER_SLOTS).all(|slot| {
            if let (Some(bitmap), Some(truth)) = (&mut self.bitmaps[slot], &self.truth[slot]) {
                bitmap.merge(truth);
            }
            self.stable.peers[slot].full || self.save(slot, range)
        })
    }

    /// Blocks are confirmed stable on a peer: they are clean, in memory at once.
    fn peer_catches_up(&mut self, input: &mut Input<'_>) {
        let slot = input.index(PEER_SLOTS);
        let range = range(input, self.stable.data_len);
        if let (Some(bitmap), Some(truth), false) =
            (&mut self.bitmaps[slot], &mut self.truth[slot], self.stable.peers[slot].full)
        {
            bitmap.clear(range);
            truth.clear(range);
        }
    }

    /// A slot comes into use: everything may differ, and its pages are not to be trusted.
    fn meet_peer(&mut self, input: &mut Input<'_>) {
        let slot = input.index(PEER_SLOTS);
        let record = PeerRecord { name: format!("node{slot}"), full: true, ..PeerRecord::default() };
        if !self.stable.peers[slot].is_used() && self.commit(|next| next.peers[slot] = record) {
            let mut all = Bitmap::new(self.stable.data_len);
            all.set_all();
            self.truth[slot] = Some(all.clone());
            self.bitmaps[slot] = Some(all);
        }
    }

    /// All pages of a bitmap are stable, so that it may be trusted.
    fn leave_full(&mut self, input: &mut Input<'_>) {
        let slot = input.index(PEER_SLOTS);
        if self.stable.peers[slot].full && self.save(slot, self.all()) {
            self.commit(|next| next.peers[slot].full = false);
        }
    }

    /// Everything in order: the bitmaps say all that the log said.
    fn stop(&mut self) {
        let saved = (0..PEER_SLOTS).all(|slot| {
            if let (Some(bitmap), Some(truth)) = (&mut self.bitmaps[slot], &self.truth[slot]) {
                bitmap.merge(truth);
            }
            self.stable.peers[slot].full || self.save(slot, self.all())
        });
        if saved {
            self.commit(|next| next.clean = true);
        }
    }

    fn rot(&mut self, input: &mut Input<'_>) {
        let mut rng = input.rng();
        let pages = self.image.0.len() / 4096;
        for _ in 0..input.u8() & 7 {
            let page = match input.u8() {
                0..=63 => Layout::superblock_offset(0),
                64..=127 => Layout::superblock_offset(1),
                _ => u64::from(input.u16()) % u64::try_from(pages).expect("few") * 4096,
            };
            rot(self.image.page_mut(page), input.u8(), &mut rng);
        }
    }

    /// What recovery says covers the truth.
    fn judge(&self, recovered: &Recovered, rotten: bool) {
        let superblock = &recovered.superblock;
        let alike =
            |written: &&Superblock| Superblock { sequence: superblock.sequence, ..(*written).clone() } == *superblock;
        let found = self.written.iter().find(alike);
        assert!(found.is_some(), "a superblock is believed that was not written, or is too old: {superblock:?}");
        let newest = superblock.sequence >= self.stable.sequence;
        assert!(rotten || newest, "a power loss alone takes nothing back: {superblock:?}");
        let same_boot = recovered.continuity == Continuity::SameBoot;
        assert!(!same_boot || superblock.boot == self.boot, "the host has started anew");
        for (slot, truth) in self.truth.iter().enumerate() {
            let bitmap = recovered.bitmaps[slot].as_ref();
            assert_eq!(bitmap.is_some(), superblock.peers[slot].is_used(), "a used slot has a bitmap");
            let Some(bitmap) = bitmap else { continue };
            if superblock.peers[slot].full {
                assert_eq!(bitmap.count(), bitmap.blocks(), "everything is dirty");
            }
            let Some(truth) = truth else { continue };
            let mut both = bitmap.clone();
            assert_eq!(both.merge(truth), 0, "slot {slot}: blocks may differ that recovery calls clean");
        }
        for told in &recovered.notes {
            assert!(
                rotten || matches!(told, Note::BitmapPages { .. } | Note::SuperblockCopy),
                "a power loss alone spoils nothing else: {told}"
            );
            note_text("told", &told.to_string());
        }
        note((rotten, newest, format!("{:?}", recovered.continuity), recovered.hot_extents.min(3)));
    }
}

fn peer_no(slot: usize) -> PeerNo {
    PeerNo(u8::try_from(slot).expect("few slots"))
}
