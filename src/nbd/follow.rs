//! What a node tells a client that follows a volume across failovers.
//!
//! A volume `mes` is also to be had as the export `mes/follow`. It is the same device; but its description says, as one line
//! of text, what the served data is and where it comes from, and its connections end before anything is acknowledged
//! under another generation than the one they were told. So a client always knows under which lineage it
//! was given its acknowledgements, and can tell whether another node's copy has them. No part of NBD is changed: any
//! client may ask for the export and read the line (`nbdinfo` shows it), and a client that can use only simple replies,
//! such as the Linux kernel, can follow.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use crate::condition::Mode;
use crate::generation::{HISTORY_LEN, Lineage};
use crate::units::{ClusterId, DiskInstance, GenerationId, Term, VolumeId};

/// What follows a volume's name in the name of the export for followers. No volume's name has a slash.
pub const FOLLOW_SUFFIX: &str = "/follow";

/// First word of the line; the number is that of its version.
const HEAD: &str = "repblk-follow-1";

/// What a primary serves, and under which rights.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Standing {
    /// The cluster's name.
    pub cluster_name: String,
    /// The node that serves.
    pub node: String,
    /// The cluster.
    pub cluster: ClusterId,
    /// The volume.
    pub volume: VolumeId,
    /// The copy that is served.
    pub instance: DiskInstance,
    /// The descent of its data.
    pub lineage: Lineage,
    /// The period of primaryship.
    pub term: Term,
    /// Every write acknowledged from this term on is on the copy; of earlier ones that no flush covered some may be missing.
    pub whole_since: Term,
    /// When a write is acknowledged.
    pub mode: Mode,
}

/// The name of the export for followers of `volume`.
#[must_use]
pub fn follow_name(volume: &str) -> String {
    format!("{volume}{FOLLOW_SUFFIX}")
}

impl fmt::Display for Standing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let history: Vec<String> =
            self.lineage.history.iter().filter(|id| id.is_some()).map(ToString::to_string).collect();
        write!(
            f,
            "{HEAD} cluster={} cluster-id={} volume-id={} node={} instance={} mode={} term={} whole-since={} generation={} \
             history={}",
            self.cluster_name,
            self.cluster,
            self.volume,
            self.node,
            self.instance,
            self.mode,
            self.term,
            self.whole_since,
            self.lineage.current,
            history.join(",")
        )
    }
}

/// A line that is none of ours, or lacks something.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("the server does not say what it serves ({0}); it is no repblk, or one of another version")]
pub struct NotAStanding(String);

impl FromStr for Standing {
    type Err = NotAStanding;

    /// Reads a line. Words that are not known are passed over: a later version may say more.
    fn from_str(line: &str) -> Result<Self, NotAStanding> {
        let mut words = line.split_ascii_whitespace();
        if words.next() != Some(HEAD) {
            return Err(NotAStanding(format!("its description does not begin with {HEAD}")));
        }
        let words: BTreeMap<&str, &str> = words.filter_map(|word| word.split_once('=')).collect();
        let word =
            |name: &str| words.get(name).copied().ok_or_else(|| NotAStanding(format!("its description has no {name}")));
        let bad = |name: &str| NotAStanding(format!("its description has a wrong {name}"));
        // Names are shown to people, on terminals.
        let shown = |name: &str| match word(name)? {
            text if text.contains(char::is_control) => Err(bad(name)),
            text => Ok(text.to_owned()),
        };
        let number = |name: &str| word(name)?.parse().map_err(|_| bad(name));
        let wide = |name: &str| u128::from_str_radix(word(name)?, 16).map_err(|_| bad(name));
        let generation = |text: &str| u64::from_str_radix(text, 16).map(GenerationId).map_err(|_| bad("generation"));
        let mut lineage = Lineage::starting_with(generation(word("generation")?)?);
        let history = word("history")?;
        for (at, text) in history.split(',').filter(|text| !text.is_empty()).enumerate() {
            *lineage.history.get_mut(at).ok_or_else(|| bad("history"))? = generation(text)?;
        }
        let mode = word("mode")?;
        let mode = [Mode::Sync, Mode::SemiSync, Mode::Async].into_iter().find(|known| known.word() == mode);
        Ok(Self {
            cluster_name: shown("cluster")?,
            node: shown("node")?,
            cluster: ClusterId(wide("cluster-id")?),
            volume: VolumeId(wide("volume-id")?),
            instance: DiskInstance(wide("instance")?),
            lineage,
            term: Term(number("term")?),
            whole_since: Term(number("whole-since")?),
            mode: mode.ok_or_else(|| bad("mode"))?,
        })
    }
}

/// The line fits a string of the protocol, whatever the names.
const _: () = assert!(1024 + HISTORY_LEN * 17 < super::constants::STRING_MAX);

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    prop_compose! {
        fn any_standing()(ids in any::<[u64; HISTORY_LEN]>(), old in 0..=HISTORY_LEN, numbers in any::<[u128; 3]>(),
                          terms in any::<(u64, u64)>(), mode in 0..3usize) -> Standing {
            let mut history = [GenerationId::NONE; HISTORY_LEN];
            for at in 0..old {
                history[at] = GenerationId(ids[at].max(1));
            }
            Standing {
                cluster_name: "plant7".into(),
                node: "alpha".into(),
                cluster: ClusterId(numbers[0]),
                volume: VolumeId(numbers[1]),
                instance: DiskInstance(numbers[2]),
                lineage: Lineage { current: GenerationId(ids[0]), history },
                term: Term(terms.0),
                whole_since: Term(terms.1),
                mode: [Mode::Sync, Mode::SemiSync, Mode::Async][mode],
            }
        }
    }

    proptest! {
        #[test]
        fn what_is_said_is_understood(standing in any_standing()) {
            let line = standing.to_string();
            prop_assert_eq!(line.parse::<Standing>().expect("ours"), standing.clone());
            prop_assert_eq!(format!("{line} later=word").parse::<Standing>().expect("ours, and more"), standing);
        }

        #[test]
        fn other_text_is_refused_and_never_a_panic(standing in any_standing(), cut in any::<prop::sample::Index>(),
                                                   text in ".{0,80}") {
            prop_assert!(text.parse::<Standing>().is_err());
            let line = standing.to_string();
            let cut = line.find(" generation").map_or(0, |end| cut.index(end));
            prop_assert!(line[..cut].parse::<Standing>().is_err());
        }
    }

    #[test]
    fn a_wrong_word_is_named() {
        let line = format!(
            "{HEAD} cluster=a cluster-id=1 volume-id=2 node=n instance=3 mode=sync term=4 whole-since=4 \
                            generation=5 history="
        );
        assert!(line.parse::<Standing>().is_ok());
        for (right, wrong, named) in [
            ("mode=sync", "mode=fast", "mode"),
            ("term=4", "term=-1", "term"),
            ("instance=3", "instance=x", "instance"),
            ("node=n", "node=n\u{1b}[2J", "node"),
            ("cluster=a", "cluster=\u{7f}", "cluster"),
            ("history=", "history=1,2,3,4,5,6,7,8,9,a,b,c,d,e,f,10,11", "history"),
        ] {
            let error = line.replacen(right, wrong, 1).parse::<Standing>().expect_err(wrong).to_string();
            assert!(error.contains(named), "{error}");
        }
    }
}
