//! One suite for every engine: buffered and direct, ring and thread, on a disk file system and in memory.

use std::collections::HashMap;
use std::fs::OpenOptions;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::time::{Duration, Instant};

use proptest::prelude::*;
use proptest::test_runner::TestRunner;

use super::backend::BackendChoice;
use super::engine::{Engine, Files, Outcome};
use super::pool::{Area, Pool, PoolSizes};
use super::sys;
use crate::meta::MetaPage;
use crate::nbd::Allocation;
use crate::units::{BufId, ByteRange, OpId};
use crate::volume::io::{BufSlice, DiskError};

const LEN: u64 = 1 << 20;
const META: u64 = LEN;
const META_LEN: u64 = 512 << 10;

struct Bench {
    engine: Engine,
    pool: Pool,
    next: u64,
    ended: HashMap<u64, Result<Option<BufId>, DiskError>>,
    plain: std::fs::File,
    file: tempfile::NamedTempFile,
}

impl Bench {
    fn new(directory: &Path, direct: bool, choice: BackendChoice) -> Self {
        let file = tempfile::NamedTempFile::new_in(directory).expect("a file");
        file.as_file().set_len(META + META_LEN).expect("sparse");
        let open = |flags| {
            OpenOptions::new().read(true).write(true).custom_flags(flags).open(file.path()).expect("opens again")
        };
        let files = Files {
            data: open(if direct { libc::O_DIRECT } else { 0 }),
            metadata: open(0),
            metadata_area: ByteRange::new(META, META_LEN),
            direct,
            block_device: false,
        };
        Self {
            engine: Engine::new(files, choice).expect("a backend"),
            pool: Pool::new(PoolSizes {
                clients: 2 << 20,
                reads: 2 << 20,
                resync: 4096,
                links: 4096,
                bounce: 128 << 10,
            })
            .expect("mapped"),
            next: 0,
            ended: HashMap::new(),
            plain: open(0),
            file,
        }
    }

    fn op(&mut self) -> OpId {
        self.next += 1;
        OpId(self.next)
    }

    fn take(&mut self, outcome: Option<Outcome>) {
        match outcome {
            Some(Outcome::Disk { op, result }) => assert!(self.ended.insert(op.0, result).is_none()),
            Some(Outcome::Meta { op, result }) => assert!(self.ended.insert(op.0, result.map(|()| None)).is_none()),
            None => {}
        }
    }

    fn wait_all(&mut self) {
        let begun = Instant::now();
        while self.ended.len() < usize::try_from(self.next).expect("small") {
            assert!(begun.elapsed() < Duration::from_secs(20), "an operation never ended");
            self.engine.start().expect("the ring works");
            let mut out = Vec::new();
            self.engine.reap(&mut self.pool, &mut out);
            out.into_iter().for_each(|outcome| self.take(Some(outcome)));
            std::thread::yield_now();
        }
    }

    /// Writes `bytes` from a buffer that starts `skew` bytes into its chunk.
    fn write(&mut self, at: u64, bytes: &[u8], skew: usize) -> OpId {
        let op = self.op();
        let chunk = self.pool.allocate(Area::Clients, skew + bytes.len()).expect("room");
        self.pool.chunk_bytes_mut(chunk, skew, bytes.len()).copy_from_slice(bytes);
        let buf = self.pool.slice(chunk, skew, bytes.len());
        self.pool.drop_chunk(chunk);
        let data = BufSlice { buf, offset: 0, len: u32::try_from(bytes.len()).expect("small") };
        let outcome = self.engine.write(op, ByteRange::new(at, bytes.len() as u64), data, &mut self.pool);
        self.pool.release(buf);
        self.take(outcome);
        op
    }

    fn read(&mut self, range: ByteRange) -> Vec<u8> {
        let op = self.op();
        let buf = self.pool.allocate_buffer(Area::Reads, usize::try_from(range.len()).expect("small")).expect("room");
        let outcome = self.engine.read(op, range, buf, &mut self.pool);
        self.take(outcome);
        self.wait_all();
        assert_eq!(self.ended[&op.0], Ok(Some(buf)));
        let bytes = self.pool.bytes(self.pool.whole(buf)).to_vec();
        self.pool.release(buf);
        bytes
    }

    fn zero(&mut self, range: ByteRange, unmap: bool) -> OpId {
        let op = self.op();
        let outcome = self.engine.zero(op, range, unmap, &mut self.pool);
        self.take(outcome);
        op
    }
}

