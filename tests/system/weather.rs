//! Bad weather on the data link, under a mixed load: whatever the cable does to the stream, and whenever, the copies end equal
//! and every sector holds what it may.

use std::time::Duration;

use crate::ledger::Ledger;
use crate::pair::{MIB, Pair, Setup};
use crate::proxy::Way;
use crate::rng::Rng;
use crate::tools::{LONG, from_environment};

const WRITERS: u64 = 3;
const BLOCKS: usize = 48;
/// Spells of weather and seed of the random sequence; a longer run sets other ones.
const SPELLS: (&str, u64) = ("REPBLK_WEATHER_SPELLS", 10);
const SEED: (&str, u64) = ("REPBLK_WEATHER_SEED", 1);

#[derive(Debug, Clone, Copy)]
enum Weather {
    /// All connections end; new ones are let through.
    Reset,
    /// No link for a while.
    Cut,
    /// Nothing is carried for a while, and then everything that was held up.
    Stall,
    /// The same, in one direction.
    OneWay(Way),
    /// A bit flips, in a chunk of at least this many bytes.
    Damage(Way, usize),
    /// The connection ends in the middle of a chunk.
    Tear(Way),
    /// Each chunk arrives late.
    Delay,
    /// So many KiB a second.
    Slow(u64),
}

const ALL: [Weather; 13] = [
    Weather::Reset,
    Weather::Cut,
    Weather::Stall,
    Weather::OneWay(Way::Forth),
    Weather::OneWay(Way::Back),
    Weather::Damage(Way::Forth, 1),
    Weather::Damage(Way::Forth, 4096),
    Weather::Damage(Way::Back, 1),
    Weather::Tear(Way::Forth),
    Weather::Tear(Way::Back),
    Weather::Delay,
    Weather::Slow(64),
    Weather::Slow(1024),
];

impl Weather {
    /// Lets it be so under load, shorter or longer than the peer's timeout.
    fn blow(self, pair: &Pair, ledger: &Ledger, rng: &mut Rng) {
        let proxy = &pair.proxy;
        let lasting = Duration::from_millis(rng.between(50, 1500));
        match self {
            Self::Reset => proxy.reset(),
            Self::Cut => proxy.cut(),
            Self::Stall => proxy.stall(),
            Self::OneWay(way) => proxy.stall_one_way(way),
            Self::Damage(way, len_min) => proxy.damage(way, len_min),
            Self::Tear(way) => proxy.tear(way),
            Self::Delay => proxy.delay(Duration::from_millis(rng.between(1, 80))),
            Self::Slow(kib) => proxy.slow(kib << 10),
        }
        if matches!(self, Self::Reset | Self::Damage(..) | Self::Tear(..)) {
            ledger.wait_more(20, LONG);
        } else {
            std::thread::sleep(lasting);
        }
        proxy.mend();
        if rng.chance(1, 4) {
            // The next weather comes before all is well again.
            return;
        }
        pair.wait_in_sync();
    }
}

#[track_caller]
fn season(mode: &'static str, seed: u64, spells: &[Weather]) {
    println!("seed {seed}");
    let mut rng = Rng::new(seed);
    let volume_keys = "peer_timeout_ms = 600\nping_interval_ms = 200";
    let pair = Pair::up(&Setup { size: 8 * MIB, mode, volume_keys, ..Setup::default() });
    let places = [pair.alpha.place()];
    let mut ledger = Ledger::mixed(&places, WRITERS, BLOCKS, seed);
    for &weather in spells {
        ledger.wait_more(rng.between(10, 60), LONG);
        weather.blow(&pair, &ledger, &mut rng);
        ledger.wait_more(20, LONG);
        if !rng.chance(1, 3) {
            continue;
        }
        let mut book = ledger.stop();
        pair.assert_identical();
        book.settle(&mut pair.alpha.client());
        ledger = Ledger::resume(&places, book, rng.next());
    }
    // After an audit in the last spell the load has only just begun again.
    ledger.wait_more(1, LONG);
    let mut book = ledger.stop();
    pair.assert_identical();
    book.settle(&mut pair.alpha.client());
    assert_eq!(book.reconnects, 0, "no client noticed");
    println!("{mode}: {} writes since the last audit, longest gap {:?}", book.acked, book.gap);
}

#[test]
fn every_weather_once() {
    season("sync", 21, &ALL);
}

#[test]
fn every_weather_once_in_semisync() {
    season("semisync", 22, &ALL);
}

#[test]
fn every_weather_once_in_async() {
    season("async", 23, &ALL);
}

#[test]
fn random_weather() {
    let seed = from_environment(SEED);
    let mut rng = Rng::new(seed);
    let spells: Vec<_> = (0..from_environment(SPELLS)).map(|_| rng.pick(&ALL)).collect();
    season("sync", seed, &spells);
}
