//! Answers on the control socket, as the command line reads them: one line each.
//!
//! Input: the line.

use super::notes::{note, note_text};
use repblk::daemon::control::protocol::Answer;

pub fn run(data: &[u8]) {
    match serde_json::from_slice::<Answer>(data) {
        Ok(answer) => {
            let said = serde_json::to_string(&answer).expect("plain values");
            assert!(!said.contains('\n'), "an answer is one line");
            assert_eq!(serde_json::from_str::<Answer>(&said).expect("comes back"), answer);
            note(std::mem::discriminant(&answer.reply));
        }
        Err(error) => note_text("refused", &error.to_string()),
    }
}
