//! Listening sockets: taken with a clear complaint when that fails, and removed when the daemon ends.

use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use socket2::{Domain, Protocol, SockAddr, Socket, Type};
use tokio::net::{TcpListener, UdpSocket, UnixListener};
use tracing::warn;

/// A TCP listener on `address`; `what` is listened for.
///
/// # Errors
/// A sentence with what, where, why and what next.
pub(super) fn tcp(address: SocketAddr, what: &str) -> Result<TcpListener, String> {
    let listen = || {
        let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
        socket.set_reuse_address(true)?;
        socket.set_nonblocking(true)?;
        socket.bind(&address.into())?;
        socket.listen(128)?;
        TcpListener::from_std(socket.into())
    };
    listen().map_err(|error| complaint(what, &address.to_string(), &error))
}

/// A UDP socket on `address`.
///
/// # Errors
/// As [`tcp`].
pub(super) fn udp(address: SocketAddr, what: &str) -> Result<UdpSocket, String> {
    let bind = || {
        let socket = std::net::UdpSocket::bind(address)?;
        socket.set_nonblocking(true)?;
        UdpSocket::from_std(socket)
    };
    bind().map_err(|error| complaint(what, &address.to_string(), &error))
}

/// A Unix listener that removes its file when it is dropped.
#[derive(Debug)]
pub(crate) struct UnixSocket {
    pub(crate) listener: UnixListener,
    path: PathBuf,
}

impl UnixSocket {
    /// Listens at `path` with the given permissions. A file left behind by a daemon that is gone is replaced; one that
    /// somebody listens on is not.
    ///
    /// # Errors
    /// As [`tcp`].
    pub(crate) fn bind(path: &Path, mode: u32, what: &str) -> Result<Self, String> {
        Self::bind_for(path, mode, None, what)
    }

    /// As [`UnixSocket::bind`], for the members of `group`. Where this process may not give it to the group, the group has no rights.
    ///
    /// # Errors
    /// As [`tcp`].
    pub(crate) fn bind_for(path: &Path, mode: u32, group: Option<u32>, what: &str) -> Result<Self, String> {
        let place = path.display().to_string();
        match std::os::unix::net::UnixStream::connect(path) {
            Ok(_) => return Err(complaint(what, &place, &io::ErrorKind::AddrInUse.into())),
            // A file that is no socket refuses the connection, too, and is somebody's data.
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused && is_socket(path) => {
                std::fs::remove_file(path).map_err(|error| complaint(what, &place, &error))?;
            }
            // Nothing there, or something that is no socket: binding tells.
            Err(_) => {}
        }
        let listen = || {
            if let Some(folder) = path.parent() {
                std::fs::create_dir_all(folder)?;
                is_safe(folder)?;
            }
            let socket = bound(path, mode, group)?;
            socket.listen(128)?;
            socket.set_nonblocking(true)?;
            UnixListener::from_std(std::os::fd::OwnedFd::from(socket).into())
        };
        let listener = listen().map_err(|error| complaint(what, &place, &error))?;
        Ok(Self { listener, path: path.to_path_buf() })
    }
}

/// A socket at `path` for those whom it is for. It does not listen yet: until it does, every connection is refused, so that nobody gets in under
/// the permissions that its file had at first.
fn bound(path: &Path, mode: u32, group: Option<u32>) -> io::Result<Socket> {
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    socket.bind(&SockAddr::unix(path)?)?;
    match permit(path, mode, group) {
        Ok(()) => Ok(socket),
        Err(error) => {
            // Nobody listens there, so it is of no use to anybody.
            let _ = std::fs::remove_file(path);
            Err(error)
        }
    }
}

/// Insists that nobody but its owner can put another file in the place of one in `folder`.
fn is_safe(folder: &Path) -> io::Result<()> {
    let mode = std::fs::metadata(folder)?.permissions().mode();
    if mode & 0o1002 == 0o002 {
        let what = "every user may remove files in its folder and put others in their place (chmod o-w)";
        return Err(io::Error::other(what));
    }
    Ok(())
}

