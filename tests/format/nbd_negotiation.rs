//! NBD option haggling against transcripts written from the protocol text, with its numbers spelled out.

use proptest::prelude::*;
use repblk::nbd::{
    CloseReason, ExportInfo, ExportListing, ExportRefusal, Exports, Handover, MetaContexts, Mode, Negotiation, Next,
    RefusalCode, Tls,
};

const FIXED_NO_ZEROES: [u8; 4] = [0, 0, 0, 3];
const GREETING: &[u8] = b"NBDMAGICIHAVEOPT\x00\x03";

const EXPORT_NAME: u32 = 1;
const ABORT: u32 = 2;
const LIST: u32 = 3;
const PEEK_EXPORT: u32 = 4;
const STARTTLS: u32 = 5;
const INFO: u32 = 6;
const GO: u32 = 7;
const STRUCTURED_REPLY: u32 = 8;
const LIST_META_CONTEXT: u32 = 9;
const SET_META_CONTEXT: u32 = 10;
const EXTENDED_HEADERS: u32 = 11;

const ACK: u32 = 1;
const ERR_UNSUP: u32 = 0x8000_0001;
const ERR_POLICY: u32 = 0x8000_0002;
const ERR_INVALID: u32 = 0x8000_0003;
const ERR_UNKNOWN: u32 = 0x8000_0006;
const ERR_SHUTDOWN: u32 = 0x8000_0007;
const ERR_TOO_BIG: u32 = 0x8000_0009;
const ERR_EXT_HEADER_REQD: u32 = 0x8000_000a;

/// Two volumes that are served, one of which is read-only, and one of which another node is primary.
#[derive(Default)]
struct House {
    shutting_down: bool,
}

impl Exports for House {
    fn find(&self, name: &[u8]) -> Result<ExportInfo, ExportRefusal> {
        let refusal = |code, message: &str| Err(ExportRefusal { code, message: message.into() });
        match name {
            b"" | b"data" => {
                Ok(ExportInfo { description: "primary".into(), ..ExportInfo::new("data", 0x0102_0304_0000_1000) })
            }
            b"logs" => Ok(ExportInfo { read_only: true, ..ExportInfo::new("logs", 4096) }),
            b"far" => refusal(RefusalCode::Policy, "node-b is primary"),
            _ => refusal(RefusalCode::Unknown, "no such volume"),
        }
    }

    fn list(&self) -> Vec<ExportListing> {
        [("data", "primary"), ("far", "secondary; node-b is primary")]
            .map(|(name, description)| ExportListing { name: name.into(), description: description.into() })
            .into()
    }

    fn shutting_down(&self) -> bool {
        self.shutting_down
    }
}

fn option(code: u32, data: &[u8]) -> Vec<u8> {
    let mut bytes = b"IHAVEOPT".to_vec();
    bytes.extend_from_slice(&code.to_be_bytes());
    bytes.extend_from_slice(&u32::try_from(data.len()).expect("short").to_be_bytes());
    bytes.extend_from_slice(data);
    bytes
}

fn text(bytes: &[u8]) -> Vec<u8> {
    [&u32::try_from(bytes.len()).expect("short").to_be_bytes()[..], bytes].concat()
}

fn info_data(name: &[u8], requests: &[u16]) -> Vec<u8> {
    let mut data = text(name);
    data.extend_from_slice(&u16::try_from(requests.len()).expect("few").to_be_bytes());
    data.extend(requests.iter().flat_map(|request| request.to_be_bytes()));
    data
}

fn meta_data(name: &[u8], queries: &[&[u8]]) -> Vec<u8> {
    let mut data = text(name);
    data.extend_from_slice(&u32::try_from(queries.len()).expect("few").to_be_bytes());
    data.extend(queries.iter().flat_map(|query| text(query)));
    data
}

fn reply(option: u32, kind: u32, data: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0x00, 0x03, 0xe8, 0x89, 0x04, 0x55, 0x65, 0xa9];
    bytes.extend_from_slice(&option.to_be_bytes());
    bytes.extend_from_slice(&kind.to_be_bytes());
    bytes.extend_from_slice(&u32::try_from(data.len()).expect("short").to_be_bytes());
    bytes.extend_from_slice(data);
    bytes
}

