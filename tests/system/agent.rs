//! Agents: a dead daemon is proved dead by its own host, and the standby waits for nothing else.

use std::fs::File;
use std::io::Write as _;
use std::net::TcpListener;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::etcd::EtcdServer;
use crate::ledger::Ledger;
use crate::node::{Node, REPBLK};
use crate::pair::{Pair, Setup};
use crate::tools::{LONG, SHORT, signal, wait_for};

const WRITERS: u64 = 4;
const BLOCKS: usize = 64;
/// From the death of the primary's daemon to the first write that the survivor acknowledges, as the documentation says.
const TAKE_OVER_TIME: Duration = Duration::from_secs(2);

/// Agents of a pair.
struct Agents(Vec<Child>);

impl Drop for Agents {
    fn drop(&mut self) {
        for child in &mut self.0 {
            // One that has ended needs no killing.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// A pair in sync with an agent for each node, `alpha` primary.
#[track_caller]
fn up(arbiter: &str, keys: bool) -> (Agents, Pair) {
    let volume_keys = "peer_timeout_ms = 1000\nping_interval_ms = 250";
    let arbiter = format!("{arbiter}\nsettled_ms = 500\ndwell_ms = 0\nagent_hang_ms = 2000\n");
    let pair = Pair::new(&Setup { volume_keys, arbiter, keys, agents: true, ..Setup::default() });
    let agents = Agents(vec![agent(&pair.alpha), agent(&pair.beta)]);
    (agents, pair.found())
}

/// The agent of a node's host.
fn agent(node: &Node) -> Child {
    let log = File::create(node.log.with_extension("agent")).expect("the test's folder can be written");
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL", REPBLK, "--config"]).arg(&node.config).args(["--node", node.name, "agent"]);
    command.stdin(Stdio::null()).stdout(log.try_clone().expect("descriptors are left")).stderr(log);
    let child = command.spawn().expect("setpriv is in Debian's util-linux");
    let at = node.data.replace(":7789", ":7791");
    wait_for("the agent", SHORT, || std::net::TcpStream::connect(&at).ok().map(drop));
    child
}

/// Time until a write is acknowledged that was not on its way before.
#[track_caller]
fn first_write(ledger: &Ledger, began: Instant) -> Duration {
    ledger.wait_more(WRITERS + 1, SHORT);
    began.elapsed()
}

#[test]
fn a_daemon_that_is_proved_dead_is_replaced_at_once_and_one_that_hangs_is_ended() {
    let (_agents, mut pair) = up("kind = \"agent\"", true);
    let ledger = Ledger::start(&[pair.alpha.place(), pair.beta.place()], WRITERS, BLOCKS);
    ledger.wait_more(200, SHORT);
    let began = Instant::now();
    pair.alpha.kill();
    let took = first_write(&ledger, began);
    println!("first write acknowledged {took:?} after the kill");
    assert!(took < TAKE_OVER_TIME, "it took {took:?}");
    assert_eq!(pair.beta.status()["role"], "primary");
    assert!(pair.beta.log_text().contains("take-over-proved-dead"));
    pair.alpha.start();
    let returned = pair.alpha.wait("the old primary to be a good copy", LONG, crate::pair::in_sync);
    assert_eq!(returned["role"], "secondary", "what was recorded without it counts");

    // Stopped, and never to go on: its host's agent ends it.
    ledger.wait_more(50, SHORT);
    let began = Instant::now();
    signal(pair.beta.pid(), "STOP");
    pair.alpha.wait("the promotion", LONG, |volume| volume["role"] == "primary");
    println!("promoted {:?} after the daemon was stopped", began.elapsed());
    ledger.wait_more(WRITERS + 1, SHORT);
    pair.beta.kill();
    pair.beta.start();
    pair.wait_in_sync();

    // One that went on alone says so even when it is dead.
    pair.proxy.cut();
    ledger.wait_more(50, SHORT);
    pair.alpha.kill();
    // Its beats may have reached the other one before.
    let rules = ["left-behind", "own-outdated"];
    pair.beta.wait("a copy that knows what it lacks", SHORT, |volume| {
        volume["failover"]["rule"].as_str().is_some_and(|rule| rules.contains(&rule))
    });
    pair.proxy.mend();
    pair.alpha.start();
    pair.alpha.wait("the role", SHORT, |volume| volume["role"] == "primary");
    pair.wait_in_sync();
    let book = ledger.stop();
    book.audit(&mut pair.alpha.client());
    pair.assert_identical();
}

#[test]
fn beside_a_record_the_proof_ends_the_lease() {
    let etcd = EtcdServer::start();
    let (_agents, mut pair) = up(&etcd.lines(), false);
    let ledger = Ledger::start(&[pair.alpha.place(), pair.beta.place()], WRITERS, BLOCKS);
    ledger.wait_more(200, SHORT);
    pair.beta.wait("the record to count both", SHORT, |volume| {
        let evidence = volume["failover"]["evidence"].as_str().unwrap_or_default();
        evidence.split(' ').any(|word| word == "me-recorded")
    });
    let began = Instant::now();
    pair.alpha.kill();
    let took = first_write(&ledger, began);
    println!("first write acknowledged {took:?} after the kill");
    assert!(took < TAKE_OVER_TIME, "it took {took:?}, as if nothing had been proved");
    pair.alpha.start();
    pair.wait_in_sync();
    let book = ledger.stop();
    book.audit(&mut pair.beta.client());
    pair.assert_identical();
}

/// Strangers that say nothing take every seat at the agent, and the peer has its proof as soon as ever.
#[test]
fn strangers_do_not_keep_the_peer_from_its_proof() {
    let (_agents, mut pair) = up("kind = \"agent\"", true);
    let at = pair.alpha.data.replace(":7789", ":7791");
    let ledger = Ledger::start(&[pair.alpha.place(), pair.beta.place()], WRITERS, BLOCKS);
    ledger.wait_more(200, SHORT);
    let strangers: Vec<_> = (0..100).map(|_| std::net::TcpStream::connect(&at).expect("the agent listens")).collect();
    let began = Instant::now();
    pair.alpha.kill();
    let took = first_write(&ledger, began);
    println!("first write acknowledged {took:?} after the kill, with {} strangers at the agent", strangers.len());
    assert!(took < TAKE_OVER_TIME, "it took {took:?}");
    drop(strangers);
    pair.alpha.start();
    pair.wait_in_sync();
    let book = ledger.stop();
    book.audit(&mut pair.beta.client());
    pair.assert_identical();
}

/// Whoever sits at the agent's address says that the primary is dead, which would make two primaries.
#[test]
fn a_false_word_of_death_is_not_believed() {
    let (mut agents, mut pair) = up("kind = \"agent\"", true);
    let at = pair.alpha.data.replace(":7789", ":7791");
    let mut agent = agents.0.remove(0);
    agent.kill().expect("it runs");
    agent.wait().expect("it has ended");
    let listener = wait_for("the agent's address", SHORT, || TcpListener::bind(&at).ok());
    std::thread::spawn(move || {
        for asker in listener.incoming() {
            // It may have gone already.
            let _ = asker.expect("it listens").write_all(b"{\"word\":\"dead\",\"why\":\"it is gone\"}\n");
        }
    });
    pair.alpha.kill();
    wait_for("what is said to be heard", SHORT, || pair.beta.log_text().contains("proves nothing").then_some(()));
    assert!(!pair.beta.log_text().contains("it is gone"));
    assert_eq!(pair.beta.status()["role"], "secondary");
    pair.alpha.start();
    pair.wait_in_sync();
}
