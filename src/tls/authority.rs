//! The authority of a cluster: a key that signs certificates. It is needed when a certificate is issued or renewed, and by no daemon.

use std::net::IpAddr;
use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    SanType,
};

use super::holder::{Holder, Kind};

/// Days that an authority is valid.
pub const AUTHORITY_DAYS: u32 = 3650;
/// Days that a certificate is valid when nothing else is said.
pub const NODE_DAYS: u32 = 730;
/// Validity begins so much before a certificate is made: the clocks of two hosts are never the same.
const BACKDATED: Duration = Duration::from_secs(86_400);
const DAY: Duration = Duration::from_secs(86_400);

/// An authority.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    certificate: String,
    key: String,
}

/// A certificate and its private key, as PEM.
pub struct Issued {
    /// The certificate.
    pub certificate: String,
    /// The key; whoever has it is the holder.
    pub key: String,
}

impl Authority {
    /// Makes the authority of the cluster called `cluster`, valid for so many days.
    ///
    /// # Errors
    /// What went wrong.
    pub fn create(cluster: &str, days: u32) -> Result<Self, rcgen::Error> {
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, format!("repblk authority of cluster {cluster}"));
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        limit(&mut params, SystemTime::now(), days);
        let certificate = params.self_signed(&key)?.pem();
        let pem = key.serialize_pem();
        Ok(Self { issuer: Issuer::new(params, key), certificate, key: pem })
    }

    /// The authority whose certificate and key these are, as PEM.
    ///
    /// # Errors
    /// When they are not readable.
    pub fn read(certificate: &str, key: &str) -> Result<Self, rcgen::Error> {
        let issuer = Issuer::from_ca_cert_pem(certificate, KeyPair::from_pem(key)?)?;
        Ok(Self { issuer, certificate: certificate.to_owned(), key: key.to_owned() })
    }

    /// The certificate, as PEM.
    #[must_use]
    pub fn certificate(&self) -> &str {
        &self.certificate
    }

    /// The private key, as PEM.
    #[must_use]
    pub fn key(&self) -> &str {
        &self.key
    }

    /// Makes a certificate of `holder`, valid from a day before `from` for so many days after it. Clients reach it as `hosts`: names or IP
    /// addresses.
    ///
    /// # Errors
    /// What went wrong.
    pub fn issue(
        &self,
        holder: &Holder,
        hosts: &[String],
        from: SystemTime,
        days: u32,
    ) -> Result<Issued, rcgen::Error> {
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, format!("{} {}", holder.kind.word(), holder.name));
        params.subject_alt_names = vec![SanType::URI(holder.to_string().try_into()?)];
        for host in hosts {
            params.subject_alt_names.push(match host.parse::<IpAddr>() {
                Ok(address) => SanType::IpAddress(address),
                Err(_) => SanType::DnsName(host.as_str().try_into()?),
            });
        }
        // TLS 1.3 has no use for the second, and QEMU insists on it.
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyEncipherment];
        params.extended_key_usages = match holder.kind {
            // etcd is a client of itself.
            Kind::Node | Kind::Server => vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth],
            Kind::Client => vec![ExtendedKeyUsagePurpose::ClientAuth],
        };
        params.use_authority_key_identifier_extension = true;
        limit(&mut params, from, days);
        let certificate = params.signed_by(&key, &self.issuer)?.pem();
        Ok(Issued { certificate, key: key.serialize_pem() })
    }
}

/// Without its key.
impl std::fmt::Debug for Authority {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Authority").field("certificate", &self.certificate).finish_non_exhaustive()
    }
}

fn limit(params: &mut CertificateParams, from: SystemTime, days: u32) {
    params.not_before = (from - BACKDATED).into();
    params.not_after = (from + DAY * days).into();
}
