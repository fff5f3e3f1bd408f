//! The arbiter's record: who may write, at which term, and which copies hold every acknowledged write.
//!
//! It is a plain JSON text under one key for each volume, changed only by compare-and-swap on the revision that the arbiter
//! counts. Nothing in it ends by itself: no lease of the arbiter's is relied on.
//!
//! ```json
//! {"version":1,"cluster":"…32 hex…","volume":"…","writer":"…disk instance…","writer_name":"a","left_by":null,"term":7,
//!  "in_sync":["…","…"],"renewals":3120,"maintenance":false,"stamp":{"by":"…","incarnation":"…16 hex…","serial":88},"history":[…]}
//! ```
//! `in_sync` names disk instances and never hosts, so that a replaced, blank or cloned disk is not trusted. `stamp` says whose change
//! it was; a writer that does not know how its change ended reads it there.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use crate::failover::history::{History, NAME_LEN_MAX};
use crate::units::{ClusterId, DiskInstance, Term, VolumeId};

/// The version this code writes, and the only one it reads.
const VERSION: u16 = 1;
/// Longest text of a record, in bytes.
pub const RECORD_LEN_MAX: usize = 32 << 10;
/// Most copies a record may count in sync.
pub const COPIES_MAX: usize = 8;

/// Number of a change of the record, counted by the arbiter. 0: there is no record.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct Revision(pub u64);

/// Whose change made the record what it is.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct Stamp {
    /// The copy whose node changed it.
    pub by: DiskInstance,
    /// Drawn when that node's daemon started.
    pub incarnation: u64,
    /// Counted from 1 in each incarnation.
    pub serial: u64,
}

/// The record of one volume.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Record {
    /// The cluster it belongs to.
    pub cluster: ClusterId,
    /// The volume it belongs to.
    pub volume: VolumeId,
    /// The copy whose node may acknowledge writes; none after the role was given up in order. It is not in sync itself when its disk
    /// failed and it serves from its peer's.
    pub writer: Option<DiskInstance>,
    /// Its node's name, for people.
    pub writer_name: String,
    /// With no writer: the copy that gave the role up. The other one goes first.
    pub left_by: Option<DiskInstance>,
    /// The term of the writer. Never falls.
    pub term: Term,
    /// Copies that hold every acknowledged write; at least one.
    pub in_sync: BTreeSet<DiskInstance>,
    /// Counts the writer's signs of life. Only its changing means something.
    pub renewals: u64,
    /// Nothing is done automatically.
    pub maintenance: bool,
    /// Whose change this is.
    pub stamp: Stamp,
    /// The last changes of the writer.
    pub history: History,
}

