//! Looking for the primary: one dialler for each address, so that one that swallows everything holds up no other.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use rustls_pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader};
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::{mpsc, oneshot, watch};
use tokio_rustls::TlsConnector;

use super::Server;
use super::hub::Event;
use super::upstream::{Encrypted, Wire};
use crate::daemon::config::NbdAddress;
use crate::daemon::printable::one_line;
use crate::daemon::stream::explain;
use crate::nbd::constants::REP_ERR_TLS_REQD;
use crate::nbd::{ClientNegotiation, ClientNext, ClientStop, Offer, Standing, follow_name};
use crate::tls::{Keys, unix_now};
use crate::units::Term;

/// First pause between two attempts.
const PAUSE_MIN: Duration = Duration::from_millis(20);
/// Longest pause while there is no primary: how late a new one may be found.
const PAUSE_MAX: Duration = Duration::from_millis(200);
/// Longest pause while there is a primary that does not answer.
const PAUSE_MAX_ASIDE: Duration = Duration::from_secs(1);
/// Longest attempt.
const ATTEMPT: Duration = Duration::from_secs(2);
/// Bytes gathered below TLS, which takes them from there by the page.
const BELOW_TLS: usize = 64 << 10;

/// What is looked for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Search {
    /// Nothing.
    Rest,
    /// A primary; of a newer term than this, if there is one already.
    Primary { above: Option<Term> },
}

/// A connection on which a node serves the volume.
#[derive(Debug)]
pub(super) struct Found {
    pub(super) connection: u64,
    pub(super) wire: Wire,
    pub(super) standing: Box<Standing>,
    pub(super) size: u64,
    /// Transmission flags.
    pub(super) flags: u16,
    /// Dropped when the connection is not used any more, or never was.
    pub(super) kept: oneshot::Sender<()>,
}

/// What is said of an end of the connection.
const ENDED: &str = "it closed the connection";

/// Why there is no primary to be used; empty when there was one.
#[derive(Debug)]
pub(super) struct Miss {
    pub(super) why: String,
    /// One of the two sides does not believe the other, or the server would have it in the clear: time alone mends nothing.
    pub(super) distrust: bool,
}

impl Miss {
    fn distrust(why: String) -> Self {
        Self { why, distrust: true }
    }

    /// The same, where an end of the connection may be how the other side says that it does not believe this one.
    fn within_tls(self, when: &str) -> Self {
        match self.why.as_str() {
            ENDED => Self::distrust(format!(
                "it ended the connection {when} the handshake of TLS: it may not believe this host's certificate; its log says why"
            )),
            _ => self,
        }
    }
}

impl From<io::Error> for Miss {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe => {
                ENDED.to_owned().into()
            }
            // What TLS says is always of distrust.
            io::ErrorKind::InvalidData => Self::distrust(explain(&error)),
            _ => error.to_string().into(),
        }
    }
}

impl From<String> for Miss {
    fn from(why: String) -> Self {
        Self { why, distrust: false }
    }
}

impl From<ClientStop> for Miss {
    fn from(stop: ClientStop) -> Self {
        let why = match &stop {
            ClientStop::Refused { kind: REP_ERR_TLS_REQD, .. } => {
                "it serves nobody in the clear: name a folder of keys with --keys, or in [security]".to_owned()
            }
            // What a server says may be anything.
            _ => one_line(&stop.to_string()),
        };
        Self { why, distrust: matches!(stop, ClientStop::NoTls { .. }) }
    }
}

pub(super) struct Dialler {
    server: Server,
    export: String,
    search: watch::Receiver<Search>,
    events: mpsc::Sender<Event>,
}

static NEXT_CONNECTION: AtomicU64 = AtomicU64::new(1);

impl Dialler {
    pub(super) fn new(
        server: Server,
        volume: &str,
        search: watch::Receiver<Search>,
        events: mpsc::Sender<Event>,
    ) -> Self {
        Self { server, export: follow_name(volume), search, events }
    }

