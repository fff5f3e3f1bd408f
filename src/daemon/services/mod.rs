//! The shell around [`crate::services`]: one task for each volume that has services.
//!
//! Nothing is decided here. A service that is started or stopped has a task of its own, and its end is one more input. What is asked to stop
//! before a role is given up waits for it; nothing else does.

mod address;
pub(super) mod run;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio::time::sleep_until;
use tracing::{debug, info, warn};

use self::run::Case;
use super::config::{ServiceKind, ServiceSpec};
use super::events::Happening;
use super::handle::VolumeHandle;
use crate::dataplane::now;
use crate::failover::io::{Ask, NEVER};
use crate::services::{Action, Effect, Input, Rung, Services, State};
use crate::units::{Moment, Ticket};

/// The machine is asked at least so often.
const LOOK_INTERVAL: Duration = Duration::from_secs(60);
/// How often, and how long one after the other, a role is offered to a peer that is perhaps not in sync yet.
const HAND_BACK_TRIES: usize = 20;
const HAND_BACK_PAUSE: Duration = Duration::from_millis(500);

/// One service in `repblk status`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct ServiceStatus {
    /// Its name.
    pub name: String,
    /// `command`, `unit`, `address`.
    pub kind: String,
    /// `down`, `starting`, `up`, `stopping`, `failed`, `stuck`, `unknown`.
    pub state: String,
    /// Why it failed, or could not be stopped.
    pub why: String,
}

enum Said {
    Input(Input),
    Rest(oneshot::Sender<Result<(), String>>),
    Look(oneshot::Sender<Vec<ServiceStatus>>),
}

/// Where everybody speaks to the services of a volume.
#[derive(Debug, Clone)]
pub(super) struct Post {
    said: mpsc::UnboundedSender<Said>,
    /// Stopping all of them takes at most so long.
    pub(super) stop_limit: Duration,
}

impl Post {
    /// The role of this node, told as often as one likes.
    pub(super) fn role(&self, primary: bool) {
        self.say(Said::Input(Input::Role { primary }));
    }

    /// Until when this node may answer clients.
    pub(super) fn lease(&self, until: Moment) {
        self.say(Said::Input(Input::Lease { until }));
    }

    /// The network was away and is back.
    pub(super) fn healed(&self) {
        self.say(Said::Input(Input::Healed));
    }

    /// Stops all, and keeps them stopped until the role is gone or [`Post::release`].
    ///
    /// # Errors
    /// Which could not be stopped, and why. Then the others are started again.
    pub(super) async fn rest(&self) -> Result<(), String> {
        let (reply, answer) = oneshot::channel();
        self.say(Said::Rest(reply));
        answer.await.unwrap_or_else(|_| Err("the daemon is shutting down".to_owned()))
    }

    /// The role was kept, or an operator wants them to be started again.
    pub(super) fn release(&self) {
        self.say(Said::Input(Input::Release));
    }

    /// How they are.
    pub(super) async fn look(&self) -> Vec<ServiceStatus> {
        let (reply, answer) = oneshot::channel();
        self.say(Said::Look(reply));
        answer.await.unwrap_or_default()
    }

    fn say(&self, said: Said) {
        // The task ends with the daemon, and nobody needs to know.
        let _ = self.said.send(said);
    }
}

/// Starts to keep the services of `volume`; none when it has none. Without a lease (`leased` is false) they need none.
pub(super) fn start(
    volume: &Arc<VolumeHandle>,
    case: Case,
    leased: bool,
    tasks: &mut Vec<JoinHandle<()>>,
) -> Option<Post> {
    let specs = volume.spec.services.clone();
    if specs.is_empty() {
        return None;
    }
    let rung = |spec: &ServiceSpec| Rung {
        address: matches!(spec.kind, ServiceKind::Address { .. }),
        start_limit: spec.start_limit,
        stop_limit: spec.stop_limit,
    };
    let stop_limit = specs.iter().map(|spec| spec.stop_limit).sum();
    let (said, hearing) = mpsc::unbounded_channel();
    let post = Post { said, stop_limit };
    let keeper = Keeper {
        machine: Services::new(specs.iter().map(rung).collect()),
        specs,
        volume: Arc::clone(volume),
        case,
        kills: BTreeMap::new(),
        waiting: BTreeMap::new(),
        tickets: 0,
        complaint: None,
    };
    if !leased {
        post.lease(NEVER);
    }
    tasks.push(tokio::spawn(keeper.run(post.clone(), hearing)));
    Some(post)
}

/// Gives the role to the peer as soon as that can take it, unless somebody mends what failed before.
async fn hand_back(volume: Arc<VolumeHandle>, post: Post) {
    let Some(failover) = volume.failover.get() else { return };
    for _ in 0..HAND_BACK_TRIES {
        let failed = post.look().await.iter().any(|service| service.state == State::Failed.word());
        if !failed || matches!(failover.ask(Ask::HandOver).await, Ok(Ok(()))) {
            return;
        }
        tokio::time::sleep(HAND_BACK_PAUSE).await;
    }
    warn!(volume = volume.name(), "the peer cannot take the role: it stays here, with its services stopped");
}

