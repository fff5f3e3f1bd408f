//! NBD negotiation: whatever a client sends, in whatever pieces, in the clear and over TLS.
//!
//! Input: a byte of switches, then the client's bytes as they are, or options to be assembled with right magic numbers
//! and lengths. The oracle reads both sides of the conversation with a parser of its own.

use super::input::Input;
use super::notes::{note, note_text};
use repblk::nbd::constants as c;
use repblk::nbd::{
    ExportInfo, ExportListing, ExportRefusal, Exports, Handover, MetaContexts, Mode, Negotiation, Next, RefusalCode,
    Tls,
};
use std::cell::Cell;

/// More than any one answer of [`House`] can take.
const ANSWER_MAX: usize = 4096;

/// Two exports, and one that is refused.
struct House {
    shutting_down: bool,
    tls: Tls,
    /// How often it was asked for an export or for the list.
    asked: Cell<u32>,
}

impl Exports for House {
    fn find(&self, name: &[u8]) -> Result<ExportInfo, ExportRefusal> {
        self.asked.set(self.asked.get() + 1);
        match name {
            b"" | b"mes" => Ok(ExportInfo { description: "plant".into(), ..ExportInfo::new("mes", 1 << 30) }),
            b"logs" => Ok(ExportInfo { read_only: true, min_block: 512, ..ExportInfo::new("logs", 1 << 20) }),
            b"other" => Err(ExportRefusal { code: RefusalCode::Policy, message: "node b is primary".into() }),
            _ => Err(ExportRefusal { code: RefusalCode::Unknown, message: "no such export".into() }),
        }
    }

    fn list(&self) -> Vec<ExportListing> {
        self.asked.set(self.asked.get() + 1);
        ["mes", "logs"].map(|name| ExportListing { name: name.into(), description: "primary".into() }).into()
    }

    fn shutting_down(&self) -> bool {
        self.shutting_down
    }
}

pub fn run(data: &[u8]) {
    let mut input = Input::new(data);
    let switches = input.u8();
    let tls = [Tls::Off, Tls::Allowed, Tls::Required, Tls::Spoken][usize::from(switches >> 2 & 3)];
    let house = House { shutting_down: switches & 2 != 0, tls, asked: Cell::new(0) };
    let mut rng = input.rng();
    let stream = if switches & 1 == 0 { assemble(&mut input) } else { input.rest().to_vec() };

    let whole = converse(&stream, &house, |_, left| left);
    // A shell that reads what it is told to read holds no byte of the transmission phase.
    let asked = converse(&stream, &house, |wanted, left| wanted.min(left));
    assert_eq!(asked.fed, asked.consumed, "exactly what was wanted was fed");
    let step = if stream.len() > 4096 { 977 } else { 1 };
    let small = converse(&stream, &house, |_, left| left.min(step));
    let split = converse(&stream, &house, |_, left| 1 + rng.index(left));
    for other in [&asked, &small, &split] {
        assert_eq!(other.out, whole.out, "the answer does not depend on how the bytes come");
        assert_eq!((other.consumed, &other.end), (whole.consumed, &whole.end));
    }
    judge(&stream[..whole.consumed], &whole, &house);
}

/// What came of a client's bytes.
struct Conversation {
    out: Vec<u8>,
    fed: usize,
    consumed: usize,
    /// How it ended; none while more bytes are awaited.
    end: Option<Next>,
}

fn converse(stream: &[u8], house: &House, mut piece: impl FnMut(usize, usize) -> usize) -> Conversation {
    let mut out = Vec::new();
    let mut negotiation = Negotiation::start(&mut out).with_tls(house.tls);
    let mut in_the_clear = house.tls == Tls::Required;
    let (mut consumed, mut fed) = (0, 0);
    while consumed < stream.len() {
        let len = piece(negotiation.wanted(), stream.len() - consumed);
        let (before, asked) = (out.len(), house.asked.get());
        let progress = negotiation.receive(&stream[consumed..consumed + len], house, &mut out);
        assert!((1..=len).contains(&progress.consumed), "{} of {len} bytes consumed", progress.consumed);
        assert!(out.len() - before <= ANSWER_MAX, "a call answers at most one option");
        assert!(!in_the_clear || house.asked.get() == asked, "who must speak TLS and does not is told nothing");
        fed += len;
        consumed += progress.consumed;
        match progress.next {
            Next::StartTls => {
                // What follows came over TLS: a shell that has more by now ends the connection.
                assert_ne!(house.tls, Tls::Off);
                in_the_clear = false;
                fed -= len - progress.consumed;
            }
            Next::Read(wanted) => {
                assert_eq!(wanted, negotiation.wanted());
                assert!((1..=c::OPTION_DATA_MAX).contains(&wanted), "{wanted} bytes wanted");
                // Bytes that were offered and not used are offered again.
                fed -= len - progress.consumed;
            }
            end => return Conversation { out, fed, consumed, end: Some(end) },
        }
    }
    Conversation { out, fed, consumed, end: None }
}

