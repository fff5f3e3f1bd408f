//! NBD requests: headers byte for byte, and the table of what is refused and how.

use proptest::prelude::*;
use repblk::nbd::{
    ExportInfo, Fatal, Handover, Header, MetaContexts, Mode, NbdError, Request, Terms, header_len, parse_header,
    validate,
};
use repblk::units::ByteRange;

const MIB: u64 = 1024 * 1024;
const SIZE: u64 = 100 * MIB;

const READ: u16 = 0;
const WRITE: u16 = 1;
const DISC: u16 = 2;
const FLUSH: u16 = 3;
const TRIM: u16 = 4;
const CACHE: u16 = 5;
const WRITE_ZEROES: u16 = 6;
const BLOCK_STATUS: u16 = 7;

const FUA: u16 = 1;
const NO_HOLE: u16 = 2;
const DF: u16 = 4;
const REQ_ONE: u16 = 8;
const FAST_ZERO: u16 = 16;
const PAYLOAD_LEN: u16 = 32;

fn terms(mode: Mode) -> Terms {
    let export = ExportInfo::new("data", SIZE);
    Handover { export, mode, contexts: MetaContexts { allocation: mode != Mode::Simple } }.terms()
}

fn header(command: u16, flags: u16, offset: u64, length: u64) -> Header {
    Header { flags, command, cookie: 7, offset, length }
}

fn encode(mode: Mode, header: &Header) -> Vec<u8> {
    let mut bytes = match mode {
        Mode::Simple | Mode::Structured => vec![0x25, 0x60, 0x95, 0x13],
        Mode::Extended => vec![0x21, 0xe4, 0x1c, 0x71],
    };
    bytes.extend_from_slice(&header.flags.to_be_bytes());
    bytes.extend_from_slice(&header.command.to_be_bytes());
    bytes.extend_from_slice(&header.cookie.to_be_bytes());
    bytes.extend_from_slice(&header.offset.to_be_bytes());
    let length = header.length.to_be_bytes();
    bytes.extend_from_slice(if mode == Mode::Extended { &length } else { &length[4..] });
    bytes
}

#[test]
fn headers_are_read_byte_for_byte() {
    let compact =
        [0x25, 0x60, 0x95, 0x13, 0, 1, 0, 1, 1, 2, 3, 4, 5, 6, 7, 8, 0, 0, 0, 1, 0, 0, 2, 0, 0, 0, 0x10, 0, 0xaa];
    let expected = Header { flags: 1, command: 1, cookie: 0x0102_0304_0506_0708, offset: 0x1_0000_0200, length: 4096 };
    assert_eq!(parse_header(&terms(Mode::Simple), &compact), Ok(Some(expected)));
    assert_eq!(parse_header(&terms(Mode::Structured), &compact), Ok(Some(expected)));
    let mut extended = [&compact[..24], &[0, 0, 0, 9, 0, 0, 0x10, 0]].concat();
    extended[..8].copy_from_slice(&[0x21, 0xe4, 0x1c, 0x71, 0, 1, 0, 4]);
    let expected = Header { command: TRIM, length: 0x9_0000_1000, ..expected };
    assert_eq!(parse_header(&terms(Mode::Extended), &extended), Ok(Some(expected)));
    for (mode, bytes) in [(Mode::Simple, &compact[..28]), (Mode::Extended, &extended[..])] {
        assert_eq!(bytes.len(), header_len(mode));
        for cut in 0..bytes.len() {
            assert_eq!(parse_header(&terms(mode), &bytes[..cut]), Ok(None));
        }
    }
}

#[test]
fn a_header_of_the_other_form_has_lost_step() {
    for (mode, other) in [(Mode::Extended, Mode::Simple), (Mode::Simple, Mode::Extended)] {
        let bytes = encode(other, &header(READ, 0, 0, 512));
        assert!(matches!(parse_header(&terms(mode), &bytes), Err(Fatal::BadMagic(_))));
    }
    assert_eq!(parse_header(&terms(Mode::Simple), &[1, 2, 3, 4]), Err(Fatal::BadMagic(0x0102_0304)));
}

