//! Option haggling as a machine: bytes in, bytes out, and at the end an agreement.
//!
//! The client's bytes come in three kinds of item, and each knows its own length before it is read:
//!
//! ```text
//!   Flags(4) ──► Header(16) ──► Data(length) ──► answer ──► Header(16) ──► …
//!                    ▲                              │
//!                    └──────── refused option ◄─────┴──► Transmission │ Close
//! ```
//!
//! What an option announces is consumed to the byte before it is answered, whether it is understood or not, so a
//! refusal never loses step. Nothing after the last option is consumed: it belongs to the data plane.

use super::constants::{
    self, NEGOTIATION_BYTES_MAX, OPTION_DATA_MAX, OPTION_DRAIN_MAX, OPTION_HEADER_LEN, OPTIONS_MAX, STRING_MAX,
};
use super::export::{ExportInfo, ExportRefusal, Exports, Handover, MetaContexts, Mode};
use super::fields::Fields;
use super::option_reply::{OptionReplies, export_name, greeting};
use super::options::{InfoRequest, MetaRequest};

/// The server's side of one connection's negotiation.
///
/// Holds at most [`OPTION_DATA_MAX`] bytes, and only bytes that have arrived.
#[derive(Debug)]
pub struct Negotiation {
    item: Item,
    /// What has arrived of `item`, unless it is being drained.
    kept: Vec<u8>,
    /// Bytes of `item` that have not arrived.
    missing: usize,
    client: ClientFlags,
    tls: Tls,
    /// All that options have brought about. A TLS upgrade puts the default back in its place.
    agreed: Agreed,
    /// Options begun.
    options: u32,
    /// Bytes that they announced, headers included.
    announced: usize,
}

/// What is made of TLS.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Tls {
    /// It is not offered.
    #[default]
    Off,
    /// A client may ask for it.
    Allowed,
    /// A client gets nothing without it.
    Required,
    /// It is spoken.
    Spoken,
}

/// What is being received.
#[derive(Clone, Copy, Debug)]
enum Item {
    /// The client's flags.
    Flags,
    /// An option's header.
    Header,
    /// Data of this option; dropped on arrival when `drain` is set.
    Data { option: u32, length: usize, drain: bool },
    /// Nothing: the negotiation is over.
    Ended,
}

#[derive(Clone, Copy, Debug, Default)]
struct ClientFlags {
    fixed_newstyle: bool,
    no_zeroes: bool,
}

#[derive(Clone, Debug, Default)]
struct Agreed {
    mode: Mode,
    /// The contexts of the last successful `SET_META_CONTEXT`, and the canonical name of the export they are for.
    contexts: Option<(String, MetaContexts)>,
}

/// What one call of [`Negotiation::receive`] has done.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Progress {
    /// How many of the bytes fed were used. The rest is fed again, or is the data plane's.
    pub consumed: usize,
    /// What to do after sending what was written.
    pub next: Next,
}

/// What the shell does next. In every case it first sends what the call has written.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Next {
    /// Feed what was not consumed; when nothing is left, read at most this many bytes (1 to [`OPTION_DATA_MAX`]) and
    /// feed them. A shell that never reads more holds no byte of the transmission phase.
    Read(usize),
    /// The negotiation has succeeded. Bytes not consumed are the first of the transmission phase.
    Transmission(Box<Handover>),
    /// The client wants TLS: make the handshake and go on with what it encrypts. Bytes not consumed were not encrypted, may be anybody's, and end
    /// the connection.
    StartTls,
    /// Close the connection.
    Close(CloseReason),
}

