//! The handshake of TLS between two nodes, whatever they say to each other afterwards.
//!
//! A node is who its certificate says: an address proves nothing. Without keys there is no handshake, and nothing is proved.

use std::io::ErrorKind;
use std::time::Duration;

use rustls_pki_types::ServerName;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::{TlsAcceptor, TlsConnector, TlsStream};

use super::hello_exchange::ExchangeError;
use super::security::Guard;
use super::stream::{Stream, explain};

/// Longest time for a handshake.
const HANDSHAKE_TIME: Duration = Duration::from_secs(3);

/// With the node called `peer`, to speak `protocol` with it.
///
/// # Errors
/// The other side is too slow, or one side does not believe the other.
pub(super) async fn dial(
    stream: TcpStream,
    peer: &str,
    protocol: &'static [u8],
    guard: &Guard,
) -> Result<Stream<TcpStream>, ExchangeError> {
    let Some(keys) = guard.keys() else { return Ok(Stream::Plain(stream)) };
    let connector = TlsConnector::from(keys.dialler(peer, protocol).map_err(ExchangeError::Distrust)?);
    let name = ServerName::try_from("node").expect("a name; the certificate names the node in its own way");
    let stream = shake(peer, connector.connect(name, stream)).await?;
    checked(stream.into(), protocol)
}

/// With whoever dialled, to speak `protocol`; and the name of the node that it has proved to be, where there are keys.
///
/// # Errors
/// As [`dial`].
pub(super) async fn accept(
    stream: TcpStream,
    protocol: &'static [u8],
    guard: &Guard,
) -> Result<(Stream<TcpStream>, Option<String>), ExchangeError> {
    let Some(keys) = guard.keys() else { return Ok((Stream::Plain(stream), None)) };
    let stream = shake("the dialling node", TlsAcceptor::from(keys.acceptor()).accept(stream)).await?;
    let proved = keys.node_of(stream.get_ref().1.peer_certificates());
    let proved = proved.ok_or_else(|| ExchangeError::Distrust("it shows no certificate of a node".to_owned()))?;
    Ok((checked(stream.into(), protocol)?, Some(proved)))
}

async fn shake<T>(who: &str, shaking: impl Future<Output = std::io::Result<T>>) -> Result<T, ExchangeError> {
    match timeout(HANDSHAKE_TIME, shaking).await {
        Ok(Ok(stream)) => Ok(stream),
        Ok(Err(error)) if matches!(error.kind(), ErrorKind::UnexpectedEof | ErrorKind::ConnectionReset) => {
            Err(ExchangeError::Distrust(format!(
                "{who} ended the connection within the handshake of TLS: it has no keys configured, or does not believe this node; \
                 its log says which"
            )))
        }
        Ok(Err(error)) => Err(ExchangeError::Distrust(format!("{who}: {}", explain(&error)))),
        Err(_) => Err(ExchangeError::Slow),
    }
}

/// A handshake was for this protocol, and for nothing else that a certificate of this cluster is good for.
fn checked(stream: TlsStream<TcpStream>, protocol: &[u8]) -> Result<Stream<TcpStream>, ExchangeError> {
    if stream.get_ref().1.alpn_protocol() == Some(protocol) {
        return Ok(Stream::Tls(Box::new(stream)));
    }
    let protocol = String::from_utf8_lossy(protocol);
    Err(ExchangeError::Distrust(format!("it speaks TLS, and does not mean to speak {protocol} over it")))
}