/// What came of a whole conversation.
#[derive(Debug, PartialEq)]
struct Outcome {
    /// Everything the server has sent after its greeting.
    sent: Vec<u8>,
    /// How it ended, or how many bytes it waits for.
    next: Next,
    /// Bytes it did not consume.
    left: Vec<u8>,
}

impl Outcome {
    /// Kinds of the replies sent, as the client would read them.
    fn kinds(&self) -> Vec<(u32, u32)> {
        let mut rest = &self.sent[..];
        let mut kinds = Vec::new();
        while !rest.is_empty() {
            let field = |at: usize| u32::from_be_bytes(rest[at..at + 4].try_into().expect("four bytes"));
            assert_eq!(rest[..8], reply(0, 0, &[])[..8], "a reply begins with its magic number");
            kinds.push((field(8), field(12)));
            rest = &rest[20 + usize::try_from(field(16)).expect("short")..];
        }
        kinds
    }

    fn handover(&self) -> &Handover {
        match &self.next {
            Next::Transmission(handover) => handover,
            other => panic!("no transmission: {other:?}"),
        }
    }

    fn reason(&self) -> &CloseReason {
        match &self.next {
            Next::Close(reason) => reason,
            other => panic!("not closed: {other:?}"),
        }
    }
}

/// Feeds `bytes` in pieces of the given sizes, then the rest at once; stops at the end of the negotiation.
fn converse_split(house: &House, bytes: &[u8], pieces: &[usize]) -> Outcome {
    let mut sent = Vec::new();
    let mut negotiation = Negotiation::start(&mut sent);
    assert_eq!(sent, GREETING);
    sent.clear();
    let mut rest = bytes;
    let mut next = Next::Read(negotiation.wanted());
    let mut pieces = pieces.iter().copied().chain(std::iter::repeat(usize::MAX));
    while !rest.is_empty() {
        let mut piece = &rest[..pieces.next().expect("endless").min(rest.len())];
        loop {
            let progress = negotiation.receive(piece, house, &mut sent);
            piece = &piece[progress.consumed..];
            rest = &rest[progress.consumed..];
            next = progress.next;
            match &next {
                Next::Read(wanted) => assert!((1..=65_536).contains(wanted), "wants {wanted} bytes"),
                Next::StartTls => panic!("TLS was not offered"),
                Next::Transmission(_) | Next::Close(_) => return Outcome { sent, next, left: rest.to_vec() },
            }
            if piece.is_empty() {
                break;
            }
        }
    }
    Outcome { sent, next, left: Vec::new() }
}

fn converse(options: &[Vec<u8>]) -> Outcome {
    converse_split(&House::default(), &[&FIXED_NO_ZEROES[..], &options.concat()].concat(), &[])
}

const SIZE: [u8; 8] = [1, 2, 3, 4, 0, 0, 0x10, 0];

#[test]
fn export_name_answers_size_flags_and_zeroes() {
    let house = House::default();
    let ask = option(EXPORT_NAME, b"data");
    // HAS_FLAGS, FLUSH, FUA, TRIM, WRITE_ZEROES, MULTI_CONN, CACHE, FAST_ZERO.
    let short = [&SIZE[..], &[0x0d, 0x6d]].concat();
    let outcome = converse_split(&house, &[&[0, 0, 0, 3], &ask[..], b"next"].concat(), &[]);
    assert_eq!((&outcome.sent, &outcome.left[..]), (&short, &b"next"[..]));
    for client_flags in [[0, 0, 0, 0], [0, 0, 0, 1]] {
        let outcome = converse_split(&house, &[&client_flags, &ask[..]].concat(), &[]);
        assert_eq!(outcome.sent, [&short[..], &[0; 124]].concat());
        assert_eq!(outcome.handover().mode, Mode::Simple);
    }
}

