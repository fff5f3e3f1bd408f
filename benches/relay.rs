//! A relay that makes a local link a long or a narrow one: every byte arrives so much later, and no more than so many bits a second.
//!
//! ```text
//! cargo run --release --example relay -- --listen 127.0.0.1:7000 --to 127.0.0.1:7001 --delay-us 1000 --mbit 200
//! ```
//!
//! The delay is of one direction, so a round trip takes twice as long. Bytes that are under way do not hold up those behind them, as on
//! a cable and unlike a sleep between read and write; of them there are at most [`UNDER_WAY_MAX`], as in a router's queue. It never loses
//! or reorders anything. Each connection has two threads for each direction. Used by `scripts/growth`.

use std::error::Error;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;
use std::time::{Duration, Instant};

use clap::Parser;

/// Longest piece that is read at once, in bytes.
const CHUNK: usize = 64 << 10;
/// Most bytes under way in one direction.
const UNDER_WAY_MAX: usize = 64 << 20;

/// Makes a local link a long or a narrow one.
#[derive(Clone, Parser, Debug)]
struct Options {
    /// Address to take connections at.
    #[arg(long)]
    listen: String,
    /// Address to carry them to.
    #[arg(long)]
    to: String,
    /// Delay in each direction, in microseconds.
    #[arg(long, default_value_t = 0)]
    delay_us: u64,
    /// Megabits a second in each direction; 0: as fast as it goes.
    #[arg(long, default_value_t = 0)]
    mbit: u64,
}

/// Bytes, and when they may leave.
struct Chunk {
    due: Instant,
    bytes: Vec<u8>,
}

fn main() -> Result<(), Box<dyn Error>> {
    let options = Options::parse();
    let listener = TcpListener::bind(&options.listen)?;
    for client in listener.incoming() {
        let client = client?;
        // Nobody there: the client sees the end, as it would without a relay.
        let Ok(server) = TcpStream::connect(&options.to) else { continue };
        client.set_nodelay(true)?;
        server.set_nodelay(true)?;
        carry(client.try_clone()?, server.try_clone()?, &options);
        carry(server, client, &options);
    }
    Ok(())
}

/// Carries one direction of a connection, until either end is closed.
fn carry(from: TcpStream, into: TcpStream, options: &Options) {
    let (sender, receiver) = sync_channel(UNDER_WAY_MAX / CHUNK);
    let (delay, mbit) = (Duration::from_micros(options.delay_us), options.mbit);
    thread::spawn(move || take(from, delay, &sender));
    thread::spawn(move || give(into, mbit, &receiver));
}

fn take(mut from: TcpStream, delay: Duration, sender: &SyncSender<Chunk>) {
    loop {
        let mut bytes = vec![0; CHUNK];
        let Ok(len @ 1..) = from.read(&mut bytes) else { return };
        bytes.truncate(len);
        if sender.send(Chunk { due: Instant::now() + delay, bytes }).is_err() {
            return;
        }
    }
}

fn give(mut into: TcpStream, mbit: u64, receiver: &Receiver<Chunk>) {
    let mut free = Instant::now();
    for Chunk { due, bytes } in receiver {
        let start = due.max(free);
        let bits = u64::try_from(bytes.len()).expect("chunks are small") * 8;
        if let Some(nanos) = (bits * 1000).checked_div(mbit) {
            free = start + Duration::from_nanos(nanos);
        }
        // The last bit of a chunk leaves when the line has carried it.
        let leaves = start.max(free);
        thread::sleep(leaves.saturating_duration_since(Instant::now()));
        if into.write_all(&bytes).is_err() {
            break;
        }
    }
    let _ = into.shutdown(Shutdown::Both);
}
