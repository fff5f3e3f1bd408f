//! Who may have a volume: `allow` and `allow_certificates` of a `[[volume]]`.

use super::parse::is_name;
use super::reader::{At, Document, Section};
use super::{NbdTls, NbdTlsMode, Security, VolumeSpec};
use crate::daemon::admission::{AllowList, Prefix};

/// Longest list: each client that asks is compared with all of it.
const ENTRIES_MAX: usize = 256;

/// Reads the two lists of a volume.
pub(super) fn allow(section: &mut Section<'_>) -> AllowList {
    let addresses = list(section, "allow", "it must be a list of addresses such as [\"10.0.2.0/24\"]", Prefix::parse);
    let right = "it must be a list of names such as [\"db1\"]";
    let certificates = list(section, "allow_certificates", right, |name| match is_name(name) {
        true => Ok(name.to_owned()),
        false => Err(format!("{name:?} is no name that `repblk cert issue` gives")),
    });
    AllowList { addresses, certificates }
}

fn list<T: PartialEq>(
    section: &mut Section<'_>,
    key: &'static str,
    right: &str,
    parse: impl Fn(&str) -> Result<T, String>,
) -> Vec<T> {
    let line = section.line;
    let Some(texts) = section.list(key, right, |text| Some(text.to_owned())) else { return Vec::new() };
    if texts.is_empty() {
        let what = format!("{key} = [] would keep everybody out; name who may have the volume, or take the key away");
        section.problem(line, what);
    }
    if texts.len() > ENTRIES_MAX {
        let what = format!("{key} has {} entries, at most {ENTRIES_MAX} are possible; use prefixes", texts.len());
        section.problem(line, what);
    }
    let mut found = Vec::new();
    for At { value: text, line } in texts {
        match parse(&text) {
            Ok(entry) if found.contains(&entry) => section.problem(line, format!("{key} names {text:?} twice")),
            Ok(entry) => found.push(entry),
            Err(why) => section.problem(line, format!("{key}: {why}")),
        }
    }
    found
}

/// A list of certificates is one that somebody can be on: clients can show theirs only over TLS.
pub(super) fn fits_keys(doc: &Document<'_>, volumes: &[At<VolumeSpec>], security: &Security, nbd: NbdTls) {
    let why = match (security.keys(), nbd.mode) {
        (None, _) => "there are no keys; write keys = \"FOLDER\" in [security]",
        (_, Some(NbdTlsMode::Off)) => "clients do not speak TLS with nbd_tls = \"off\"; write \"require\"",
        _ => return,
    };
    for At { value: volume, line } in volumes.iter().filter(|at| !at.value.allow.certificates.is_empty()) {
        doc.problem(*line, format!("volume {:?}: allow_certificates would admit nobody, since {why}", volume.name));
    }
}