#[test]
fn go_answers_what_was_asked_and_enters_transmission() {
    let go = option(GO, &info_data(b"", &[3, 1, 2, 0, 99, 1]));
    let outcome = converse(&[go, b"request".to_vec()]);
    let expected = [
        reply(GO, 3, &[&[0, 0], &SIZE[..], &[0x0d, 0x6d]].concat()),
        reply(GO, 3, b"\x00\x01data"),
        reply(GO, 3, b"\x00\x02primary"),
        reply(GO, 3, &[0, 3, 0, 0, 0, 1, 0, 0, 0x10, 0, 2, 0, 0, 0]),
        reply(GO, ACK, &[]),
    ];
    assert_eq!(outcome.sent, expected.concat());
    assert_eq!(outcome.left, b"request");
    let expected = Handover {
        export: House::default().find(b"data").expect("served"),
        mode: Mode::Simple,
        contexts: MetaContexts { allocation: false },
    };
    assert_eq!(outcome.handover(), &expected);
}

#[test]
fn info_answers_like_go_and_stays() {
    let info = converse(&[option(INFO, &info_data(b"logs", &[]))]);
    // HAS_FLAGS, READ_ONLY, FLUSH, FUA, MULTI_CONN, CACHE; nothing that writes.
    let about = [0, 0, 0, 0, 0, 0, 0, 0, 0x10, 0, 0x05, 0x0f];
    assert_eq!(info.sent, [reply(INFO, 3, &about), reply(INFO, ACK, &[])].concat());
    assert_eq!(info.next, Next::Read(16));
}

#[test]
fn df_is_announced_with_chunked_replies_only() {
    let flags = |options: &[Vec<u8>]| {
        let outcome = converse(options);
        let at = outcome.sent.len() - 20 - 2;
        u16::from_be_bytes([outcome.sent[at], outcome.sent[at + 1]])
    };
    let go = option(GO, &info_data(b"data", &[]));
    assert_eq!(flags(std::slice::from_ref(&go)), 0x0d6d);
    assert_eq!(flags(&[option(STRUCTURED_REPLY, &[]), go.clone()]), 0x0ded);
    assert_eq!(flags(&[option(EXTENDED_HEADERS, &[]), go]), 0x0ded);
}

#[test]
fn list_names_all_exports_with_their_role() {
    let outcome = converse(&[option(LIST, &[])]);
    let expected = [
        reply(LIST, 2, b"\x00\x00\x00\x04dataprimary"),
        reply(LIST, 2, b"\x00\x00\x00\x03farsecondary; node-b is primary"),
        reply(LIST, ACK, &[]),
    ];
    assert_eq!(outcome.sent, expected.concat());
}

#[test]
fn abort_is_acknowledged_with_and_without_data() {
    for data in [&b""[..], b"ignored"] {
        let outcome = converse(&[option(ABORT, data), option(LIST, &[])]);
        assert_eq!(outcome.sent, reply(ABORT, ACK, &[]));
        assert_eq!(outcome.reason(), &CloseReason::Aborted);
    }
}

#[test]
fn the_modes_build_on_each_other() {
    let go = || option(GO, &info_data(b"data", &[]));
    let (structured, extended) = (option(STRUCTURED_REPLY, &[]), option(EXTENDED_HEADERS, &[]));
    assert_eq!(converse(&[structured.clone(), go()]).handover().mode, Mode::Structured);
    assert_eq!(converse(&[structured.clone(), extended.clone(), go()]).handover().mode, Mode::Extended);
    let outcome = converse(&[extended, structured, go()]);
    assert_eq!(outcome.kinds()[..2], [(EXTENDED_HEADERS, ACK), (STRUCTURED_REPLY, ERR_EXT_HEADER_REQD)]);
    assert_eq!(outcome.handover().mode, Mode::Extended);
}

#[test]
fn extended_headers_forbid_export_name() {
    let outcome = converse(&[option(EXTENDED_HEADERS, &[]), option(EXPORT_NAME, b"data")]);
    assert_eq!(outcome.sent, reply(EXTENDED_HEADERS, ACK, &[]));
    assert_eq!(outcome.reason(), &CloseReason::ExportNameAfterExtendedHeaders);
}