/// Why a negotiation ended without an agreement.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum CloseReason {
    /// The client has sent `ABORT`, and was acknowledged.
    #[error("the client has aborted the negotiation")]
    Aborted,
    /// `EXPORT_NAME`, which cannot be answered by an error, named an export that is not to be had.
    #[error("the client asked by EXPORT_NAME for an export that is refused: {0}")]
    ExportRefused(ExportRefusal),
    /// `EXPORT_NAME` where TLS is required and not spoken.
    #[error("the client asked for an export in the clear; this server requires TLS")]
    TlsRequired,
    /// `EXPORT_NAME` while the server is shutting down.
    #[error("the client asked for an export while the server is shutting down")]
    ShuttingDown,
    /// The client set flags that this server does not know; the protocol demands to close.
    #[error("the client sent unknown handshake flags {0:#x}; it is too new, or no NBD client")]
    UnknownClientFlags(u32),
    /// An option did not begin with its magic number.
    #[error("the client sent {0:#018x} where an option begins; it has lost step, or is no NBD client")]
    BadOptionMagic(u64),
    /// A client without fixed newstyle sent something other than `EXPORT_NAME`.
    #[error("the client sent option {0} without speaking fixed newstyle")]
    NotFixedNewstyle(u32),
    /// An option announced more data than is worth draining.
    #[error("the client announced {length} bytes for option {option}; at most {OPTION_DRAIN_MAX} are taken")]
    OptionTooLong {
        /// The option's code.
        option: u32,
        /// The announced length in bytes.
        length: u32,
    },
    /// `EXPORT_NAME` with a name longer than any string may be.
    #[error("the client asked by EXPORT_NAME for a name of {0} bytes; names have at most {STRING_MAX}")]
    NameTooLong(u32),
    /// More than [`OPTIONS_MAX`] options.
    #[error("the client sent more than {OPTIONS_MAX} options")]
    TooManyOptions,
    /// More than [`NEGOTIATION_BYTES_MAX`] bytes.
    #[error("the client announced more than {NEGOTIATION_BYTES_MAX} bytes of options")]
    TooManyBytes,
    /// `EXPORT_NAME` after `EXTENDED_HEADERS`, which the protocol forbids.
    #[error("the client used EXPORT_NAME after it negotiated extended headers; it must use GO")]
    ExportNameAfterExtendedHeaders,
}

impl Negotiation {
    /// Begins a negotiation: writes the server's greeting to `out` and waits for the client's flags.
    #[must_use]
    pub fn start(out: &mut Vec<u8>) -> Self {
        greeting(out);
        Self {
            item: Item::Flags,
            kept: Vec::new(),
            missing: constants::CLIENT_FLAGS_LEN,
            client: ClientFlags::default(),
            tls: Tls::Off,
            agreed: Agreed::default(),
            options: 0,
            announced: 0,
        }
    }

    /// The same with another way of TLS; before the first byte.
    #[must_use]
    pub fn with_tls(self, tls: Tls) -> Self {
        Self { tls, ..self }
    }

    /// How many bytes the current item still lacks, as in [`Next::Read`].
    #[must_use]
    pub fn wanted(&self) -> usize {
        self.missing.min(OPTION_DATA_MAX)
    }

    /// Whether feeding these bytes may need to know what exports there are. A stranger that says less than a whole option about them costs
    /// the server no look at its volumes.
    #[must_use]
    pub fn asks(&self, bytes: &[u8]) -> bool {
        match self.item {
            // More than one item at once: they are not looked through twice.
            _ if bytes.len() > self.missing => true,
            _ if bytes.len() < self.missing => false,
            Item::Flags | Item::Ended => false,
            // An option without data is answered with its header, whose last four bytes are the length.
            Item::Header => bytes.iter().rev().chain(self.kept.iter().rev()).take(4).all(|&byte| byte == 0),
            Item::Data { option, drain, .. } => takes_data(option) && !drain,
        }
    }

    /// Takes bytes from the client and appends answers to `out`.
    ///
    /// Returns after each answered option, even when bytes are left, so that a client that sends options without reading
    /// the answers cannot make `out` grow: send `out`, then feed the rest.
    ///
    /// # Panics
    /// When called after [`Next::Transmission`] or [`Next::Close`].
    pub fn receive(&mut self, bytes: &[u8], exports: &dyn Exports, out: &mut Vec<u8>) -> Progress {
        let mut consumed = 0;
        loop {
            let taken = self.missing.min(bytes.len() - consumed);
            if !matches!(self.item, Item::Data { drain: true, .. }) {
                self.kept.extend_from_slice(&bytes[consumed..consumed + taken]);
            }
            consumed += taken;
            self.missing -= taken;
            if self.missing > 0 {
                return Progress { consumed, next: Next::Read(self.wanted()) };
            }
            if let Some(next) = self.item_complete(exports, out) {
                return Progress { consumed, next };
            }
        }
    }

