//! repblk: a replicated block device in user space.
//!
//! Two servers each hold a copy of a block device. The *primary* serves it over NBD and mirrors every write to the *secondary*. When
//! the primary is lost, the secondary is promoted and has everything that was acknowledged. What an acknowledgement
//! means is a contract; it stands in `docs/architecture.md`, and the words used here in `docs/glossary.md`.
//!
//! # The rooms, in rank order
//!
//! Three kinds of room, never mixed: *formats* turn bytes into values and back, *machines* turn inputs into effects, *shells*
//! turn effects into system calls. A room knows rooms of lower rank only; `tests/tidy.rs` holds it to that.
//!
//! | rank | room | what it is |
//! |---|---|---|
//! | 0 | [`units`] | numbers and identities, each a type of its own |
//! | 0 | [`generation`] | the descent of a copy's data |
//! | 0 | [`condition`] | the words for role, disk state and mode |
//! | 1 | [`nbd`] | format: what an NBD client says, and the answers |
//! | 1 | [`wire`] | format: what two nodes say to each other |
//! | 1 | [`meta`] | format: what a copy keeps on its disk besides the data |
//! | 2 | [`volume`] | machine: one volume on one node; everything that decides about data |
//! | 2 | [`attach`] | machine: one device that follows a volume from node to node |
//! | 3 | [`failover`] | machine: when to promote, when to go on alone, when to stop |
//! | 3 | [`services`] | machine: what is started on the primary and stopped elsewhere, in order |
//! | 4 | [`tls`] | shell: certificates, and who the other side is |
//! | 4 | [`dataplane`] | shell: one thread for each volume, its disk and its sockets |
//! | 4 | [`daemon`] | shell: configuration, negotiation, links, control |
//! | 4 | [`follower`] | shell: `repblk attach` on the database host |
//! | 5 | [`cli`] | shell: the `repblk` command |
//!
//! The machine has one entry, [`Volume::step`](volume::Volume::step): one [`Input`](volume::io::Input) in, some
//! [`Effect`](volume::io::Effect)s out. It sees no byte of data, no file and no clock. The simulator in `tests/sim` is another shell
//! around the same machine and the same formats.
//!
//! # The journey of one write
//!
//! In mode `sync`, with the peer in sync:
//!
//! 1. The shell checks the client's header with [`nbd`], receives the payload into a buffer of its pool, and says
//!    [`Input::Host`](volume::io::Input::Host).
//! 2. `volume/primary.rs` cuts the write into segments. A segment waits until nobody else changes its blocks
//!    (`volume/in_flight.rs`), the transfer log has room, and its extents are hot (`volume/hot_extents.rs`): a cold one waits for a
//!    transaction of the activity log ([`meta::activity_log`]), which all that wait share.
//! 3. It becomes the next entry of the transfer log (`volume/transfer_log.rs`), and in the same step goes to the local disk
//!    ([`Effect::DiskWrite`](volume::io::Effect::DiskWrite)) and, as a [`Message::Write`](wire::Message::Write), to the peer.
//! 4. The peer (`volume/secondary.rs`) applies it in the order of whatever it overlaps, and says a cumulative
//!    [`Message::Ack`](wire::Message::Ack) at the end of its turn.
//! 5. The local completion and the peer's word (`volume/mirror.rs`) come in any order. With both in, the client gets its
//!    [`Effect::Reply`](volume::io::Effect::Reply).
//! 6. A client's flush, or a log that fills up, asks both copies to make everything stable (`volume/stability.rs`): one flush here, one
//!    [`Message::Barrier`](wire::Message::Barrier) there, for all that wait.
//! 7. What is stable on both copies leaves the transfer log. Only then are its dirty bits cleared and its extents let go.
//!
//! At each moment, a block that may differ between the copies is dirty in a bitmap, in a hot extent, or in the transfer log.
//!
//! # When something is lost
//!
//! - *The link*: what the peer had not made stable becomes dirty. Writes wait until a generation without the peer is durable and
//!   the peer's exclusion is allowed ([`Command::Exclude`](volume::io::Command::Exclude)); then this node goes on alone.
//! - *A node*: at its next start [`meta::recovery`] makes dirty what the activity log names.
//! - *Two copies meet again*: [`reconcile`](volume::reconcile::reconcile) says who copies what to whom, and by which rule.
//! - *A disk*: a failed write or flush is a failed disk. A primary goes on with the disk of an equal peer.

pub mod attach;
pub mod cli;
pub mod condition;
pub mod daemon;
pub mod dataplane;
pub mod failover;
pub mod follower;

pub mod generation;
pub mod meta;
pub mod nbd;
pub mod services;
pub mod tls;
pub mod units;
pub mod volume;
pub mod wire;
