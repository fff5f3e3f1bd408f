//! The volume's payload memory: one mapping, cut into areas, chunks and counted slices.
//!
//! A *chunk* is a block of one area, taken to receive or read into. A *buffer* ([`BufId`]) is a slice of a chunk with a
//! count of users; the machine knows buffers by number and nothing else. A chunk returns to its area when its owner has
//! let go and its last buffer is gone.
//!
//! Areas keep the kinds of use apart so that none can starve another into a deadlock: what clients send waits on the
//! machine, which waits on what peers send and on reads, and these wait on neither.

use std::io;
use std::ptr::NonNull;

use super::buddy::{Buddy, UNIT_LEN, order_of};
use crate::units::BufId;
use crate::volume::io::BufSlice;

/// What memory is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Area {
    /// Payloads on their way from NBD clients.
    Clients,
    /// Data read for clients, and for a peer whose disk is gone.
    Reads,
    /// Data read for resync, which no client may hold up.
    Resync,
    /// Frames from peers.
    Links,
    /// Aligned copies for direct I/O.
    Bounce,
}

const AREAS: usize = 5;

impl Area {
    fn index(self) -> usize {
        match self {
            Self::Clients => 0,
            Self::Reads => 1,
            Self::Resync => 2,
            Self::Links => 3,
            Self::Bounce => 4,
        }
    }
}

/// How much memory a volume's payloads may take, in bytes. It is mapped at once and touched when used, so that an idle
/// volume costs nearly nothing. Each length is a power of two.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PoolSizes {
    /// For what clients send.
    pub clients: usize,
    /// For what is read for clients, and for a peer; at least 8 MiB, so that the share of a client alone suits any host.
    pub reads: usize,
    /// For what is read for resync; at least 512 KiB.
    pub resync: usize,
    /// For what peers send; at least 2 MiB per peer.
    pub links: usize,
    /// For aligned copies; used only with direct I/O.
    pub bounce: usize,
}

impl Default for PoolSizes {
    fn default() -> Self {
        Self { clients: 32 << 20, reads: 16 << 20, resync: 16 << 20, links: 8 << 20, bounce: 4 << 20 }
    }
}

impl PoolSizes {
    fn lens(self) -> [usize; AREAS] {
        [self.clients, self.reads, self.resync, self.links, self.bounce]
    }
}

/// A chunk of the pool. Its owner gives it back by [`Pool::drop_chunk`], once.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct ChunkId(u32);

#[derive(Debug)]
struct Chunk {
    area: Area,
    unit: u32,
    order: u8,
    /// First byte in the arena.
    start: usize,
    /// The owner and each buffer count one.
    refs: u32,
}

#[derive(Debug)]
struct Slot {
    chunk: ChunkId,
    offset: u32,
    len: u32,
    refs: u32,
}

/// The pool of one volume.
#[derive(Debug)]
pub(super) struct Pool {
    arena: Arena,
    areas: Vec<(usize, Buddy)>,
    /// Times that memory came back, by area.
    frees: [u64; AREAS],
    chunks: Vec<Chunk>,
    free_chunks: Vec<u32>,
    slots: Vec<Slot>,
    free_slots: Vec<u32>,
}

impl Pool {
    /// Maps the memory.
    ///
    /// # Errors
    /// When the mapping is refused.
    pub(super) fn new(sizes: PoolSizes) -> io::Result<Self> {
        let mut start = 0;
        let areas = sizes
            .lens()
            .into_iter()
            .map(|len| {
                let area = (start, Buddy::new(len));
                start += len;
                area
            })
            .collect();
        let arena = Arena::map(start)?;
        Ok(Self {
            arena,
            areas,
            frees: [0; AREAS],
            chunks: Vec::new(),
            free_chunks: Vec::new(),
            slots: Vec::new(),
            free_slots: Vec::new(),
        })
    }

