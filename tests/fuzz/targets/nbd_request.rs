//! NBD requests: headers in any pieces, judged against terms of every kind, and the replies to them.
//!
//! Input: the terms, then requests, each raw or of fields near the edges.

use super::input::Input;
use super::notes::note;
use repblk::nbd::constants as c;
use repblk::nbd::{
    Allocation, Extents, Fatal, Header, MetaContexts, Mode, Request, Terms, header_len, parse_header, reply, validate,
};
use repblk::units::ByteRange;

/// Requests of one run.
const REQUESTS_MAX: usize = 16;

pub fn run(data: &[u8]) {
    let mut input = Input::new(data);
    let terms = terms(&mut input);
    for _ in 0..REQUESTS_MAX {
        if input.is_empty() {
            return;
        }
        let bytes = header_bytes(&mut input, &terms);
        if let Some(header) = parse_in_pieces(&terms, &bytes) {
            judge(&terms, &header, &mut input);
        }
    }
}

fn terms(input: &mut Input<'_>) -> Terms {
    let mode = input.pick(&[Mode::Simple, Mode::Structured, Mode::Extended]);
    let switches = input.u8();
    let min_block = 1u32 << input.index(17);
    let size = input.number() / u64::from(min_block) * u64::from(min_block);
    Terms {
        mode,
        contexts: MetaContexts { allocation: switches & 1 != 0 && mode != Mode::Simple },
        size,
        read_only: switches & 2 != 0,
        fast_zero: switches & 4 != 0,
        min_block,
        max_payload: input.pick(&[c::MAX_PAYLOAD, 1 << 16, 64 << 20]),
    }
}

/// A header as a client may send it; the magic number is the mode's unless the input says otherwise.
fn header_bytes(input: &mut Input<'_>, terms: &Terms) -> Vec<u8> {
    let extended = terms.mode == Mode::Extended;
    let shape = input.u8();
    let magic = match shape & 7 {
        7 => input.u32(),
        _ if extended => c::EXTENDED_REQUEST_MAGIC,
        _ => c::REQUEST_MAGIC,
    };
    let (flags, command) = if shape & 8 == 0 {
        (u16::from(input.u8() & 0x3f), u16::from(input.u8() & 7))
    } else {
        (input.u16(), input.u16())
    };
    let block = u64::from(terms.min_block);
    let near = |input: &mut Input<'_>| match input.u8() & 3 {
        0 => input.number().wrapping_mul(block),
        1 => terms.size.wrapping_sub(input.number().wrapping_mul(block)),
        2 => u64::from(terms.max_payload).wrapping_add(input.number()).wrapping_sub(2),
        _ => input.number(),
    };
    let (offset, length) = (near(input), near(input));
    let mut bytes = [&magic.to_be_bytes()[..], &flags.to_be_bytes(), &command.to_be_bytes()].concat();
    bytes.extend(input.u64().to_be_bytes());
    bytes.extend(offset.to_be_bytes());
    bytes.extend(&length.to_be_bytes()[if extended { 0 } else { 4 }..]);
    bytes
}

/// The header, when the connection can go on; each shorter piece says nothing else than the whole.
fn parse_in_pieces(terms: &Terms, bytes: &[u8]) -> Option<Header> {
    assert_eq!(bytes.len(), header_len(terms.mode));
    let whole = parse_header(terms, bytes);
    for len in 0..bytes.len() {
        match parse_header(terms, &bytes[..len]) {
            Ok(None) => assert!(len < 4 || !matches!(whole, Err(Fatal::BadMagic(_))), "a wrong magic waits at {len}"),
            Err(Fatal::BadMagic(magic)) => assert_eq!((len >= 4, &whole), (true, &Err(Fatal::BadMagic(magic)))),
            other => panic!("{len} bytes of a header are {other:?}"),
        }
    }
    match whole {
        Ok(header) => {
            let header = header.expect("a whole header is enough");
            assert_eq!(encode(terms.mode, &header), bytes, "every bit of the header is kept");
            assert!(header.payload_len(terms.mode) <= c::PAYLOAD_DRAIN_MAX.max(terms.max_payload.into()));
            Some(header)
        }
        Err(fatal) => {
            note(std::mem::discriminant(&fatal));
            None
        }
    }
}

fn encode(mode: Mode, header: &Header) -> Vec<u8> {
    let extended = mode == Mode::Extended;
    let magic = if extended { c::EXTENDED_REQUEST_MAGIC } else { c::REQUEST_MAGIC };
    let mut bytes = magic.to_be_bytes().to_vec();
    bytes.extend(header.flags.to_be_bytes());
    bytes.extend(header.command.to_be_bytes());
    bytes.extend(header.cookie.to_be_bytes());
    bytes.extend(header.offset.to_be_bytes());
    bytes.extend(&header.length.to_be_bytes()[if extended { 0 } else { 4 }..]);
    bytes
}

