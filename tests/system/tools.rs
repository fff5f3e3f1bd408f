//! Running other programs with a deadline, waiting with a deadline, and places for files.

use std::ffi::OsStr;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use tempfile::TempDir;

/// Longest time for a program that has much to do.
pub(crate) const LONG: Duration = Duration::from_secs(60);
/// Longest time for a program that has little to do, on a busy machine.
pub(crate) const SHORT: Duration = Duration::from_secs(10);
/// Time between two looks.
const LOOK_INTERVAL: Duration = Duration::from_millis(15);

/// What a program did.
#[derive(Debug)]
pub(crate) struct Ran {
    /// What was run, for messages.
    pub(crate) what: String,
    /// Exit code; none when a signal ended it.
    pub(crate) code: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
    pub(crate) took: Duration,
}

impl Ran {
    /// Insists on success; returns standard output.
    #[track_caller]
    pub(crate) fn ok(self) -> String {
        assert_eq!(self.code, Some(0), "{} failed:\n{}{}", self.what, self.stdout, self.stderr);
        self.stdout
    }

    /// Insists on an exit code; returns both outputs together.
    #[track_caller]
    pub(crate) fn exits(self, code: i32) -> String {
        assert_eq!(self.code, Some(code), "{} did not exit with {code}:\n{}{}", self.what, self.stdout, self.stderr);
        self.stdout + &self.stderr
    }

    /// Insists on a failure of any kind; returns both outputs together.
    #[track_caller]
    pub(crate) fn fails(self) -> String {
        assert!(self.code.is_some_and(|code| code != 0), "{} did not fail:\n{}{}", self.what, self.stdout, self.stderr);
        self.stdout + &self.stderr
    }
}

/// Runs a program to its end, at most for `limit`; one that takes longer is killed and fails the test.
#[track_caller]
pub(crate) fn run<I: AsRef<OsStr>>(program: &str, args: impl IntoIterator<Item = I>, limit: Duration) -> Ran {
    let mut command = Command::new(program);
    command.args(args);
    Running::start(command).finish(limit)
}

/// A program that runs beside the test; killed when dropped.
pub(crate) struct Running {
    what: String,
    child: Child,
    readers: Vec<thread::JoinHandle<String>>,
    began: Instant,
}

impl Running {
    #[track_caller]
    pub(crate) fn start(mut command: Command) -> Self {
        let what = format!("{command:?}").replace('"', "");
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let program = command.get_program().to_string_lossy().into_owned();
        let mut child = command.spawn().unwrap_or_else(|error| {
            panic!("cannot run {program}: {error}; scripts/test installs what these tests need")
        });
        let stdout = child.stdout.take().expect("it is piped");
        let stderr = child.stderr.take().expect("it is piped");
        let readers = vec![read_to_end(stdout), read_to_end(stderr)];
        Self { what, child, readers, began: Instant::now() }
    }

    pub(crate) fn is_over(&mut self) -> bool {
        self.child.try_wait().expect("our child can be asked").is_some()
    }

    #[track_caller]
    pub(crate) fn finish(mut self, limit: Duration) -> Ran {
        let deadline = self.began + limit;
        while !self.is_over() {
            if Instant::now() > deadline {
                let what = self.what.clone();
                let (stdout, stderr) = self.stop();
                panic!("{what} did not end within {limit:?}:\n{stdout}{stderr}");
            }
            thread::sleep(LOOK_INTERVAL);
        }
        let took = self.began.elapsed();
        let code = self.child.wait().expect("it has ended").code();
        let (stdout, stderr) = self.outputs();
        Ran { what: self.what.clone(), code, stdout, stderr, took }
    }

    /// Ends it, with force, and returns what it said.
    pub(crate) fn stop(mut self) -> (String, String) {
        // It may have ended in this moment.
        let _ = self.child.kill();
        let _ = self.child.wait();
        self.outputs()
    }

    fn outputs(&mut self) -> (String, String) {
        let mut texts = self.readers.drain(..).map(|reader| reader.join().expect("a reader only reads"));
        (texts.next().unwrap_or_default(), texts.next().unwrap_or_default())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn read_to_end(mut pipe: impl Read + Send + 'static) -> thread::JoinHandle<String> {
    thread::spawn(move || {
        let mut bytes = Vec::new();
        // What came until the error is what there is to show.
        let _ = pipe.read_to_end(&mut bytes);
        String::from_utf8_lossy(&bytes).into_owned()
    })
}

/// Looks until `look` finds something; fails the test with `what` was awaited after `limit`.
#[track_caller]
pub(crate) fn wait_for<T>(what: &str, limit: Duration, mut look: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + limit;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < deadline, "waited {limit:?} for {what}");
        thread::sleep(LOOK_INTERVAL);
    }
}

/// Sends a signal to a process that this test started.
pub(crate) fn signal(pid: u32, name: &str) {
    run("sh", ["-c", &format!("kill -{name} {pid}")], SHORT).ok();
}

/// A number that whoever runs the tests may set in the environment: its name, and what it is otherwise.
pub(crate) fn from_environment((name, otherwise): (&str, u64)) -> u64 {
    std::env::var(name).map_or(otherwise, |text| text.parse().unwrap_or_else(|_| panic!("{name} must be a number")))
}

/// A folder for one test, removed with everything in it at the end.
pub(crate) fn folder() -> TempDir {
    tempfile::Builder::new().prefix("pair").tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("cargo made this folder")
}

/// The same, where every user of the host may look into it, with a copy of `program` that every user may run.
pub(crate) fn public_folder(program: &str) -> (TempDir, PathBuf) {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::Builder::new().prefix("pair").tempdir().expect("there is a place for files of all users");
    let everyone = std::fs::Permissions::from_mode(0o755);
    std::fs::set_permissions(dir.path(), everyone.clone()).expect("it is ours");
    let copy = dir.path().join("repblk");
    std::fs::copy(program, &copy).expect("there is room for a program");
    std::fs::set_permissions(&copy, everyone).expect("it is ours");
    (dir, copy)
}

/// An address of the loopback network that nobody else uses: no other test here, and no other run of the tests.
pub(crate) fn loopback() -> String {
    static NEXT: AtomicU32 = AtomicU32::new(1);
    let (pid, number) = (std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
    assert!(number < 1 << 10, "more addresses than this scheme has");
    // Two runs at one time whose pids differ by a multiple of 2^12 are not to be expected.
    let place = (pid & 0xfff) << 10 | number;
    format!("127.{}.{}.{}", 64 + (place >> 16), (place >> 8) & 255, place & 255)
}

/// Makes a sparse file of `len` bytes.
pub(crate) fn sparse(path: &Path, len: u64) {
    let file = std::fs::File::create(path).expect("the test's folder can be written");
    file.set_len(len).expect("sparse files work here");
}

/// Bytes that differ from place to place and from seed to seed, the same at every run.
pub(crate) fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend(state.to_le_bytes());
    }
    bytes.truncate(len);
    bytes
}