#[test]
fn a_payload_follows_where_the_form_says_so() {
    let payload = |mode, command, flags| header(command, flags, 0, 99).payload_len(mode);
    for mode in [Mode::Simple, Mode::Structured] {
        assert_eq!(payload(mode, WRITE, 0), 99);
        assert_eq!(payload(mode, WRITE, PAYLOAD_LEN), 99);
        for command in [READ, DISC, FLUSH, TRIM, CACHE, WRITE_ZEROES, BLOCK_STATUS, 8, 999] {
            assert_eq!(payload(mode, command, PAYLOAD_LEN), 0);
        }
    }
    for command in [READ, WRITE, DISC, FLUSH, TRIM, CACHE, WRITE_ZEROES, BLOCK_STATUS, 8, 999] {
        assert_eq!(payload(Mode::Extended, command, PAYLOAD_LEN), 99);
        assert_eq!(payload(Mode::Extended, command, 0), if command == WRITE { 99 } else { 0 });
    }
}

#[test]
fn payloads_are_drained_up_to_a_limit() {
    let parse = |mode, command, flags, length| {
        let terms = terms(mode);
        parse_header(&terms, &encode(mode, &header(command, flags, 0, length)))
    };
    let taken = |parsed: Result<Option<Header>, Fatal>| parsed.expect("drained").is_some();
    assert!(taken(parse(Mode::Simple, WRITE, 0, 64 * MIB)));
    let limit = 64 * MIB;
    assert_eq!(parse(Mode::Simple, WRITE, 0, limit + 1), Err(Fatal::PayloadTooLong { length: limit + 1, limit }));
    assert!(taken(parse(Mode::Simple, READ, 0, u64::from(u32::MAX))));
    assert!(taken(parse(Mode::Extended, READ, PAYLOAD_LEN, 32 * MIB)));
    assert!(taken(parse(Mode::Extended, TRIM, 0, u64::MAX)));
    let limit = 32 * MIB;
    for length in [limit + 1, u64::MAX] {
        assert_eq!(parse(Mode::Extended, READ, PAYLOAD_LEN, length), Err(Fatal::PayloadTooLong { length, limit }));
    }
    let small = Terms { max_payload: 65_536, ..terms(Mode::Extended) };
    let bytes = encode(Mode::Extended, &header(WRITE, PAYLOAD_LEN, 0, limit));
    assert!(parse_header(&small, &bytes).expect("32 MiB are no attack").is_some());
}

#[test]
fn good_requests_become_what_they_say() {
    let range = ByteRange::new(4096, 512);
    let (structured, extended) = (terms(Mode::Structured), terms(Mode::Extended));
    let ok = |terms: &Terms, command, flags| validate(terms, &header(command, flags, 4096, 512)).expect("valid");
    assert_eq!(ok(&structured, READ, 0), Request::Read { range, df: false });
    assert_eq!(ok(&structured, READ, DF | FUA), Request::Read { range, df: true });
    assert_eq!(ok(&structured, WRITE, 0), Request::Write { range, fua: false });
    assert_eq!(ok(&extended, WRITE, FUA | PAYLOAD_LEN), Request::Write { range, fua: true });
    assert_eq!(ok(&extended, WRITE, 0), Request::Write { range, fua: false }, "as QEMU's client sends it");
    assert_eq!(ok(&structured, FLUSH, FUA), Request::Flush);
    assert_eq!(ok(&structured, TRIM, FUA), Request::Trim { range, fua: true });
    assert_eq!(ok(&structured, CACHE, FUA), Request::Cache { range });
    let zeroes = Request::WriteZeroes { range, fua: false, no_hole: false, fast: false };
    assert_eq!(ok(&structured, WRITE_ZEROES, 0), zeroes);
    let zeroes = Request::WriteZeroes { range, fua: true, no_hole: true, fast: true };
    assert_eq!(ok(&structured, WRITE_ZEROES, FUA | NO_HOLE | FAST_ZERO), zeroes);
    assert_eq!(ok(&extended, BLOCK_STATUS, REQ_ONE), Request::BlockStatus { range, req_one: true });
    assert_eq!(ok(&structured, BLOCK_STATUS, FUA), Request::BlockStatus { range, req_one: false });
    for flags in [0, u16::MAX] {
        assert_eq!(ok(&structured, DISC, flags), Request::Disconnect);
    }
}

#[test]
fn what_needs_no_payload_may_be_as_long_as_the_export() {
    let range = ByteRange::new(0, SIZE);
    let terms = terms(Mode::Structured);
    let ok = |command| validate(&terms, &header(command, 0, 0, SIZE));
    assert_eq!(ok(TRIM), Ok(Request::Trim { range, fua: false }));
    assert_eq!(ok(CACHE), Ok(Request::Cache { range }));
    assert_eq!(ok(BLOCK_STATUS), Ok(Request::BlockStatus { range, req_one: false }));
    assert!(matches!(ok(WRITE_ZEROES), Ok(Request::WriteZeroes { .. })));
}

