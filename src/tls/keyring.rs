//! What a running node or NBD client holds. The files are read again when they change: what was renewed is used for the next connection, and
//! a connection that stands is left alone, whatever its certificate's date.

use std::path::Path;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use rustls::crypto::{CryptoProvider, ring};
use rustls::server::WebPkiClientVerifier;
use rustls::version::{TLS12, TLS13};
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use tokio::time::Instant;
use zeroize::Zeroizing;

use super::date::{DAY, day_of, unix_now};
use super::distrust::Distrust;
use super::folder::{Folder, FolderError};
use super::holder::{Holder, Kind};
use super::verifier::NodeVerifier;
use crate::wire::sealed::Secret;

/// What is spoken over the TLS of a data link.
pub const LINK_PROTOCOL: &[u8] = b"repblk-link/1";
/// What is spoken over the TLS of a question to an agent.
pub const AGENT_PROTOCOL: &[u8] = b"repblk-agent/1";
/// So many days before its end a certificate is worth a warning.
pub const WARNING_DAYS: i64 = 30;
/// The keys are looked at so often.
pub const LOOK_INTERVAL: Duration = Duration::from_secs(2);
/// A warning that stays is repeated in the log so often.
const REPEAT: Duration = Duration::from_secs(86_400);

/// The keys of one node or NBD client, as they are now.
#[derive(Debug)]
pub struct Keyring {
    folder: Folder,
    own: Holder,
    held: Mutex<Held>,
}

#[derive(Debug)]
struct Held {
    stamp: Vec<Option<(i64, i64, u64)>>,
    keys: Arc<Keys>,
    /// What was told of files that cannot be used.
    told: Option<FolderError>,
}

/// The keys of one node or NBD client, as they were when they were read.
#[derive(Debug)]
pub struct Keys {
    own: Holder,
    roots: Arc<RootCertStore>,
    chain: Vec<CertificateDer<'static>>,
    key: Zeroizing<PrivateKeyDer<'static>>,
    provider: Arc<CryptoProvider>,
    acceptor: Arc<ServerConfig>,
    /// For clients of NBD that may show a certificate, and that must. Made once: a stranger that begins a handshake must not cost that.
    nbd_acceptors: [OnceLock<Arc<ServerConfig>>; 2],
    /// The secrets of the cluster, the one in use first; a client has none.
    pub secrets: Vec<Secret>,
    /// When the certificate ends, in seconds since 1970.
    pub not_after: i64,
    /// When it begins.
    not_before: i64,
    /// When the last of the authorities that are trusted ends.
    authority_not_after: i64,
}

impl Keyring {
    /// The keys of `own`, a node or a client, in the folder at `path`.
    ///
    /// # Errors
    /// What is missing or wrong, and what to do.
    pub fn open(path: &Path, own: Holder) -> Result<Self, FolderError> {
        let folder = Folder::new(path);
        let stamp = folder.stamp(&own.name);
        let keys = Arc::new(Keys::read(&folder, &own)?);
        Ok(Self { folder, own, held: Mutex::new(Held { stamp, keys, told: None }) })
    }

    /// The keys as they are now. When the files became unusable, those that were read before are used on.
    pub fn now(&self) -> Arc<Keys> {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        let stamp = self.folder.stamp(&self.own.name);
        if stamp != held.stamp {
            held.stamp = stamp;
            match Keys::read(&self.folder, &self.own) {
                Ok(keys) => {
                    tracing::info!(until = day_of(keys.not_after), "the keys were read again");
                    (held.keys, held.told) = (Arc::new(keys), None);
                }
                Err(error) if held.told.as_ref() != Some(&error) => {
                    tracing::warn!(%error, "the keys have changed and cannot be used; those read before are used on");
                    held.told = Some(error);
                }
                Err(_) => {}
            }
        }
        Arc::clone(&held.keys)
    }

    /// Whose they are.
    #[must_use]
    pub fn own(&self) -> &Holder {
        &self.own
    }

