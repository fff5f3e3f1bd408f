//! A disk that fails under a running daemon. The disk is a small memory file system that runs full in a mount namespace of the
//! daemon's own, so that nothing of it is left behind; that needs root.

use std::fs::File;
use std::io::Write;
use std::path::PathBuf;

use crate::honest::{CROWDED, Honest};
use crate::ledger::Ledger;
use crate::node::Node;
use crate::pair::{MIB, Pair, Setup, reconfigure};
use crate::raw_nbd::{READ, TRIM};
use crate::tools::{SHORT, sparse};

/// A pair in sync of which the node that `which` picks has its device on a file system of its own.
#[track_caller]
fn pair_with_small_disk(which: fn(&mut Pair) -> &mut Node) -> Pair {
    let setup = Setup::default();
    let mut pair = Pair::new(&setup);
    let (dir, configs) = (pair.dir.path().to_owned(), [pair.alpha.config.clone(), pair.beta.config.clone()]);
    let node = which(&mut pair);
    let (disk, old) = (dir.join("disk"), node.device.display().to_string());
    std::fs::create_dir(&disk).expect("can be made");
    node.device = disk.join("device");
    sparse(&node.device, setup.size);
    for config in configs {
        reconfigure(&config, &old, &node.device.display().to_string());
    }
    for node in [&pair.alpha, &pair.beta] {
        node.cli(&["init"]).ok();
    }
    which(&mut pair).before = format!(
        "cd {dir} && cp --sparse=always disk/device copy && mount -t tmpfs -o size=48m none disk && \
         cp --sparse=always copy disk/device",
        dir = dir.display()
    );
    pair.alpha.start();
    pair.beta.start();
    pair.wait_connected();
    pair.alpha.cli(&["promote", "--force"]).ok();
    pair.assert_identical();
    pair
}

/// Fills the file system around a daemon's device, so that the next block of it that needs room is one too many.
fn fill(node: &Node) {
    let path: PathBuf = node.device_path().with_file_name("filler");
    let mut filler = File::create(path).expect("root sees the daemon's mounts");
    let chunk = vec![1; 64 << 10];
    let full = std::iter::repeat_with(|| filler.write_all(&chunk)).take(1000).find_map(Result::err);
    assert_eq!(full.map(|error| error.kind()), Some(std::io::ErrorKind::StorageFull), "the file system is small");
}

/// Makes the first half of the volume holes, which need room again when they are written.
fn make_holes(pair: &Pair) {
    let half = u32::try_from(16 * MIB).expect("small");
    assert_eq!(pair.alpha.client().plain(0, TRIM, 0, half).expect("is served"), 0);
    pair.assert_identical();
}

/// A new disk in the place of the failed one: blank, and as large.
fn replace_disk(node: &mut Node) {
    node.before = String::new();
    sparse(&node.device, 32 * MIB);
    node.cli(&["init"]).ok();
    node.start();
}

#[test]
fn a_primary_whose_disk_is_full_serves_from_its_peer() {
    let mut pair = pair_with_small_disk(|pair| &mut pair.alpha);
    make_holes(&pair);
    let ledger = Ledger::start(&[pair.alpha.place(), pair.beta.place()], 4, 64);
    ledger.wait_more(50, SHORT);
    fill(&pair.alpha);
    // Blocks that were holes need room now. These are other blocks than the ledger's.
    let mut client = pair.alpha.client();
    for block in 0..32 {
        assert_eq!(client.write(12 * MIB + block * 65_536, &[8; 65_536], 0).expect("is served"), 0, "block {block}");
    }
    let state = pair.alpha.wait("the failed disk", SHORT, |v| v["disk_state"] == "failed");
    assert_eq!(state["role"], "primary", "it goes on with the peer's disk");
    ledger.wait_more(200, SHORT);
    assert_eq!(client.flush().expect("is served"), 0, "a flush is stable on the copy that is left");
    assert_eq!(client.read(12 * MIB, 65_536).expect("is served"), [8; 65_536], "reads come from the peer");
    assert!(pair.alpha.log_text().contains("free room where the device lies"), "{}", pair.alpha.log_end());
    // What the peer reads for clients that never take it holds up neither the link nor other clients.
    let honest = Honest::start(&pair);
    let crowd: Vec<_> = (0..16)
        .map(|_| {
            let mut raw = pair.alpha.client();
            (0..64).for_each(|_| raw.request(0, READ, 16 * MIB, 1 << 20).expect("requests are small"));
            raw
        })
        .collect();
    honest.were_served(CROWDED, "never read what came from the peer");
    drop(crowd);
    let refused = pair.beta.cli(&["promote"]).exits(1);
    assert!(refused.contains("peer-is-primary"), "{refused}");
    // The operator hands the role to the good disk, and replaces the bad one.
    pair.alpha.kill();
    crate::tools::wait_for("the promotion", SHORT, || {
        (pair.beta.cli(&["promote", "--peer-is-down"]).code == Some(0)).then_some(())
    });
    ledger.wait_more(50, SHORT);
    replace_disk(&mut pair.alpha);
    pair.wait_in_sync();
    let book = ledger.stop();
    book.audit(&mut pair.beta.client());
    assert_eq!(pair.beta.client().read(12 * MIB, 65_536).expect("is served"), [8; 65_536]);
    pair.assert_identical();
}

#[test]
fn a_secondary_whose_disk_is_full_is_left_behind() {
    let mut pair = pair_with_small_disk(|pair| &mut pair.beta);
    make_holes(&pair);
    let ledger = Ledger::start(&[pair.alpha.place()], 4, 64);
    ledger.wait_more(50, SHORT);
    fill(&pair.beta);
    let mut client = pair.alpha.client();
    for block in 0..32 {
        assert_eq!(client.write(8 * MIB + block * 65_536, &[8; 65_536], 0).expect("is served"), 0, "block {block}");
    }
    pair.beta.wait("the failed disk", SHORT, |v| v["disk_state"] == "failed");
    ledger.wait_more(200, SHORT);
    let state = pair.alpha.status();
    assert_eq!((&state["role"], &state["disk_state"]), (&"primary".into(), &"uptodate".into()), "{state:#}");
    assert_eq!(state["counters"]["errors"], 0);
    assert!(state["peers"][0]["out_of_sync_bytes"].as_u64() > Some(0), "what it lacks is known: {state:#}");
    // A failed copy is not promoted, whatever the operator says.
    let refused = pair.beta.cli(&["promote", "--force"]).exits(1);
    assert!(refused.contains("disk-failed"), "{refused}");
    pair.beta.kill();
    replace_disk(&mut pair.beta);
    pair.wait_in_sync();
    let book = ledger.stop();
    assert_eq!(book.reconnects, 0, "no client was dropped");
    book.audit(&mut client);
    pair.assert_identical();
}
