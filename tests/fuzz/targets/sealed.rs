//! Sealed datagrams between two nodes, with somebody between them who records, holds back, plays back, damages and misdirects.
//!
//! Input: what happens, one thing after the other. Both nodes restart and change their secrets meanwhile.

use std::collections::BTreeSet;

use super::input::Input;
use super::notes::note;
use repblk::units::ClusterId;
use repblk::wire::sealed::{BODY_LEN_MAX, OVERHEAD, Opened, Route, SECRET_LEN, Seal, Secret};

/// Nodes, each with one end of each path.
const NODES: usize = 2;
const PATHS: usize = 2;
const STEPS_MAX: usize = 200;
/// Beats in which two that share a secret must have come to know each other.
const BEATS_MAX: usize = 60;

/// A datagram that a node made.
struct Made {
    from: usize,
    path: usize,
    /// Which life of its sender it is of.
    life: u64,
    bytes: Vec<u8>,
    body: Vec<u8>,
}

/// One end of a path.
struct End {
    seal: Seal,
    /// The latest life of the other node that was believed.
    believed: u64,
}

struct World {
    ends: [[End; PATHS]; NODES],
    lives: [u64; NODES],
    /// How far each node is with the changes of the secret.
    stages: [u8; NODES],
    made: Vec<Made>,
    /// The datagrams that were believed, by number.
    taken: BTreeSet<usize>,
}

pub fn run(data: &[u8]) {
    let mut input = Input::new(data);
    let mut world = World::new();
    for _ in 0..STEPS_MAX {
        if input.is_empty() {
            break;
        }
        world.step(&mut input);
    }
    for path in 0..PATHS {
        world.come_to_know_each_other(path);
    }
}

/// What a node accepts at a stage: the first secret, the second and the first, the second, the third and the second ...
fn secrets(stage: u8) -> Vec<Secret> {
    let of = |number: u8| Secret::new([number + 1; SECRET_LEN]);
    let newest = stage.div_ceil(2);
    if stage.is_multiple_of(2) { vec![of(newest)] } else { vec![of(newest), of(newest - 1)] }
}

fn route(from: usize, path: usize) -> Route {
    let (names, other) = (["alpha", "beta"], 1 - from);
    let path = u16::try_from(path).expect("few");
    let (from, to) = (names[from].to_owned(), names[other].to_owned());
    Route { cluster: ClusterId(7), purpose: "heartbeat", path, from, to }
}

impl World {
    fn new() -> Self {
        let end = |node: usize, path: usize| End { seal: Seal::new(&secrets(0), route(node, path), 1), believed: 0 };
        let mut world = Self {
            ends: [0, 1].map(|node| [0, 1].map(|path| end(node, path))),
            lives: [0; NODES],
            stages: [0; NODES],
            made: Vec::new(),
            taken: BTreeSet::new(),
        };
        (0..NODES).for_each(|node| world.restart(node));
        world
    }

    fn step(&mut self, input: &mut Input<'_>) {
        let (what, node, path) = (input.u8() % 16, input.index(NODES), input.index(PATHS));
        note(what);
        match what {
            0..=3 => {
                let len = usize::from(input.u8() % 40);
                self.speak(node, path, input.bytes(len).to_vec());
            }
            4 => self.speak(node, path, vec![what; BODY_LEN_MAX]),
            5..=9 if !self.made.is_empty() => {
                // Mostly one of the last ones.
                let back = if what == 9 { usize::from(input.u16()) } else { usize::from(input.u8() % 8) };
                self.deliver(self.made.len() - 1 - back % self.made.len());
            }
            10 if !self.made.is_empty() => self.misdirect(input),
            11 if !self.made.is_empty() => self.damage(input),
            12 => {
                let len = usize::from(input.u8());
                let bytes = input.bytes(len);
                assert!(matches!(self.ends[node][path].seal.open(bytes), Opened::Foreign | Opened::Forged));
            }
            13 => self.restart(node),
            // A node is given the next secret when the other is not behind.
            14 if self.stages[node] <= self.stages[1 - node] && self.stages[node] < 20 => {
                self.stages[node] += 1;
                let secrets = secrets(self.stages[node]);
                self.ends[node].iter_mut().for_each(|end| end.seal.change_secrets(&secrets));
            }
            15 => self.come_to_know_each_other(path),
            _ => {}
        }
    }

