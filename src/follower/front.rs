//! The local NBD socket: what clients ask becomes requests of the hub, bounded in number and bytes.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt, BufReader, BufWriter};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch};
use tracing::{debug, info, warn};

use super::hub::{Event, Question};
use crate::attach::Class;
use crate::daemon::lobby::Lobby;
use crate::daemon::sockets::UnixSocket;
use crate::nbd::constants::{self as c, EXTENDED_REQUEST_LEN};
use crate::nbd::{
    Allocation, ExportInfo, ExportListing, ExportRefusal, Exports, Extents, Handover, Header, NbdError, Negotiation,
    Next, RefusalCode, Reject, ReplyTo, Request, Terms, header_len, parse_header, reply, validate,
};
use crate::units::ByteRange;

/// Longest time for a negotiation.
const NEGOTIATION_TIME: Duration = Duration::from_secs(10);
/// Clients that negotiate at one time; one more takes the place of the oldest.
const LOBBY_SEATS: usize = 32;
/// Clients served at one time. The socket is one user's: more are a program that went wrong.
const CLIENTS_MAX: usize = 64;
/// Requests one client may have open.
const OPEN_MAX: u32 = 128;
/// KiB of payload that all clients together may have open. The longest payload must fit.
const KIB_MAX: u32 = 128 << 10;
const _: () = assert!(KIB_MAX / 2 >= c::MAX_PAYLOAD >> 10);

/// What goes to a client, in the order it was given.
pub(super) struct Outgoing {
    head: Vec<u8>,
    data: Vec<u8>,
    /// Given back when it is sent.
    _room: Room,
}

/// A request's share of what may be open.
#[derive(Debug)]
pub(super) struct Room {
    _place: OwnedSemaphorePermit,
    _bytes: Option<OwnedSemaphorePermit>,
}

/// Where the answer to a request goes.
#[derive(Debug)]
pub(super) struct Asker {
    pub(super) client: u64,
    to: ReplyTo,
    /// The range of a read.
    read: Option<ByteRange>,
    room: Room,
    out: mpsc::UnboundedSender<Outgoing>,
}

impl Asker {
    /// Answers: `error` is 0 or NBD's error value, `data` what a read has brought.
    pub(super) fn answer(self, error: u32, data: Vec<u8>) {
        let mut head = Vec::new();
        match (error, self.read) {
            (0, Some(range)) => head.extend_from_slice(reply::read(self.to, range).as_slice()),
            (0, None) => head.extend_from_slice(reply::success(self.to).as_slice()),
            (code, _) => reply::error(self.to, NbdError::from_code(code), "the primary answered so", &mut head),
        }
        // A client that has gone reads nothing any more.
        let _ = self.out.send(Outgoing { head, data, _room: self.room });
    }
}

pub(super) struct Front {
    volume: String,
    size: watch::Receiver<Option<u64>>,
    events: mpsc::Sender<Event>,
    bytes: Arc<Semaphore>,
    lobby: Arc<Lobby>,
    clients: Semaphore,
    next_client: AtomicU64,
}

impl Front {
    pub(super) fn new(volume: &str, size: watch::Receiver<Option<u64>>, events: mpsc::Sender<Event>) -> Self {
        Self {
            volume: volume.to_owned(),
            size,
            events,
            bytes: Arc::new(Semaphore::new(usize::try_from(KIB_MAX).expect("fits"))),
            lobby: Arc::new(Lobby::new(LOBBY_SEATS)),
            clients: Semaphore::new(CLIENTS_MAX),
            next_client: AtomicU64::new(1),
        }
    }

