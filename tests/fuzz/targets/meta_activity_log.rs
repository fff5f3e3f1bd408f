//! The activity log: what it says after any number of transactions, a torn one, and any rot.
//!
//! Input: the size of the table, transactions, whether the last was torn, and damage.

use super::input::Input;
use super::notes::{note, note_text};
use super::pages::{INSTANCE, Image, SECTORS, mend, patch, rot, stamp};
use super::rng::Rng;
use repblk::meta::activity_log::{AL_SLOTS_MAX, UPDATES_MAX, WINDOW_LEN, blank_pages, recover};
use repblk::meta::layout::AL_PAGES;
use repblk::meta::{Layout, LogWriter, PAGE_LEN};
use repblk::units::{BLOCK_SIZE, ByteRange, ExtentNo};
use std::collections::BTreeSet;

type Extents = BTreeSet<ExtentNo>;

/// What the log must say, and what it may say.
struct Truth {
    hot: Extents,
    ever: Extents,
}

pub fn run(data: &[u8]) {
    let mut input = Input::new(data);
    let mut rng = input.rng();
    let slots = input.pick(&[8, 100, WINDOW_LEN, WINDOW_LEN + 1, 2000, AL_SLOTS_MAX]);
    let epoch = input.number().clamp(1, (1 << 63) - 3);
    let zone = Layout::for_data_len(BLOCK_SIZE).activity_log_range();
    let mut image = Image::blank(zone.end());
    blank_pages(INSTANCE).for_each(|page| image.write(&page));
    if input.flag() {
        // An earlier epoch filled the ring.
        transactions(&mut input, &mut rng, &mut image, LogWriter::new(INSTANCE, epoch.saturating_sub(1).max(1), slots));
        blank_epoch_one(epoch, &mut image);
    }
    let truth = transactions(&mut input, &mut rng, &mut image, LogWriter::new(INSTANCE, epoch, slots));
    check(&image, zone, epoch, slots, &truth, true);
    let damages = input.u8() & 7;
    for _ in 0..damages {
        let page = image.page_mut(zone.start() + u64::from(input.u8() % 64) * BLOCK_SIZE);
        rot(page, input.u8(), &mut rng);
    }
    if damages > 0 {
        check(&image, zone, epoch, slots, &truth, false);
    }
    forge(&mut input, &mut image, zone, epoch, slots);
}

/// A first epoch has nothing before it.
fn blank_epoch_one(epoch: u64, image: &mut Image) {
    if epoch == 1 {
        blank_pages(INSTANCE).for_each(|page| image.write(&page));
    }
}

/// Writes transactions, perhaps the last one torn.
fn transactions(input: &mut Input<'_>, rng: &mut Rng, image: &mut Image, mut writer: LogWriter) -> Truth {
    let slots = u64::try_from(writer.table().len()).expect("64 bits");
    let mut ever = Extents::new();
    for _ in 0..input.u8() {
        let updates = updates(rng, slots);
        ever.extend(updates.iter().filter_map(|(_, extent)| *extent));
        image.write(&writer.transaction(&updates));
    }
    let hot = writer.table().iter().copied().flatten().collect();
    let torn = input.u8();
    if torn != 0 {
        let updates = updates(rng, slots);
        ever.extend(updates.iter().filter_map(|(_, extent)| *extent));
        image.write_torn(&writer.transaction(&updates), torn);
    }
    Truth { hot, ever }
}

fn updates(rng: &mut Rng, slots: u64) -> Vec<(u32, Option<ExtentNo>)> {
    let small = |n: u64| u32::try_from(n).expect("small");
    let most = if rng.chance(1, 8) { UPDATES_MAX } else { 3 };
    let count = rng.index(most + 1);
    let update = |_| (small(rng.below(slots)), (!rng.chance(1, 4)).then(|| ExtentNo(small(rng.below(1 << 20)))));
    (0..count).map(update).collect()
}

fn check(image: &Image, zone: ByteRange, epoch: u64, slots: u32, truth: &Truth, undamaged: bool) {
    match recover(image.read(zone), INSTANCE, epoch, slots) {
        Ok(found) => {
            assert!(found.is_sorted(), "extents come in order");
            let found: Extents = found.into_iter().collect();
            let lost: Vec<_> = truth.hot.difference(&found).collect();
            assert!(lost.is_empty(), "hot extents are forgotten: {lost:?}");
            let invented: Vec<_> = found.difference(&truth.ever).collect();
            assert!(invented.is_empty(), "extents come from nowhere: {invented:?}");
            note(("hot", found.len().checked_ilog2(), undamaged));
        }
        Err(error) if undamaged => panic!("a log without damage is refused: {error}"),
        Err(error) => note_text("refused", &error.to_string()),
    }
}

/// Pages that a foreign program might have written, with right checksums: nothing is promised but an answer.
fn forge(input: &mut Input<'_>, image: &mut Image, zone: ByteRange, epoch: u64, slots: u32) {
    let mut forged = false;
    for _ in 0..input.u8() & 3 {
        let index = u64::from(input.u8()) % u64::try_from(AL_PAGES).expect("few");
        let page = image.page_mut(zone.start() + index * u64::try_from(PAGE_LEN).expect("small"));
        let switches = input.u8();
        forged |= patch(page, input);
        if switches & 1 != 0 {
            stamp(page, if switches & 2 != 0 { epoch } else { input.number() }, input.number());
            forged = true;
        }
        mend(page, switches & 4 == 0);
    }
    let extra = usize::from(input.u8()) % (2 * SECTORS);
    let bytes = image.read(zone);
    let found = recover(&bytes[..bytes.len() - extra], INSTANCE, epoch, slots);
    assert!(extra == 0 || found.is_err(), "a zone that was not read whole is not believed");
    if forged {
        note(("forged", found.map(|_| ()).map_err(|error| std::mem::discriminant(&error))));
    }
}
