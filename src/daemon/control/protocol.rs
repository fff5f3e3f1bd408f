//! What is said on the control socket.

use serde::{Deserialize, Serialize};

use crate::daemon::events::Event;
use crate::daemon::failover::look::PlanStatus;
use crate::daemon::printable::one_line;
use crate::daemon::status::Status;
use crate::failover::history::Episode;
use crate::failover::io::Ask as FailoverAsk;
use crate::volume::io::{Command, Discard, Refusal};

/// Version of these words.
pub const VERSION: u32 = 1;
/// Longest request, in bytes with its newline.
pub const REQUEST_LEN_MAX: usize = 4096;
/// Longest reply, in bytes with its newline.
pub const REPLY_LEN_MAX: usize = 1 << 20;

/// A request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Request {
    /// [`VERSION`] of the client.
    pub version: u32,
    /// What is wanted.
    pub ask: Ask,
}

impl Request {
    /// The request on a line, with or without its newline.
    ///
    /// # Errors
    /// A sentence that says what is wrong with it.
    pub fn parse(line: &[u8]) -> Result<Self, String> {
        // The version first: another one may have another shape.
        let value: serde_json::Value =
            serde_json::from_slice(line).map_err(|error| format!("a request is a JSON object: {error}"))?;
        let version = value.get("version").and_then(serde_json::Value::as_u64);
        if version != Some(VERSION.into()) {
            let theirs = version.map_or("none".to_owned(), |version| version.to_string());
            return Err(format!(
                "this daemon ({}) speaks version {VERSION} on its control socket, the client {theirs}; use the repblk command \
                 of the daemon's version, or restart the daemon after an upgrade",
                env!("CARGO_PKG_VERSION")
            ));
        }
        serde_json::from_value(value)
            .map_err(|error| format!("the request cannot be understood: {}", one_line(&error.to_string())))
    }
}

/// What is wanted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Ask {
    /// How things are.
    Status,
    /// What happens from now on.
    Events,
    /// What failover would do now.
    Plan {
        /// The volume; may be left out on a node with one.
        volume: Option<String>,
    },
    /// The last changes of the primary.
    History {
        /// As above.
        volume: Option<String>,
    },
    /// A volume shall do something.
    Do {
        /// The volume; may be left out on a node with one.
        volume: Option<String>,
        /// What.
        verb: Verb,
        /// Give up waiting for the answer after so many milliseconds.
        timeout_ms: u64,
    },
}

/// Who carries a verb out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Task {
    /// The volume.
    Volume(Command),
    /// Failover, which may tell the volume.
    Failover(FailoverAsk),
    /// What runs on the primary.
    Services {
        /// It shall run.
        on: bool,
    },
}

/// What a volume can be told to do; as [`Command`] and [`FailoverAsk`], which explain the fields.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
#[allow(missing_docs, reason = "the names and meanings are those of `Command`")]
pub enum Verb {
    Promote { force: bool, peer_is_down: bool },
    Demote { disconnect_clients: bool },
    Switchover,
    Maintenance { on: bool },
    Services { on: bool },
    Resync { full: bool, discard_local: bool, unsaved: bool },
    Pause,
    Resume,
    Disconnect,
    Connect,
}

impl Verb {
    /// True when the blocks that only this copy holds are to be saved first.
    #[must_use]
    pub fn saves_first(self) -> bool {
        matches!(self, Self::Resync { discard_local: true, unsaved: false, .. })
    }

    /// As it is heard by whoever carries it out. `saved` says what [`Verb::saves_first`] asked for.
    #[must_use]
    pub fn task(self, saved: Option<Discard>) -> Task {
        Task::Volume(match self {
            Self::Promote { force, peer_is_down } => {
                return Task::Failover(FailoverAsk::Promote { force, peer_is_down });
            }
            Self::Switchover => return Task::Failover(FailoverAsk::HandOver),
            Self::Maintenance { on } => return Task::Failover(FailoverAsk::Maintenance { on }),
            Self::Services { on } => return Task::Services { on },
            Self::Demote { disconnect_clients } => Command::Demote { disconnect_clients },
            Self::Resync { full, discard_local, .. } => {
                Command::Resync { full, discard: discard_local.then(|| saved.unwrap_or(Discard::Unsaved)) }
            }
            Self::Pause => Command::Pause,
            Self::Resume => Command::Resume,
            Self::Disconnect => Command::Disconnect,
            Self::Connect => Command::Connect,
        })
    }