    /// Warns in the log of what an operator must do, once when it comes up and then once a day, for ever.
    pub async fn keep_warning(&self) {
        let mut told: Option<(String, Instant)> = None;
        loop {
            let warning = self.warning();
            let new = |text: &String| told.as_ref().is_none_or(|(last, at)| last != text || at.elapsed() >= REPEAT);
            if let Some(text) = warning.clone().filter(new) {
                tracing::warn!("{text}");
                told = Some((text, Instant::now()));
            }
            if warning.is_none() {
                told = None;
            }
            tokio::time::sleep(LOOK_INTERVAL).await;
        }
    }

    /// What an operator must know of the keys, if anything.
    #[must_use]
    pub fn warning(&self) -> Option<String> {
        let keys = self.now();
        let told = self.held.lock().unwrap_or_else(PoisonError::into_inner).told.clone();
        told.map(|error| format!("{error}; the keys read before are used on")).or_else(|| keys.warning(unix_now()))
    }
}

impl Keys {
    fn read(folder: &Folder, own: &Holder) -> Result<Self, FolderError> {
        let wrong = |file, why| FolderError { file, why };
        let (certificate, authority) = (folder.certificate_file(&own.name), folder.authority_file());
        let mut roots = RootCertStore::empty();
        let trusted = folder.trusted()?;
        let ends = trusted.iter().filter_map(super::Certificate::read).map(|certificate| certificate.not_after);
        let authority_not_after = ends.max().unwrap_or(i64::MAX);
        for root in trusted {
            roots.add(root).map_err(|error| wrong(authority.clone(), error.to_string()))?;
        }
        let roots = Arc::new(roots);
        let (chain, key) = (folder.chain(&own.name)?, Zeroizing::new(folder.key(&own.name)?));
        let secrets = if own.kind == Kind::Node { folder.secrets()? } else { Vec::new() };
        let facts = folder.certificate(&own.name)?;
        Distrust::of_own(facts.holder, &facts.subject, own).map_err(|why| {
            let what = own.kind.title();
            wrong(certificate.clone(), format!("is not that of this {what}: {why}; make one with `repblk cert issue`"))
        })?;
        let provider = Arc::new(provider());
        let verifier = verifier(own, None, &roots, &provider).map_err(|why| wrong(authority.clone(), why))?;
        let mut acceptor = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_protocol_versions(&[&TLS13])
            .expect("the provider has suites of TLS 1.3")
            .with_client_cert_verifier(verifier)
            .with_single_cert(chain.clone(), key.clone_key())
            .map_err(|error| wrong(certificate, format!("does not go with its key: {error}")))?;
        acceptor.alpn_protocols = vec![LINK_PROTOCOL.to_vec(), AGENT_PROTOCOL.to_vec()];
        // A link is made once and lasts: there is nothing to resume, and a ticket would outlive its certificate.
        acceptor.send_tls13_tickets = 0;
        acceptor.session_storage = Arc::new(rustls::server::NoServerSessionStorage {});
        let own = own.clone();
        let (acceptor, nbd_acceptors) = (Arc::new(acceptor), Default::default());
        let (not_after, not_before) = (facts.not_after, facts.not_before);
        Ok(Self {
            own,
            roots,
            chain,
            key,
            provider,
            acceptor,
            nbd_acceptors,
            secrets,
            not_after,
            not_before,
            authority_not_after,
        })
    }

    /// For taking links and questions of any node of the cluster.
    #[must_use]
    pub fn acceptor(&self) -> Arc<ServerConfig> {
        Arc::clone(&self.acceptor)
    }

