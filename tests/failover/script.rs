//! Scenarios as text: what is done on the left margin's words, what is expected after `expect`.
//!
//! ```text
//! mode etcd [and agent]          etcd, fence, agent or none; comes first
//! set settled=0s budget=2        times and bounds that differ from the defaults
//! run 5s                         time passes
//! kill a | kill-host a           the process, or its whole host, ends
//! start a                        and starts again
//! pause a 10s                    it is stopped, and goes on later
//! cut link | cut beats | cut a>b the data link; all heartbeats; heartbeats in one direction
//! heal                           all cuts end
//! arbiter down [a] | up | slow 2s | answers a 900ms
//! fence off|nothing|outdated|primary     what the next fence says (off: it really is)
//! agent dead|behind|alive|nothing        what the next agent says
//! disk a outdated|inconsistent|diverged|failed|stalled
//! clock a fast|slow              its clock runs off by the configured bound
//! ask a promote [force] [peer-is-down] | ask a hand-over | ask a maintenance on|off
//! expect a primary | a secondary | a says RULE | a acks | a frozen | answer a ok|RULE | nobody acks | somebody acks
//! expect within 7s a primary     as soon as it is so, and no later
//! backup | restore               of the arbiter
//! ```

use std::time::Duration;

use repblk::condition::{DiskState, Role};
use repblk::failover::config::{Arbiter, Timing};
use repblk::failover::io::{Ask, ProofWord};
use repblk::failover::record::Revision;

use crate::world::{Calm, World};

pub(crate) fn duration(text: &str) -> Duration {
    let (number, unit) = text.split_at(text.find(|c: char| c.is_alphabetic()).expect("a time has a unit"));
    let number: u64 = number.parse().expect("a number before the unit");
    match unit {
        "ms" => Duration::from_millis(number),
        "s" => Duration::from_secs(number),
        "min" => Duration::from_secs(60 * number),
        _ => panic!("`{text}` is no time"),
    }
}

fn node(word: &str) -> usize {
    ["a", "b"].iter().position(|name| *name == word).unwrap_or_else(|| panic!("`{word}` is no node"))
}

fn mode(word: &str) -> Arbiter {
    let all = [Arbiter::Etcd, Arbiter::Fence, Arbiter::Agent, Arbiter::None];
    all.into_iter().find(|mode| mode.word() == word).unwrap_or_else(|| panic!("`{word}` is no mode"))
}

struct Script {
    mode: Arbiter,
    timing: Timing,
    budget: usize,
    agents: bool,
    world: Option<World<Calm>>,
    backup: Option<Option<String>>,
}

/// Runs a script; panics with the line that does not hold.
pub(crate) fn run(name: &str, text: &str) {
    let timing = Timing { settled: Duration::ZERO, ..Timing::default() };
    let mut script = Script { mode: Arbiter::Etcd, timing, budget: 2, agents: false, world: None, backup: None };
    let mut expectations = 0;
    for (number, line) in text.lines().enumerate() {
        let words: Vec<&str> = line.split('#').next().expect("split gives a part").split_whitespace().collect();
        let place = format!("{name}:{}: {line}", number + 1);
        match words.as_slice() {
            [] => {}
            ["expect", rest @ ..] => {
                expectations += 1;
                script.expect(&place, rest);
            }
            words => script.act(&place, words),
        }
    }
    assert!(expectations > 0, "{name} expects nothing");
}

impl Script {
    fn world(&mut self) -> &mut World<Calm> {
        let (mode, timing, budget, agents) = (self.mode, self.timing, self.budget, self.agents);
        self.world.get_or_insert_with(|| {
            let mut world = World::healthy_with(mode, timing, Calm, agents);
            world.set_budget(budget);
            world
        })
    }