    /// Acts on a whole item. `None` when there is nothing to tell the shell yet.
    fn item_complete(&mut self, exports: &dyn Exports, out: &mut Vec<u8>) -> Option<Next> {
        let kept = std::mem::take(&mut self.kept);
        let outcome = match self.item {
            Item::Flags => self.flags(&kept).map(|()| None),
            Item::Header => self.header(&kept).map(|()| None),
            Item::Data { option, length, drain } => {
                self.expect(Item::Header, OPTION_HEADER_LEN);
                let data = if drain { Data::Drained(length) } else { Data::Kept(&kept) };
                let encrypted = self.tls == Tls::Spoken;
                self.answer(option, data, exports, out).map(|handover| match handover {
                    None if self.tls == Tls::Spoken && !encrypted => Some(Next::StartTls),
                    None => Some(Next::Read(self.wanted())),
                    Some(handover) => Some(Next::Transmission(Box::new(handover))),
                })
            }
            Item::Ended => panic!("the negotiation has ended; its connection is closed or the data plane's"),
        };
        let next = outcome.unwrap_or_else(|reason| Some(Next::Close(reason)))?;
        if !matches!(next, Next::Read(_) | Next::StartTls) {
            self.expect(Item::Ended, 0);
        }
        Some(next)
    }

    fn expect(&mut self, item: Item, length: usize) {
        self.item = item;
        self.missing = length;
    }

    fn flags(&mut self, item: &[u8]) -> Result<(), CloseReason> {
        let flags = Fields(item).u32().expect("the item is 4 bytes long");
        let known = constants::FLAG_C_FIXED_NEWSTYLE | constants::FLAG_C_NO_ZEROES;
        if flags & !known != 0 {
            return Err(CloseReason::UnknownClientFlags(flags));
        }
        self.client = ClientFlags {
            fixed_newstyle: flags & constants::FLAG_C_FIXED_NEWSTYLE != 0,
            no_zeroes: flags & constants::FLAG_C_NO_ZEROES != 0,
        };
        self.expect(Item::Header, OPTION_HEADER_LEN);
        Ok(())
    }

    fn header(&mut self, item: &[u8]) -> Result<(), CloseReason> {
        const WHOLE: &str = "the item is 16 bytes long";
        let mut fields = Fields(item);
        let magic = fields.u64().expect(WHOLE);
        let (option, length) = (fields.u32().expect(WHOLE), fields.u32().expect(WHOLE));
        if magic != constants::OPTION_MAGIC {
            return Err(CloseReason::BadOptionMagic(magic));
        }
        self.options += 1;
        if self.options > OPTIONS_MAX {
            return Err(CloseReason::TooManyOptions);
        }
        if option != constants::OPT_EXPORT_NAME && !self.client.fixed_newstyle {
            return Err(CloseReason::NotFixedNewstyle(option));
        }
        let bytes = usize::try_from(length).unwrap_or(usize::MAX);
        if option == constants::OPT_EXPORT_NAME && bytes > STRING_MAX {
            return Err(CloseReason::NameTooLong(length));
        }
        if bytes > OPTION_DRAIN_MAX {
            return Err(CloseReason::OptionTooLong { option, length });
        }
        self.announced += OPTION_HEADER_LEN + bytes;
        if self.announced > NEGOTIATION_BYTES_MAX {
            return Err(CloseReason::TooManyBytes);
        }
        let drain = !takes_data(option) || bytes > OPTION_DATA_MAX;
        self.expect(Item::Data { option, length: bytes, drain }, bytes);
        Ok(())
    }

