//! The command line's end of the control socket. Waits for nothing longer than the daemon's promise of a word.

use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::exit::{Exit, Stop};
use crate::daemon::accounts;
use crate::daemon::control::protocol::{Answer, Ask, REPLY_LEN_MAX, Reply, Request, VERSION};
use crate::daemon::status::Status;

/// The daemon says something at least so often while a request is open. When it does not, the operator is told once
/// what is waited for, and the daemon gets the same time again.
const WORD_TIME: Duration = Duration::from_secs(2);

/// A connection to the daemon.
pub(super) struct Client {
    path: PathBuf,
    reader: BufReader<UnixStream>,
}

impl Client {
    /// Connects to the daemon behind the control socket at `path`.
    pub(super) fn connect(path: &Path) -> Result<Self, Stop> {
        let stream = UnixStream::connect(path).map_err(|error| {
            if error.kind() == ErrorKind::PermissionDenied {
                return refused(path);
            }
            let next = match error.kind() {
                ErrorKind::NotFound | ErrorKind::ConnectionRefused => {
                    "no daemon runs there; start it with `repblk serve`"
                }
                _ => "is the daemon running?",
            };
            Stop::new(Exit::Unreachable, format!("cannot reach the daemon at {}: {error}; {next}", path.display()))
        })?;
        let client = Self { path: path.to_path_buf(), reader: BufReader::new(stream) };
        client.patience(Some(WORD_TIME))?;
        Ok(client)
    }

    /// Sends a request.
    pub(super) fn ask(&mut self, ask: Ask) -> Result<(), Stop> {
        let request = Request { version: VERSION, ask };
        let mut line = serde_json::to_vec(&request).map_err(|error| Stop::new(Exit::Failed, error.to_string()))?;
        line.push(b'\n');
        self.reader.get_mut().write_all(&line).map_err(|error| self.lost(&error))
    }

    /// The next reply; none when the daemon closed.
    pub(super) fn next(&mut self, note: &mut impl FnMut(&str)) -> Result<Option<Reply>, Stop> {
        let mut line = Vec::new();
        if let Err(error) = self.read_line(&mut line) {
            if !is_silence(&error) {
                return Err(self.lost(&error));
            }
            note(&format!("waiting for the daemon at {} to answer", self.path.display()));
            self.read_line(&mut line).map_err(|error| self.lost(&error))?;
        }
        if line.is_empty() {
            return Ok(None);
        }
        let answer: Answer = serde_json::from_slice(&line).map_err(|error| {
            let what =
                format!("the daemon's reply cannot be understood ({error}); are command and daemon of one version?");
            Stop::new(Exit::Failed, what)
        })?;
        Ok(Some(answer.reply))
    }

    /// Reads to the end of a line; what came before an error stays in `line`.
    fn read_line(&mut self, line: &mut Vec<u8>) -> std::io::Result<usize> {
        let limit = u64::try_from(REPLY_LEN_MAX - line.len()).expect("a small constant bounds it");
        (&mut self.reader).take(limit).read_until(b'\n', line)
    }

    /// The last reply to a request; what is said meanwhile goes to `note`.
    pub(super) fn last(&mut self, mut note: impl FnMut(&str)) -> Result<Reply, Stop> {
        loop {
            match self.next(&mut note)? {
                Some(Reply::Waiting(what)) => note(&what),
                Some(reply) => return Ok(reply),
                None => {
                    let what =
                        "the daemon closed the connection before it answered; it may be shutting down: see its log";
                    return Err(Stop::new(Exit::Unreachable, what));
                }
            }
        }
    }

    /// How things are.
    pub(super) fn status(&mut self) -> Result<Status, Stop> {
        self.ask(Ask::Status)?;
        match self.last(|what| eprintln!("repblk: {what}"))? {
            Reply::Status(status) => Ok(*status),
            other => Err(unasked(other)),
        }
    }

    /// How long to wait for a reply; none: for ever.
    pub(super) fn patience(&self, time: Option<Duration>) -> Result<(), Stop> {
        self.reader.get_ref().set_read_timeout(time).map_err(|error| self.lost(&error))
    }

    fn lost(&self, error: &std::io::Error) -> Stop {
        let path = self.path.display();
        let what = match is_silence(error) {
            true => format!(
                "the daemon at {path} does not answer within {} s; see its log, and whether its process hangs",
                2 * WORD_TIME.as_secs()
            ),
            false => format!("the connection to the daemon at {path} failed: {error}"),
        };
        Stop::new(Exit::Unreachable, what)
    }
}

