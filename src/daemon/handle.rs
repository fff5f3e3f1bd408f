//! The daemon's end of one volume: questions to its thread with their answers, links, clients, and its news.
//!
//! Nothing here waits for the volume's thread without a bound: a thread that hangs in its device must not take the
//! control plane with it.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, OnceLock};
use std::time::{Duration, Instant};

use tokio::sync::{Notify, oneshot};
use tracing::{debug, info, warn};

use super::admission::Place;
use super::config::{CopySpec, VolumeSpec};
use super::events::{EventHub, Happening, ResyncEvent};
use super::failover;
use super::status::{millis, part, percent, rate};
use crate::dataplane::Negotiated;
use crate::dataplane::mailbox::{ClientManners, Letter, News, State};
use crate::units::{ClusterId, ConnectionId, DiskInstance, Moment, PeerNo, SessionId, Ticket, VolumeId};
use crate::volume::io::{Command, DirtyRuns, Refusal, Report, ResyncView};

/// Longest wait for a volume's thread to say how things are.
pub(super) const ANSWER_TIME: Duration = Duration::from_millis(1500);
/// A link that ends sooner was refused by one of the nodes, and will be again until something changes.
const SHORT_LINK: Duration = Duration::from_secs(1);
/// Least time between two lines of resync progress in the log.
const PROGRESS_INTERVAL: Duration = Duration::from_secs(2);

/// What a copy's metadata says it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct CopyIdentity {
    pub(super) cluster: ClusterId,
    pub(super) volume: VolumeId,
    pub(super) instance: DiskInstance,
    /// Bytes of the volume.
    pub(super) size: u64,
}

/// One volume as the daemon knows it.
pub(super) struct VolumeHandle {
    pub(super) spec: VolumeSpec,
    pub(super) copy: CopySpec,
    pub(super) identity: CopyIdentity,
    /// Names of the peers; the place is the slot.
    pub(super) peers: Vec<String>,
    /// Told whenever a link came or went, or may be tried again.
    pub(super) link_news: Notify,
    /// Told when the volume's thread ended.
    pub(super) end_news: Notify,
    pub(super) events: EventHub,
    /// Who decides about failover; there from the start of the daemon on.
    pub(super) failover: OnceLock<failover::Post>,
    post: Box<dyn Fn(Letter) -> Result<(), String> + Send + Sync>,
    lease: Box<dyn Fn(Moment) + Send + Sync>,
    next_ticket: AtomicU64,
    book: Mutex<Book>,
}

/// A client that has finished its negotiation; as [`Letter::AdoptClient`].
pub(super) struct Client {
    pub(super) session: SessionId,
    pub(super) line: Negotiated,
    pub(super) manners: ClientManners,
    pub(super) leftover: Vec<u8>,
    pub(super) from: String,
}

/// What is open at the moment.
#[derive(Default)]
struct Book {
    answers: BTreeMap<Ticket, oneshot::Sender<Result<(), Refusal>>>,
    states: BTreeMap<Ticket, oneshot::Sender<()>>,
    dirty: BTreeMap<Ticket, oneshot::Sender<DirtyRuns>>,
    links: BTreeMap<PeerNo, (ConnectionId, Instant)>,
    /// Why the last links ended, if they were short ones, and whether more than one ended so.
    short_links: BTreeMap<PeerNo, (String, bool)>,
    /// Why this node's last attempt to make a link failed.
    no_links: BTreeMap<PeerNo, String>,
    clients: BTreeMap<SessionId, Place>,
    last: Option<(State, Instant)>,
    ended: Option<String>,
    resync_runs: bool,
    progress_told: Option<Instant>,
}

/// How a link ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ending {
    /// It had been of use.
    Long,
    /// It was refused.
    Short,
    /// It was refused as the one before, for the same reason.
    ShortAgain,
}

impl Book {
    /// Takes a link out. Two nodes that refuse each other try on for ever, which shall not fill the log.
    fn link_ended(&mut self, peer: PeerNo, connection: ConnectionId, why: &str, now: Instant) -> Ending {
        let began = self.links.get(&peer).filter(|(current, _)| *current == connection).map(|(_, began)| *began);
        if began.is_some() {
            self.links.remove(&peer);
        }
        if began.is_none_or(|began| now.duration_since(began) >= SHORT_LINK) {
            self.short_links.remove(&peer);
            return Ending::Long;
        }
        let again = self.short_links.get(&peer).is_some_and(|(before, _)| before == why);
        self.short_links.insert(peer, (why.to_owned(), again));
        if again { Ending::ShortAgain } else { Ending::Short }
    }
}

