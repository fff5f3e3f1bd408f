//! One HTTP/1.1 connection that knows whether anything was sent.

use http_body_util::{BodyExt, Full, Limited};
use hyper::Request;
use hyper::body::Bytes;
use hyper::client::conn::http1::{self, SendRequest};
use hyper::header::{AUTHORIZATION, CONTENT_TYPE, HOST};
use hyper_util::rt::TokioIo;
use rustls_pki_types::ServerName;
use tokio::net::TcpStream;
use tokio::task::JoinHandle;
use tokio_rustls::TlsConnector;

use crate::daemon::stream::{Stream, explain};
use crate::failover::record::RECORD_LEN_MAX;
use crate::tls::Visitor;

/// Longest answer that is read: a record in base64, and what stands around it.
const ANSWER_LEN_MAX: usize = 2 * RECORD_LEN_MAX + 4096;

/// What became of a question.
#[derive(Debug)]
pub(super) enum Outcome {
    /// The server answered.
    Answer {
        /// HTTP status.
        status: u16,
        body: Bytes,
    },
    /// It did not, or not in full.
    Lost(String),
}

/// A connection.
pub(super) struct Line {
    sender: SendRequest<Full<Bytes>>,
    host: String,
    /// Moves the bytes.
    driver: JoinHandle<()>,
}

impl Drop for Line {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

impl Line {
    /// Connects to `HOST:PORT`, in the clear or over TLS.
    ///
    /// # Errors
    /// A sentence.
    pub(super) async fn connect(endpoint: &str, tls: Option<&Visitor>) -> Result<Self, String> {
        let fault = |error: &dyn std::fmt::Display| format!("cannot connect: {error}");
        let stream = TcpStream::connect(endpoint).await.map_err(|error| fault(&error))?;
        stream.set_nodelay(true).map_err(|error| fault(&error))?;
        let stream = match tls {
            None => Stream::Plain(stream),
            Some(visitor) => shake(endpoint, stream, visitor).await?,
        };
        let (sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(|error| fault(&error))?;
        let driver = tokio::spawn(async move {
            // What goes wrong here comes back to whoever waits for an answer.
            let _ = connection.await;
        });
        Ok(Self { sender, host: endpoint.to_owned(), driver })
    }

    /// The server has closed it.
    pub(super) fn is_closed(&self) -> bool {
        self.sender.is_closed()
    }

    /// Posts `body` to `path`. `sent` is set as soon as the server may have seen any of it.
    pub(super) async fn post(
        &mut self,
        path: &str,
        token: Option<&str>,
        body: &serde_json::Value,
        sent: &mut bool,
    ) -> Outcome {
        let mut request = Request::post(path).header(HOST, &self.host).header(CONTENT_TYPE, "application/json");
        if let Some(token) = token {
            request = request.header(AUTHORIZATION, token);
        }
        let request = match request.body(Full::new(Bytes::from(body.to_string()))) {
            Ok(request) => request,
            Err(error) => return Outcome::Lost(format!("the question cannot be written: {error}")),
        };
        if let Err(error) = self.sender.ready().await {
            return Outcome::Lost(format!("the connection was closed: {error}"));
        }
        *sent = true;
        let response = match self.sender.try_send_request(request).await {
            Ok(response) => response,
            Err(mut error) => {
                // It comes back only when none of it was written.
                *sent = error.take_message().is_none();
                return Outcome::Lost(format!("the connection broke: {}", error.error()));
            }
        };
        let status = response.status().as_u16();
        match Limited::new(response.into_body(), ANSWER_LEN_MAX).collect().await {
            Ok(body) => Outcome::Answer { status, body: body.to_bytes() },
            Err(error) => Outcome::Lost(format!("its answer broke off: {error}")),
        }
    }
}

/// The handshake of TLS: the server must prove to be the host of `endpoint`.
async fn shake(endpoint: &str, stream: TcpStream, visitor: &Visitor) -> Result<Stream<TcpStream>, String> {
    let config = visitor.config().map_err(|error| error.to_string())?;
    let host = endpoint.rsplit_once(':').map_or(endpoint, |(host, _)| host).trim_matches(['[', ']']);
    let name =
        ServerName::try_from(host.to_owned()).map_err(|error| format!("{host:?} is no name of a host: {error}"))?;
    let shaken = TlsConnector::from(config).connect(name, stream).await;
    shaken.map(|stream| Stream::Tls(Box::new(stream.into()))).map_err(|error| format!("no TLS: {}", explain(&error)))
}
