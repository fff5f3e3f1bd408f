//! Small models, exhausted: a pair at a turning point, six events, and every order in which they can come.
//!
//! The orders form a tree; the world is forked at each branch, so that a beginning is lived through once. How soon an event follows
//! the one before (in the same microsecond, between two frames, or when everything has come to rest) is drawn from the
//! beginning itself. After each event the checkers look; at the end of each order everything is healed and must converge,
//! with nothing lost.
//!
//! An event that cannot happen where it stands (a second start of a running daemon) is left out, and the order goes on without it:
//! so an order of six contains the shorter ones. `REPBLK_ORDER_SEED=n` draws other distances in time, `REPBLK_ORDER_EVENTS=n` takes the
//! first n events of a model. A failure prints the order; `REPBLK_ORDER=name` lives through that one alone, with its trace.

use std::panic::{AssertUnwindSafe, catch_unwind};

use repblk::volume::io::Command;

use crate::rng::Rng;
use crate::story::Story;
use crate::swarm::{MS, Options, SECOND};
use crate::trace;
use crate::world::World;

const A: usize = 0;
const B: usize = 1;

/// Something that happens once.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Happening {
    /// The link breaks, and no other can be made.
    Cut,
    /// A link can be made, and is.
    Join,
    /// The client writes.
    Write,
    /// The client flushes.
    Flush,
    /// A host loses power.
    Power(usize),
    /// A process is killed.
    Kill(usize),
    /// A daemon that is down starts.
    Start(usize),
    /// A process is killed and starts again at once.
    Restart(usize),
    /// An honest operator promotes a node, unseen when its peer is down.
    Promote(usize),
    /// An operator who does not care makes a node primary.
    Force(usize),
    /// A primary hands over.
    Switchover(usize),
}

use Happening::{Cut, Flush, Force, Join, Kill, Power, Promote, Restart, Start, Switchover, Write};

impl Happening {
    /// Makes it happen; false when it cannot.
    fn happens(self, w: &mut World) -> bool {
        let linked = w.links.last().is_some_and(|l| !l.cut);
        let runs = |w: &World, node: usize| w.nodes[node].process.is_some();
        match self {
            Cut if linked => {
                w.data_cut_until = u64::MAX;
                w.cut_now("model");
            }
            Join if !linked && runs(w, A) && runs(w, B) => {
                w.data_cut_until = 0;
                w.dial();
                w.data_cut_until = u64::MAX;
            }
            Write => {
                let first = w.client_rng.index(96) * 8;
                w.request_write(0, first, 12, false);
            }
            Flush => w.request_flush(0),
            Power(node) if runs(w, node) => w.power_loss(node),
            Kill(node) if runs(w, node) => w.kill(node),
            Start(node) if !runs(w, node) => w.restart_after(node, 0),
            Restart(node) if runs(w, node) => {
                w.kill(node);
                w.restart_after(node, 0);
            }
            Promote(node) if runs(w, node) => {
                let alone = !runs(w, 1 - node);
                if alone && w.operator.excluded[node] {
                    return false;
                }
                if alone {
                    w.operator.excluded[1 - node] = true;
                }
                w.order(node, Command::Promote { force: false, peer_is_down: alone });
            }
            Force(node) if runs(w, node) => {
                w.memory.forked = true;
                w.order(node, Command::Promote { force: true, peer_is_down: true });
            }
            Switchover(node) if runs(w, node) => {
                w.order(node, Command::Switchover);
            }
            _ => return false,
        }
        true
    }
}

/// A tree of orders.
struct Model {
    name: &'static str,
    only: Option<String>,
    seed: u64,
    orders: u64,
    failures: Vec<String>,
}

impl Model {
    fn grow(&mut self, w: &World, order: &mut Vec<Happening>, left: &[Happening]) {
        if left.is_empty() {
            self.orders += 1;
            self.attempt(w, order, |mut w| {
                w.operator.passive = false;
                for client in &mut w.clients {
                    client.quiet = false;
                }
                w.run_for(100 * MS);
                w.converge();
            });
            return;
        }
        for (i, &next) in left.iter().enumerate() {
            order.push(next);
            let mut rest = left.to_vec();
            rest.remove(i);
            let seed = order.iter().fold(self.seed, |hash, h| Rng::new(hash ^ h.number()).next());
            let gap = Rng::new(seed).pick(&[0, 0, 30_000, 150_000, 400_000, MS, 3 * MS, 20 * MS, 400 * MS]);
            let forked = self.attempt(w, order, |mut w| {
                next.happens(&mut w);
                w.run_for(gap);
                w.check_now();
                w
            });
            if let Some(forked) = forked {
                self.grow(&forked, order, &rest);
            }
            order.pop();
        }
    }

