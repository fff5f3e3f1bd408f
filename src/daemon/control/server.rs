//! The daemon's side of the control socket.
//!
//! A client gets a word at least every second as long as its request is open, whatever the volumes do. One that says nothing, or
//! does not take its reply, sits in the lobby meanwhile and loses its seat when others come.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::io::{AsyncBufRead, AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader};
use tokio::sync::{Semaphore, broadcast};
use tokio::time::{Instant, timeout, timeout_at};
use tracing::{info, warn};

use super::access::{Access, Doorkeeper, Peer};
use super::protocol::{Answer, Ask, REQUEST_LEN_MAX, Reply, Request, Task, VERSION, Verb};
use crate::daemon::accounts;
use crate::daemon::config::Config;
use crate::daemon::events::{EventHub, Happening};
use crate::daemon::failover::{Denied, Outcome, Post, look};
use crate::daemon::handle::VolumeHandle;
use crate::daemon::heartbeat::Ear;
use crate::daemon::lobby::Lobby;
use crate::daemon::saved;
use crate::daemon::security::Guard;
use crate::daemon::sockets::UnixSocket;
use crate::daemon::status::{SCHEMA, Status, VolumeStatus};
use crate::failover::Failover;
use crate::failover::config::Arbiter;
use crate::units::Moment;
use crate::volume::io::{Command, Discard};

/// Time after which a waiting client is told what is waited for.
const PATIENCE: Duration = Duration::from_millis(900);
/// Longest time for a client to say its request, or to take a reply.
const CLIENT_TIME: Duration = Duration::from_secs(5);
/// Clients at one time that say nothing or take nothing.
const LOBBY_SEATS: usize = 64;
/// Commands that are waited for, and streams of events, at one time.
const OPEN_MAX: usize = 64;
/// Of those who may not command: seats in a lobby of their own, and requests that are being answered.
const READER_SEATS: usize = 16;
const READERS_OPEN_MAX: usize = 8;
/// Connections at one time; the kernel keeps some more waiting, not for long: each is in the lobby, open, or soon answered.
const CLIENTS_MAX: usize = 256;

/// Everything that is needed to answer.
pub(in crate::daemon) struct ControlDesk {
    pub(in crate::daemon) config: Arc<Config>,
    pub(in crate::daemon) node: String,
    pub(in crate::daemon) volumes: Vec<Arc<VolumeHandle>>,
    /// The drivers of failover, in the order of the volumes.
    pub(in crate::daemon) posts: Vec<Post>,
    pub(in crate::daemon) ear: Arc<Ear>,
    pub(in crate::daemon) guard: Arc<Guard>,
    pub(in crate::daemon) events: EventHub,
    pub(in crate::daemon) keeper: Doorkeeper,
    pub(in crate::daemon) operators: Room,
    /// Whoever may not command never keeps an operator waiting.
    pub(in crate::daemon) readers: Room,
}

/// Room for clients of one kind.
pub(in crate::daemon) struct Room {
    lobby: Arc<Lobby>,
    /// For what is open longer than a moment.
    open: Semaphore,
    open_max: usize,
}

impl Room {
    pub(in crate::daemon) fn for_operators() -> Self {
        Self::new(LOBBY_SEATS, OPEN_MAX)
    }

    pub(in crate::daemon) fn for_readers() -> Self {
        Self::new(READER_SEATS, READERS_OPEN_MAX)
    }

    fn new(seats: usize, open_max: usize) -> Self {
        Self { lobby: Arc::new(Lobby::new(seats)), open: Semaphore::new(open_max), open_max }
    }
}

/// The way back to a client.
struct Teller<'r, W> {
    writer: W,
    room: &'r Room,
}

impl<W: AsyncWrite + Unpin> Teller<'_, W> {
    async fn say(&mut self, reply: Reply) -> std::io::Result<()> {
        let mut line = serde_json::to_vec(&Answer { version: VERSION, reply }).map_err(std::io::Error::other)?;
        line.push(b'\n');
        // A client that does not read must not hold a task for ever.
        let written = self.room.lobby.seat(timeout(CLIENT_TIME, self.writer.write_all(&line))).await;
        written.and_then(Result::ok).ok_or(std::io::ErrorKind::TimedOut)?
    }
}

