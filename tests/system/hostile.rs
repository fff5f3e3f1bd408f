//! Clients and strangers that break every rule, beside an honest client that must not notice.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use crate::honest::{CROWDED, Honest, PLAYGROUND};
use crate::ledger::Ledger;
use crate::node::VOLUME;
use crate::pair::{MIB, Pair, Setup};
use crate::raw_nbd::{DISC, FLUSH, FUA, READ, Raw, TRIM, WRITE, WRITE_ZEROES};
use crate::tools::{LONG, SHORT, noise, wait_for};

const EINVAL: u32 = 22;
const ENOSPC: u32 = 28;
/// An honest load on the primary, over both kinds of socket.
fn honest(pair: &Pair) -> Ledger {
    let ledger = Ledger::start(&[pair.alpha.place()], 2, 64);
    ledger.wait_more(50, SHORT);
    ledger
}

#[track_caller]
fn unharmed(pair: &Pair, ledger: Ledger) {
    ledger.wait_more(100, SHORT);
    let book = ledger.stop();
    assert_eq!(book.reconnects, 0, "the honest client was dropped");
    assert!(book.gap < Duration::from_secs(3), "the honest client waited {:?}", book.gap);
    book.audit(&mut pair.alpha.client());
    pair.assert_identical();
}

/// The server must close the connection, in bounded time and without another word of more than `len_max` bytes.
#[track_caller]
fn is_closed(mut raw: Raw, len_max: usize, what: &str) {
    let mut said = 0;
    loop {
        match raw.receive(4096) {
            Ok(bytes) if bytes.is_empty() => return,
            Ok(bytes) => said += bytes.len(),
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => return,
            Err(error) => panic!("{what}: the connection is not closed but {error}"),
        }
        assert!(said <= len_max, "{what}: the server goes on talking");
    }
}