    /// Looks whenever it is wanted, for ever.
    pub(super) async fn keep_dialling(mut self) {
        let mut pause = PAUSE_MIN;
        loop {
            let search = *self.search.borrow_and_update();
            let Search::Primary { above } = search else {
                pause = PAUSE_MIN;
                if self.search.changed().await.is_err() {
                    return;
                }
                continue;
            };
            let attempt = tokio::time::timeout(ATTEMPT, self.attempt(above)).await;
            let outcome = attempt.unwrap_or_else(|_| Err(format!("no answer within {} s", ATTEMPT.as_secs()).into()));
            let miss = match outcome {
                Ok((wire, offer, standing)) => {
                    let connection = NEXT_CONNECTION.fetch_add(1, Ordering::Relaxed);
                    let (kept, over) = oneshot::channel();
                    let found = Found {
                        connection,
                        wire,
                        standing: Box::new(standing),
                        size: offer.size,
                        flags: offer.flags,
                        kept,
                    };
                    if self.events.send(Event::Found(found)).await.is_err() {
                        return;
                    }
                    // One connection at a time: the next when this one is over. The error is how it is told.
                    let _ = over.await;
                    String::new().into()
                }
                Err(miss) => miss,
            };
            let event = Event::NotFound { address: self.server.address.to_string(), miss };
            if self.events.send(event).await.is_err() {
                return;
            }
            tokio::select! {
                () = tokio::time::sleep(scattered(pause)) => {}
                changed = self.search.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    pause = PAUSE_MIN;
                }
            }
            pause = (pause * 3 / 2).min(if above.is_some() { PAUSE_MAX_ASIDE } else { PAUSE_MAX });
        }
    }

    async fn attempt(&self, above: Option<Term>) -> Result<(Wire, Offer, Standing), Miss> {
        let talk =
            Talk { negotiation: ClientNegotiation::start(&self.export, above.is_some()), out: Vec::new(), above };
        let address = match &self.server.address {
            NbdAddress::Tcp(address) => address,
            NbdAddress::Unix(path) => {
                let mut stream = UnixStream::connect(path).await?;
                let (offer, standing) = talk.enter(&mut stream).await?;
                return Ok((Wire::Unix(stream), offer, standing));
            }
        };
        let mut stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        let Some(keyring) = &self.server.keys else {
            let (offer, standing) = talk.enter(&mut stream).await?;
            return Ok((Wire::Tcp(stream), offer, standing));
        };
        // What was renewed is used from here on.
        let keys = keyring.now();
        let encrypted = self.encrypted(stream, talk, &keys).await;
        let (stream, offer, standing) = encrypted.map_err(|miss| own_fault(miss, &keys))?;
        Ok((Wire::Tls(Box::new(stream)), offer, standing))
    }

    /// `STARTTLS`, the handshake, and the rest over TLS.
    async fn encrypted(
        &self,
        mut stream: TcpStream,
        mut talk: Talk,
        keys: &Keys,
    ) -> Result<(Encrypted, Offer, Standing), Miss> {
        talk.negotiation = talk.negotiation.with_tls();
        talk.next(&mut stream).await?;
        let connector = TlsConnector::from(keys.nbd_dialler(&self.server.node).map_err(Miss::distrust)?);
        let name = ServerName::try_from("node").expect("a name; the certificate names the node in its own way");
        let shaken = connector.connect(name, BufReader::with_capacity(BELOW_TLS, stream)).await;
        let mut stream = shaken.map_err(|error| Miss::from(error).within_tls("within"))?;
        talk.negotiation.encrypted(&mut talk.out);
        // In TLS 1.3 the dialler has done its part before the other side has judged it, and the reason may be lost with the connection.
        let (offer, standing) = talk.enter(&mut stream).await.map_err(|miss| miss.within_tls("right after"))?;
        Ok((stream, offer, standing))
    }
}

/// A negotiation and what is to be sent of it.
struct Talk {
    negotiation: ClientNegotiation,
    out: Vec<u8>,
    above: Option<Term>,
}

impl Talk {
    /// Sends, and reads until there is something to decide.
    async fn next<S: AsyncRead + AsyncWrite + Unpin>(&mut self, stream: &mut S) -> Result<ClientNext, Miss> {
        let mut bytes = Vec::new();
        loop {
            stream.write_all(&self.out).await?;
            // What is encrypted may wait in memory.
            stream.flush().await?;
            self.out.clear();
            // Never more than what is wanted, so that nothing of what follows is taken.
            bytes.resize(self.negotiation.wanted(), 0);
            stream.read_exact(&mut bytes).await?;
            match self.negotiation.receive(&bytes, &mut self.out)?.next {
                ClientNext::Read(_) => {}
                next => return Ok(next),
            }
        }
    }

    /// Goes on until the export is served.
    async fn enter<S: AsyncRead + AsyncWrite + Unpin>(mut self, stream: &mut S) -> Result<(Offer, Standing), Miss> {
        loop {
            match self.next(stream).await? {
                ClientNext::Described(offer) => {
                    let standing = standing(&offer)?;
                    if self.above.is_some_and(|above| standing.term <= above) {
                        return Err(format!("node {} is primary under no newer term", standing.node).into());
                    }
                    self.negotiation.enter(&mut self.out);
                }
                ClientNext::Entered(offer) => {
                    let standing = standing(&offer)?;
                    return Ok((offer, standing));
                }
                ClientNext::Read(_) | ClientNext::StartTls => return Err("TLS is spoken already".to_owned().into()),
            }
        }
    }
}

/// Where there is no trust, a certificate of this host that has expired is named.
fn own_fault(miss: Miss, keys: &Keys) -> Miss {
    let now = unix_now();
    match keys.warning(now).filter(|_| miss.distrust && keys.not_after < now) {
        Some(warning) => Miss::distrust(format!("{}; {warning}", miss.why)),
        None => miss,
    }
}

fn standing(offer: &Offer) -> Result<Standing, String> {
    offer.description.parse().map_err(|error: crate::nbd::NotAStanding| error.to_string())
}

/// Between three quarters and five quarters of `pause`: many clients shall not come at one moment.
fn scattered(pause: Duration) -> Duration {
    let grain = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |now| now.subsec_nanos() % 1000);
    pause * (750 + grain / 2) / 1000
}