    /// Takes a chunk of at least `len` bytes, or `None` while the area has no such block.
    pub(super) fn allocate(&mut self, area: Area, len: usize) -> Option<ChunkId> {
        let order = order_of(len);
        let (base, buddy) = &mut self.areas[area.index()];
        let unit = buddy.allocate(order)?;
        let start = *base + usize::try_from(unit).expect("usize has at least 32 bits") * UNIT_LEN;
        let chunk = Chunk { area, unit, order, start, refs: 1 };
        Some(ChunkId(put(&mut self.chunks, &mut self.free_chunks, chunk)))
    }

    /// Takes the largest chunk between `least` and `most` bytes that there is.
    pub(super) fn allocate_between(&mut self, area: Area, least: usize, most: usize) -> Option<ChunkId> {
        let mut len = most;
        loop {
            if let Some(chunk) = self.allocate(area, len) {
                return Some(chunk);
            }
            if len / 2 < least {
                return None;
            }
            len /= 2;
        }
    }

    /// How often memory came back to the area: while it stands, asking again is in vain.
    pub(super) fn frees(&self, area: Area) -> u64 {
        self.frees[area.index()]
    }

    /// Memory that a buffer of its own would take, in bytes.
    pub(super) fn footprint(&self, buf: BufId) -> usize {
        block_len(at(self.slots[at(buf.0)].len))
    }

    /// Length of an area, in bytes.
    pub(super) fn area_len(&self, area: Area) -> usize {
        self.areas[area.index()].1.len()
    }

    /// Bytes of a chunk.
    pub(super) fn chunk_len(&self, chunk: ChunkId) -> usize {
        UNIT_LEN << self.chunks[at(chunk.0)].order
    }

    /// Gives back what lies behind the first `len` bytes of a chunk that no buffer uses yet.
    pub(super) fn shrink(&mut self, chunk: ChunkId, len: usize) {
        let chunk = &mut self.chunks[at(chunk.0)];
        assert_eq!(chunk.refs, 1, "buffers may lie in what would be given back");
        let to = order_of(len);
        if to < chunk.order {
            self.frees[chunk.area.index()] += 1;
            self.areas[chunk.area.index()].1.shrink(chunk.unit, chunk.order, to);
            chunk.order = to;
        }
    }

    /// The owner lets go of the chunk.
    pub(super) fn drop_chunk(&mut self, id: ChunkId) {
        let chunk = &mut self.chunks[at(id.0)];
        chunk.refs = chunk.refs.checked_sub(1).expect("a chunk is given back once");
        if chunk.refs == 0 {
            let (area, unit, order) = (chunk.area, chunk.unit, chunk.order);
            self.areas[area.index()].1.free(unit, order);
            self.frees[area.index()] += 1;
            self.free_chunks.push(id.0);
        }
    }

    /// Makes a buffer of `len` bytes at `offset` of a chunk, with one user.
    pub(super) fn slice(&mut self, chunk: ChunkId, offset: usize, len: usize) -> BufId {
        assert!(offset + len <= self.chunk_len(chunk), "a buffer lies inside its chunk");
        self.chunks[at(chunk.0)].refs += 1;
        let narrow = |n: usize| u32::try_from(n).expect("areas are below 4 GiB");
        let slot = Slot { chunk, offset: narrow(offset), len: narrow(len), refs: 1 };
        BufId(put(&mut self.slots, &mut self.free_slots, slot))
    }

    /// A new buffer of `len` bytes in a chunk of its own.
    pub(super) fn allocate_buffer(&mut self, area: Area, len: usize) -> Option<BufId> {
        let chunk = self.allocate(area, len)?;
        let buf = self.slice(chunk, 0, len);
        self.drop_chunk(chunk);
        Some(buf)
    }

    /// Counts one more user of a buffer.
    pub(super) fn retain(&mut self, buf: BufId) {
        let slot = &mut self.slots[at(buf.0)];
        assert!(slot.refs > 0, "{buf:?} is gone");
        slot.refs += 1;
    }

    /// Counts one user less; the last one frees the bytes.
    pub(super) fn release(&mut self, buf: BufId) {
        let slot = &mut self.slots[at(buf.0)];
        slot.refs = slot.refs.checked_sub(1).expect("a buffer is released once by each user");
        if slot.refs == 0 {
            let chunk = slot.chunk;
            self.free_slots.push(buf.0);
            self.drop_chunk(chunk);
        }
    }

