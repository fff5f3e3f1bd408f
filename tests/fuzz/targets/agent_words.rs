//! What is said to an agent, and by one: one line of JSON each.
//!
//! Input: the line.

use super::notes::{note, note_text};
use repblk::daemon::agent::words::{Answered, Asked, LINE_LEN_MAX};

pub fn run(data: &[u8]) {
    judge("asked", data, Asked::parse(data), Asked::encode, Asked::parse);
    let answered = Answered::parse(data);
    if let Ok(answered) = &answered {
        note(answered.word);
        assert!(!answered.why.contains(char::is_control), "it goes to the log as it is: {:?}", answered.why);
    }
    judge("answered", data, answered, Answered::encode, Answered::parse);
}

/// What is accepted says itself again; what is refused is told in one line.
fn judge<T: PartialEq + std::fmt::Debug>(
    what: &str,
    data: &[u8],
    read: Result<T, String>,
    encode: impl Fn(&T) -> Vec<u8>,
    parse: impl Fn(&[u8]) -> Result<T, String>,
) {
    match read {
        Ok(said) => {
            note(what);
            let line = encode(&said);
            assert_eq!(line.iter().filter(|&&byte| byte == b'\n').count(), 1, "a word is one line");
            assert_eq!(parse(&line), Ok(said));
        }
        Err(why) => {
            note_text(what, &why);
            assert!(!why.trim().is_empty() && !why.chars().any(char::is_control), "{why:?}");
            assert!(why.len() <= 10 * data.len().max(LINE_LEN_MAX / 10), "{} bytes answer {}", why.len(), data.len());
        }
    }
}
