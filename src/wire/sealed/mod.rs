//! Sealed datagrams: who sent it is proved, and an old one is never taken for a new one.
//!
//! ```text
//! offset size field
//!      0    8 magic "REPBLKSD"
//!      8    2 version, 1
//!     10    2 length of the body
//!     12    4 which secret is the sender's newest
//!     16    8 incarnation: drawn when the sender started
//!     24    8 counter, from 1 in each incarnation
//!     32    8 challenge: what the receiver shall answer, to be believed
//!     40    8 answer: the receiver's challenge, as last heard; 0 before
//!     48      body, at most BODY_LEN_MAX
//!      +   16 tag: the first half of an HMAC-SHA-256 over everything before it
//! ```
//! All numbers are little-endian. The key of a tag is derived from the cluster's [`Secret`] for one [`Route`]: cluster, purpose, path, sender and
//! receiver. So a datagram is worth nothing on another path, for another purpose, in another cluster, or sent back to where it came from.
//!
//! # Old datagrams
//!
//! A counter alone does not do: whoever has just started has heard no counter, and would believe what was recorded yesterday. Therefore each
//! side names a challenge, and believes a sender it does not know only when that answers it; challenges differ in each life of a
//! receiver and change whenever it came to know a new life of its peer. From a known life it takes each counter once, and none that is
//! `window::LEN` older than the newest. A genuine datagram that answers nothing may be of a newcomer, of somebody who has not heard this side yet,
//! or recorded: it changes nothing, and is answered by one without a body, which who lives can answer and a recording cannot.
//!
//! # Changing the secret
//!
//! A node accepts the secrets that it has, and sends under its newest one as soon as the peer has told that it has it too; until then under
//! the one before; whoever answers nothing is answered under the one that it used. So the secret changes without a datagram lost, in whatever order and however slowly the nodes are given the new one.
//!
//! What is *not* hidden is the body: it is authentic, and readable. What cannot be noticed is delay: a datagram that is held back and delivered
//! before any later one is taken.

mod secret;
mod window;

pub use secret::{Route, SECRET_LEN, Secret, SecretError};

use ring::hmac;

use self::window::Window;

/// First eight bytes of a sealed datagram.
pub const MAGIC: [u8; 8] = *b"REPBLKSD";
const VERSION: u16 = 1;
const HEADER_LEN: usize = 48;
const TAG_LEN: usize = 16;
/// Longest body in bytes.
pub const BODY_LEN_MAX: usize = 1280;
/// What a datagram is longer than its body.
pub const OVERHEAD: usize = HEADER_LEN + TAG_LEN;

/// What a datagram turned out to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Opened<'d> {
    /// From the peer, and new. A body of no bytes has done its duty.
    Fresh {
        /// The body.
        body: &'d [u8],
        /// The first one of this life of the sender: a datagram without a body makes this side known to it at once.
        newcomer: bool,
    },
    /// Genuine, and it answers nothing: of somebody who has not heard this side yet, or a recording.
    Unproven {
        /// The life it claims to be of.
        incarnation: u64,
        /// What to send back, to be told which.
        reply: Vec<u8>,
    },
    /// Genuine, and heard before or too old.
    Replayed,
    /// Not made with a key that is accepted here.
    Forged,
    /// Not a sealed datagram of a version that is known here.
    Foreign,
}

/// One end of one path to one peer.
#[derive(Clone, Debug)]
pub struct Seal {
    outward: Route,
    /// The newest first.
    keys: Vec<Keys>,
    /// Names the newest secret of the peer; none before one was heard.
    peers_newest: Option<u32>,
    incarnation: u64,
    counter: u64,
    /// Lives of the peer that were believed.
    known: u64,
    challenge: u64,
    /// The peer's challenge; 0 before one was heard.
    answer: u64,
    peer: Option<Life>,
}

/// The life of the peer that is believed.
#[derive(Clone, Debug)]
struct Life {
    incarnation: u64,
    /// What it answered when it became known.
    answered: u64,
    window: Window,
}

struct Fields {
    newest: u32,
    incarnation: u64,
    counter: u64,
    challenge: u64,
    answer: u64,
}

impl Seal {
    /// The end of `outward` at its sender, whose life `incarnation` is: drawn at its start, and never the same again. `secrets` are those
    /// that are accepted, the newest first.
    ///
    /// # Panics
    /// When there is no secret.
    #[must_use]
    pub fn new(secrets: &[Secret], outward: Route, incarnation: u64) -> Self {
        let keys = keys(secrets, &outward);
        let challenge = challenge(&keys[0].send, incarnation, 0);
        let (counter, known, answer, peer, peers_newest) = (0, 0, 0, None, None);
        Self { outward, keys, peers_newest, incarnation, counter, known, challenge, answer, peer }
    }

    /// Goes on with other secrets; who is known stays known.
    ///
    /// # Panics
    /// When there is no secret.
    pub fn change_secrets(&mut self, secrets: &[Secret]) {
        self.keys = keys(secrets, &self.outward);
    }

    /// The next datagram.
    ///
    /// # Panics
    /// When the body is longer than [`BODY_LEN_MAX`].
    #[must_use]
    pub fn seal(&mut self, body: &[u8]) -> Vec<u8> {
        let place = self.sending();
        self.answering(self.answer, body, place)
    }

