//! The formats, from outside: golden images and transcripts, round trips, and every way in which bytes can be wrong.

mod golden;
mod meta_activity_log;
mod meta_bitmap;
mod meta_golden;
mod meta_recovery;
mod meta_superblock;
mod meta_values;
mod nbd_negotiation;
mod nbd_replies;
mod nbd_requests;
mod wire_frames;
mod wire_hello;
mod wire_messages;