    /// The buffer itself if it lies elsewhere than in `from`, else a copy of it in `to` and the buffer to let go of. Without memory
    /// for a copy it stays where it is.
    pub(super) fn out_of(&mut self, from: Area, to: Area, buf: BufId) -> (BufId, Option<BufId>) {
        if self.chunks[at(self.slots[at(buf.0)].chunk.0)].area != from {
            return (buf, None);
        }
        let old = self.whole(buf);
        let Some(copy) = self.allocate_buffer(to, at(old.len)) else { return (buf, None) };
        let (old, new) = (self.place(old), self.place(self.whole(copy)));
        let (old, new) = self.arena.two_mut(old, new);
        new.copy_from_slice(old);
        (copy, Some(buf))
    }

    /// The whole of a buffer.
    pub(super) fn whole(&self, buf: BufId) -> BufSlice {
        BufSlice { buf, offset: 0, len: self.slots[at(buf.0)].len }
    }

    /// Place of a slice in the arena.
    fn place(&self, slice: BufSlice) -> (usize, usize) {
        let slot = &self.slots[at(slice.buf.0)];
        assert!(slot.refs > 0, "{:?} is gone", slice.buf);
        assert!(
            u64::from(slice.offset) + u64::from(slice.len) <= u64::from(slot.len),
            "a slice lies inside its buffer"
        );
        (self.chunks[at(slot.chunk.0)].start + at(slot.offset) + at(slice.offset), at(slice.len))
    }

    /// The bytes of a slice.
    pub(super) fn bytes(&self, slice: BufSlice) -> &[u8] {
        let (start, len) = self.place(slice);
        self.arena.bytes(start, len)
    }

    /// The bytes of a slice, to be written. The caller is the only user.
    pub(super) fn bytes_mut(&mut self, slice: BufSlice) -> &mut [u8] {
        let (start, len) = self.place(slice);
        self.arena.bytes_mut(start, len)
    }

    /// `len` bytes at `offset` of a chunk.
    pub(super) fn chunk_bytes(&self, chunk: ChunkId, offset: usize, len: usize) -> &[u8] {
        assert!(offset + len <= self.chunk_len(chunk));
        self.arena.bytes(self.chunks[at(chunk.0)].start + offset, len)
    }

    /// `len` bytes at `offset` of a chunk, to be written by its owner.
    pub(super) fn chunk_bytes_mut(&mut self, chunk: ChunkId, offset: usize, len: usize) -> &mut [u8] {
        assert!(offset + len <= self.chunk_len(chunk));
        self.arena.bytes_mut(self.chunks[at(chunk.0)].start + offset, len)
    }

    /// Parts of two different chunks, to be written by their owner in one receive.
    pub(super) fn two_chunks_mut(
        &mut self,
        first: (ChunkId, usize, usize),
        second: (ChunkId, usize, usize),
    ) -> (&mut [u8], &mut [u8]) {
        let place = |(chunk, offset, len): (ChunkId, usize, usize)| {
            assert!(offset + len <= self.chunk_len(chunk));
            (self.chunks[at(chunk.0)].start + offset, len)
        };
        let (a, b) = (place(first), place(second));
        self.arena.two_mut(a, b)
    }

    /// Copies a slice to `offset` of a chunk, by the chunk's owner.
    pub(super) fn copy_to_chunk(&mut self, from: BufSlice, chunk: ChunkId, offset: usize) {
        let (start, len) = self.place(from);
        assert!(offset + len <= self.chunk_len(chunk));
        let to = self.chunks[at(chunk.0)].start + offset;
        let (from, to) = self.arena.two_mut((start, len), (to, len));
        to.copy_from_slice(from);
    }

    /// Fills a slice from `offset` of a chunk. The caller is the slice's only user.
    pub(super) fn copy_from_chunk(&mut self, chunk: ChunkId, offset: usize, to: BufSlice) {
        let (start, len) = self.place(to);
        assert!(offset + len <= self.chunk_len(chunk));
        let from = self.chunks[at(chunk.0)].start + offset;
        let (from, to) = self.arena.two_mut((from, len), (start, len));
        to.copy_from_slice(from);
    }