#[test]
fn contexts_are_listed_under_id_zero() {
    let listed = |queries: &[&[u8]]| {
        let outcome = converse(&[option(LIST_META_CONTEXT, &meta_data(b"data", queries))]);
        let context = reply(LIST_META_CONTEXT, 4, b"\x00\x00\x00\x00base:allocation");
        let ack = reply(LIST_META_CONTEXT, ACK, &[]);
        if outcome.sent == ack { Some(false) } else { (outcome.sent == [context, ack].concat()).then_some(true) }
    };
    assert_eq!(listed(&[]), Some(true));
    assert_eq!(listed(&[b"base:"]), Some(true));
    assert_eq!(listed(&[b"x-other:", b"base:allocation"]), Some(true));
    assert_eq!(listed(&[b"base:other", b"qemu:"]), Some(false));
}

#[test]
fn a_context_is_selected_for_its_export_only() {
    let structured = option(STRUCTURED_REPLY, &[]);
    let set = |name: &[u8], queries: &[&[u8]]| option(SET_META_CONTEXT, &meta_data(name, queries));
    let selected = |options: &[Vec<u8>], name: &[u8]| {
        let go = option(GO, &info_data(name, &[]));
        converse(&[std::slice::from_ref(&structured), options, &[go]].concat()).handover().contexts.allocation
    };
    let allocation: &[&[u8]] = &[b"base:allocation"];
    let good = set(b"data", allocation);
    assert!(selected(std::slice::from_ref(&good), b"data"));
    assert!(selected(&[set(b"", allocation)], b"data"), "the default export is the same export");
    assert!(!selected(&[], b"data"));
    assert!(!selected(std::slice::from_ref(&good), b"logs"));
    assert!(!selected(&[good.clone(), set(b"logs", allocation)], b"data"));
    for undoing in [
        set(b"data", &[]),
        set(b"data", &[b"base:"]),
        set(b"data", &[b"base"]),
        set(b"none", allocation),
        option(SET_META_CONTEXT, &[]),
        option(SET_META_CONTEXT, &vec![0; 65_537]),
    ] {
        assert!(!selected(&[good.clone(), undoing.clone()], b"data"), "{undoing:02x?}");
    }
    let outcome = converse(&[structured, good]);
    let context = reply(SET_META_CONTEXT, 4, b"\x00\x00\x00\x01base:allocation");
    let ack = |option| reply(option, ACK, &[]);
    assert_eq!(outcome.sent, [ack(STRUCTURED_REPLY), context, ack(SET_META_CONTEXT)].concat());
}