fn everywhere(test: impl Fn(&Path, bool, BackendChoice)) {
    for directory in ["/var/tmp", "/dev/shm"] {
        for direct in [false, true] {
            for choice in [BackendChoice::Auto, BackendChoice::Thread] {
                println!("{directory} direct={direct} {choice:?}");
                test(Path::new(directory), direct, choice);
            }
        }
    }
}

fn random_bytes(seed: u8, len: usize) -> Vec<u8> {
    (0..len).map(|i| u8::try_from((i * 31 + i / 251 + usize::from(seed) * 17) % 256).expect("a remainder")).collect()
}

/// Writes, zeros and reads of any place and length behave as on an array of bytes.
#[test]
fn a_disk_is_an_array_of_bytes() {
    everywhere(|directory, direct, choice| {
        let step = (
            0u8..4,
            0u64..LEN - 300_000,
            prop_oneof![1usize..600, 4000usize..9000, Just(4096), Just(65536), 100_000usize..300_000],
            any::<u8>(),
            0usize..2,
        );
        let mut runner =
            TestRunner::new(ProptestConfig { cases: 6, failure_persistence: None, ..ProptestConfig::default() });
        runner
            .run(&prop::collection::vec(step, 1..20), |steps| {
                let mut bench = Bench::new(directory, direct, choice);
                let mut model = vec![0u8; usize::try_from(LEN).expect("small")];
                for (what, at, len, seed, skew) in steps {
                    let at = if seed % 3 == 0 { at / 4096 * 4096 } else { at };
                    let range = ByteRange::new(at, len as u64);
                    let place = usize::try_from(at).expect("small")..usize::try_from(at).expect("small") + len;
                    match what {
                        0 | 1 => {
                            let bytes = random_bytes(seed, len);
                            let op = bench.write(at, &bytes, skew * 28);
                            bench.wait_all();
                            prop_assert_eq!(&bench.ended[&op.0], &Ok(None));
                            model[place].copy_from_slice(&bytes);
                        }
                        2 => {
                            let op = bench.zero(range, seed % 2 == 0);
                            bench.wait_all();
                            prop_assert_eq!(&bench.ended[&op.0], &Ok(None));
                            model[place].fill(0);
                        }
                        _ => prop_assert!(bench.read(range) == model[place]),
                    }
                }
                prop_assert!(bench.read(ByteRange::new(0, LEN)) == model);
                prop_assert!(bench.pool.is_unused());
                Ok(())
            })
            .expect("as an array");
    });
}

/// More at once than the ring and the bounce memory hold: all end, all is written.
#[test]
fn many_at_once_all_end() {
    everywhere(|directory, direct, choice| {
        let mut bench = Bench::new(directory, direct, choice);
        let mut model = vec![0u8; 600 * 1024];
        for i in 0..600usize {
            let bytes = random_bytes(u8::try_from(i % 256).expect("a remainder"), 900);
            bench.write((i * 1024) as u64, &bytes, 28);
            model[i * 1024..i * 1024 + 900].copy_from_slice(&bytes);
            // One write to a block at a time, as the machine does.
            bench.wait_all();
        }
        for i in 0..128u64 {
            bench.write(i * 4096, &random_bytes(7, 4096), 28);
            model[usize::try_from(i).expect("small") * 4096..][..4096].copy_from_slice(&random_bytes(7, 4096));
        }
        let flushes: Vec<OpId> = (0..5)
            .map(|_| {
                let op = bench.op();
                let outcome = bench.engine.flush(op);
                bench.take(outcome);
                op
            })
            .collect();
        bench.wait_all();
        for flush in flushes {
            assert_eq!(bench.ended[&flush.0], Ok(None));
        }
        let mut found = vec![0; model.len()];
        bench.plain.read_exact_at(&mut found, 0).expect("readable");
        assert!(found == model);
        assert!(bench.pool.is_unused());
    });
}