    /// A new life, which remembers nothing.
    fn restart(&mut self, node: usize) {
        self.lives[node] += 1;
        let incarnation = self.lives[node] * 2 + u64::try_from(node).expect("few");
        for path in 0..PATHS {
            let seal = Seal::new(&secrets(self.stages[node]), route(node, path), incarnation);
            self.ends[node][path] = End { seal, believed: 0 };
        }
    }

    fn speak(&mut self, from: usize, path: usize, body: Vec<u8>) {
        let bytes = self.ends[from][path].seal.seal(&body);
        assert_eq!(bytes.len(), body.len() + OVERHEAD);
        self.made.push(Made { from, path, life: self.lives[from], bytes, body });
    }

    /// Gives a datagram to whom it is for. True when it is believed.
    fn deliver(&mut self, number: usize) -> bool {
        let made = &self.made[number];
        let (to, path) = (1 - made.from, made.path);
        let end = &mut self.ends[to][path];
        let reply = match end.seal.open(&made.bytes) {
            Opened::Fresh { body, newcomer } => {
                assert_eq!(body, made.body, "what was said is what is heard");
                assert!(self.taken.insert(number), "a recording is believed");
                assert!(made.life >= end.believed, "a life that is over is believed");
                assert_eq!(newcomer, made.life > end.believed, "each life is new once");
                end.believed = made.life;
                note(("fresh", newcomer));
                return true;
            }
            Opened::Unproven { reply, .. } => {
                assert!(reply.len() <= made.bytes.len(), "a small question must not make a large answer");
                reply
            }
            Opened::Replayed => {
                note("replayed");
                return false;
            }
            Opened::Forged => {
                // Genuine, and under a secret that is not accepted here, or that came after it.
                assert_ne!((self.stages[to], self.stages[1 - to]), (0, 0), "a genuine one is taken for a forged one");
                note("outdated");
                return false;
            }
            Opened::Foreign => panic!("a datagram is not known for one"),
        };
        note("unproven");
        self.made.push(Made { from: to, path, life: self.lives[to], bytes: reply, body: Vec::new() });
        false
    }

    /// Gives a datagram to another path, or back to where it came from.
    fn misdirect(&mut self, input: &mut Input<'_>) {
        let made = &self.made[usize::from(input.u16()) % self.made.len()];
        let (node, path) = (input.index(NODES), input.index(PATHS));
        if (node, path) != (1 - made.from, made.path) {
            assert_eq!(self.ends[node][path].seal.open(&made.bytes), Opened::Forged);
        }
    }

    /// Changes a datagram on its way.
    fn damage(&mut self, input: &mut Input<'_>) {
        let made = &self.made[usize::from(input.u16()) % self.made.len()];
        let mut bytes = made.bytes.clone();
        match input.u8() % 4 {
            0 => bytes.truncate(usize::from(input.u16()) % bytes.len()),
            1 => bytes.push(input.u8()),
            _ => {
                let at = usize::from(input.u16()) % bytes.len();
                bytes[at] ^= input.u8().max(1);
            }
        }
        let opened = self.ends[1 - made.from][made.path].seal.open(&bytes);
        assert!(matches!(opened, Opened::Forged | Opened::Foreign), "{opened:?}");
    }

    /// Nothing that happened before keeps two that live and share a secret apart.
    fn come_to_know_each_other(&mut self, path: usize) {
        for _ in 0..BEATS_MAX {
            let heard = [0, 1].map(|from| {
                self.speak(from, path, b"beat".to_vec());
                let number = self.made.len() - 1;
                let heard = self.deliver(number);
                // What it answered comes, too, and whatever follows from that.
                let mut next = number + 1;
                while next < self.made.len() {
                    self.deliver(next);
                    next += 1;
                }
                heard
            });
            if heard == [true; 2] {
                return;
            }
        }
        panic!("two that share a secret never hear each other");
    }
}