#[test]
fn a_failed_option_says_why_and_the_next_is_understood() {
    let long_query = vec![b':'; 4097];
    let table: Vec<(u32, Vec<u8>, u32)> = vec![
        (LIST, b"x".to_vec(), ERR_INVALID),
        (STRUCTURED_REPLY, b"x".to_vec(), ERR_INVALID),
        (EXTENDED_HEADERS, vec![0; 100_000], ERR_INVALID),
        (STARTTLS, vec![], ERR_UNSUP),
        (STARTTLS, b"x".to_vec(), ERR_UNSUP),
        (PEEK_EXPORT, vec![], ERR_UNSUP),
        (0, vec![], ERR_UNSUP),
        (u32::MAX, vec![7; 1024 * 1024], ERR_UNSUP),
        (INFO, vec![], ERR_INVALID),
        (GO, [&u32::MAX.to_be_bytes()[..], b"data\x00\x00"].concat(), ERR_INVALID),
        (GO, [&0xffff_fffa_u32.to_be_bytes()[..], b"data\x00\x00"].concat(), ERR_INVALID),
        (GO, info_data(b"none", &[3]), ERR_UNKNOWN),
        (GO, info_data(b"data\0", &[3]), ERR_UNKNOWN),
        (GO, info_data(b"\xff\xfe", &[]), ERR_UNKNOWN),
        (GO, info_data(b"far", &[]), ERR_POLICY),
        (INFO, info_data(b"far", &[]), ERR_POLICY),
        (GO, vec![0; 65_537], ERR_TOO_BIG),
        (LIST_META_CONTEXT, vec![], ERR_INVALID),
        (LIST_META_CONTEXT, [&text(b"data")[..], &[0xff; 4]].concat(), ERR_INVALID),
        (LIST_META_CONTEXT, meta_data(b"none", &[]), ERR_UNKNOWN),
        (LIST_META_CONTEXT, meta_data(b"data", &[&long_query]), ERR_INVALID),
        (SET_META_CONTEXT, meta_data(b"data", &[b"base:allocation"]), ERR_INVALID),
    ];
    for (code, data, kind) in table {
        let outcome = converse(&[option(code, &data), option(LIST, &[])]);
        let message_len = u32::from_be_bytes(outcome.sent[16..20].try_into().expect("four bytes"));
        assert!(message_len > 10, "option {code} fails without a sentence");
        assert_eq!(outcome.kinds()[..2], [(code, kind), (LIST, 2)], "option {code}");
    }
    let far = converse(&[option(GO, &info_data(b"far", &[]))]);
    assert_eq!(far.sent, reply(GO, ERR_POLICY, b"node-b is primary"));
}

#[test]
fn what_cannot_be_answered_closes() {
    let close = |bytes: &[u8]| converse_split(&House::default(), bytes, &[]).reason().clone();
    let after = |flags: [u8; 4], options: Vec<u8>| close(&[&flags[..], &options].concat());
    let header = |code: u32, length: u32| [b"IHAVEOPT", &code.to_be_bytes()[..], &length.to_be_bytes()[..]].concat();
    assert_eq!(close(&[0, 0, 0, 7]), CloseReason::UnknownClientFlags(7));
    assert_eq!(close(&[0x80, 0, 0, 3]), CloseReason::UnknownClientFlags(0x8000_0003));
    assert_eq!(after(FIXED_NO_ZEROES, vec![1; 16]), CloseReason::BadOptionMagic(0x0101_0101_0101_0101));
    assert_eq!(after([0; 4], option(LIST, &[])), CloseReason::NotFixedNewstyle(LIST));
    assert_eq!(after([0; 4], header(ABORT, 0)), CloseReason::NotFixedNewstyle(ABORT));
    assert_eq!(after(FIXED_NO_ZEROES, header(EXPORT_NAME, 4097)), CloseReason::NameTooLong(4097));
    for code in [ABORT, GO, SET_META_CONTEXT, 4711] {
        for length in [1024 * 1024 + 1, u32::MAX] {
            assert_eq!(
                after(FIXED_NO_ZEROES, header(code, length)),
                CloseReason::OptionTooLong { option: code, length }
            );
        }
    }
    for name in [&b"none"[..], b"far", b"data\0"] {
        let outcome = converse(&[option(EXPORT_NAME, name)]);
        assert!(matches!(outcome.reason(), CloseReason::ExportRefused(_)));
        assert!(outcome.sent.is_empty());
    }
    let many = vec![option(STRUCTURED_REPLY, &[]); 257];
    assert!(matches!(converse(&many[..256]).next, Next::Read(16)));
    assert_eq!(converse(&many).reason(), &CloseReason::TooManyOptions);
}

#[test]
fn a_server_that_shuts_down_refuses_all_but_abort() {
    let house = House { shutting_down: true };
    let ask = |bytes: Vec<u8>| converse_split(&house, &[&FIXED_NO_ZEROES[..], &bytes].concat(), &[]);
    for code in [LIST, INFO, GO, STRUCTURED_REPLY, SET_META_CONTEXT, STARTTLS, 4711] {
        assert_eq!(ask(option(code, b"data")).kinds(), [(code, ERR_SHUTDOWN)]);
    }
    assert_eq!(ask(option(EXPORT_NAME, b"data")).reason(), &CloseReason::ShuttingDown);
    assert_eq!(ask(option(ABORT, &[])).reason(), &CloseReason::Aborted);
}

