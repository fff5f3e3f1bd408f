//! The control socket: how the command line talks to the daemon.
//!
//! One request on a line, then replies, one on a line, each a JSON object. It is a Unix socket, and there is nothing like it on TCP. [`protocol`]
//! has the words, `server` the daemon's side, `access` who may say what; the other side is `cli::client`.

pub(super) mod access;
pub mod protocol;
pub(super) mod server;
