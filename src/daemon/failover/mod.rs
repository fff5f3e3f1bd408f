//! The shell around [`crate::failover`]: one task for each volume drives its machine.
//!
//! ```text
//!  heartbeat paths --beats-->  +--------+ --questions--> etcd
//!  volume's thread --views-->  | driver | --commands, lease--> volume's thread
//!  operators ------asks----->  +--------+ --runs--> the fence
//! ```
//! Nothing is decided here. What the machine wants done is done in the order in which it was said; nothing in here waits for a disk, a
//! volume's thread, an arbiter or a fence: each has a task of its own, and its answer is one more input.
//!
//! | file | noun |
//! |---|---|
//! | `driver` | the task: inputs in, effects out, and the clock |
//! | `adapter` | the words of the volume and the words of the machine |
//! | `etcd` | the record's keeper |
//! | `fence` | the command that switches the peer off |
//! | `prover` | whoever is asked what has become of the peer: the fence, or the agent of its host |
//! | `gateway`, `carrier` | a ping, a cable |
//! | `memory` | what is kept on the disk |
//! | `look` | what `status`, `plan` and `history` show |

mod adapter;
mod carrier;
mod driver;
mod etcd;
mod fence;
mod gateway;
pub mod look;
mod memory;
mod prover;

use std::net::SocketAddr;
use std::sync::Arc;

use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;

use self::driver::{Driver, Said};
use self::etcd::{Etcd, Login, Place};
use self::memory::MemoryFile;
use self::prover::Prover;
use super::beat_path::BeatPaths;
use super::config::{ArbiterKind, Config, EtcdTls, Node};
use super::handle::VolumeHandle;
use super::security::Guard;
use super::services::{self, run::Case};
use crate::condition::Mode;
use crate::failover::config::{Arbiter, Config as MachineConfig};
use crate::failover::decision::Verdict;
use crate::failover::io::{Ask, Beat};
use crate::failover::rule::Rule;
use crate::failover::{Failover, Question};
use crate::tls::{Folder, Visitor};
use crate::units::Moment;
use crate::volume::io::{Refusal, Standing};

/// Beats that may wait for the driver. One that finds no room is lost, as it might have been on the way.
const BEATS_MAX: usize = 64;

/// Why an operator's wish is not granted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Denied {
    /// By the volume.
    Volume(Refusal),
    /// By a rule of failover.
    Failover(Rule),
    /// By a service that cannot be stopped.
    Services(String),
}

/// How an operator's wish ended.
pub(super) type Outcome = Result<(), Denied>;

/// Where everybody speaks to the driver of a volume.
#[derive(Debug, Clone)]
pub(super) struct Post {
    said: mpsc::UnboundedSender<Said>,
    beats: mpsc::Sender<(usize, Beat)>,
    /// What runs on the primary, if anything does.
    pub(super) services: Option<services::Post>,
}

impl Post {
    /// A beat was heard on a path.
    pub(super) fn beat(&self, path: usize, beat: Beat) {
        // One that finds no room might have been lost on the way.
        let _ = self.beats.try_send((path, beat));
    }

    /// The volume is different from what it was.
    pub(super) fn volume(&self, standing: &Standing) {
        self.say(Said::Volume(adapter::view(standing)));
    }

    /// An operator wants something; the receiver gets the answer. Services are stopped before the role is handed over.
    pub(super) fn ask(&self, ask: Ask) -> oneshot::Receiver<Outcome> {
        if ask != Ask::HandOver || self.services.is_none() {
            return self.ask_machine(ask);
        }
        let (reply, answer) = oneshot::channel();
        let post = self.clone();
        tokio::spawn(async move {
            let look = |failover: &Failover, now| failover.plan(now, Question::HandOver);
            let outcome = match post.look(look).await {
                // Nothing is stopped for what is refused anyway.
                Some(plan) if plan.verdict != Verdict::HandOver => Some(Err(Denied::Failover(plan.rule))),
                _ => post.rested(async { post.ask_machine(ask).await.ok() }).await,
            };
            // Whoever asked may have given up.
            let _ = outcome.map(|outcome| reply.send(outcome));
        });
        answer
    }

    /// Stops the services and then gives the role up by `give_up`; they are started again when that comes to nothing.
    pub(super) async fn rested(&self, give_up: impl Future<Output = Option<Outcome>>) -> Option<Outcome> {
        let Some(services) = &self.services else { return give_up.await };
        if let Err(why) = services.rest().await {
            return Some(Err(Denied::Services(why)));
        }
        let outcome = give_up.await;
        if !matches!(outcome, Some(Ok(()))) {
            services.release();
        }
        outcome
    }

    fn ask_machine(&self, ask: Ask) -> oneshot::Receiver<Outcome> {
        let (reply, answer) = oneshot::channel();
        self.say(Said::Operator { ask, reply });
        answer
    }

    /// Looks at the machine as it is.
    pub(super) async fn look<T: Send + 'static>(
        &self,
        look: impl FnOnce(&Failover, Moment) -> T + Send + 'static,
    ) -> Option<T> {
        let (reply, answer) = oneshot::channel();
        self.say(Said::Look(Box::new(move |failover, now| {
            // Whoever asked may have gone.
            let _ = reply.send(look(failover, now));
        })));
        answer.await.ok()
    }

    fn say(&self, said: Said) {
        // The driver ends with the daemon, and nobody needs to know.
        let _ = self.said.send(said);
    }
}

