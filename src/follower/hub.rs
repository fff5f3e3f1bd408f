//! The middle: turns what happens into inputs of the machine, and its effects into deeds.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use tokio::sync::{mpsc, oneshot, watch};
use tracing::{debug, error, info, warn};

use super::control::{Ask, Servers, Status};
use super::dial::{Found, Miss, Search};
use super::front::Asker;
use super::memory::Memory;
use super::upstream::Upstream;
use crate::attach::{Class, Effect, Follower, Input, Report, Stage};
use crate::nbd::Header;
use crate::units::{ByteRange, Moment};

/// What a client wants.
#[derive(Debug)]
pub(super) struct Question {
    pub(super) asker: Asker,
    pub(super) class: Class,
    pub(super) range: ByteRange,
    pub(super) fua: bool,
    /// As it goes out, but for its cookie.
    pub(super) header: Header,
    pub(super) payload: Arc<Vec<u8>>,
}

/// What the hub hears.
#[derive(Debug)]
pub(super) enum Event {
    Asked(Question),
    ClientHere,
    ClientGone { client: u64 },
    Found(Found),
    NotFound { address: String, miss: Miss },
    Replied { connection: u64, number: u64, error: u32, data: Vec<u8> },
    Lost { connection: u64, why: String },
    Control { ask: Ask, answer: oneshot::Sender<Status> },
    Fatal(String),
}

/// An open request.
struct Body {
    asker: Asker,
    header: Header,
    payload: Arc<Vec<u8>>,
}

pub(super) struct Hub {
    volume: String,
    follower: Follower,
    memory: Memory,
    search: watch::Sender<Search>,
    size: watch::Sender<Option<u64>>,
    servers: Servers,
    origin: Instant,
    bodies: BTreeMap<u64, Body>,
    next_number: u64,
    found: BTreeMap<u64, Found>,
    upstream: Option<Upstream>,
    clients: usize,
    failovers: u64,
    gap_ms: Option<u64>,
    /// Data of the reply that is being heard.
    data: Vec<u8>,
    events: Option<mpsc::Sender<Event>>,
}

/// Whether to go on.
enum Course {
    On,
    End,
}

impl Hub {
    pub(super) fn new(
        volume: String,
        follower: Follower,
        memory: Memory,
        search: watch::Sender<Search>,
        size: watch::Sender<Option<u64>>,
        servers: Servers,
    ) -> Self {
        Self {
            volume,
            follower,
            memory,
            search,
            size,
            servers,
            origin: Instant::now(),
            bodies: BTreeMap::new(),
            next_number: 1,
            found: BTreeMap::new(),
            upstream: None,
            clients: 0,
            failovers: 0,
            gap_ms: None,
            data: Vec::new(),
            events: None,
        }
    }

    /// Runs until it is told to end.
    ///
    /// # Errors
    /// A sentence when it cannot go on.
    pub(super) async fn run(
        mut self,
        first: Vec<Effect>,
        events: mpsc::Sender<Event>,
        mut inbox: mpsc::Receiver<Event>,
    ) -> Result<(), String> {
        self.events = Some(events);
        self.perform(first)?;
        loop {
            let deadline = self.follower.next_deadline().map(|moment| self.origin + moment.since(Moment(0)));
            let event = tokio::select! {
                event = inbox.recv() => event.expect("a sender is kept here"),
                () = super::sleep_until(deadline) => {
                    self.step(Input::Wake)?;
                    continue;
                }
            };
            if let Course::End = self.hear(event)? {
                return Ok(());
            }
        }
    }

    fn hear(&mut self, event: Event) -> Result<Course, String> {
        match event {
            Event::Asked(question) => self.asked(question)?,
            Event::ClientHere => self.clients += 1,
            Event::ClientGone { client } => {
                self.clients -= 1;
                self.step(Input::ClientGone { client })?;
            }
            Event::Found(found) => {
                let (connection, standing, size) = (found.connection, found.standing.clone(), found.size);
                self.found.insert(connection, found);
                self.step(Input::Offered { connection, standing, size })?;
            }
            Event::NotFound { address, miss } => self.servers.note(&self.volume, address, miss),
            Event::Replied { connection, number, error, data } => {
                self.data = data;
                self.step(Input::Replied { connection, number, error })?;
            }
            Event::Lost { connection, why } => {
                if self.upstream.as_ref().is_some_and(|upstream| upstream.connection == connection) {
                    self.upstream = None;
                }
                self.step(Input::Lost { connection, why })?;
            }
            Event::Control { ask, answer } => {
                // Whoever asked may have gone.
                let _ = answer.send(self.status());
                if ask == Ask::Detach {
                    self.memory.clear()?;
                    info!(volume = self.volume, open = self.follower.open(), "detached");
                    return Ok(Course::End);
                }
            }
            Event::Fatal(why) => return Err(why),
        }
        Ok(Course::On)
    }