    /// Opens the socket when the size of the device is known, and serves it for ever.
    pub(super) async fn keep_serving(self: Arc<Self>, path: PathBuf) {
        let size = match self.size.clone().wait_for(Option::is_some).await {
            Ok(size) => size.expect("waited for"),
            Err(_) => return,
        };
        let socket = match UnixSocket::bind(&path, 0o600, "NBD clients of this host") {
            Ok(socket) => socket,
            Err(why) => {
                let _ = self.events.send(Event::Fatal(why)).await;
                return;
            }
        };
        info!(volume = self.volume, bytes = size, socket = %path.display(), "device is ready");
        loop {
            match socket.listener.accept().await {
                Ok((stream, _)) => {
                    let front = Arc::clone(&self);
                    tokio::spawn(async move {
                        if let Err(why) = front.serve(stream, size).await {
                            debug!(volume = front.volume, "a client left: {why}");
                        }
                    });
                }
                Err(error) => {
                    warn!(%error, "a client cannot be accepted");
                    tokio::time::sleep(Duration::from_millis(200)).await;
                }
            }
        }
    }

    async fn serve(&self, stream: UnixStream, size: u64) -> Result<(), String> {
        let (reader, mut writer) = stream.into_split();
        let mut reader = BufReader::with_capacity(256 << 10, reader);
        let negotiation = self.negotiate(&mut reader, &mut writer, size);
        let seated = self.lobby.seat(tokio::time::timeout(NEGOTIATION_TIME, negotiation)).await;
        let agreed = seated.ok_or("newcomers needed its seat before there was agreement")?;
        let terms = agreed.map_err(|_| "no agreement in time".to_owned())??.terms();
        let _place = self.clients.try_acquire().map_err(|_| full())?;
        let (out, outgoing) = mpsc::unbounded_channel();
        let client = self.next_client.fetch_add(1, Ordering::Relaxed);
        let sender = tokio::spawn(write(writer, outgoing));
        let _ = self.events.send(Event::ClientHere).await;
        let places = Arc::new(Semaphore::new(usize::try_from(OPEN_MAX).expect("fits")));
        let mut session = Session { client, terms, reader, out, places, front: self };
        let ended = session.take_requests().await;
        drop(session);
        let _ = self.events.send(Event::ClientGone { client }).await;
        // Ends when the last answer is sent, or the client reads no more.
        let _ = sender.await;
        ended
    }

    async fn negotiate(
        &self,
        reader: &mut BufReader<OwnedReadHalf>,
        writer: &mut OwnedWriteHalf,
        size: u64,
    ) -> Result<Handover, String> {
        let exports = OneDevice { volume: &self.volume, size, clients: &self.clients };
        let mut out = Vec::new();
        let mut negotiation = Negotiation::start(&mut out);
        let mut bytes = Vec::new();
        loop {
            writer.write_all(&out).await.map_err(|error| error.to_string())?;
            out.clear();
            // Exactly what is wanted: what follows is requests.
            bytes.resize(negotiation.wanted(), 0);
            reader.read_exact(&mut bytes).await.map_err(|error| error.to_string())?;
            let progress = negotiation.receive(&bytes, &exports, &mut out);
            match progress.next {
                Next::Read(_) => {}
                Next::Transmission(handover) => {
                    writer.write_all(&out).await.map_err(|error| error.to_string())?;
                    return Ok(*handover);
                }
                // Never offered on a Unix socket.
                Next::StartTls => return Err("TLS is not offered here".to_owned()),
                Next::Close(reason) => {
                    let _ = writer.write_all(&out).await;
                    return Err(reason.to_string());
                }
            }
        }
    }
}

/// The one export of this socket.
struct OneDevice<'f> {
    volume: &'f str,
    size: u64,
    clients: &'f Semaphore,
}

impl Exports for OneDevice<'_> {
    fn find(&self, name: &[u8]) -> Result<ExportInfo, ExportRefusal> {
        if !name.is_empty() && name != self.volume.as_bytes() {
            let message = format!("there is no such export here; there is only {}", self.volume);
            return Err(ExportRefusal { code: RefusalCode::Unknown, message });
        }
        if self.clients.available_permits() == 0 {
            return Err(ExportRefusal { code: RefusalCode::Policy, message: full() });
        }
        Ok(ExportInfo {
            description: format!("repblk volume {}, wherever it is served", self.volume),
            // What is fast there is not known here.
            fast_zero: false,
            ..ExportInfo::new(self.volume, self.size)
        })
    }

    fn list(&self) -> Vec<ExportListing> {
        vec![ExportListing { name: self.volume.to_owned(), description: "follows the primary".to_owned() }]
    }

    fn shutting_down(&self) -> bool {
        false
    }
}