    /// As the operator typed it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Promote { .. } => "promote",
            Self::Demote { .. } => "demote",
            Self::Switchover => "switchover",
            Self::Maintenance { on: true } => "maintenance on",
            Self::Maintenance { on: false } => "maintenance off",
            Self::Services { on: true } => "services start",
            Self::Services { on: false } => "services stop",
            Self::Resync { .. } => "resync",
            Self::Pause => "pause",
            Self::Resume => "resume",
            Self::Disconnect => "disconnect",
            Self::Connect => "connect",
        }
    }

    /// What is true when the volume has answered.
    #[must_use]
    pub fn outcome(self) -> &'static str {
        match self {
            // These go on for as long as they take, as `status` shows.
            Self::Resync { .. } | Self::Connect | Self::Services { on: true } => "begun",
            _ => "done",
        }
    }

    /// What it may have to wait for.
    #[must_use]
    pub fn waits_for(self) -> &'static str {
        match self {
            Self::Promote { .. } => "the peer's consent, and this copy's metadata",
            Self::Demote { .. } => "requests in flight, a flush on both copies, and this copy's metadata",
            Self::Switchover => "requests in flight, a flush on both copies, and the peer to take over",
            Self::Maintenance { .. } => "the arbiter's record",
            Self::Services { .. } => "a service to stop",
            Self::Resync { .. } => "this copy's metadata, and the peer",
            Self::Pause | Self::Resume | Self::Disconnect | Self::Connect => "the volume's thread",
        }
    }
}

/// A reply.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Answer {
    /// [`VERSION`] of the daemon.
    pub version: u32,
    /// What it says.
    pub reply: Reply,
}

/// What the daemon says. All but `Waiting` and `Event` are the last reply to a request.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reply {
    /// How things are.
    Status(Box<Status>),
    /// Something happened; more follow.
    Event(Box<Event>),
    /// Not done yet; more follow.
    Waiting(String),
    /// Done.
    Done {
        /// Which volume did it.
        volume: String,
    },
    /// What failover would do now.
    Plan(Vec<PlanStatus>),
    /// The last changes of the primary, oldest first.
    History(Vec<Episode>),
    /// A rule forbids it.
    Refused(Refusal),
    /// A rule of failover forbids it.
    Forbidden {
        /// Its name.
        rule: String,
        /// What is the case, and what can be done.
        sentence: String,
    },
    /// The time that the client gave is over. It may still be done.
    TimedOut(String),
    /// The request makes no sense here.
    BadRequest(String),
    /// It cannot be done: something is broken.
    Failed(String),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_words_are_fixed() {
        let cases = [
            (Ask::Status, r#"{"version":1,"ask":"status"}"#),
            (
                Ask::Do { volume: None, verb: Verb::Promote { force: true, peer_is_down: false }, timeout_ms: 9 },
                r#"{"version":1,"ask":{"do":{"volume":null,"verb":{"promote":{"force":true,"peer_is_down":false}},"timeout_ms":9}}}"#,
            ),
            (
                Ask::Do { volume: Some("mes".into()), verb: Verb::Pause, timeout_ms: 0 },
                r#"{"version":1,"ask":{"do":{"volume":"mes","verb":"pause","timeout_ms":0}}}"#,
            ),
        ];
        for (ask, text) in cases {
            let request = Request { version: VERSION, ask };
            assert_eq!(serde_json::to_string(&request).expect("plain values"), text);
            assert_eq!(serde_json::from_str::<Request>(text).expect("comes back"), request);
        }
    }

    /// Found while the fuzz targets were written: a misspelt `volume` was passed over, and the command went to the only volume.
    #[test]
    fn a_misspelt_field_is_refused() {
        let line = br#"{"version":1,"ask":{"do":{"volum":"mes","verb":"pause","timeout_ms":0}}}"#;
        assert!(Request::parse(line).expect_err("is misspelt").contains("unknown field `volum`"));
    }

    /// Found by fuzzing: what the client wrote stood in the answer as it is.
    #[test]
    fn an_error_is_one_line_whatever_was_asked() {
        let why = Request::parse(br#"{"version":1,"ask":"a\n\u001b[2J"}"#).expect_err("is no request");
        assert!(why.contains("a\\n\\u{1b}[2J") && !why.contains(char::is_control), "{why}");
    }

    #[test]
    fn a_refusal_names_its_rule() {
        let refusal = Refusal {
            rule: crate::volume::rule::Rule::PeerUnseen,
            what: "the peer is not seen".into(),
            way_out: "Say --peer-is-down".into(),
        };
        let text =
            serde_json::to_string(&Answer { version: 1, reply: Reply::Refused(refusal.clone()) }).expect("plain");
        assert!(text.contains("\"rule\":\"peer-unseen\""), "{text}");
        let back: Answer = serde_json::from_str(&text).expect("comes back");
        assert_eq!(back.reply, Reply::Refused(refusal));
    }
}
