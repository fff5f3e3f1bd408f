//! A real etcd of its own on the loopback network. Also used by the unit tests of the client.

use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::{Duration, Instant};

/// A member of a cluster of one.
pub(crate) struct EtcdServer {
    dir: tempfile::TempDir,
    /// Where clients are taken.
    pub(crate) client: SocketAddr,
    peer: SocketAddr,
    child: Option<Child>,
}

/// A host of its own on the loopback network: no other socket of this machine gets a port there by chance.
fn host() -> Ipv4Addr {
    static HOSTS: AtomicU8 = AtomicU8::new(1);
    let [.., high, low] = std::process::id().to_be_bytes();
    Ipv4Addr::new(127, 128 + high % 64, low, HOSTS.fetch_add(1, Ordering::Relaxed))
}

impl EtcdServer {
    /// A new one, ready for questions.
    #[track_caller]
    pub(crate) fn start() -> Self {
        let dir = tempfile::tempdir().expect("a folder");
        let host = host();
        let mut server = Self { dir, client: (host, 2379).into(), peer: (host, 2380).into(), child: None };
        server.resume();
        server
    }

    /// Starts it again with what it has on its disk.
    #[track_caller]
    pub(crate) fn resume(&mut self) {
        assert!(self.child.is_none(), "it runs");
        let log = std::fs::File::options().create(true).append(true).open(self.dir.path().join("log")).expect("a log");
        let (client, peer) = (format!("http://{}", self.client), format!("http://{}", self.peer));
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "etcd", "--name", "one", "--data-dir"]).arg(self.dir.path().join("data"));
        command.args(["--listen-client-urls", &client, "--advertise-client-urls", &client]);
        command.args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer]);
        command.args(["--initial-cluster", &format!("one={peer}"), "--log-level", "error"]);
        command.stdin(Stdio::null()).stdout(log.try_clone().expect("descriptors are left")).stderr(log);
        self.child = Some(command.spawn().expect("setpriv is in Debian's util-linux"));
        let deadline = Instant::now() + Duration::from_secs(20);
        while !self.answers() {
            let ended = self.child.as_mut().is_none_or(|child| child.try_wait().expect("our child").is_some());
            assert!(!ended && Instant::now() < deadline, "etcd (Debian: etcd-server) does not start:\n{}", self.log());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// It knows who leads.
    fn answers(&self) -> bool {
        use std::io::{Read, Write};
        let Ok(mut stream) = TcpStream::connect(self.client) else { return false };
        let mut answer = String::new();
        let asked = stream.write_all(b"GET /health HTTP/1.0\r\n\r\n").and_then(|()| stream.read_to_string(&mut answer));
        asked.is_ok() && answer.contains("\"true\"")
    }

    /// SIGKILL.
    pub(crate) fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            // One that ended by itself needs no killing.
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// `etcdctl` against it; what it prints.
    #[track_caller]
    pub(crate) fn ctl(&self, args: &[&str]) -> String {
        let endpoint = format!("--endpoints=http://{}", self.client);
        let mut command = Command::new("etcdctl");
        command.env("ETCDCTL_API", "3").arg(endpoint).args(args).stdin(Stdio::null());
        let ran = command.output().expect("etcdctl is in Debian's etcd-client");
        assert!(ran.status.success(), "etcdctl {args:?}: {}", String::from_utf8_lossy(&ran.stderr));
        String::from_utf8_lossy(&ran.stdout).into_owned()
    }

    fn log(&self) -> String {
        std::fs::read_to_string(Path::join(self.dir.path(), "log")).unwrap_or_default()
    }
}

impl Drop for EtcdServer {
    fn drop(&mut self) {
        self.kill();
    }
}
