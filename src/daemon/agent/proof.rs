//! How a daemon is proved dead.
//!
//! Its lock on the device is the proof: the kernel lets go of it when the process is gone and its ring is taken apart, and not before. Whoever
//! holds the lock knows that nothing of that life is written any more, and keeps a new life out meanwhile.

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::sync::oneshot;
use tokio::time::timeout;
use tracing::{info, warn};

use super::words::{Asked, Word};
use crate::condition::DiskState;
use crate::daemon::config::{Config, CopySpec, Node, VolumeSpec};
use crate::daemon::control::protocol::{Ask, Request, VERSION};
use crate::daemon::identity::{cluster_id, volume_id};
use crate::daemon::services::run::{self, Case};
use crate::daemon::start;
use crate::dataplane::{Disk, OpenError, Process};
use crate::meta::Superblock;
use crate::services::Action;

/// Proves what can be proved, and says in a sentence what was found.
pub(super) async fn prove(config: &Config, me: &Node, asked: &Asked) -> (Word, String) {
    let volume = config.volumes_of(&me.name).find(|(volume, _)| volume.name == asked.volume);
    let Some((volume, copy)) = volume else {
        return (Word::Nothing, format!("this node has no copy of a volume {:?}", asked.volume));
    };
    match look(me, config.arbiter.agent.hang).await {
        Daemon::Answers => return (Word::Alive, format!("the daemon of {} answers", me.name)),
        Daemon::Absent => {}
        Daemon::Silent(process) => {
            warn!(node = me.name, "the daemon says nothing, and is killed");
            if let Err(error) = process.kill() {
                info!(%error, "it was gone already");
            }
        }
    }
    let (spec, place, ask, name) = (volume.clone(), copy.clone(), asked.clone(), config.cluster.clone());
    let demoted = tokio::task::spawn_blocking(move || demote(&name, &spec, &place, &ask)).await;
    let word = match demoted {
        Ok(Ok(word)) => word,
        Ok(Err(Trouble::Held(why))) => return (Word::Alive, why),
        Ok(Err(Trouble::Other(why))) => return (Word::Nothing, why),
        Err(error) => return (Word::Nothing, error.to_string()),
    };
    if word == Word::Behind {
        return (word, format!("the daemon of {} is dead, and its copy has what {}'s has not", me.name, asked.asker));
    }
    let case = Case {
        cluster: config.cluster.clone(),
        node: me.name.clone(),
        peer: asked.asker.clone(),
        volume: volume.name.clone(),
    };
    match stop_services(volume, &case).await {
        Ok(()) => (word, format!("the daemon of {} is dead, and its copy is recorded as outdated", me.name)),
        Err(why) => (Word::Nothing, format!("the daemon of {} is dead, and {why}", me.name)),
    }
}

/// What the daemon of this host does.
enum Daemon {
    Answers,
    Absent,
    /// It was there when it was asked, and did not answer.
    Silent(Process),
}

/// Asks the daemon how things are, as any operator does.
async fn look(me: &Node, patience: Duration) -> Daemon {
    let Ok(mut stream) = UnixStream::connect(&me.control).await else { return Daemon::Absent };
    // Taken before it is asked: the number is that of whoever listens now.
    let number = stream.peer_cred().ok().and_then(|credentials| credentials.pid());
    let process = number.and_then(|number| u32::try_from(number).ok()).and_then(|number| Process::find(number).ok());
    let request = serde_json::to_vec(&Request { version: VERSION, ask: Ask::Status });
    let mut line = request.expect("plain values become JSON");
    line.push(b'\n');
    let conversation = async {
        stream.write_all(&line).await?;
        let mut first = [0; 1];
        stream.read(&mut first).await
    };
    match (timeout(patience, conversation).await, process) {
        (Ok(Ok(1..)), _) => Daemon::Answers,
        // The connection ended: so has the daemon.
        (Ok(_), _) | (Err(_), None) => Daemon::Absent,
        (Err(_), Some(process)) => Daemon::Silent(process),
    }
}

/// Why nothing could be recorded.
enum Trouble {
    /// Somebody holds the device.
    Held(String),
    Other(String),
}

