//! Every message of the link: its golden vector, its round trip, and the field values it refuses.

use crate::golden;
use proptest::prelude::*;
use repblk::condition::{Continuity, DiskState, Mode, Role};
use repblk::generation::Lineage;
use repblk::units::{ByteRange, ConnectionId, DiskInstance, GenerationId, Seq, Term};
use repblk::wire::message::{BITMAP_PAGE_LEN, Greeting, HOLE_LEN_MAX, Verdict};
use repblk::wire::{FrameError, FrameReader, FrameWriter, Message};
use std::collections::BTreeMap;

/// The connection of every frame in these tests.
pub(crate) const CONNECTION: ConnectionId = ConnectionId(0x0123_4567_89ab_cdef);
/// The term of every frame in these tests.
pub(crate) const TERM: Term = Term(7);
/// Length of a frame header, written out: the format must not change with a constant.
pub(crate) const HEADER_LEN: usize = 72;

/// A message and its payload; the body of a message that makes its own is none.
pub(crate) type Received = (Message, Vec<u8>);

fn greeting() -> Greeting {
    let mut lineage = Lineage::starting_with(GenerationId(0x1111));
    lineage.advance(GenerationId(0x2222));
    Greeting {
        instance: DiskInstance(0xa1b2_c3d4),
        lineage,
        base_for_you: GenerationId(0x1111),
        dirty_blocks: 300,
        full: false,
        disk: DiskState::UpToDate,
        role: Role::Primary,
        term: Term(7),
        mode: Mode::SemiSync,
        was_primary: true,
        discard: false,
        continuity: Continuity::SameBoot,
    }
}

/// One name for each kind, and the frames that show all its flags.
pub(crate) fn vectors() -> Vec<(&'static str, Vec<Received>)> {
    let range = ByteRange::new(0x10_0000, 12);
    let (seq, generation, term) = (Seq(41), GenerationId(0x2222), Term(8));
    let data = b"twelve bytes".to_vec();
    let page: Vec<u8> = (0..BITMAP_PAGE_LEN).map(|i| u8::try_from(i % 251).expect("below 251")).collect();
    let plain = |message: Message| vec![(message, Vec::new())];
    vec![
        ("greeting", plain(Message::Greeting(Box::new(greeting())))),
        ("verdict", plain(Message::Verdict(Verdict { rule: 14, part: 2 }))),
        ("write", [false, true].map(|resync| (Message::Write { seq, range, resync }, data.clone())).to_vec()),
        (
            "zero",
            [(false, false), (true, false), (false, true), (true, true)]
                .map(|(unmap, resync)| (Message::Zero { seq, range, unmap, resync }, Vec::new()))
                .to_vec(),
        ),
        ("trim", plain(Message::Trim { seq, range })),
        ("barrier", [false, true].map(|ordered| (Message::Barrier { seq, ordered }, Vec::new())).to_vec()),
        ("ack", plain(Message::Ack { received: Seq(43), written: Seq(42), stable: Seq(41) })),
        ("disk_failed", plain(Message::DiskFailed { errno: 5 })),
        ("bitmap_page", vec![(Message::BitmapPage { index: 3 }, page)]),
        ("bitmap_end", plain(Message::BitmapEnd { dirty_blocks: 300 })),
        ("resync_begin", plain(Message::ResyncBegin { generation, dirty_blocks: 300 })),
        ("resync_ready", plain(Message::ResyncReady)),
        ("resync_finish", plain(Message::ResyncFinish { generation })),
        ("resync_finished", plain(Message::ResyncFinished)),
        ("detached", plain(Message::Detached { generation })),
        ("detached_done", plain(Message::DetachedDone { generation })),
        ("read", plain(Message::Read { id: 9, range })),
        (
            "read_done",
            vec![
                (Message::ReadDone { id: 9, len: u32::try_from(data.len()).expect("short"), errno: 0 }, data),
                (Message::ReadDone { id: 9, len: 0, errno: 5 }, Vec::new()),
            ],
        ),
        ("claim", plain(Message::Claim { term })),
        ("grant", plain(Message::Grant { term })),
        ("deny", plain(Message::Deny { term, rule: 16 })),
        ("offer", plain(Message::Offer { term })),
        (
            "state",
            [DiskState::Failed, DiskState::Inconsistent, DiskState::Diverged, DiskState::Outdated, DiskState::UpToDate]
                .into_iter()
                .zip([Role::Secondary, Role::Primary].into_iter().cycle())
                .map(|(disk, role)| (Message::State { role, disk }, Vec::new()))
                .collect(),
        ),
        ("pause", [false, true].map(|on| (Message::Pause { on }, Vec::new())).to_vec()),
        ("ping", plain(Message::Ping)),
        ("pong", plain(Message::Pong)),
        ("goodbye", plain(Message::Goodbye)),
        ("stream_start", plain(Message::StreamStart { after: Seq(40) })),
    ]
}

