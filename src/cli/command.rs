//! The commands that talk to the daemon.

use std::io::{BufRead, IsTerminal, Write};
use std::path::Path;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

use super::args::Target;
use super::client::{Client, forbidden, unasked};
use super::exit::{Exit, Stop};
use super::text;
use crate::daemon::control::protocol::{Ask, Reply, Verb};
use crate::daemon::status::{Status, VolumeStatus};
use crate::volume::io::Refusal;
use crate::volume::rule::Rule;

/// Time between two looks of `--watch`.
const WATCH_INTERVAL: Duration = Duration::from_secs(1);
/// What must be typed to promote without having seen the peer.
const CONFIRMATION: &str = "the peer is down";

/// `repblk status`.
pub(super) fn status(control: &Path, json: bool, watch: bool) -> Result<(), Stop> {
    let mut client = Client::connect(control)?;
    let mut out = std::io::stdout();
    loop {
        let status = client.status()?;
        let text = if json { line(&status)? } else { text::status(&status) };
        if watch && !json && out.is_terminal() {
            // Home, and clear what was there: a table that stays in its place.
            out.write_all(b"\x1b[H\x1b[2J")?;
        }
        out.write_all(text.as_bytes())?;
        out.flush()?;
        if !watch {
            return troubles(&status);
        }
        std::thread::sleep(WATCH_INTERVAL);
    }
}

/// A status that shows a volume in trouble is no success.
fn troubles(status: &Status) -> Result<(), Stop> {
    match status.volumes.iter().find_map(|volume| volume.trouble.as_ref()) {
        Some(trouble) => Err(Stop::new(Exit::Failed, trouble)),
        None => Ok(()),
    }
}

/// `repblk events`.
pub(super) fn events(control: &Path, json: bool) -> Result<(), Stop> {
    let mut client = Client::connect(control)?;
    client.ask(Ask::Events)?;
    let mut note = |what: &str| eprintln!("repblk events: {what}");
    let mut out = std::io::stdout();
    loop {
        match client.next(&mut note)? {
            Some(Reply::Event(event)) => {
                // The daemon has answered with how things are; from here on it speaks when something happens.
                client.patience(None)?;
                let text = if json { line(&event)? } else { format!("{}\n", text::event(&event)) };
                out.write_all(text.as_bytes())?;
                out.flush()?;
            }
            Some(other) => return Err(unasked(other)),
            None => return Err(Stop::new(Exit::Unreachable, "the daemon ended")),
        }
    }
}

/// `repblk plan`.
pub(super) fn plan(control: &Path, volume: Option<String>, json: bool) -> Result<(), Stop> {
    let reply = look(control, Ask::Plan { volume })?;
    let Reply::Plan(plan) = reply else { return Err(unasked(reply)) };
    let text = plan.iter().map(|entry| if json { line(entry) } else { Ok(text::plan(entry)) });
    print(text.collect::<Result<String, Stop>>()?)
}

/// `repblk history`.
pub(super) fn history(control: &Path, volume: Option<String>, json: bool) -> Result<(), Stop> {
    let reply = look(control, Ask::History { volume })?;
    let Reply::History(history) = reply else { return Err(unasked(reply)) };
    let text = history.iter().map(|episode| if json { line(episode) } else { Ok(text::episode(episode)) });
    print(text.collect::<Result<String, Stop>>()?)
}

/// Asks something that is answered at once.
fn look(control: &Path, ask: Ask) -> Result<Reply, Stop> {
    let mut client = Client::connect(control)?;
    client.ask(ask)?;
    client.last(|what| eprintln!("repblk: {what}"))
}

fn print(text: String) -> Result<(), Stop> {
    std::io::stdout().write_all(text.as_bytes()).map_err(Stop::from)
}

/// A rule that forbids what was asked.
struct Refused {
    rule: String,
    /// What is the case, and what can be done.
    sentence: String,
}

impl Refused {
    fn by_volume(refusal: &Refusal) -> Self {
        Self { rule: refusal.rule.to_string(), sentence: format!("{}. {}", refusal.what, refusal.way_out) }
    }

    fn stop(&self) -> Stop {
        forbidden(&self.rule, &self.sentence)
    }
}

/// A command to a volume.
pub(super) fn tell(control: &Path, target: &Target, verb: Verb) -> Result<(), Stop> {
    let done = ask(control, target, verb)?;
    match (done, verb) {
        // The volume and failover have a rule of this name each.
        (Err(refused), Verb::Promote { force, peer_is_down: false })
            if refused.rule == Rule::PeerUnseen.to_string() =>
        {
            confirm_peer_is_down(&refused)?;
            ask(control, target, Verb::Promote { force, peer_is_down: true })?.map_err(|refused| refused.stop())
        }
        (done, _) => done.map_err(|refused| refused.stop()),
    }
}

