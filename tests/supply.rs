//! `scripts/supply` lets this tree pass, and complains of each thing that it is there for.
//!
//! Each case is a tree of links to this one, but for what is doctored in it.

use std::path::Path;
use std::process::{Command, Output};

const WEBPKI: &str = "name = \"rustls-webpki\"\nversion = \"";
const SOURCE: &str = "source = \"registry+https://github.com/rust-lang/crates.io-index\"";

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// A tree whose files are those of this one after `doctor` was at work on their text.
struct Tree {
    dir: tempfile::TempDir,
}

impl Tree {
    fn new(doctor: impl Fn(&str, String) -> String) -> Self {
        let tree = Self { dir: tempfile::tempdir().expect("a folder") };
        for place in ["src", "benches", "tests/sim", "tests/tidy.rs"] {
            let link = tree.dir.path().join(place);
            std::fs::create_dir_all(link.parent().expect("below the root")).expect("made");
            std::os::unix::fs::symlink(root().join(place), link).expect("linked");
        }
        std::fs::create_dir_all(tree.dir.path().join("tests/fuzz")).expect("made");
        for file in ["Cargo.toml", "Cargo.lock", "tests/fuzz/Cargo.lock", "scripts/lib/supply/policy.toml"] {
            let text = std::fs::read_to_string(root().join(file)).unwrap_or_else(|error| panic!("{file}: {error}"));
            let name = if file.ends_with("policy.toml") { "policy.toml" } else { file };
            std::fs::write(tree.dir.path().join(name), doctor(file, text)).expect("written");
        }
        tree
    }

    fn check(&self) -> Output {
        let (dir, policy) = (self.dir.path(), self.dir.path().join("policy.toml"));
        let mut check = Command::new(root().join("scripts/supply"));
        check.arg("check").arg("--root").arg(dir).arg("--policy").arg(policy).output().expect("python3 is there")
    }
}

/// The text of `file` after `change`, which must change something.
fn doctored(file: &'static str, change: impl Fn(String) -> String) -> Tree {
    Tree::new(move |name, text| {
        if name != file {
            return text;
        }
        let changed = change(text.clone());
        assert_ne!(changed, text, "{file} is as it was");
        changed
    })
}

/// The check of `tree` fails, and one of its complaints has all of `words`.
fn complains(tree: &Tree, words: &[&str]) {
    let output = tree.check();
    let told = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{words:?} is not found: {told}");
    let found = told.lines().any(|line| words.iter().all(|word| line.contains(word)));
    assert!(found, "no line has {words:?}:\n{told}");
}

/// The text with one more package in a lock file.
fn with_package(lock: String, name: &str, version: &str, source: &str) -> String {
    format!("{lock}\n[[package]]\nname = \"{name}\"\nversion = \"{version}\"\n{source}\nchecksum = \"00\"\n")
}

#[test]
fn this_tree_passes() {
    let output = Tree::new(|_, text| text).check();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let told = String::from_utf8_lossy(&output.stdout);
    let last = told.lines().last().expect("it says something");
    assert!(last.ends_with("\"findings\":0}") && last.contains("\"snapshot_days\":"), "{last}");
}

#[test]
fn the_check_of_ranges_and_licences_checks_itself() {
    let output = Command::new(root().join("scripts/supply")).arg("self-test").output().expect("python3 is there");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn a_version_that_an_advisory_is_about_is_found() {
    for file in ["Cargo.lock", "tests/fuzz/Cargo.lock"] {
        let old = doctored(file, |text| {
            let (before, after) = text.split_once(WEBPKI).expect("it is there");
            let (_, rest) = after.split_once('"').expect("a version");
            format!("{before}{WEBPKI}0.103.9\"{rest}")
        });
        complains(&old, &[file, "rustls-webpki 0.103.9", "RUSTSEC-2026-0049", ">= 0.103.10"]);
    }
    let unaccepted = doctored("scripts/lib/supply/policy.toml", |text| text.replace("\"bincode\"", "\"bincod\""));
    complains(&unaccepted, &["bincode 2.0.1", "RUSTSEC-2025-0141"]);
    complains(&unaccepted, &["policy.toml", "RUSTSEC-2025-0141 does not apply to bincod any more"]);
}

#[test]
fn a_crate_that_the_snapshot_does_not_cover_is_found() {
    let more = doctored("Cargo.lock", |text| with_package(text, "never-heard-of", "1.0.0", SOURCE));
    complains(&more, &["never-heard-of 1.0.0", "does not cover it", "scripts/supply refresh"]);
}

#[test]
fn a_second_version_of_a_crate_is_found() {
    let twice = doctored("Cargo.lock", |text| with_package(text, "libc", "0.1.12", SOURCE));
    complains(&twice, &["libc", "0.1, 0.2", "cargo tree -i libc"]);
    let third = doctored("Cargo.lock", |text| with_package(text, "syn", "1.0.0", SOURCE));
    complains(&third, &["syn", "1, 2, 3"]);
    let gone = doctored("scripts/lib/supply/policy.toml", |text| {
        format!("{text}\n[[duplicate]]\nname = \"libc\"\nseries = [\"0.1\", \"0.2\"]\nreason = \"none\"\n")
    });
    complains(&gone, &["the duplicate libc is gone"]);
}

#[test]
fn whatever_is_not_from_crates_io_is_found() {
    let git = "source = \"git+https://example.org/tokio?rev=1#1\"";
    let foreign = doctored("Cargo.lock", |text| text.replacen(SOURCE, git, 1));
    complains(&foreign, &["is from git+https://example.org", "crates.io"]);
    let local = doctored("Cargo.lock", |text| with_package(text, "vendored", "1.0.0", ""));
    complains(&local, &["vendored 1.0.0", "without a source"]);
    let bare = doctored("Cargo.lock", |text| text.replacen("checksum = \"", "# checksum = \"", 1));
    complains(&bare, &["has no checksum"]);
}

#[test]
fn a_licence_that_is_not_allowed_is_found() {
    let strict = doctored("scripts/lib/supply/policy.toml", |text| text.replace("\"ISC\", ", ""));
    complains(&strict, &["untrusted", "ISC", "only MIT, Apache-2.0"]);
    let loose = doctored("scripts/lib/supply/policy.toml", |text| text.replace("\"ISC\", ", "\"ISC\", \"WTFPL\", "));
    complains(&loose, &["nothing has the licence WTFPL"]);
}

#[test]
fn a_lock_file_that_does_not_fit_is_found() {
    let newer =
        doctored("Cargo.toml", |text| text.replace("[dev-dependencies]", "lazy_static = \"1\"\n\n[dev-dependencies]"));
    complains(&newer, &["Cargo.lock", "--locked", "commit it"]);
}
