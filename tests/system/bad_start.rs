//! Everything that can be wrong when a daemon starts or two daemons meet: each ends with a sentence that says what, where
//! and what to do, and changes nothing.

use std::fs::File;
use std::os::unix::fs::FileExt;

use crate::ledger::BLOCK;
use crate::node::{Node, REPBLK};
use crate::pair::{MIB, Pair, Setup, reconfigure};
use crate::raw_nbd::FUA;
use crate::tools::{SHORT, run, sparse};

/// A pair that is formatted and not started.
#[track_caller]
fn formatted(setup: &Setup) -> Pair {
    let pair = Pair::new(setup);
    for node in [&pair.alpha, &pair.beta] {
        node.cli(&["init"]).ok();
    }
    pair
}

/// Starts a daemon that must fail; it must say each of `words`.
#[track_caller]
fn fails_saying(node: &mut Node, words: &[&str]) {
    let said = node.start_in_vain();
    for word in words {
        assert!(said.contains(word), "{} does not say {word:?}: {said}", node.name);
    }
}

#[test]
fn a_copy_that_is_not_the_configured_one_is_refused() {
    let mut pair = formatted(&Setup::default());
    let alpha = &mut pair.alpha;
    // No metadata at all.
    std::fs::rename(&alpha.device, alpha.device.with_extension("kept")).expect("renames");
    fails_saying(alpha, &["no such file", "check the path"]);
    sparse(&alpha.device, 32 * MIB);
    fails_saying(alpha, &["repblk init"]);
    std::fs::rename(alpha.device.with_extension("kept"), &alpha.device).expect("renames");
    // Of another cluster, of another volume.
    reconfigure(&alpha.config, "cluster = \"test\"", "cluster = \"other\"");
    fails_saying(alpha, &["cluster \"test\"", "cluster \"other\"", "correct `device`"]);
    reconfigure(&alpha.config, "cluster = \"other\"", "cluster = \"test\"");
    reconfigure(&alpha.config, "name = \"mes\"", "name = \"logs\"");
    fails_saying(alpha, &["volume \"mes\"", "volume \"logs\""]);
    reconfigure(&alpha.config, "name = \"logs\"", "name = \"mes\"");
    // Cut short, so that its tail, where the metadata was, is gone.
    let device = File::options().write(true).open(&alpha.device).expect("opens");
    device.set_len(16 * MIB).expect("files can be cut");
    fails_saying(
        alpha,
        &["mes", alpha.device.display().to_string().as_str(), "repblk init"]
            .map(str::to_owned)
            .each_ref()
            .map(String::as_str),
    );
    device.set_len(100).expect("files can be cut");
    fails_saying(alpha, &["100 bytes", "at least"]);
}

#[test]
fn a_device_that_was_cut_short_under_external_metadata_is_refused() {
    let mut pair = formatted(&Setup { external: true, ..Setup::default() });
    let device = File::options().write(true).open(&pair.alpha.device).expect("opens");
    device.set_len(31 * MIB).expect("files can be cut");
    let said = pair.alpha.start_in_vain();
    assert!(said.contains(&(32 * MIB).to_string()) && said.contains(&(31 * MIB).to_string()), "{said}");
    // Whole again, it is good again.
    device.set_len(32 * MIB).expect("files can grow");
    pair.alpha.start();
    // And without its metadata it is not.
    pair.alpha.kill();
    std::fs::remove_file(pair.alpha.device.with_extension("meta")).expect("removes");
    fails_saying(&mut pair.alpha, &["meta", "no such file"]);
}

#[test]
fn a_device_that_may_not_be_written_is_refused() {
    let mut pair = formatted(&Setup::default());
    let (alpha, device) = (&mut pair.alpha, pair.dir.path().join("alpha.img"));
    alpha.before = format!("mount --bind {0} {0} && mount -o remount,bind,ro {0}", device.display());
    fails_saying(alpha, &["read-only", "blockdev --setrw"]);
    alpha.before = String::new();
    // Root without its privileges is a user like any other.
    run("chmod", ["000".as_ref(), device.as_os_str()], SHORT).ok();
    let config = alpha.config.display().to_string();
    let args = ["--bounding-set=-all", "--inh-caps=-all", REPBLK, "--config", &config, "--node", "alpha", "serve"];
    let said = run("setpriv", args, SHORT).exits(5);
    assert!(said.contains("permission denied") && said.contains("run as root"), "{said}");
    run("chmod", ["600".as_ref(), device.as_os_str()], SHORT).ok();
    alpha.start();
}

#[test]
fn a_second_daemon_finds_the_place_taken() {
    let mut pair = formatted(&Setup::default());
    pair.alpha.start();
    // The very same: its control socket is taken, and the first one's is not removed.
    let config = pair.alpha.config.display().to_string();
    let args = ["--config", &config, "--node", "alpha", "serve"];
    let said = run(REPBLK, args, SHORT).exits(5);
    assert!(said.contains("another process listens there"), "{said}");
    pair.alpha.status();
    // On other addresses, with the same device.
    let text = std::fs::read_to_string(&pair.alpha.config).expect("is there");
    let elsewhere = pair.dir.path().join("elsewhere.toml");
    let ip = pair.alpha.data.trim_end_matches(":7789");
    let text =
        text.replace(ip, &crate::tools::loopback()).replace("alpha.ctl", "other.ctl").replace("alpha.nbd", "other.nbd");
    std::fs::write(&elsewhere, text).expect("can be written");
    let elsewhere = elsewhere.display().to_string();
    let said = run(REPBLK, ["--config", &elsewhere, "--node", "alpha", "serve"], SHORT).exits(5);
    assert!(said.contains("in use by another process") && said.contains("alpha.img"), "{said}");
    // Nor may it be formatted while it is served.
    let said = run(REPBLK, ["--config", &elsewhere, "--node", "alpha", "init", "--force"], SHORT).exits(1);
    assert!(said.contains("locked by another process"), "{said}");
    let said = pair.alpha.cli(&["init", "--force"]).exits(1);
    assert!(said.contains("stop it first"), "{said}");
    // A port that a stranger has.
    let stranger = std::net::TcpListener::bind(&pair.beta.nbd_tcp).expect("is free");
    fails_saying(
        &mut pair.beta,
        &["NBD clients", &stranger.local_addr().expect("bound").to_string(), "another process"],
    );
    drop(stranger);
    pair.beta.start();
    pair.wait_connected();
}