    /// For taking clients of NBD, which must show a certificate of the cluster, or may. They are programs of others, and some know no TLS 1.3.
    ///
    /// # Errors
    /// A sentence, when the keys do not allow it.
    pub fn nbd_acceptor(&self, certificate: bool) -> Result<Arc<ServerConfig>, String> {
        let made = &self.nbd_acceptors[usize::from(certificate)];
        if let Some(config) = made.get() {
            return Ok(Arc::clone(config));
        }
        let (roots, provider) = (Arc::clone(&self.roots), Arc::clone(&self.provider));
        let clients = WebPkiClientVerifier::builder_with_provider(roots, provider);
        let clients = if certificate { clients } else { clients.allow_unauthenticated() };
        let clients = clients.build().map_err(|error| format!("the authority cannot be used: {error}"))?;
        let mut config = ServerConfig::builder_with_provider(Arc::new(provider_of_clients()))
            .with_protocol_versions(&[&TLS13, &TLS12])
            .expect("the provider has suites of both")
            .with_client_cert_verifier(clients)
            .with_single_cert(self.chain.clone(), self.key.clone_key())
            .map_err(|error| format!("the certificate cannot be used: {error}"))?;
        config.send_tls13_tickets = 0;
        config.session_storage = Arc::new(rustls::server::NoServerSessionStorage {});
        Ok(Arc::clone(made.get_or_init(|| Arc::new(config))))
    }

