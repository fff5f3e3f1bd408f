//! The control socket: how the command line talks to the daemon.
//!
//! One request on a line, then replies, one on a line, each a JSON object. The socket belongs to the user that runs the
//! daemon (mode 0600). [`protocol`] has the words, `server` the daemon's side; the other side is `cli::client`.

pub mod protocol;
pub(super) mod server;