    /// Where a slice lies in memory, for the kernel. Valid while the caller counts as a user.
    pub(super) fn address(&self, slice: BufSlice) -> *mut u8 {
        let (start, len) = self.place(slice);
        self.arena.address(start, len)
    }

    /// Where a chunk lies in memory, for the kernel. Valid while the caller owns it.
    pub(super) fn chunk_address(&self, chunk: ChunkId) -> *mut u8 {
        self.arena.address(self.chunks[at(chunk.0)].start, self.chunk_len(chunk))
    }

    /// True when every chunk and buffer came back.
    #[cfg(test)]
    pub(super) fn is_unused(&self) -> bool {
        self.areas.iter().all(|(_, buddy)| buddy.is_unused())
            && self.free_chunks.len() == self.chunks.len()
            && self.free_slots.len() == self.slots.len()
    }
}

/// Memory that a chunk of at least `len` bytes takes.
pub(super) fn block_len(len: usize) -> usize {
    UNIT_LEN << order_of(len)
}

fn at(n: u32) -> usize {
    usize::try_from(n).expect("usize has at least 32 bits")
}

fn put<T>(list: &mut Vec<T>, free: &mut Vec<u32>, value: T) -> u32 {
    if let Some(i) = free.pop() {
        list[at(i)] = value;
        return i;
    }
    list.push(value);
    u32::try_from(list.len() - 1).expect("far fewer than 2^32 buffers fit an arena")
}

/// The mapping. Nothing in it is ever read as anything but bytes.
#[derive(Debug)]
struct Arena {
    base: NonNull<u8>,
    len: usize,
}

// SAFETY: the mapping belongs to this value alone and has no tie to the thread that made it.
unsafe impl Send for Arena {}

impl Arena {
    fn map(len: usize) -> io::Result<Self> {
        // SAFETY: a new private anonymous mapping is asked for, at an address of the kernel's choice; no memory of this
        // program is touched. MAP_NORESERVE leaves it untouched until used.
        let base = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                len,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
                -1,
                0,
            )
        };
        if base == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let base = NonNull::new(base.cast()).expect("mmap never maps page zero unasked");
        Ok(Self { base, len })
    }

    fn address(&self, start: usize, len: usize) -> *mut u8 {
        assert!(start.checked_add(len).is_some_and(|end| end <= self.len), "inside the arena");
        // SAFETY: `start` lies inside the mapping, as just checked.
        unsafe { self.base.as_ptr().add(start) }
    }

    fn bytes(&self, start: usize, len: usize) -> &[u8] {
        let address = self.address(start, len);
        // SAFETY: the range lies in the mapping, which is readable, zero-filled by the kernel and lives as long as
        // `self`. `&self` excludes `&mut` slices made here. The kernel writes only into ranges whose chunk or buffer is
        // held by a running operation, and holders do not look at such a range before the operation has ended.
        unsafe { std::slice::from_raw_parts(address, len) }
    }

    fn bytes_mut(&mut self, start: usize, len: usize) -> &mut [u8] {
        let address = self.address(start, len);
        // SAFETY: as in `bytes`; `&mut self` excludes every other slice made here.
        unsafe { std::slice::from_raw_parts_mut(address, len) }
    }

    fn two_mut(&mut self, a: (usize, usize), b: (usize, usize)) -> (&mut [u8], &mut [u8]) {
        assert!(a.0 + a.1 <= b.0 || b.0 + b.1 <= a.0, "the parts do not overlap");
        let (first, second) = (self.address(a.0, a.1), self.address(b.0, b.1));
        // SAFETY: as in `bytes_mut`; the two ranges are disjoint, as just checked.
        unsafe { (std::slice::from_raw_parts_mut(first, a.1), std::slice::from_raw_parts_mut(second, b.1)) }
    }
}