impl ControlDesk {
    /// Serves clients, for ever.
    pub(in crate::daemon) async fn keep_serving(self: Arc<Self>, socket: UnixSocket) {
        let places = Arc::new(Semaphore::new(CLIENTS_MAX));
        loop {
            let place = Arc::clone(&places).acquire_owned().await.expect("the semaphore is never closed");
            match socket.listener.accept().await {
                Ok((stream, _)) => {
                    let desk = Arc::clone(&self);
                    tokio::spawn(async move {
                        // An error says that the client is gone.
                        if let Ok(peer) = Peer::of(&stream) {
                            let (reader, writer) = stream.into_split();
                            let _ = desk.serve(&peer, reader, writer).await;
                        }
                        drop(place);
                    });
                }
                Err(error) => {
                    warn!(%error, "a control client cannot be accepted");
                    tokio::time::sleep(Duration::from_millis(200)).await;
                }
            }
        }
    }

    /// Answers requests until the client is gone, makes no sense, or asks what it may not.
    async fn serve(
        &self,
        peer: &Peer,
        reader: impl AsyncRead + Unpin,
        writer: impl AsyncWrite + Unpin,
    ) -> std::io::Result<()> {
        let operator = self.keeper.access(peer) == Access::All;
        let room = if operator { &self.operators } else { &self.readers };
        let mut reader = BufReader::with_capacity(REQUEST_LEN_MAX, reader);
        let mut teller = Teller { writer, room };
        loop {
            let request = match room.lobby.seat(timeout(CLIENT_TIME, read_request(&mut reader))).await {
                Some(Ok(Ok(Some(request)))) => request,
                Some(Ok(Ok(None)) | Err(_)) | None => return Ok(()),
                Some(Ok(Err(why))) => return teller.say(Reply::BadRequest(why)).await,
            };
            if let Some(refusal) = self.keeper.refusal(peer, &request.ask) {
                return teller.say(refusal).await;
            }
            let open = room.open.try_acquire();
            // How things are is always told to an operator.
            let waits = matches!(request.ask, Ask::Events | Ask::Do { .. });
            if open.is_err() && (waits || !operator) {
                let max = room.open_max;
                let why = format!("{max} commands or streams of events are open on this daemon; end some of them");
                return teller.say(Reply::BadRequest(why)).await;
            }
            match request.ask {
                Ask::Status => teller.say(Reply::Status(Box::new(self.status().await))).await?,
                Ask::Events => return self.tell_events(&mut reader, &mut teller).await,
                Ask::Plan { volume } => {
                    let plan = self.look(volume.as_deref(), look::plan).await;
                    teller.say(plan.map_or_else(Reply::BadRequest, Reply::Plan)).await?;
                }
                Ask::History { volume } => {
                    let history = self.look(volume.as_deref(), look::history).await;
                    teller.say(history.map_or_else(Reply::BadRequest, Reply::History)).await?;
                }
                Ask::Do { volume, verb, timeout_ms } => {
                    let last = match self.volume(volume.as_deref()) {
                        Ok((volume, post)) => {
                            note(volume, verb, peer).await;
                            self.carry_out((volume, post), verb, timeout_ms, &mut teller).await?
                        }
                        Err(why) => Reply::BadRequest(why),
                    };
                    teller.say(last).await?;
                }
            }
        }
    }

