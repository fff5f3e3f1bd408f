//! Option haggling from the client's side: TLS, which export, what it is, and, when that suits, in.
//!
//! ```text
//!   greeting(18) ──► INFO or GO sent ──► reply header(20) ──► data ──► … ──► ACK: Described │ Entered, or an error: Refused
//!                                            ▲                 │
//!                                            └─────────────────┘
//! ```
//! A client that must have TLS sends `STARTTLS` first, and nothing else before it is spoken: not even the name of the export. A server that has
//! none, or somebody on the way who says so, ends it.
//!
//! Nothing after the acknowledgement of `GO` is consumed: it belongs to the transmission phase. A server's announcement of a
//! length is believed only up to what any option may carry.

use super::constants::{self as c, OPTION_DATA_MAX, STRING_MAX};
use super::fields::Fields;

/// Length of a server's greeting in bytes.
const GREETING_LEN: usize = 18;
/// Length of an option reply's header in bytes.
const REPLY_HEADER_LEN: usize = 20;
/// Replies to one option; more are a server that does not end.
const REPLIES_MAX: u32 = 64;

/// What a server says of an export.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Offer {
    /// Size in bytes.
    pub size: u64,
    /// Transmission flags.
    pub flags: u16,
    /// Description for humans; the line of [`super::Standing`] on an export for followers.
    pub description: String,
}

/// What to do next, after sending what was written.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum ClientNext {
    /// Read at most this many bytes and feed them.
    Read(usize),
    /// The server is ready for TLS: make the handshake, then call [`ClientNegotiation::encrypted`].
    StartTls,
    /// The server has described the export. Call [`ClientNegotiation::enter`], or close.
    Described(Offer),
    /// The transmission phase begins.
    Entered(Offer),
}

/// What one call of [`ClientNegotiation::receive`] has done.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ClientProgress {
    /// How many of the bytes fed were used.
    pub consumed: usize,
    /// What to do next.
    pub next: ClientNext,
}