/// The frames of `messages`, one behind the other, as one direction of a new link.
pub(crate) fn stream(messages: &[Received]) -> Vec<u8> {
    let mut writer = FrameWriter::new(CONNECTION);
    let mut bytes = Vec::new();
    for (message, payload) in messages {
        writer.encode(TERM, message, payload, &mut bytes);
        bytes.extend_from_slice(payload);
    }
    bytes
}

/// Reads whole frames from the start of a new link's direction; what is cut off at the end is left.
pub(crate) fn receive(mut bytes: &[u8]) -> Result<Vec<Received>, FrameError> {
    let mut reader = FrameReader::new(CONNECTION);
    let mut messages = Vec::new();
    while let Some((header, rest)) = bytes.split_first_chunk::<HEADER_LEN>() {
        let header = reader.header(header)?;
        let Some((body, rest)) = rest.split_at_checked(header.body_len) else { break };
        let message = header.decode(body)?;
        let payload = if message.carries_payload() { body.to_vec() } else { Vec::new() };
        messages.push((message, payload));
        bytes = rest;
    }
    Ok(messages)
}

/// A frame with right checksums and any content: what a broken or hostile peer can make.
pub(crate) fn forge(kind: u16, flags: u16, args: [u64; 3], body: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0; HEADER_LEN];
    bytes[0..4].copy_from_slice(b"RBF1");
    bytes[4..6].copy_from_slice(&kind.to_le_bytes());
    bytes[6..8].copy_from_slice(&flags.to_le_bytes());
    bytes[8..16].copy_from_slice(&CONNECTION.0.to_le_bytes());
    bytes[16..24].copy_from_slice(&TERM.0.to_le_bytes());
    for (i, arg) in args.iter().enumerate() {
        bytes[32 + 8 * i..40 + 8 * i].copy_from_slice(&arg.to_le_bytes());
    }
    let body_len = u32::try_from(body.len()).expect("tests send small bodies");
    bytes[56..60].copy_from_slice(&body_len.to_le_bytes());
    bytes[60..64].copy_from_slice(&crc32fast::hash(body).to_le_bytes());
    bytes.extend_from_slice(body);
    seal(&mut bytes);
    bytes
}

/// Makes the header's checksum right again.
pub(crate) fn seal(frame: &mut [u8]) {
    let crc = crc32fast::hash(&frame[..68]);
    frame[68..72].copy_from_slice(&crc.to_le_bytes());
}

#[test]
fn each_kind_keeps_its_bytes() {
    for (name, messages) in vectors() {
        let bytes = golden::check(&format!("wire/{name}.hex"), &stream(&messages));
        assert_eq!(receive(&bytes).expect("a golden frame is valid"), messages, "{name}");
    }
}

#[test]
fn every_kind_has_a_vector() {
    let mut shown = BTreeMap::new();
    for (name, messages) in vectors() {
        let kinds: Vec<u16> = messages.iter().map(|(message, _)| message.parts().kind).collect();
        assert!(kinds.iter().all(|&kind| kind == kinds[0]), "{name} shows one kind");
        assert_eq!(shown.insert(kinds[0], name), None, "each kind has one vector file");
    }
    let known: Vec<u16> = (0..=u16::MAX).filter(|&kind| Message::body_len_max(kind).is_some()).collect();
    let shown: Vec<u16> = shown.into_keys().collect();
    assert_eq!(known, shown, "a kind without a golden vector: add it to `vectors` and bless its file");
}

#[test]
fn no_golden_file_is_left_over() {
    let dir = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/format/golden/wire");
    let mut found: Vec<String> = std::fs::read_dir(dir)
        .expect("the golden files are there")
        .map(|entry| entry.expect("a directory entry").file_name().into_string().expect("a plain name"))
        .collect();
    let mut wanted: Vec<String> = vectors().iter().map(|(name, _)| format!("{name}.hex")).collect();
    wanted.push("hello.hex".into());
    found.sort();
    wanted.sort();
    assert_eq!(found, wanted);
}

