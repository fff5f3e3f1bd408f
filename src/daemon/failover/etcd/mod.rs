//! A client of etcd's JSON gateway (version 3, HTTP/1.1): one key, read linearizably and changed by compare-and-swap.
//!
//! What an answer may be taken for is the whole point of this file. [`ArbiterAnswer::Unreachable`] is said only when nothing of the question
//! has left this process; [`ArbiterAnswer::Refused`] only when etcd itself says that the comparison failed. Every time-out, broken connection
//! and strange answer after the question was sent is [`ArbiterAnswer::Unknown`], and nothing is ever sent twice: the machine asks again
//! when it knows why. etcd's own leases and watches are not used.

mod http;

use std::path::PathBuf;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde::Deserialize;
use serde_json::json;
use tokio::time::timeout;

use self::http::{Line, Outcome};
use crate::failover::io::{ArbiterAnswer, ArbiterRequest};
use crate::failover::record::Revision;
use crate::tls::Visitor;

/// Where etcd is, and as whom it is asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Place {
    /// `HOST:PORT` of each member; at least one.
    pub(super) endpoints: Vec<String>,
    pub(super) login: Option<Login>,
    /// How TLS is spoken with it; none in the clear.
    pub(super) tls: Option<Visitor>,
}

/// A user of etcd.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Login {
    pub(super) user: String,
    /// Read at each login, so that a password can be changed while the daemon runs.
    pub(super) password_file: PathBuf,
}

/// One key of an etcd. One question at a time.
pub(super) struct Etcd {
    place: Place,
    /// In base64.
    key: String,
    /// For a question from its beginning to its end.
    time: Duration,
    /// The member that is asked next.
    member: usize,
    line: Option<Line>,
    token: Option<String>,
}

/// An answer, and what was wrong when it is no good one.
#[derive(Debug)]
pub(super) struct Answered {
    pub(super) answer: ArbiterAnswer,
    /// A sentence for the log.
    pub(super) trouble: Option<String>,
}

/// How far a question came before something went wrong.
#[derive(Debug)]
enum Trouble {
    /// Nothing of it was sent.
    Before(String),
    /// It was sent, or a part of it.
    After(String),
}

#[derive(Deserialize)]
struct Header {
    #[serde(deserialize_with = "number")]
    revision: u64,
}

#[derive(Deserialize)]
struct RangeReply {
    /// Its presence tells an answer of etcd from one of something else that speaks HTTP.
    #[serde(rename = "header")]
    _header: Header,
    #[serde(default)]
    kvs: Vec<KeyValue>,
}

#[derive(Deserialize)]
struct KeyValue {
    #[serde(deserialize_with = "number")]
    mod_revision: u64,
    #[serde(default)]
    value: String,
}

#[derive(Deserialize)]
struct TxnReply {
    header: Header,
    /// Left out when false.
    #[serde(default)]
    succeeded: bool,
}

#[derive(Deserialize)]
struct AuthReply {
    token: String,
}

/// The gateway writes 64-bit numbers as texts.
fn number<'de, D: serde::Deserializer<'de>>(from: D) -> Result<u64, D::Error> {
    String::deserialize(from)?.parse().map_err(serde::de::Error::custom)
}

impl Etcd {
    pub(super) fn new(place: Place, key: &str, time: Duration) -> Self {
        Self { place, key: BASE64.encode(key), time, member: 0, line: None, token: None }
    }

    /// Asks, and takes at most the time of this client.
    pub(super) async fn ask(&mut self, request: &ArbiterRequest) -> Answered {
        let mut sent = false;
        let asked = timeout(self.time, self.exchange(request, &mut sent)).await;
        let late = || format!("no answer within {} ms", self.time.as_millis());
        let trouble = match asked {
            Ok(Ok(answer)) => return Answered { answer, trouble: None },
            Ok(Err(trouble)) => trouble,
            Err(_) if sent => Trouble::After(late()),
            Err(_) => Trouble::Before(late()),
        };
        // What may still come on this connection belongs to no question any more. Another member may know more.
        let member = self.place.endpoints[self.member].clone();
        self.line = None;
        self.member = (self.member + 1) % self.place.endpoints.len();
        let (answer, why) = match trouble {
            Trouble::Before(why) => (ArbiterAnswer::Unreachable, why),
            Trouble::After(why) => (ArbiterAnswer::Unknown, why),
        };
        Answered { answer, trouble: Some(format!("etcd at {member}: {why}")) }
    }