/// A text that is no record of this volume.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum RecordError {
    /// Longer than a record may be.
    #[error("the arbiter's record is {0} bytes long, more than {RECORD_LEN_MAX}; it was not written by repblk")]
    TooLong(usize),
    /// Not the JSON it should be.
    #[error("the arbiter's record cannot be read: {0}; it was not written by repblk, or by a newer version")]
    Malformed(String),
    /// Written by another version.
    #[error("the arbiter's record is of version {0}, this repblk knows version {VERSION}; upgrade this node")]
    Version(u16),
    /// A field is beyond its bound.
    #[error("the arbiter's record is not sound: {0}; look at it before anything is promoted")]
    Unsound(&'static str),
    /// It belongs to something else.
    #[error("the arbiter's record belongs to another {0}; two volumes use one key")]
    Foreign(&'static str),
}

/// The record as it stands in the text. Numbers of 128 bits and random ones are hexadecimal texts.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Text {
    version: u16,
    cluster: String,
    volume: String,
    writer: Option<String>,
    writer_name: String,
    left_by: Option<String>,
    term: u64,
    in_sync: Vec<String>,
    renewals: u64,
    maintenance: bool,
    stamp: StampText,
    history: History,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct StampText {
    by: String,
    incarnation: String,
    serial: u64,
}

/// The version alone, so that a newer record is known for what it is.
#[derive(Deserialize)]
struct VersionOnly {
    version: u16,
}

fn hex(text: &str) -> Result<u128, RecordError> {
    let digits = text.len() == 32 && text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
    let value = if digits { u128::from_str_radix(text, 16).ok() } else { None };
    value.ok_or(RecordError::Unsound("an identity is not 32 hexadecimal digits"))
}

fn instance(text: &str) -> Result<DiskInstance, RecordError> {
    let instance = DiskInstance(hex(text)?);
    if instance.is_some() { Ok(instance) } else { Err(RecordError::Unsound("a copy without an identity")) }
}

impl Record {
    /// The text for the arbiter; at most [`RECORD_LEN_MAX`] bytes.
    ///
    /// # Panics
    /// When the record is not [sound](Self::check): this node would write what no node reads.
    #[must_use]
    pub fn encode(&self) -> String {
        self.check().expect("only sound records are written");
        let text = Text {
            version: VERSION,
            cluster: self.cluster.to_string(),
            volume: self.volume.to_string(),
            writer: self.writer.map(|writer| writer.to_string()),
            writer_name: self.writer_name.clone(),
            left_by: self.left_by.map(|by| by.to_string()),
            term: self.term.0,
            in_sync: self.in_sync.iter().map(DiskInstance::to_string).collect(),
            renewals: self.renewals,
            maintenance: self.maintenance,
            stamp: StampText {
                by: self.stamp.by.to_string(),
                incarnation: format!("{:016x}", self.stamp.incarnation),
                serial: self.stamp.serial,
            },
            history: self.history.clone(),
        };
        serde_json::to_string(&text).expect("texts and numbers have a JSON form")
    }

    /// Reads a text.
    ///
    /// # Errors
    /// When it is no sound record of this version.
    pub fn decode(text: &str) -> Result<Self, RecordError> {
        if text.len() > RECORD_LEN_MAX {
            return Err(RecordError::TooLong(text.len()));
        }
        let malformed = |error: serde_json::Error| RecordError::Malformed(error.to_string());
        let VersionOnly { version } = serde_json::from_str(text).map_err(malformed)?;
        if version != VERSION {
            return Err(RecordError::Version(version));
        }
        let text: Text = serde_json::from_str(text).map_err(malformed)?;
        let incarnation = u64::from_str_radix(&text.stamp.incarnation, 16)
            .map_err(|_| RecordError::Unsound("an incarnation is not hexadecimal"))?;
        let in_sync = text.in_sync.iter().map(|copy| instance(copy)).collect::<Result<BTreeSet<_>, _>>()?;
        if in_sync.len() != text.in_sync.len() {
            return Err(RecordError::Unsound("a copy is named twice"));
        }
        let record = Self {
            cluster: ClusterId(hex(&text.cluster)?),
            volume: VolumeId(hex(&text.volume)?),
            writer: text.writer.as_deref().map(instance).transpose()?,
            writer_name: text.writer_name,
            left_by: text.left_by.as_deref().map(instance).transpose()?,
            term: Term(text.term),
            in_sync,
            renewals: text.renewals,
            maintenance: text.maintenance,
            stamp: Stamp { by: DiskInstance(hex(&text.stamp.by)?), incarnation, serial: text.stamp.serial },
            history: text.history,
        };
        record.check()?;
        Ok(record)
    }

    /// Checks the bounds and what must always be the case.
    ///
    /// # Errors
    /// When something is not as it must be.
    pub fn check(&self) -> Result<(), RecordError> {
        let unsound = |what| Err(RecordError::Unsound(what));
        if self.in_sync.is_empty() || self.in_sync.len() > COPIES_MAX {
            return unsound("it counts no copy in sync, or too many");
        }
        if self.writer.is_some() == self.left_by.is_some() {
            return unsound("it names both a writer and who left, or neither");
        }
        if self.writer_name.len() > NAME_LEN_MAX || !self.history.is_bounded() {
            return unsound("a text is too long");
        }
        if self.term == Term(0) {
            return unsound("it has no term");
        }
        Ok(())
    }

    /// Checks that it belongs to the volume.
    ///
    /// # Errors
    /// [`RecordError::Foreign`] when it does not.
    pub fn belongs_to(&self, cluster: ClusterId, volume: VolumeId) -> Result<(), RecordError> {
        if self.cluster != cluster {
            return Err(RecordError::Foreign("cluster"));
        }
        if self.volume != volume {
            return Err(RecordError::Foreign("volume"));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::failover::history::{Cause, EPISODES_MAX, EVIDENCE_LEN_MAX, Episode};
    use proptest::prelude::*;

    fn record() -> Record {
        Record {
            cluster: ClusterId(0xc1),
            volume: VolumeId(0x70),
            writer: Some(DiskInstance(1)),
            writer_name: "a".into(),
            left_by: None,
            term: Term(7),
            in_sync: [DiskInstance(1), DiskInstance(2)].into(),
            renewals: 9,
            maintenance: false,
            stamp: Stamp { by: DiskInstance(1), incarnation: u64::MAX, serial: 3 },
            history: History::default(),
        }
    }

    #[test]
    fn the_largest_record_fits_and_comes_back() {
        let mut record = record();
        record.in_sync = (0..8).map(|i| DiskInstance(u128::MAX - i)).collect();
        record.writer = Some(DiskInstance(u128::MAX));
        record.writer_name = "\u{1}".repeat(NAME_LEN_MAX);
        (record.term, record.renewals, record.stamp.serial) = (Term(u64::MAX), u64::MAX, u64::MAX);
        for _ in 0..EPISODES_MAX {
            record.history.add(Episode {
                at_unix_ms: u64::MAX,
                term: u64::MAX,
                to: "n".repeat(NAME_LEN_MAX),
                cause: Cause::Automatic,
                rule: "r".repeat(NAME_LEN_MAX),
                evidence: "e".repeat(EVIDENCE_LEN_MAX),
            });
        }
        let text = record.encode();
        assert!(text.len() <= RECORD_LEN_MAX, "{} bytes", text.len());
        assert_eq!(Record::decode(&text), Ok(record));
    }

    #[test]
    fn what_is_not_sound_is_refused_with_a_reason() {
        let good = record().encode();
        for (from, to, why) in [
            ("\"version\":1", "\"version\":2", "version 2"),
            ("\"term\":7", "\"term\":0", "no term"),
            ("\"writer_name\":", "\"writer_nome\":", "cannot be read"),
            ("\"left_by\":null", "\"left_by\":\"00000000000000000000000000000002\"", "both a writer"),
            ("\"00000000000000000000000000000002\"", "\"2\"", "32 hexadecimal"),
            ("00000000000000000000000000000002\"]", "00000000000000000000000000000001\"]", "twice"),
            (
                "\"in_sync\":[\"00000000000000000000000000000001\",\"00000000000000000000000000000002\"]",
                "\"in_sync\":[]",
                "no copy in sync",
            ),
        ] {
            assert!(good.contains(from), "{from} is in {good}");
            let error = Record::decode(&good.replacen(from, to, 1)).expect_err(to).to_string();
            assert!(error.contains(why), "{to}: {error}");
        }
        assert_eq!(record().belongs_to(ClusterId(0xc1), VolumeId(1)), Err(RecordError::Foreign("volume")));
    }

    #[test]
    fn version_one_reads_as_it_was_written() {
        let text = r#"{"version":1,"cluster":"000000000000000000000000000000c1","volume":"00000000000000000000000000000070","writer":"00000000000000000000000000000001","writer_name":"a","left_by":null,"term":7,"in_sync":["00000000000000000000000000000001","00000000000000000000000000000002"],"renewals":9,"maintenance":false,"stamp":{"by":"00000000000000000000000000000001","incarnation":"ffffffffffffffff","serial":3},"history":[]}"#;
        assert_eq!(Record::decode(text), Ok(record()));
        assert_eq!(record().encode(), text);
    }

    proptest! {
        #[test]
        fn arbitrary_text_is_refused(text in ".{0,400}") {
            prop_assert!(Record::decode(&text).is_err());
        }

        #[test]
        fn a_changed_byte_is_refused_or_sound(at in 0usize..300, byte in 32u8..127) {
            let mut bytes = record().encode().into_bytes();
            bytes[at] = byte;
            if let Ok(record) = Record::decode(std::str::from_utf8(&bytes).expect("ASCII")) {
                prop_assert!(record.check().is_ok());
            }
        }
    }
}