#[test]
fn flags_that_a_kind_does_not_have_are_refused() {
    for (name, messages) in vectors() {
        let used = messages.iter().fold(0, |flags, (message, _)| flags | message.parts().flags);
        for (message, payload) in &messages {
            let body = stream(&[(message.clone(), payload.clone())]).split_off(HEADER_LEN);
            for flag in (0..16).map(|bit| 1u16 << bit).filter(|flag| flag & used == 0) {
                let parts = message.parts();
                let refused = receive(&forge(parts.kind, parts.flags | flag, parts.args, &body));
                let expected = FrameError::Malformed { kind: parts.kind, why: "unknown flag" };
                assert_eq!(refused, Err(expected), "{name} with flag {flag:#x}");
            }
        }
    }
}

fn refused(message: &Message, change: impl Fn(&mut [u64; 3]), body: &[u8]) -> &'static str {
    let parts = message.parts();
    let mut args = parts.args;
    change(&mut args);
    match receive(&forge(parts.kind, parts.flags, args, body)) {
        Err(FrameError::Malformed { kind, why }) if kind == parts.kind => why,
        other => panic!("{message:?} with {args:?} is {other:?}"),
    }
}

#[test]
fn ranges_that_make_no_sense_are_refused() {
    let (seq, range) = (Seq(1), ByteRange::new(0, 4096));
    let body = [0; 4096];
    let write = Message::Write { seq, range, resync: false };
    assert_eq!(refused(&write, |args| args[1] = u64::MAX - 4095, &body), "the range overflows");
    assert_eq!(refused(&write, |args| args[2] = 0, &[]), "the range is empty or too long");
    assert_eq!(refused(&write, |args| args[2] = (1 << 20) + 1, &body), "the range is empty or too long");
    assert_eq!(refused(&write, |args| args[2] = 4095, &body), "the range is not as long as the data");
    assert_eq!(refused(&write, |args| args[2] = 4097, &body), "the range is not as long as the data");
    for hole in [Message::Trim { seq, range }, Message::Zero { seq, range, unmap: true, resync: false }] {
        assert_eq!(refused(&hole, |args| args[2] = 0, &[]), "the range is empty or too long");
        assert_eq!(refused(&hole, |args| args[2] = HOLE_LEN_MAX + 1, &[]), "the range is empty or too long");
        assert_eq!(refused(&hole, |args| args[1] = u64::MAX, &[]), "the range overflows");
    }
    let read = Message::Read { id: 1, range };
    assert_eq!(refused(&read, |args| args[2] = 0, &[]), "the range is empty or too long");
    assert_eq!(refused(&read, |args| args[2] = (1 << 20) + 1, &[]), "the range is empty or too long");
}

#[test]
fn numbers_that_make_no_sense_are_refused() {
    let ack = Message::Ack { received: Seq(3), written: Seq(2), stable: Seq(1) };
    let order = "stable, written and received are not in order";
    assert_eq!(refused(&ack, |args| args[0] = 1, &[]), order);
    assert_eq!(refused(&ack, |args| args[1] = 0, &[]), order);
    assert_eq!(refused(&ack, |args| args[2] = 3, &[]), order);
    let state = Message::State { role: Role::Primary, disk: DiskState::UpToDate };
    assert_eq!(refused(&state, |args| args[0] = 2, &[]), "unknown role");
    assert_eq!(refused(&state, |args| args[1] = 5, &[]), "unknown disk state");
    let large = "an argument is too large";
    assert_eq!(refused(&Message::Verdict(Verdict { rule: 1, part: 1 }), |args| args[0] = 1 << 16, &[]), large);
    assert_eq!(refused(&Message::Verdict(Verdict { rule: 1, part: 1 }), |args| args[1] = 1 << 16, &[]), large);
    assert_eq!(refused(&Message::Deny { term: TERM, rule: 1 }, |args| args[1] = 1 << 16, &[]), large);
    assert_eq!(refused(&Message::DiskFailed { errno: 5 }, |args| args[0] = 1 << 32, &[]), large);
    assert_eq!(refused(&Message::ReadDone { id: 1, len: 0, errno: 5 }, |args| args[1] = 1 << 32, &[]), large);
    let unused = "a field does not fit the others, or is not zero though unused";
    assert_eq!(refused(&Message::ReadDone { id: 1, len: 0, errno: 5 }, |args| args[2] = 1, &[]), unused);
    assert_eq!(refused(&Message::Ping, |args| args[0] = 1, &[]), unused);
    let page = Message::BitmapPage { index: 0 };
    assert_eq!(refused(&page, |_| (), &[0; BITMAP_PAGE_LEN - 1]), "a bitmap page is 4096 bytes");
    assert_eq!(refused(&page, |_| (), &[]), "a bitmap page is 4096 bytes");
}

