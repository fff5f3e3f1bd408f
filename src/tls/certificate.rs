//! What stands in a certificate. Reading it believes nothing: who signed it is judged elsewhere.

use std::net::IpAddr;

use rustls_pki_types::CertificateDer;
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

use super::holder::Holder;

/// What stands in a certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Certificate {
    /// Whom it belongs to; none in one that was made for something else.
    pub holder: Option<Holder>,
    /// What it calls its holder, for people.
    pub subject: String,
    /// Names and IP addresses of hosts that it is good for.
    pub hosts: Vec<String>,
    /// Valid from, in seconds since 1970.
    pub not_before: i64,
    /// Valid until, in seconds since 1970.
    pub not_after: i64,
}

fn address(bytes: &[u8]) -> Option<IpAddr> {
    let v4 = <[u8; 4]>::try_from(bytes).map(IpAddr::from);
    v4.or_else(|_| <[u8; 16]>::try_from(bytes).map(IpAddr::from)).ok()
}

impl Certificate {
    /// Reads a certificate; none when it is not readable.
    #[must_use]
    pub fn read(der: &CertificateDer<'_>) -> Option<Self> {
        let (_, parsed) = X509Certificate::from_der(der).ok()?;
        let names = parsed.subject_alternative_name().ok().flatten();
        let names: Vec<_> = names.into_iter().flat_map(|names| &names.value.general_names).collect();
        let uris = names.iter().filter_map(|name| match name {
            GeneralName::URI(uri) => Some(*uri),
            _ => None,
        });
        let hosts = names.iter().filter_map(|name| match name {
            GeneralName::DNSName(name) => Some((*name).to_owned()),
            GeneralName::IPAddress(bytes) => address(bytes).map(|address| address.to_string()),
            _ => None,
        });
        // Two holders in one certificate would be one too many to choose from.
        let mut holders = uris.filter_map(Holder::parse);
        let holder = holders.next().filter(|_| holders.next().is_none());
        Some(Self {
            holder,
            hosts: hosts.collect(),
            // It is shown to people, on terminals.
            subject: parsed.subject().to_string().replace(char::is_control, "?"),
            not_before: parsed.validity().not_before.timestamp(),
            not_after: parsed.validity().not_after.timestamp(),
        })
    }
}