#[test]
fn nodes_that_do_not_belong_together_say_so_and_stay_apart() {
    // Of different sizes.
    let mut pair = Pair::new(&Setup::default());
    sparse(&pair.beta.device, 40 * MIB);
    for node in [&mut pair.alpha, &mut pair.beta] {
        node.cli(&["init"]).ok();
        node.start();
    }
    for node in [&pair.alpha, &pair.beta] {
        node.wait_log("give both devices the same size", SHORT);
        assert_ne!(node.status()["peers"][0]["connection"], "connected");
    }
    // Of different clusters.
    let mut pair = Pair::new(&Setup::default());
    reconfigure(&pair.beta.config, "cluster = \"test\"", "cluster = \"plant9\"");
    for node in [&mut pair.alpha, &mut pair.beta] {
        node.cli(&["init"]).ok();
        node.start();
    }
    pair.alpha.wait_log("plant9", SHORT);
    pair.beta.wait_log("not \"test\"", SHORT);
    // Of different volumes.
    let mut pair = Pair::new(&Setup::default());
    reconfigure(&pair.beta.config, "name = \"mes\"", "name = \"logs\"");
    for node in [&mut pair.alpha, &mut pair.beta] {
        node.cli(&["init"]).ok();
        node.start();
    }
    pair.alpha.wait_log("no copy of volume", SHORT);
    // A copy that was cloned with its metadata is not another copy.
    let mut pair = Pair::new(&Setup::default());
    pair.alpha.cli(&["init"]).ok();
    std::fs::copy(&pair.alpha.device, &pair.beta.device).expect("copies");
    pair.alpha.start();
    pair.beta.start();
    pair.alpha.wait_log("cloned", SHORT);
}

/// Found by hand: the newest record of a primary that had gone on alone was damaged; by the older one both copies seemed to be of one
/// generation, and what the primary had acknowledged alone was overwritten.
#[test]
fn what_was_acknowledged_alone_survives_a_damaged_superblock() {
    for damaged in [0, 65 * 4096u64] {
        let mut pair = Pair::up(&Setup { external: true, ..Setup::default() });
        pair.beta.kill();
        pair.alpha.wait("going on alone", SHORT, |v| v["peers"][0]["connection"] != "connected");
        assert_eq!(pair.alpha.client().write(MIB, &[7; BLOCK], FUA).expect("writes"), 0);
        pair.alpha.kill();
        let meta = pair.alpha.device.with_extension("meta");
        let file = File::options().write(true).open(&meta).expect("opens");
        file.write_all_at(&[0xbd; 4096], damaged).expect("writes");
        pair.beta.start();
        pair.alpha.start();
        pair.wait_in_sync();
        pair.alpha.wait("the role", SHORT, |v| v["role"] == "primary");
        assert_eq!(pair.alpha.client().read(MIB, BLOCK).expect("reads"), [7; BLOCK]);
        pair.assert_identical();
    }
}

#[test]
fn one_damaged_superblock_is_survived_and_two_are_refused() {
    let mut pair = Pair::up(&Setup { external: true, ..Setup::default() });
    assert_eq!(pair.alpha.client().write(MIB, &[5; BLOCK], FUA).expect("writes"), 0);
    let meta = pair.alpha.device.with_extension("meta");
    let file = File::options().read(true).write(true).open(&meta).expect("opens");
    // As docs/disk_format.md has it: copy 0 is page 0, copy 1 stands behind the 64 pages of the activity log.
    for damaged in [0, 65 * 4096u64] {
        assert_eq!(pair.alpha.terminate(SHORT), Some(0));
        let mut page = vec![0; 4096];
        file.read_exact_at(&mut page, damaged).expect("reads");
        // Torn: the second half of the page never reached the disk.
        file.write_all_at(&[0xbd; 2048], damaged + 64).expect("writes");
        pair.alpha.start();
        pair.wait_in_sync();
        pair.alpha.wait("the role", SHORT, |v| v["role"] == "primary");
        assert!(pair.alpha.log_text().contains("superblock"), "the damage is logged: {}", pair.alpha.log_end());
        assert_eq!(pair.alpha.client().read(MIB, BLOCK).expect("reads"), [5; BLOCK]);
    }
    assert_eq!(pair.alpha.terminate(SHORT), Some(0));
    for copy in [0, 65 * 4096u64] {
        file.write_all_at(&[0xbd; 2048], copy + 64).expect("writes");
    }
    fails_saying(&mut pair.alpha, &["superblock", "repblk init"]);
    let said = pair.alpha.cli(&["init"]).exits(1);
    assert!(said.contains("cannot be used") && said.contains("--force"), "{said}");
    // The way out that was named works: the peer fills the copy afresh.
    pair.alpha.cli(&["init", "--force"]).ok();
    pair.alpha.start();
    pair.beta.wait("the link", SHORT, |v| v["peers"][0]["connection"] == "connected");
    pair.beta.cli(&["promote"]).ok();
    pair.assert_identical();
    assert_eq!(pair.beta.client().read(MIB, BLOCK).expect("reads"), [5; BLOCK]);
}
