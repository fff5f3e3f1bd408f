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

/// Notes what kind of sentence a text is: its plain words before the first quotation and after the last.
pub fn note_text(kind: &str, text: &str) {
    let quote = ['"', '`'];
    let (before, after) = (text.find(quote).unwrap_or(text.len()), text.rfind(quote).map_or(text.len(), |at| at + 1));
    // Numbers and checksums would make each sentence another one.
    let plain = |word: &&str| word.bytes().all(|byte| byte.is_ascii_lowercase()) && word.len() < 16;
    let words: Vec<&str> =
        text[..before].split_whitespace().chain(text[after..].split_whitespace()).filter(plain).collect();
    note((kind, words));
}

/// What was noted on this thread since the last call.
pub fn take() -> BTreeSet<u64> {
    REACHED.take()
}
