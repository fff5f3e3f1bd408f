//! A buddy allocator over numbered units of [`UNIT_LEN`] bytes. It never sees the memory itself.
//!
//! Blocks are powers of two units, aligned to their own size. A block may be shrunk in place, which is how a large
//! receive chunk is cut to what arrived in it. Freed blocks are reused last in, first out, so that the same few pages
//! stay warm and the rest of the arena is never touched.

/// Smallest allocation, in bytes; a page, so that every block suits direct I/O.
pub(super) const UNIT_LEN: usize = 4096;

const NONE: u32 = u32::MAX;
/// Marks the first unit of a free block in `state`; the rest is its order.
const FREE: u8 = 0x80;

/// The allocator of one area.
#[derive(Debug)]
pub(super) struct Buddy {
    top: u8,
    /// First block of each order's free list.
    heads: Vec<u32>,
    next: Vec<u32>,
    prev: Vec<u32>,
    state: Vec<u8>,
    free_units: u32,
}

/// The order of the smallest block of at least `len` bytes.
pub(super) fn order_of(len: usize) -> u8 {
    let units = len.div_ceil(UNIT_LEN).max(1).next_power_of_two();
    u8::try_from(units.trailing_zeros()).expect("a trailing-zero count is at most 64")
}

impl Buddy {
    /// An area of `len` bytes, all free.
    ///
    /// # Panics
    /// When `len` is not a power of two of at least [`UNIT_LEN`].
    pub(super) fn new(len: usize) -> Self {
        assert!(len.is_power_of_two() && len >= UNIT_LEN, "an area is a power of two");
        let units = len / UNIT_LEN;
        let top = order_of(len);
        let mut buddy = Self {
            top,
            heads: vec![NONE; usize::from(top) + 1],
            next: vec![NONE; units],
            prev: vec![NONE; units],
            state: vec![0; units],
            free_units: u32::try_from(units).expect("an area is far smaller than 16 TiB"),
        };
        buddy.push(0, top);
        buddy
    }

    /// Takes a block of `order`; its first unit, or `None` when no block is large enough.
    pub(super) fn allocate(&mut self, order: u8) -> Option<u32> {
        let found = (order..=self.top).find(|&o| self.heads[usize::from(o)] != NONE)?;
        let unit = self.heads[usize::from(found)];
        self.remove(unit, found);
        self.free_units -= 1 << order;
        for o in (order..found).rev() {
            self.push(unit + (1 << o), o);
        }
        Some(unit)
    }

    /// Gives a block back and joins it with its free neighbours.
    pub(super) fn free(&mut self, mut unit: u32, mut order: u8) {
        self.free_units += 1 << order;
        while order < self.top {
            let neighbour = unit ^ (1 << order);
            if self.state[index(neighbour)] != FREE | order {
                break;
            }
            self.remove(neighbour, order);
            unit = unit.min(neighbour);
            order += 1;
        }
        self.push(unit, order);
    }

    /// Gives back all but the first `to` of a block of order `from`.
    pub(super) fn shrink(&mut self, unit: u32, from: u8, to: u8) {
        for order in to..from {
            self.free_units += 1 << order;
            self.push(unit + (1 << order), order);
        }
    }

    /// Length of the area, in bytes.
    pub(super) fn len(&self) -> usize {
        self.state.len() * UNIT_LEN
    }

    /// True when nothing is allocated.
    #[cfg(test)]
    pub(super) fn is_unused(&self) -> bool {
        self.free_units as usize == self.state.len() && self.heads[usize::from(self.top)] == 0
    }

    fn push(&mut self, unit: u32, order: u8) {
        let head = self.heads[usize::from(order)];
        self.next[index(unit)] = head;
        self.prev[index(unit)] = NONE;
        if head != NONE {
            self.prev[index(head)] = unit;
        }
        self.heads[usize::from(order)] = unit;
        self.state[index(unit)] = FREE | order;
    }

    fn remove(&mut self, unit: u32, order: u8) {
        let (next, prev) = (self.next[index(unit)], self.prev[index(unit)]);
        if prev == NONE {
            self.heads[usize::from(order)] = next;
        } else {
            self.next[index(prev)] = next;
        }
        if next != NONE {
            self.prev[index(next)] = prev;
        }
        self.state[index(unit)] = 0;
    }
}

fn index(unit: u32) -> usize {
    usize::try_from(unit).expect("usize has at least 32 bits")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// Against a plain map of units: blocks are aligned, never overlap, are found whenever a free aligned one exists, and
        /// everything comes back.
        #[test]
        fn blocks_never_overlap_and_all_return(steps in prop::collection::vec((0u8..4, 0u8..7, any::<prop::sample::Index>()), 1..200)) {
            let mut buddy = Buddy::new(64 * UNIT_LEN);
            let mut used = [false; 64];
            let mut held: Vec<(u32, u8)> = Vec::new();
            for (what, order, pick) in steps {
                match what {
                    0 | 1 => {
                        let size = 1usize << order;
                        let possible = (0..64).step_by(size).any(|u| used[u..u + size].iter().all(|x| !x));
                        let got = buddy.allocate(order);
                        prop_assert_eq!(got.is_some(), possible);
                        if let Some(unit) = got {
                            let at = unit as usize;
                            prop_assert_eq!(at % size, 0);
                            prop_assert!(used[at..at + size].iter().all(|x| !x));
                            used[at..at + size].fill(true);
                            held.push((unit, order));
                        }
                    }
                    2 if !held.is_empty() => {
                        let (unit, order) = held.swap_remove(pick.index(held.len()));
                        used[unit as usize..unit as usize + (1 << order)].fill(false);
                        buddy.free(unit, order);
                    }
                    3 if !held.is_empty() => {
                        let i = pick.index(held.len());
                        let (unit, from) = held[i];
                        let to = order.min(from);
                        used[unit as usize + (1 << to)..unit as usize + (1 << from)].fill(false);
                        buddy.shrink(unit, from, to);
                        held[i].1 = to;
                    }
                    _ => {}
                }
                prop_assert_eq!(buddy.free_units as usize, used.iter().filter(|x| !**x).count());
            }
            for (unit, order) in held {
                buddy.free(unit, order);
            }
            prop_assert!(buddy.is_unused());
        }
    }

    #[test]
    fn orders_round_up() {
        let table = [(0, 0), (1, 0), (4096, 0), (4097, 1), (8192, 1), (8193, 2), (32 << 20, 13)];
        for (len, order) in table {
            assert_eq!(order_of(len), order, "{len} bytes");
        }
    }
}
