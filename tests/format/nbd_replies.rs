//! NBD replies, byte for byte, in all three forms.

use repblk::nbd::{Allocation, Extents, Head, Mode, NbdError, ReplyTo, reply};
use repblk::units::ByteRange;

const COOKIE: [u8; 8] = *b"\x01\x02\x03\x04\x05\x06\x07\x08";
const OFFSET: [u8; 8] = [0, 0, 0, 1, 0, 0, 0x10, 0];
const RANGE_START: u64 = 0x1_0000_1000;

fn to(mode: Mode) -> ReplyTo {
    ReplyTo { mode, cookie: u64::from_be_bytes(COOKIE), offset: RANGE_START }
}

fn structured(flags: u16, kind: u16, payload: &[u8], carried: u32) -> Vec<u8> {
    let length = u32::try_from(payload.len()).expect("short") + carried;
    [&[0x66, 0x8e, 0x33, 0xef], &flags.to_be_bytes()[..], &kind.to_be_bytes(), &COOKIE, &length.to_be_bytes(), payload]
        .concat()
}

fn extended(flags: u16, kind: u16, payload: &[u8], carried: u64) -> Vec<u8> {
    let length = u64::try_from(payload.len()).expect("short") + carried;
    let start = [&[0x6e, 0x8a, 0x27, 0x8c], &flags.to_be_bytes()[..], &kind.to_be_bytes()].concat();
    [&start[..], &COOKIE, &OFFSET, &length.to_be_bytes(), payload].concat()
}

fn bytes(head: Head) -> Vec<u8> {
    head.as_slice().to_vec()
}

fn simple(error: u8) -> Vec<u8> {
    [&[0x67, 0x44, 0x66, 0x98, 0, 0, 0, error], &COOKIE[..]].concat()
}

#[test]
fn success_without_data() {
    assert_eq!(bytes(reply::success(to(Mode::Simple))), simple(0));
    assert_eq!(bytes(reply::success(to(Mode::Structured))), simple(0));
    assert_eq!(bytes(reply::success(to(Mode::Extended))), extended(1, 0, &[], 0));
    assert_eq!(reply::success(to(Mode::Extended)).as_slice().len(), 32);
}

/// A read is answered with a chunk even if it asks for nothing.
#[test]
fn success_with_no_bytes() {
    assert_eq!(bytes(reply::nothing(to(Mode::Simple))), simple(0));
    assert_eq!(bytes(reply::nothing(to(Mode::Structured))), structured(1, 0, &[], 0));
    assert_eq!(bytes(reply::nothing(to(Mode::Extended))), extended(1, 0, &[], 0));
    assert_eq!(reply::nothing(to(Mode::Structured)).as_slice().len(), 20);
}

#[test]
fn a_read_is_one_final_chunk() {
    let range = ByteRange::new(RANGE_START, 4096);
    assert_eq!(bytes(reply::read(to(Mode::Simple), range)), simple(0));
    assert_eq!(bytes(reply::read(to(Mode::Structured), range)), structured(1, 1, &OFFSET, 4096));
    assert_eq!(bytes(reply::read(to(Mode::Extended), range)), extended(1, 1, &OFFSET, 4096));
}

#[test]
fn a_read_in_pieces_tells_data_from_holes() {
    let range = ByteRange::new(RANGE_START + 0x1000, 0x200);
    let at = [0, 0, 0, 1, 0, 0, 0x20, 0];
    assert_eq!(bytes(reply::data_chunk(to(Mode::Structured), range, false)), structured(0, 1, &at, 0x200));
    assert_eq!(bytes(reply::data_chunk(to(Mode::Extended), range, true)), extended(1, 1, &at, 0x200));
    let hole = [&at[..], &[0, 0, 2, 0]].concat();
    assert_eq!(bytes(reply::hole_chunk(to(Mode::Structured), range, true)), structured(1, 2, &hole, 0));
    let head = reply::hole_chunk(to(Mode::Extended), range, false);
    assert_eq!(bytes(head), extended(0, 2, &hole, 0));
    assert_eq!(head.as_slice().len(), Head::CAPACITY);
}

#[test]
fn an_error_carries_its_sentence() {
    let encode = |mode, message: &str| {
        let mut out = b"before".to_vec();
        reply::error(to(mode), NbdError::NoSpace, message, &mut out);
        out.split_off(6)
    };
    assert_eq!(encode(Mode::Simple, "full"), simple(28));
    let payload = b"\x00\x00\x00\x1c\x00\x04full";
    assert_eq!(encode(Mode::Structured, "full"), structured(1, 0x8001, payload, 0));
    assert_eq!(encode(Mode::Extended, "full"), extended(1, 0x8001, payload, 0));
    assert_eq!(
        encode(Mode::Structured, ""),
        structured(1, 0x8001, &payload[..4].iter().copied().chain([0, 0]).collect::<Vec<_>>(), 0)
    );
    assert_eq!(encode(Mode::Extended, &"x".repeat(70_000)).len(), 32 + 6 + 4096);
}

#[test]
fn a_status_lists_extents() {
    let mut extents = Extents::new(0x3000, false);
    extents.push(0x1000, Allocation::Data);
    extents.push(0x1000, Allocation::Hole);
    extents.push(0x9000, Allocation::Zero);
    let mut out = Vec::new();
    reply::block_status(to(Mode::Structured), &extents, &mut out);
    let payload = [0, 0, 0, 1, 0, 0, 0x10, 0, 0, 0, 0, 0, 0, 0, 0x10, 0, 0, 0, 0, 3, 0, 0, 0x10, 0, 0, 0, 0, 2];
    assert_eq!(out, structured(1, 5, &payload, 0));
    out.clear();
    reply::block_status(to(Mode::Extended), &extents, &mut out);
    let wide: Vec<u8> = payload[4..].chunks(4).flat_map(|word| [&[0; 4], word].concat()).collect();
    assert_eq!(out, extended(1, 6, &[&[0, 0, 0, 1, 0, 0, 0, 3], &wide[..]].concat(), 0));
}

#[test]
fn a_wide_status_keeps_its_64_bits() {
    let mut extents = Extents::new(1 << 40, true);
    extents.push(1 << 41, Allocation::Hole);
    let mut out = Vec::new();
    reply::block_status(to(Mode::Extended), &extents, &mut out);
    assert_eq!(out[40..], [0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 3]);
}
