//! Whom a certificate belongs to.
//!
//! It stands in the certificate as an alternative name, `repblk://CLUSTER/node/NAME`, or with `client` or `server`, with the identity of the
//! cluster and not only its name. So neither the certificate of a client, nor of a server, nor one of another cluster passes for a node's, even where one
//! authority signed both.

use std::fmt;

use crate::units::ClusterId;

/// Whom a certificate belongs to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Holder {
    /// Its cluster.
    pub cluster: ClusterId,
    /// What it may do.
    pub kind: Kind,
    /// Its name.
    pub name: String,
}

/// What a holder may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// Be a node: link to the others, and serve.
    Node,
    /// Be a client of NBD.
    Client,
    /// Be a server that nodes visit: etcd.
    Server,
}

impl Kind {
    /// The word for it.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Node => "node",
            Self::Client => "client",
            Self::Server => "server",
        }
    }

    /// What people call it.
    #[must_use]
    pub fn title(self) -> &'static str {
        match self {
            Self::Node => "node",
            Self::Client => "NBD client",
            Self::Server => "server",
        }
    }
}

impl Holder {
    /// A node.
    #[must_use]
    pub fn node(cluster: ClusterId, name: &str) -> Self {
        Self { cluster, kind: Kind::Node, name: name.to_owned() }
    }

    /// Reads what [`fmt::Display`] writes; none when it is anything else.
    #[must_use]
    pub fn parse(uri: &str) -> Option<Self> {
        let mut parts = uri.strip_prefix("repblk://")?.split('/');
        let (cluster, kind, name) = (parts.next()?, parts.next()?, parts.next()?);
        let kind = [Kind::Node, Kind::Client, Kind::Server].into_iter().find(|known| known.word() == kind)?;
        let cluster = ClusterId(u128::from_str_radix(cluster, 16).ok()?);
        let holder = Self { cluster, kind, name: name.to_owned() };
        // One form only.
        (parts.next().is_none() && !name.is_empty() && holder.to_string() == uri).then_some(holder)
    }
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "repblk://{}/{}/{}", self.cluster, self.kind.word(), self.name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_holder_has_one_form() {
        let holder = Holder::node(ClusterId(0xabc), "alpha");
        let uri = holder.to_string();
        assert_eq!(uri, format!("repblk://{:032x}/node/alpha", 0xabc));
        assert_eq!(Holder::parse(&uri), Some(holder));
        for wrong in [
            uri.to_uppercase(),
            uri.replace("/alpha", "/"),
            uri.replace("/alpha", "/alpha/x"),
            uri.replace("node", "nodes"),
            uri.replace("//0", "//"),
            uri.replace("//0", "//+"),
            uri.replace("repblk", "https"),
            String::new(),
        ] {
            assert_eq!(Holder::parse(&wrong), None, "{wrong}");
        }
    }
}
