//! Why the other side is not believed, or does not believe this one: sentences that name the cause and what to do.

use rustls::{AlertDescription, CertificateError, Error};

use super::date::day_of;
use super::holder::{Holder, Kind};
use crate::units::ClusterId;

/// What is wrong with a certificate that the authority did sign.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Distrust {
    /// It does not say whom it belongs to.
    #[error("its certificate ({subject}) names nobody of a cluster: it was not made by `repblk cert issue`")]
    Nobody {
        /// What it calls its holder.
        subject: String,
    },
    /// Of another cluster.
    #[error("its certificate belongs to {} {:?} of another cluster ({} instead of {expected})", .found.kind.word(), .found.name, .found.cluster)]
    Cluster {
        /// Its holder.
        found: Holder,
        /// Identity of this cluster.
        expected: ClusterId,
    },
    /// Of another kind: a client's where a node's must be.
    #[error("its certificate is that of the {} {:?}, which is no {}", .found.kind.title(), .found.name, .expected.title())]
    Kind {
        /// Its holder.
        found: Holder,
        /// What must be there.
        expected: Kind,
    },
    /// Of another one of that kind.
    #[error("its certificate is that of {} {:?}, and {} {expected:?} must be there", .found.kind.title(), .found.name, .found.kind.title())]
    Name {
        /// Its holder.
        found: Holder,
        /// Who must be there.
        expected: String,
    },
}

impl Distrust {
    /// Whether `holder` is the node called `name`, or any node when no name is given, of the same cluster as `own`.
    ///
    /// # Errors
    /// Why not.
    pub fn of_node(holder: Option<Holder>, subject: &str, own: &Holder, name: Option<&str>) -> Result<String, Self> {
        Self::of(holder, subject, (own.cluster, Kind::Node), name)
    }

    /// Whether `holder` is `own`.
    ///
    /// # Errors
    /// Why not.
    pub fn of_own(holder: Option<Holder>, subject: &str, own: &Holder) -> Result<String, Self> {
        Self::of(holder, subject, (own.cluster, own.kind), Some(&own.name))
    }

    fn of(
        holder: Option<Holder>,
        subject: &str,
        (cluster, kind): (ClusterId, Kind),
        name: Option<&str>,
    ) -> Result<String, Self> {
        let Some(found) = holder else { return Err(Self::Nobody { subject: subject.to_owned() }) };
        if found.cluster != cluster {
            return Err(Self::Cluster { found, expected: cluster });
        }
        if found.kind != kind {
            return Err(Self::Kind { found, expected: kind });
        }
        match name {
            Some(expected) if expected != found.name => Err(Self::Name { found, expected: expected.to_owned() }),
            _ => Ok(found.name),
        }
    }
}

/// Why a connection with TLS did not come about.
#[must_use]
pub fn sentence(error: &Error) -> String {
    match error {
        Error::InvalidCertificate(why) => certificate(why),
        Error::AlertReceived(alert) => alert_of(*alert),
        Error::NoCertificatesPresented => "it shows no certificate".to_owned(),
        Error::InvalidMessage(_) => {
            "it does not speak TLS: its configuration has no keys, or something else answers there".to_owned()
        }
        Error::PeerIncompatible(why) => format!("it speaks no version or cipher of TLS that is spoken here ({why:?})"),
        other => format!("TLS failed: {other}"),
    }
}

fn certificate(why: &CertificateError) -> String {
    let seconds = |time: &rustls_pki_types::UnixTime| i64::try_from(time.as_secs()).unwrap_or(i64::MAX);
    match why {
        CertificateError::ExpiredContext { time, not_after } => format!(
            "its certificate expired on {} (here it is {}): renew it with `repblk cert renew`, or set this host's clock",
            day_of(seconds(not_after)),
            day_of(seconds(time))
        ),
        CertificateError::NotValidYetContext { time, not_before } => format!(
            "its certificate is valid from {} on, and here it is {}: the clock of one of the two hosts is wrong",
            day_of(seconds(not_before)),
            day_of(seconds(time))
        ),
        CertificateError::UnknownIssuer | CertificateError::BadSignature => {
            "its certificate was not signed by the authority that is trusted here (ca.pem): another cluster's, or another \
             `repblk cert init`"
                .to_owned()
        }
        CertificateError::Other(other) => other.to_string(),
        CertificateError::InvalidPurposeContext { .. } | CertificateError::InvalidPurpose => {
            "its certificate was made for another purpose".to_owned()
        }
        other => format!("its certificate is not good: {other}"),
    }
}

fn alert_of(alert: AlertDescription) -> String {
    let why = match alert {
        AlertDescription::CertificateExpired => {
            "the other side says that this host's certificate has expired or is not valid yet: renew it with `repblk cert renew`, \
             or set the clocks"
        }
        AlertDescription::UnknownCA | AlertDescription::DecryptError => {
            "the other side does not trust the authority that signed this host's certificate: the two have different ca.pem"
        }
        AlertDescription::CertificateUnknown
        | AlertDescription::AccessDenied
        | AlertDescription::BadCertificate
        | AlertDescription::UnsupportedCertificate => {
            "the other side refuses this host's certificate; its log says why"
        }
        AlertDescription::CertificateRequired => "the other side wants a certificate",
        other => return format!("the other side ended TLS: {other:?}"),
    };
    why.to_owned()
}