/// One option as the client sent it, whole.
struct Sent<'a> {
    code: u32,
    data: &'a [u8],
}

fn be32(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

/// The options that arrived whole, by the protocol's text alone.
fn options(stream: &[u8]) -> Vec<Sent<'_>> {
    let mut sent = Vec::new();
    let mut rest = stream.get(4..).unwrap_or_default();
    while rest.len() >= 16 && rest[..8] == c::OPTION_MAGIC.to_be_bytes() {
        let (code, len) = (be32(rest, 8), usize::try_from(be32(rest, 12)).expect("32 bits"));
        let Some(data) = rest.get(16..).and_then(|body| body.get(..len)) else { break };
        sent.push(Sent { code, data });
        rest = &rest[16 + len..];
    }
    sent
}

/// What the replies say has been agreed.
#[derive(Default)]
struct Agreed {
    mode: Mode,
    contexts: Option<(String, MetaContexts)>,
}

/// Every option has its one answer, and the end is the one that the answers say.
fn judge(stream: &[u8], talk: &Conversation, house: &House) {
    let mut replies = &talk.out[18..];
    let mut agreed = Agreed::default();
    let (mut handed, mut tls) = (None, house.tls);
    for option in options(stream) {
        assert!(handed.is_none(), "nothing is consumed after the option that ends the negotiation");
        if option.code == c::OPT_EXPORT_NAME {
            assert!(tls != Tls::Required || matches!(talk.end, Some(Next::Close(_))), "nothing is had in the clear");
            let no_zeroes = be32(stream, 0) & c::FLAG_C_NO_ZEROES != 0;
            handed = export_name(option.data, &mut replies, no_zeroes, &agreed, house, &talk.end);
            break;
        }
        if replies.is_empty() {
            // Only a client that is cut off gets no answer.
            assert!(matches!(talk.end, Some(Next::Close(_))), "option {} has no answer", option.code);
            break;
        }
        let (kinds, success) = answer(&mut replies, option.code);
        note((option.code, &kinds));
        if option.code == c::OPT_STARTTLS {
            let may = matches!(tls, Tls::Allowed | Tls::Required) && option.data.is_empty() && !house.shutting_down;
            assert_eq!(success, may, "TLS is begun once, where it is offered");
            if success {
                // What was agreed before may be somebody else's wish.
                (tls, agreed) = (Tls::Spoken, Agreed::default());
                note("tls");
            }
            continue;
        }
        if tls == Tls::Required && option.code != c::OPT_ABORT {
            assert_eq!(kinds, [c::REP_ERR_TLS_REQD]);
            continue;
        }
        agree(&mut agreed, &option, &kinds, success, house);
        if option.code == c::OPT_GO && success {
            handed = Some(handover(&agreed, name_in(option.data), house));
        }
        if option.code == c::OPT_ABORT {
            assert!(success && matches!(talk.end, Some(Next::Close(_))), "ABORT is acknowledged, then it is over");
        }
    }
    assert!(replies.is_empty(), "{} bytes answer nothing that was asked", replies.len());
    match (&talk.end, handed) {
        (Some(Next::Transmission(handover)), Some(expected)) => assert_eq!(**handover, expected),
        (Some(Next::Close(reason)), None) => note_text("close", &reason.to_string()),
        (None, None) => note("open"),
        (end, handed) => panic!("ended in {end:?}, and the replies promised {handed:?}"),
    }
    note((format!("{:?} {tls:?}", agreed.mode), agreed.contexts.is_some(), talk.end.is_some()));
}

/// Takes the answer to option `code`: the kinds of its replies, and whether it succeeded.
fn answer(replies: &mut &[u8], code: u32) -> (Vec<u32>, bool) {
    let mut kinds = Vec::new();
    loop {
        assert!(replies.len() >= 20, "an answer ends in ACK or an error: {kinds:?}");
        assert_eq!(replies[..8], c::OPTION_REPLY_MAGIC.to_be_bytes());
        assert_eq!(be32(replies, 8), code, "the reply names its option");
        let (kind, len) = (be32(replies, 12), usize::try_from(be32(replies, 16)).expect("32 bits"));
        let body = &replies[20..20 + len];
        *replies = &replies[20 + len..];
        kinds.push(kind);
        let error = kind & c::REP_FLAG_ERROR != 0;
        if error {
            assert!(!body.is_empty() && std::str::from_utf8(body).is_ok(), "an error says why");
            return (kinds, false);
        }
        if kind == c::REP_ACK {
            assert!(body.is_empty());
            return (kinds, true);
        }
    }
}