/// What a reply means that is not the one that was asked for.
pub(super) fn unasked(reply: Reply) -> Stop {
    match reply {
        Reply::BadRequest(why) => Stop::new(Exit::Usage, why),
        Reply::Forbidden { rule, sentence } => forbidden(&rule, &sentence),
        other => Stop::new(Exit::Failed, format!("the daemon answered something else: {other:?}")),
    }
}

/// The end of a command that a rule forbids.
pub(super) fn forbidden(rule: &str, sentence: &str) -> Stop {
    Stop::new(Exit::Refused, format!("refused by the rule {rule}: {sentence}"))
}

/// The same, when the system keeps this user out.
fn refused(path: &Path) -> Stop {
    let whose = std::fs::metadata(path).map_or_else(
        |_| "root and the daemon's user, and the group that [control] names".to_owned(),
        |facts| {
            let group = accounts::group_name(facts.gid());
            let members =
                if facts.mode() & 0o020 == 0 { String::new() } else { format!(" and members of the group {group}") };
            format!("root, the user {}{members}", accounts::user_name(facts.uid()))
        },
    );
    let sentence = format!(
        "{} is for {whose}. Use sudo, or become a member of the group that [control] names (`usermod --append --groups GROUP USER`, then log in \
         again); there `read = \"everyone\"` lets every user look",
        path.display()
    );
    forbidden("control-group", &sentence)
}

/// True when nothing came in time.
fn is_silence(error: &std::io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixListener;

    #[test]
    fn a_daemon_that_is_not_there_is_code_3() {
        let folder = tempfile::tempdir().expect("a folder");
        let stop = Client::connect(&folder.path().join("s")).err().expect("nobody listens");
        assert_eq!(stop.exit, Exit::Unreachable);
        assert!(stop.message.contains("repblk serve"), "{}", stop.message);
    }

    #[test]
    fn waiting_is_told_and_the_last_reply_returned() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("s");
        let listener = UnixListener::bind(&path).expect("binds");
        let daemon = std::thread::spawn(move || {
            let (stream, _) = listener.accept().expect("accepts");
            let mut request = String::new();
            BufReader::new(&stream).read_line(&mut request).expect("reads");
            for reply in [Reply::Waiting("for rain".into()), Reply::Done { volume: "mes".into() }] {
                let line = serde_json::to_string(&Answer { version: VERSION, reply }).expect("plain");
                writeln!(&stream, "{line}").expect("writes");
            }
            request
        });
        let mut client = Client::connect(&path).expect("connects");
        client.ask(Ask::Status).expect("sends");
        let mut notes = Vec::new();
        let last = client.last(|note| notes.push(note.to_owned())).expect("answers");
        assert_eq!((notes, last), (vec!["for rain".to_owned()], Reply::Done { volume: "mes".into() }));
        assert_eq!(client.last(|_| {}).expect_err("has closed").exit, Exit::Unreachable);
        assert!(daemon.join().expect("ends").contains("\"ask\":\"status\""));
    }

    /// A daemon that answers to the first request, in two pieces, when it is told to.
    fn slow_daemon(path: &Path, told: std::sync::mpsc::Receiver<()>) -> std::thread::JoinHandle<()> {
        let listener = UnixListener::bind(path).expect("binds");
        std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().expect("accepts");
            let reply = Reply::Done { volume: "mes".into() };
            let line = serde_json::to_string(&Answer { version: VERSION, reply }).expect("plain");
            let (first, second) = line.split_at(9);
            stream.write_all(first.as_bytes()).expect("writes");
            // An error says that the client has given up.
            let _ = told.recv();
            let _ = stream.write_all(format!("{second}\n").as_bytes());
        })
    }

    #[test]
    fn silence_is_told_and_forgiven_once() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("s");
        let (tell, told) = std::sync::mpsc::channel();
        let daemon = slow_daemon(&path, told);
        let mut client = Client::connect(&path).expect("connects");
        client.patience(Some(Duration::from_millis(300))).expect("is set");
        let mut notes = 0;
        let last = client.last(|note| {
            assert!(note.starts_with("waiting for the daemon at"), "{note}");
            notes += 1;
            tell.send(()).expect("the daemon listens");
        });
        assert_eq!((last, notes), (Ok(Reply::Done { volume: "mes".into() }), 1));
        daemon.join().expect("ends");
    }

    #[test]
    fn a_daemon_that_hangs_is_code_3() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("s");
        let (tell, told) = std::sync::mpsc::channel();
        let daemon = slow_daemon(&path, told);
        let mut client = Client::connect(&path).expect("connects");
        client.patience(Some(Duration::from_millis(20))).expect("is set");
        let stop = client.last(|_| {}).expect_err("nothing comes");
        assert_eq!(stop.exit, Exit::Unreachable);
        assert!(stop.message.contains("does not answer within"), "{}", stop.message);
        drop(tell);
        daemon.join().expect("ends");
    }
}