impl VolumeHandle {
    pub(super) fn new(
        spec: VolumeSpec,
        copy: CopySpec,
        identity: CopyIdentity,
        events: EventHub,
        post: impl Fn(Letter) -> Result<(), String> + Send + Sync + 'static,
        lease: impl Fn(Moment) + Send + Sync + 'static,
    ) -> Self {
        Self {
            peers: spec.peers_of(&copy.node).map(str::to_owned).collect(),
            spec,
            copy,
            identity,
            link_news: Notify::new(),
            end_news: Notify::new(),
            events,
            failover: OnceLock::new(),
            post: Box::new(post),
            lease: Box::new(lease),
            next_ticket: AtomicU64::new(1),
            book: Mutex::default(),
        }
    }

    pub(super) fn name(&self) -> &str {
        &self.spec.name
    }

    /// The slot of the peer called `node`.
    pub(super) fn peer_no(&self, node: &str) -> Option<PeerNo> {
        let place = self.peers.iter().position(|name| name == node)?;
        u8::try_from(place).ok().map(PeerNo)
    }

    pub(super) fn peer_name(&self, peer: PeerNo) -> &str {
        self.peers.get(usize::from(peer.0)).map_or("?", String::as_str)
    }

    /// Gives a letter to the volume's thread.
    ///
    /// # Errors
    /// Why it was not taken; a socket in it is then closed.
    pub(super) fn post(&self, letter: Letter) -> Result<(), String> {
        (self.post)(letter)
    }

    /// Until when the volume's thread may answer clients.
    pub(super) fn set_lease(&self, until: Moment) {
        (self.lease)(until);
    }

    /// How things are now.
    ///
    /// # Errors
    /// A sentence when the volume's thread ended or did not answer within [`ANSWER_TIME`].
    pub(super) async fn ask(&self) -> Result<State, String> {
        let (ticket, receiver) = self.question()?;
        let answered = tokio::time::timeout(ANSWER_TIME, receiver).await;
        self.book().states.remove(&ticket);
        match (answered, self.last_state()) {
            (Ok(Ok(())), Some((state, _))) => Ok(state),
            _ => Err(self.no_answer()),
        }
    }

    /// Asks the volume's thread how things are.
    fn question(&self) -> Result<(Ticket, oneshot::Receiver<()>), String> {
        let ticket = self.ticket();
        let (sender, receiver) = oneshot::channel();
        let mut book = self.book();
        if let Some(why) = &book.ended {
            return Err(why.clone());
        }
        // Those who gave up waiting are not kept for ever.
        book.states.retain(|_, waiter| !waiter.is_closed());
        book.states.insert(ticket, sender);
        drop(book);
        self.post(Letter::Ask { ticket })?;
        Ok((ticket, receiver))
    }

    /// The blocks from `from_block` on that this copy holds and a peer may lack.
    ///
    /// # Errors
    /// As [`VolumeHandle::ask`].
    pub(super) async fn ask_dirty(&self, from_block: u64) -> Result<DirtyRuns, String> {
        let ticket = self.ticket();
        let (sender, receiver) = oneshot::channel();
        self.book().dirty.insert(ticket, sender);
        let posted = self.post(Letter::AskDirty { ticket, from_block });
        let answered = match posted {
            Ok(()) => tokio::time::timeout(ANSWER_TIME, receiver).await,
            Err(why) => {
                self.book().dirty.remove(&ticket);
                return Err(why);
            }
        };
        self.book().dirty.remove(&ticket);
        match answered {
            Ok(Ok(dirty)) => Ok(dirty),
            _ => Err(self.no_answer()),
        }
    }

    /// Why the volume's thread does not answer.
    fn no_answer(&self) -> String {
        self.ended().unwrap_or_else(|| {
            format!(
                "the thread of volume {} did not answer within {} ms; a system call on {} may hang, see the kernel's log",
                self.name(),
                ANSWER_TIME.as_millis(),
                self.copy.device.display()
            )
        })
    }

    /// What the volume's thread said last, and how long ago.
    pub(super) fn last_state(&self) -> Option<(State, Duration)> {
        self.book().last.as_ref().map(|(state, at)| (state.clone(), at.elapsed()))
    }

    /// Gives a command to the volume; the receiver gets the answer, or an error when the thread ended.
    pub(super) fn command(&self, command: Command) -> oneshot::Receiver<Result<(), Refusal>> {
        let ticket = self.ticket();
        let (sender, receiver) = oneshot::channel();
        let mut book = self.book();
        if book.ended.is_none() {
            book.answers.retain(|_, waiter| !waiter.is_closed());
            book.answers.insert(ticket, sender);
            drop(book);
            if let Err(why) = self.post(Letter::Command { ticket, command }) {
                warn!(volume = self.name(), why, "a command was not taken");
                self.book().answers.remove(&ticket);
            }
        }
        receiver
    }

