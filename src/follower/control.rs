//! Asking a running `repblk attach` how it is, and ending it.
//!
//! One line of JSON each way on its control socket.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream as StdUnixStream;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::sync::{mpsc, oneshot};
use tracing::{debug, warn};

use super::Files;
use super::dial::Miss;
use super::hub::Event;
use super::memory::Memory;
use crate::daemon::lobby::Lobby;
use crate::daemon::sockets::UnixSocket;
use crate::nbd::Standing;
use crate::tls::{Keyring, day_of};

/// Longest wait for either side.
const WORD_TIME: Duration = Duration::from_secs(5);
/// What the log was told of an address, it is told nothing else of for so long.
const TOLD_PAUSE: Duration = Duration::from_secs(10);
/// Who asks at one time; one more takes the place of the oldest.
const LOBBY_SEATS: usize = 32;
/// Longest question in bytes.
const ASK_MAX: u64 = 256;

/// What can be asked.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Ask {
    Status,
    Detach,
}

/// How an attached device is.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Status {
    /// Version of this form.
    pub schema: u32,
    /// The volume.
    pub volume: String,
    /// The process.
    pub pid: u32,
    /// `following`, `seeking`, `in doubt` or `failed`.
    pub state: String,
    /// Why a primary that is there is not followed.
    pub doubt: Option<String>,
    /// The primary in use; when there is none, the one that answered last.
    pub node: Option<String>,
    /// Its term.
    pub term: Option<u64>,
    /// The generation of its data.
    pub generation: Option<String>,
    /// Its mode.
    pub mode: Option<String>,
    /// Bytes of the device; none before the first primary is found.
    pub size_bytes: Option<u64>,
    /// Local NBD clients.
    pub clients: usize,
    /// Requests that are not answered yet.
    pub open_requests: usize,
    /// Times that another connection had to be made.
    pub failovers: u64,
    /// How long the last of them took, from the loss to the next primary, in milliseconds.
    pub last_gap_ms: Option<u64>,
    /// Who this host proves to be, as `NBD client db1`; none when it speaks in the clear.
    pub proves: Option<String>,
    /// Last day of its certificate, as `2031-04-05`.
    pub certificate_until: Option<String>,
    /// What an operator must do about the keys.
    pub warning: Option<String>,
    /// The addresses.
    pub servers: Vec<ServerStatus>,
}

/// One address.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ServerStatus {
    /// Where.
    pub address: String,
    /// Why the last attempt there found no primary; empty when it did, or none was made.
    pub last_refusal: String,
}

/// The addresses that are dialled, why the last attempt at each found no primary, and the keys that are used there.
#[derive(Debug, Default)]
pub(super) struct Servers {
    last: BTreeMap<String, String>,
    /// What the log was told of each.
    told: BTreeMap<String, (String, Instant)>,
    keys: Option<Arc<Keyring>>,
}

impl Servers {
    pub(super) fn new(addresses: impl Iterator<Item = String>, keys: Option<Arc<Keyring>>) -> Self {
        let last = addresses.map(|address| (address, String::new())).collect();
        Self { last, told: BTreeMap::new(), keys }
    }

    pub(super) fn note(&mut self, volume: &str, address: String, Miss { why, distrust }: Miss) {
        debug!(volume, address, why, "no primary there");
        let told = self.told.get(&address);
        let new = told.is_none_or(|(last, at)| *last != why && at.elapsed() >= TOLD_PAUSE);
        if distrust && new {
            warn!(volume, address, "no connection there: {why}");
            self.told.insert(address.clone(), (why.clone(), Instant::now()));
        }
        if why.is_empty() {
            self.told.remove(&address);
        }
        self.last.insert(address, why);
    }
}