#[test]
fn a_greeting_is_read_whole_or_not_at_all() {
    let message = Message::Greeting(Box::new(greeting()));
    let body = stream(&[(message.clone(), Vec::new())]).split_off(HEADER_LEN);
    for cut in 0..body.len() {
        assert_eq!(refused(&message, |_| (), &body[..cut]), "unreadable greeting", "cut to {cut} bytes");
    }
    let longer = [&body[..], &[0]].concat();
    assert_eq!(refused(&message, |_| (), &longer), "unreadable greeting");
}

/// Found while the fuzz targets were written: one greeting had many forms.
#[test]
fn a_greeting_with_an_integer_longer_than_it_needs_is_refused() {
    let message = Message::Greeting(Box::new(greeting()));
    let mut frame = Vec::new();
    FrameWriter::new(ConnectionId(1)).encode(Term(1), &message, &[], &mut frame);
    let body = &frame[72..];
    let last = body.len() - 1;
    assert!(body[last] <= 2, "the continuity");
    let longer = [&body[..last], &[251, body[last], 0]].concat();
    assert_eq!(refused(&message, |_| (), &longer), "unreadable greeting");
}

fn any_range(len_max: u64) -> impl Strategy<Value = ByteRange> {
    (any::<u64>(), 1..=len_max).prop_map(|(start, len)| ByteRange::new(start.min(u64::MAX - len), len))
}

fn any_data() -> impl Strategy<Value = (ByteRange, Vec<u8>)> {
    (any::<u64>(), proptest::collection::vec(any::<u8>(), 1..600)).prop_map(|(start, data)| {
        let len = data.len() as u64;
        (ByteRange::new(start.min(u64::MAX - len), len), data)
    })
}

fn any_greeting() -> impl Strategy<Value = Greeting> {
    let numbers = proptest::array::uniform8(any::<u64>());
    let disks =
        [DiskState::Failed, DiskState::Inconsistent, DiskState::Diverged, DiskState::Outdated, DiskState::UpToDate];
    let words = (0..5usize, any::<bool>(), 0..3usize, 0..3usize);
    let switches = proptest::array::uniform3(any::<bool>());
    (numbers, words, switches).prop_map(move |(n, (disk, primary, mode, continuity), [full, was_primary, discard])| {
        let mut lineage = Lineage::starting_with(GenerationId(n[1]));
        lineage.history[0] = GenerationId(n[2]);
        lineage.history[15] = GenerationId(n[3]);
        Greeting {
            instance: DiskInstance(u128::from(n[0]) << 64 | u128::from(n[7])),
            lineage,
            base_for_you: GenerationId(n[4]),
            dirty_blocks: n[5],
            full,
            disk: disks[disk],
            role: if primary { Role::Primary } else { Role::Secondary },
            term: Term(n[6]),
            mode: [Mode::Sync, Mode::SemiSync, Mode::Async][mode],
            was_primary,
            discard,
            continuity: [Continuity::Clean, Continuity::SameBoot, Continuity::Lost][continuity],
        }
    })
}