    /// Answers an option whose data has been consumed. A handover ends the negotiation, an error closes.
    fn answer(
        &mut self,
        option: u32,
        data: Data<'_>,
        exports: &dyn Exports,
        out: &mut Vec<u8>,
    ) -> Result<Option<Handover>, CloseReason> {
        if option == constants::OPT_SET_META_CONTEXT {
            // The earlier selection is gone even when this one fails.
            self.agreed.contexts = None;
        }
        let mut to = OptionReplies { option, out };
        match (option, data) {
            (constants::OPT_ABORT, _) => {
                to.ack();
                return Err(CloseReason::Aborted);
            }
            (constants::OPT_EXPORT_NAME, _) if self.tls == Tls::Required => return Err(CloseReason::TlsRequired),
            _ if self.tls == Tls::Required && option != constants::OPT_STARTTLS => {
                to.error(constants::REP_ERR_TLS_REQD, "this server requires TLS: send STARTTLS first");
            }
            (constants::OPT_EXPORT_NAME, Data::Kept(name)) => return self.export_name(name, exports, out).map(Some),
            _ if exports.shutting_down() => {
                to.error(constants::REP_ERR_SHUTDOWN, "the server is shutting down; connect again later");
            }
            (constants::OPT_INFO, Data::Kept(data)) => {
                self.info(data, exports, &mut to);
            }
            (constants::OPT_GO, Data::Kept(data)) => return Ok(self.info(data, exports, &mut to)),
            (constants::OPT_LIST_META_CONTEXT, Data::Kept(data)) => Self::list_meta_context(data, exports, &mut to),
            (constants::OPT_SET_META_CONTEXT, Data::Kept(data)) => self.set_meta_context(data, exports, &mut to),
            (_, Data::Drained(length)) if takes_data(option) => {
                let message = format!("{length} bytes are too many; at most {OPTION_DATA_MAX} are taken");
                to.error(constants::REP_ERR_TOO_BIG, &message);
            }
            (constants::OPT_STARTTLS, _) if self.tls == Tls::Off => {
                to.error(constants::REP_ERR_UNSUP, "this server does not offer TLS");
            }
            (
                constants::OPT_LIST
                | constants::OPT_STRUCTURED_REPLY
                | constants::OPT_EXTENDED_HEADERS
                | constants::OPT_STARTTLS,
                data,
            ) if !data.is_empty() => {
                let message = format!("option {} takes no data", constants::option_name(option));
                to.error(constants::REP_ERR_INVALID, &message);
            }
            (constants::OPT_LIST, _) => {
                exports.list().iter().for_each(|listing| to.server(listing));
                to.ack();
            }
            (constants::OPT_STRUCTURED_REPLY, _) => self.structured_reply(&mut to),
            (constants::OPT_EXTENDED_HEADERS, _) => {
                self.agreed.mode = Mode::Extended;
                to.ack();
            }
            (constants::OPT_STARTTLS, _) if self.tls == Tls::Spoken => {
                to.error(constants::REP_ERR_INVALID, "TLS is spoken already");
            }
            (constants::OPT_STARTTLS, _) => {
                to.ack();
                // What was agreed in the clear may be somebody else's wish.
                (self.tls, self.agreed) = (Tls::Spoken, Agreed::default());
            }
            _ => to.error(constants::REP_ERR_UNSUP, "this server does not know the option"),
        }
        Ok(None)
    }

    fn export_name(&self, name: &[u8], exports: &dyn Exports, out: &mut Vec<u8>) -> Result<Handover, CloseReason> {
        if exports.shutting_down() {
            return Err(CloseReason::ShuttingDown);
        }
        if self.agreed.mode == Mode::Extended {
            return Err(CloseReason::ExportNameAfterExtendedHeaders);
        }
        let export = exports.find(name).map_err(CloseReason::ExportRefused)?;
        export_name(out, &export, self.agreed.mode, !self.client.no_zeroes);
        Ok(self.handover(export))
    }

