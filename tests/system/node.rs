//! One daemon of a pair: its process, its command line, its files.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::raw_nbd::Raw;
use crate::tools::{self, Ran, Running, SHORT, run, signal, wait_for};

/// The program under test.
pub(crate) const REPBLK: &str = env!("CARGO_BIN_EXE_repblk");
/// The volume of every pair.
pub(crate) const VOLUME: &str = "mes";

/// A user of this host, who need not be in its files; its first group has its number.
#[derive(Clone)]
pub(crate) struct User {
    pub(crate) number: u32,
    pub(crate) groups: Vec<u32>,
}

/// The sandbox of a unit of systemd, as `scripts/confined` makes it.
#[derive(Clone)]
pub(crate) struct Sandbox {
    /// The unit's file, and those of its drop-ins.
    pub(crate) units: Vec<PathBuf>,
    pub(crate) user: User,
    /// What can be written in it.
    pub(crate) folder: PathBuf,
}

impl User {
    /// A command that this user runs.
    pub(crate) fn command(&self) -> Command {
        let number = self.number.to_string();
        let mut command = Command::new("setpriv");
        command.args(["--reuid", &number, "--regid", &number]);
        match self.groups.is_empty() {
            true => command.arg("--clear-groups"),
            false => command.arg("--groups").arg(list(self.groups.iter().map(u32::to_string))),
        };
        command
    }
}

impl Sandbox {
    /// A command that runs in it, and is ended by the kernel with whoever started it.
    pub(crate) fn command(&self) -> Command {
        let mut command = Command::new(Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/confined"));
        command.arg(list(self.units.iter().map(|unit| unit.display().to_string())));
        command.arg("--user").arg(self.user.number.to_string());
        for group in [&[self.user.number], self.user.groups.as_slice()].concat() {
            command.arg("--group").arg(group.to_string());
        }
        command.arg("--writable").arg(&self.folder).arg("--cwd").arg(&self.folder);
        command
    }
}

fn list(items: impl Iterator<Item = String>) -> String {
    items.collect::<Vec<_>>().join(",")
}

pub(crate) struct Node {
    pub(crate) name: &'static str,
    /// What is run.
    pub(crate) program: PathBuf,
    /// In what the daemon runs; none for nothing at all.
    pub(crate) sandbox: Option<Sandbox>,
    /// Its configuration file. The pair's nodes differ in how they reach each other: a proxy may stand between them.
    pub(crate) config: PathBuf,
    pub(crate) control: PathBuf,
    pub(crate) device: PathBuf,
    pub(crate) log: PathBuf,
    pub(crate) nbd_unix: PathBuf,
    /// `IP:PORT`.
    pub(crate) nbd_tcp: String,
    /// `IP:PORT`.
    pub(crate) data: String,
    /// Shell that runs before the daemon, in the daemon's own mount namespace; empty for none.
    pub(crate) before: String,
    child: Option<Child>,
}

impl Node {
    pub(crate) fn new(name: &'static str, dir: &Path) -> Self {
        let ip = tools::loopback();
        let file = |end: &str| dir.join(format!("{name}{end}"));
        Self {
            name,
            program: PathBuf::from(REPBLK),
            sandbox: None,
            config: file(".toml"),
            control: file(".ctl"),
            device: file(".img"),
            log: file(".log"),
            nbd_unix: file(".nbd"),
            nbd_tcp: format!("{ip}:10809"),
            data: format!("{ip}:7789"),
            before: String::new(),
            child: None,
        }
    }

    /// A repblk command against this node.
    #[track_caller]
    pub(crate) fn cli(&self, args: &[&str]) -> Ran {
        self.cli_within(args, SHORT)
    }

    #[track_caller]
    pub(crate) fn cli_within(&self, args: &[&str], limit: Duration) -> Ran {
        let config = self.config.to_string_lossy();
        let fixed = ["--config", &config, "--node", self.name];
        run(REPBLK, fixed.iter().chain(args), limit)
    }

    /// The same, given by another user.
    #[track_caller]
    pub(crate) fn cli_as(&self, user: &User, args: &[&str]) -> Ran {
        let mut command = user.command();
        command.arg(&self.program).arg("--config").arg(&self.config).args(["--node", self.name]).args(args);
        Running::start(command).finish(SHORT)
    }

    /// Starts the daemon and returns at once.
    pub(crate) fn spawn(&mut self) {
        assert!(self.child.is_none(), "{} runs already", self.name);
        let log = File::options().create(true).append(true).open(&self.log).expect("the test's folder can be written");
        // The kernel ends the daemon with this thread, so that nothing stays behind when the test is killed.
        let mut command = match &self.sandbox {
            Some(sandbox) => sandbox.command(),
            None => self.unconfined(),
        };
        command.arg(&self.program).arg("--config").arg(&self.config).args(["--node", self.name, "serve"]);
        command.stdin(Stdio::null()).stdout(log.try_clone().expect("descriptors are left")).stderr(log);
        self.child = Some(command.spawn().expect("setpriv is in Debian's util-linux"));
    }

    fn unconfined(&self) -> Command {
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL"]);
        if !self.before.is_empty() {
            let script = format!("{} && exec \"$0\" \"$@\"", self.before);
            command.args(["unshare", "--mount", "sh", "-ec", &script]);
        }
        command
    }

