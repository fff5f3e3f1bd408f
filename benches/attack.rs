//! Attacks a pair on the loopback, as cheaply as can be: what is measured is what the servers do about it, and not this.
//!
//! It prints `ready` when the attack stands, goes on until its standard input ends, and then prints what it did as one line of JSON, with its
//! own CPU time. `scripts/siege` runs it.
//!
//! ```text
//! attack half-open --nbd IP:PORT --data IP:PORT --count 1000 --rate 500 --addresses 250
//! attack heartbeats --from IP:PORT --to IP:PORT --rate 10000
//! attack slow-reader --nbd IP:PORT --export v
//! ```

mod nbd;

use std::cell::Cell;
use std::error::Error;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpStream, UdpSocket};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use clap::Parser;
use rustls::crypto::ring;
use rustls::{ClientConfig, ClientConnection, RootCertStore};
use rustls_pki_types::ServerName;
use serde_json::{Value, json};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpSocket;
use tokio::task::{LocalSet, spawn_local};
use tokio::time::{sleep, sleep_until};

use nbd::{COMMAND_READ, header, negotiate, option};

type Result<T> = std::result::Result<T, Box<dyn Error + Send + Sync>>;

const OPTION_STARTTLS: u32 = 5;
/// What a slow reader has asked for, and not read, and how it reads.
const READ_LEN: u32 = 1 << 20;
const READS_OPEN: u64 = 64;
const SIP_LEN: usize = 16 << 10;
const SIP_INTERVAL: Duration = Duration::from_millis(50);

/// Attacks a server.
#[derive(Parser, Debug)]
enum Attack {
    /// Connections that stop at eight places before there is agreement, each opened again when the server has closed it.
    HalfOpen {
        #[arg(long)]
        nbd: SocketAddrV4,
        #[arg(long)]
        data: SocketAddrV4,
        /// So many that are wanted at one time.
        #[arg(long, default_value_t = 1000)]
        count: u32,
        /// Opened in a second, once all were opened a first time.
        #[arg(long, default_value_t = 500)]
        rate: u32,
        /// Addresses that they come from, of 127.9.0.0/16.
        #[arg(long, default_value_t = 250)]
        addresses: u32,
    },
    /// Datagrams that are heartbeats but for the tag, with the address of the peer where the system allows it.
    Heartbeats {
        #[arg(long)]
        from: SocketAddrV4,
        #[arg(long)]
        to: SocketAddrV4,
        #[arg(long, default_value_t = 10_000)]
        rate: u32,
    },
    /// A client that asks for much and reads 320 KiB in a second.
    SlowReader {
        #[arg(long)]
        nbd: SocketAddrV4,
        #[arg(long, default_value = "")]
        export: String,
    },
}

fn main() -> Result<()> {
    let attack = Attack::parse();
    let over = Arc::new(AtomicBool::new(false));
    let ending = Arc::clone(&over);
    std::thread::spawn(move || {
        // Whatever it says, and that it ends, is the end.
        let _ = std::io::stdin().read(&mut [0; 1]);
        ending.store(true, Ordering::Relaxed);
    });
    let mut did = match attack {
        Attack::HalfOpen { nbd, data, count, rate, addresses } => {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            let places = Places { nbd, data, hello: client_hello()? };
            LocalSet::new().block_on(&runtime, half_open(places, count, rate.max(1), addresses.max(1), &over))?
        }
        Attack::Heartbeats { from, to, rate } => heartbeats(from, to, rate, &over)?,
        Attack::SlowReader { nbd, export } => slow_reader(nbd, &export, &over)?,
    };
    did["cpu_s"] = json!(cpu_seconds()?);
    println!("{did}");
    Ok(())
}

fn ready() -> Result<Instant> {
    println!("ready");
    std::io::stdout().flush()?;
    Ok(Instant::now())
}

/// User and system time of this process.
fn cpu_seconds() -> Result<f64> {
    let stat = std::fs::read_to_string("/proc/self/stat")?;
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    let ticks: u32 = fields[11].parse::<u32>()? + fields[12].parse::<u32>()?;
    Ok(f64::from(ticks) / 100.0)
}

