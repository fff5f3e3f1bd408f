//! The hello: golden bytes, and every reason to refuse one.

use crate::golden;
use proptest::prelude::*;
use repblk::units::{ClusterId, DiskInstance, VolumeId};
use repblk::wire::hello::{BODY_LEN_MAX, PREFIX_LEN, VERSION_MAX, VERSION_MIN};
use repblk::wire::{Hello, HelloError};

fn hello() -> Hello {
    Hello {
        cluster_name: "plant-3".into(),
        cluster: ClusterId(0x00c1),
        volume_name: "mes".into(),
        volume: VolumeId(0x0701),
        instance: DiskInstance(0xd15c),
        node: "alpha".into(),
        size: 1 << 30,
        nonce: 0x5eed,
        refusal: String::new(),
    }
}

fn read(bytes: &[u8]) -> Result<Hello, HelloError> {
    let (prefix, body) = bytes.split_first_chunk::<PREFIX_LEN>().expect("the fixed part is there");
    let prefix = Hello::prefix(prefix)?;
    Hello::decode(&prefix, &body[..prefix.body_len.min(body.len())])
}

/// The bytes with another value in the fixed part, under a right checksum.
fn with(mut bytes: Vec<u8>, at: usize, value: &[u8]) -> Vec<u8> {
    bytes[at..at + value.len()].copy_from_slice(value);
    let crc = crc32fast::hash(&bytes[..20]);
    bytes[20..24].copy_from_slice(&crc.to_le_bytes());
    bytes
}

fn with_body(body: &[u8]) -> Vec<u8> {
    let mut bytes = hello().encode()[..PREFIX_LEN].to_vec();
    bytes.extend_from_slice(body);
    let bytes = with(bytes, 12, &u32::try_from(body.len()).expect("small").to_le_bytes());
    with(bytes, 16, &crc32fast::hash(body).to_le_bytes())
}

#[test]
fn it_keeps_its_bytes() {
    let bytes = golden::check("wire/hello.hex", &hello().encode());
    assert_eq!(read(&bytes), Ok(hello()));
}

#[test]
fn every_flipped_bit_is_found() {
    let bytes = hello().encode();
    for bit in 0..bytes.len() * 8 {
        let mut damaged = bytes.clone();
        damaged[bit / 8] ^= 1 << (bit % 8);
        let expected = if bit < 64 { HelloError::Magic } else { HelloError::Checksum };
        assert_eq!(read(&damaged), Err(expected), "bit {bit}");
    }
}

#[test]
fn something_else_on_the_port_is_told_apart() {
    let mut bytes = hello().encode();
    bytes[..PREFIX_LEN].copy_from_slice(b"HTTP/1.1 400 Bad Request");
    assert_eq!(read(&bytes), Err(HelloError::Magic));
}

#[test]
fn versions_must_meet() {
    let offer = |min: u16, max: u16| {
        let bytes = with(hello().encode(), 8, &min.to_le_bytes());
        let bytes = with(bytes, 10, &max.to_le_bytes());
        Hello::prefix(bytes[..PREFIX_LEN].try_into().expect("long enough")).map(|prefix| prefix.version)
    };
    assert_eq!(offer(VERSION_MIN, VERSION_MAX), Ok(VERSION_MAX));
    assert_eq!(offer(0, VERSION_MIN), Ok(VERSION_MIN), "the highest that both speak");
    assert_eq!(offer(VERSION_MAX, u16::MAX), Ok(VERSION_MAX));
    for (min, max) in [(VERSION_MAX + 1, VERSION_MAX + 1), (0, VERSION_MIN - 1), (VERSION_MAX, VERSION_MIN - 1)] {
        assert_eq!(offer(min, max), Err(HelloError::Version { their_min: min, their_max: max }));
    }
}

#[test]
fn a_long_body_is_refused_before_it_is_awaited() {
    for len in [BODY_LEN_MAX + 1, usize::try_from(u32::MAX).expect("usize has at least 32 bits")] {
        let bytes = with(hello().encode(), 12, &u32::try_from(len).expect("chosen so").to_le_bytes());
        assert_eq!(read(&bytes), Err(HelloError::Length { len }));
    }
    let longest = with_body(&[0; BODY_LEN_MAX]);
    assert_eq!(read(&longest), Err(HelloError::Body), "this length is allowed, these bytes are no hello");
}

#[test]
fn the_body_is_read_whole_or_not_at_all() {
    let body = hello().encode().split_off(PREFIX_LEN);
    assert_eq!(read(&with_body(&body)), Ok(hello()));
    for cut in 0..body.len() {
        assert_eq!(read(&with_body(&body[..cut])), Err(HelloError::Body), "cut to {cut} bytes");
    }
    let longer = [&body[..], &[0]].concat();
    assert_eq!(read(&with_body(&longer)), Err(HelloError::Body), "a byte too many");
}

/// Found while the fuzz targets were written: one hello had many forms.
#[test]
fn an_integer_that_is_longer_than_it_needs_to_be_is_refused() {
    let body = hello().encode()[PREFIX_LEN..].to_vec();
    assert_eq!(body[0], 7, "the length of the cluster's name");
    let longer = [&[251, 7, 0], &body[1..]].concat();
    assert_eq!(read(&with_body(&longer)), Err(HelloError::Body));
}

#[test]
fn both_sides_come_to_the_same_connection_and_no_attempt_to_the_same_twice() {
    let mut other = hello();
    (other.instance, other.node, other.nonce) = (DiskInstance(0xd15d), "beta".into(), 77);
    let first = hello().connection(&other);
    assert_eq!(first, other.connection(&hello()));
    assert!(first.is_some());
    let mut again = hello();
    again.nonce += 2;
    assert_ne!(again.connection(&other), first);
}

proptest! {
    #[test]
    fn what_is_sent_is_what_is_received(
        names in proptest::array::uniform4("\\PC{0,40}"),
        ids in proptest::array::uniform3(any::<u128>()),
        size in any::<u64>(),
        nonce in any::<u64>(),
    ) {
        let [cluster_name, volume_name, node, refusal] = names;
        let [cluster, volume, instance] = ids;
        let hello = Hello {
            cluster_name,
            cluster: ClusterId(cluster),
            volume_name,
            volume: VolumeId(volume),
            instance: DiskInstance(instance),
            node,
            size,
            nonce,
            refusal,
        };
        prop_assert_eq!(read(&hello.encode()), Ok(hello));
    }

    #[test]
    fn garbage_never_panics(mut bytes in proptest::collection::vec(any::<u8>(), PREFIX_LEN..200), level in 0..4) {
        if level > 0 {
            bytes[..8].copy_from_slice(b"REPBLK\r\n");
        }
        if level > 1 {
            bytes[8..12].copy_from_slice(&[1, 0, 1, 0]);
            bytes = with(bytes, 14, &[0, 0]);
        }
        if level > 2 {
            let body = bytes.split_off(PREFIX_LEN);
            bytes = with_body(&body);
        }
        let _ = read(&bytes);
    }
}
