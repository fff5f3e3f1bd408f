//! A certificate, and whom it belongs to. Only one that the authority signed is read for that; it is read all the same as if anybody had made it.
//!
//! Input: the certificate in DER.

use super::notes::note;
use repblk::tls::{Certificate, Distrust, Holder};
use repblk::units::ClusterId;
use rustls_pki_types::CertificateDer;

pub fn run(data: &[u8]) {
    let Some(certificate) = Certificate::read(&CertificateDer::from(data)) else { return note("unreadable") };
    assert!(!certificate.subject.contains(char::is_control), "it is shown as it is: {:?}", certificate.subject);
    if let Some(holder) = &certificate.holder {
        assert!(!holder.name.is_empty() && !holder.name.contains('/'), "{holder:?}");
        assert_eq!(Holder::parse(&holder.to_string()).as_ref(), Some(holder), "a holder has one form");
        note((holder.kind.word(), holder.name.len().min(4)));
    }
    let own = Holder::node(ClusterId(7), "alpha");
    let (holder, subject) = (certificate.holder.clone(), &certificate.subject);
    match Distrust::of_node(certificate.holder, subject, &own, Some("beta")) {
        Ok(_) => assert_eq!(holder, Some(Holder::node(ClusterId(7), "beta")), "nobody else passes for beta"),
        Err(why) => {
            note(std::mem::discriminant(&why));
            assert!(!why.to_string().contains(char::is_control), "{why}");
        }
    }
    note((certificate.hosts.len().min(4), certificate.not_before < certificate.not_after));
}
