//! Rank 4, shell: who somebody is, and how that is proved. Certificates, the files that keep them, and TLS with them.
//!
//! A cluster has an authority of its own: a key that signs one certificate for each node, and for each NBD client that shall have one. A
//! certificate names the cluster and its [`Holder`]; addresses prove nothing. The room must never know what is said over a connection.
//!
//! | file | noun |
//! |---|---|
//! | `holder` | whom a certificate belongs to |
//! | `certificate` | what stands in a certificate |
//! | `authority` | the key that signs |
//! | `folder` | the files |
//! | `keyring` | what a running node or client holds, read again when the files change |
//! | `verifier` | whether the other side is who it must be |
//! | `visitor` | the same towards servers of other authorities |
//! | `distrust` | why not, as sentences |

mod authority;
mod certificate;
mod date;
mod distrust;
mod folder;
mod holder;
mod keyring;
#[cfg(test)]
mod tests;
mod verifier;
mod visitor;

pub use authority::{AUTHORITY_DAYS, Authority, Issued, NODE_DAYS};
pub use certificate::Certificate;
pub use date::{DAY, day_of, unix_now};
pub use distrust::{Distrust, sentence};
pub use folder::{DEFAULT_FOLDER, Folder, FolderError, password};
pub use holder::{Holder, Kind};
pub use keyring::{AGENT_PROTOCOL, Keyring, Keys, LINK_PROTOCOL, LOOK_INTERVAL, WARNING_DAYS};
pub use visitor::Visitor;
