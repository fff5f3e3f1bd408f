//! Peer frames: headers and bodies as they come, with the checksums made right or left wrong.
//!
//! Input: frames, each a byte of switches and its header's and body's bytes.

use super::input::Input;
use super::notes::{note, note_text};
use super::pages::disk_state;
use super::rng::Rng;
use repblk::condition::{Continuity, Mode, Role};
use repblk::generation::Lineage;
use repblk::meta::Bitmap;
use repblk::units::{BLOCK_SIZE, ConnectionId, DiskInstance, GenerationId, Term};
use repblk::wire::Message;
use repblk::wire::frame::{BODY_LEN_MAX, FrameError, FrameHeader, FrameReader, FrameWriter, HEADER_LEN, MAGIC};
use repblk::wire::message::Greeting;

const CONNECTION: ConnectionId = ConnectionId(7);
const FRAMES_MAX: usize = 16;
/// Blocks of the device whose bitmap pages may come.
const BLOCKS: u64 = 40_000;

pub fn run(data: &[u8]) {
    let mut input = Input::new(data);
    let mut rng = input.rng();
    let mut reader = FrameReader::new(CONNECTION);
    let mut writer = FrameWriter::new(CONNECTION);
    for number in 0..FRAMES_MAX {
        if input.is_empty() {
            return;
        }
        let (header, body) = frame(&mut input, u64::try_from(number).expect("few"));
        let checked = match reader.header(&header) {
            Ok(checked) => checked,
            Err(error) => return refused(&header, &error),
        };
        let max = Message::body_len_max(checked.kind).expect("only known kinds pass");
        assert!(checked.body_len <= max && max <= BODY_LEN_MAX, "{checked:?}");
        if checked.body_len != body.len() {
            // The stream ends within the body.
            return;
        }
        let message = match checked.decode(&body) {
            Ok(message) => message,
            Err(error) => return refused(&header, &error),
        };
        note((checked.kind, checked.flags, body.len().min(1)));
        let again = encode(&mut writer, checked.term, &message, &body);
        assert_eq!(again, [&header[..], &body].concat(), "one message has one form: {message:?}");
        one_flipped_bit(&mut rng, &checked, &message, &body);
        if let Message::BitmapPage { index } = message {
            merge(index, &body);
        }
    }
}

/// The header and the body of a frame that the input describes.
fn frame(input: &mut Input<'_>, number: u64) -> ([u8; HEADER_LEN], Vec<u8>) {
    let switches = input.u8();
    let mut header = [0; HEADER_LEN];
    if switches & 1 == 0 {
        let kind = if switches & 2 == 0 { u16::from(input.u8() % 32) } else { input.u16() };
        header[4..6].copy_from_slice(&kind.to_le_bytes());
        header[6..8].copy_from_slice(&(input.u16() & 0x0103).to_le_bytes());
        header[16..24].copy_from_slice(&input.number().to_le_bytes());
        let args = [input.number(), input.number(), input.number()];
        for (i, arg) in args.iter().enumerate() {
            header[32 + 8 * i..40 + 8 * i].copy_from_slice(&arg.to_le_bytes());
        }
        let len = usize::from(input.u16() % 4200);
        header[56..60].copy_from_slice(&u32::try_from(len).expect("short").to_le_bytes());
    } else {
        let bytes = input.bytes(HEADER_LEN);
        header[..bytes.len()].copy_from_slice(bytes);
    }
    let announced = usize::try_from(u32::from_le_bytes([header[56], header[57], header[58], header[59]]));
    let mut body = input.bytes(announced.expect("64 bits").min(8192)).to_vec();
    if switches & 0x84 == 0x80 && input.u8() & 1 == 0 {
        // A greeting is the one body with fields.
        header[4..6].copy_from_slice(&1u16.to_le_bytes());
        header[32..56].fill(0);
        body = greeting(input);
        header[56..60].copy_from_slice(&u32::try_from(body.len()).expect("short").to_le_bytes());
    } else if switches & 4 == 0 {
        // A body cut by the end of the input is filled up, so that small inputs make whole frames.
        let short = u32::from_le_bytes([header[56], header[57], header[58], header[59]]).min(8192);
        body.resize(usize::try_from(short).expect("64 bits"), switches);
    }
    if switches & 8 == 0 {
        header[60..64].copy_from_slice(&crc32fast::hash(&body).to_le_bytes());
    }
    if switches & 16 == 0 {
        header[0..4].copy_from_slice(&MAGIC.to_le_bytes());
        header[8..16].copy_from_slice(&CONNECTION.0.to_le_bytes());
        header[24..32].copy_from_slice(&number.to_le_bytes());
    }
    if switches & 32 == 0 {
        header[64..68].fill(0);
    }
    if switches & 64 == 0 {
        let crc = crc32fast::hash(&header[..68]);
        header[68..].copy_from_slice(&crc.to_le_bytes());
    }
    (header, body)
}