    async fn exchange(&mut self, request: &ArbiterRequest, sent: &mut bool) -> Result<ArbiterAnswer, Trouble> {
        self.log_in().await.map_err(Trouble::Before)?;
        match request {
            ArbiterRequest::Read => {
                // Linearizable, since `serializable` is left out.
                let reply: RangeReply = self.call("/v3/kv/range", &json!({ "key": self.key }), sent).await?;
                let Some(found) = reply.kvs.into_iter().next() else {
                    return Ok(ArbiterAnswer::Is { revision: Revision(0), text: None });
                };
                let bytes = BASE64.decode(&found.value).map_err(|error| Trouble::After(error.to_string()))?;
                let text = String::from_utf8_lossy(&bytes).into_owned();
                Ok(ArbiterAnswer::Is { revision: Revision(found.mod_revision), text: Some(text) })
            }
            ArbiterRequest::Swap { expected, text } => {
                // A key that is not there has modification revision 0.
                let compare = json!({
                    "key": self.key, "target": "MOD", "result": "EQUAL", "mod_revision": expected.0.to_string()
                });
                let put = json!({ "request_put": { "key": self.key, "value": BASE64.encode(text) } });
                let body = json!({ "compare": [compare], "success": [put] });
                let reply: TxnReply = self.call("/v3/kv/txn", &body, sent).await?;
                Ok(match reply.succeeded {
                    true => ArbiterAnswer::Swapped { revision: Revision(reply.header.revision) },
                    false => ArbiterAnswer::Refused,
                })
            }
        }
    }

    /// Makes sure that there is a connection, and a token when this client has a user.
    async fn log_in(&mut self) -> Result<(), String> {
        if self.line.as_mut().is_none_or(|line| line.is_closed()) {
            self.line = None;
            self.line = Some(self.connect().await?);
        }
        let (Some(login), None) = (&self.place.login, &self.token) else { return Ok(()) };
        let password = crate::tls::password(&login.password_file).map_err(|error| error.to_string())?;
        let body = json!({ "name": login.user, "password": *password });
        let line = self.line.as_mut().expect("connected above");
        let why = match line.post("/v3/auth/authenticate", None, &body, &mut false).await {
            Outcome::Answer { status: 200, body } => match serde_json::from_slice::<AuthReply>(&body) {
                Ok(reply) => {
                    self.token = Some(reply.token);
                    return Ok(());
                }
                Err(error) => format!("its answer to a login is strange: {error}"),
            },
            Outcome::Answer { status, body } => {
                format!("user {:?} cannot log in: {}", login.user, complaint(status, &body))
            }
            Outcome::Lost(why) => why,
        };
        Err(why)
    }

    /// Connects to the first member that takes a connection, from the one whose turn it is.
    async fn connect(&mut self) -> Result<Line, String> {
        let members = self.place.endpoints.len();
        // One member that swallows packets must not take the time of all.
        let share = self.time / u32::try_from(members + 1).expect("the configuration bounds them");
        let mut why = String::new();
        for step in 0..members {
            let member = (self.member + step) % members;
            let endpoint = &self.place.endpoints[member];
            match timeout(share.max(self.time / 4), Line::connect(endpoint, self.place.tls.as_ref())).await {
                Ok(Ok(line)) => {
                    self.member = member;
                    return Ok(line);
                }
                Ok(Err(error)) => why = error,
                Err(_) => why = "no connection in time".to_owned(),
            }
        }
        Err(why)
    }

    async fn call<T: serde::de::DeserializeOwned>(
        &mut self,
        path: &str,
        body: &serde_json::Value,
        sent: &mut bool,
    ) -> Result<T, Trouble> {
        let line = self.line.as_mut().expect("there is a connection after the login");
        match line.post(path, self.token.as_deref(), body, sent).await {
            Outcome::Answer { status: 200, body } => serde_json::from_slice(&body)
                .map_err(|error| Trouble::After(format!("its answer cannot be understood: {error}"))),
            Outcome::Answer { status, body } => {
                // A token ends when etcd restarts, or after some minutes: the next question logs in anew.
                self.token = None;
                Err(Trouble::After(complaint(status, &body)))
            }
            Outcome::Lost(why) if *sent => Err(Trouble::After(why)),
            Outcome::Lost(why) => Err(Trouble::Before(why)),
        }
    }
}

/// What an error of the gateway says, on one line.
fn complaint(status: u16, body: &[u8]) -> String {
    #[derive(Deserialize)]
    struct Error {
        error: String,
    }
    let text = match serde_json::from_slice::<Error>(body) {
        Ok(Error { error }) => error,
        Err(_) => String::from_utf8_lossy(&body[..body.len().min(200)]).into_owned(),
    };
    format!("HTTP status {status}: {}", crate::daemon::printable::one_line(&text))
}

#[cfg(test)]
mod tests;
