//! `repblk attach`: the device stalls and goes on, or refuses; it never errs and never loses what was acknowledged.

use std::fs::File;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::failover::take_over;
use crate::ledger::{BLOCK, Ledger};
use crate::node::{Node, REPBLK, VOLUME};
use crate::pair::{MIB, Pair, Setup, reconfigure};
use crate::raw_nbd::{FLUSH, FUA, Raw, WRITE};
use crate::tools::{LONG, Ran, SHORT, run, wait_for};

const WRITERS: u64 = 4;
const BLOCKS: usize = 64;

/// A `repblk attach` of a pair's volume.
pub(crate) struct Attached {
    pub(crate) config: PathBuf,
    folder: PathBuf,
    child: Option<Child>,
}

impl Attached {
    /// Started; its socket is there.
    #[track_caller]
    pub(crate) fn start(pair: &Pair, options: &[&str]) -> Self {
        let mut attached = Self::new(pair);
        attached.begin(options);
        attached.wait("the device", |status| status["state"] == "following");
        wait_for("the socket of the device", SHORT, || PathBuf::from(attached.place()).exists().then_some(()));
        attached
    }

    pub(crate) fn new(pair: &Pair) -> Self {
        let config = pair.dir.path().join("host.toml");
        std::fs::copy(&pair.alpha.config, &config).expect("the test's folder can be written");
        Self { config, folder: pair.dir.path().to_path_buf(), child: None }
    }

    pub(crate) fn begin(&mut self, options: &[&str]) {
        let log = File::options().create(true).append(true).open(self.folder.join("attach.log"));
        let log = log.expect("the test's folder can be written");
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", REPBLK, "--config"]).arg(&self.config);
        command.args(["attach", VOLUME, "--dir"]).arg(&self.folder).args(options);
        command.stdin(Stdio::null()).stdout(log.try_clone().expect("descriptors are left")).stderr(log);
        self.child = Some(command.spawn().expect("setpriv is in Debian's util-linux"));
    }

    pub(crate) fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    fn cli(&self, args: &[&str]) -> Ran {
        let (config, folder) = (self.config.to_string_lossy(), self.folder.to_string_lossy());
        run(REPBLK, ["--config", &config].iter().chain(args).chain(&["--dir", &folder]), SHORT)
    }

    /// Where [`Raw`] and [`Ledger`] connect to.
    pub(crate) fn place(&self) -> String {
        self.folder.join(format!("attach-{VOLUME}.nbd")).display().to_string()
    }

    pub(crate) fn status(&self) -> Option<Value> {
        serde_json::from_str(&self.cli(&["attach", "--status", "--json"]).stdout).ok()
    }

    #[track_caller]
    pub(crate) fn wait(&self, what: &str, is: impl Fn(&Value) -> bool) -> Value {
        wait_for(&format!("{what}\n{}", self.log()), SHORT, || self.status().filter(|status| is(status)))
    }

    /// Waits until it refuses to go on, for a reason with `word` in it.
    #[track_caller]
    fn wait_doubt(&self, word: &str) -> Value {
        let status = self.wait("a doubt", |status| status["state"] == "in doubt");
        let doubt = status["doubt"].as_str().expect("a reason");
        assert!(doubt.contains(word), "{doubt}");
        status
    }

    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(self.folder.join("attach.log")).unwrap_or_default()
    }
}

impl Drop for Attached {
    fn drop(&mut self) {
        self.kill();
        if std::thread::panicking() {
            eprintln!("--- log of attach\n{}", self.log());
        }
    }
}

fn block(byte: u8) -> Vec<u8> {
    vec![byte; BLOCK]
}

/// Writes while nobody can acknowledge it: sends the request, and leaves the answer for later.
fn begin_write(client: &mut Raw, at: u64, byte: u8) {
    client.request(0, WRITE, at, u32::try_from(BLOCK).expect("small")).expect("is sent");
    client.send(&block(byte)).expect("is sent");
}

#[test]
fn the_loss_of_the_primary_is_a_pause() {
    let mut pair = Pair::up(&Setup::default());
    let attached = Attached::start(&pair, &[]);
    let ledger = Ledger::start(&[attached.place()], WRITERS, BLOCKS);
    ledger.wait_more(300, SHORT);
    for round in 0..2 {
        let (dies, lives) = if round == 0 { (&mut pair.alpha, &pair.beta) } else { (&mut pair.beta, &pair.alpha) };
        dies.kill();
        let took = take_over(lives, &["promote", "--peer-is-down"]);
        let served = Instant::now();
        ledger.wait_more(WRITERS + 1, SHORT);
        println!("promoted after {took:?}; the first answers came {:?} later", served.elapsed());
        ledger.wait_more(300, SHORT);
        dies.start();
        pair.wait_in_sync();
        ledger.wait_more(100, SHORT);
    }
    let status = attached.status().expect("it runs");
    assert!(status["failovers"].as_u64() >= Some(2), "{status}");
    let book = ledger.stop();
    println!("{} writes acknowledged, longest stall {:?}; {status}", book.acked, book.gap);
    assert_eq!(book.reconnects, 0, "the device was there all the time");
    book.audit(&mut pair.alpha.client());
    pair.assert_identical();
    attached.cli(&["detach"]).ok();
    assert!(attached.status().is_none(), "it has ended");
}

