//! Promotions in odd orders, and copies that are replaced: what an operator does on a bad day.

use crate::ledger::{BLOCK, Ledger};
use crate::node::Node;
use crate::pair::{MIB, Pair, Setup};
use crate::raw_nbd::FUA;
use crate::tools::{LONG, SHORT, run, sparse, wait_for};

fn setup() -> Setup {
    Setup { size: 8 * MIB, ..Setup::default() }
}

/// Writes a block of `byte` at block number `byte`, stable on all copies.
#[track_caller]
fn mark(node: &Node, byte: u8) {
    let at = u64::from(byte) * 4096;
    assert_eq!(node.client().write(at, &[byte; BLOCK], FUA).expect("is served"), 0);
}

#[track_caller]
fn has_marks(node: &Node, bytes: std::ops::RangeInclusive<u8>) {
    let mut client = node.client();
    for byte in bytes {
        let found = client.read(u64::from(byte) * 4096, BLOCK).expect("is served");
        assert_eq!(found, [byte; BLOCK], "the mark {byte} on {}", node.name);
    }
}

#[test]
fn roles_that_wander_lose_nothing() {
    let mut pair = Pair::up(&setup());
    mark(&pair.alpha, 1);
    pair.alpha.cli(&["demote"]).ok();
    pair.beta.cli(&["promote"]).ok();
    mark(&pair.beta, 2);
    pair.beta.cli(&["demote"]).ok();
    // Nobody serves, and each of them may.
    pair.beta.cli(&["promote"]).ok();
    mark(&pair.beta, 3);
    pair.beta.cli(&["demote"]).ok();
    pair.alpha.cli(&["promote", "--force"]).ok();
    mark(&pair.alpha, 4);
    // Without a link, and back: the other one was left behind and says so.
    pair.proxy.cut();
    pair.alpha.wait("the loss of the link", SHORT, |v| v["peers"][0]["connection"] != "connected");
    mark(&pair.alpha, 5);
    // Given up so soon that no heartbeat may have said that it served alone; the data's descent says it as well.
    pair.alpha.cli(&["demote"]).ok();
    pair.beta.wait("what the heartbeats tell", SHORT, |v| v["disk_state"] == "outdated");
    let refused = wait_for("a refusal for its own sake", SHORT, || {
        let said = pair.beta.cli(&["promote", "--peer-is-down"]).exits(1);
        (!said.contains("peer-is-primary")).then_some(said)
    });
    assert!(refused.contains("outdated"), "{refused}");
    pair.alpha.cli(&["promote", "--peer-is-down"]).ok();
    mark(&pair.alpha, 6);
    pair.proxy.mend();
    pair.assert_identical();
    pair.alpha.cli(&["switchover"]).ok();
    has_marks(&pair.beta, 1..=6);
    // The end of both, and the one that was not primary first.
    assert_eq!(pair.beta.terminate(LONG), Some(0));
    assert_eq!(pair.alpha.terminate(LONG), Some(0));
    pair.alpha.start();
    pair.beta.start();
    pair.beta.wait("the role", SHORT, |v| v["role"] == "primary");
    has_marks(&pair.beta, 1..=6);
    pair.assert_identical();
}

#[test]
fn of_two_promotions_at_one_moment_one_succeeds() {
    let pair = Pair::up(&setup());
    mark(&pair.alpha, 1);
    for _ in 0..4 {
        let serving = [&pair.alpha, &pair.beta].into_iter().find(|node| node.status()["role"] == "primary");
        serving.expect("one serves").cli(&["demote"]).ok();
        let nodes = [&pair.alpha, &pair.beta];
        let codes = std::thread::scope(|scope| {
            let asked = nodes.map(|node| scope.spawn(|| node.cli(&["promote", "--force"])));
            asked.map(|asked| asked.join().expect("does not panic"))
        });
        let primaries = nodes.iter().filter(|node| node.status()["role"] == "primary").count();
        assert_eq!(primaries, 1, "{codes:?}");
        let winners = codes.iter().filter(|ran| ran.code == Some(0)).count();
        assert_eq!(winners, 1, "{codes:?}");
        let loser = codes.iter().find(|ran| ran.code != Some(0)).expect("counted");
        assert!(loser.code == Some(1) && loser.stderr.contains("refused by the rule"), "{loser:?}");
    }
    pair.assert_identical();
}

#[test]
fn a_copy_that_was_deleted_is_made_anew_and_filled() {
    let mut pair = Pair::up(&setup());
    let ledger = Ledger::mixed(&[pair.alpha.place(), pair.beta.place()], 3, 48, 61);
    ledger.wait_more(100, LONG);
    pair.alpha.cli(&["switchover"]).ok();
    pair.alpha.kill();
    std::fs::remove_file(&pair.alpha.device).expect("is there");
    let said = pair.alpha.start_in_vain();
    assert!(said.contains("no such file") && said.contains("alpha.img"), "{said}");
    sparse(&pair.alpha.device, 8 * MIB);
    let said = pair.alpha.start_in_vain();
    assert!(said.contains("repblk init"), "{said}");
    pair.alpha.cli(&["init"]).ok();
    ledger.wait_more(50, LONG);
    pair.alpha.start();
    pair.beta.wait("both in sync", LONG, crate::pair::in_sync);
    assert!(pair.beta.log_text().contains("rule one-fresh"), "{}", pair.beta.log_end());
    // The new copy is as good as the old one was.
    pair.beta.kill();
    wait_for("the promotion", LONG, || (pair.alpha.cli(&["promote", "--peer-is-down"]).code == Some(0)).then_some(()));
    ledger.wait_more(50, LONG);
    pair.beta.start();
    pair.wait_in_sync();
    ledger.stop().audit(&mut pair.alpha.client());
    pair.assert_identical();
}

/// Metadata has all its room from the start: what fills the file system around it later does not matter.
#[test]
fn a_file_system_that_fills_up_around_the_metadata_harms_nobody() {
    let mut pair = Pair::new(&Setup { external: true, ..setup() });
    for node in [&pair.alpha, &pair.beta] {
        node.cli(&["init"]).ok();
    }
    let (meta, dir) = (pair.alpha.device.with_extension("meta"), pair.dir.path().join("small"));
    std::fs::create_dir(&dir).expect("can be made");
    let moved = dir.join("alpha.meta");
    for config in [&pair.alpha.config, &pair.beta.config] {
        crate::pair::reconfigure(config, &meta.display().to_string(), &moved.display().to_string());
    }
    std::fs::copy(&meta, &moved).expect("copies");
    pair.alpha.before = format!(
        "cp {meta} {meta}.kept && mount -t tmpfs -o size=1m none {dir} && cp {meta}.kept {moved}",
        meta = meta.display(),
        dir = dir.display(),
        moved = moved.display(),
    );
    pair.alpha.start();
    pair.beta.start();
    pair.wait_connected();
    pair.alpha.cli(&["promote", "--force"]).ok();
    pair.wait_in_sync();
    let full = format!("cat /dev/zero > /proc/{}/root{}/filler", pair.alpha.pid(), dir.display());
    let said = run("sh", ["-c", &full], SHORT).fails();
    assert!(said.contains("No space left"), "{said}");
    let ledger = Ledger::mixed(&[pair.alpha.place()], 3, 48, 62);
    ledger.wait_more(100, LONG);
    pair.beta.kill();
    ledger.wait_more(100, LONG);
    pair.beta.start();
    pair.wait_in_sync();
    let book = ledger.stop();
    assert_eq!(pair.alpha.status()["disk_state"], "uptodate");
    book.audit(&mut pair.alpha.client());
    pair.assert_identical();
}