#[test]
fn answers_come_one_option_at_a_time() {
    let mut out = Vec::new();
    let mut negotiation = Negotiation::start(&mut out);
    let bytes = [&FIXED_NO_ZEROES[..], &option(LIST, &[]), &option(LIST, &[])].concat();
    out.clear();
    let progress = negotiation.receive(&bytes, &House::default(), &mut out);
    assert_eq!((progress.consumed, progress.next), (20, Next::Read(16)));
    assert_eq!(out, converse(&[option(LIST, &[])]).sent);
}

#[test]
fn a_shell_that_reads_what_is_wanted_never_holds_a_foreign_byte() {
    let options = [option(STRUCTURED_REPLY, &[]), option(4711, &[9; 70_000]), option(GO, &info_data(b"data", &[3]))];
    let bytes = [&FIXED_NO_ZEROES[..], &options.concat(), b"request"].concat();
    let mut out = Vec::new();
    let mut negotiation = Negotiation::start(&mut out);
    let (mut at, mut wanted) = (0, negotiation.wanted());
    loop {
        let progress = negotiation.receive(&bytes[at..at + wanted], &House::default(), &mut out);
        assert_eq!(progress.consumed, wanted);
        at += wanted;
        match progress.next {
            Next::Read(more) => wanted = more,
            Next::Transmission(_) => break,
            Next::StartTls => panic!("TLS was not offered"),
            Next::Close(reason) => panic!("{reason}"),
        }
    }
    assert_eq!(&bytes[at..], b"request");
}

/// Options that make sense, options that nearly do, and noise.
fn any_option() -> impl Strategy<Value = Vec<u8>> {
    let name = prop_oneof![
        Just(b"data".to_vec()),
        Just(b"logs".to_vec()),
        Just(b"far".to_vec()),
        prop::collection::vec(any::<u8>(), 0..6)
    ];
    let query = prop_oneof![
        Just(b"base:allocation".to_vec()),
        Just(b"base:".to_vec()),
        prop::collection::vec(any::<u8>(), 0..6)
    ];
    let info =
        (name.clone(), prop::collection::vec(0u16..6, 0..4)).prop_map(|(name, requests)| info_data(&name, &requests));
    let meta = (name.clone(), prop::collection::vec(query, 0..3))
        .prop_map(|(name, queries)| meta_data(&name, &queries.iter().map(Vec::as_slice).collect::<Vec<_>>()));
    let noise = prop::collection::vec(any::<u8>(), 0..40);
    let code = prop_oneof![20 => 3u32..13, 1 => any::<u32>(), 1 => Just(EXPORT_NAME), 1 => Just(ABORT)];
    prop_oneof![
        4 => (6u32..8, info).prop_map(|(code, data)| option(code, &data)),
        4 => (9u32..11, meta).prop_map(|(code, data)| option(code, &data)),
        4 => code.clone().prop_map(|code| option(code, &[])),
        2 => (code, noise).prop_map(|(code, data)| option(code, &data)),
    ]
}

proptest! {
    #[test]
    fn splits_change_nothing(
        options in prop::collection::vec(any_option(), 0..12),
        tail in prop::collection::vec(any::<u8>(), 0..40),
        pieces in prop::collection::vec(0usize..24, 0..200),
    ) {
        let bytes = [&FIXED_NO_ZEROES[..], &options.concat(), &tail].concat();
        let house = House::default();
        let whole = converse_split(&house, &bytes, &[]);
        prop_assert_eq!(&converse_split(&house, &bytes, &pieces), &whole);
        prop_assert_eq!(&converse_split(&house, &bytes, &vec![1; bytes.len()]), &whole);
        prop_assert!(bytes.ends_with(&whole.left));
    }

    #[test]
    fn garbage_is_survived_and_the_answer_stays_small(
        bytes in prop::collection::vec(any::<u8>(), 0..400),
        options in prop::collection::vec(any_option(), 0..4),
        damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6),
        flags in prop_oneof![4 => Just(FIXED_NO_ZEROES), 1 => any::<[u8; 4]>()],
    ) {
        let mut stream = [&flags[..], &options.concat(), &bytes].concat();
        for (at, byte) in damage {
            let at = at.index(stream.len());
            stream[at] = byte;
        }
        let outcome = converse_split(&House::default(), &stream, &[]);
        // At most one answer an option, and every option takes 16 bytes.
        prop_assert!(outcome.sent.len() <= (stream.len() / 16 + 1) * 200);
    }
}