/// Why there is no agreement; the connection is to be closed.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ClientStop {
    /// The server does not give the export, and says why.
    #[error("{message}")]
    Refused {
        /// The option reply's type.
        kind: u32,
        /// The server's sentence, or one that stands for its silence.
        message: String,
    },
    /// TLS is a must, and the server, or somebody on the way to it, has none.
    #[error("it offers no TLS ({message}), and nothing is sent to it in the clear")]
    NoTls {
        /// What it says.
        message: String,
    },
    /// Not a server that can be used.
    #[error("the server {0}")]
    NoServer(&'static str),
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Item {
    Greeting,
    Header,
    Data { kind: u32 },
    Between,
}

/// The client's side of one connection's negotiation.
#[derive(Debug)]
pub struct ClientNegotiation {
    export: String,
    /// The option that was sent, or is to be: `STARTTLS`, `INFO` or `GO`.
    option: u32,
    /// What follows `STARTTLS`.
    wanted: u32,
    item: Item,
    kept: Vec<u8>,
    missing: usize,
    offer: Offer,
    /// Size and flags have been told.
    told: bool,
    replies: u32,
}

impl ClientNegotiation {
    /// Begins: asks about `export` when `look_first` is set, and for it otherwise.
    ///
    /// # Panics
    /// When the name is longer than any string may be.
    #[must_use]
    pub fn start(export: &str, look_first: bool) -> Self {
        assert!(export.len() <= STRING_MAX, "names of volumes are short");
        let wanted = if look_first { c::OPT_INFO } else { c::OPT_GO };
        Self {
            export: export.to_owned(),
            option: wanted,
            wanted,
            item: Item::Greeting,
            kept: Vec::new(),
            missing: GREETING_LEN,
            offer: Offer::default(),
            told: false,
            replies: 0,
        }
    }

    /// The same with TLS, before anything is asked.
    #[must_use]
    pub fn with_tls(self) -> Self {
        Self { option: c::OPT_STARTTLS, ..self }
    }

    /// Asks, after the handshake of TLS.
    ///
    /// # Panics
    /// When the server was not ready for it.
    pub fn encrypted(&mut self, out: &mut Vec<u8>) {
        assert_eq!((self.item, self.option), (Item::Between, c::OPT_STARTTLS), "the server agrees first");
        self.option = self.wanted;
        self.ask(out);
    }

    /// How many bytes the current item still lacks.
    #[must_use]
    pub fn wanted(&self) -> usize {
        self.missing
    }

    /// Asks for the export that has been described.
    ///
    /// # Panics
    /// When it has not been described.
    pub fn enter(&mut self, out: &mut Vec<u8>) {
        assert_eq!((self.item, self.option), (Item::Between, c::OPT_INFO), "what to enter is described first");
        self.option = c::OPT_GO;
        self.ask(out);
    }

    /// Takes bytes from the server and appends what to send to `out`.
    ///
    /// # Errors
    /// [`ClientStop`]: close the connection.
    pub fn receive(&mut self, bytes: &[u8], out: &mut Vec<u8>) -> Result<ClientProgress, ClientStop> {
        let mut consumed = 0;
        loop {
            let taken = self.missing.min(bytes.len() - consumed);
            self.kept.extend_from_slice(&bytes[consumed..consumed + taken]);
            consumed += taken;
            self.missing -= taken;
            if self.missing > 0 {
                return Ok(ClientProgress { consumed, next: ClientNext::Read(self.missing) });
            }
            let item = std::mem::take(&mut self.kept);
            if let Some(next) = self.item_complete(&item, out)? {
                return Ok(ClientProgress { consumed, next });
            }
        }
    }

    fn item_complete(&mut self, item: &[u8], out: &mut Vec<u8>) -> Result<Option<ClientNext>, ClientStop> {
        match self.item {
            Item::Greeting => self.greeted(item, out).map(|()| None),
            Item::Header => self.header(item).map(|()| None),
            Item::Data { kind } => self.reply(kind, item),
            Item::Between => panic!("the negotiation rests; enter the export or close the connection"),
        }
    }

    fn greeted(&mut self, item: &[u8], out: &mut Vec<u8>) -> Result<(), ClientStop> {
        let mut fields = Fields(item);
        if (fields.u64(), fields.u64()) != (Some(c::INIT_MAGIC), Some(c::OPTION_MAGIC)) {
            return Err(ClientStop::NoServer("does not speak NBD; is the address right?"));
        }
        let flags = fields.u16().unwrap_or_default();
        if flags & c::FLAG_FIXED_NEWSTYLE == 0 {
            return Err(ClientStop::NoServer("does not speak fixed newstyle; it is no repblk"));
        }
        let zeroes = if flags & c::FLAG_NO_ZEROES != 0 { c::FLAG_C_NO_ZEROES } else { 0 };
        out.extend_from_slice(&(c::FLAG_C_FIXED_NEWSTYLE | zeroes).to_be_bytes());
        self.ask(out);
        Ok(())
    }

    /// Sends the option.
    fn ask(&mut self, out: &mut Vec<u8>) {
        const SHORT: &str = "names are clipped";
        let name = self.export.as_bytes();
        let length = u32::try_from(name.len()).expect(SHORT);
        out.extend_from_slice(&c::OPTION_MAGIC.to_be_bytes());
        out.extend_from_slice(&self.option.to_be_bytes());
        if self.option == c::OPT_STARTTLS {
            out.extend_from_slice(&0u32.to_be_bytes());
        } else {
            out.extend_from_slice(&(length + 8).to_be_bytes());
            out.extend_from_slice(&length.to_be_bytes());
            out.extend_from_slice(name);
            out.extend_from_slice(&1u16.to_be_bytes());
            out.extend_from_slice(&c::INFO_DESCRIPTION.to_be_bytes());
        }
        (self.offer, self.told, self.replies) = (Offer::default(), false, 0);
        (self.item, self.missing) = (Item::Header, REPLY_HEADER_LEN);
    }

    fn header(&mut self, item: &[u8]) -> Result<(), ClientStop> {
        let mut fields = Fields(item);
        let (magic, option) = (fields.u64(), fields.u32());
        if magic != Some(c::OPTION_REPLY_MAGIC) || option != Some(self.option) {
            return Err(ClientStop::NoServer("answered something else than what it was asked; it has lost step"));
        }
        let kind = fields.u32().unwrap_or_default();
        let length = fields.u32().and_then(|length| usize::try_from(length).ok()).unwrap_or(usize::MAX);
        self.replies += 1;
        if length > OPTION_DATA_MAX || self.replies > REPLIES_MAX {
            return Err(ClientStop::NoServer("announces more than any answer may have"));
        }
        (self.item, self.missing) = (Item::Data { kind }, length);
        Ok(())
    }

    fn reply(&mut self, kind: u32, data: &[u8]) -> Result<Option<ClientNext>, ClientStop> {
        (self.item, self.missing) = (Item::Header, REPLY_HEADER_LEN);
        match kind {
            c::REP_ACK if self.option == c::OPT_STARTTLS => {
                (self.item, self.missing) = (Item::Between, 0);
                Ok(Some(ClientNext::StartTls))
            }
            c::REP_ACK if !self.told => Err(ClientStop::NoServer("gave the export without its size")),
            c::REP_ACK => {
                (self.item, self.missing) = (Item::Between, 0);
                let offer = std::mem::take(&mut self.offer);
                let entered = self.option == c::OPT_GO;
                Ok(Some(if entered { ClientNext::Entered(offer) } else { ClientNext::Described(offer) }))
            }
            c::REP_INFO => {
                self.info(data)?;
                Ok(None)
            }
            kind if kind & c::REP_FLAG_ERROR != 0 => {
                let said = String::from_utf8_lossy(data).into_owned();
                let message = if said.is_empty() { format!("the server refuses with code {kind:#x}") } else { said };
                Err(match self.option {
                    c::OPT_STARTTLS => ClientStop::NoTls { message },
                    _ => ClientStop::Refused { kind, message },
                })
            }
            _ => Ok(None),
        }
    }

    fn info(&mut self, data: &[u8]) -> Result<(), ClientStop> {
        const SHORT: ClientStop = ClientStop::NoServer("sent a piece of information that is too short");
        let mut fields = Fields(data);
        match fields.u16().ok_or(SHORT)? {
            c::INFO_EXPORT => {
                self.offer.size = fields.u64().ok_or(SHORT)?;
                self.offer.flags = fields.u16().ok_or(SHORT)?;
                self.told = true;
            }
            c::INFO_DESCRIPTION => self.offer.description = String::from_utf8_lossy(&data[2..]).into_owned(),
            _ => {}
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::{ExportInfo, ExportListing, ExportRefusal, Exports, Negotiation, Next, RefusalCode, Tls};
    use super::*;

    struct One {
        refuse: bool,
    }

    impl Exports for One {
        fn find(&self, name: &[u8]) -> Result<ExportInfo, ExportRefusal> {
            if self.refuse || name != b"mes/follow" {
                return Err(ExportRefusal { code: RefusalCode::Policy, message: "the other node is primary".into() });
            }
            Ok(ExportInfo { description: "what it is".into(), ..ExportInfo::new("mes/follow", 1 << 20) })
        }
        fn list(&self) -> Vec<ExportListing> {
            Vec::new()
        }
        fn shutting_down(&self) -> bool {
            false
        }
    }

    /// Both halves against each other, `chunk` bytes at a time. With TLS the handshake is thought of.
    fn talk(look_first: bool, refuse: bool, chunk: usize) -> Result<(Offer, bool), ClientStop> {
        talk_with(look_first, refuse, chunk, None)
    }

    fn talk_with(look_first: bool, refuse: bool, chunk: usize, tls: Option<Tls>) -> Result<(Offer, bool), ClientStop> {
        let exports = One { refuse };
        let (mut down, mut up) = (Vec::new(), Vec::new());
        let mut server = Negotiation::start(&mut down).with_tls(tls.unwrap_or_default());
        let mut client = ClientNegotiation::start("mes/follow", look_first);
        if tls.is_some() {
            client = client.with_tls();
        }
        let (mut upgraded, mut seen) = (tls.is_none(), Vec::new());
        let mut described = false;
        loop {
            let piece: Vec<u8> = down.drain(..chunk.min(down.len())).collect();
            assert!(!piece.is_empty(), "the server owes an answer");
            let mut piece = &piece[..];
            while !piece.is_empty() {
                let progress = client.receive(piece, &mut up)?;
                piece = &piece[progress.consumed..];
                match progress.next {
                    ClientNext::Read(wanted) => assert!(wanted > 0),
                    ClientNext::StartTls => {
                        assert!(upgraded, "both are ready at one time");
                        client.encrypted(&mut up);
                    }
                    ClientNext::Described(offer) => {
                        assert_eq!(offer.size, 1 << 20);
                        described = true;
                        client.enter(&mut up);
                    }
                    ClientNext::Entered(offer) => return Ok((offer, described)),
                }
            }
            while !up.is_empty() {
                let progress = server.receive(&up, &exports, &mut down);
                seen.extend(up.drain(..progress.consumed));
                assert!(!matches!(progress.next, Next::Close(_)), "{progress:?}");
                if progress.next == Next::StartTls {
                    assert!(up.is_empty() && !upgraded, "nothing follows STARTTLS in the clear");
                    assert!(!seen.windows(3).any(|bytes| bytes == b"mes"), "no name was said in the clear");
                    upgraded = true;
                }
                assert!(upgraded || tls != Some(Tls::Off) || !seen.windows(3).any(|bytes| bytes == b"mes"));
            }
        }
    }

    proptest! {
        #[test]
        fn a_client_and_a_server_agree(look_first: bool, chunk in 1usize..200) {
            let (offer, described) = talk(look_first, false, chunk).expect("they agree");
            let flags = ExportInfo::new("", 0).transmission_flags(super::super::Mode::Simple);
            prop_assert_eq!(offer, Offer { size: 1 << 20, flags, description: "what it is".into() });
            prop_assert_eq!(described, look_first);
        }

        #[test]
        fn tls_comes_before_any_name_or_there_is_no_agreement(look_first: bool, chunk in 1usize..200, required: bool) {
            let tls = if required { Tls::Required } else { Tls::Allowed };
            let (offer, described) = talk_with(look_first, false, chunk, Some(tls)).expect("they agree");
            prop_assert_eq!((offer.size, described), (1 << 20, look_first));
            let refused = talk_with(look_first, false, chunk, Some(Tls::Off)).expect_err("there is no TLS");
            prop_assert_eq!(refused, ClientStop::NoTls { message: "this server does not offer TLS".to_owned() });
        }

        #[test]
        fn a_refusal_comes_with_its_sentence(look_first: bool, chunk in 1usize..200) {
            let refused = talk(look_first, true, chunk).expect_err("it is refused");
            let message = "the other node is primary".to_owned();
            prop_assert_eq!(refused, ClientStop::Refused { kind: c::REP_ERR_POLICY, message });
        }

        #[test]
        fn arbitrary_bytes_end_and_never_panic(
            bytes in prop::collection::vec(any::<u8>(), 0..300),
            greeted: bool,
            tls: bool,
        ) {
            let mut all = Vec::new();
            if greeted {
                let _ = Negotiation::start(&mut all);
            }
            all.extend(bytes);
            let (mut client, mut rest, mut out) = (ClientNegotiation::start("v", false), &all[..], Vec::new());
            if tls {
                client = client.with_tls();
            }
            while !rest.is_empty() {
                match client.receive(rest, &mut out) {
                    Ok(ClientProgress { consumed, next: ClientNext::Read(_) }) => rest = &rest[consumed..],
                    Ok(_) | Err(_) => break,
                }
            }
        }
    }

    #[test]
    fn an_announced_length_claims_no_memory() {
        let mut bytes = Vec::new();
        let _ = Negotiation::start(&mut bytes);
        for field in [&c::OPTION_REPLY_MAGIC.to_be_bytes()[..], &c::OPT_GO.to_be_bytes(), &c::REP_INFO.to_be_bytes()] {
            bytes.extend_from_slice(field);
        }
        bytes.extend_from_slice(&u32::MAX.to_be_bytes());
        let stop = ClientNegotiation::start("v", false).receive(&bytes, &mut Vec::new()).expect_err("too long");
        assert!(matches!(stop, ClientStop::NoServer(_)), "{stop}");
    }
}