    /// A datagram under the key at `place`.
    fn answering(&mut self, answer: u64, body: &[u8], place: usize) -> Vec<u8> {
        assert!(body.len() <= BODY_LEN_MAX, "a datagram fits into one packet");
        self.counter += 1;
        let mut bytes = Vec::with_capacity(body.len() + OVERHEAD);
        bytes.extend_from_slice(&MAGIC);
        bytes.extend_from_slice(&VERSION.to_le_bytes());
        bytes.extend_from_slice(&u16::try_from(body.len()).expect("bounded above").to_le_bytes());
        bytes.extend_from_slice(&self.keys[0].name.to_le_bytes());
        for field in [self.incarnation, self.counter, self.challenge, answer] {
            bytes.extend_from_slice(&field.to_le_bytes());
        }
        bytes.extend_from_slice(body);
        let tag = hmac::sign(&self.keys[place].send, &bytes);
        bytes.extend_from_slice(&tag.as_ref()[..TAG_LEN]);
        bytes
    }

    /// The place of the key that the peer accepts, for the next datagram.
    fn sending(&self) -> usize {
        let counter = self.counter.wrapping_add(1);
        match self.peers_newest {
            // A newest one that is not known here is newer than all of these.
            Some(name) => self.keys.iter().position(|keys| keys.name == name).unwrap_or(0),
            // Now one and now another, in no order that two nodes could miss each other in, until the peer has answered.
            None => usize::from(counter.wrapping_mul(0x9E37_79B9_7F4A_7C15).to_be_bytes()[0]) % self.keys.len(),
        }
    }

    /// Judges what came on this path from the peer's address.
    #[must_use]
    pub fn open<'d>(&mut self, datagram: &'d [u8]) -> Opened<'d> {
        let Some((signed, tag)) = split(datagram) else { return Opened::Foreign };
        let Some(place) = self.keys.iter().position(|keys| fits(&keys.accept, signed, tag)) else {
            return Opened::Forged;
        };
        let fields = Fields::of(signed);
        if fields.incarnation == self.incarnation {
            // The peer's life has another number; this is a clone of this node with its memory.
            return Opened::Forged;
        }
        let body = &signed[HEADER_LEN..];
        match &mut self.peer {
            Some(life)
                if life.incarnation == fields.incarnation
                    && (fields.answer == self.challenge || fields.answer == life.answered) =>
            {
                if !life.window.take(fields.counter) {
                    return Opened::Replayed;
                }
                // Only the newest one says what the peer wants to hear.
                if life.window.newest() == fields.counter {
                    (self.answer, self.peers_newest) = (fields.challenge, Some(fields.newest));
                }
                Opened::Fresh { body, newcomer: false }
            }
            _ if fields.answer == self.challenge => {
                let window = Window::starting_with(fields.counter);
                self.peer = Some(Life { incarnation: fields.incarnation, answered: fields.answer, window });
                self.known += 1;
                self.challenge = challenge(&self.keys[0].send, self.incarnation, self.known);
                (self.answer, self.peers_newest) = (fields.challenge, Some(fields.newest));
                Opened::Fresh { body, newcomer: true }
            }
            _ => {
                // Known or not, it wants to be told what to answer. It has the secret that it used, and perhaps none that it told of earlier.
                let reply = self.answering(fields.challenge, &[], place);
                Opened::Unproven { incarnation: fields.incarnation, reply }
            }
        }
    }
}

impl Fields {
    fn of(header: &[u8]) -> Self {
        let number = |at: usize| u64::from_le_bytes(header[at..at + 8].try_into().expect("eight bytes"));
        let newest = u32::from_le_bytes(header[12..16].try_into().expect("four bytes"));
        Self { newest, incarnation: number(16), counter: number(24), challenge: number(32), answer: number(40) }
    }
}

/// What follows from one secret.
#[derive(Clone, Debug)]
struct Keys {
    name: u32,
    send: hmac::Key,
    accept: hmac::Key,
}

fn keys(secrets: &[Secret], outward: &Route) -> Vec<Keys> {
    assert!(!secrets.is_empty(), "there is a secret in use");
    let inward = outward.back();
    let of = |secret: &Secret| Keys { name: secret.name(), send: secret.key(outward), accept: secret.key(&inward) };
    secrets.iter().map(of).collect()
}

/// What is signed, and the tag, of bytes that have the form of a sealed datagram.
fn split(datagram: &[u8]) -> Option<(&[u8], &[u8])> {
    let (signed, tag) = datagram.split_at_checked(datagram.len().checked_sub(TAG_LEN)?)?;
    let body_len = signed.len().checked_sub(HEADER_LEN)?;
    let right = signed[..8] == MAGIC
        && signed[8..10] == VERSION.to_le_bytes()
        && usize::from(u16::from_le_bytes([signed[10], signed[11]])) == body_len
        && body_len <= BODY_LEN_MAX;
    right.then_some((signed, tag))
}

/// Whether `tag` is the first half of the signature. The whole one is computed and compared without telling where they differ.
fn fits(key: &hmac::Key, signed: &[u8], tag: &[u8]) -> bool {
    let whole = hmac::sign(key, signed);
    let differing = whole.as_ref()[..TAG_LEN].iter().zip(tag).fold(0, |so_far, (a, b)| so_far | (a ^ b));
    std::hint::black_box(differing) == 0
}

/// A number that nobody without the key can guess, another for each life and each time; never 0.
fn challenge(key: &hmac::Key, incarnation: u64, time: u64) -> u64 {
    let mut text = *b"challenge\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0";
    text[9..17].copy_from_slice(&incarnation.to_le_bytes());
    text[17..25].copy_from_slice(&time.to_le_bytes());
    let tag = hmac::sign(key, &text);
    u64::from_le_bytes(tag.as_ref()[..8].try_into().expect("eight bytes")).max(1)
}

#[cfg(test)]
mod tests;