/// Gives a socket's file to those whom it is for.
fn permit(path: &Path, mode: u32, group: Option<u32>) -> io::Result<()> {
    let mut mode = mode;
    let has = std::fs::symlink_metadata(path)?.gid();
    if let Some(group) = group.filter(|&group| group != has) {
        match std::os::unix::fs::lchown(path, None, Some(group)) {
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                warn!(
                    socket = %path.display(), group,
                    "this process may give its socket only to its own groups; members of this one cannot use it"
                );
                mode &= !0o070;
            }
            given => given?,
        }
    }
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode))
}

impl Drop for UnixSocket {
    fn drop(&mut self) {
        // Somebody may have removed it already; there is nobody left to tell.
        let _ = std::fs::remove_file(&self.path);
    }
}

fn is_socket(path: &Path) -> bool {
    std::fs::symlink_metadata(path).is_ok_and(|facts| facts.file_type().is_socket())
}

fn complaint(what: &str, place: &str, error: &io::Error) -> String {
    let next = match error.kind() {
        io::ErrorKind::AddrInUse => {
            "another process listens there: stop it (a second repblk?), or give this node another address in the configuration"
        }
        io::ErrorKind::AddrNotAvailable => {
            "this host does not have that address: bring the interface up, correct the configuration, or check that --node \
             names this host"
        }
        io::ErrorKind::PermissionDenied => "run repblk as root, or choose a place that this user may use",
        _ => "correct the configuration, or the system",
    };
    format!("cannot listen for {what} on {place}: {error}; {next}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_stale_socket_is_replaced_and_a_live_one_is_not() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("s");
        drop(std::os::unix::net::UnixListener::bind(&path).expect("binds"));
        assert!(path.exists(), "the standard library leaves the file behind");
        let live = UnixSocket::bind(&path, 0o600, "control").expect("replaces the stale one");
        assert_eq!(std::fs::metadata(&path).expect("is there").permissions().mode() & 0o777, 0o600);
        let refused = UnixSocket::bind(&path, 0o600, "control").expect_err("is in use");
        assert!(refused.contains("another process listens there"), "{refused}");
        drop(live);
        assert!(!path.exists(), "removed at the end");
    }

    /// Found by reading: the socket listened under the process's file mask before it had its permissions.
    #[test]
    fn permissions_are_there_before_anybody_can_connect() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("s");
        let socket = bound(&path, 0o600, None).expect("binds");
        let facts = std::fs::metadata(&path).expect("is there");
        assert_eq!(facts.permissions().mode() & 0o777, 0o600);
        let connect = || std::os::unix::net::UnixStream::connect(&path).map(drop).map_err(|error| error.kind());
        assert_eq!(connect(), Err(io::ErrorKind::ConnectionRefused), "not even root gets in before");
        socket.listen(1).expect("listens");
        assert_eq!(connect(), Ok(()));
    }

    #[tokio::test]
    async fn a_folder_in_which_everybody_may_replace_files_is_no_place() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("s");
        let bind = |mode| {
            std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(mode)).expect("is ours");
            UnixSocket::bind(&path, 0o600, "control").map(drop)
        };
        assert!(bind(0o777).expect_err("anybody's").contains("put others in their place"));
        bind(0o1777).expect("as /tmp is");
        bind(0o755).expect("the owner's");
    }

    #[tokio::test]
    async fn a_file_that_is_no_socket_is_left_alone() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("data");
        std::fs::write(&path, "precious").expect("writes");
        assert!(UnixSocket::bind(&path, 0o600, "control").is_err());
        assert_eq!(std::fs::read_to_string(&path).expect("is there"), "precious");
    }

    #[tokio::test]
    async fn a_taken_port_says_whose_fault_it_is() {
        let taken = tcp("127.0.0.1:0".parse().expect("an address"), "NBD clients").expect("binds");
        let again = tcp(taken.local_addr().expect("bound"), "NBD clients").expect_err("is in use");
        assert!(again.starts_with("cannot listen for NBD clients on 127.0.0.1:"), "{again}");
        let foreign = udp("192.0.2.1:7".parse().expect("an address"), "heartbeats").expect_err("not ours");
        assert!(foreign.contains("does not have that address"), "{foreign}");
    }
}
