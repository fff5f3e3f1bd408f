//! How a command ends.

use std::process::ExitCode;

/// Exit codes, documented in `--help` and `docs/operations.md`; scripts rely on them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Exit {
    /// Done.
    Done = 0,
    /// A rule forbids it; the rule is named on standard error.
    Refused = 1,
    /// The command line or the configuration is wrong.
    Usage = 2,
    /// No daemon answers.
    Unreachable = 3,
    /// Not done within `--timeout`; the daemon goes on with it.
    TimedOut = 4,
    /// Something is broken.
    Failed = 5,
}

/// The table as `--help` shows it.
pub(super) const TABLE: &str = "\
Exit codes:
  0  done
  1  refused by a rule, which is named
  2  wrong command line or configuration
  3  the daemon is not reachable
  4  not done within --timeout; the daemon goes on with it
  5  failed: something is broken";

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(match exit {
            Exit::Done => 0,
            Exit::Refused => 1,
            Exit::Usage => 2,
            Exit::Unreachable => 3,
            Exit::TimedOut => 4,
            Exit::Failed => 5,
        })
    }
}

/// Why a command did not do what was asked: the sentence for standard error, and the code.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Stop {
    pub(super) exit: Exit,
    pub(super) message: String,
}

impl Stop {
    pub(super) fn new(exit: Exit, message: impl Into<String>) -> Self {
        Self { exit, message: message.into() }
    }
}

impl From<std::io::Error> for Stop {
    /// An error of standard output. A reader that went away (`repblk status | head -1`) has what it wanted.
    fn from(error: std::io::Error) -> Self {
        match error.kind() {
            std::io::ErrorKind::BrokenPipe => Self::new(Exit::Done, ""),
            _ => Self::new(Exit::Failed, format!("cannot write the output: {error}")),
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::volume::rule::Rule;

    /// Whoever is refused something looks its rule up there.
    #[test]
    fn the_manual_explains_every_rule_and_every_exit_code() {
        let manual = include_str!("../../docs/operations.md");
        let row = |start: String| manual.lines().any(|line| line.starts_with(&start));
        for rule in Rule::ALL {
            assert!(row(format!("| `{rule}` |")), "docs/operations.md does not explain {rule}");
        }
        for code in 0..=5 {
            assert!(row(format!("| {code} |")), "docs/operations.md does not explain exit code {code}");
        }
    }
}