#[test]
fn metadata_lands_in_its_area_and_nowhere_else() {
    everywhere(|directory, direct, choice| {
        let mut bench = Bench::new(directory, direct, choice);
        let op = bench.op();
        let pages = [(0, 1u8), (8192, 2)].map(|(offset, mark)| MetaPage { offset, bytes: Box::new([mark; 4096]) });
        let outcome = bench.engine.commit(op, &pages);
        bench.take(outcome);
        bench.wait_all();
        assert_eq!(bench.ended[&op.0], Ok(None));
        let mut area = vec![0; 3 * 4096];
        bench.plain.read_exact_at(&mut area, META).expect("readable");
        assert!(area[..4096] == [1; 4096] && area[4096..8192] == [0; 4096] && area[8192..] == [2; 4096]);
        assert!(bench.read(ByteRange::new(0, LEN)).iter().all(|&b| b == 0));
    });
}

/// Commits of one page and of as many as the machine has at once, asked for together: each ends, and then its pages are stable.
#[test]
fn commits_at_once_all_end() {
    everywhere(|directory, direct, choice| {
        let mut bench = Bench::new(directory, direct, choice);
        let page = |offset: u64, mark| MetaPage { offset: offset * 4096, bytes: Box::new([mark; 4096]) };
        let asked: [Vec<MetaPage>; 3] = [vec![page(0, 1)], (2..66).map(|n| page(n, 2)).collect(), vec![page(127, 3)]];
        for pages in &asked {
            let op = bench.op();
            let outcome = bench.engine.commit(op, pages);
            bench.take(outcome);
        }
        bench.wait_all();
        assert!(bench.ended.len() == 3 && bench.ended.values().all(|end| *end == Ok(None)));
        if directory != Path::new("/dev/shm") {
            let unstable = sys::unstable_pages(&bench.plain, ByteRange::new(META, META_LEN));
            assert!(unstable.is_none_or(|pages| pages == 0), "{unstable:?}");
        }
        for page in asked.iter().flatten() {
            let mut found = [0; 4096];
            bench.plain.read_exact_at(&mut found, META + page.offset).expect("readable");
            assert!(found == *page.bytes, "{}", page.offset);
        }
    });
}

/// With the data in the same file, a commit does not wait for what was written to it. File systems may sync more than they are asked
/// to; ext4 and XFS do not. The kernel may write back by itself, but not always just then.
#[test]
fn a_commit_does_not_wait_for_the_data() {
    for choice in [BackendChoice::Auto, BackendChoice::Thread] {
        let left_alone = || {
            let mut bench = Bench::new(Path::new("/var/tmp"), false, choice);
            bench.write(0, &random_bytes(5, 1 << 20), 0);
            let data = ByteRange::new(0, LEN);
            // None: this kernel, or a file system of several layers, does not tell.
            let before = sys::unstable_pages(&bench.plain, data).filter(|&pages| pages > 0);
            let op = bench.op();
            let outcome = bench.engine.commit(op, &[MetaPage { offset: 8192, bytes: Box::new([1; 4096]) }]);
            assert_eq!(outcome, None, "a disk is waited for elsewhere");
            bench.wait_all();
            assert_eq!(bench.ended[&op.0], Ok(None));
            before.is_none() || sys::unstable_pages(&bench.plain, data) == before
        };
        assert!((0..10).any(|_| left_alone()), "{choice:?}");
    }
}

/// The ring has 32 bits for a length: the area of the largest volumes is longer.
#[test]
fn a_commit_to_a_very_long_area_is_stable_too() {
    for choice in [BackendChoice::Auto, BackendChoice::Thread] {
        let mut bench = Bench::new(Path::new("/var/tmp"), false, choice);
        let (metadata_area, last) = (ByteRange::new(META, 5 << 30), (5 << 30) - 4096);
        bench.plain.set_len(metadata_area.end()).expect("sparse");
        let open = || bench.file.reopen().expect("opens again");
        let files = Files { data: open(), metadata: open(), metadata_area, direct: false, block_device: false };
        bench.engine = Engine::new(files, choice).expect("a backend");
        let op = bench.op();
        let pages = [0, last].map(|offset| MetaPage { offset, bytes: Box::new([1; 4096]) });
        let outcome = bench.engine.commit(op, &pages);
        bench.take(outcome);
        bench.wait_all();
        assert_eq!(bench.ended[&op.0], Ok(None));
        let unstable = sys::unstable_pages(&bench.plain, metadata_area);
        assert!(unstable.is_none_or(|pages| pages == 0), "{choice:?} {unstable:?}");
    }
}

