//! TLS for the kernel's NBD client, which has none: the kernel gets one end of a pair of sockets, and what passes it is carried on over TLS.
//!
//! The other end is this process's: when it ends, so does the kernel's connection, and its requests wait until it is back.

use std::net::Shutdown;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream as StdUnixStream;

use socket2::Socket;
use tokio::io::copy_bidirectional_with_sizes;
use tokio::net::UnixStream;

use super::upstream::{Encrypted, GATHERED};

/// A connection that is carried. It ends at once when this is dropped.
pub(super) struct Tunnel {
    /// A second handle of the socket beneath TLS.
    socket: Socket,
}

impl Tunnel {
    /// Begins to carry; the descriptor is for the kernel.
    pub(super) fn open(mut stream: Box<Encrypted>) -> std::io::Result<(OwnedFd, Self)> {
        let (ours, kernels) = StdUnixStream::pair()?;
        ours.set_nonblocking(true)?;
        kernels.set_nonblocking(true)?;
        let mut ours = UnixStream::from_std(ours)?;
        let tunnel = Self { socket: super::upstream::second_handle(stream.get_ref().0.get_ref())? };
        tokio::spawn(async move {
            // However it ends, both sides see the end.
            let _ = copy_bidirectional_with_sizes(&mut ours, &mut *stream, GATHERED, GATHERED).await;
        });
        Ok((kernels.into(), tunnel))
    }
}

impl Drop for Tunnel {
    /// Nothing that is still on its way goes out after this.
    fn drop(&mut self) {
        let _ = self.socket.shutdown(Shutdown::Both);
    }
}
