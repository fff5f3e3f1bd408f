//! Who may have a volume: lists of addresses and of names in certificates. Pure.

use std::net::IpAddr;

use super::prefix::Prefix;

/// Who may have a volume over TCP. A list that is empty keeps nobody out; where both are there, both must admit a client.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct AllowList {
    /// Addresses.
    pub addresses: Vec<Prefix>,
    /// Names in the certificates of clients or nodes.
    pub certificates: Vec<String>,
}

/// Who asks for a volume, as far as it is known.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(in crate::daemon) struct Caller {
    /// Where it comes from; none: over a Unix socket, whose permissions have judged it.
    pub(in crate::daemon) address: Option<IpAddr>,
    /// The name in the certificate that it showed.
    pub(in crate::daemon) certificate: Option<String>,
}

/// Why a caller may not have a volume. Each sentence names its rule and what to change.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(in crate::daemon) enum NotAllowed {
    /// Its address is on no list.
    #[error(
        "refused by the rule address-not-allowed: {address} is no address that may have volume {volume}; connect from one that may, \
         or add it to `allow` of that volume on every node"
    )]
    Address { address: IpAddr, volume: String },
    /// It has shown no certificate.
    #[error(
        "refused by the rule certificate-missing: volume {volume} is for holders of certain certificates, and none was shown; speak \
         TLS with a certificate that `repblk cert issue` made and `allow_certificates` of that volume names"
    )]
    NoCertificate { volume: String },
    /// It is somebody else.
    #[error(
        "refused by the rule certificate-not-allowed: the certificate is that of {name:?}, who may not have volume {volume}; use \
         another, or add the name to `allow_certificates` of that volume on every node"
    )]
    Certificate { name: String, volume: String },
}

impl AllowList {
    /// Whether `caller` may have the volume called `volume`, whose list this is.
    ///
    /// # Errors
    /// Why not.
    pub(in crate::daemon) fn judge(&self, caller: &Caller, volume: &str) -> Result<(), NotAllowed> {
        let volume = || volume.to_owned();
        let Some(address) = caller.address else { return Ok(()) };
        if !self.addresses.is_empty() && !self.addresses.iter().any(|prefix| prefix.contains(address)) {
            return Err(NotAllowed::Address { address: address.to_canonical(), volume: volume() });
        }
        if self.certificates.is_empty() {
            return Ok(());
        }
        match &caller.certificate {
            None => Err(NotAllowed::NoCertificate { volume: volume() }),
            Some(name) if self.certificates.contains(name) => Ok(()),
            Some(name) => Err(NotAllowed::Certificate { name: name.clone(), volume: volume() }),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn caller() -> impl Strategy<Value = Caller> {
        let address = proptest::option::of((0u8..4).prop_map(|end| IpAddr::from([10, 0, 0, end])));
        let certificate = proptest::option::of((0u8..4).prop_map(|n| format!("db{n}")));
        (address, certificate).prop_map(|(address, certificate)| Caller { address, certificate })
    }

    fn list() -> impl Strategy<Value = AllowList> {
        let prefix = (0u8..4).prop_map(|end| Prefix::parse(&format!("10.0.0.{end}")).expect("right"));
        let addresses = proptest::collection::vec(prefix, 0..3);
        let certificates = proptest::collection::vec((0u8..4).prop_map(|n| format!("db{n}")), 0..3);
        (addresses, certificates).prop_map(|(addresses, certificates)| AllowList { addresses, certificates })
    }

    proptest! {
        /// Each list that is there is a condition of its own, and a Unix socket has none.
        #[test]
        fn a_caller_is_admitted_by_every_list_that_is_there(list in list(), caller in caller()) {
            let by_address = list.addresses.is_empty()
                || caller.address.is_some_and(|address| list.addresses.iter().any(|prefix| prefix.contains(address)));
            let by_name = list.certificates.is_empty()
                || list.certificates.iter().any(|name| Some(name) == caller.certificate.as_ref());
            let expected = caller.address.is_none() || by_address && by_name;
            prop_assert_eq!(list.judge(&caller, "mes").is_ok(), expected);
        }

        /// One name more on a list that is not empty lets nobody out who was in, and nobody in but its bearer.
        #[test]
        fn a_longer_list_admits_its_newcomer_alone(list in list(), caller in caller(), n in 0u8..4) {
            prop_assume!(!list.certificates.is_empty());
            let name = format!("db{n}");
            let mut longer = list.clone();
            longer.certificates.push(name.clone());
            let (before, after) = (list.judge(&caller, "mes").is_ok(), longer.judge(&caller, "mes").is_ok());
            prop_assert!(after || !before);
            prop_assert!(before == after || caller.certificate == Some(name));
        }
    }

    #[test]
    fn every_refusal_names_its_rule_and_what_to_change() {
        let list = AllowList {
            addresses: vec![Prefix::parse("10.0.2.0/24").expect("right")],
            certificates: vec!["db1".to_owned()],
        };
        let refused = |address: [u8; 4], certificate: Option<&str>| {
            let caller = Caller { address: Some(address.into()), certificate: certificate.map(str::to_owned) };
            list.judge(&caller, "mes").expect_err("is refused").to_string()
        };
        for (said, rule, change) in [
            (refused([10, 0, 3, 1], Some("db1")), "address-not-allowed", "add it to `allow` of that volume"),
            (refused([10, 0, 2, 1], None), "certificate-missing", "`repblk cert issue`"),
            (refused([10, 0, 2, 1], Some("db2")), "certificate-not-allowed", "add the name to `allow_certificates`"),
        ] {
            assert!(said.contains(&format!("by the rule {rule}: ")) && said.contains(change), "{said}");
            assert!(said.len() < 400, "NBD cuts what is longer than 4096 bytes: {said}");
        }
    }
}