#[test]
fn a_commit_that_cannot_be_made_stable_fails_and_all_after_it() {
    // /dev/null takes every write, and cannot be synced.
    let open = || OpenOptions::new().read(true).write(true).open("/dev/null").expect("present on every Linux");
    for choice in [BackendChoice::Auto, BackendChoice::Thread] {
        let mut bench = Bench::new(Path::new("/dev/shm"), false, choice);
        let metadata_area = ByteRange::new(0, META_LEN);
        let files = Files { data: open(), metadata: open(), metadata_area, direct: false, block_device: true };
        bench.engine = Engine::new(files, choice).expect("a backend");
        let commit = |bench: &mut Bench| {
            let op = bench.op();
            let outcome = bench.engine.commit(op, &[MetaPage { offset: 0, bytes: Box::new([0; 4096]) }]);
            let at_once = outcome.is_some();
            bench.take(outcome);
            (op, at_once)
        };
        let together = [commit(&mut bench), commit(&mut bench)];
        bench.wait_all();
        let later = commit(&mut bench);
        assert_eq!([together[0].1, together[1].1, later.1], [false, false, true]);
        for (op, _) in [together[0], together[1], later] {
            assert_eq!(bench.ended[&op.0], Err(DiskError { errno: libc::EINVAL }));
        }
    }
}

#[test]
fn a_read_past_the_end_is_an_error_and_returns_its_buffer() {
    everywhere(|directory, direct, choice| {
        let mut bench = Bench::new(directory, direct, choice);
        let op = bench.op();
        let buf = bench.pool.allocate_buffer(Area::Reads, 8192).expect("room");
        let outcome = bench.engine.read(op, ByteRange::new(META + META_LEN - 4096, 8192), buf, &mut bench.pool);
        bench.take(outcome);
        bench.wait_all();
        assert_eq!(bench.ended[&op.0], Err(DiskError { errno: libc::EIO }));
        assert!(bench.pool.is_unused());
    });
}

#[test]
fn a_full_disk_is_an_error() {
    // /dev/full refuses every write, and cannot be synced either.
    let open = || OpenOptions::new().read(true).write(true).open("/dev/full").expect("present on every Linux");
    for choice in [BackendChoice::Auto, BackendChoice::Thread] {
        let mut bench = Bench::new(Path::new("/dev/shm"), false, choice);
        let metadata_area = ByteRange::new(0, 4096);
        let files = Files { data: open(), metadata: open(), metadata_area, direct: false, block_device: true };
        bench.engine = Engine::new(files, choice).expect("a backend");
        let op = bench.write(0, &[1; 512], 0);
        assert_eq!(bench.ended[&op.0], Err(DiskError { errno: libc::ENOSPC }));
        for _ in 0..2 {
            let op = bench.op();
            let outcome = bench.engine.flush(op);
            bench.take(outcome);
            bench.wait_all();
            assert_eq!(bench.ended[&op.0], Err(DiskError { errno: libc::EINVAL }), "a failed flush stays failed");
        }
        let op = bench.op();
        let page = MetaPage { offset: 0, bytes: Box::new([0; 4096]) };
        let outcome = bench.engine.commit(op, &[page]);
        bench.take(outcome);
        assert_eq!(bench.ended[&op.0], Err(DiskError { errno: libc::ENOSPC }));
        assert!(bench.pool.is_unused());
    }
}

#[test]
fn extents_follow_the_file() {
    let mut bench = Bench::new(Path::new("/dev/shm"), false, BackendChoice::Auto);
    bench.write(65536, &random_bytes(3, 8192), 0);
    bench.wait_all();
    let extents = bench.engine.extents(ByteRange::new(0, LEN), false);
    let found: Vec<_> = extents.as_slice().iter().map(|e| (e.len, e.state)).collect();
    let expected = [(65536, Allocation::Hole), (8192, Allocation::Data), (LEN - 65536 - 8192, Allocation::Hole)];
    assert_eq!(found, expected);
    let one = bench.engine.extents(ByteRange::new(66000, 100_000), true);
    assert_eq!(one.as_slice().len(), 1);
    assert_eq!((one.as_slice()[0].len, one.as_slice()[0].state), (65536 + 8192 - 66000, Allocation::Data));
    bench.zero(ByteRange::new(65536, 8192), true);
    bench.wait_all();
    let extents = bench.engine.extents(ByteRange::new(0, LEN), false);
    assert_eq!(extents.as_slice().len(), 1, "unmapped data is a hole");
}