impl Status {
    /// What is common to all devices; the numbers are zero.
    pub(super) fn of(volume: &str, state: &str, standing: Option<&Standing>, servers: &Servers) -> Self {
        let server =
            |(address, why): (&String, &String)| ServerStatus { address: address.clone(), last_refusal: why.clone() };
        let keys = servers.keys.as_ref();
        Self {
            schema: 1,
            volume: volume.to_owned(),
            pid: std::process::id(),
            state: state.to_owned(),
            doubt: None,
            node: standing.map(|standing| standing.node.clone()),
            term: standing.map(|standing| standing.term.0),
            generation: standing.map(|standing| standing.lineage.current.to_string()),
            mode: standing.map(|standing| standing.mode.to_string()),
            size_bytes: None,
            clients: 0,
            open_requests: 0,
            failovers: 0,
            last_gap_ms: None,
            proves: keys.map(|keys| format!("{} {}", keys.own().kind.title(), keys.own().name)),
            certificate_until: keys.map(|keys| day_of(keys.now().not_after)),
            warning: keys.and_then(|keys| keys.warning()),
            servers: servers.last.iter().map(server).collect(),
        }
    }
}

/// Asks how the device of a volume is. None when no `repblk attach` runs for it.
///
/// # Errors
/// A sentence.
pub fn ask_status(files: &Files) -> Result<Option<Status>, String> {
    let place = files.control.display();
    let Some(line) = ask(&files.control, Ask::Status)? else { return Ok(None) };
    serde_json::from_str(&line)
        .map(Some)
        .map_err(|error| format!("the process at {place} says something else: {error}"))
}

/// Ends a `repblk attach`, if one runs, waits for its end, and forgets what it was acknowledged. True when there was anything to
/// end or to forget.
///
/// # Errors
/// A sentence.
pub fn detach(files: &Files) -> Result<bool, String> {
    let ran = ask(&files.control, Ask::Detach)?.is_some();
    let forgotten = Memory::new(files.memory.clone()).clear()?;
    Ok(ran || forgotten)
}

/// Everything that the process says until it closes the connection; none when there is no process.
fn ask(control: &Path, ask: Ask) -> Result<Option<String>, String> {
    let Ok(mut stream) = StdUnixStream::connect(control) else { return Ok(None) };
    let mut talk = || {
        stream.set_read_timeout(Some(WORD_TIME))?;
        stream.set_write_timeout(Some(WORD_TIME))?;
        writeln!(stream, "{}", serde_json::to_string(&ask)?)?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(Some(answer))
    };
    talk().map_err(|error: std::io::Error| format!("the process at {} does not answer: {error}", control.display()))
}

/// Answers whoever asks, for ever.
pub(super) async fn keep_answering(socket: UnixSocket, events: mpsc::Sender<Event>) {
    let lobby = Arc::new(Lobby::new(LOBBY_SEATS));
    loop {
        match socket.listener.accept().await {
            Ok((stream, _)) => {
                let (events, lobby) = (events.clone(), Arc::clone(&lobby));
                tokio::spawn(async move { lobby.seat(tokio::time::timeout(WORD_TIME, answer(stream, events))).await });
            }
            Err(_) => tokio::time::sleep(Duration::from_millis(200)).await,
        }
    }
}

async fn answer(mut stream: UnixStream, events: mpsc::Sender<Event>) -> Option<()> {
    let (reader, mut writer) = stream.split();
    let mut line = String::new();
    BufReader::new(reader.take(ASK_MAX)).read_line(&mut line).await.ok()?;
    let ask: Ask = serde_json::from_str(&line).ok()?;
    let (answer, status) = oneshot::channel();
    events.send(Event::Control { ask, answer }).await.ok()?;
    let mut text = serde_json::to_string(&status.await.ok()?).ok()?;
    text.push('\n');
    writer.write_all(text.as_bytes()).await.ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn who_asks_nothing_makes_room_for_who_asks() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("control");
        let socket = UnixSocket::bind(&path, 0o600, "control").expect("bound");
        let (events, mut asked) = mpsc::channel(4);
        let answering = tokio::spawn(keep_answering(socket, events));
        let mut silent = Vec::new();
        for _ in 0..LOBBY_SEATS + 8 {
            silent.push(UnixStream::connect(&path).await.expect("is taken"));
        }
        // The oldest is put out, long before its time.
        let began = Instant::now();
        assert_eq!(silent[0].read(&mut [0; 1]).await.expect("the end"), 0);
        assert!(began.elapsed() < WORD_TIME / 2);
        let mut asker = UnixStream::connect(&path).await.expect("is taken");
        asker.write_all(b"\"status\"\n").await.expect("is taken");
        assert!(matches!(asked.recv().await, Some(Event::Control { ask: Ask::Status, .. })), "it is heard");
        answering.abort();
    }
}
