//! The volume's thread: what it owns, and the order of its turns.
//!
//! A turn takes in everything that has come (letters, disk, peers, clients), lets the machine decide, and sends everything that is to
//! go: to the peers first, then to the local disk, then, once for many, to the clients. The machine sees one input at a
//! time; nothing here decides anything about data.

use std::collections::VecDeque;
use std::io;
use std::os::fd::AsFd;
use std::time::Duration;

use super::effects::Local;
use super::engine::{Engine, Outcome};
use super::idle::IdleWatch;
use super::line::{Line, Negotiated};
use super::link::Link;
use super::mailbox::{ClientManners, Counters, DIRTY_RUN_BLOCKS_MAX, DIRTY_RUNS_MAX, Letter, Letters, News, State};
use super::newsroom::Newsroom;
use super::pool::{Area, Pool};
use super::read_queue::ReadQueue;
use super::session::Session;
use super::share::{Holders, Share};
use super::sys::{self, Epoll, Ready};
use crate::units::{BufId, ByteRange, ConnectionId, DiskInstance, GenerationId, Moment, OpId, PeerNo, SessionId};
use crate::volume::Volume;
use crate::volume::io::{DirtyRuns, Effect, Input, Snapshot, Standing};

const MAILBOX: u64 = 0;
const DISK: u64 = 1;
/// Tokens of links carry this bit, those of clients the next.
const LINK: u64 = 1 << 63;
const CLIENT: u64 = 1 << 62;
/// What is received at once from a client with TLS, in bytes: its memory for as long as it is connected.
const CLIENT_RECEIVE: usize = 64 << 10;
/// News that found the channel full are tried again this often.
const NEWS_RETRY: Duration = Duration::from_millis(20);
/// How long running disk operations are waited for at the end.
const SETTLE_LIMIT: Duration = Duration::from_secs(5);

/// What the shell drives: the volume, or a script in a test.
pub(super) trait Machine {
    fn step(&mut self, now: Moment, input: Input, out: &mut Vec<Effect>);
    fn next_deadline(&self) -> Option<Moment>;
    fn snapshot(&self, now: Moment) -> Snapshot;
    fn dirty_runs(&self, from_block: u64) -> DirtyRuns;
    fn is_serving(&self) -> bool;
    fn generation(&self) -> GenerationId;
    /// None: failover is no matter of this machine.
    fn standing(&self) -> Option<Standing> {
        None
    }
}

impl Machine for Volume {
    fn step(&mut self, now: Moment, input: Input, out: &mut Vec<Effect>) {
        Self::step(self, now, input, out);
    }
    fn next_deadline(&self) -> Option<Moment> {
        Self::next_deadline(self)
    }
    fn snapshot(&self, now: Moment) -> Snapshot {
        Self::snapshot(self, now)
    }
    fn dirty_runs(&self, from_block: u64) -> DirtyRuns {
        Self::dirty_runs(self, from_block, DIRTY_RUNS_MAX, DIRTY_RUN_BLOCKS_MAX)
    }
    fn is_serving(&self) -> bool {
        Self::is_serving(self)
    }
    fn generation(&self) -> GenerationId {
        Self::generation(self)
    }
    fn standing(&self) -> Option<Standing> {
        Some(Self::standing(self))
    }
}

