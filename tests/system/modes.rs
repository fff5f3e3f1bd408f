//! The modes that acknowledge before the peer has written.

use std::time::{Duration, Instant};

use crate::ledger::Ledger;
use crate::pair::{MIB, Pair, Setup};
use crate::tools::{LONG, SHORT};

#[test]
fn semisync_survives_the_loss_of_the_primary_and_of_the_link() {
    let mut pair = Pair::up(&Setup { mode: "semisync", ..Setup::default() });
    let ledger = Ledger::start(&[pair.alpha.place(), pair.beta.place()], 4, 64);
    ledger.wait_more(300, SHORT);
    pair.proxy.reset();
    pair.wait_in_sync();
    ledger.wait_more(300, SHORT);
    pair.alpha.kill();
    crate::tools::wait_for("the promotion", SHORT, || {
        (pair.beta.cli(&["promote", "--peer-is-down"]).code == Some(0)).then_some(())
    });
    ledger.wait_more(100, SHORT);
    pair.alpha.start();
    pair.wait_in_sync();
    let book = ledger.stop();
    // What the peer had received it has written by now: its process never died.
    book.audit(&mut pair.beta.client());
    pair.assert_identical();
}

#[test]
fn async_keeps_its_backlog_within_the_bound_on_a_slow_link() {
    const RATE: u64 = 2 * MIB;
    const BACKLOG: u64 = MIB;
    let setup = Setup { mode: "async", volume_keys: "backlog_max_mib = 1\nbacklog_max_ms = 60000", ..Setup::default() };
    let pair = Pair::up(&setup);
    let mirrored = |v: &serde_json::Value| v["mirrored_bytes"].as_u64().expect("a number");
    let before = mirrored(&pair.alpha.status());
    pair.proxy.slow(RATE);
    let mut client = pair.alpha.client();
    let chunk = vec![0x77; 128 << 10];
    let (began, mut acked) = (Instant::now(), 0u64);
    // As much as the backlog and both sockets' buffers take goes fast, and then only as fast as the link.
    while began.elapsed() < Duration::from_secs(4) {
        let at = acked % (16 * MIB);
        assert_eq!(client.write(at, &chunk, 0).expect("the client is served"), 0);
        acked += u64::try_from(chunk.len()).expect("64 bits");
    }
    println!("{} KiB acknowledged in 4 s over a link of 2 MiB/s with a backlog of 1 MiB", acked >> 10);
    let passed = RATE * 4;
    // Sockets of the loopback buffer some MiB that the proxy has not carried yet, but the peer has not acknowledged either.
    assert!(acked <= passed + BACKLOG + 2 * MIB, "{acked} bytes were acknowledged, the link carries {passed}");
    assert!(acked >= BACKLOG, "async acknowledges ahead of the link: {acked} bytes");
    assert!(mirrored(&pair.alpha.status()) > before);
    // A flush is the own disk's alone.
    let flushed = Instant::now();
    assert_eq!(client.flush().expect("the client is served"), 0);
    assert!(flushed.elapsed() < Duration::from_secs(2), "a flush took {:?} in async", flushed.elapsed());
    // A cut with a full backlog: what was not sent is known and copied later.
    pair.proxy.cut();
    pair.alpha.wait("the loss of the link", SHORT, |v| v["peers"][0]["connection"] != "connected");
    let dirty = pair.alpha.status()["peers"][0]["out_of_sync_bytes"].as_u64().expect("a number");
    assert!(dirty > 0, "what the peer did not get is remembered");
    assert!(dirty <= 16 * MIB, "no more than was written is remembered: {dirty} bytes");
    pair.proxy.mend();
    pair.alpha.wait("the resync", LONG, crate::pair::in_sync);
    pair.assert_identical();
}

#[test]
fn async_goes_on_while_the_peer_is_away() {
    let mut pair = Pair::up(&Setup { mode: "async", ..Setup::default() });
    let ledger = Ledger::start(&[pair.alpha.place()], 4, 64);
    ledger.wait_more(300, SHORT);
    pair.beta.kill();
    ledger.wait_more(500, SHORT);
    pair.beta.start();
    pair.alpha.wait("the resync", LONG, |v| v["peers"][0]["connection"] == "connected" && v["resync"].is_null());
    ledger.wait_more(300, SHORT);
    let book = ledger.stop();
    book.audit(&mut pair.alpha.client());
    pair.assert_identical();
}
