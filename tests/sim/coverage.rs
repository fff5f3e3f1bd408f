//! Coverage marks: every subtle branch that names itself in the sources (`marks::reached`) is taken by some of a few seeds.

use std::collections::BTreeSet;
use std::path::Path;

/// Seeds that are lived through, at most; the first that complete the set end the test.
const SEEDS: u64 = 150;

/// Marks that so few seeds have not been seen to reach: for the soak, or for a scenario of their own. One that is reached after all
/// leaves this list.
const RARE: &[&str] = &[
    "a declined role is taken back",
    "a peer is lost again before its exclusion is done",
    "a source minted since it greeted",
    "a torn bitmap page makes its blocks dirty",
];

/// The names in all sources below `dir`.
fn names(dir: &Path, into: &mut Vec<String>) {
    for entry in std::fs::read_dir(dir).expect("the sources are here").flatten() {
        let path = entry.path();
        if path.is_dir() {
            names(&path, into);
        } else if path.extension().is_some_and(|e| e == "rs") {
            let text = std::fs::read_to_string(&path).expect("sources are text");
            let marks = text.split("marks::reached(\"").skip(1);
            into.extend(marks.map(|rest| rest.split('"').next().unwrap_or_default().to_owned()));
        }
    }
}

#[test]
fn subtle_branches_are_reached() {
    let mut all = Vec::new();
    names(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), &mut all);
    let mut missing: BTreeSet<&str> = all.iter().map(String::as_str).collect();
    assert!(missing.len() == all.len() && all.len() >= 15, "each mark has a name of its own: {all:?}");
    for rare in RARE {
        assert!(missing.remove(rare), "{rare:?} is no mark");
    }
    let _ = repblk::marks::take();
    let mut lived = 0;
    for seed in 1..=SEEDS {
        if missing.is_empty() {
            break;
        }
        lived = seed;
        if let Err(why) = crate::check(seed) {
            panic!("{why}");
        }
        for name in repblk::marks::take().keys() {
            assert!(!RARE.contains(name), "seed {seed} reaches {name:?}: it is not rare");
            missing.remove(name);
        }
    }
    assert!(missing.is_empty(), "{SEEDS} seeds reached none of {missing:?}");
    println!("{} marks reached within {lived} seeds", all.len());
}
