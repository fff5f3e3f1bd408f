//! What a heartbeat says: the body of a sealed datagram.

use serde::{Deserialize, Serialize};

use crate::failover;
use crate::units::{ClusterId, VolumeId};
use crate::volume::io::PeerView;
use crate::wire::hello::{decode_body, encode_body};

/// What a datagram can be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Datagram {
    /// Of the node.
    Node(Beat),
    /// Of failover, for one volume.
    Failover {
        /// The cluster.
        cluster: ClusterId,
        /// The sender.
        node: String,
        /// The volume.
        volume: VolumeId,
        /// What its machine says.
        beat: failover::io::Beat,
    },
}

/// A beat of failover, ready to be sent.
pub(super) fn failover_datagram(cluster: ClusterId, node: &str, volume: VolumeId, beat: failover::io::Beat) -> Vec<u8> {
    Datagram::Failover { cluster, node: node.to_owned(), volume, beat }.encode()
}

/// A beat of the node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Beat {
    /// The cluster.
    pub cluster: ClusterId,
    /// The sender.
    pub node: String,
    /// Drawn when the sender's daemon started.
    pub incarnation: u64,
    /// Counted from 1 in each incarnation.
    pub sequence: u64,
    /// The sender hears the receiver on this path.
    pub hears_you: bool,
    /// What the sender says of its volumes; one that does not answer its daemon is left out.
    pub views: Vec<(VolumeId, PeerView)>,
}

impl Datagram {
    /// The body of the datagram.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        encode_body(self)
    }

    /// What came; none when it is anything else.
    #[must_use]
    pub fn decode(body: &[u8]) -> Option<Self> {
        decode_body(body).ok()
    }

    /// The cluster, and the node that says to have sent it.
    #[must_use]
    pub fn sender(&self) -> (ClusterId, &str) {
        match self {
            Self::Node(beat) => (beat.cluster, &beat.node),
            Self::Failover { cluster, node, .. } => (*cluster, node),
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::condition::{DiskState, Role};
    use crate::units::{DiskInstance, GenerationId, Term};
    use crate::wire::sealed;

    /// The longest beat that there is.
    pub(in crate::daemon) fn beat(sequence: u64) -> Beat {
        let view = PeerView {
            instance: DiskInstance(u128::MAX),
            role: Role::Primary,
            disk: DiskState::UpToDate,
            term: Term(u64::MAX),
            generation: GenerationId(u64::MAX),
            base_for_you: GenerationId(u64::MAX),
        };
        Beat {
            cluster: ClusterId(u128::MAX),
            node: "n".repeat(crate::daemon::config::NAME_LEN_MAX),
            incarnation: u64::MAX,
            sequence,
            hears_you: true,
            views: vec![(VolumeId(u128::MAX), view); crate::daemon::config::VOLUMES_MAX],
        }
    }

    #[test]
    fn the_largest_beat_fits_and_comes_back() {
        let beat = Datagram::Node(beat(u64::MAX));
        assert!(beat.encode().len() <= sealed::BODY_LEN_MAX);
        assert_eq!(Datagram::decode(&beat.encode()), Some(beat));
    }

    proptest! {
        #[test]
        fn a_body_has_one_form(bytes in proptest::collection::vec(any::<u8>(), 0..1200)) {
            if let Some(datagram) = Datagram::decode(&bytes) {
                prop_assert_eq!(datagram.encode(), bytes);
            }
        }
    }
}
