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
    let mut quoted = false;
    let kept = |c: &char| {
        quoted ^= matches!(c, '"' | '`');
        !quoted && (c.is_ascii_alphabetic() || *c == ' ')
    };
    note((kind, text.chars().filter(kept).collect::<String>()));
}

/// What was noted on this thread since the last call.
pub fn take() -> BTreeSet<u64> {
    REACHED.take()
}
