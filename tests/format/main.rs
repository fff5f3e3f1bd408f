//! The formats, byte for byte: golden transcripts and properties, in one binary.

mod nbd_negotiation;
mod nbd_replies;
mod nbd_requests;