    /// Why the volume's thread is gone, when it is.
    pub(super) fn ended(&self) -> Option<String> {
        self.book().ended.clone()
    }

    pub(super) fn has_link(&self, peer: PeerNo) -> bool {
        self.book().links.contains_key(&peer)
    }

    /// Notes why no link to `peer` could be made, for who asks how things are.
    pub(super) fn note_no_link(&self, peer: PeerNo, why: &str) {
        self.book().no_links.insert(peer, why.to_owned());
    }

    /// Why no link to the peer called `node` could be made, if the last attempt failed.
    pub(super) fn why_no_link(&self, node: &str) -> Option<String> {
        self.book().no_links.get(&self.peer_no(node)?).cloned()
    }

    /// Hands a link over.
    ///
    /// # Errors
    /// As [`VolumeHandle::post`].
    pub(super) fn adopt_link(
        &self,
        peer: PeerNo,
        connection: ConnectionId,
        instance: DiskInstance,
        line: Negotiated,
    ) -> Result<(), String> {
        // Noted first: the news that it is closed again may come at any time after the letter.
        let again = {
            let mut book = self.book();
            book.links.insert(peer, (connection, Instant::now()));
            book.no_links.remove(&peer);
            book.short_links.get(&peer).is_some_and(|(_, again)| *again)
        };
        let name = self.peer_name(peer);
        if again {
            debug!(volume = self.name(), peer = name, "link established");
        } else {
            info!(volume = self.name(), peer = name, "link established");
        }
        if let Err(why) = self.post(Letter::AdoptLink { peer, connection, instance, line }) {
            self.book().links.remove(&peer);
            return Err(why);
        }
        self.events.tell(self.name(), Happening::LinkUp { peer: name.to_owned() });
        self.link_news.notify_waiters();
        Ok(())
    }

    /// Hands a client over; its place is free again when it is gone.
    ///
    /// # Errors
    /// As [`VolumeHandle::post`].
    pub(super) fn adopt_client(&self, client: Client, place: Place) -> Result<(), String> {
        let Client { session, line, manners, leftover, from } = client;
        self.book().clients.insert(session, place);
        let letter = Letter::AdoptClient { session, line, manners, leftover, from: from.clone() };
        if let Err(why) = self.post(letter) {
            self.book().clients.remove(&session);
            return Err(why);
        }
        self.events.tell(self.name(), Happening::ClientConnected { session: session.0, from });
        Ok(())
    }

    /// Takes in what the volume's thread says.
    pub(super) fn hear(&self, news: News) {
        match news {
            News::Answer { ticket, result } => {
                let waiter = self.book().answers.remove(&ticket);
                // Whoever asked may have given up; a changed state is told by a report anyway.
                let _ = waiter.map(|waiter| waiter.send(result));
            }
            News::State { ticket, state } => {
                let mut book = self.book();
                book.last = Some((*state, Instant::now()));
                let _ = book.states.remove(&ticket).map(|waiter| waiter.send(()));
            }
            News::Dirty { ticket, dirty } => {
                let waiter = self.book().dirty.remove(&ticket);
                let _ = waiter.map(|waiter| waiter.send(dirty));
            }
            News::Report(report) => self.report(report),
            News::Standing(standing) => drop(self.failover.get().map(|driver| driver.volume(&standing))),
            News::LinkClosed { peer, connection, why } => self.link_closed(peer, connection, why),
            News::ClientGone { session, why } => {
                self.book().clients.remove(&session);
                info!(volume = self.name(), session = session.0, why, "NBD client gone");
                self.events.tell(self.name(), Happening::ClientGone { session: session.0, why });
            }
            News::Stopped { error } => self.stopped(error),
        }
    }

    fn report(&self, report: Report) {
        let volume = self.name();
        match report {
            Report::Changed { what, old, new, why } => {
                if new == "failed" || new == "diverged" {
                    warn!(volume, what, old, new, why, "state changed");
                } else {
                    info!(volume, what, old, new, why, "state changed");
                }
                self.link_news.notify_waiters();
                self.events.tell(volume, Happening::Changed { what, old, new, why });
            }
            // The volume's standing says the same to whoever decides.
            Report::ExclusionWanted { peer, number } => {
                debug!(volume, peer = self.peer_name(peer), number, "an exclusion is asked for");
            }
            Report::ExclusionWithdrawn { peer, number: _ } => {
                let peer = self.peer_name(peer);
                info!(volume, peer, "the peer is in sync again before this node went on alone");
            }
            Report::SplitBrain { peer, detail } => {
                let peer = self.peer_name(peer).to_owned();
                warn!(
                    volume,
                    peer, detail, "split brain: nothing is overwritten; an operator decides which copy is given up"
                );
                self.events.tell(volume, Happening::SplitBrain { peer, detail });
            }
            // The data plane has closed the connections; each is told by `ClientGone`.
            Report::DisconnectClients => info!(volume, "NBD clients are disconnected"),
            Report::Note { text, warning } => {
                if warning {
                    warn!(volume, "{text}");
                } else {
                    info!(volume, "{text}");
                }
                self.events.tell(volume, Happening::Note { text, warning });
            }
            Report::Resync(view) => self.resync(&view),
        }
    }

