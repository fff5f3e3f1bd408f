//! Real daemons, real clients, real sockets and files: what the simulator cannot see.
//!
//! Every test starts its own pair of `repblk` processes on addresses of the loopback network that no other test uses,
//! and drives it with programs that know nothing of repblk: nbdinfo, nbdcopy, qemu-img, qemu-io, fio, nbd-client, and the
//! `nbd` crate. A program that is missing fails the test. Nothing waits for a time and hopes: what is awaited is
//! polled, with a deadline and a sentence. Every test that ends with two copies compares them byte by byte.
//!
//! `power`, `disk_faults`: nodes whose disk loses its cache, fails, or hangs ([`shim`]). `pauses`: SIGKILL and SIGSTOP in loops.
//! `weather`: what a cable can do. These print their seeds, and run longer when told so in the environment: `REPBLK_POWER_ROUNDS`,
//! `REPBLK_KILL_TURNS`, `REPBLK_WEATHER_SPELLS`, with `REPBLK_POWER_SEED`, `REPBLK_KILL_SEED`, `REPBLK_WEATHER_SEED`. A seed fixes what
//! is done, not when a thread gets its turn; so a run that failed is repeated with its seed until it fails again.
//!
//! When a test fails, the end of each daemon's log is printed. Whatever ends the tests, no process and no mount is left behind: the
//! kernel ends each daemon with its test, and mounts are in the daemon's own namespace.

mod admission;
mod agent;
mod attach;
mod attach_tls;
mod automatic;
mod bad_start;
mod clients;
mod command_line;
mod control;
mod damaged_metadata;
mod disk_errors;
mod disk_faults;
mod etcd;
mod failover;
mod formatting;
mod honest;
mod hostile;
mod ledger;
mod links;
#[path = "../sim/media.rs"]
#[expect(dead_code, reason = "the simulator also damages its media")]
mod media;
mod modes;
mod node;
mod pair;
mod pauses;
mod power;
mod powered;
mod privilege;
mod proxy;
mod raw_nbd;
#[path = "../sim/rng.rs"]
#[expect(dead_code, reason = "the simulator also draws waiting times")]
mod rng;
mod roles;
mod security;
mod services;
mod shim;
mod tools;
mod weather;

// For `etcd`, which the unit tests of its client share.
use repblk::daemon::identity::cluster_id;
use repblk::tls::{Authority, Holder, Kind};
