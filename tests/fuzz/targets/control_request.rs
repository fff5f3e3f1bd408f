//! Requests on the control socket: one line each.
//!
//! Input: the line.

use super::notes::{note, note_text};
use repblk::daemon::control::protocol::{Ask, Request};
use serde_json::Value;

pub fn run(data: &[u8]) {
    match Request::parse(data) {
        Ok(request) => {
            let said = serde_json::to_vec(&request).expect("plain values");
            assert_eq!(Request::parse(&said).as_ref(), Ok(&request));
            let line: Value = serde_json::from_slice(data).expect("a request is JSON");
            assert_heard(&line, &serde_json::to_value(&request).expect("plain values"));
            note(std::mem::discriminant(&request.ask));
            if let Ask::Do { verb, .. } = request.ask {
                note((verb.name(), format!("{verb:?}")));
                assert!(!verb.waits_for().is_empty());
            }
        }
        Err(why) => {
            note_text("refused", &why);
            assert!(!why.trim().is_empty() && !why.chars().any(char::is_control), "{why:?}");
            assert!(why.len() <= 8 * data.len() + 400, "{} bytes answer {}", why.len(), data.len());
        }
    }
}

/// Nothing that was said is passed over: a misspelt word must not turn into another command.
fn assert_heard(said: &Value, heard: &Value) {
    match (said, heard) {
        (Value::Object(said), Value::Object(heard)) => {
            for (key, value) in said {
                assert_heard(value, heard.get(key).unwrap_or_else(|| panic!("{key:?} is passed over")));
            }
        }
        // A word may be written as an object without content.
        (Value::Object(said), Value::String(word)) => assert!(said.len() == 1 && said[word].is_null()),
        (said, heard) => assert_eq!(said, heard),
    }
}
