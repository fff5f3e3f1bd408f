//! What a run has reached, said by the target itself: the feedback of the stable harness, which cannot see coverage.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::hash::{DefaultHasher, Hash, Hasher};

thread_local! {
    static REACHED: RefCell<BTreeSet<u64>> = RefCell::default();
}

/// Notes an outcome: the kind of an error, a branch taken, a size class. Values that differ in each run say nothing.
pub fn note(what: impl Hash) {
    // A hasher without random keys: one input notes the same everywhere.
    let mut hasher = DefaultHasher::new();
    what.hash(&mut hasher);
    REACHED.with_borrow_mut(|reached| reached.insert(hasher.finish()));
}

/// Notes a text without its numbers and quoted words.
pub fn note_text(kind: &str, text: &str) {
    let words = text.split(['"', '`']).step_by(2).flat_map(str::split_whitespace);
    // Checksums and identities are numbers too; what no sentence has is not worth a note.
    let plain = words.filter(|word| !word.contains(|c: char| c.is_ascii_digit()) && word.is_ascii());
    note((
        kind,
        plain.filter(|word| word.len() < 7 || !word.bytes().all(|b| b.is_ascii_hexdigit())).collect::<Vec<_>>(),
    ));
}

/// What was noted on this thread since the last call.
pub fn take() -> BTreeSet<u64> {
    REACHED.take()
}
