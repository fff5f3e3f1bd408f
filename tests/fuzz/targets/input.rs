//! The input of a run, read as a recipe. It never ends: behind its last byte everything is zero.

use super::rng::Rng;

/// What is left of the input.
#[derive(Debug, Clone)]
pub struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    pub fn new(data: &'a [u8]) -> Self {
        Self(data)
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    fn array<const N: usize>(&mut self) -> [u8; N] {
        let mut array = [0; N];
        let bytes = self.bytes(N);
        array[..bytes.len()].copy_from_slice(bytes);
        array
    }

    pub fn u8(&mut self) -> u8 {
        self.array::<1>()[0]
    }

    pub fn u16(&mut self) -> u16 {
        u16::from_le_bytes(self.array())
    }

    pub fn u32(&mut self) -> u32 {
        u32::from_le_bytes(self.array())
    }

    pub fn u64(&mut self) -> u64 {
        u64::from_le_bytes(self.array())
    }

    pub fn flag(&mut self) -> bool {
        self.u8() & 1 == 1
    }

    /// An index below `n`, which is at most 65,536.
    pub fn index(&mut self, n: usize) -> usize {
        if n <= 256 { usize::from(self.u8()) % n } else { usize::from(self.u16()) % n }
    }

    pub fn pick<T: Copy>(&mut self, items: &[T]) -> T {
        items[self.index(items.len())]
    }

    /// A number: mostly small, often at an edge, sometimes any.
    pub fn number(&mut self) -> u64 {
        match self.u8() {
            small @ 0..=127 => small.into(),
            128..=159 => self.u16().into(),
            160..=191 => self.u32().into(),
            192..=215 => u64::MAX - u64::from(self.u8()),
            216..=231 => (1 << (self.u8() % 64)) - 1,
            232..=247 => 1 << (self.u8() % 64),
            _ => self.u64(),
        }
    }

    /// At most `len` bytes.
    pub fn bytes(&mut self, len: usize) -> &'a [u8] {
        let (head, rest) = self.0.split_at(len.min(self.0.len()));
        self.0 = rest;
        head
    }

    /// Everything that is left.
    pub fn rest(&mut self) -> &'a [u8] {
        std::mem::take(&mut self.0)
    }

    /// A stream of chance that the next eight bytes choose.
    pub(crate) fn rng(&mut self) -> Rng {
        Rng::new(self.u64())
    }
}