    /// The client or node that showed `certificates` in a handshake that succeeded; none when it is of another cluster, or a server.
    #[must_use]
    pub fn client_of(&self, certificates: Option<&[CertificateDer<'_>]>) -> Option<Holder> {
        let certificate = super::Certificate::read(certificates?.first()?)?;
        certificate.holder.filter(|holder| holder.cluster == self.own.cluster && holder.kind != Kind::Server)
    }

    /// For speaking `protocol` with the node called `peer`.
    ///
    /// # Errors
    /// A sentence, when the keys do not allow it.
    pub fn dialler(&self, peer: &str, protocol: &[u8]) -> Result<Arc<ClientConfig>, String> {
        let mut config = self.dial(peer)?;
        config.alpn_protocols = vec![protocol.to_vec()];
        Ok(Arc::new(config))
    }

    /// For being an NBD client of the node called `peer`. NBD has no name under TLS.
    ///
    /// # Errors
    /// A sentence, when the keys do not allow it.
    pub fn nbd_dialler(&self, peer: &str) -> Result<Arc<ClientConfig>, String> {
        self.dial(peer).map(Arc::new)
    }

    fn dial(&self, peer: &str) -> Result<ClientConfig, String> {
        let verifier = verifier(&self.own, Some(peer), &self.roots, &self.provider)?;
        let mut config = ClientConfig::builder_with_provider(Arc::clone(&self.provider))
            .with_protocol_versions(&[&TLS13])
            .expect("the provider has suites of TLS 1.3")
            .dangerous()
            .with_custom_certificate_verifier(verifier)
            .with_client_auth_cert(self.chain.clone(), self.key.clone_key())
            .map_err(|error| format!("the certificate cannot be used: {error}"))?;
        config.resumption = rustls::client::Resumption::disabled();
        // Names of nodes are no names of hosts.
        config.enable_sni = false;
        Ok(config)
    }

    /// The node that showed `certificates` in a handshake that succeeded.
    #[must_use]
    pub fn node_of(&self, certificates: Option<&[CertificateDer<'_>]>) -> Option<String> {
        let certificate = super::Certificate::read(certificates?.first()?)?;
        Distrust::of_node(certificate.holder, &certificate.subject, &self.own, None).ok()
    }

    /// What an operator must know at the moment `now`, if anything.
    #[must_use]
    pub fn warning(&self, now: i64) -> Option<String> {
        let (left, name) = ((self.not_after - now).div_euclid(DAY), &self.own.name);
        let renew = format!("run `repblk cert renew {name}` where the authority's key is, and copy the files here");
        let (whose, until) = (format!("the certificate of {} {name}", self.own.kind.title()), day_of(self.not_after));
        let what = "connections that stand go on, and no new one comes about";
        if now < self.not_before {
            return Some(format!(
                "{whose} is valid from {} on, and here it is {}: {what}; this host's clock is wrong, or was that of the host that made it",
                day_of(self.not_before),
                day_of(now)
            ));
        }
        match left {
            ..0 => return Some(format!("{whose} expired on {until}: {what}; {renew}")),
            0..WARNING_DAYS => return Some(format!("{whose} expires on {until}, in {left} days; {renew}")),
            _ => {}
        }
        let left = (self.authority_not_after - now).div_euclid(DAY);
        (left < WARNING_DAYS).then(|| {
            format!(
                "the authority of the cluster (ca.pem) expires on {}, and no link comes about after that: make another, see \
                 docs/security.md",
                day_of(self.authority_not_after)
            )
        })
    }
}

fn verifier(
    own: &Holder,
    name: Option<&str>,
    roots: &Arc<RootCertStore>,
    provider: &Arc<CryptoProvider>,
) -> Result<Arc<NodeVerifier>, String> {
    let clients = WebPkiClientVerifier::builder_with_provider(Arc::clone(roots), Arc::clone(provider)).build();
    let clients = clients.map_err(|error| format!("the authority cannot be used: {error}"))?;
    let algorithms = provider.signature_verification_algorithms;
    Ok(Arc::new(NodeVerifier::new(own.clone(), name, Arc::clone(roots), clients, algorithms)))
}

/// The suites of TLS 1.3, the quickest first where the processor knows AES.
pub(super) fn provider() -> CryptoProvider {
    use ring::cipher_suite::{TLS13_AES_128_GCM_SHA256, TLS13_AES_256_GCM_SHA384, TLS13_CHACHA20_POLY1305_SHA256};
    CryptoProvider {
        cipher_suites: vec![TLS13_AES_128_GCM_SHA256, TLS13_AES_256_GCM_SHA384, TLS13_CHACHA20_POLY1305_SHA256],
        ..ring::default_provider()
    }
}

/// The same, and one suite of TLS 1.2. It is the one whose keys last: there is no change of keys on the way in that version, and with AES-GCM a
/// connection would have to end after 2^24 records.
fn provider_of_clients() -> CryptoProvider {
    let mut provider = provider();
    provider.cipher_suites.push(ring::cipher_suite::TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256);
    provider
}

#[cfg(test)]
impl Keys {
    /// The certificate of `ring`, and trust in the authority of `keys`.
    pub(super) fn trusting(keys: &Self, ring: &Keyring) -> Self {
        Self { roots: Arc::clone(&keys.roots), ..Self::read(&ring.folder, &ring.own).expect("good") }
    }

    /// These keys with another certificate, however wrong.
    pub(super) fn with_certificate(keys: &Self, issued: &super::Issued) -> Self {
        use rustls_pki_types::pem::PemObject;
        let chain = vec![CertificateDer::from_pem_slice(issued.certificate.as_bytes()).expect("PEM")];
        let key = Zeroizing::new(PrivateKeyDer::from_pem_slice(issued.key.as_bytes()).expect("PEM"));
        let (not_before, authority_not_after) = (keys.not_before, keys.authority_not_after);
        let (own, provider, roots) = (keys.own.clone(), Arc::clone(&keys.provider), Arc::clone(&keys.roots));
        let verifier = verifier(&own, None, &roots, &provider).expect("good");
        let acceptor = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_protocol_versions(&[&TLS13])
            .expect("TLS 1.3")
            .with_client_cert_verifier(verifier)
            .with_single_cert(chain.clone(), key.clone_key())
            .expect("goes with its key");
        let (acceptor, secrets, not_after) = (Arc::new(acceptor), keys.secrets.clone(), keys.not_after);
        let nbd_acceptors = Default::default();
        Self {
            own,
            roots,
            chain,
            key,
            provider,
            acceptor,
            nbd_acceptors,
            secrets,
            not_after,
            not_before,
            authority_not_after,
        }
    }
}