/// What is attacked.
struct Places {
    nbd: SocketAddrV4,
    data: SocketAddrV4,
    hello: Vec<u8>,
}

/// The first flight of a handshake of TLS 1.3 as a node begins it. A server answers it with its key exchange and its signature.
fn client_hello() -> Result<Vec<u8>> {
    let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()));
    let config =
        config.with_protocol_versions(&[&rustls::version::TLS13])?.with_root_certificates(RootCertStore::empty());
    let mut config = config.with_no_client_auth();
    config.alpn_protocols = vec![b"repblk-link/1".to_vec()];
    let mut connection = ClientConnection::new(Arc::new(config), ServerName::try_from("node")?)?;
    let mut bytes = Vec::new();
    connection.write_tls(&mut bytes)?;
    Ok(bytes)
}

/// What the connections have come to.
#[derive(Default)]
struct Tally {
    open: Cell<u32>,
    opened: Cell<u32>,
    refused: Cell<u32>,
}

async fn half_open(places: Places, count: u32, rate: u32, addresses: u32, over: &AtomicBool) -> Result<Value> {
    let (places, tally) = (Rc::new(places), Rc::new(Tally::default()));
    let next = Rc::new(Cell::new(tokio::time::Instant::now()));
    for number in 0..count {
        let (places, tally, next) = (Rc::clone(&places), Rc::clone(&tally), Rc::clone(&next));
        spawn_local(async move {
            // The first time in no time: two a millisecond.
            sleep(Duration::from_micros(500) * number).await;
            let from =
                Ipv4Addr::from_bits(0x7f09_0000 + (number % addresses) / 250 * 256 + (number % addresses) % 250 + 1);
            loop {
                if stall(&places, number, from, &tally).await.is_err() {
                    tally.refused.set(tally.refused.get() + 1);
                }
                let turn = next.get().max(tokio::time::Instant::now());
                next.set(turn + Duration::from_secs(1) / rate);
                sleep_until(turn).await;
            }
        });
    }
    sleep(Duration::from_micros(500) * count + Duration::from_millis(100)).await;
    let (began, before) = (ready()?, tally.opened.get());
    let (mut samples, mut open) = (0u32, 0u64);
    while !over.load(Ordering::Relaxed) {
        sleep(Duration::from_millis(10)).await;
        (samples, open) = (samples + 1, open + u64::from(tally.open.get()));
    }
    let seconds = began.elapsed().as_secs_f64();
    let opened = f64::from(tally.opened.get() - before) / seconds;
    let open = open / u64::from(samples.max(1));
    Ok(json!({ "seconds": seconds, "open": open, "opened_per_s": opened, "not_opened": tally.refused.get() }))
}

/// Opens a connection, goes as far as the number says, and waits for the server to close it.
async fn stall(places: &Places, number: u32, from: Ipv4Addr, tally: &Tally) -> Result<()> {
    let to = if number % 8 < 5 { places.nbd } else { places.data };
    let socket = TcpSocket::new_v4()?;
    socket.set_reuseaddr(true)?;
    socket.bind(SocketAddr::from((from, 0)))?;
    let mut stream = socket.connect(to.into()).await?;
    tally.opened.set(tally.opened.get() + 1);
    tally.open.set(tally.open.get() + 1);
    // Whatever becomes of it, it was open until then.
    let _ = advance(&mut stream, places, number).await;
    let mut said = [0; 4096];
    while matches!(stream.read(&mut said).await, Ok(1..)) {}
    tally.open.set(tally.open.get() - 1);
    Ok(())
}

async fn advance(stream: &mut tokio::net::TcpStream, places: &Places, number: u32) -> Result<()> {
    let (hello, half) = (&places.hello[..], &places.hello[..places.hello.len() / 2]);
    let flags = 3u32.to_be_bytes();
    match number % 8 {
        0 | 5 => {}
        1 => stream.write_all(&flags).await?,
        2 => stream.write_all(&[&flags[..], b"IHAVE"].concat()).await?,
        stage @ (3 | 4) => {
            stream.write_all(&[&flags[..], &option(OPTION_STARTTLS, &[])?].concat()).await?;
            let mut said = [0; 18 + 20];
            stream.read_exact(&mut said).await?;
            stream.write_all(if stage == 3 { half } else { hello }).await?;
        }
        6 => stream.write_all(half).await?,
        _ => stream.write_all(hello).await?,
    }
    Ok(())
}