#[test]
fn a_switchover_under_load_is_a_short_pause() {
    let pair = Pair::up(&Setup::default());
    let attached = Attached::start(&pair, &[]);
    let ledger = Ledger::start(&[attached.place()], WRITERS, BLOCKS);
    ledger.wait_more(300, SHORT);
    for (from, to) in [(&pair.alpha, &pair.beta), (&pair.beta, &pair.alpha)] {
        from.cli(&["switchover"]).ok();
        assert_eq!(to.status()["role"], "primary");
        ledger.wait_more(300, SHORT);
        pair.wait_in_sync();
    }
    let book = ledger.stop();
    println!("{} writes acknowledged, longest gap {:?}", book.acked, book.gap);
    assert_eq!(book.reconnects, 0);
    assert!(book.gap < Duration::from_secs(5), "a client waited {:?}", book.gap);
    book.audit(&mut pair.alpha.client());
    pair.assert_identical();
}

#[test]
fn going_on_alone_is_followed_and_its_loss_is_not() {
    let mut pair = Pair::up(&Setup::default());
    let mut attached = Attached::start(&pair, &[]);
    let mut client = Raw::connect(&attached.place()).expect("it takes clients");
    assert_eq!(client.write(0, &block(1), FUA).expect("answered"), 0);
    pair.beta.cli(&["disconnect"]).ok();
    // Acknowledged by alpha alone.
    assert_eq!(client.write(0, &block(2), FUA).expect("answered"), 0);
    let status = attached.status().expect("it runs");
    assert_eq!(status["generation"], pair.alpha.status()["generation"], "it was told of the new generation");
    pair.alpha.kill();
    take_over(&pair.beta, &["promote", "--force"]);
    begin_write(&mut client, MIB, 3);
    attached.wait_doubt("does not descend");
    // Another life of it knows, too.
    attached.kill();
    attached.begin(&[]);
    let status = attached.wait_doubt("does not descend");
    assert_eq!((&status["node"], &status["size_bytes"]), (&"alpha".into(), &pair.beta.data_len().into()));
    let mut client = wait_for("the socket", SHORT, || Raw::connect(&attached.place()).ok());
    begin_write(&mut client, 0, 4);
    let said = attached.cli(&["attach", "--status"]).exits(1);
    assert!(said.contains("does not descend") && said.contains("1 open requests"), "{said}");
    // The copy that has everything returns, and the device goes on.
    pair.beta.kill();
    pair.alpha.start();
    take_over(&pair.alpha, &["promote", "--peer-is-down"]);
    assert_eq!(client.reply().expect("answered at last"), 0);
    assert_eq!(client.read(0, BLOCK).expect("reads"), block(4));
}

#[test]
fn in_async_the_loss_of_the_primary_is_refused_and_a_switchover_is_not() {
    let mut pair = Pair::up(&Setup { mode: "async", ..Setup::default() });
    let attached = Attached::start(&pair, &["--on-doubt", "fail"]);
    let mut client = Raw::connect(&attached.place()).expect("it takes clients");
    assert_eq!(client.write(0, &block(1), 0).expect("answered"), 0);
    pair.alpha.cli(&["switchover"]).ok();
    assert_eq!(client.write(MIB, &block(2), 0).expect("answered"), 0);
    pair.wait_in_sync();
    pair.beta.kill();
    take_over(&pair.alpha, &["promote", "--peer-is-down"]);
    assert_eq!(client.write(0, &block(3), 0).expect("answered"), 5, "an input/output error, as was wished");
    let status = attached.wait("the end", |status| status["state"] == "failed");
    assert!(status["doubt"].as_str().is_some_and(|why| why.contains("async")), "{status}");
    assert_eq!(pair.alpha.client().read(0, 1).expect("reads"), [1], "nothing was sent there");
    attached.cli(&["detach"]).ok();
}