#[test]
fn bad_requests_are_refused_as_the_protocol_says() {
    use NbdError::{Invalid, NoSpace, NotPermitted, Overflow};
    let simple = terms(Mode::Simple);
    let structured = terms(Mode::Structured);
    let extended = terms(Mode::Extended);
    let read_only = Terms { read_only: true, ..structured };
    let plain = Terms { fast_zero: false, contexts: MetaContexts::default(), ..structured };
    let sectors = Terms { min_block: 512, ..structured };
    let big = Terms { size: u64::MAX, ..extended };
    let max = 32 * MIB;
    let table: &[(&str, &Terms, u16, u16, u64, u64, NbdError)] = &[
        ("unknown command", &simple, 8, 0, 0, 512, Invalid),
        ("unknown command", &extended, u16::MAX, 0, 0, 512, Invalid),
        ("unknown flag", &structured, READ, 1 << 15, 0, 512, Invalid),
        ("unknown flag before bounds", &structured, WRITE, 1 << 6, SIZE, 512, Invalid),
        ("DF without structured replies", &simple, READ, DF, 0, 512, Invalid),
        ("flag of another command", &structured, READ, NO_HOLE, 0, 512, Invalid),
        ("flag of another command", &structured, WRITE, DF, 0, 512, Invalid),
        ("flag of another command", &structured, TRIM, REQ_ONE, 0, 512, Invalid),
        ("flag of another command", &structured, FLUSH, DF, 0, 0, Invalid),
        ("flag of another command", &structured, CACHE, FAST_ZERO, 0, 512, Invalid),
        ("flag of another command", &structured, BLOCK_STATUS, DF, 0, 512, Invalid),
        ("FAST_ZERO not announced", &plain, WRITE_ZEROES, FAST_ZERO, 0, 512, Invalid),
        ("PAYLOAD_LEN in a compact request", &structured, WRITE, PAYLOAD_LEN, 0, 512, Invalid),
        ("PAYLOAD_LEN on a read", &extended, READ, PAYLOAD_LEN, 0, 512, Invalid),
        ("PAYLOAD_LEN on a flush", &extended, FLUSH, PAYLOAD_LEN, 0, 512, Invalid),
        ("PAYLOAD_LEN on a status not announced", &extended, BLOCK_STATUS, PAYLOAD_LEN, 0, 12, Invalid),
        ("read past the end", &structured, READ, 0, SIZE - 511, 512, Invalid),
        ("read that wraps", &structured, READ, 0, u64::MAX - 5, 512, Invalid),
        ("trim past the end", &structured, TRIM, 0, SIZE, 1, Invalid),
        ("status past the end", &structured, BLOCK_STATUS, 0, SIZE, 1, Invalid),
        ("cache past the end", &structured, CACHE, 0, 1, SIZE, Invalid),
        ("write past the end", &structured, WRITE, 0, SIZE - 511, 512, NoSpace),
        ("write that wraps", &structured, WRITE, FUA, u64::MAX, 512, NoSpace),
        ("zeroes past the end", &structured, WRITE_ZEROES, 0, SIZE, 1, NoSpace),
        ("zeroes that wrap", &extended, WRITE_ZEROES, 0, 1, u64::MAX, NoSpace),
        ("write to read-only", &read_only, WRITE, 0, 0, 512, NotPermitted),
        ("trim of read-only, past the end", &read_only, TRIM, 0, SIZE, 512, NotPermitted),
        ("zeroes to read-only", &read_only, WRITE_ZEROES, 0, 0, 512, NotPermitted),
        ("write of nothing to read-only", &read_only, WRITE, 0, 0, 0, NotPermitted),
        ("write over the maximum", &structured, WRITE, 0, 0, max + 1, Invalid),
        ("read over the maximum", &simple, READ, 0, 0, max + 1, Invalid),
        ("read over the maximum", &structured, READ, 0, 0, max + 1, Overflow),
        ("read over the maximum", &big, READ, 0, 5, u64::MAX - 5, Overflow),
        ("unaligned offset", &sectors, READ, 0, 1, 512, Invalid),
        ("unaligned length", &sectors, WRITE, 0, 512, 513, Invalid),
        ("unaligned trim", &sectors, TRIM, 0, 512, 4, Invalid),
        ("status without a context", &plain, BLOCK_STATUS, 0, 0, 512, Invalid),
        ("status of nothing", &structured, BLOCK_STATUS, 0, 0, 0, Invalid),
        ("nothing, past the end", &structured, READ, 0, SIZE + 1, 0, Invalid),
    ];
    for (what, terms, command, flags, offset, length, error) in table {
        let reject = validate(terms, &header(*command, *flags, *offset, *length)).expect_err(what);
        assert_eq!(reject.error, *error, "{what}: {reject}");
    }
}

