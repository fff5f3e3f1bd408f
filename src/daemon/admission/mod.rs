//! Who is let in over the network, and how much of a node one address can take.
//!
//! Three questions, in the order in which they cost: may this address open one more connection now ([`Door`], before a byte is read); may
//! this client have this volume ([`AllowList`], when it has said which, and has shown its certificate); is there a place for it
//! ([`Places`]). Whoever comes over a Unix socket was judged by the socket's permissions, and is asked for a place alone.
//!
//! | file | noun |
//! |---|---|
//! | `prefix` | a range of addresses, as the configuration names it |
//! | `allow` | who may have a volume |
//! | `bucket` | how many connections an address may open, as time goes on |
//! | `door` | the bucket at a listener, with a clock and a log |
//! | `places` | clients that are served, on a node and of an address |
//! | `source` | what counts as one address |

mod allow;
mod bucket;
mod door;
mod places;
mod prefix;
mod source;

pub use allow::AllowList;
pub use prefix::Prefix;

pub(super) use allow::Caller;
pub(super) use bucket::Rate;
pub(super) use door::{Door, Quota, turn_away};
pub(super) use places::{Place, Places};
pub(super) use source::Source;
