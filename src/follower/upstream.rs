//! The connection to the primary in use: requests go out in order, replies come in as they may.

use std::collections::BTreeMap;
use std::net::Shutdown;
use std::os::fd::AsFd;
use std::sync::{Arc, Mutex, PoisonError};

use socket2::Socket;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader, BufWriter};
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::{mpsc, oneshot};
use tokio_rustls::client::TlsStream;

use super::hub::Event;
use crate::daemon::stream::explain;
use crate::nbd::Header;
use crate::nbd::client::{request, simple_reply};
use crate::nbd::constants::{CMD_READ, SIMPLE_REPLY_LEN};

/// Bytes gathered for one send or receive.
pub(super) const GATHERED: usize = 256 << 10;

/// A connection with TLS. What comes is gathered below it, since TLS takes it from there by the page.
pub(super) type Encrypted = TlsStream<BufReader<TcpStream>>;

/// A connection whose negotiation is over.
#[derive(Debug)]
pub(super) enum Wire {
    Tcp(TcpStream),
    Unix(UnixStream),
    Tls(Box<Encrypted>),
}

/// For closing a connection at once, whoever has it.
pub(super) fn second_handle(socket: &impl AsFd) -> std::io::Result<Socket> {
    Ok(Socket::from(socket.as_fd().try_clone_to_owned()?))
}

/// A request on its way out.
struct Outgoing {
    header: Header,
    payload: Arc<Vec<u8>>,
}

/// Length of the data that each open read will bring.
type Lengths = Arc<Mutex<BTreeMap<u64, usize>>>;

pub(super) struct Upstream {
    pub(super) connection: u64,
    queue: mpsc::UnboundedSender<Outgoing>,
    lengths: Lengths,
    /// A second handle, to close the connection at once.
    socket: Socket,
    _kept: oneshot::Sender<()>,
}

impl Upstream {
    /// Starts to carry requests; what comes of them goes to `events`.
    pub(super) fn start(
        connection: u64,
        wire: Wire,
        kept: oneshot::Sender<()>,
        events: mpsc::Sender<Event>,
    ) -> std::io::Result<Self> {
        let (queue, outgoing) = mpsc::unbounded_channel();
        let lengths = Lengths::default();
        let socket = match &wire {
            Wire::Tcp(stream) => second_handle(stream)?,
            Wire::Unix(stream) => second_handle(stream)?,
            Wire::Tls(stream) => second_handle(stream.get_ref().0.get_ref())?,
        };
        match wire {
            Wire::Tcp(stream) => {
                let (reader, writer) = stream.into_split();
                spawn(connection, BufReader::with_capacity(GATHERED, reader), writer, outgoing, &lengths, events);
            }
            Wire::Unix(stream) => {
                let (reader, writer) = stream.into_split();
                spawn(connection, BufReader::with_capacity(GATHERED, reader), writer, outgoing, &lengths, events);
            }
            Wire::Tls(stream) => {
                // It keeps what was decrypted and not taken yet: gathered once more, it would only be copied once more.
                let (reader, writer) = tokio::io::split(*stream);
                spawn(connection, reader, writer, outgoing, &lengths, events);
            }
        }
        Ok(Self { connection, queue, lengths, socket, _kept: kept })
    }

    /// Sends a request whose cookie is its number.
    pub(super) fn send(&self, header: Header, payload: Arc<Vec<u8>>) {
        let length = if header.command == CMD_READ { usize::try_from(header.length).unwrap_or(0) } else { 0 };
        self.lengths.lock().unwrap_or_else(PoisonError::into_inner).insert(header.cookie, length);
        // A connection that has ended is told by its reader.
        let _ = self.queue.send(Outgoing { header, payload });
    }
}

impl Drop for Upstream {
    /// Nothing that is still queued goes out after this.
    fn drop(&mut self) {
        let _ = self.socket.shutdown(Shutdown::Both);
    }
}

fn spawn(
    connection: u64,
    reader: impl AsyncRead + Unpin + Send + 'static,
    writer: impl AsyncWrite + Unpin + Send + 'static,
    outgoing: mpsc::UnboundedReceiver<Outgoing>,
    lengths: &Lengths,
    events: mpsc::Sender<Event>,
) {
    let lengths = Arc::clone(lengths);
    tokio::spawn(async move {
        // An error is noticed by the reader too, which tells it.
        let _ = write(writer, outgoing).await;
    });
    tokio::spawn(async move {
        let why = match read(connection, reader, lengths, &events).await {
            Ok(()) => "it closed the connection".to_owned(),
            Err(why) => why,
        };
        let _ = events.send(Event::Lost { connection, why }).await;
    });
}

async fn write(
    writer: impl AsyncWrite + Unpin,
    mut outgoing: mpsc::UnboundedReceiver<Outgoing>,
) -> std::io::Result<()> {
    let mut writer = BufWriter::with_capacity(GATHERED, writer);
    while let Some(next) = outgoing.recv().await {
        writer.write_all(&request(&next.header)).await?;
        writer.write_all(&next.payload).await?;
        if outgoing.is_empty() {
            writer.flush().await?;
        }
    }
    Ok(())
}

async fn read(
    connection: u64,
    mut reader: impl AsyncRead + Unpin,
    lengths: Lengths,
    events: &mpsc::Sender<Event>,
) -> Result<(), String> {
    loop {
        let mut head = [0; SIMPLE_REPLY_LEN];
        match reader.read_exact(&mut head).await {
            Ok(_) => {}
            Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => return Ok(()),
            Err(error) => return Err(explain(&error)),
        }
        let reply = simple_reply(&head).map_err(|error| error.to_string())?;
        let length = lengths.lock().unwrap_or_else(PoisonError::into_inner).remove(&reply.cookie);
        let length = length.ok_or("it answered what it was not asked")?;
        let mut data = vec![0; if reply.error == 0 { length } else { 0 }];
        reader.read_exact(&mut data).await.map_err(|error| explain(&error))?;
        let event = Event::Replied { connection, number: reply.cookie, error: reply.error, data };
        if events.send(event).await.is_err() {
            return Ok(());
        }
    }
}