/// The thread's possessions.
pub(super) struct Shell<M> {
    pub(super) machine: M,
    pub(super) pool: Pool,
    pub(super) engine: Engine,
    /// Length of the volume, in bytes.
    pub(super) volume_len: u64,
    /// The moment that this turn takes for now.
    pub(super) now: Moment,
    /// What the machine wants and nobody has done yet.
    pub(super) effects: Vec<Effect>,
    /// The other of two vectors that take turns as `effects`.
    pub(super) spare: Vec<Effect>,
    pub(super) local: Vec<Local>,
    pub(super) outcomes: Vec<Outcome>,
    pub(super) releases: Vec<BufId>,
    /// In the order of their numbers, which only grow.
    pub(super) sessions: Vec<Session>,
    /// Who goes first in this turn.
    pub(super) first_session: usize,
    /// Clients that wait for memory, in the order they came.
    pub(super) memory_queue: VecDeque<SessionId>,
    /// Frees of the clients' area when the queue was last looked at in vain.
    pub(super) memory_frees: u64,
    /// Reads for clients and peers, which wait for memory.
    pub(super) reads: ReadQueue,
    /// Reads for resync, as `reads`.
    pub(super) resync_reads: ReadQueue,
    /// Who holds memory, as far as this turn has come.
    pub(super) holders: Holders,
    /// Reads under way whose zeros need no buffer; a handful, of resync.
    pub(super) sparse_reads: Vec<(OpId, ByteRange)>,
    /// Who asks for nothing for long.
    pub(super) idle: IdleWatch,
    /// Connections to end, and why.
    pub(super) doomed: Vec<(SessionId, String)>,
    pub(super) links: Vec<Link>,
    pub(super) counters: Counters,
    pub(super) news: Newsroom,
    /// Bytes moved on a socket in this turn.
    pub(super) moved: bool,
    /// Requests and frames that came in this turn.
    pub(super) heard: u32,
    /// The machine was told something and has not heard since that the turn has ended.
    open: bool,
    next_link: u64,
    letters: Letters,
    epoll: Epoll,
    ready: Vec<Ready>,
    started: Moment,
    spin: Duration,
    /// As last told.
    standing: Option<Standing>,
    news_kept: bool,
    stopped: bool,
}

impl<M: Machine> Shell<M> {
    pub(super) fn new(
        machine: M,
        engine: Engine,
        pool: Pool,
        letters: Letters,
        news: Newsroom,
        volume_len: u64,
        spin: Duration,
    ) -> io::Result<Self> {
        let epoll = Epoll::new()?;
        epoll.add(letters.wake().as_fd(), MAILBOX)?;
        epoll.add(engine.wake().as_fd(), DISK)?;
        let now = sys::now();
        Ok(Self {
            machine,
            pool,
            engine,
            volume_len,
            now,
            effects: Vec::new(),
            spare: Vec::new(),
            local: Vec::new(),
            outcomes: Vec::new(),
            releases: Vec::new(),
            sessions: Vec::new(),
            first_session: 0,
            memory_queue: VecDeque::new(),
            memory_frees: 0,
            reads: ReadQueue::new(Area::Reads),
            resync_reads: ReadQueue::new(Area::Resync),
            holders: Holders::default(),
            sparse_reads: Vec::new(),
            idle: IdleWatch::default(),
            doomed: Vec::new(),
            links: Vec::new(),
            counters: Counters::default(),
            news,
            moved: false,
            heard: 0,
            open: false,
            next_link: 0,
            letters,
            epoll,
            ready: Vec::new(),
            started: now,
            spin,
            standing: None,
            news_kept: false,
            stopped: false,
        })
    }

    /// Runs until it is told to stop. What is left of the memory, unless the kernel may still write into it.
    pub(super) fn run(mut self) -> Option<Pool> {
        // The machine's first step: it makes durable that it has the disk.
        self.step(Input::Wake);
        let result = loop {
            if let Err(e) = self.turn() {
                break Err(e);
            }
            if self.stopped {
                break Ok(());
            }
            if let Err(e) = self.wait() {
                break Err(e);
            }
        };
        self.end(result)
    }

    fn end(mut self, result: io::Result<()>) -> Option<Pool> {
        for session in &mut self.sessions {
            session.clear(&mut self.pool);
        }
        for link in &mut self.links {
            link.clear(&mut self.pool);
        }
        let settled = self.engine.settle(SETTLE_LIMIT);
        let error = match result {
            Ok(()) if settled => None,
            Ok(()) => Some("a disk operation does not end; the device hangs".to_owned()),
            Err(e) => Some(format!("the volume's thread cannot go on: {e}")),
        };
        self.news.last(News::Stopped { error });
        if settled {
            return Some(self.pool);
        }
        // The kernel may still write into the pool.
        std::mem::forget((self.pool, self.engine));
        None
    }

    /// Gives the machine an input; its effects wait for [`Shell::settle`].
    pub(super) fn step(&mut self, input: Input) {
        self.open = !matches!(input, Input::TurnEnd);
        self.machine.step(self.now, input, &mut self.effects);
    }

