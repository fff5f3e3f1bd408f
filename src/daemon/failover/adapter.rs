//! Between the words of the volume and the words of the machine. Only this file knows both.

use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::Post;
use crate::daemon::handle::VolumeHandle;
use crate::dataplane::mailbox::State;
use crate::failover::io::{Directive, VolumeView};
use crate::units::Moment;
use crate::volume::io::Command;

/// What the volume is told; none for what it cannot do.
pub(super) fn command(directive: Directive) -> Option<Command> {
    match directive {
        Directive::Promote { force, peer_is_down, ticket: _ } => Some(Command::Promote { force, peer_is_down }),
        Directive::Switchover { ticket: _ } => Some(Command::Switchover),
        _ => None,
    }
}

/// Until when the volume's thread may answer clients.
pub(super) fn lease(_volume: &VolumeHandle, _until: Moment) {}

/// Tells the driver of every change of the volume.
pub(super) fn observe(volume: &Arc<VolumeHandle>, post: &Post, tasks: &mut Vec<JoinHandle<()>>) {
    let (volume, post) = (Arc::clone(volume), post.clone());
    tasks.push(tokio::spawn(async move {
        let mut last = None;
        while volume.ended().is_none() {
            if let Ok(state) = volume.ask().await {
                let view = view(&state);
                if last.replace(view) != Some(view) {
                    post.volume(view);
                }
            }
            let _ = timeout(Duration::from_millis(200), volume.link_news.notified()).await;
        }
    }));
}

fn view(state: &State) -> VolumeView {
    let volume = &state.volume;
    VolumeView {
        role: volume.role,
        disk: volume.disk,
        term: volume.term,
        link: volume.peers.first().is_some_and(|peer| peer.connection == "connected"),
        idle: true,
        ..VolumeView::default()
    }
}
