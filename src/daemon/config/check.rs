//! What must fit together: nodes with each other, volumes with nodes.

use std::collections::BTreeMap;
use std::path::Path;

use super::reader::{At, Document};
use super::{MetadataPlace, NODES_MAX, NbdAddress, Node, VOLUMES_MAX, VolumeSpec, suggest};

/// Names and addresses are used once, and every node is on every heartbeat path.
pub(super) fn nodes(doc: &Document<'_>, nodes: &[At<Node>]) {
    if nodes.is_empty() {
        doc.problem(0, "there is no node; write a table headed [[node]] for each of the two nodes");
    }
    if let Some(extra) = nodes.get(NODES_MAX) {
        doc.problem(extra.line, format!("there are {} nodes; at most {NODES_MAX} are possible", nodes.len()));
    }
    let mut names = Once::new(doc, "the name of the node");
    let mut addresses = Once::new(doc, "the TCP address");
    let mut datagrams = Once::new(doc, "the heartbeat address");
    let mut sockets = Once::new(doc, "the Unix socket");
    for At { value: node, line } in nodes {
        names.see(&node.name, *line);
        if node.data.port() != 0 {
            addresses.see(&node.data.to_string(), *line);
        }
        if let Some(agent) = node.agent {
            addresses.see(&agent.to_string(), *line);
        }
        for address in &node.heartbeat {
            datagrams.see(&address.to_string(), *line);
        }
        sockets.see(&node.control.display().to_string(), *line);
        for nbd in &node.nbd {
            match nbd {
                NbdAddress::Unix(path) => sockets.see(&path.display().to_string(), *line),
                // A wildcard may stand in the file of every node: each listens on its own host.
                NbdAddress::Tcp(address) if address.ip().is_unspecified() => {}
                NbdAddress::Tcp(address) => addresses.see(&address.to_string(), *line),
            }
        }
    }
    let paths = nodes.iter().map(|node| node.value.heartbeat.len()).max().unwrap_or(0);
    for At { value: node, line } in nodes.iter().filter(|node| node.value.heartbeat.len() != paths) {
        doc.problem(
            *line,
            format!(
                "node {:?} has {} heartbeat addresses and another node has {paths}; the n-th address of each node is its \
                 end of the n-th path, so give every node as many",
                node.name,
                node.heartbeat.len()
            ),
        );
    }
}

/// Every copy is on a node that exists, no device is used twice, and there is something to mirror.
pub(super) fn volumes(doc: &Document<'_>, nodes: &[At<Node>], volumes: &[At<VolumeSpec>]) {
    if volumes.is_empty() {
        doc.problem(0, "there is no volume; write a table headed [[volume]]");
    }
    if let Some(extra) = volumes.get(VOLUMES_MAX) {
        doc.problem(extra.line, format!("there are {} volumes; at most {VOLUMES_MAX} are possible", volumes.len()));
    }
    let mut names = Once::new(doc, "the name of the volume");
    let mut disks = Once::new(doc, "the device or metadata file");
    for At { value: volume, line } in volumes {
        names.see(&volume.name, *line);
        copies_are_on_nodes(doc, nodes, volume, *line);
        for copy in &volume.copies {
            let on_node = |path: &Path| format!("{}:{}", copy.node, path.display());
            disks.see(&on_node(&copy.device), *line);
            if let MetadataPlace::External(path) = &copy.metadata {
                disks.see(&on_node(path), *line);
            }
        }
    }
}

fn copies_are_on_nodes(doc: &Document<'_>, nodes: &[At<Node>], volume: &VolumeSpec, line: usize) {
    let known = || nodes.iter().map(|node| node.value.name.as_str());
    for copy in volume.copies.iter().filter(|copy| known().all(|name| name != copy.node)) {
        let hint = match suggest::nearest(&copy.node, known()) {
            Some(name) => format!("did you mean [volume.on.{name}]?"),
            None => format!("the nodes are {}", known().collect::<Vec<_>>().join(", ")),
        };
        doc.problem(
            line,
            format!("volume {:?} has a copy on node {:?}, which is not there; {hint}", volume.name, copy.node),
        );
    }
    if volume.copies.len() < 2 {
        let without: Vec<_> = known().filter(|name| volume.copy_on(name).is_none()).collect();
        doc.problem(
            line,
            format!(
                "volume {:?} has {} of the 2 copies it needs; write [volume.on.NODE] with its device for each of two nodes \
                 (without a copy: {})",
                volume.name,
                volume.copies.len(),
                without.join(", ")
            ),
        );
    }
    if volume.copies.len() > 2 {
        let what = format!(
            "volume {:?} has {} copies; this version mirrors between two nodes",
            volume.name,
            volume.copies.len()
        );
        doc.problem(line, what);
    }
}

/// Things that may be there only once.
struct Once<'d> {
    doc: &'d Document<'d>,
    what: &'static str,
    seen: BTreeMap<String, usize>,
}

impl<'d> Once<'d> {
    fn new(doc: &'d Document<'d>, what: &'static str) -> Self {
        Self { doc, what, seen: BTreeMap::new() }
    }

    fn see(&mut self, thing: &str, line: usize) {
        if thing.is_empty() {
            return;
        }
        if let Some(first) = self.seen.insert(thing.to_owned(), line) {
            let what = format!(
                "{} {thing} is used twice, first in the table at line {first}; each must be another",
                self.what
            );
            self.doc.problem(line, what);
        }
    }
}
