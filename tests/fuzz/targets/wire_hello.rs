//! The hello of a peer, read as a shell reads it: its fixed part, then as many bytes as that announces.
//!
//! Input: a byte of switches, and the body as it is, or the fields of a hello.

use super::input::Input;
use super::notes::note_text;
use repblk::units::{ClusterId, DiskInstance, VolumeId};
use repblk::wire::hello::{BODY_LEN_MAX, Hello, HelloError, MAGIC, PREFIX_LEN, VERSION_MAX, VERSION_MIN};

pub fn run(data: &[u8]) {
    let mut input = Input::new(data);
    let switches = input.u8();
    let versions = if switches & 1 == 0 { [VERSION_MIN, VERSION_MAX] } else { [input.u16(), input.u16()] };
    let (mut body, sent) = if switches & 2 == 0 {
        let hello = hello(&mut input);
        let encoded = hello.encode();
        assert!(encoded.len() <= PREFIX_LEN + BODY_LEN_MAX);
        (encoded[PREFIX_LEN..].to_vec(), Some(hello))
    } else {
        (input.rest().to_vec(), None)
    };
    let mut changed = false;
    for _ in 0..input.u8() & 3 {
        let (at, byte) = (usize::from(input.u16()), input.u8());
        if let Some(old) = body.get_mut(at) {
            changed |= std::mem::replace(old, byte) != byte;
        }
    }
    let mut prefix = prefix(versions, &body);
    if switches & 4 != 0 {
        prefix[usize::from(input.u8()) % PREFIX_LEN] ^= input.u8();
    }
    if switches & 8 != 0 {
        let crc = crc32fast::hash(&prefix[..20]);
        prefix[20..].copy_from_slice(&crc.to_le_bytes());
    }
    let read = read(&prefix, &body);
    match (&read, sent) {
        (Ok(read), Some(sent)) if !changed => assert_eq!(*read, sent, "what was said is what is heard"),
        (Err(error), Some(_)) if switches & 0x0d == 0 && !changed => panic!("a good hello is refused: {error}"),
        _ => {}
    }
    if let Ok(heard) = &read {
        assert_eq!(heard.encode()[PREFIX_LEN..], body, "one hello has one form");
        // Two copies never are of one instance; the daemon refuses that.
        let me = Hello { instance: DiskInstance(!heard.instance.0), nonce: 5, ..heard.clone() };
        assert!(me.connection(heard).is_some() && me.connection(heard) == heard.connection(&me));
    }
}

fn read(prefix: &[u8; PREFIX_LEN], body: &[u8]) -> Result<Hello, HelloError> {
    let read = Hello::prefix(prefix).and_then(|prefix| {
        assert!(prefix.body_len <= BODY_LEN_MAX && (VERSION_MIN..=VERSION_MAX).contains(&prefix.version));
        Hello::decode(&prefix, &body[..prefix.body_len.min(body.len())])
    });
    if let Err(error) = &read {
        note_text("refused", &error.to_string());
    }
    read
}

fn prefix(versions: [u16; 2], body: &[u8]) -> [u8; PREFIX_LEN] {
    let mut prefix = [0; PREFIX_LEN];
    prefix[..8].copy_from_slice(&MAGIC);
    prefix[8..10].copy_from_slice(&versions[0].to_le_bytes());
    prefix[10..12].copy_from_slice(&versions[1].to_le_bytes());
    prefix[12..16].copy_from_slice(&u32::try_from(body.len()).expect("short").to_le_bytes());
    prefix[16..20].copy_from_slice(&crc32fast::hash(body).to_le_bytes());
    let crc = crc32fast::hash(&prefix[..20]);
    prefix[20..].copy_from_slice(&crc.to_le_bytes());
    prefix
}

fn hello(input: &mut Input<'_>) -> Hello {
    let wide = |input: &mut Input<'_>| u128::from(input.number()) << 64 | u128::from(input.number());
    Hello {
        cluster_name: text(input, 63),
        cluster: ClusterId(wide(input)),
        volume_name: text(input, 63),
        volume: VolumeId(wide(input)),
        instance: DiskInstance(wide(input)),
        node: text(input, 63),
        size: input.number(),
        nonce: input.number(),
        refusal: text(input, 255),
    }
}

fn text(input: &mut Input<'_>, max: usize) -> String {
    let len = usize::from(input.u8()).min(max);
    let text: String = input.bytes(len).iter().map(|&byte| char::from(byte & 0x7f)).collect();
    text
}