impl Drop for Arena {
    fn drop(&mut self) {
        // SAFETY: `base` and `len` are those of the mapping, no slice outlives `self`, and whoever owns the pool ends
        // running kernel operations first, or leaks the pool.
        unsafe { libc::munmap(self.base.as_ptr().cast(), self.len) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn small() -> Pool {
        Pool::new(PoolSizes {
            clients: 256 << 10,
            reads: 64 << 10,
            resync: 64 << 10,
            links: 64 << 10,
            bounce: 16 << 10,
        })
        .expect("mapped")
    }

    #[test]
    fn a_buffer_moves_out_of_an_area_with_its_bytes_or_stays() {
        let mut pool = small();
        let first = pool.allocate_buffer(Area::Links, 40 << 10).expect("there is room");
        let whole = pool.whole(first);
        pool.bytes_mut(whole).fill(9);
        let (copy, old) = pool.out_of(Area::Links, Area::Reads, first);
        assert_eq!(old, Some(first));
        assert!(pool.bytes(pool.whole(copy)).iter().all(|&byte| byte == 9));
        assert_eq!(pool.out_of(Area::Links, Area::Reads, copy), (copy, None), "it is out already");
        assert_eq!(pool.out_of(Area::Links, Area::Reads, first), (first, None), "there is no room for another one");
        pool.release(first);
        pool.release(copy);
        assert!(pool.is_unused());
    }

    proptest! {
        /// Each buffer is filled with its own byte; none ever changes another's, and all memory returns.
        #[test]
        fn buffers_keep_their_bytes(steps in prop::collection::vec((0u8..5, 1usize..70_000, any::<prop::sample::Index>()), 1..120)) {
            let mut pool = small();
            let mut held: Vec<(BufId, u8, u32)> = Vec::new();
            for (i, (what, len, pick)) in steps.into_iter().enumerate() {
                let mark = u8::try_from(i % 251).expect("below 251");
                match what {
                    0 => if let Some(buf) = pool.allocate_buffer(Area::Clients, len) {
                        let whole = pool.whole(buf);
                        pool.bytes_mut(whole).fill(mark);
                        held.push((buf, mark, 1));
                    },
                    // A receive: a chunk, cut to what came, and two buffers in it.
                    1 => if let Some(chunk) = pool.allocate(Area::Clients, 128 << 10) {
                        let len = len.max(2);
                        pool.chunk_bytes_mut(chunk, 0, len).fill(mark);
                        pool.shrink(chunk, len);
                        for (offset, len) in [(0, len / 2), (len / 2, len - len / 2)] {
                            held.push((pool.slice(chunk, offset, len), mark, 1));
                        }
                        pool.drop_chunk(chunk);
                    },
                    2 if !held.is_empty() => {
                        let entry = pick.index(held.len());
                        pool.retain(held[entry].0);
                        held[entry].2 += 1;
                    }
                    _ if !held.is_empty() => {
                        let entry = pick.index(held.len());
                        pool.release(held[entry].0);
                        held[entry].2 -= 1;
                        if held[entry].2 == 0 {
                            held.swap_remove(entry);
                        }
                    }
                    _ => {}
                }
                for &(buf, mark, _) in &held {
                    prop_assert!(pool.bytes(pool.whole(buf)).iter().all(|&b| b == mark));
                }
            }
            for (buf, _, refs) in held {
                for _ in 0..refs {
                    pool.release(buf);
                }
            }
            prop_assert!(pool.is_unused());
        }
    }

    #[test]
    fn areas_do_not_starve_each_other() {
        let mut pool = small();
        let all = pool.allocate(Area::Clients, 256 << 10).expect("the area is free");
        assert_eq!(pool.allocate(Area::Clients, 1), None);
        let read = pool.allocate_buffer(Area::Reads, 64 << 10).expect("another area");
        assert!(pool.allocate_between(Area::Reads, 4096, 64 << 10).is_none());
        pool.release(read);
        pool.drop_chunk(all);
        assert!(pool.is_unused());
    }

    #[test]
    #[should_panic(expected = "released once")]
    fn a_buffer_released_twice_is_noticed() {
        let mut pool = small();
        let buf = pool.allocate_buffer(Area::Links, 10).expect("free");
        pool.release(buf);
        pool.release(buf);
    }
}
