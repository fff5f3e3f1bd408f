//! Both copies of the superblock: valid ones, damaged ones, and damaged ones whose checksums were made right.
//!
//! Input: for each copy its fields, a byte of switches, and the bytes to change.

use super::input::Input;
use super::notes::{note, note_text};
use super::pages::{mend, patch, stamp, superblock};
use repblk::meta::{Layout, Page, Superblock, SuperblockError};

type Decoded = Result<Superblock, SuperblockError>;

pub fn run(data: &[u8]) {
    let mut input = Input::new(data);
    let pages = [0, 1].map(|copy| page(&mut input, copy));
    let [a, b] = [0, 1].map(|copy| decode(&pages[copy], copy));
    let choice = Superblock::choose(&pages[0], &pages[1]);
    match (&choice, &a, &b) {
        (Ok(choice), Ok(a), Ok(b)) => {
            let newest = if a.sequence > b.sequence { a } else { b };
            assert!(
                choice.superblock == *newest && !choice.other_is_damaged,
                "the newest of two whole copies is believed"
            );
        }
        (Ok(choice), Ok(whole), Err(_)) | (Ok(choice), Err(_), Ok(whole)) => {
            assert!(choice.superblock == *whole && choice.other_is_damaged);
        }
        (Ok(choice), Err(_), Err(_)) => panic!("{choice:?} out of nothing"),
        (Err(SuperblockError::DifferentInstances(..)), Ok(a), Ok(b)) => assert_ne!(a.instance, b.instance),
        (Err(error), Ok(_), Ok(_)) => panic!("two whole copies are refused: {error}"),
        (Err(error), Ok(_), Err(_)) | (Err(error), Err(_), Ok(_)) => {
            assert!(matches!(error, SuperblockError::TooNew { .. }), "a whole copy is refused: {error}");
        }
        (Err(error), ..) => note_text("none", &error.to_string()),
    }
    note(choice.map(|choice| choice.other_is_damaged).map_err(|error| std::mem::discriminant(&error)));
}

fn page(input: &mut Input<'_>, copy: usize) -> Page {
    let mut superblock = superblock(input);
    if usize::from(superblock.sequence % 2 == 1) != copy {
        superblock.sequence += 1;
    }
    let sealed = superblock.encode();
    assert_eq!(sealed.offset, Layout::superblock_offset(copy));
    let mut page = *sealed.bytes;
    let switches = input.u8();
    let changed = patch(&mut page, input);
    if switches & 1 != 0 {
        stamp(&mut page, input.u8().saturating_sub(250).into(), input.number());
    }
    if switches & 2 != 0 {
        mend(&mut page, switches & 4 != 0);
    }
    if switches & 3 == 0 {
        let decoded = Superblock::decode(&page, copy);
        let mut mended = page;
        mend(&mut mended, false);
        // Damage that makes its own checksums right cannot be told from a forgery.
        if mended != page || !changed {
            assert_eq!(decoded.is_ok(), !changed, "a changed page is refused and an untouched one is not: {decoded:?}");
        }
    }
    page
}

/// A superblock that is believed has exactly the bytes that stand there.
fn decode(page: &Page, copy: usize) -> Decoded {
    let decoded = Superblock::decode(page, copy);
    match &decoded {
        Ok(superblock) => {
            let again = superblock.encode();
            assert_eq!(again.offset, Layout::superblock_offset(copy));
            assert!(*again.bytes == *page, "one superblock has one form: {superblock:?}");
            assert!(superblock.extents() > 0 && superblock.layout().total_len() > 0);
            note((superblock.clean, format!("{:?}", superblock.disk)));
        }
        Err(error) => note_text("refused", &error.to_string()),
    }
    decoded
}
