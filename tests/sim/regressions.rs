//! Seeds that once failed, each with the name of its fault. What it taught is a scenario of that name.

/// A seed and what was wrong.
const SEEDS: &[(u64, &str)] = &[
    (3, "a pause outlived the link and the daemon that asked for it"),
    (12, "a resync took places in the log that writes had been promised"),
    (23, "an orderly end was recorded before its flush had ended"),
    (26, "a segment that ended as it was launched took its successor with it"),
    (57, "a write that waited for the activity log of a failing disk kept its extent"),
    (166, "a primary without a disk read around what its peer had received and not yet written"),
    (100, "a write that only a failed disk held was acknowledged"),
];

#[test]
fn what_once_failed_does_not_fail_again() {
    for &(seed, name) in SEEDS {
        if let Err(why) = crate::runner::check(seed, crate::runner::Draw::First) {
            panic!("{name}: {why}");
        }
    }
}