    /// Answers `INFO` and `GO`; the handover is what a successful `GO` leads to.
    fn info(&self, data: &[u8], exports: &dyn Exports, to: &mut OptionReplies<'_>) -> Option<Handover> {
        let request = accepted(InfoRequest::parse(data), to)?;
        let export = found(exports.find(request.export), to)?;
        to.info_export(&export, self.agreed.mode);
        if request.name {
            to.info_name(&export);
        }
        if request.description {
            to.info_description(&export);
        }
        if request.block_size {
            to.info_block_size(&export);
        }
        to.ack();
        Some(self.handover(export))
    }

    fn structured_reply(&mut self, to: &mut OptionReplies<'_>) {
        if self.agreed.mode == Mode::Extended {
            to.error(
                constants::REP_ERR_EXT_HEADER_REQD,
                "extended headers are in force, which go beyond structured replies",
            );
        } else {
            self.agreed.mode = Mode::Structured;
            to.ack();
        }
    }

    fn list_meta_context(data: &[u8], exports: &dyn Exports, to: &mut OptionReplies<'_>) {
        let Some(request) = accepted(MetaRequest::parse(data), to) else { return };
        if found(exports.find(request.export), to).is_none() {
            return;
        }
        if request.no_queries || request.base || request.allocation {
            to.meta_context(0);
        }
        to.ack();
    }

    fn set_meta_context(&mut self, data: &[u8], exports: &dyn Exports, to: &mut OptionReplies<'_>) {
        if self.agreed.mode == Mode::Simple {
            to.error(constants::REP_ERR_INVALID, "metadata contexts need structured replies or extended headers first");
            return;
        }
        let Some(request) = accepted(MetaRequest::parse(data), to) else { return };
        let Some(export) = found(exports.find(request.export), to) else { return };
        if request.allocation {
            to.meta_context(constants::BASE_ALLOCATION_ID);
        }
        to.ack();
        self.agreed.contexts = Some((export.name, MetaContexts { allocation: request.allocation }));
    }

    /// The agreement about `export`. Contexts that were selected for another export do not count.
    fn handover(&self, export: ExportInfo) -> Handover {
        let contexts = match &self.agreed.contexts {
            Some((name, contexts)) if *name == export.name => *contexts,
            _ => MetaContexts::default(),
        };
        Handover { export, mode: self.agreed.mode, contexts }
    }
}

/// An option's data after it was consumed.
#[derive(Clone, Copy, Debug)]
enum Data<'a> {
    Kept(&'a [u8]),
    /// So many bytes were dropped.
    Drained(usize),
}

impl Data<'_> {
    fn is_empty(self) -> bool {
        match self {
            Self::Kept(bytes) => bytes.is_empty(),
            Self::Drained(length) => length == 0,
        }
    }
}

/// True for options whose data means something here.
fn takes_data(option: u32) -> bool {
    matches!(
        option,
        constants::OPT_EXPORT_NAME
            | constants::OPT_INFO
            | constants::OPT_GO
            | constants::OPT_LIST_META_CONTEXT
            | constants::OPT_SET_META_CONTEXT
    )
}

/// The parsed data, or `None` after an `ERR_INVALID`.
fn accepted<T>(parsed: Result<T, &'static str>, to: &mut OptionReplies<'_>) -> Option<T> {
    parsed.map_err(|message| to.error(constants::REP_ERR_INVALID, message)).ok()
}

/// The export, or `None` after the refusal has been sent.
fn found(export: Result<ExportInfo, ExportRefusal>, to: &mut OptionReplies<'_>) -> Option<ExportInfo> {
    export.map_err(|refusal| to.error(refusal.code.reply_type(), &refusal.message)).ok()
}

#[cfg(test)]
mod tests {
    use super::super::export::ExportListing;
    use super::*;

    struct Nothing;

    impl Exports for Nothing {
        fn find(&self, _: &[u8]) -> Result<ExportInfo, ExportRefusal> {
            unreachable!("no option here names an export")
        }
        fn list(&self) -> Vec<ExportListing> {
            Vec::new()
        }
        fn shutting_down(&self) -> bool {
            false
        }
    }

