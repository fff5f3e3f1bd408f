//! Changes of an input: those of every fuzzer, and words for the targets that read text.

use crate::targets::rng::Rng;

/// Longest input, in bytes.
const LEN_MAX: usize = 8192;

/// Words of a configuration.
pub(crate) const TOML: &[&str] = &[
    "[[node]]\n",
    "[[volume]]\n",
    "[volume.on.alpha]\n",
    "[volume.on.beta]\n",
    "[volume.on.\"a\\nb\"]\n",
    "name = ",
    "data = ",
    "cluster = ",
    "mode = ",
    "\"sync\"\n",
    "\"async\"\n",
    "\"semisync\"\n",
    "\"thread\"\n",
    "device = ",
    "metadata = ",
    "\"internal\"\n",
    "\"/dev/sdb\"\n",
    "\"/dev/a\\nb\"\n",
    "\"alpha\"\n",
    "\"beta\"\n",
    "\"a\\u001bb\"\n",
    "\"10.0.0.1:7789\"\n",
    "\"[::1]:1\"\n",
    "heartbeat = [",
    "nbd = [",
    "]\n",
    "\"unix:/run/x\"",
    "\"tcp:0.0.0.0:1\"",
    "on.a.device = ",
    "peer_timeout_ms = ",
    "ping_interval_ms = ",
    "pool_mib = ",
    "0x",
    "0b1",
    "1_000",
    "+5",
    "-1",
    "1e3",
    "nan",
    "true\n",
    "false\n",
    "\"\"\"",
    "'''",
    "{}",
    "{a=1}",
    "a.b.c = 1\n",
    "\r\n",
    "\\u0000",
    "\\U0010ffff",
    "1979-05-27",
    "# ",
    "\u{feff}",
    "é",
];

/// Words of the control socket.
pub(crate) const JSON: &[&str] = &[
    "\"version\":1",
    "\"version\":",
    "\"ask\":",
    "\"status\"",
    "\"events\"",
    "{\"do\":",
    "\"volume\":",
    "\"volum\":",
    "\"verb\":",
    "\"promote\"",
    "\"force\":true",
    "\"peer_is_down\":false",
    "\"demote\"",
    "\"resync\"",
    "\"pause\"",
    "\"timeout_ms\":",
    "null",
    "18446744073709551615",
    "-1",
    "1e400",
    "0.1",
    "[[[[[[[[",
    "{\"a\":{\"a\":{\"a\":",
    "}}}",
    "\\u0000",
    "\\ud800",
    "\"a\\nb\"",
    "\n",
    "\"reply\":",
    "{\"refused\":",
    "{\"failed\":",
    "{\"waiting\":",
    "{\"done\":",
    "{\"event\":",
    "{\"status\":",
    "\"rule\":",
    "true",
];

/// A changed copy of `input`. Parts of `other` may get into it.
pub(crate) fn mutate(rng: &mut Rng, input: &[u8], other: &[u8], words: &[&str]) -> Vec<u8> {
    let mut bytes = input.to_vec();
    let mut changes = 1;
    while changes < 32 && rng.coin() {
        changes *= 2;
    }
    for _ in 0..changes {
        change(rng, &mut bytes, other, words);
    }
    bytes.truncate(LEN_MAX);
    bytes
}

fn change(rng: &mut Rng, bytes: &mut Vec<u8>, other: &[u8], words: &[&str]) {
    let at = rng.index(bytes.len() + 1);
    let small = |rng: &mut Rng| [0, 1, 2, 3, 0x7f, 0x80, 0xc8, 0xfe, 0xff][rng.index(9)];
    let any = |rng: &mut Rng| rng.next().to_le_bytes()[0];
    match rng.below(12) {
        0 | 1 if at < bytes.len() => bytes[at] ^= 1 << rng.below(8),
        2 if at < bytes.len() => bytes[at] = small(rng),
        3 if at < bytes.len() => bytes[at] = any(rng),
        4 if at < bytes.len() => bytes[at] = bytes[at].wrapping_add(if rng.coin() { 1 } else { 0xff }),
        5 => {
            let end = (at + 1 + rng.index(16)).min(bytes.len());
            drop(bytes.drain(at..end));
        }
        6 => {
            let noise: Vec<u8> =
                (0..1 + rng.index(9)).map(|_| if rng.coin() { small(rng) } else { any(rng) }).collect();
            insert(bytes, at, &noise);
        }
        7 | 8 if !other.is_empty() => {
            let from = rng.index(other.len());
            let part = &other[from..(from + 1 + rng.index(64)).min(other.len())];
            insert(bytes, at, part);
        }
        9 if !bytes.is_empty() => {
            let from = rng.index(bytes.len());
            let part = bytes[from..(from + 1 + rng.index(64)).min(bytes.len())].to_vec();
            insert(bytes, at, &part);
        }
        10 if !words.is_empty() => insert(bytes, at, rng.pick(words).as_bytes()),
        11 if rng.chance(1, 8) => bytes.truncate(at),
        _ => insert(bytes, at, &[any(rng)]),
    }
}

fn insert(bytes: &mut Vec<u8>, at: usize, part: &[u8]) {
    drop(bytes.splice(at..at, part.iter().copied()));
}