#[test]
fn nothing_is_done_well() {
    for command in [READ, WRITE, TRIM, CACHE, WRITE_ZEROES] {
        for offset in [0, SIZE] {
            let answer = validate(&terms(Mode::Structured), &header(command, 0, offset, 0));
            assert_eq!(answer, Ok(Request::Nothing));
        }
    }
}

fn any_terms() -> impl Strategy<Value = Terms> {
    let mode = prop_oneof![Just(Mode::Simple), Just(Mode::Structured), Just(Mode::Extended)];
    let size = prop_oneof![0u64..10_000, Just(SIZE), Just(u64::MAX), any::<u64>()];
    (mode, size, any::<[bool; 3]>(), 0u32..17).prop_map(|(mode, size, [read_only, fast_zero, allocation], shift)| {
        let contexts = MetaContexts { allocation };
        Terms { size, read_only, fast_zero, min_block: 1 << shift, contexts, ..terms(mode) }
    })
}

fn any_number() -> impl Strategy<Value = u64> {
    prop_oneof![0u64..10_000, (0u64..200).prop_map(|n| n * 512), (0u64..600).prop_map(|n| u64::MAX - n), any::<u64>()]
}

proptest! {
    #[test]
    fn any_bytes_are_a_header_or_an_error(terms in any_terms(), bytes in prop::collection::vec(any::<u8>(), 0..64)) {
        let _ = parse_header(&terms, &bytes);
        let mut bytes = bytes;
        let magic = if terms.mode == Mode::Extended { [0x21, 0xe4, 0x1c, 0x71] } else { [0x25, 0x60, 0x95, 0x13] };
        let len = bytes.len().min(4);
        bytes[..len].copy_from_slice(&magic[..len]);
        match parse_header(&terms, &bytes) {
            Ok(header) => prop_assert_eq!(header.is_some(), bytes.len() >= header_len(terms.mode)),
            Err(Fatal::PayloadTooLong { length, limit }) => prop_assert!(length > limit),
            Err(Fatal::BadMagic(magic)) => prop_assert!(false, "{magic:#x} is right"),
        }
    }

    #[test]
    fn headers_survive_the_wire(
        terms in any_terms(), flags: u16, command in 0u16..12, cookie: u64, offset: u64, length in any_number(),
    ) {
        let length = if terms.mode == Mode::Extended { length } else { length & u64::from(u32::MAX) };
        let header = Header { flags, command, cookie, offset, length };
        match parse_header(&terms, &encode(terms.mode, &header)) {
            Ok(parsed) => prop_assert_eq!(parsed, Some(header)),
            Err(fatal) => prop_assert!(header.payload_len(terms.mode) > 32 * MIB, "{fatal}"),
        }
    }

    #[test]
    fn what_is_accepted_lies_inside_the_export(
        terms in any_terms(), flags in prop_oneof![0u16..64, any::<u16>()], command in 0u16..9,
        offset in any_number(), length in any_number(),
    ) {
        let header = header(command, flags, offset, length);
        let Ok(request) = validate(&terms, &header) else { return Ok(()) };
        let (range, writes, payload) = match request {
            Request::Read { range, .. } => (range, false, true),
            Request::Write { range, .. } => {
                prop_assert_eq!(header.payload_len(terms.mode), range.len());
                (range, true, true)
            }
            Request::Trim { range, .. } | Request::WriteZeroes { range, .. } => (range, true, false),
            Request::Cache { range } => (range, false, false),
            Request::BlockStatus { range, .. } => {
                prop_assert!(terms.contexts.allocation);
                (range, false, false)
            }
            Request::Nothing => {
                prop_assert_eq!(length, 0);
                return Ok(());
            }
            Request::Flush | Request::Disconnect => return Ok(()),
        };
        prop_assert_eq!((range.start(), range.len()), (offset, length));
        prop_assert!(!range.is_empty() && range.end() <= terms.size);
        prop_assert!(offset % u64::from(terms.min_block) == 0 && length % u64::from(terms.min_block) == 0);
        prop_assert!(!(writes && terms.read_only));
        prop_assert!(!payload || length <= u64::from(terms.max_payload));
    }
}
