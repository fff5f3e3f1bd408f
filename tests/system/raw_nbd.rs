//! A small NBD client written from the specification alone, with every byte in the test's hand. It speaks simple replies.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use crate::node::VOLUME;

pub(crate) const READ: u16 = 0;
pub(crate) const WRITE: u16 = 1;
pub(crate) const DISC: u16 = 2;
pub(crate) const FLUSH: u16 = 3;
pub(crate) const TRIM: u16 = 4;
pub(crate) const WRITE_ZEROES: u16 = 6;
pub(crate) const FUA: u16 = 1;

const NBD_MAGIC: u64 = 0x4e42_444d_4147_4943;
const OPTION_MAGIC: u64 = 0x4948_4156_454f_5054;
const OPTION_REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;
const REQUEST_MAGIC: u32 = 0x2560_9513;
const REPLY_MAGIC: u32 = 0x6744_6698;
const OPTION_GO: u32 = 7;
const REPLY_ACK: u32 = 1;
const REPLY_ERROR: u32 = 1 << 31;
/// Longest wait for a byte. A primary may hold requests while it decides; for longer than this it must not.
const PATIENCE: Duration = Duration::from_secs(30);

trait Socket: Read + Write + Send {}
impl<S: Read + Write + Send> Socket for S {}

/// A connection, at first right after the server's greeting.
pub(crate) struct Raw {
    socket: Box<dyn Socket>,
    cookie: u64,
}

impl Raw {
    /// A client of the volume at `place`: the path of a Unix socket, or `IP:PORT`.
    ///
    /// # Errors
    /// What the server or the system says.
    pub(crate) fn connect(place: &str) -> Result<Self, String> {
        let mut raw = Self::greet(place).map_err(|error| error.to_string())?;
        raw.go(VOLUME)?;
        Ok(raw)
    }

    /// Connects, and exchanges the first flags.
    pub(crate) fn greet(place: &str) -> io::Result<Self> {
        Self::dial(place)?.greeted()
    }

    /// The same over a connection that is there.
    pub(crate) fn over(stream: TcpStream) -> io::Result<Self> {
        Self::tcp(stream)?.greeted()
    }

    fn greeted(mut self) -> io::Result<Self> {
        let mut greeting = [0; 18];
        self.socket.read_exact(&mut greeting)?;
        assert_eq!(be64(&greeting[..8]), NBD_MAGIC, "the server greets with the magic");
        assert_eq!(be64(&greeting[8..16]), OPTION_MAGIC, "the server speaks newstyle");
        // Fixed newstyle, no zeroes.
        self.send(&3u32.to_be_bytes())?;
        Ok(self)
    }

    /// Connects and says nothing.
    pub(crate) fn dial(place: &str) -> io::Result<Self> {
        if !place.starts_with('/') {
            return Self::tcp(TcpStream::connect(place)?);
        }
        let stream = UnixStream::connect(place)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        Ok(Self { socket: Box::new(stream), cookie: 1 })
    }

    fn tcp(stream: TcpStream) -> io::Result<Self> {
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        stream.set_nodelay(true)?;
        Ok(Self { socket: Box::new(stream), cookie: 1 })
    }

    pub(crate) fn go(&mut self, export: &str) -> Result<(), String> {
        let name = export.as_bytes();
        let mut body = u32::try_from(name.len()).expect("a name is short").to_be_bytes().to_vec();
        body.extend(name);
        body.extend([0, 0]);
        let failed = |error: io::Error| error.to_string();
        self.option(OPTION_GO, &body).map_err(failed)?;
        loop {
            let (kind, body) = self.option_reply().map_err(failed)?;
            match kind {
                REPLY_ACK => return Ok(()),
                kind if kind & REPLY_ERROR != 0 => return Err(String::from_utf8_lossy(&body).into_owned()),
                _ => {}
            }
        }
    }

    /// Sends an option.
    pub(crate) fn option(&mut self, option: u32, body: &[u8]) -> io::Result<()> {
        let mut bytes = OPTION_MAGIC.to_be_bytes().to_vec();
        bytes.extend(option.to_be_bytes());
        bytes.extend(u32::try_from(body.len()).expect("bodies are short").to_be_bytes());
        bytes.extend(body);
        self.send(&bytes)
    }

    /// The next reply to an option: its kind and body.
    pub(crate) fn option_reply(&mut self) -> io::Result<(u32, Vec<u8>)> {
        let mut head = [0; 20];
        self.socket.read_exact(&mut head)?;
        assert_eq!(be64(&head[..8]), OPTION_REPLY_MAGIC, "a reply to an option has its magic");
        let mut body = vec![0; be32(&head[16..]).try_into().expect("64 bits here")];
        self.socket.read_exact(&mut body)?;
        Ok((be32(&head[12..16]), body))
    }

    /// Sends bytes as they are.
    pub(crate) fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.socket.write_all(bytes)
    }

    /// The next bytes, as they are; an empty answer is the end of the connection.
    pub(crate) fn receive(&mut self, len: usize) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; len];
        let got = self.socket.read(&mut bytes)?;
        bytes.truncate(got);
        Ok(bytes)
    }

    /// Sends a request without its payload and without awaiting the reply.
    pub(crate) fn request(&mut self, flags: u16, command: u16, at: u64, len: u32) -> io::Result<()> {
        self.cookie += 1;
        let mut bytes = REQUEST_MAGIC.to_be_bytes().to_vec();
        bytes.extend(flags.to_be_bytes());
        bytes.extend(command.to_be_bytes());
        bytes.extend(self.cookie.to_be_bytes());
        bytes.extend(at.to_be_bytes());
        bytes.extend(len.to_be_bytes());
        self.send(&bytes)
    }

    /// Awaits a simple reply; its error number.
    pub(crate) fn reply(&mut self) -> io::Result<u32> {
        let mut head = [0; 16];
        self.socket.read_exact(&mut head)?;
        assert_eq!(be32(&head[..4]), REPLY_MAGIC, "a simple reply has its magic");
        assert_eq!(be64(&head[8..]), self.cookie, "the reply is to the one request that is open");
        Ok(be32(&head[4..8]))
    }

    /// Writes; the error number of the reply.
    pub(crate) fn write(&mut self, at: u64, bytes: &[u8], flags: u16) -> io::Result<u32> {
        self.request(flags, WRITE, at, u32::try_from(bytes.len()).expect("at most 32 MiB"))?;
        self.send(bytes)?;
        self.reply()
    }

    pub(crate) fn flush(&mut self) -> io::Result<u32> {
        self.request(0, FLUSH, 0, 0)?;
        self.reply()
    }

    /// A request without payload in either direction.
    pub(crate) fn plain(&mut self, flags: u16, command: u16, at: u64, len: u32) -> io::Result<u32> {
        self.request(flags, command, at, len)?;
        self.reply()
    }

    /// Reads; an error reply is an error of the test.
    pub(crate) fn read(&mut self, at: u64, len: usize) -> io::Result<Vec<u8>> {
        self.request(0, READ, at, u32::try_from(len).expect("at most 32 MiB"))?;
        let error = self.reply()?;
        assert_eq!(error, 0, "reading {len} bytes at {at} is answered with an error");
        let mut bytes = vec![0; len];
        self.socket.read_exact(&mut bytes)?;
        Ok(bytes)
    }
}

fn be64(bytes: &[u8]) -> u64 {
    u64::from_be_bytes(bytes.try_into().expect("8 bytes"))
}

fn be32(bytes: &[u8]) -> u32 {
    u32::from_be_bytes(bytes.try_into().expect("4 bytes"))
}
