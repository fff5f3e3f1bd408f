//! Rank 1, format: what two nodes say to each other on the data link.
//!
//! Bytes to values and back, nothing else: no socket, no clock, no decision. A link starts with one [`hello`] each way,
//! exchanged by the control plane, and then carries [`frame`]s, each with one [`message::Message`]. The layout is
//! documented in `docs/protocol.md` and pinned by golden vectors in `tests/format`. Datagrams beside the link are
//! [`sealed`].

pub mod frame;
pub mod hello;
pub mod message;
pub mod sealed;

pub use frame::{FrameError, FrameHeader, FrameReader, FrameWriter};
pub use hello::{Hello, HelloError};
pub use message::Message;
