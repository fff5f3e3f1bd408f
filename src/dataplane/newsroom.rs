//! News on their way to the daemon.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use tokio::sync::mpsc::Sender;
use tokio::sync::mpsc::error::TrySendError;

use super::mailbox::News;
use crate::volume::io::Report;

/// News kept for a daemon that does not read. Beyond, mere progress is dropped.
const KEPT_MAX: usize = 1024;

/// The sending end of a volume's news.
#[derive(Debug)]
pub(super) struct Newsroom {
    channel: Sender<News>,
    kept: VecDeque<News>,
}

impl Newsroom {
    pub(super) fn new(channel: Sender<News>) -> Self {
        Self { channel, kept: VecDeque::new() }
    }

    /// Tells the daemon, now or as soon as it reads.
    pub(super) fn tell(&mut self, news: News) {
        let progress = matches!(&news, News::Report(Report::Resync(view)) if !view.finished);
        if !(progress && self.kept.len() >= KEPT_MAX) {
            self.kept.push_back(news);
        }
        self.retry();
    }

    /// Tells the last news. The thread is ending, so it waits a while for a daemon that is behind.
    pub(super) fn last(mut self, news: News) {
        const PATIENCE: Duration = Duration::from_secs(2);
        let begun = Instant::now();
        self.kept.push_back(news);
        while self.retry() && begun.elapsed() < PATIENCE {
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// Sends what was kept. True when something is still kept.
    pub(super) fn retry(&mut self) -> bool {
        while let Some(news) = self.kept.pop_front() {
            match self.channel.try_send(news) {
                Ok(()) => {}
                Err(TrySendError::Full(news)) => {
                    self.kept.push_front(news);
                    return true;
                }
                // The daemon is ending.
                Err(TrySendError::Closed(_)) => self.kept.clear(),
            }
        }
        false
    }
}
