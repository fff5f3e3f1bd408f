//! Looking for the primary: one dialler for each address, so that one that swallows everything holds up no other.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::{mpsc, oneshot, watch};

use super::hub::Event;
use super::upstream::Wire;
use crate::daemon::config::NbdAddress;
use crate::nbd::{ClientNegotiation, ClientNext, Offer, Standing, follow_name};
use crate::units::Term;

/// First pause between two attempts.
const PAUSE_MIN: Duration = Duration::from_millis(20);
/// Longest pause while there is no primary: how late a new one may be found.
const PAUSE_MAX: Duration = Duration::from_millis(200);
/// Longest pause while there is a primary that does not answer.
const PAUSE_MAX_ASIDE: Duration = Duration::from_secs(1);
/// Longest attempt.
const ATTEMPT: Duration = Duration::from_secs(2);

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

pub(super) struct Dialler {
    address: NbdAddress,
    export: String,
    search: watch::Receiver<Search>,
    events: mpsc::Sender<Event>,
}

static NEXT_CONNECTION: AtomicU64 = AtomicU64::new(1);

impl Dialler {
    pub(super) fn new(
        address: NbdAddress,
        volume: &str,
        search: watch::Receiver<Search>,
        events: mpsc::Sender<Event>,
    ) -> Self {
        Self { address, export: follow_name(volume), search, events }
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
            let outcome = attempt.unwrap_or_else(|_| Err(format!("no answer within {} s", ATTEMPT.as_secs())));
            let why = match outcome {
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
                    String::new()
                }
                Err(why) => why,
            };
            let event = Event::NotFound { address: self.address.to_string(), why };
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

    async fn attempt(&self, above: Option<Term>) -> Result<(Wire, Offer, Standing), String> {
        match &self.address {
            NbdAddress::Tcp(address) => {
                let mut stream = TcpStream::connect(address).await.map_err(|error| error.to_string())?;
                stream.set_nodelay(true).map_err(|error| error.to_string())?;
                let (offer, standing) = self.negotiate(&mut stream, above).await?;
                Ok((Wire::Tcp(stream), offer, standing))
            }
            NbdAddress::Unix(path) => {
                let mut stream = UnixStream::connect(path).await.map_err(|error| error.to_string())?;
                let (offer, standing) = self.negotiate(&mut stream, above).await?;
                Ok((Wire::Unix(stream), offer, standing))
            }
        }
    }

    async fn negotiate<S: AsyncRead + AsyncWrite + Unpin>(
        &self,
        stream: &mut S,
        above: Option<Term>,
    ) -> Result<(Offer, Standing), String> {
        let mut negotiation = ClientNegotiation::start(&self.export, above.is_some());
        let (mut bytes, mut out) = (Vec::new(), Vec::new());
        loop {
            stream.write_all(&out).await.map_err(|error| error.to_string())?;
            out.clear();
            // Never more than what is wanted, so that nothing of what follows is taken.
            bytes.resize(negotiation.wanted(), 0);
            stream.read_exact(&mut bytes).await.map_err(|_| "it closed the connection".to_owned())?;
            let progress = negotiation.receive(&bytes, &mut out).map_err(|stop| stop.to_string())?;
            match progress.next {
                ClientNext::Read(_) => {}
                ClientNext::Described(offer) => {
                    let standing = standing(&offer)?;
                    if above.is_some_and(|above| standing.term <= above) {
                        return Err(format!("node {} is primary under no newer term", standing.node));
                    }
                    negotiation.enter(&mut out);
                }
                ClientNext::Entered(offer) => {
                    let standing = standing(&offer)?;
                    return Ok((offer, standing));
                }
            }
        }
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