    fn attempt<T>(&mut self, w: &World, order: &[Happening], live: impl Fn(World) -> T) -> Option<T> {
        let name = format!("{}:{}", self.name, order.iter().map(|h| format!("{h:?}")).collect::<Vec<_>>().join("-"));
        if self.only.as_ref().is_some_and(|only| !only.starts_with(&name)) {
            return None;
        }
        trace::start(self.only.is_some(), true);
        if let Ok(done) = catch_unwind(AssertUnwindSafe(|| live(w.clone()))) {
            trace::start(false, false);
            return Some(done);
        }
        trace::start(true, false);
        let why = catch_unwind(AssertUnwindSafe(|| live(w.clone()))).err().expect("a fork is deterministic");
        let why = why.downcast_ref::<String>().cloned().unwrap_or_default();
        self.failures.push(format!(
            "{}{name}: {why}\nreplay: REPBLK_ORDER='{name}' cargo test --test sim orders -- --nocapture",
            trace::tail()
        ));
        trace::start(false, false);
        None
    }
}

impl Happening {
    fn number(self) -> u64 {
        format!("{self:?}").bytes().fold(7u64, |n, byte| n.wrapping_mul(31).wrapping_add(u64::from(byte)))
    }
}

/// Lives through every order of `events` from where `begin` leads.
fn exhaust(name: &'static str, events: &[Happening], begin: impl Fn(&mut Story)) {
    let number = |name: &str| std::env::var(name).ok().map(|n| n.parse::<u64>().expect("a number"));
    let only = std::env::var("REPBLK_ORDER").ok();
    if only.as_ref().is_some_and(|only| !only.starts_with(&format!("{name}:"))) {
        return;
    }
    let count = number("REPBLK_ORDER_EVENTS").map_or(events.len(), |n| usize::try_from(n).expect("small"));
    let events = &events[..count.min(events.len())];
    // A small volume, a client that asks only what it is told to, and quick devices: time is for the events.
    let options = Options {
        data_len: 512 << 10,
        span: 1024,
        clients: 1,
        disk_delay: 40_000,
        latency: 40_000,
        think: 5 * MS,
        request_sectors_max: 16,
        ..Options::calm()
    };
    let mut s = Story::with(3, options);
    s.load(60 * MS).rest();
    begin(&mut s);
    s.w.data_cut_until = u64::MAX;
    let mut model =
        Model { name, only, seed: number("REPBLK_ORDER_SEED").unwrap_or(1), orders: 0, failures: Vec::new() };
    model.grow(&s.w, &mut Vec::new(), events);
    println!("{name}: {} orders of {} events", model.orders, events.len());
    for failure in model.failures.iter().take(5) {
        println!("FAILED {failure}");
    }
    assert!(model.failures.is_empty(), "{name}: {} failures", model.failures.len());
}

#[test]
fn orders_around_a_connect() {
    exhaust("connect", &[Join, Write, Restart(A), Power(B), Start(B), Cut], |s| {
        s.cut_for(SECOND).load(20 * MS).rest();
    });
}

#[test]
fn orders_around_the_end_of_a_resync() {
    exhaust("resync-finish", &[Cut, Join, Write, Restart(B), Power(A), Start(A)], |s| {
        s.cut_for(60 * MS).load(50 * MS).rest();
        let over = s.w.run_until(5 * SECOND, |w| {
            let peer = w.nodes[A].snapshot(w.now).expect("it runs").peers[0].clone();
            peer.replication == "source" && peer.out_of_sync_bytes <= 64 << 10
        });
        assert!(over, "a resync nears its end:\n  {}", s.w.summary());
    });
}

#[test]
fn orders_around_a_promotion() {
    exhaust("promotion", &[Promote(B), Start(A), Join, Write, Restart(B), Promote(A)], |s| {
        s.load(20 * MS).w.power_loss(A);
        s.wait(3 * SECOND).rest();
    });
}

#[test]
fn orders_around_a_loss_of_the_link() {
    exhaust("link-loss", &[Cut, Join, Write, Flush, Power(A), Start(A)], |s| {
        s.load(20 * MS).rest();
    });
}

#[test]
fn orders_around_a_switchover() {
    exhaust("switchover", &[Switchover(A), Cut, Join, Restart(B), Promote(A), Write], |s| {
        s.load(20 * MS).rest();
    });
}

#[test]
fn orders_around_two_power_losses() {
    exhaust("both-powers", &[Power(A), Power(B), Start(A), Start(B), Promote(B), Join], |s| {
        s.load(30 * MS).rest();
    });
}

#[test]
fn orders_around_a_careless_promotion() {
    exhaust("careless", &[Cut, Force(B), Write, Join, Kill(A), Start(A)], |s| {
        s.load(20 * MS).rest();
    });
}