    fn resync(&self, view: &ResyncView) {
        let (volume, peer, part) = (self.name(), self.peer_name(view.peer), part(view));
        let event = ResyncEvent {
            peer: peer.to_owned(),
            part: part.to_owned(),
            bytes: view.done,
            bytes_total: view.total,
            duration_ms: millis(view.elapsed),
        };
        let mut book = self.book();
        let began = !std::mem::replace(&mut book.resync_runs, !view.finished);
        let due = book.progress_told.is_none_or(|at| at.elapsed() >= PROGRESS_INTERVAL);
        let told = began || view.finished || due;
        if told {
            book.progress_told = Some(Instant::now());
        }
        drop(book);
        let (mib, rate_mib) = (view.total >> 20, rate(view) >> 20);
        if view.finished {
            info!(
                volume,
                peer,
                part,
                bytes = view.done,
                duration_ms = event.duration_ms,
                mib_s = rate_mib,
                "resync finished"
            );
            self.events.tell(volume, Happening::ResyncFinished(event));
        } else if began {
            info!(volume, peer, part, bytes_total = view.total, mib_total = mib, "resync started");
            self.events.tell(volume, Happening::ResyncStarted(event));
        } else if told {
            let eta_s = view.total.saturating_sub(view.done) / rate(view).max(1);
            let percent = percent(view.done, view.total);
            info!(volume, peer, part, percent, mib_s = rate_mib, eta_s, paused = view.paused, "resync");
            self.events.tell(volume, Happening::ResyncProgress(event));
        }
    }

    fn link_closed(&self, peer: PeerNo, connection: ConnectionId, why: String) {
        let name = self.peer_name(peer).to_owned();
        match self.book().link_ended(peer, connection, &why, Instant::now()) {
            Ending::Long => info!(volume = self.name(), peer = name, why, "link closed"),
            Ending::Short => {
                info!(volume = self.name(), peer = name, why, "link closed; trying on, and silent if it ends so again");
            }
            Ending::ShortAgain => debug!(volume = self.name(), peer = name, why, "link closed"),
        }
        self.events.tell(self.name(), Happening::LinkDown { peer: name, why });
        self.link_news.notify_waiters();
    }

    fn stopped(&self, error: Option<String>) {
        let why = match error {
            Some(error) => {
                tracing::error!(volume = self.name(), error, "the volume's thread ended; restart the daemon");
                format!("the thread of volume {} ended: {error}; restart the daemon when that is mended", self.name())
            }
            None => format!("volume {} is shut down", self.name()),
        };
        let mut book = self.book();
        book.ended = Some(why);
        book.answers.clear();
        book.states.clear();
        book.dirty.clear();
        book.clients.clear();
        book.links.clear();
        drop(book);
        self.end_news.notify_one();
        self.link_news.notify_waiters();
    }

    fn ticket(&self) -> Ticket {
        Ticket(self.next_ticket.fetch_add(1, Ordering::Relaxed))
    }

    fn book(&self) -> MutexGuard<'_, Book> {
        self.book.lock().expect("nobody panics with the book in hand")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_that_are_refused_again_and_again_are_told_once() {
        let (peer, start) = (PeerNo(0), Instant::now());
        let mut book = Book::default();
        let mut end = |connection, lived_ms, why| {
            let connection = ConnectionId(connection);
            book.links.insert(peer, (connection, start));
            let ending = book.link_ended(peer, connection, why, start + Duration::from_millis(lived_ms));
            assert!(book.links.is_empty());
            ending
        };
        assert_eq!(end(1, 5, "split brain"), Ending::Short);
        assert_eq!(end(2, 5, "split brain"), Ending::ShortAgain);
        assert_eq!(end(3, 5, "refused by rule unrelated"), Ending::Short, "another reason is news");
        assert_eq!(end(4, 60_000, "the peer closed the link"), Ending::Long);
        assert_eq!(end(5, 5, "split brain"), Ending::Short, "news again after a good link");
    }

    #[test]
    fn the_end_of_a_replaced_link_does_not_take_the_new_one_out() {
        let mut book = Book::default();
        book.links.insert(PeerNo(0), (ConnectionId(2), Instant::now()));
        assert_eq!(book.link_ended(PeerNo(0), ConnectionId(1), "replaced", Instant::now()), Ending::Long);
        assert!(book.links.contains_key(&PeerNo(0)));
    }
}