#[test]
fn nonsense_in_the_negotiation_harms_only_who_says_it() {
    let pair = Pair::up(&Setup::default());
    let ledger = honest(&pair);
    for place in [pair.alpha.place(), pair.alpha.nbd_tcp.clone()] {
        let greeted = || Raw::greet(&place).expect("the server greets");
        let mut raw = Raw::dial(&place).expect("connects");
        raw.send(&[0xff; 64]).expect("is taken");
        is_closed(raw, 4096, "client flags that nobody knows");
        let mut raw = greeted();
        raw.send(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n").expect("is taken");
        is_closed(raw, 4096, "an option with a wrong magic");
        // An option of 4 GiB is neither awaited nor stored.
        let mut raw = greeted();
        raw.send(b"IHAVEOPT").expect("is taken");
        raw.send(&7u32.to_be_bytes()).expect("is taken");
        raw.send(&u32::MAX.to_be_bytes()).expect("is taken");
        is_closed(raw, 4096, "an option of 4 GiB");
        // Options that lie about their inner lengths get an error, and the negotiation goes on.
        let mut raw = greeted();
        raw.option(7, &[0, 0, 1, 0, b'x', 0, 0]).expect("is taken");
        let (kind, _) = raw.option_reply().expect("an answer");
        assert_eq!(kind, 1 << 31 | 3, "a name longer than its option is invalid");
        raw.option(0xdead, b"?").expect("is taken");
        let (kind, _) = raw.option_reply().expect("an answer");
        assert_eq!(kind, 1 << 31 | 1, "an unknown option is unsupported");
        raw.option(3, b"junk").expect("is taken");
        let (kind, _) = raw.option_reply().expect("an answer");
        assert_eq!(kind, 1 << 31 | 3, "LIST has no body");
        raw.option(2, &[]).expect("is taken");
        is_closed(raw, 64, "ABORT");
    }
    unharmed(&pair, ledger);
}

#[test]
fn wrong_requests_are_answered_and_right_ones_still_served() {
    let pair = Pair::up(&Setup::default());
    let ledger = honest(&pair);
    let end = pair.alpha.data_len();
    let mut raw = Raw::connect(&pair.alpha.nbd_tcp).expect("is served");
    let expected = [
        (0, READ, end, 4096, EINVAL, "a read behind the end"),
        (0, READ, u64::MAX - 100, 4096, EINVAL, "a read whose end overflows"),
        (0, TRIM, end - 512, 4096, EINVAL, "a trim across the end"),
        (0, WRITE_ZEROES, end - 512, 4096, ENOSPC, "zeroes across the end"),
        (0, 77, 0, 0, EINVAL, "an unknown command"),
        (1 << 9, FLUSH, 0, 0, EINVAL, "an unknown flag"),
        (0, FLUSH, 0, 0, 0, "a flush"),
        (FUA, TRIM, PLAYGROUND, 4096, 0, "a trim with FUA"),
    ];
    for (flags, command, at, len, error, what) in expected {
        let got = raw.plain(flags, command, at, len).expect("is answered");
        // EINVAL is right for both ends of the table; ENOSPC is what the specification prefers for what would write.
        assert!(got == error || error == ENOSPC && got == EINVAL, "{what} is answered with {got}, not {error}");
    }
    assert_eq!(raw.write(end - 512, &[1; 4096], 0).expect("is answered"), ENOSPC, "a write across the end");
    assert_eq!(raw.write(PLAYGROUND, &[9; 513], FUA).expect("is answered"), 0, "the connection is still in step");
    assert_eq!(raw.read(PLAYGROUND, 513).expect("is answered"), [9; 513]);
    // A request of zero bytes is allowed or refused, and never the end of the connection.
    let zero = raw.plain(0, READ, 0, 0).expect("is answered");
    assert!(zero == 0 || zero == EINVAL, "{zero}");
    assert_eq!(raw.flush().expect("is answered"), 0);
    // A payload larger than anything allowed cannot be skipped safely.
    raw.request(0, WRITE, 0, u32::MAX).expect("is taken");
    is_closed(raw, 64, "a write of 4 GiB");
    // So is a request that is none.
    let mut raw = Raw::connect(&pair.alpha.nbd_tcp).expect("is served");
    raw.send(&[0x42; 28]).expect("is taken");
    is_closed(raw, 64, "a request with a wrong magic");
    unharmed(&pair, ledger);
}

#[test]
fn clients_that_hang_in_every_stage_hold_nobody_up() {
    let pair = Pair::up(&Setup::default());
    let ledger = honest(&pair);
    let clients = |v: &serde_json::Value| v["nbd"]["clients"].as_u64().expect("a number");
    let resting = clients(&pair.alpha.status());
    // A hundred that never finish their negotiation.
    let half_open: Vec<_> = (0..100)
        .map(|number| match number % 2 {
            0 => Raw::dial(&pair.alpha.nbd_tcp).expect("connects"),
            _ => Raw::greet(&pair.alpha.nbd_tcp).expect("connects"),
        })
        .collect();
    // Clients that ask for much and never read a reply.
    let mut deaf = Vec::new();
    for _ in 0..4 {
        let mut raw = Raw::connect(&pair.alpha.nbd_tcp).expect("is served");
        for _ in 0..64 {
            raw.request(0, READ, PLAYGROUND, 1 << 20).expect("requests are small");
        }
        deaf.push(raw);
    }
    // Clients that announce a payload and fall silent, and such that leave in its middle.
    let mut silent = Vec::new();
    for number in 0..8 {
        let mut raw = Raw::connect(&pair.alpha.place()).expect("is served");
        raw.request(0, WRITE, PLAYGROUND, 1 << 20).expect("requests are small");
        raw.send(&vec![0xee; 100_000]).expect("is taken");
        if number % 2 == 0 {
            silent.push(raw);
        }
    }
    ledger.wait_more(200, SHORT);
    // An honest newcomer is served at once.
    let came = Instant::now();
    let mut newcomer = Raw::connect(&pair.alpha.nbd_tcp).expect("is served");
    assert_eq!(newcomer.write(PLAYGROUND + 8 * MIB, &[3; 4096], FUA).expect("is answered"), 0);
    assert!(came.elapsed() < Duration::from_secs(3), "a newcomer waited {:?}", came.elapsed());
    drop((half_open, deaf, silent, newcomer));
    wait_for("all of them to be gone", LONG, || (clients(&pair.alpha.status()) == resting).then_some(()));
    unharmed(&pair, ledger);
}

/// Where the largest payloads of hostile clients go.
const FAR: u64 = 32 * MIB;

#[test]
fn sixty_writers_of_the_largest_payload_that_stall_hold_nobody_up() {
    let pair = Pair::up(&Setup { size: 80 * MIB, ..Setup::default() });
    let honest = Honest::start(&pair);
    let mut crowd = Vec::new();
    for number in 0..60 {
        let mut raw = Raw::connect(&pair.alpha.place()).expect("is served");
        raw.request(0, WRITE, FAR, 32 << 20).expect("requests are small");
        raw.send(&vec![0xdd; [100, 5000, 70_000][number % 3]]).expect("is taken");
        crowd.push(raw);
    }
    honest.were_served(CROWDED, "stalled writers");
    // Bytes that drip are no better than none.
    let honest = Honest::start(&pair);
    let end = Instant::now() + CROWDED;
    while Instant::now() < end {
        crowd.iter_mut().for_each(|raw| raw.send(&[0xdd]).expect("a slow client is not put out"));
        std::thread::sleep(Duration::from_millis(100));
    }
    honest.were_served(Duration::ZERO, "dripping writers");
    drop(crowd);
    pair.assert_identical();
}

#[test]
fn clients_that_never_read_hold_nobody_up() {
    let pair = Pair::up(&Setup { size: 80 * MIB, ..Setup::default() });
    let mut crowd = Vec::new();
    for (count, len) in [(16, 1 << 20), (16, 32 << 20), (60, 4097)] {
        let honest = Honest::start(&pair);
        for _ in 0..count {
            let mut raw = Raw::connect(&pair.alpha.place()).expect("is served");
            for _ in 0..64 {
                raw.request(0, READ, FAR, len).expect("requests are small");
            }
            crowd.push(raw);
        }
        honest.were_served(CROWDED, &format!("{} that never read", crowd.len()));
    }
    let peak = pair.alpha.memory_peak_kib();
    println!("resident at most {peak} KiB with {} clients that never read", crowd.len());
    assert!(peak < 96 << 10, "{peak} KiB resident are above the bound");
    drop(crowd);
    pair.assert_identical();
}

#[test]
fn newcomers_that_never_agree_leave_places_for_honest_ones() {
    let pair = Pair::up(&Setup::default());
    let honest = Honest::start(&pair);
    // More than there are places, in every stage before the export.
    let half_open: Vec<_> = (0..400)
        .map(|number| match number % 2 {
            0 => Raw::dial(&pair.alpha.place()),
            _ => Raw::greet(&pair.alpha.place()),
        })
        .collect();
    let came = Instant::now();
    let mut newcomer = Raw::connect(&pair.alpha.place()).expect("is served");
    assert_eq!(newcomer.flush().expect("is answered"), 0);
    assert!(came.elapsed() < Duration::from_secs(2), "a newcomer waited {:?}", came.elapsed());
    honest.were_served(CROWDED, "half-open newcomers");
    drop(half_open);
    pair.assert_identical();
}

#[test]
fn control_clients_that_say_nothing_do_not_keep_status_away() {
    let pair = Pair::up(&Setup::default());
    let dial = || std::os::unix::net::UnixStream::connect(&pair.alpha.control).expect("connects");
    let mut idle: Vec<_> = (0..100).map(|_| dial()).collect();
    // Such as read no answers are idle too.
    for _ in 0..100 {
        let mut stream = dial();
        for _ in 0..50 {
            // It may be put out by now.
            let _ = stream.write_all(b"{\"version\":1,\"ask\":\"status\"}\n");
        }
        idle.push(stream);
    }
    for _ in 0..5 {
        let asked = Instant::now();
        assert_eq!(pair.alpha.status()["role"], "primary");
        assert!(asked.elapsed() < Duration::from_secs(2), "status took {:?}", asked.elapsed());
        idle.extend((0..80).map(|_| dial()));
    }
    drop(idle);
}

#[test]
fn four_clients_write_the_largest_payload_at_once() {
    let pair = Pair::up(&Setup { size: 160 * MIB, ..Setup::default() });
    let ledger = honest(&pair);
    let (largest, count) = (32 * MIB, 4u64);
    std::thread::scope(|scope| {
        for number in 0..count {
            let pair = &pair;
            scope.spawn(move || {
                let mut raw = Raw::connect(&pair.alpha.nbd_tcp).expect("is served");
                let bytes = noise(number + 10, usize::try_from(largest).expect("64 bits"));
                let at = PLAYGROUND + number * largest;
                assert_eq!(raw.write(at, &bytes, FUA).expect("is answered"), 0);
                assert!(raw.read(at, bytes.len()).expect("is answered") == bytes, "what was written is read");
                raw.request(0, DISC, 0, 0).expect("is taken");
                is_closed(raw, 0, "DISC");
            });
        }
    });
    let peak = pair.alpha.memory_peak_kib();
    println!("resident at most {peak} KiB with four writes of 32 MiB in flight");
    assert!(peak < 96 << 10, "{peak} KiB resident are above the bound");
    // The honest client shares the disk with 128 MiB: it may wait for it, and is served.
    ledger.wait_more(100, SHORT);
    let book = ledger.stop();
    assert_eq!(book.reconnects, 0, "the honest client was dropped");
    book.audit(&mut pair.alpha.client());
    pair.assert_identical();
}

#[test]
fn strangers_on_the_data_port_do_not_disturb_the_link() {
    let pair = Pair::up(&Setup::default());
    let ledger = honest(&pair);
    let since = |v: &serde_json::Value| v["peers"][0]["connection_ms"].as_u64().expect("a number");
    let before = since(&pair.alpha.status());
    let mut held = Vec::new();
    for said in [&b"SSH-2.0-OpenSSH_9.2p1\r\n"[..], &[0; 4096], &[0xff; 100_000], b""] {
        for data in [&pair.alpha.data, &pair.beta.data] {
            let mut stream = TcpStream::connect(data).expect("the port is open");
            stream.set_read_timeout(Some(SHORT)).expect("sockets can do that");
            // It may be closed in the middle of so much nonsense.
            let _ = stream.write_all(said);
            held.push(stream);
        }
    }
    for mut stream in held {
        let mut answer = Vec::new();
        // The end, or a reset, and not a time-out: nobody waits for ever for a stranger.
        if let Err(error) = stream.read_to_end(&mut answer) {
            assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset, "the stranger is still connected");
        }
    }
    let status = pair.alpha.status();
    assert!(since(&status) > before, "the link is the same as before: {status:#}");
    assert!(pair.beta.log_text().contains("no data link"), "strangers are logged: {}", pair.beta.log_end());
    unharmed(&pair, ledger);
}

#[test]
fn an_unknown_export_is_refused_by_name() {
    let pair = Pair::up(&Setup::default());
    let mut raw = Raw::greet(&pair.alpha.place()).expect("the server greets");
    let mut body = 4096u32.to_be_bytes().to_vec();
    body.extend([b'n'; 4096]);
    body.extend([0, 0]);
    raw.option(6, &body).expect("is taken");
    let (kind, text) = raw.option_reply().expect("an answer");
    assert_eq!(kind, 1 << 31 | 6, "the longest name that may be: unknown");
    assert!(String::from_utf8_lossy(&text).contains(VOLUME), "the answer says what there is");
}