struct Session<'f> {
    client: u64,
    terms: Terms,
    reader: BufReader<OwnedReadHalf>,
    out: mpsc::UnboundedSender<Outgoing>,
    places: Arc<Semaphore>,
    front: &'f Front,
}

impl Session<'_> {
    async fn take_requests(&mut self) -> Result<(), String> {
        let length = header_len(self.terms.mode);
        loop {
            let mut bytes = [0; EXTENDED_REQUEST_LEN];
            self.reader.read_exact(&mut bytes[..length]).await.map_err(|error| error.to_string())?;
            let header = parse_header(&self.terms, &bytes[..length]).map_err(|error| error.to_string())?;
            let header = header.expect("the header is whole");
            match validate(&self.terms, &header) {
                Ok(Request::Disconnect) => {
                    // Everything that was asked is answered first.
                    let _ = self.places.acquire_many(OPEN_MAX).await;
                    return Ok(());
                }
                Ok(request) => self.take(header, request).await?,
                Err(reject) => self.refuse(&header, reject).await?,
            }
        }
    }

    async fn take(&mut self, header: Header, request: Request) -> Result<(), String> {
        let to = header.reply_to(self.terms.mode);
        let (class, range, flags, read) = match request {
            Request::Read { range, .. } => (Class::Read, range, 0, Some(range)),
            Request::Cache { range } => (Class::Read, range, 0, None),
            Request::Write { range, fua } | Request::Trim { range, fua } => (Class::Change, range, force(fua), None),
            Request::WriteZeroes { range, fua, no_hole, .. } => {
                (Class::Change, range, force(fua) | if no_hole { c::CMD_FLAG_NO_HOLE } else { 0 }, None)
            }
            Request::Flush => (Class::Flush, ByteRange::new(0, 0), 0, None),
            Request::BlockStatus { range, req_one } => {
                // What is data here and what is not is not known: data is always true enough.
                let mut extents = Extents::new(range.len(), req_one);
                extents.push(range.len(), Allocation::Data);
                return self.say(|out| reply::block_status(to, &extents, out)).await;
            }
            Request::Nothing => return self.say(|out| out.extend_from_slice(reply::nothing(to).as_slice())).await,
            Request::Disconnect => unreachable!("handled before"),
        };
        if u32::try_from(range.len()).is_err() {
            let reject = Reject { error: NbdError::Overflow, message: "ask for less than 4 GiB at a time" };
            return self.refuse(&header, reject).await;
        }
        let payload_len = header.payload_len(self.terms.mode);
        let carried = payload_len.max(read.map_or(0, ByteRange::len));
        let room = self.room(carried).await?;
        let mut payload = vec![0; usize::try_from(payload_len).expect("at most the maximum payload")];
        self.reader.read_exact(&mut payload).await.map_err(|error| error.to_string())?;
        let header = Header { flags, command: header.command, cookie: 0, offset: range.start(), length: range.len() };
        let asker = Asker { client: self.client, to, read, room, out: self.out.clone() };
        let fua = flags & c::CMD_FLAG_FUA != 0;
        let question = Question { asker, class, range, fua, header, payload: Arc::new(payload) };
        self.front.events.send(Event::Asked(question)).await.map_err(|_| "repblk attach ends".to_owned())
    }

    async fn room(&self, bytes: u64) -> Result<Room, String> {
        const OPEN: &str = "nobody closes it";
        let place = Arc::clone(&self.places).acquire_owned().await.expect(OPEN);
        let kib = u32::try_from(bytes.div_ceil(1024)).expect("at most the maximum payload");
        let bytes = match kib {
            0 => None,
            kib => Some(Arc::clone(&self.front.bytes).acquire_many_owned(kib).await.expect(OPEN)),
        };
        Ok(Room { _place: place, _bytes: bytes })
    }

    /// Refuses a request, after its payload is gone.
    async fn refuse(&mut self, header: &Header, reject: Reject) -> Result<(), String> {
        let payload = header.payload_len(self.terms.mode);
        let drained = tokio::io::copy(&mut (&mut self.reader).take(payload), &mut tokio::io::sink()).await;
        if drained.map_err(|error| error.to_string())? < payload {
            return Err("it closed the connection in mid-request".to_owned());
        }
        let to = header.reply_to(self.terms.mode);
        self.say(|out| reply::error(to, reject.error, reject.message, out)).await
    }

    /// Answers at once. That takes a place, too: who asks and never reads would fill the memory with answers.
    async fn say(&self, encode: impl FnOnce(&mut Vec<u8>)) -> Result<(), String> {
        let room = self.room(0).await?;
        let mut head = Vec::new();
        encode(&mut head);
        let outgoing = Outgoing { head, data: Vec::new(), _room: room };
        self.out.send(outgoing).map_err(|_| "it reads no more".to_owned())
    }
}

