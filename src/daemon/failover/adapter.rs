//! Between the words of the volume and the words of the machine. Only this file knows both.

use crate::failover::io::{Directive, VolumeView};
use crate::volume::io::{Command, Standing};

/// What the volume is told.
pub(super) fn command(directive: Directive) -> Command {
    match directive {
        Directive::Promise { term, part } => Command::Promise { term, part },
        Directive::Release => Command::Release,
        Directive::TakeOver { term, force } => Command::TakeOver { term, force },
        Directive::Exclude { number } => Command::Exclude { number },
        Directive::StandDown => Command::StandDown,
        Directive::Drain => Command::Drain,
        Directive::Outdate => Command::Outdate,
        Directive::Promote { force, peer_is_down, ticket: _ } => Command::Promote { force, peer_is_down },
        Directive::Switchover { ticket: _ } => Command::Switchover,
    }
}

/// How the volume is, as the machine wants to hear it.
pub(super) fn view(standing: &Standing) -> VolumeView {
    let &Standing { role, disk, disk_stalled, term, promised, idle, link, peer, peer_in_sync, exclusion } = standing;
    VolumeView { role, disk, disk_stalled, term, promised, idle, link, peer, peer_in_sync, exclusion }
}