/// Asks the daemon and prints what it says; the inner error is a rule's refusal.
fn ask(control: &Path, target: &Target, verb: Verb) -> Result<Result<(), Refused>, Stop> {
    let mut client = Client::connect(control)?;
    client.ask(Ask::Do { volume: target.volume.clone(), verb, timeout_ms: target.timeout * 1000 })?;
    match client.last(|what| eprintln!("repblk {}: {what}", verb.name()))? {
        Reply::Done { volume } => {
            println_if_possible(&format!("volume {volume}: {} {}", verb.name(), verb.outcome()));
            Ok(Ok(()))
        }
        Reply::Refused(refusal) => Ok(Err(Refused::by_volume(&refusal))),
        Reply::Forbidden { rule, sentence } => Ok(Err(Refused { rule, sentence })),
        Reply::TimedOut(what) => Err(Stop::new(Exit::TimedOut, what)),
        Reply::Failed(what) => Err(Stop::new(Exit::Failed, what)),
        other => Err(unasked(other)),
    }
}

/// On a terminal, lets the operator vouch for what the daemon cannot see.
fn confirm_peer_is_down(refused: &Refused) -> Result<(), Stop> {
    let input = std::io::stdin();
    if !input.is_terminal() || !std::io::stderr().is_terminal() {
        return Err(refused.stop());
    }
    eprintln!(
        "{}: {}\n\
         If the peer still serves clients, both nodes will acknowledge writes that the other never gets, and one\n\
         node's writes will be lost. Make sure that it is off: fence it, unplug it, or stop its daemon.\n\
         Type \"{CONFIRMATION}\" to go on, anything else to leave:",
        refused.rule, refused.sentence
    );
    let mut typed = String::new();
    let read = input.lock().read_line(&mut typed);
    if read.is_ok() && typed.trim() == CONFIRMATION { Ok(()) } else { Err(refused.stop()) }
}

/// `repblk resync --watch`: shows the progress until it is over.
pub(super) fn watch_resync(control: &Path, target: &Target) -> Result<(), Stop> {
    /// Time for a resync to show after the command was done.
    const BEGIN_TIME: Duration = Duration::from_secs(3);
    let mut client = Client::connect(control)?;
    let bar = ProgressBar::new(0);
    if let Ok(style) = ProgressStyle::with_template("{wide_bar} {percent:>3} %  {msg}") {
        bar.set_style(style);
    }
    let began = Instant::now();
    let mut seen = false;
    loop {
        let status = client.status()?;
        troubles(&status)?;
        let volume = chosen(&status, target)?;
        match &volume.resync {
            Some(resync) => {
                seen = true;
                bar.set_length(resync.bytes_total);
                bar.set_position(resync.bytes_done);
                bar.set_message(text::resync(resync));
                if bar.is_hidden() {
                    println_if_possible(&text::resync(resync));
                }
            }
            None if seen || began.elapsed() >= BEGIN_TIME => {
                bar.finish_and_clear();
                return resync_outcome(volume);
            }
            None => {}
        }
        std::thread::sleep(WATCH_INTERVAL / 2);
    }
}

/// Whether the copies are in sync now that no resync runs.
fn resync_outcome(volume: &VolumeStatus) -> Result<(), Stop> {
    match volume.peers.iter().find(|peer| peer.out_of_sync_bytes > 0 || peer.connection != "connected") {
        None => {
            println_if_possible(&format!("volume {}: in sync", volume.volume));
            Ok(())
        }
        Some(peer) => Err(Stop::new(
            Exit::Failed,
            format!(
                "the resync ended with {} out of sync; peer {} is {} ({})",
                text::bytes(peer.out_of_sync_bytes),
                peer.name,
                peer.connection,
                peer.why
            ),
        )),
    }
}

fn chosen<'s>(status: &'s Status, target: &Target) -> Result<&'s VolumeStatus, Stop> {
    let wanted = |volume: &&VolumeStatus| target.volume.as_ref().is_none_or(|name| *name == volume.volume);
    status.volumes.iter().find(wanted).ok_or_else(|| Stop::new(Exit::Usage, "the node has no such volume"))
}

fn line(value: &impl serde::Serialize) -> Result<String, Stop> {
    let mut text = serde_json::to_string(value).map_err(|error| Stop::new(Exit::Failed, error.to_string()))?;
    text.push('\n');
    Ok(text)
}

/// For a last word that nobody may be reading.
fn println_if_possible(text: &str) {
    let _ = writeln!(std::io::stdout(), "{text}");
}
