//! Rank 1, format: the NBD protocol as bytes: all of the server's side, and as much of the client's as `repblk attach` needs.
//!
//! This room turns what a client sends into values and answers into bytes. It does no input or output: the shells read
//! the socket, feed it and send what it wrote. It must never know a volume, a role, a disk, a socket or a clock; an
//! export is what [`Exports`] says it is.
//!
//! A connection passes through two parts:
//!
//! ```text
//!   Negotiation::start ─► receive … ─► Next::Transmission(Handover) ─► parse_header ─► validate ─► Request
//!        greeting         options              Terms                                      │
//!                           │                                                             └─► Reject ─► reply::error
//!                           └─► Next::Close(CloseReason)
//! ```
//!
//! Everything follows the protocol text, `doc/proto.md` of NetworkBlockDevice/nbd with its branch
//! `extension-ext-header`; "NBD, …" in a doc comment names a section of it. Integers are big-endian throughout.

pub mod client;
mod client_negotiation;
pub mod constants;
mod error;
mod export;
mod fields;
mod follow;
mod negotiation;
mod option_reply;
mod options;
pub mod reply;
mod request;
mod status;

pub use client_negotiation::{ClientNegotiation, ClientNext, ClientProgress, ClientStop, Offer};
pub use error::NbdError;
pub use export::{ExportInfo, ExportListing, ExportRefusal, Exports, Handover, MetaContexts, Mode, RefusalCode, Terms};
pub use follow::{FOLLOW_SUFFIX, NotAStanding, Standing, follow_name};
pub use negotiation::{CloseReason, Negotiation, Next, Progress, Tls};
pub use reply::{Head, ReplyTo};
pub use request::{Fatal, Header, Reject, Request, header_len, parse_header, validate};
pub use status::{Allocation, Extent, Extents};