struct Keeper {
    machine: Services,
    specs: Vec<ServiceSpec>,
    volume: Arc<VolumeHandle>,
    case: Case,
    /// How running jobs are ended.
    kills: BTreeMap<u64, oneshot::Sender<()>>,
    /// Who waits for a rest.
    waiting: BTreeMap<Ticket, oneshot::Sender<Result<(), String>>>,
    tickets: u64,
    /// Why the last announcement failed.
    complaint: Option<String>,
}

impl Keeper {
    async fn run(mut self, post: Post, mut hearing: mpsc::UnboundedReceiver<Said>) {
        self.step(Input::Wake, &post);
        loop {
            let wait = self.machine.next_deadline(now()).map_or(LOOK_INTERVAL, |due| due.since(now()));
            let due = Instant::now() + wait.min(LOOK_INTERVAL);
            let input = tokio::select! {
                biased;
                Some(said) = hearing.recv() => match said {
                    Said::Input(input) => input,
                    Said::Rest(reply) => {
                        self.tickets += 1;
                        let ticket = Ticket(self.tickets);
                        self.waiting.insert(ticket, reply);
                        Input::Rest { ticket }
                    }
                    Said::Look(reply) => {
                        // Whoever asked may have gone.
                        let _ = reply.send(self.statuses());
                        continue;
                    }
                },
                () = sleep_until(due.into()) => Input::Wake,
            };
            self.step(input, &post);
        }
    }

    fn step(&mut self, input: Input, post: &Post) {
        let mut effects = Vec::new();
        self.machine.step(now(), input, &mut effects);
        for effect in effects {
            self.carry_out(effect, post);
        }
    }

    fn carry_out(&mut self, effect: Effect, post: &Post) {
        match effect {
            Effect::Run { job, service, action } => self.begin(job, service, action, post),
            Effect::Kill { job } => {
                // One that has just ended needs no killing.
                let _ = self.kills.remove(&job).map(|kill| kill.send(()));
            }
            Effect::Announce { service } => self.announce(service),
            Effect::Rested { ticket, result } => {
                // Whoever asked may have given up.
                let _ = self.waiting.remove(&ticket).map(|waiter| waiter.send(result));
            }
            Effect::HandBack => {
                tokio::spawn(hand_back(Arc::clone(&self.volume), post.clone()));
            }
            Effect::Report { service, text, alarm } => self.report(service, &text, alarm),
        }
    }

    fn begin(&mut self, job: u64, service: usize, action: Action, post: &Post) {
        let (spec, case, post) = (self.specs[service].clone(), self.case.clone(), post.clone());
        debug!(volume = self.volume.name(), service = spec.name, ?action, "service");
        let (kill, told) = oneshot::channel();
        self.kills.retain(|_, kill| !kill.is_closed());
        self.kills.insert(job, kill);
        tokio::spawn(async move {
            let result = run::run(&spec, action, &case, told).await;
            post.say(Said::Input(Input::Done { job, result }));
        });
    }

    fn announce(&mut self, service: usize) {
        let ServiceKind::Address { address, interface, .. } = &self.specs[service].kind else { return };
        let announced = address::announce(*address, interface).map_err(|error| error.to_string());
        // It is tried again and again; one complaint of a kind is enough.
        let news = std::mem::replace(&mut self.complaint, announced.clone().err()) != announced.clone().err();
        match announced {
            Err(error) if news => {
                warn!(
                    volume = self.volume.name(), %address, interface,
                    "the address cannot be announced: {error}; clients find it when their neighbour tables run out"
                );
            }
            _ => debug!(volume = self.volume.name(), %address, interface, ?announced, "address announced"),
        }
    }

    fn report(&self, service: Option<usize>, text: &str, alarm: bool) {
        let name = service.map_or("services", |service| self.specs[service].name.as_str());
        let volume = self.volume.name();
        if alarm {
            warn!(volume, service = name, "{name}: {text}");
        } else {
            info!(volume, service = name, "{name}: {text}");
        }
        let text = format!("service {name}: {text}");
        self.volume.events.tell(volume, Happening::Note { text, warning: alarm });
    }

    fn statuses(&self) -> Vec<ServiceStatus> {
        let status = |(spec, (state, why)): (&ServiceSpec, (State, &str))| ServiceStatus {
            name: spec.name.clone(),
            kind: spec.kind.word().to_owned(),
            state: state.word().to_owned(),
            why: why.to_owned(),
        };
        self.specs.iter().zip(self.machine.states()).map(status).collect()
    }
}