fn judge(terms: &Terms, header: &Header, input: &mut Input<'_>) {
    let verdict = validate(terms, header);
    let outcome = verdict.map(|request| std::mem::discriminant(&request)).map_err(|reject| reject.message);
    note((header.command.min(9), header.flags & 0x3f, outcome));
    note((format!("{:?}", terms.mode), header.command.min(9), outcome));
    let to = header.reply_to(terms.mode);
    let request = match verdict {
        Ok(request) => request,
        Err(reject) => {
            let mut out = Vec::new();
            reply::error(to, reject.error, reject.message, &mut out);
            assert_eq!(read_reply(terms.mode, header, &out, 0), Some(reject.error.code()));
            return;
        }
    };
    let (range, most) = match request {
        Request::Read { range, .. } | Request::Write { range, .. } => (range, u64::from(terms.max_payload)),
        Request::Trim { range, .. } | Request::WriteZeroes { range, .. } => (range, u64::MAX),
        Request::Cache { range } | Request::BlockStatus { range, .. } => (range, u64::MAX),
        Request::Flush | Request::Nothing => (ByteRange::default(), 0),
        Request::Disconnect => {
            assert_eq!(header.command, c::CMD_DISC);
            return;
        }
    };
    let block = u64::from(terms.min_block);
    assert!(range.end() <= terms.size && range.len() <= most, "{request:?} under {terms:?}");
    assert!(range.start().is_multiple_of(block) && range.len().is_multiple_of(block), "{request:?} under {terms:?}");
    if !range.is_empty() {
        assert_eq!((range.start(), range.len()), (header.offset, header.length));
    }
    let changes = matches!(request, Request::Write { .. } | Request::Trim { .. } | Request::WriteZeroes { .. });
    assert!(!(changes && terms.read_only), "a read-only export is changed");
    if let Request::Write { range, .. } = request {
        assert_eq!(range.len(), header.payload_len(terms.mode), "the payload is as long as the range");
    }
    let mut out = Vec::new();
    let mut data = 0;
    match request {
        Request::Read { range, .. } => {
            out.extend(reply::read(to, range).as_slice());
            data = range.len();
        }
        Request::BlockStatus { range, req_one } => {
            assert!(terms.contexts.allocation, "a context is in force");
            let mut extents = Extents::new(range.len(), req_one);
            let mut more = true;
            while more && !input.is_empty() {
                more =
                    extents.push(input.number(), input.pick(&[Allocation::Data, Allocation::Zero, Allocation::Hole]));
            }
            let told: u64 = extents.as_slice().iter().map(|extent| extent.len).sum();
            assert!(told <= range.len() && (!req_one || extents.as_slice().len() <= 1));
            if extents.as_slice().is_empty() {
                return;
            }
            reply::block_status(to, &extents, &mut out);
        }
        Request::Nothing => out.extend(reply::nothing(to).as_slice()),
        _ => out.extend(reply::success(to).as_slice()),
    }
    assert_eq!(read_reply(terms.mode, header, &out, data), None, "success is told");
}

/// Reads one reply as a client would, `data` bytes of read data behind it, and nothing more; the error it tells, if any.
fn read_reply(mode: Mode, header: &Header, bytes: &[u8], data: u64) -> Option<u32> {
    let arrived = u64::try_from(bytes.len()).expect("64 bits") + data;
    let be = |range: std::ops::Range<usize>| bytes[range].iter().fold(0u64, |n, &byte| n << 8 | u64::from(byte));
    let magic = u32::try_from(be(0..4)).expect("four bytes");
    let (body, announced): (usize, u64) = match mode {
        Mode::Simple => {
            assert_eq!((magic, be(8..16)), (c::SIMPLE_REPLY_MAGIC, header.cookie));
            let error = u32::try_from(be(4..8)).expect("four bytes");
            let announced = if error == 0 && header.command == c::CMD_READ { header.length } else { 0 };
            assert_eq!(arrived, 16 + announced);
            return (error != 0).then_some(error);
        }
        // Success without data may be told simply in this mode too ("Simple reply message"); everything else may not.
        Mode::Structured if magic == c::SIMPLE_REPLY_MAGIC => {
            assert!(!matches!(header.command, c::CMD_READ | c::CMD_BLOCK_STATUS), "data comes in chunks");
            assert_eq!((be(4..8), be(8..16), arrived), (0, header.cookie, 16));
            return None;
        }
        Mode::Structured => {
            assert_eq!((magic, be(8..16)), (c::STRUCTURED_REPLY_MAGIC, header.cookie));
            (20, be(16..20))
        }
        Mode::Extended => {
            let at = (c::EXTENDED_REPLY_MAGIC, header.cookie, header.offset);
            assert_eq!((magic, be(8..16), be(16..24)), at);
            (32, be(24..32))
        }
    };
    assert_eq!(arrived, u64::try_from(body).expect("64 bits") + announced, "the chunk is as long as it says");
    assert_eq!(be(4..6), u64::from(c::REPLY_FLAG_DONE), "one chunk is the whole reply");
    let failed = be(6..8) == u64::from(c::REPLY_TYPE_ERROR);
    failed.then(|| {
        assert_eq!(be(body + 4..body + 6), u64::try_from(bytes.len() - body - 6).expect("64 bits"));
        u32::try_from(be(body..body + 4)).expect("four bytes")
    })
}