    /// One turn.
    fn turn(&mut self) -> io::Result<()> {
        self.now = sys::now();
        (self.moved, self.heard) = (false, 0);
        self.read_letters();
        self.reap_disk();
        if self.machine.next_deadline().is_some_and(|deadline| deadline <= self.now) {
            self.step(Input::Wake);
        }
        self.hear_peers();
        self.end_idle_clients();
        self.serve_clients();
        self.settle()?;
        self.step(Input::TurnEnd);
        self.settle()?;
        self.answer_clients();
        self.close_links();
        self.bury();
        self.serve_reads();
        // What the ends of connections led to goes now too: nothing is left behind while the thread sleeps.
        self.settle()?;
        self.tell_standing();
        self.news_kept = self.news.retry();
        Ok(())
    }

    /// True when the next turn would have something to do at once.
    fn has_more(&self) -> bool {
        self.open
            || !self.effects.is_empty()
            || !self.doomed.is_empty()
            || (!self.memory_queue.is_empty() && self.memory_frees != self.pool.frees(Area::Clients))
            || self.reads.may_go_on(&self.pool)
            || self.resync_reads.may_go_on(&self.pool)
            || self.links.iter().any(|link| link.has_work(&self.pool))
            || self.sessions.iter().any(|session| session.has_work() || session.is_finished())
    }

    /// How long nothing can happen by itself; `None`: for ever.
    fn timeout(&self) -> Option<Duration> {
        if self.has_more() {
            return Some(Duration::ZERO);
        }
        let now = sys::now();
        let until = |moment: Moment| moment.since(now);
        [
            self.machine.next_deadline().map(until),
            self.links.iter().filter_map(|link| link.closing.as_ref()).map(|(end, _)| until(*end)).min(),
            self.idle.deadline().filter(|_| !self.sessions.is_empty()).map(until),
            self.news_kept.then_some(NEWS_RETRY),
            self.engine.is_held_up().then_some(Duration::from_millis(1)),
        ]
        .into_iter()
        .flatten()
        .min()
    }

    /// How long to poll the network before sleeping. After traffic more is likely soon, and waking a sleeping processor costs more
    /// than a small write. Who has many requests under way waits for throughput and not for one answer: a processor is better
    /// left to the others sooner then.
    fn polling_time(&self) -> Duration {
        match self.heard {
            _ if !self.moved || self.engine.is_busy() => Duration::ZERO,
            0 | 1 => self.spin,
            _ => self.spin / 4,
        }
    }

    /// Sleeps until something happens, after polling for a moment.
    fn wait(&mut self) -> io::Result<()> {
        self.watch_full_sockets()?;
        let mut ready = std::mem::take(&mut self.ready);
        let timeout = self.timeout();
        let spin = self.polling_time();
        let spin_end = sys::now().after(timeout.map_or(spin, |t| t.min(spin)));
        self.epoll.wait(if spin.is_zero() { timeout } else { Some(Duration::ZERO) }, &mut ready)?;
        while ready.is_empty() && !spin.is_zero() && timeout != Some(Duration::ZERO) {
            if sys::now() >= spin_end {
                // The time-out was reckoned before the polling, which it may exceed by at most as much.
                self.epoll.wait(timeout, &mut ready)?;
                break;
            }
            std::thread::yield_now();
            self.epoll.wait(Some(Duration::ZERO), &mut ready)?;
        }
        for event in ready.drain(..) {
            self.note(event);
        }
        self.ready = ready;
        Ok(())
    }

    /// Has epoll tell of room in those sockets that were full, and in no others: a Unix socket has news of room whenever its client
    /// reads a reply, and each would wake the thread for nothing.
    fn watch_full_sockets(&mut self) -> io::Result<()> {
        for session in self.sessions.iter_mut().filter(|session| session.writable == session.room_watched) {
            session.room_watched = !session.writable;
            self.epoll.watch_room(session.line.as_fd(), CLIENT | session.id.0, session.room_watched)?;
        }
        for link in self.links.iter_mut().filter(|link| link.writable == link.room_watched) {
            link.room_watched = !link.writable;
            self.epoll.watch_room(link.line.as_fd(), link.token, link.room_watched)?;
        }
        Ok(())
    }