/// As `converse`, with the server's way of TLS; what is fed stops where the clear ends.
fn converse_tls(tls: Tls, options: &[Vec<u8>]) -> (Vec<u8>, Vec<Next>, Vec<u8>) {
    let (mut out, mut seen) = (Vec::new(), Vec::new());
    let mut negotiation = Negotiation::start(&mut out).with_tls(tls);
    out.clear();
    let mut bytes = [&FIXED_NO_ZEROES[..], &options.concat()].concat();
    loop {
        let progress = negotiation.receive(&bytes, &House::default(), &mut out);
        bytes.drain(..progress.consumed);
        seen.push(progress.next);
        match seen.last() {
            Some(Next::Read(_)) if !bytes.is_empty() => {}
            _ => return (out, seen, bytes),
        }
    }
}

#[test]
fn tls_comes_first_where_it_is_required_and_once_where_it_is_offered() {
    let ack = reply(STARTTLS, ACK, &[]);
    let kind = |sent: &[u8]| u32::from_be_bytes(sent[12..16].try_into().expect("a reply"));
    for tls in [Tls::Allowed, Tls::Required] {
        let (sent, seen, left) = converse_tls(tls, &[option(STARTTLS, &[]), option(LIST, &[])]);
        assert_eq!((sent, seen.last()), (ack.clone(), Some(&Next::StartTls)));
        assert_eq!(left, option(LIST, &[]), "what came behind it is left for the shell to refuse");
        let (sent, ..) = converse_tls(tls, &[option(STARTTLS, b"x")]);
        assert_eq!(kind(&sent), ERR_INVALID);
    }
    for code in [LIST, INFO, GO, STRUCTURED_REPLY, EXTENDED_HEADERS, LIST_META_CONTEXT, SET_META_CONTEXT, 4711] {
        let (sent, ..) = converse_tls(Tls::Required, &[option(code, &[])]);
        assert_eq!(kind(&sent), 0x8000_0005, "option {code}");
    }
    let close = |options: &[Vec<u8>]| converse_tls(Tls::Required, options).1.pop().expect("an end");
    assert_eq!(close(&[option(EXPORT_NAME, b"data")]), Next::Close(CloseReason::TlsRequired));
    assert_eq!(close(&[option(ABORT, &[])]), Next::Close(CloseReason::Aborted));
}

#[test]
fn what_was_agreed_in_the_clear_is_forgotten_under_tls() {
    let mut out = Vec::new();
    let mut negotiation = Negotiation::start(&mut out).with_tls(Tls::Allowed);
    let clear = [&FIXED_NO_ZEROES[..], &option(EXTENDED_HEADERS, &[]), &option(STARTTLS, &[])].concat();
    let mut rest = &clear[..];
    while !rest.is_empty() {
        let progress = negotiation.receive(rest, &House::default(), &mut out);
        rest = &rest[progress.consumed..];
    }
    out.clear();
    assert_eq!(negotiation.wanted(), 16);
    let again = negotiation.receive(&option(STARTTLS, &[]), &House::default(), &mut out);
    assert!(matches!(again.next, Next::Read(16)));
    assert_eq!(u32::from_be_bytes(out[12..16].try_into().expect("a reply")), ERR_INVALID, "once is enough");
    let go = negotiation.receive(&option(GO, &info_data(b"data", &[])), &House::default(), &mut out);
    let Next::Transmission(handover) = go.next else { panic!("an export") };
    assert_eq!(handover.mode, Mode::Simple);
}