    /// Looks at the failover of a volume.
    async fn look<T: Send + 'static>(
        &self,
        name: Option<&str>,
        look: impl FnOnce(&Failover, Moment) -> T + Send + 'static,
    ) -> Result<T, String> {
        let (_, post) = self.volume(name)?;
        post.look(look).await.ok_or_else(|| "the daemon is shutting down".to_owned())
    }

    fn volume(&self, name: Option<&str>) -> Result<(&Arc<VolumeHandle>, &Post), String> {
        let names = || self.volumes.iter().map(|volume| volume.name()).collect::<Vec<_>>().join(", ");
        let of = |place: usize| (&self.volumes[place], &self.posts[place]);
        match (name, &self.volumes[..]) {
            (None, [_]) => Ok(of(0)),
            (None, _) => Err(format!("node {} has several volumes; say which with --volume: {}", self.node, names())),
            (Some(name), volumes) => volumes
                .iter()
                .position(|volume| volume.name() == name)
                .map(of)
                .ok_or_else(|| format!("node {} has no volume {name:?}; it has: {}", self.node, names())),
        }
    }

    /// Gives the command and waits for its answer, with a word each time that patience ends.
    async fn carry_out(
        &self,
        (volume, post): (&Arc<VolumeHandle>, &Post),
        verb: Verb,
        timeout_ms: u64,
        teller: &mut Teller<'_, impl AsyncWrite + Unpin>,
    ) -> std::io::Result<Reply> {
        let began = Instant::now();
        let end = began + Duration::from_millis(timeout_ms);
        let saved = if verb.saves_first() {
            match self.save(volume, end, teller).await? {
                Ok(discard) => Some(discard),
                Err(reply) => return Ok(reply),
            }
        } else {
            None
        };
        if let (Verb::Services { .. }, None) = (verb, &post.services) {
            return Ok(Reply::BadRequest(format!("volume {} has no services in the configuration", volume.name())));
        }
        if let Some(reply) = forbidden(verb, self.config.arbiter.arbiter()) {
            return Ok(reply);
        }
        let mut answer = answering(volume, post, verb.task(saved));
        loop {
            let wait = timeout_at(end.min(Instant::now() + PATIENCE), &mut answer).await;
            if let Ok(answered) = wait {
                return Ok(reply_of(volume, verb, answered));
            }
            let why = tokio::select! {
                biased;
                answered = &mut answer => return Ok(reply_of(volume, verb, answered)),
                why = waiting_for(volume, verb) => why,
            };
            if Instant::now() >= end {
                return Ok(Reply::TimedOut(format!(
                    "{} of volume {} is not done after {timeout_ms} ms and goes on in the daemon; it is waiting for {why}",
                    verb.name(),
                    volume.name()
                )));
            }
            let seconds = began.elapsed().as_secs();
            teller.say(Reply::Waiting(format!("waiting for {why} ({seconds} s)"))).await?;
        }
    }

    /// Saves what the volume holds alone, with a word each time that patience ends.
    async fn save(
        &self,
        volume: &VolumeHandle,
        end: Instant,
        teller: &mut Teller<'_, impl AsyncWrite + Unpin>,
    ) -> std::io::Result<Result<Discard, Reply>> {
        let directory = self.config.node(&self.node).map(|node| node.saved.clone()).unwrap_or_default();
        let done = Arc::new(AtomicU64::new(0));
        let mut saving = std::pin::pin!(saved::save(volume, &directory, Arc::clone(&done)));
        loop {
            match timeout_at(end.min(Instant::now() + PATIENCE), &mut saving).await {
                Ok(Ok(saved)) => {
                    if let Some(what) = saved.what {
                        info!(volume = volume.name(), "{what}");
                        teller.say(Reply::Waiting(what)).await?;
                    }
                    return Ok(Ok(saved.discard));
                }
                Ok(Err(why)) => {
                    warn!(volume = volume.name(), "{why}");
                    return Ok(Err(Reply::Failed(why)));
                }
                Err(_) => {}
            }
            let mib = done.load(Ordering::Relaxed) >> 20;
            if Instant::now() >= end {
                return Ok(Err(Reply::TimedOut(format!(
                    "after {mib} MiB saving what only this copy holds is not done; nothing was given up. Say it again with a \
                     longer --timeout"
                ))));
            }
            teller.say(Reply::Waiting(format!("saving what only this copy holds: {mib} MiB"))).await?;
        }
    }

    /// Tells how things are, and then what happens, until the client closes.
    async fn tell_events(
        &self,
        reader: &mut (impl AsyncBufRead + Unpin),
        teller: &mut Teller<'_, impl AsyncWrite + Unpin>,
    ) -> std::io::Result<()> {
        // Listening first: what happens during the dump is told after it, and nothing falls between.
        let mut listener = self.events.listen();
        for status in self.status().await.volumes {
            let name = status.volume.clone();
            let event = self.events.event(&name, Happening::Exists { status: Box::new(status) });
            teller.say(Reply::Event(Box::new(event))).await?;
        }
        teller.say(Reply::Event(Box::new(self.events.event("", Happening::ExistsEnd)))).await?;
        loop {
            let event = tokio::select! {
                event = listener.recv() => event,
                // Whatever the client says now, or that it closes, ends the stream.
                _ = reader.fill_buf() => return Ok(()),
            };
            let event = match event {
                Ok(event) => event,
                Err(broadcast::error::RecvError::Lagged(events)) => self.events.event("", Happening::Lost { events }),
                Err(broadcast::error::RecvError::Closed) => return Ok(()),
            };
            teller.say(Reply::Event(Box::new(event))).await?;
        }
    }

    /// How things are, within a bounded time.
    pub(in crate::daemon) async fn status(&self) -> Status {
        let mut volumes = Vec::new();
        for volume in &self.volumes {
            // One question after the other would add up the waits for volumes that hang.
            let asked = Arc::clone(volume);
            volumes.push((volume, tokio::spawn(async move { asked.ask().await.err() })));
        }
        let mut statuses = Vec::new();
        for ((volume, asked), post) in volumes.into_iter().zip(&self.posts) {
            let trouble = asked.await.unwrap_or_else(|error| Some(error.to_string()));
            let mut status = self.volume_status(volume, trouble);
            status.failover = post.look(look::status).await.unwrap_or_default();
            if let Some(services) = &post.services {
                status.services = services.look().await;
            }
            statuses.push(status);
        }
        Status {
            schema: SCHEMA,
            cluster: self.config.cluster.clone(),
            node: self.node.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            arbiter: self.config.arbiter.arbiter().word().to_owned(),
            guarantee: self.config.arbiter.guarantee().to_owned(),
            security: self.guard.status(),
            volumes: statuses,
        }
    }

    fn volume_status(&self, volume: &VolumeHandle, trouble: Option<String>) -> VolumeStatus {
        let listen = self.config.node(&self.node).into_iter().flat_map(|node| &node.nbd).map(ToString::to_string);
        let mut status = VolumeStatus {
            volume: volume.name().to_owned(),
            role: "unknown".to_owned(),
            disk_state: "unknown".to_owned(),
            mode: volume.spec.mode.to_string(),
            size_bytes: volume.identity.size,
            device: volume.copy.device.display().to_string(),
            trouble,
            ..VolumeStatus::default()
        };
        status.nbd.listen = listen.collect();
        if let Some((state, age)) = volume.last_state() {
            status.fill(&state, age);
        }
        for peer in &mut status.peers {
            peer.heartbeat = self.config.node(&peer.name).map(|node| self.ear.paths(node)).unwrap_or_default();
            if let (Some(why), "connecting") = (volume.why_no_link(&peer.name), peer.connection.as_str()) {
                peer.why = if peer.why.is_empty() { why } else { format!("{}; {why}", peer.why) };
            }
        }
        status
    }
}