/// What a driver needs of the world around it.
pub(super) struct Surroundings {
    pub(super) config: Arc<Config>,
    pub(super) me: Node,
    /// To all peers.
    pub(super) paths: Arc<BeatPaths>,
    /// Drawn when this daemon started.
    pub(super) incarnation: u64,
    /// The node's keys.
    pub(super) guard: Arc<Guard>,
}

/// Starts to drive `volume`.
///
/// # Errors
/// A sentence, when what must be remembered cannot be read or written.
pub(super) fn start(
    around: &Surroundings,
    volume: &Arc<VolumeHandle>,
    tasks: &mut Vec<JoinHandle<()>>,
) -> Result<Post, String> {
    let Surroundings { config, me, paths, incarnation, guard } = around;
    let spec = &config.arbiter;
    let peer = volume.peers.first().and_then(|peer| config.node(peer));
    let peer = peer.ok_or_else(|| format!("volume {} has no second node", volume.name()))?;
    let file = MemoryFile::new(&me.state, &me.name, (volume.name(), volume.identity.volume));
    let memory = file.read()?;
    if spec.arbiter() != Arbiter::None {
        // Better now than when it is needed.
        file.write(&memory)?;
    }
    let machine = MachineConfig {
        node: me.name.clone(),
        peer: peer.name.clone(),
        cluster: volume.identity.cluster,
        volume: volume.identity.volume,
        instance: volume.identity.instance,
        incarnation: *incarnation,
        paths: me.heartbeat.len(),
        arbiter: spec.arbiter(),
        agent: spec.arbiter() == Arbiter::Etcd && peer.agent.is_some(),
        timing: spec.timing,
        // What is acknowledged in async the peer may lack.
        automatic: spec.automatic && volume.spec.mode != Mode::Async,
        automatic_per_hour: spec.automatic_per_hour,
        gateway: spec.gateway.is_some(),
        accept_split_brain: spec.accepts_split_brain(),
    };
    if spec.arbiter() == Arbiter::Etcd {
        // Before the first client is let in: nobody is answered without a lease.
        volume.set_lease(Moment(0));
    }
    let failover = Failover::new(crate::dataplane::now(), machine, memory.past.clone(), memory.floor);
    let (said, hearing) = mpsc::unbounded_channel();
    let (beats, beaten) = mpsc::channel(BEATS_MAX);
    let case = Case {
        cluster: config.cluster.clone(),
        node: me.name.clone(),
        peer: peer.name.clone(),
        volume: volume.name().to_owned(),
    };
    let services = services::start(volume, case.clone(), spec.arbiter() == Arbiter::Etcd, tasks);
    let post = Post { said, beats, services };
    let (remember, remembered) = watch::channel(memory);
    tasks.push(tokio::spawn(file.keep_writing(remembered)));
    let prover = Prover::new(spec, case, (me, peer), volume.identity.instance, guard);
    let mut questions = None;
    match &spec.kind {
        ArbiterKind::None { .. } | ArbiterKind::Fence(_) | ArbiterKind::Agent => {}
        ArbiterKind::Etcd(etcd) => {
            let login = etcd.login.clone().map(|(user, password_file)| Login { user, password_file });
            let tls = etcd.tls.as_ref().map(|tls| match tls {
                EtcdTls::Files(files) => files.clone(),
                EtcdTls::Keys => {
                    let folder = config.security.keys().expect("a configuration without keys was refused");
                    Visitor::of_node(&Folder::new(folder), &me.name)
                }
            });
            let place = Place { endpoints: etcd.endpoints.clone(), login, tls };
            let key = format!("{}/{}/{}", etcd.prefix, config.cluster, volume.name());
            let etcd = Etcd::new(place, &key, spec.timing.arbiter_timeout);
            let (sender, receiver) = mpsc::unbounded_channel();
            questions = Some(sender);
            tasks.push(tokio::spawn(driver::keep_asking(etcd, receiver, volume.name().to_owned(), post.clone())));
        }
    }
    if let Some(gateway) = spec.gateway {
        let post = post.clone();
        tasks.push(tokio::spawn(gateway::keep_asking(gateway, move |answers| post.say(Said::Gateway(answers)))));
    }
    if spec.arbiter() != Arbiter::None || spec.accepts_split_brain() {
        let (post, peers) = (post.clone(), peer.heartbeat.iter().map(SocketAddr::ip).collect());
        tasks.push(tokio::spawn(carrier::keep_looking(peers, move |carrier| post.say(Said::Carrier(carrier)))));
    }
    let ways = (me.name.clone(), paths.to(&peer.name));
    let driver = Driver::new(failover, Arc::clone(volume), ways, (questions, prover), remember);
    tasks.push(tokio::spawn(driver.run(post.clone(), hearing, beaten)));
    volume.failover.set(post.clone()).map_err(|_| format!("volume {} is driven already", volume.name()))?;
    Ok(post)
}
