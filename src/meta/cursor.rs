//! Fields written and read one after the other, little-endian. Module-private plumbing of the fixed layouts.

use crate::meta::sectors::PAYLOAD_LEN;

/// Text in a fixed field of 64 bytes: its length, then the bytes, then zeros.
pub(super) const TEXT_LEN_MAX: usize = 63;

/// Writes a page's payload from its start.
#[derive(Debug)]
pub(super) struct PayloadWriter {
    bytes: Box<[u8; PAYLOAD_LEN]>,
    at: usize,
}

impl PayloadWriter {
    pub(super) fn new() -> Self {
        Self { bytes: Box::new([0; PAYLOAD_LEN]), at: 0 }
    }

    pub(super) fn put(&mut self, bytes: &[u8]) {
        self.bytes[self.at..self.at + bytes.len()].copy_from_slice(bytes);
        self.at += bytes.len();
    }

    pub(super) fn u8(&mut self, n: u8) {
        self.put(&[n]);
    }

    pub(super) fn u32(&mut self, n: u32) {
        self.put(&n.to_le_bytes());
    }

    pub(super) fn u64(&mut self, n: u64) {
        self.put(&n.to_le_bytes());
    }

    pub(super) fn u128(&mut self, n: u128) {
        self.put(&n.to_le_bytes());
    }

    pub(super) fn flag(&mut self, flag: bool) {
        self.u8(u8::from(flag));
    }

    pub(super) fn zeros(&mut self, len: usize) {
        self.at += len;
    }

    /// # Panics
    /// When the text is longer than [`TEXT_LEN_MAX`].
    pub(super) fn text(&mut self, text: &str) {
        let len = u8::try_from(text.len()).ok().filter(|&n| usize::from(n) <= TEXT_LEN_MAX);
        self.u8(len.expect("names are bounded where they enter"));
        self.put(text.as_bytes());
        self.zeros(TEXT_LEN_MAX - text.len());
    }

    pub(super) fn finish(self) -> Box<[u8; PAYLOAD_LEN]> {
        assert!(self.at <= PAYLOAD_LEN, "the layout fits its page");
        self.bytes
    }
}

/// Reads a page's payload from its start. The layout is fixed, so reading past the end is a programmer's error.
#[derive(Debug)]
pub(super) struct PayloadReader<'a> {
    rest: &'a [u8],
}

impl<'a> PayloadReader<'a> {
    pub(super) fn new(payload: &'a [u8; PAYLOAD_LEN]) -> Self {
        Self { rest: payload }
    }

    fn take<const N: usize>(&mut self) -> [u8; N] {
        let (head, rest) = self.rest.split_first_chunk::<N>().expect("the fixed layout fits its page");
        self.rest = rest;
        *head
    }

    pub(super) fn u8(&mut self) -> u8 {
        self.take::<1>()[0]
    }

    pub(super) fn u32(&mut self) -> u32 {
        u32::from_le_bytes(self.take())
    }

    pub(super) fn u64(&mut self) -> u64 {
        u64::from_le_bytes(self.take())
    }

    pub(super) fn u128(&mut self) -> u128 {
        u128::from_le_bytes(self.take())
    }

    pub(super) fn flag(&mut self) -> Result<bool, &'static str> {
        match self.u8() {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err("a flag is neither 0 nor 1"),
        }
    }

    pub(super) fn zeros(&mut self, len: usize) -> Result<(), &'static str> {
        let (head, rest) = self.rest.split_at(len);
        self.rest = rest;
        if head.iter().all(|&b| b == 0) { Ok(()) } else { Err("reserved bytes are not zero") }
    }

    pub(super) fn text(&mut self) -> Result<String, &'static str> {
        let len = usize::from(self.u8());
        let field: [u8; TEXT_LEN_MAX] = self.take();
        if len > TEXT_LEN_MAX || field[len..].iter().any(|&b| b != 0) {
            return Err("a name does not fit its field");
        }
        String::from_utf8(field[..len].to_vec()).map_err(|_| "a name is not UTF-8")
    }

    /// Everything behind the last field is reserved.
    pub(super) fn finish(mut self) -> Result<(), &'static str> {
        let len = self.rest.len();
        self.zeros(len)
    }
}