/// Writes into the journal what is to be done, and who said so.
async fn note(volume: &VolumeHandle, verb: Verb, peer: &Peer) {
    /// A name is not worth waiting for a system disk that hangs.
    const QUICK: Duration = Duration::from_millis(300);
    let uid = peer.user;
    let name = timeout(QUICK, tokio::task::spawn_blocking(move || accounts::user_name(uid))).await;
    let user = name.ok().and_then(Result::ok).unwrap_or_else(|| uid.to_string());
    let (volume, command, pid) = (volume.name(), verb.name(), peer.process);
    info!(volume, command, detail = ?verb, user, uid, pid, "operator's command");
}

/// What makes no sense with the arbiter that is configured.
fn forbidden(verb: Verb, arbiter: Arbiter) -> Option<Reply> {
    let (rule, sentence) = match (verb, arbiter) {
        // The record would still name this node, which would take its role up again at once.
        (Verb::Demote { .. }, Arbiter::Etcd) => {
            ("record-decides", "With a record at an arbiter a role is given to somebody. Use `repblk switchover`.")
        }
        (Verb::Maintenance { .. }, Arbiter::Fence | Arbiter::Agent | Arbiter::None) => (
            "record-missing",
            "Maintenance is kept in an arbiter's record, and none is configured. Write `automatic = false` in [arbiter] and restart.",
        ),
        _ => return None,
    };
    Some(Reply::Forbidden { rule: rule.to_owned(), sentence: sentence.to_owned() })
}