/// Any valid message with its payload. A kind that is missing here is caught by `the_strategy_makes_every_kind`.
fn any_message() -> impl Strategy<Value = Received> {
    let n = any::<u64>();
    let small = any::<u16>();
    let hole = || (n, any_range(HOLE_LEN_MAX), any::<bool>(), any::<bool>());
    let plain = |message: Message| (message, Vec::new());
    let with_body = prop_oneof![
        any_greeting().prop_map(move |greeting| plain(Message::Greeting(Box::new(greeting)))),
        (n, any_data(), any::<bool>())
            .prop_map(|(seq, (range, data), resync)| (Message::Write { seq: Seq(seq), range, resync }, data)),
        (n, any::<u8>()).prop_map(|(index, fill)| (Message::BitmapPage { index }, vec![fill; BITMAP_PAGE_LEN])),
        (n, any::<u32>(), proptest::collection::vec(any::<u8>(), 0..600)).prop_map(|(id, errno, data)| {
            let len = u32::try_from(data.len()).expect("short");
            (Message::ReadDone { id, len, errno }, data)
        }),
    ];
    let of_stream = prop_oneof![
        hole().prop_map(move |(seq, range, unmap, resync)| plain(Message::Zero {
            seq: Seq(seq),
            range,
            unmap,
            resync
        })),
        hole().prop_map(move |(seq, range, _, _)| plain(Message::Trim { seq: Seq(seq), range })),
        (n, any::<bool>()).prop_map(move |(seq, ordered)| plain(Message::Barrier { seq: Seq(seq), ordered })),
        n.prop_map(move |after| plain(Message::StreamStart { after: Seq(after) })),
        proptest::array::uniform3(n).prop_map(move |mut order| {
            order.sort_unstable();
            let [stable, written, received] = order.map(Seq);
            plain(Message::Ack { received, written, stable })
        }),
    ];
    let of_resync = prop_oneof![
        n.prop_map(move |dirty_blocks| plain(Message::BitmapEnd { dirty_blocks })),
        (n, n).prop_map(move |(g, dirty_blocks)| plain(Message::ResyncBegin {
            generation: GenerationId(g),
            dirty_blocks
        })),
        Just(plain(Message::ResyncReady)),
        n.prop_map(move |g| plain(Message::ResyncFinish { generation: GenerationId(g) })),
        Just(plain(Message::ResyncFinished)),
        any::<bool>().prop_map(move |on| plain(Message::Pause { on })),
    ];
    let of_disks = prop_oneof![
        any::<u32>().prop_map(move |errno| plain(Message::DiskFailed { errno })),
        n.prop_map(move |g| plain(Message::Detached { generation: GenerationId(g) })),
        n.prop_map(move |g| plain(Message::DetachedDone { generation: GenerationId(g) })),
        (n, any_range(1 << 20)).prop_map(move |(id, range)| plain(Message::Read { id, range })),
    ];
    let of_roles = prop_oneof![
        (small, small).prop_map(move |(rule, part)| plain(Message::Verdict(Verdict { rule, part }))),
        n.prop_map(move |term| plain(Message::Claim { term: Term(term) })),
        n.prop_map(move |term| plain(Message::Grant { term: Term(term) })),
        (n, small).prop_map(move |(term, rule)| plain(Message::Deny { term: Term(term), rule })),
        n.prop_map(move |term| plain(Message::Offer { term: Term(term) })),
        any_greeting().prop_map(move |g| plain(Message::State { role: g.role, disk: g.disk })),
        Just(plain(Message::Ping)),
        Just(plain(Message::Pong)),
        Just(plain(Message::Goodbye)),
    ];
    prop_oneof![with_body, of_stream, of_resync, of_disks, of_roles]
}

#[test]
fn the_strategy_makes_every_kind() {
    use proptest::strategy::ValueTree;
    let mut runner = proptest::test_runner::TestRunner::deterministic();
    let mut made = std::collections::BTreeSet::new();
    for _ in 0..3000 {
        let tree = any_message().new_tree(&mut runner).expect("a message can be made");
        made.insert(tree.current().0.parts().kind);
    }
    let known = (0..=u16::MAX).filter(|&kind| Message::body_len_max(kind).is_some());
    assert!(known.eq(made.iter().copied()), "the round trip covers every kind, not only {made:?}");
}

proptest! {
    #[test]
    fn what_is_sent_is_what_is_received(messages in proptest::collection::vec(any_message(), 0..20)) {
        prop_assert_eq!(receive(&stream(&messages)), Ok(messages));
    }

    #[test]
    fn any_content_with_right_checksums_is_a_message_or_refused(
        kind in 0u16..40,
        flags in prop_oneof![Just(0u16), 0u16..4, any::<u16>()],
        args in proptest::array::uniform3(prop_oneof![0u64..10, any::<u64>()]),
        body in prop_oneof![Just(Vec::new()), proptest::collection::vec(any::<u8>(), 0..300)],
    ) {
        if let Ok(messages) = receive(&forge(kind, flags, args, &body)) {
            prop_assert_eq!(messages.len(), 1);
            let (message, payload) = &messages[0];
            prop_assert_eq!(message.parts().kind, kind);
            prop_assert_eq!(message.parts().flags, flags);
            prop_assert_eq!(receive(&stream(&[(message.clone(), payload.clone())])), Ok(messages.clone()));
        }
    }
}