    fn act(&mut self, place: &str, words: &[&str]) {
        match words {
            ["mode", word] => self.mode = mode(word),
            ["mode", word, "and", "agent"] => (self.mode, self.agents) = (mode(word), true),
            ["set", pairs @ ..] => {
                for pair in pairs {
                    let (key, value) = pair.split_once('=').expect("key=value");
                    match key {
                        "settled" => self.timing.settled = duration(value),
                        "dwell" => self.timing.dwell = duration(value),
                        "lease" => self.timing.lease = duration(value),
                        "budget" => self.budget = value.parse().expect("a number"),
                        _ => panic!("{place}: no such setting"),
                    }
                }
            }
            ["run", time] => self.world().run(duration(time)),
            ["kill", who] => self.world().kill(node(who), false),
            ["kill-host", who] => self.world().kill(node(who), true),
            ["start", who] => self.world().start(node(who)),
            ["pause", who, time] => self.world().pause(node(who), duration(time)),
            ["cut", "link"] => self.world().cut_link = true,
            ["cut", "beats"] => self.world().cut_beats = [true; 2],
            ["cut", "a>b"] => self.world().cut_beats[0] = true,
            ["cut", "b>a"] => self.world().cut_beats[1] = true,
            ["heal"] => {
                let world = self.world();
                (world.cut_link, world.cut_beats) = (false, [false; 2]);
            }
            ["arbiter", "down"] => self.world().arbiter_up = [false; 2],
            ["arbiter", "down", who] => self.world().arbiter_up[node(who)] = false,
            ["arbiter", "up"] => {
                let world = self.world();
                (world.arbiter_up, world.arbiter_delay) = ([true; 2], Duration::from_millis(1));
            }
            ["arbiter", "slow", time] => self.world().arbiter_delay = duration(time) / 2,
            ["arbiter", "answers", who, time] => self.world().answer_delay[node(who)] = duration(time),
            ["fence" | "agent", word] => {
                self.world().proof = match *word {
                    "off" => ProofWord::Off,
                    "outdated" => ProofWord::PeerOutdated,
                    "primary" => ProofWord::PeerPrimary,
                    "dead" => ProofWord::DaemonDead { in_sync: true },
                    "behind" => ProofWord::DaemonDead { in_sync: false },
                    "alive" => ProofWord::DaemonAlive,
                    "nothing" => ProofWord::Nothing,
                    _ => panic!("{place}: no such word"),
                }
            }
            ["disk", who, word] => {
                let who = node(who);
                let copy = &mut self.world().nodes[who].copy;
                match *word {
                    "outdated" => copy.disk = DiskState::Outdated,
                    "inconsistent" => copy.disk = DiskState::Inconsistent,
                    "diverged" => copy.disk = DiskState::Diverged,
                    "failed" => copy.disk = DiskState::Failed,
                    "stalled" => copy.stalled = true,
                    _ => panic!("{place}: no such disk state"),
                }
                self.world().look_again(who);
            }
            ["clock", who, way] => {
                let ppm = i64::from(self.timing.rate_error_ppm);
                self.world().set_rate(node(who), if *way == "fast" { ppm } else { -ppm });
            }
            ["ask", who, rest @ ..] => {
                let has = |word: &str| rest.contains(&word);
                let ask = match rest[0] {
                    "promote" => Ask::Promote { force: has("force"), peer_is_down: has("peer-is-down") },
                    "hand-over" => Ask::HandOver,
                    "maintenance" => Ask::Maintenance { on: has("on") },
                    _ => panic!("{place}: no such question"),
                };
                let world = self.world();
                world.forced |= has("force");
                world.ask(node(who), ask);
            }
            ["backup"] => self.backup = Some(self.world().text.clone()),
            ["restore"] => {
                let text = self.backup.clone().expect("a backup was made");
                let world = self.world();
                (world.text, world.revision) = (text, Revision(2));
            }
            _ => panic!("{place}: not understood"),
        }
    }

    fn expect(&mut self, place: &str, words: &[&str]) {
        if let ["within", time, rest @ ..] = words {
            let mut left = duration(time);
            let slice = Duration::from_millis(10);
            while !self.holds(place, rest) {
                if left.is_zero() {
                    self.world().failed(&format!("{place}: did not come true"));
                }
                self.world().run(slice);
                left = left.saturating_sub(slice);
            }
        } else if !self.holds(place, words) {
            self.world().failed(&format!("{place}: does not hold"));
        }
    }

    fn holds(&mut self, place: &str, words: &[&str]) -> bool {
        let world = self.world();
        let acks = |world: &World<Calm>, who: usize| world.now - world.last_ack[who] < 300_000_000;
        match words {
            [who, "primary"] => world.nodes[node(who)].copy.role == Role::Primary,
            [who, "secondary"] => world.nodes[node(who)].copy.role == Role::Secondary,
            ["somebody", "acks"] => acks(world, 0) || acks(world, 1),
            ["nobody", "acks"] => !acks(world, 0) && !acks(world, 1),
            [who, "acks"] => acks(world, node(who)),
            [who, "frozen"] => world.nodes[node(who)].copy.role == Role::Primary && !acks(world, node(who)),
            [who, "says", rule] => world.nodes[node(who)].rule.is_some_and(|said| said.name() == *rule),
            [who, "in", "sync"] => world.nodes[node(who)].copy.in_sync,
            [who, disk @ ("outdated" | "uptodate")] => world.nodes[node(who)].copy.disk.word() == *disk,
            ["split", "brain"] => world.split_brains > 0,
            ["no", "split", "brain"] => world.split_brains == 0,
            ["answer", who, word] => {
                let said = world.nodes[node(who)].answers.last();
                said.is_some_and(|said| said.map_or_else(|rule| rule.name() == *word, |()| *word == "ok"))
            }
            _ => panic!("{place}: not understood"),
        }
    }
}