fn agree(agreed: &mut Agreed, option: &Sent<'_>, kinds: &[u32], success: bool, house: &House) {
    assert!(!success || option.code == c::OPT_ABORT || !house.shutting_down, "nothing succeeds while shutting down");
    match option.code {
        c::OPT_STRUCTURED_REPLY if success => {
            assert!(agreed.mode != Mode::Extended, "extended headers are never taken back");
            agreed.mode = Mode::Structured;
        }
        c::OPT_EXTENDED_HEADERS if success => agreed.mode = Mode::Extended,
        c::OPT_SET_META_CONTEXT => {
            assert!(!success || agreed.mode != Mode::Simple, "contexts need structured replies");
            let name = || house.find(name_in(option.data)).expect("an unknown export is refused").name;
            let contexts = MetaContexts { allocation: kinds.contains(&c::REP_META_CONTEXT) };
            agreed.contexts = success.then(|| (name(), contexts));
        }
        _ => {}
    }
}

/// The name behind its length, with which the data of most options begins.
fn name_in(data: &[u8]) -> &[u8] {
    &data[4..4 + usize::try_from(be32(data, 0)).expect("32 bits")]
}

fn handover(agreed: &Agreed, name: &[u8], house: &House) -> Handover {
    let export = house.find(name).expect("only an export that is to be had is handed over");
    let contexts = match &agreed.contexts {
        Some((of, contexts)) if *of == export.name => *contexts,
        _ => MetaContexts::default(),
    };
    Handover { export, mode: agreed.mode, contexts }
}

fn export_name(
    name: &[u8],
    replies: &mut &[u8],
    no_zeroes: bool,
    agreed: &Agreed,
    house: &House,
    end: &Option<Next>,
) -> Option<Handover> {
    if !matches!(end, Some(Next::Transmission(_))) {
        assert!(matches!(end, Some(Next::Close(_))), "EXPORT_NAME always ends the negotiation");
        return None;
    }
    assert!(!house.shutting_down && agreed.mode != Mode::Extended);
    let expected = handover(agreed, name, house);
    let flags = expected.export.transmission_flags(agreed.mode).to_be_bytes();
    let zeroes = if no_zeroes { 0 } else { c::EXPORT_NAME_ZEROES };
    let answer = [&expected.export.size.to_be_bytes()[..], &flags, &vec![0; zeroes]].concat();
    assert_eq!(*replies, answer);
    *replies = &[];
    Some(expected)
}

/// Options with right magic numbers and, mostly, right lengths.
fn assemble(input: &mut Input<'_>) -> Vec<u8> {
    let flags = match input.u8() {
        known @ 0..=0xef => u32::from(known & 3),
        _ => input.u32(),
    };
    let mut stream = flags.to_be_bytes().to_vec();
    while !input.is_empty() {
        let shape = input.u8();
        let code = u32::from(shape & 15);
        let data = match shape >> 4 {
            0..=2 => Vec::new(),
            3..=7 => info_data(input),
            8..=11 => meta_data(input),
            12 => vec![0; 2 * usize::from(input.u16())],
            13 => name(input),
            _ => {
                let len = usize::from(input.u8());
                input.bytes(len).to_vec()
            }
        };
        let len = if shape >> 4 == 15 { input.u32() } else { u32::try_from(data.len()).expect("short") };
        stream.extend([&c::OPTION_MAGIC.to_be_bytes()[..], &code.to_be_bytes(), &len.to_be_bytes(), &data].concat());
    }
    stream
}

fn name(input: &mut Input<'_>) -> Vec<u8> {
    match input.u8() {
        0..=63 => b"mes".to_vec(),
        64..=95 => b"logs".to_vec(),
        96..=111 => b"other".to_vec(),
        112..=127 => Vec::new(),
        _ => {
            let len = usize::from(input.u8());
            input.bytes(len).to_vec()
        }
    }
}

fn string(text: &[u8]) -> Vec<u8> {
    [&u32::try_from(text.len()).expect("short").to_be_bytes(), text].concat()
}

fn info_data(input: &mut Input<'_>) -> Vec<u8> {
    let mut data = string(&name(input));
    let wanted = input.u8() & 7;
    data.extend(u16::from(wanted).to_be_bytes());
    for _ in 0..wanted {
        data.extend(u16::from(input.u8() & 7).to_be_bytes());
    }
    data
}

fn meta_data(input: &mut Input<'_>) -> Vec<u8> {
    let mut data = string(&name(input));
    let queries = input.u8() & 3;
    data.extend(u32::from(queries).to_be_bytes());
    for _ in 0..queries {
        match input.u8() & 7 {
            0..=3 => data.extend(string(c::BASE_ALLOCATION.as_bytes())),
            4 => data.extend(string(c::BASE_NAMESPACE)),
            5 => data.extend(string(b"qemu:dirty-bitmap:x")),
            _ => data.extend(string(&name(input))),
        }
    }
    data
}