    fn asked(&mut self, question: Question) -> Result<(), String> {
        let Question { asker, class, range, fua, mut header, payload } = question;
        let number = self.next_number;
        self.next_number += 1;
        header.cookie = number;
        let client = asker.client;
        self.bodies.insert(number, Body { asker, header, payload });
        self.step(Input::Asked { number, client, class, range, fua })
    }

    fn step(&mut self, input: Input) -> Result<(), String> {
        let now = Moment(0).after(self.origin.elapsed());
        let mut effects = Vec::new();
        self.follower.step(now, input, &mut effects);
        self.perform(effects)
    }

    fn perform(&mut self, effects: Vec<Effect>) -> Result<(), String> {
        for effect in effects {
            match effect {
                Effect::Seek { above } => {
                    self.search.send_replace(Search::Primary { above });
                }
                Effect::Rest => {
                    self.search.send_replace(Search::Rest);
                }
                Effect::Take { connection } => self.take(connection),
                Effect::Close { connection, why } => {
                    debug!(volume = self.volume, connection, why, "connection closed");
                    self.found.remove(&connection);
                    self.upstream = self.upstream.take().filter(|upstream| upstream.connection != connection);
                }
                Effect::Send { connection, number } => {
                    let body = &self.bodies[&number];
                    // One that could not be started is told as lost.
                    if let Some(upstream) = self.upstream.as_ref().filter(|up| up.connection == connection) {
                        upstream.send(body.header, Arc::clone(&body.payload));
                    }
                }
                Effect::Remember => {
                    let (standing, size) = self.follower.proven().expect("there is something to remember");
                    self.memory.save(standing, size)?;
                }
                Effect::Answer { number, error } => {
                    let body = self.bodies.remove(&number).expect("what is answered is open");
                    body.asker.answer(error, if error == 0 { std::mem::take(&mut self.data) } else { Vec::new() });
                }
                Effect::Forget { number } => drop(self.bodies.remove(&number)),
                Effect::Report(report) => self.report(report),
            }
        }
        Ok(())
    }

    fn take(&mut self, connection: u64) {
        let Found { wire, kept, size, .. } = self.found.remove(&connection).expect("it was just offered");
        self.size.send_if_modified(|known| known.replace(size) != Some(size));
        let events = self.events.clone().expect("it runs");
        match Upstream::start(connection, wire, kept, events.clone()) {
            Ok(upstream) => self.upstream = Some(upstream),
            Err(error) => {
                let event = Event::Lost { connection, why: error.to_string() };
                tokio::spawn(async move { events.send(event).await });
            }
        }
    }

    fn report(&mut self, report: Report) {
        let volume = self.volume.as_str();
        match report {
            Report::Following { standing, replayed, gap } => {
                let gap_ms = gap.map(|gap| u64::try_from(gap.as_millis()).unwrap_or(u64::MAX));
                self.failovers += u64::from(gap.is_some());
                self.gap_ms = gap_ms.or(self.gap_ms);
                let (node, term, generation) = (standing.node, standing.term.0, standing.lineage.current);
                info!(volume, node, term, %generation, replayed, gap_ms, "following the primary");
            }
            Report::Lost { why, open } => {
                warn!(volume, why, open, "the primary is lost; requests wait for the next one")
            }
            Report::Silent => warn!(volume, "the primary does not answer; looking for another one"),
            Report::Doubt { why } => error!(volume, "{}", super::doubt_sentence(volume, &why)),
        }
    }

    fn status(&self) -> Status {
        let (state, doubt) = match self.follower.stage() {
            Stage::Serving(_) => ("following", None),
            Stage::Seeking { doubt: None } => ("seeking", None),
            Stage::Seeking { doubt } => ("in doubt", doubt),
            Stage::Failed(why) => ("failed", Some(why)),
        };
        let standing = match self.follower.stage() {
            Stage::Serving(standing) => Some(standing),
            Stage::Seeking { .. } | Stage::Failed(_) => self.follower.proven().map(|(standing, _)| standing),
        };
        Status {
            doubt: doubt.map(str::to_owned),
            size_bytes: *self.size.borrow(),
            clients: self.clients,
            open_requests: self.follower.open(),
            failovers: self.failovers,
            last_gap_ms: self.gap_ms,
            ..Status::of(&self.volume, state, standing, &self.servers)
        }
    }
}
