//! The failover machine against a world of two nodes and an arbiter.
//!
//! - `scenarios/*.txt`: one course of events each, readable without Rust; `script.rs` says which words there are.
//! - `decisions/*.txt`: rows of the decision table: evidence, rule, verdict.
//! - `exhaustive.rs`: every placement of up to two faults around a failover and a switchover.
//! - `seeds.rs`: random faults over long times.

mod decisions;
mod exhaustive;
mod script;
mod seeds;
mod volume;
mod world;

/// The text files of a directory beside this one, by name.
pub(crate) fn texts(dir: &str) -> Vec<(String, String)> {
    let dir = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/failover").join(dir);
    let mut texts: Vec<(String, String)> = std::fs::read_dir(&dir)
        .expect("the directory is there")
        .map(|entry| {
            let path = entry.expect("an entry").path();
            let text = std::fs::read_to_string(&path).expect("a text file");
            (path.file_name().expect("a name").to_string_lossy().into_owned(), text)
        })
        .collect();
    texts.sort();
    assert!(!texts.is_empty(), "{} has no files", dir.display());
    texts
}

#[test]
fn scenarios() {
    let mut failed = vec![];
    for (name, text) in texts("scenarios") {
        let only = std::env::var("REPBLK_SCENARIO").unwrap_or_default();
        if name.contains(&only) {
            let run = std::panic::catch_unwind(|| script::run(&name, &text));
            failed.extend(run.is_err().then_some(name));
        }
    }
    assert!(failed.is_empty(), "failed: {failed:?}; one alone with REPBLK_SCENARIO=NAME");
}