    /// Starts the daemon and waits until it answers.
    #[track_caller]
    pub(crate) fn start(&mut self) {
        self.spawn();
        let deadline = Instant::now() + SHORT;
        while self.try_status().is_none() {
            let ended = self.child.as_mut().is_none_or(|child| child.try_wait().expect("our child").is_some());
            assert!(!ended && Instant::now() < deadline, "{} does not start:\n{}", self.name, self.log_end());
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Starts a daemon that must not come up; returns what it said.
    #[track_caller]
    pub(crate) fn start_in_vain(&mut self) -> String {
        let before = self.log_text().len();
        self.spawn();
        let code = self.wait_end(SHORT);
        let said = self.log_text()[before..].to_owned();
        assert_eq!(code, Some(5), "{} must fail to start with code 5:\n{said}", self.name);
        said
    }

    /// True from its start until the test has ended it.
    pub(crate) fn is_running(&self) -> bool {
        self.child.is_some()
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.as_ref().expect("the daemon runs").id()
    }

    /// SIGKILL.
    pub(crate) fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            // A daemon that ended by itself needs no killing.
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// SIGTERM; the exit code.
    #[track_caller]
    pub(crate) fn terminate(&mut self, limit: Duration) -> Option<i32> {
        signal(self.pid(), "TERM");
        self.wait_end(limit)
    }

    /// Waits for the end of the daemon; the exit code.
    #[track_caller]
    pub(crate) fn wait_end(&mut self, limit: Duration) -> Option<i32> {
        let mut child = self.child.take().expect("the daemon was started");
        let deadline = Instant::now() + limit;
        loop {
            if let Some(status) = child.try_wait().expect("our child can be asked") {
                return status.code();
            }
            if Instant::now() > deadline {
                let _ = child.kill();
                let _ = child.wait();
                panic!("{} did not end within {limit:?}:\n{}", self.name, self.log_end());
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// The volume in `repblk status --json`; none when the daemon does not answer.
    pub(crate) fn try_status(&self) -> Option<Value> {
        let ran = self.cli(&["status", "--json"]);
        let status: Value = serde_json::from_str(&ran.stdout).ok()?;
        Some(status["volumes"][0].clone()).filter(|volume| volume["role"] != "unknown")
    }

    #[track_caller]
    pub(crate) fn status(&self) -> Value {
        self.try_status().unwrap_or_else(|| panic!("{} does not answer:\n{}", self.name, self.log_end()))
    }

    /// Waits until the volume's status is as `is` says; a daemon that does not answer is waited for, too.
    #[track_caller]
    pub(crate) fn wait(&self, what: &str, limit: Duration, is: impl Fn(&Value) -> bool) -> Value {
        let mut last = Value::Null;
        let deadline = Instant::now() + limit;
        loop {
            if let Some(status) = self.try_status() {
                if is(&status) {
                    return status;
                }
                last = status;
            }
            assert!(Instant::now() < deadline, "waited {limit:?} for {what} on {}; last: {last:#}", self.name);
            std::thread::sleep(Duration::from_millis(15));
        }
    }

    /// Waits for a line of the log.
    #[track_caller]
    pub(crate) fn wait_log(&self, text: &str, limit: Duration) {
        wait_for(&format!("{text:?} in the log of {}", self.name), limit, || {
            self.log_text().contains(text).then_some(())
        });
    }

    pub(crate) fn log_text(&self) -> String {
        std::fs::read(&self.log).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default()
    }

    pub(crate) fn log_end(&self) -> String {
        let text = self.log_text();
        let lines: Vec<_> = text.lines().collect();
        lines[lines.len().saturating_sub(40)..].join("\n")
    }

    pub(crate) fn unix_uri(&self) -> String {
        format!("nbd+unix:///{VOLUME}?socket={}", self.nbd_unix.display())
    }

    pub(crate) fn tcp_uri(&self) -> String {
        format!("nbd://{}/{VOLUME}", self.nbd_tcp)
    }

    /// Where [`Raw`] connects to.
    pub(crate) fn place(&self) -> String {
        self.nbd_unix.display().to_string()
    }

    #[track_caller]
    pub(crate) fn client(&self) -> Raw {
        Raw::connect(&self.place()).unwrap_or_else(|why| panic!("{} refuses a client: {why}", self.name))
    }

    /// Bytes of the data area.
    pub(crate) fn data_len(&self) -> u64 {
        self.status()["size_bytes"].as_u64().expect("a number")
    }

    /// Reads the device itself, as the daemon sees it.
    pub(crate) fn read_device(&self, path: &Path, at: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        let file = File::open(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        file.read_exact_at(&mut bytes, at).expect("the range is on the device");
        bytes
    }

    /// The device as seen from here: a daemon in a mount namespace of its own has it elsewhere.
    pub(crate) fn device_path(&self) -> PathBuf {
        if self.before.is_empty() {
            return self.device.clone();
        }
        PathBuf::from(format!("/proc/{}/root{}", self.pid(), self.device.display()))
    }

    /// Greatest resident memory so far, in KiB.
    pub(crate) fn memory_peak_kib(&self) -> u64 {
        let text = std::fs::read_to_string(format!("/proc/{}/status", self.pid())).expect("the daemon runs");
        let line = text.lines().find(|line| line.starts_with("VmHWM:")).expect("Linux says so");
        line.split_whitespace().nth(1).and_then(|kib| kib.parse().ok()).expect("a number of KiB")
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.kill();
    }
}