#[test]
fn another_volume_behind_an_address_is_refused() {
    let mut pair = Pair::up(&Setup::default());
    let other = Pair::up(&Setup::default());
    let mut attached = Attached::new(&pair);
    let unix = |node: &Node| node.nbd_unix.display().to_string();
    reconfigure(&attached.config, &unix(&pair.beta), &unix(&other.alpha));
    reconfigure(&attached.config, &pair.beta.nbd_tcp, &other.alpha.nbd_tcp);
    // Its own primary is found first, since the other one is not there yet.
    other.alpha.cli(&["demote"]).ok();
    attached.begin(&[]);
    attached.wait("the device", |status| status["state"] == "following");
    let mut client = wait_for("the socket", SHORT, || Raw::connect(&attached.place()).ok());
    assert_eq!(client.write(0, &block(1), FUA).expect("answered"), 0);
    other.alpha.cli(&["promote"]).ok();
    pair.alpha.kill();
    begin_write(&mut client, 0, 2);
    // Volumes of one name in clusters of one name have one identity; their data has not.
    attached.wait_doubt("does not descend");
    assert_eq!(other.alpha.client().read(0, 1).expect("reads"), [0], "nothing was written there");
    pair.alpha.start();
    assert_eq!(client.reply().expect("its own primary is back"), 0);
}

#[test]
fn a_paused_primary_is_left_and_never_heard_again() {
    let mut pair = Pair::up(&Setup::default());
    let attached = Attached::start(&pair, &[]);
    let mut client = Raw::connect(&attached.place()).expect("it takes clients");
    assert_eq!(client.write(0, &block(1), 0).expect("answered"), 0);
    crate::tools::signal(pair.alpha.pid(), "STOP");
    begin_write(&mut client, 0, 2);
    take_over(&pair.beta, &["promote", "--peer-is-down"]);
    assert_eq!(client.reply().expect("the new primary answers"), 0);
    assert_eq!(client.write(0, &block(3), FUA).expect("answered"), 0);
    // Without an arbiter it takes itself for primary when it wakes, and then both nodes see what has happened.
    crate::tools::signal(pair.alpha.pid(), "CONT");
    pair.beta.wait_log("split brain", LONG);
    for version in 4..40 {
        assert_eq!(client.write(0, &block(version), FUA).expect("answered"), 0);
        assert_eq!(client.read(0, BLOCK).expect("reads"), block(version));
    }
    assert_eq!(attached.status().expect("it runs")["node"], "beta");
    assert_eq!(pair.alpha.status()["role"], "primary", "it was not asked");
    assert!(pair.alpha.read_device(&pair.alpha.device, 0, 1)[0] <= 2, "nothing that came later went to it");
    pair.alpha.kill();
}

#[test]
fn a_restart_of_attach_and_other_programs() {
    let pair = Pair::up(&Setup::default());
    let mut attached = Attached::start(&pair, &[]);
    let ledger = Ledger::start(&[attached.place()], WRITERS, BLOCKS);
    ledger.wait_more(200, SHORT);
    attached.kill();
    attached.begin(&[]);
    ledger.wait_more(200, SHORT);
    let book = ledger.stop();
    book.audit(&mut Raw::connect(&attached.place()).expect("it takes clients"));
    let uri = format!("nbd+unix:///{VOLUME}?socket={}", attached.place());
    run("nbdinfo", [&uri], SHORT).ok();
    let copy = pair.dir.path().join("copy.img");
    run("nbdcopy", [&uri, &copy.display().to_string()], LONG).ok();
    let verify =
        ["-f", "raw", "-c", "write -P 7 20M 3M", "-c", "read -P 7 20M 3M", "-c", "flush", "-c", "discard 21M 1M"];
    run("qemu-io", verify.iter().chain(&["-c", "read -P 0 21M 1M", uri.as_str()]), SHORT).ok();
    // Anybody can read what a follower is told.
    let follow = format!("nbd+unix:///{VOLUME}/follow?socket={}", pair.alpha.nbd_unix.display());
    let told = run("nbdinfo", [&follow], SHORT).ok();
    assert!(told.contains("repblk-follow-1") && told.contains("mode=sync"), "{told}");
    pair.assert_identical();
}

#[test]
fn a_flush_after_a_promotion_reaches_the_disk() {
    let mut pair = Pair::up(&Setup::default());
    pair.alpha.cli(&["switchover"]).ok();
    pair.wait_in_sync();
    assert_eq!(pair.beta.client().write(0, &block(1), 0).expect("answered"), 0);
    pair.beta.kill();
    // What alpha wrote as secondary may be in the cache of its disk, and no barrier will come for it any more.
    let flushes = || pair.alpha.status()["counters"]["disk_flushes"].as_u64().expect("a number");
    let before = flushes();
    take_over(&pair.alpha, &["promote", "--peer-is-down"]);
    assert_eq!(pair.alpha.client().plain(0, FLUSH, 0, 0).expect("answered"), 0);
    assert!(flushes() > before, "the flush was answered, and the disk was not flushed");
}