/// Takes the device from a dead daemon and makes durable that its copy is behind the asker's. Nothing is changed when it is not.
fn demote(cluster: &str, volume: &VolumeSpec, copy: &CopySpec, asked: &Asked) -> Result<Word, Trouble> {
    let other = |error: &dyn std::fmt::Display| Trouble::Other(error.to_string());
    let disk = Disk::open(&start::disk_config(volume, copy)).map_err(|error| match error {
        OpenError::InUse { .. } => Trouble::Held(format!("somebody holds the device: {error}")),
        _ => other(&error),
    })?;
    let superblock = start::read(&disk, &copy.metadata).map_err(|error| other(&error))?.superblock;
    if (superblock.cluster, superblock.volume) != (cluster_id(cluster), volume_id(cluster, &volume.name)) {
        return Err(Trouble::Other("the device holds another volume".to_owned()));
    }
    if !counts_in_sync(&superblock, asked) {
        return Ok(Word::Behind);
    }
    if let Some(behind) = behind(&superblock) {
        disk.write_meta_now(&[behind.encode()]).map_err(|error| other(&error))?;
    }
    Ok(Word::Dead)
}

/// True when the asker's copy has everything that this one was acknowledged.
fn counts_in_sync(superblock: &Superblock, asked: &Asked) -> bool {
    let its = |name: &str, instance: &str| name == asked.asker && instance == asked.instance;
    let record = superblock.peers.iter().find(|record| its(&record.name, &record.instance.to_string()));
    !superblock.lineage.is_fresh() && record.is_some_and(|record| !record.base.is_some() && !record.full)
}

/// The superblock of a copy that another goes on from; none when it says so already.
fn behind(superblock: &Superblock) -> Option<Superblock> {
    let disk = if superblock.disk == DiskState::UpToDate { DiskState::Outdated } else { superblock.disk };
    let said = !superblock.was_primary && superblock.disk == disk;
    (!said).then(|| Superblock { sequence: superblock.sequence + 1, was_primary: false, disk, ..superblock.clone() })
}

/// Stops what the dead daemon may have left running, in reverse, each within its time.
async fn stop_services(volume: &VolumeSpec, case: &Case) -> Result<(), String> {
    let mut failed = Vec::new();
    for spec in volume.services.iter().rev() {
        let (kill, told) = oneshot::channel();
        let mut running = std::pin::pin!(run::run(spec, Action::Stop, case, told));
        let stopped = match timeout(spec.stop_limit, &mut running).await {
            Ok(stopped) => stopped,
            Err(_) => {
                drop(kill);
                running.await.and(Err("it took too long".to_owned()))
            }
        };
        if let Err(why) = stopped {
            failed.push(format!("service {} could not be stopped: {why}", spec.name));
        }
    }
    if failed.is_empty() { Ok(()) } else { Err(failed.join("; ")) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::generation::Lineage;
    use crate::meta::FormatParams;
    use crate::meta::superblock::PeerRecord;
    use crate::units::{DiskInstance, GenerationId};

    fn primary() -> (Superblock, Asked) {
        let mut superblock = FormatParams::default().superblock();
        superblock.lineage = Lineage::starting_with(GenerationId(5));
        (superblock.disk, superblock.was_primary) = (DiskState::UpToDate, true);
        superblock.peers[0] = PeerRecord { name: "beta".into(), instance: DiskInstance(9), ..PeerRecord::default() };
        (superblock, Asked::new("c", "mes", "beta", &DiskInstance(9).to_string()))
    }

    #[test]
    fn only_a_copy_that_has_everything_is_in_sync() {
        let (superblock, asked) = primary();
        assert!(counts_in_sync(&superblock, &asked));
        let replaced = Asked::new("c", "mes", "beta", &DiskInstance(8).to_string());
        assert!(!counts_in_sync(&superblock, &replaced), "another disk");
        let mut alone = superblock.clone();
        alone.peers[0].base = GenerationId(4);
        assert!(!counts_in_sync(&alone, &asked), "it went on alone");
        let mut unknown = superblock.clone();
        unknown.peers[0].full = true;
        assert!(!counts_in_sync(&unknown, &asked), "every block may differ");
        let fresh = Superblock { lineage: Lineage::default(), ..superblock };
        assert!(!counts_in_sync(&fresh, &asked), "neither holds data");
    }

    #[test]
    fn a_copy_is_recorded_as_behind_once() {
        let (superblock, _) = primary();
        let next = behind(&superblock).expect("it says that it is primary");
        assert_eq!((next.disk, next.was_primary), (DiskState::Outdated, false));
        assert_eq!(next.sequence, superblock.sequence + 1);
        assert_eq!(behind(&next), None);
    }
}