/// The body of a greeting, perhaps with a changed byte.
fn greeting(input: &mut Input<'_>) -> Vec<u8> {
    let mut lineage = Lineage::default();
    for _ in 0..input.u8() & 3 {
        let next = GenerationId(input.number().max(1));
        if next != lineage.current {
            lineage.advance(next);
        }
    }
    let greeting = Greeting {
        instance: DiskInstance(input.number().into()),
        lineage,
        base_for_you: GenerationId(input.number()),
        dirty_blocks: input.number(),
        full: input.flag(),
        disk: disk_state(input),
        role: input.pick(&[Role::Primary, Role::Secondary]),
        term: Term(input.number()),
        mode: input.pick(&[Mode::Sync, Mode::SemiSync, Mode::Async]),
        was_primary: input.flag(),
        discard: input.flag(),
        continuity: input.pick(&[Continuity::Clean, Continuity::SameBoot, Continuity::Lost]),
    };
    let mut bytes = Vec::new();
    FrameWriter::new(CONNECTION).encode(Term(0), &Message::Greeting(Box::new(greeting)), &[], &mut bytes);
    let mut body = bytes.split_off(HEADER_LEN);
    match input.u8() & 3 {
        0 => {}
        // An integer in a longer form than it needs: a marker, and the same number in two bytes.
        1 => {
            let at = input.index(body.len());
            if body[at] <= 250 {
                let small = body[at];
                drop(body.splice(at..=at, [251, small, 0]));
            }
        }
        _ => {
            let at = input.index(body.len());
            body[at] = input.u8();
        }
    }
    body
}

fn refused(header: &[u8; HEADER_LEN], error: &FrameError) {
    note_text("refused", &error.to_string());
    if matches!(error, FrameError::Malformed { .. }) {
        note((header[4].min(32), std::mem::discriminant(error)));
    }
}

fn encode(writer: &mut FrameWriter, term: Term, message: &Message, body: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    let payload = if message.carries_payload() { body } else { &[] };
    writer.encode(term, message, payload, &mut bytes);
    bytes.extend(payload);
    bytes
}

/// A frame with one bit changed on the way is refused, by its header or by its body.
fn one_flipped_bit(rng: &mut Rng, checked: &FrameHeader, message: &Message, body: &[u8]) {
    let mut bytes = encode(&mut FrameWriter::new(CONNECTION), checked.term, message, body);
    let bit = rng.index(bytes.len() * 8);
    bytes[bit / 8] ^= 1 << (bit % 8);
    let (header, body) = bytes.split_first_chunk().expect("a header is there");
    let read = FrameReader::new(CONNECTION).header(header).and_then(|header| header.decode(body));
    assert!(read.is_err(), "bit {bit} is flipped and nobody sees it: {read:?}");
}

/// A page of the peer's bitmap is merged whole or not at all.
fn merge(index: u64, page: &[u8]) {
    let mut bitmap = Bitmap::new(BLOCKS * BLOCK_SIZE);
    let page = page.try_into().expect("the message has a whole page");
    match bitmap.merge_wire_page(index, page) {
        Ok(count) => {
            assert_eq!(bitmap.count(), count);
            let sent_back = bitmap.wire_page(index);
            assert_eq!(sent_back.as_deref().copied().unwrap_or([0; 4096]), *page);
        }
        Err(error) => {
            assert!(bitmap.is_empty(), "a refused page changes nothing");
            note_text("bitmap", &error.to_string());
        }
    }
}
