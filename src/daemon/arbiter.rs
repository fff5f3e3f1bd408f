//! Who decides that a lost peer can no longer be promoted by itself.

use crate::volume::io::Command;

/// Answers [`crate::volume::io::Report::ExclusionWanted`].
///
/// Without an arbiter there is nobody to ask: nothing but an operator promotes the peer, so it counts as excluded at
/// once. That is safe only as long as the operator keeps to the sentence of `PROMISE`. With an arbiter this is the
/// place that asks it, and answers only after its record names this node alone.
pub(super) fn exclude(number: u64) -> Command {
    Command::Exclude { number }
}