    fn note(&mut self, event: Ready) {
        match event.token {
            // The next turn looks there anyway, and an edge needs no clearing.
            MAILBOX | DISK => {}
            token if token & LINK != 0 => {
                if let Some(link) = self.links.iter_mut().find(|link| link.token == token) {
                    link.readable |= event.readable;
                    link.ending |= event.ending;
                    link.writable |= event.writable;
                }
            }
            token => {
                if let Some(i) = self.session_at(SessionId(token & !CLIENT)) {
                    self.sessions[i].readable |= event.readable;
                    self.sessions[i].ending |= event.ending;
                    self.sessions[i].writable |= event.writable;
                }
            }
        }
    }

    pub(super) fn session_at(&self, id: SessionId) -> Option<usize> {
        self.sessions.binary_search_by_key(&id, |session| session.id).ok()
    }

    /// True while clients may be answered. Asked after the work and before each reply: whoever takes over waits until this is over, so an
    /// answer given while it holds is no older than the question.
    pub(super) fn is_leased(&self) -> bool {
        let until = self.letters.lease();
        until == Moment(u64::MAX) || sys::now() < until
    }

    fn tell_standing(&mut self) {
        let standing = self.machine.standing();
        if let Some(told) = standing.filter(|_| standing != self.standing) {
            self.news.tell(News::Standing(told));
            self.standing = standing;
        }
    }

    fn read_letters(&mut self) {
        while let Some(letter) = self.letters.next() {
            match letter {
                Letter::AdoptClient { session, line, manners, leftover, from } => {
                    self.adopt_client(session, line, manners, leftover, from);
                }
                Letter::AdoptLink { peer, connection, instance, line } => {
                    self.adopt_link(peer, connection, instance, line);
                }
                Letter::Command { ticket, command } => self.step(Input::Command { ticket, command }),
                Letter::PeerSeen { peer, view } => self.step(Input::PeerSeen { peer, view }),
                Letter::Ask { ticket } => {
                    let state = Box::new(State {
                        volume: self.machine.snapshot(self.now),
                        clients: self.sessions.len(),
                        counters: self.counters,
                        up: self.now.since(self.started),
                    });
                    self.news.tell(News::State { ticket, state });
                }
                Letter::AskDirty { ticket, from_block } => {
                    let dirty = self.machine.dirty_runs(from_block);
                    self.news.tell(News::Dirty { ticket, dirty });
                }
                Letter::Stop => self.stopped = true,
            }
        }
    }

    fn adopt_client(
        &mut self,
        id: SessionId,
        line: Negotiated,
        manners: ClientManners,
        leftover: Vec<u8>,
        from: String,
    ) {
        let line = Line::new(line, CLIENT_RECEIVE);
        let mut refuse = |why: String| self.news.tell(News::ClientGone { session: id, why });
        if !self.machine.is_serving() {
            return refuse("this node is not primary".to_owned());
        }
        let watched = line.socket().set_nonblocking(true).and_then(|()| self.epoll.add(line.as_fd(), CLIENT | id.0));
        if let Err(e) = watched {
            return refuse(format!("its socket cannot be watched: {e}"));
        }
        // Replies gather in one send each turn; waiting for more to come would only delay them. Not for Unix sockets.
        let _ = line.socket().set_tcp_nodelay(true);
        let share = Share::among(self.holders, &self.pool);
        let mut session = Session::new(id, line, manners, self.volume_len, leftover, from, share);
        session.busy_at = self.now;
        let place = self.sessions.binary_search_by_key(&id, |s| s.id).expect_err("sessions have numbers of their own");
        self.sessions.insert(place, session);
        self.step(Input::HostHere { session: id });
    }

    fn adopt_link(&mut self, peer: PeerNo, connection: ConnectionId, instance: DiskInstance, line: Negotiated) {
        while let Some(old) = self.links.iter().position(|link| link.peer == peer && link.closing.is_none()) {
            self.drop_link(old, "a new link to the peer takes its place".to_owned());
        }
        self.next_link += 1;
        let token = LINK | self.next_link;
        let link = Link::new(peer, connection, token, line);
        let watched = link.line.socket().set_nonblocking(true).and_then(|()| self.epoll.add(link.line.as_fd(), token));
        if let Err(e) = watched {
            let why = format!("its socket cannot be watched: {e}");
            return self.news.tell(News::LinkClosed { peer, connection, why });
        }
        self.links.push(link);
        self.step(Input::LinkUp { peer, connection, instance });
    }

    fn reap_disk(&mut self) {
        self.engine.reap(&mut self.pool, &mut self.outcomes);
        self.tell_outcomes();
    }
}
