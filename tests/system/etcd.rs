//! A real etcd of its own on the loopback network. Also used by the unit tests of the client.

use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::{Duration, Instant};

use super::{Authority, Holder, Kind, cluster_id};

/// A member of a cluster of one.
pub(crate) struct EtcdServer {
    dir: tempfile::TempDir,
    /// Where clients are taken.
    pub(crate) client: SocketAddr,
    peer: SocketAddr,
    child: Option<Child>,
    /// Clients speak TLS, and show a certificate.
    tls: bool,
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
        let mut server = Self::at_rest();
        server.resume();
        server
    }

    fn at_rest() -> Self {
        let dir = tempfile::tempdir().expect("a folder");
        let host = host();
        Self { dir, client: (host, 2379).into(), peer: (host, 2380).into(), child: None, tls: false }
    }

    /// As [`EtcdServer::start`], with TLS: `ca.pem`, `client.pem` and `client.key` are for its clients, `stranger.pem` is another authority.
    /// It passes for `host`, or for where it is.
    #[track_caller]
    pub(crate) fn with_tls(host: Option<&str>) -> Self {
        let mut server = Self::at_rest();
        server.tls = true;
        let name = |path: &str| server.file(path);
        let write = |path: &str, text: &str| {
            use std::os::unix::fs::OpenOptionsExt;
            let file = std::fs::File::options().create_new(true).write(true).mode(0o600).open(name(path));
            std::io::Write::write_all(&mut file.expect("made"), text.as_bytes()).expect("written");
        };
        let authority = Authority::create("etcd", 10).expect("made");
        write("ca.pem", authority.certificate());
        write("stranger.pem", Authority::create("etcd", 10).expect("made").certificate());
        let here = host.map_or_else(|| server.client.ip().to_string(), str::to_owned);
        for (holder, kind, hosts) in [("server", Kind::Server, vec![here]), ("client", Kind::Client, Vec::new())] {
            let of = Holder { kind, ..Holder::node(cluster_id("etcd"), holder) };
            let issued = authority.issue(&of, &hosts, std::time::SystemTime::now(), 10).expect("issued");
            write(&format!("{holder}.pem"), &issued.certificate);
            write(&format!("{holder}.key"), &issued.key);
        }
        server.resume();
        server
    }

    /// One of its files.
    pub(crate) fn file(&self, name: &str) -> std::path::PathBuf {
        self.dir.path().join(name)
    }

    /// Starts it again with what it has on its disk.
    #[track_caller]
    pub(crate) fn resume(&mut self) {
        assert!(self.child.is_none(), "it runs");
        let log = std::fs::File::options().create(true).append(true).open(self.dir.path().join("log")).expect("a log");
        let (client, peer) = (self.url(), format!("http://{}", self.peer));
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "etcd", "--name", "one", "--data-dir"]).arg(self.dir.path().join("data"));
        command.args(["--listen-client-urls", &client, "--advertise-client-urls", &client]);
        command.args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer]);
        command.args(["--initial-cluster", &format!("one={peer}"), "--log-level", "error"]);
        if self.tls {
            command.arg("--client-cert-auth").arg("--trusted-ca-file").arg(self.file("ca.pem"));
            command.arg("--cert-file").arg(self.file("server.pem")).arg("--key-file").arg(self.file("server.key"));
        }
        command.stdin(Stdio::null()).stdout(log.try_clone().expect("descriptors are left")).stderr(log);
        self.child = Some(command.spawn().expect("setpriv is in Debian's util-linux"));
        let deadline = Instant::now() + Duration::from_secs(20);
        while !self.answers() {
            let ended = self.child.as_mut().is_none_or(|child| child.try_wait().expect("our child").is_some());
            assert!(!ended && Instant::now() < deadline, "etcd (Debian: etcd-server) does not start:\n{}", self.log());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// The lines of `[arbiter]` that lead here.
    #[cfg_attr(test, allow(dead_code, reason = "the unit tests write no configuration"))]
    pub(crate) fn lines(&self) -> String {
        let kind = format!("kind = \"etcd\"\nendpoints = [\"{}\"]\n", self.url());
        let file = |key: &str, name: &str| format!("{key} = \"{}\"\n", self.file(name).display());
        let files = [file("ca", "ca.pem"), file("certificate", "client.pem"), file("key", "client.key")].concat();
        if self.tls { kind + &files } else { kind }
    }

    fn url(&self) -> String {
        format!("{}://{}", if self.tls { "https" } else { "http" }, self.client)
    }

    /// It knows who leads.
    fn answers(&self) -> bool {
        if self.tls {
            return self
                .command(&["endpoint", "health", "--insecure-skip-tls-verify"])
                .output()
                .is_ok_and(|ran| ran.status.success());
        }
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
        let ran = self.command(args).output().expect("etcdctl is in Debian's etcd-client");
        assert!(ran.status.success(), "etcdctl {args:?}: {}", String::from_utf8_lossy(&ran.stderr));
        String::from_utf8_lossy(&ran.stdout).into_owned()
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new("etcdctl");
        command.env("ETCDCTL_API", "3").arg(format!("--endpoints={}", self.url())).args(args).stdin(Stdio::null());
        if self.tls {
            command.arg("--cacert").arg(self.file("ca.pem"));
            command.arg("--cert").arg(self.file("client.pem")).arg("--key").arg(self.file("client.key"));
        }
        command
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