fn heartbeats(from: SocketAddrV4, to: SocketAddrV4, rate: u32, over: &AtomicBool) -> Result<Value> {
    // As `src/wire/sealed` has it, and no tag: 16 bytes that are none.
    let mut forged = b"REPBLKSD\x01\x00".to_vec();
    forged.extend_from_slice(&200u16.to_le_bytes());
    forged.resize(48 + 200 + 16, 0x5a);
    let raw = Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::from(255)));
    let spoofed = raw.is_ok();
    let datagram = if spoofed { packet(from, to, &forged)? } else { forged };
    let plain = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
    let send = |bytes: &[u8]| match &raw {
        Ok(socket) => socket.send_to(bytes, &to.into()),
        Err(_) => plain.send_to(bytes, to),
    };
    let (mut sent, mut lost) = (0u32, 0u32);
    let began = ready()?;
    while !over.load(Ordering::Relaxed) {
        let due = (began.elapsed().as_secs_f64() * f64::from(rate)).min(f64::from(u32::MAX));
        while f64::from(sent) < due {
            sent += 1;
            lost += u32::from(send(&datagram).is_err());
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    let seconds = began.elapsed().as_secs_f64();
    Ok(json!({ "seconds": seconds, "sent_per_s": f64::from(sent) / seconds, "not_sent": lost, "spoofed": spoofed }))
}

/// A datagram with whatever sender is named. The kernel fills in the checksum of IP; UDP needs none.
fn packet(from: SocketAddrV4, to: SocketAddrV4, body: &[u8]) -> Result<Vec<u8>> {
    let udp_len = u16::try_from(8 + body.len())?;
    let mut bytes = vec![0x45, 0];
    bytes.extend_from_slice(&(20 + udp_len).to_be_bytes());
    bytes.extend_from_slice(&[0, 0, 0, 0, 64, 17, 0, 0]);
    bytes.extend_from_slice(&from.ip().octets());
    bytes.extend_from_slice(&to.ip().octets());
    for field in [from.port(), to.port(), udp_len, 0] {
        bytes.extend_from_slice(&field.to_be_bytes());
    }
    bytes.extend_from_slice(body);
    Ok(bytes)
}

fn slow_reader(nbd: SocketAddrV4, export: &str, over: &AtomicBool) -> Result<Value> {
    let mut stream = TcpStream::connect(nbd)?;
    stream.set_read_timeout(Some(Duration::from_millis(100)))?;
    let size = negotiate(&mut stream, export)?;
    let reads = size / u64::from(READ_LEN);
    if reads == 0 {
        return Err(format!("the device of {size} bytes is too small").into());
    }
    let ask = |stream: &mut TcpStream, cookie: u64| {
        stream.write_all(&header(COMMAND_READ, cookie, cookie % reads * u64::from(READ_LEN), READ_LEN))
    };
    (0..READS_OPEN).try_for_each(|cookie| ask(&mut stream, cookie))?;
    let began = ready()?;
    let (mut sip, mut read, mut asked) = (vec![0; SIP_LEN], 0u64, READS_OPEN);
    while !over.load(Ordering::Relaxed) {
        std::thread::sleep(SIP_INTERVAL);
        match stream.read(&mut sip) {
            Ok(0) => return Err("the server put a slow reader out".into()),
            Ok(len) => read += u64::try_from(len)?,
            Err(error) if matches!(error.kind(), std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut) => {}
            Err(error) => return Err(error.into()),
        }
        while read / u64::from(READ_LEN) + READS_OPEN > asked {
            ask(&mut stream, asked)?;
            asked += 1;
        }
    }
    Ok(
        json!({ "seconds": began.elapsed().as_secs_f64(), "read_bytes": read, "asked_bytes": asked * u64::from(READ_LEN) }),
    )
}
