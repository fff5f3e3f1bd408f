//! Whoever is asked what has become of the peer.

use std::sync::Arc;

use super::fence;
use crate::daemon::agent::asking::Question;
use crate::daemon::config::{ArbiterKind, ArbiterSpec, FenceSpec, Node};
use crate::daemon::security::Guard;
use crate::daemon::services::run::Case;
use crate::failover::io::ProofWord;
use crate::units::DiskInstance;

/// A fence or an agent.
#[derive(Debug, Clone)]
pub(super) enum Prover {
    /// A command that switches the peer off.
    Fence(FenceSpec, Case),
    /// The agent of the peer's host.
    Agent(Question),
}

impl Prover {
    /// The one that `spec` means, for the volume of `case` with this node's copy `instance`, by the keys of `guard`; none when there is none.
    pub(super) fn new(
        spec: &ArbiterSpec,
        case: Case,
        (me, peer): (&Node, &Node),
        instance: DiskInstance,
        guard: &Arc<Guard>,
    ) -> Option<Self> {
        match &spec.kind {
            ArbiterKind::Fence(fence) => Some(Self::Fence(fence.clone(), case)),
            ArbiterKind::Agent | ArbiterKind::Etcd(_) => {
                let at = peer.agent?;
                let from = me.agent.map(|own| own.ip());
                let (timeout, guard) = (spec.agent.timeout, Arc::clone(guard));
                Some(Self::Agent(Question { at, from, case, instance, timeout, guard }))
            }
            ArbiterKind::None { .. } => None,
        }
    }

    /// Asks once.
    pub(super) async fn prove(&self) -> ProofWord {
        match self {
            Self::Fence(spec, case) => fence::fence(spec, case).await,
            Self::Agent(question) => question.ask().await,
        }
    }
}
