//! What is said between a daemon and the agent of its peer's host: one line of JSON each way.

use serde::{Deserialize, Serialize};

use crate::daemon::printable::one_line;
use crate::failover::io::ProofWord;

/// Longest line, in bytes with its newline.
pub const LINE_LEN_MAX: usize = 2048;
const VERSION: u32 = 1;

/// What has become of your daemon, and of your copy of this volume?
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Asked {
    version: u32,
    /// The cluster.
    pub cluster: String,
    /// The volume.
    pub volume: String,
    /// The node that asks.
    pub asker: String,
    /// Its copy, in hexadecimal: one that was replaced is not the one that was in sync.
    pub instance: String,
}

/// What can be proved.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Word {
    /// The daemon is dead, its copy is durably behind the asker's, its services are stopped.
    Dead,
    /// The daemon is dead, and its copy has what the asker's has not.
    Behind,
    /// The daemon lives.
    Alive,
    /// Nothing.
    Nothing,
}

/// The answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Answered {
    /// What can be proved.
    pub word: Word,
    /// For the logs.
    pub why: String,
}

impl Asked {
    /// What node `asker` asks about `volume`, whose copy there is `instance`.
    #[must_use]
    pub fn new(cluster: &str, volume: &str, asker: &str, instance: &str) -> Self {
        let text = |text: &str| text.to_owned();
        let (cluster, volume, asker, instance) = (text(cluster), text(volume), text(asker), text(instance));
        Self { version: VERSION, cluster, volume, asker, instance }
    }

    /// What came, if it is whole.
    ///
    /// # Errors
    /// A sentence, in one line.
    pub fn parse(line: &[u8]) -> Result<Self, String> {
        let asked: Self = parse(line)?;
        if asked.version == VERSION { Ok(asked) } else { Err(format!("version {} is not spoken here", asked.version)) }
    }

    /// The line of it.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        encode(self)
    }
}

impl Answered {
    /// As [`Asked::parse`].
    ///
    /// # Errors
    /// A sentence, in one line.
    pub fn parse(line: &[u8]) -> Result<Self, String> {
        let Self { word, why } = parse(line)?;
        Ok(Self { word, why: one_line(&why) })
    }

    /// The line of it.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        encode(self)
    }
}

impl Word {
    /// As the failover machine hears it.
    #[must_use]
    pub fn proof(self) -> ProofWord {
        match self {
            Self::Dead => ProofWord::DaemonDead { in_sync: true },
            Self::Behind => ProofWord::DaemonDead { in_sync: false },
            Self::Alive => ProofWord::DaemonAlive,
            Self::Nothing => ProofWord::Nothing,
        }
    }

    /// The word itself.
    #[must_use]
    pub fn text(self) -> &'static str {
        match self {
            Self::Dead => "dead",
            Self::Behind => "behind",
            Self::Alive => "alive",
            Self::Nothing => "nothing",
        }
    }
}

fn parse<T: for<'a> Deserialize<'a>>(line: &[u8]) -> Result<T, String> {
    if line.last() != Some(&b'\n') {
        return Err(format!("a line of at most {LINE_LEN_MAX} bytes was expected"));
    }
    serde_json::from_slice(line)
        .map_err(|error| format!("the line cannot be understood: {}", one_line(&error.to_string())))
}

fn encode(value: &impl Serialize) -> Vec<u8> {
    let mut line = serde_json::to_vec(value).expect("plain values become JSON");
    line.push(b'\n');
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_said_comes_back_and_what_is_strange_is_refused() {
        let asked = Asked::new("c", "mes", "beta", "0f");
        assert_eq!(Asked::parse(&asked.encode()), Ok(asked.clone()));
        let text = String::from_utf8(asked.encode()).expect("JSON is text");
        assert!(Asked::parse(text.trim_end().as_bytes()).is_err(), "cut off");
        assert!(
            Asked::parse(text.replace(":1,", ":2,").as_bytes()).expect_err("another version").contains("version 2")
        );
        assert!(Asked::parse(text.replace("asker", "asked").as_bytes()).is_err());
        for word in [Word::Dead, Word::Behind, Word::Alive, Word::Nothing] {
            let answered = Answered { word, why: "x".to_owned() };
            assert_eq!(Answered::parse(&answered.encode()), Ok(answered.clone()));
            assert!(String::from_utf8_lossy(&answered.encode()).contains(word.text()));
        }
    }

    /// Found by review: what a stranger wrote stood in the log as it is, and could pass for lines of it.
    #[test]
    fn a_strangers_text_cannot_break_the_log() {
        let strange = br#"{"version":1,"cluster":"c","volume":"v","asker":"a","instance":"0","a\n\u001b[2J":1}"#;
        let why = Asked::parse(&[&strange[..], b"\n"].concat()).expect_err("a word too many");
        assert!(why.contains("a\\n\\u{1b}[2J") && !why.contains(char::is_control), "{why}");
        let told = Answered::parse(b"{\"word\":\"dead\",\"why\":\"so\\n2026 ERROR\"}\n").expect("an answer");
        assert_eq!(told, Answered { word: Word::Dead, why: "so\\n2026 ERROR".to_owned() });
    }
}