    fn begin(option: u32, length: usize) -> Negotiation {
        let mut out = Vec::new();
        let mut negotiation = Negotiation::start(&mut out);
        let length = u32::try_from(length).expect("short");
        let header = [b"IHAVEOPT", &option.to_be_bytes()[..], &length.to_be_bytes()].concat();
        let progress = negotiation.receive(&[&[0, 0, 0, 1], &header[..]].concat(), &Nothing, &mut out);
        assert_eq!(progress.consumed, 20);
        negotiation
    }

    #[test]
    fn a_client_that_announces_too_much_in_all_is_closed() {
        let mut negotiation = begin(4711, OPTION_DRAIN_MAX);
        let drop = vec![0; OPTION_DRAIN_MAX];
        assert!(matches!(negotiation.receive(&drop, &Nothing, &mut Vec::new()).next, Next::Read(_)));
        let length = u32::try_from(OPTION_DRAIN_MAX).expect("short");
        let header = [b"IHAVEOPT", &4711u32.to_be_bytes()[..], &length.to_be_bytes()].concat();
        let progress = negotiation.receive(&header, &Nothing, &mut Vec::new());
        assert_eq!(progress.next, Next::Close(CloseReason::TooManyBytes));
    }

    /// Exports that may be asked for or not.
    struct Watched(bool);

    impl Exports for Watched {
        fn find(&self, _: &[u8]) -> Result<ExportInfo, ExportRefusal> {
            assert!(self.0, "an export was asked for, and it was said that none would be");
            Ok(ExportInfo::new("v", 4096))
        }
        fn list(&self) -> Vec<ExportListing> {
            assert!(self.0, "the exports were asked for, and it was said that they would not be");
            Vec::new()
        }
        fn shutting_down(&self) -> bool {
            false
        }
    }

    proptest::proptest! {
        /// However the bytes are cut: exports are looked at only when `asks` has said so, and never for less than an option.
        #[test]
        fn what_exports_there_are_is_asked_only_when_it_was_said(
            options in proptest::collection::vec(
                (proptest::sample::select(vec![1u32, 2, 3, 5, 6, 7, 8, 9, 10, 11, 77]),
                 proptest::collection::vec(proptest::num::u8::ANY, 0..12)), 0..6),
            cuts in proptest::collection::vec(1usize..40, 1..40),
            flags in 0u32..4,
        ) {
            let mut bytes = flags.to_be_bytes().to_vec();
            for (option, data) in &options {
                bytes.extend_from_slice(b"IHAVEOPT");
                bytes.extend_from_slice(&option.to_be_bytes());
                bytes.extend_from_slice(&u32::try_from(data.len()).expect("short").to_be_bytes());
                bytes.extend_from_slice(data);
            }
            let mut out = Vec::new();
            let mut negotiation = Negotiation::start(&mut out);
            let (mut at, mut cuts) = (0, cuts.into_iter().cycle());
            while at < bytes.len() {
                let end = bytes.len().min(at + cuts.next().expect("they go round"));
                let asks = negotiation.asks(&bytes[at..end]);
                if end - at < negotiation.wanted() {
                    proptest::prop_assert!(!asks, "for less than an item");
                }
                let progress = negotiation.receive(&bytes[at..end], &Watched(asks), &mut out);
                at += progress.consumed;
                if !matches!(progress.next, Next::Read(_)) {
                    break;
                }
            }
        }
    }

    #[test]
    fn an_announcement_claims_no_memory() {
        let mut negotiation = begin(constants::OPT_GO, OPTION_DATA_MAX);
        assert_eq!(negotiation.wanted(), OPTION_DATA_MAX);
        negotiation.receive(&[0; 100], &Nothing, &mut Vec::new());
        assert!(negotiation.kept.capacity() < 1000, "{} bytes for 100", negotiation.kept.capacity());
    }

    #[test]
    fn drained_data_is_not_kept() {
        for (option, length) in [(constants::OPT_GO, OPTION_DATA_MAX + 1), (4711, 9000), (constants::OPT_LIST, 9000)] {
            let mut negotiation = begin(option, length);
            negotiation.receive(&[0; 8000], &Nothing, &mut Vec::new());
            assert_eq!((negotiation.kept.len(), negotiation.missing), (0, length - 8000), "option {option}");
        }
    }
}
