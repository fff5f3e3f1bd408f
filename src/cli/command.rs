//! The commands that talk to the daemon.

use std::io::{BufRead, IsTerminal, Write};
use std::path::Path;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

use super::args::Target;
use super::client::Client;
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
            Some(Reply::BadRequest(why)) => return Err(Stop::new(Exit::Usage, why)),
            Some(other) => return Err(Stop::new(Exit::Failed, format!("the daemon said something else: {other:?}"))),
            None => return Err(Stop::new(Exit::Unreachable, "the daemon ended")),
        }
    }
}

/// A command to a volume.
pub(super) fn tell(control: &Path, target: &Target, verb: Verb) -> Result<(), Stop> {
    let done = ask(control, target, verb)?;
    match (done, verb) {
        (Err(refusal), Verb::Promote { force, peer_is_down: false }) if refusal.rule == Rule::PeerUnseen => {
            confirm_peer_is_down(&refusal)?;
            ask(control, target, Verb::Promote { force, peer_is_down: true })?.map_err(refused)
        }
        (done, _) => done.map_err(refused),
    }
}

/// Asks the daemon and prints what it says; the inner error is a rule's refusal.
fn ask(control: &Path, target: &Target, verb: Verb) -> Result<Result<(), Refusal>, Stop> {
    let mut client = Client::connect(control)?;
    client.ask(Ask::Do { volume: target.volume.clone(), verb, timeout_ms: target.timeout * 1000 })?;
    match client.last(|what| eprintln!("repblk {}: {what}", verb.name()))? {
        Reply::Done { volume } => {
            println_if_possible(&format!("volume {volume}: {} {}", verb.name(), verb.outcome()));
            Ok(Ok(()))
        }
        Reply::Refused(refusal) => Ok(Err(refusal)),
        Reply::TimedOut(what) => Err(Stop::new(Exit::TimedOut, what)),
        Reply::BadRequest(what) => Err(Stop::new(Exit::Usage, what)),
        Reply::Failed(what) => Err(Stop::new(Exit::Failed, what)),
        other => Err(Stop::new(Exit::Failed, format!("the daemon answered something else: {other:?}"))),
    }
}

fn refused(refusal: Refusal) -> Stop {
    Stop::new(Exit::Refused, format!("refused by the rule {refusal}"))
}

/// On a terminal, lets the operator vouch for what the daemon cannot see.
fn confirm_peer_is_down(refusal: &Refusal) -> Result<(), Stop> {
    let input = std::io::stdin();
    if !input.is_terminal() || !std::io::stderr().is_terminal() {
        return Err(refused(refusal.clone()));
    }
    eprintln!(
        "{}: {}.\n\
         If the peer still serves clients, both nodes will acknowledge writes that the other never gets, and one\n\
         node's writes will be lost. Make sure that it is off: fence it, unplug it, or stop its daemon.\n\
         Type \"{CONFIRMATION}\" to go on, anything else to leave:",
        refusal.rule, refusal.what
    );
    let mut typed = String::new();
    let read = input.lock().read_line(&mut typed);
    if read.is_ok() && typed.trim() == CONFIRMATION { Ok(()) } else { Err(refused(refusal.clone())) }
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