/// The answer to a command, on its way; none when whoever would give it has ended.
type Answering = Pin<Box<dyn Future<Output = Option<Outcome>> + Send>>;

/// Gives a task to whoever carries it out.
fn answering(volume: &Arc<VolumeHandle>, post: &Post, task: Task) -> Answering {
    match task {
        Task::Volume(command @ Command::Demote { .. }) => {
            let (volume, post) = (Arc::clone(volume), post.clone());
            Box::pin(async move {
                let demote = async { Some(volume.command(command).await.ok()?.map_err(Denied::Volume)) };
                post.rested(demote).await
            })
        }
        Task::Volume(command) => {
            let answer = volume.command(command);
            Box::pin(async { Some(answer.await.ok()?.map_err(Denied::Volume)) })
        }
        Task::Failover(ask) => {
            let answer = post.ask(ask);
            Box::pin(async { answer.await.ok() })
        }
        Task::Services { on } => {
            let services = post.services.clone();
            Box::pin(async move {
                let services = services?;
                if on {
                    services.release();
                    return Some(Ok(()));
                }
                Some(services.rest().await.map_err(Denied::Services))
            })
        }
    }
}

fn reply_of(volume: &VolumeHandle, verb: Verb, answered: Option<Outcome>) -> Reply {
    match answered {
        Some(Ok(())) => {
            volume.link_news.notify_waiters();
            Reply::Done { volume: volume.name().to_owned() }
        }
        Some(Err(Denied::Failover(rule))) => {
            info!(volume = volume.name(), command = verb.name(), %rule, "command refused");
            Reply::Forbidden { rule: rule.name().to_owned(), sentence: rule.sentence().to_owned() }
        }
        Some(Err(Denied::Services(why))) => Reply::Failed(format!("{why}; nothing else was changed")),
        Some(Err(Denied::Volume(refusal))) => {
            info!(volume = volume.name(), command = verb.name(), %refusal, "command refused");
            Reply::Refused(refusal)
        }
        None => Reply::Failed(volume.ended().unwrap_or_else(|| "the command was lost; give it again".to_owned())),
    }
}

/// What a command that is not done yet is waiting for.
async fn waiting_for(volume: &VolumeHandle, verb: Verb) -> String {
    /// Short enough to keep the promise of a word each two seconds.
    const QUICK: Duration = Duration::from_millis(300);
    match timeout(QUICK, volume.ask()).await {
        Ok(Ok(state)) => match state.volume.frozen {
            Some((reason, _)) => format!("{}; requests wait: {reason}", verb.waits_for()),
            None => verb.waits_for().to_owned(),
        },
        Ok(Err(why)) => why,
        Err(_) => format!(
            "the volume's thread, which does not answer; a system call on {} may hang",
            volume.copy.device.display()
        ),
    }
}

/// The next request; none at the end.
async fn read_request(reader: &mut (impl AsyncBufRead + Unpin)) -> Result<Option<Request>, String> {
    let mut line = Vec::new();
    let limit = u64::try_from(REQUEST_LEN_MAX).expect("a small constant");
    reader.take(limit).read_until(b'\n', &mut line).await.map_err(|error| error.to_string())?;
    if line.is_empty() {
        return Ok(None);
    }
    if line.last() != Some(&b'\n') {
        return Err(format!("a request is one line of at most {REQUEST_LEN_MAX} bytes"));
    }
    Request::parse(&line).map(Some)
}

#[cfg(test)]
mod tests;
