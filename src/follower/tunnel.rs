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

#[cfg(test)]
mod tests {
    use std::time::{Duration, SystemTime};

    use rustls_pki_types::ServerName;
    use tokio::io::{AsyncReadExt, AsyncWriteExt, BufReader};
    use tokio::net::{TcpListener, TcpStream};
    use tokio_rustls::server::TlsStream;
    use tokio_rustls::{TlsAcceptor, TlsConnector};

    use super::*;
    use crate::tls::{Authority, Folder, Holder, Keyring};
    use crate::units::ClusterId;

    /// The kernel's end, what carries it, and the primary's end.
    async fn carried() -> (UnixStream, Tunnel, TlsStream<TcpStream>) {
        let dir = tempfile::tempdir().expect("a folder");
        let (folder, own) = (Folder::new(dir.path()), Holder::node(ClusterId(7), "n"));
        let authority = Authority::create("plant7", 10).expect("made");
        folder.write_authority(&authority).expect("written");
        folder.write_secrets(&[Folder::fresh_secret().expect("random")]).expect("written");
        folder.write_issued("n", &authority.issue(&own, &[], SystemTime::now(), 10).expect("issued")).expect("written");
        let keys = Keyring::open(dir.path(), own).expect("good").now();
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("ports are left");
        let address = listener.local_addr().expect("bound");
        let dial = async {
            let stream = TcpStream::connect(address).await.expect("it listens");
            let connector = TlsConnector::from(keys.nbd_dialler("n").expect("good"));
            connector.connect(ServerName::try_from("node").expect("a name"), BufReader::new(stream)).await
        };
        let accept = async {
            let (stream, _) = listener.accept().await.expect("dialled");
            TlsAcceptor::from(keys.nbd_acceptor(true).expect("good")).accept(stream).await
        };
        let (dialled, accepted) = tokio::join!(dial, accept);
        let (kernels, tunnel) = Tunnel::open(Box::new(dialled.expect("believed"))).expect("carried");
        let kernels = UnixStream::from_std(StdUnixStream::from(kernels)).expect("a socket");
        (kernels, tunnel, accepted.expect("believed"))
    }

    fn within<F: Future>(work: F) -> F::Output {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("starts");
        runtime.block_on(async { tokio::time::timeout(Duration::from_secs(10), work).await.expect("in time") })
    }

    #[test]
    fn bytes_pass_both_ways_and_an_end_is_an_end() {
        within(async {
            let (mut kernels, tunnel, mut primary) = carried().await;
            // More than any buffer on the way holds, in both directions at once.
            let bytes: Vec<u8> = (0..3_000_000u32).map(|i| i.to_le_bytes()[0] ^ i.to_le_bytes()[1]).collect();
            let (mut there, mut back) = (vec![0; bytes.len()], vec![0; bytes.len()]);
            {
                let (mut reader, mut writer) = kernels.split();
                let (mut from, mut to) = tokio::io::split(&mut primary);
                let send_back = async {
                    to.write_all(&bytes).await?;
                    to.flush().await
                };
                let all = tokio::try_join!(
                    writer.write_all(&bytes),
                    from.read_exact(&mut there),
                    send_back,
                    reader.read_exact(&mut back)
                );
                all.expect("carried");
            }
            assert!(there == bytes && back == bytes, "they came as they went");
            // What waits for nothing is not held back.
            kernels.write_all(b"x").await.expect("sent");
            assert_eq!(primary.read_u8().await.expect("came"), b'x');
            drop(tunnel);
            assert_eq!(kernels.read(&mut [0; 8]).await.expect("an end"), 0);
            assert!(primary.read(&mut [0; 8]).await.map_or(true, |len| len == 0), "an end here, too");
        });
        within(async {
            let (mut kernels, _tunnel, mut primary) = carried().await;
            primary.shutdown().await.expect("told");
            drop(primary);
            assert_eq!(kernels.read(&mut [0; 8]).await.expect("an end"), 0);
        });
    }
}