fn full() -> String {
    format!(
        "refused by the rule clients-full: {CLIENTS_MAX} clients are connected to this `repblk attach` already; end some of them"
    )
}

fn force(fua: bool) -> u16 {
    if fua { c::CMD_FLAG_FUA } else { 0 }
}

async fn write(writer: OwnedWriteHalf, mut outgoing: mpsc::UnboundedReceiver<Outgoing>) -> std::io::Result<()> {
    let mut writer = BufWriter::with_capacity(256 << 10, writer);
    while let Some(next) = outgoing.recv().await {
        writer.write_all(&next.head).await?;
        writer.write_all(&next.data).await?;
        if outgoing.is_empty() {
            writer.flush().await?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A client that asks what can be answered at once, and never reads, is not read any more: its answers do not fill the memory.
    #[tokio::test]
    async fn who_never_reads_its_answers_is_not_listened_to_any_more() {
        const MANY: usize = 32 << 20;
        let (events, mut heard) = mpsc::channel(16);
        let (_size, size) = watch::channel(Some(1 << 20));
        let front = Arc::new(Front::new("v", size, events));
        let (mut client, server) = UnixStream::pair().expect("a pair");
        let serving = tokio::spawn(async move { front.serve(server, 1 << 20).await });
        client.read_exact(&mut [0; 18]).await.expect("the greeting");
        let go = [&3u32.to_be_bytes()[..], b"IHAVEOPT", &[0, 0, 0, 7, 0, 0, 0, 6], &[0; 6]].concat();
        client.write_all(&go).await.expect("is taken");
        assert!(matches!(heard.recv().await, Some(Event::ClientHere)), "it is served");
        // A command that nobody knows: refused, with an answer.
        let mut request = 0x2560_9513u32.to_be_bytes().to_vec();
        request.extend_from_slice(&[0, 0, 0, 77]);
        request.resize(28, 0);
        let (requests, mut taken) = (request.repeat(1000), 0);
        let flood = async {
            while taken < MANY {
                taken += client.write(&requests).await.expect("it is not put out");
            }
        };
        let stalled = tokio::time::timeout(Duration::from_secs(1), flood).await.is_err();
        assert!(stalled, "{taken} bytes of requests were taken without an answer being read");
        drop(client);
        serving.abort();
    }

    #[tokio::test]
    async fn clients_are_counted_and_one_too_many_is_told() {
        let (events, _heard) = mpsc::channel(16);
        let (_size, size) = watch::channel(Some(1 << 20));
        let front = Front::new("v", size, events);
        let places: Vec<_> = (0..CLIENTS_MAX).map(|_| front.clients.try_acquire().expect("room")).collect();
        let find = || OneDevice { volume: "v", size: 1 << 20, clients: &front.clients }.find(b"v");
        let refused = find().expect_err("is full");
        assert!(refused.message.contains("rule clients-full"), "{refused}");
        drop(places);
        assert!(find().is_ok());
    }
}
