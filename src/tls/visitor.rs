//! How this node speaks TLS with a server that is no node of the cluster: it is known by its host's name, and by an authority of its own.

use std::path::PathBuf;
use std::sync::Arc;

use rustls::version::TLS13;
use rustls::{ClientConfig, RootCertStore};

use super::folder::{Folder, FolderError, certificates, private_key, wrong};
use super::keyring::provider;

/// The files of it, all PEM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Visitor {
    /// Certificates of the authorities that the server's may be of.
    pub authority: PathBuf,
    /// This node's certificate for that server, and its private key, which nobody else may read.
    pub own: Option<(PathBuf, PathBuf)>,
}

impl Visitor {
    /// With the keys of node `name` in `folder`: the server's certificate is of the cluster's authority, made for a server.
    #[must_use]
    pub fn of_node(folder: &Folder, name: &str) -> Self {
        let own = Some((folder.certificate_file(name), folder.key_file(name)));
        Self { authority: folder.authority_file(), own }
    }

    /// Reads the files, for one connection: what was renewed is used for the next one.
    ///
    /// # Errors
    /// What is missing or wrong, and in which file.
    pub fn config(&self) -> Result<Arc<ClientConfig>, FolderError> {
        let mut roots = RootCertStore::empty();
        for root in certificates(&self.authority)? {
            roots.add(root).map_err(|error| wrong(&self.authority, error.to_string()))?;
        }
        let config = ClientConfig::builder_with_provider(Arc::new(provider()))
            .with_protocol_versions(&[&TLS13])
            .expect("the provider has suites of TLS 1.3")
            .with_root_certificates(roots);
        let mut config = match &self.own {
            None => config.with_no_client_auth(),
            Some((certificate, key)) => config
                .with_client_auth_cert(certificates(certificate)?, private_key(key)?)
                .map_err(|error| wrong(certificate, format!("does not go with its key: {error}")))?,
        };
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Arc::new(config))
    }
}
