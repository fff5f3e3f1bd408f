//! The frame: what it refuses, and under which name.

use crate::wire_messages::{CONNECTION, HEADER_LEN, TERM, forge, receive, seal, stream, vectors};
use proptest::prelude::*;
use repblk::units::ConnectionId;
use repblk::wire::{FrameError, FrameReader, FrameWriter, Message};

const PING: u16 = 25;
const WRITE: u16 = 3;
const BITMAP_PAGE: u16 = 9;
const GREETING: u16 = 1;

#[test]
fn every_flipped_bit_is_found() {
    for (name, messages) in vectors() {
        for message in messages {
            let frame = stream(&[message]);
            for bit in 0..frame.len() * 8 {
                let mut damaged = frame.clone();
                damaged[bit / 8] ^= 1 << (bit % 8);
                let refused = receive(&damaged).expect_err("a damaged frame is refused");
                let right = match bit / 8 {
                    0..4 => matches!(refused, FrameError::Magic { .. }),
                    4..HEADER_LEN => matches!(refused, FrameError::HeaderChecksum { .. }),
                    _ => matches!(refused, FrameError::BodyChecksum { number: 0, .. }),
                };
                assert!(right, "{name}, bit {bit}: {refused}");
            }
        }
    }
}

#[test]
fn a_cut_stream_gives_the_frames_before_the_cut() {
    let messages: Vec<_> = vectors().into_iter().flat_map(|(_, messages)| messages).collect();
    let mut ends = vec![0];
    for i in 0..messages.len() {
        ends.push(stream(&messages[..=i]).len());
    }
    let bytes = stream(&messages);
    for cut in (0..bytes.len()).step_by(7).chain(ends.iter().copied()) {
        let whole = ends.iter().filter(|&&end| end > 0 && end <= cut).count();
        assert_eq!(receive(&bytes[..cut]).expect("a cut is no damage"), messages[..whole]);
    }
}

#[test]
fn a_frame_of_another_connection_is_refused() {
    let mut frame = forge(PING, 0, [0; 3], &[]);
    frame[8..16].copy_from_slice(&(CONNECTION.0 + 1).to_le_bytes());
    seal(&mut frame);
    let found = ConnectionId(CONNECTION.0 + 1);
    assert_eq!(receive(&frame), Err(FrameError::Connection { found, expected: CONNECTION }));
}

#[test]
fn lost_doubled_and_reordered_frames_are_refused() {
    let mut frames = Vec::new();
    let mut writer = FrameWriter::new(CONNECTION);
    for _ in 0..3 {
        let mut frame = Vec::new();
        writer.encode(TERM, &Message::Ping, &[], &mut frame);
        frames.push(frame);
    }
    let read = |order: &[usize]| receive(&order.iter().flat_map(|&i| frames[i].clone()).collect::<Vec<u8>>());
    assert_eq!(read(&[0, 1, 2]).map(|messages| messages.len()), Ok(3));
    assert_eq!(read(&[0, 2]), Err(FrameError::Number { found: 2, expected: 1 }), "lost");
    assert_eq!(read(&[0, 0]), Err(FrameError::Number { found: 0, expected: 1 }), "doubled");
    assert_eq!(read(&[1, 0]), Err(FrameError::Number { found: 1, expected: 0 }), "reordered");
}

#[test]
fn reserved_bytes_must_be_zero() {
    for at in 64..68 {
        let mut frame = forge(PING, 0, [0; 3], &[]);
        frame[at] = 1;
        seal(&mut frame);
        let expected = FrameError::Malformed { kind: PING, why: "reserved bytes are not zero" };
        assert_eq!(receive(&frame), Err(expected));
    }
}

#[test]
fn a_body_longer_than_its_kind_allows_is_refused_before_it_is_awaited() {
    let cases = [(PING, 1, 0), (WRITE, (1 << 20) + 1, 1 << 20), (BITMAP_PAGE, 4097, 4096), (GREETING, 1025, 1024)];
    for (kind, announced, allowed) in cases {
        for len in [announced, u32::MAX] {
            let mut frame = forge(kind, 0, [0; 3], &[]);
            frame[56..60].copy_from_slice(&len.to_le_bytes());
            seal(&mut frame);
            let len = usize::try_from(len).expect("usize has at least 32 bits");
            assert_eq!(receive(&frame), Err(FrameError::BodyLength { len, max: allowed }));
        }
    }
}

#[test]
fn unknown_kinds_are_refused() {
    for kind in (0..=u16::MAX).filter(|&kind| Message::body_len_max(kind).is_none()) {
        let expected = FrameError::Malformed { kind, why: "unknown kind" };
        assert_eq!(receive(&forge(kind, 0, [0; 3], &[])), Err(expected));
    }
}

#[test]
fn a_header_tells_the_term_and_a_number_for_each_frame() {
    let bytes = stream(&[(Message::Ping, vec![]), (Message::Pong, vec![])]);
    let mut reader = FrameReader::new(CONNECTION);
    for (number, frame) in bytes.chunks_exact(HEADER_LEN).enumerate() {
        let header = reader.header(frame.try_into().expect("a header long")).expect("valid");
        assert_eq!((header.term, header.number, header.body_len), (TERM, number as u64, 0));
    }
}

proptest! {
    #[test]
    fn garbage_is_refused(bytes in proptest::collection::vec(any::<u8>(), HEADER_LEN..300)) {
        prop_assert!(receive(&bytes).is_err());
    }

    #[test]
    fn garbage_behind_the_right_magic_is_refused(mut bytes in proptest::collection::vec(any::<u8>(), HEADER_LEN..300)) {
        bytes[0..4].copy_from_slice(b"RBF1");
        prop_assert!(receive(&bytes).is_err());
    }

    #[test]
    fn garbage_under_a_right_header_checksum_never_panics(
        mut bytes in proptest::collection::vec(any::<u8>(), HEADER_LEN..300),
        fits in any::<bool>(),
    ) {
        bytes[0..4].copy_from_slice(b"RBF1");
        if fits {
            bytes[8..16].copy_from_slice(&CONNECTION.0.to_le_bytes());
            bytes[24..32].fill(0);
            bytes[64..68].fill(0);
        }
        seal(&mut bytes);
        let _ = receive(&bytes);
    }
}
