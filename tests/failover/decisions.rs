//! Rows of the decision table, from text.
//!
//! ```text
//! base etcd secondary            a healthy pair, seen from this role
//! with -link peer=silent ...     what is different from here on; `-` takes a flag away
//! gives RULE VERDICT             what the table says
//! reset                          the healthy pair again
//! ```

use std::collections::BTreeSet;

use repblk::condition::{DiskState, Role};
use repblk::failover::config::Arbiter;
use repblk::failover::decision::decide;
use repblk::failover::detector::Suspicion;
use repblk::failover::rule::Rule;
use repblk::failover::view::{Proof, Recorded, View, Wish, Writer};

use crate::texts;

fn of_word<T: Copy + std::fmt::Display>(all: &[T], word: &str) -> T {
    *all.iter().find(|value| value.to_string() == word).unwrap_or_else(|| panic!("`{word}` is not known"))
}

const RECORDS: [Recorded; 9] = [
    Recorded::Unread,
    Recorded::Missing,
    Recorded::Foreign,
    Recorded::RolledBack,
    Recorded::Known(Writer::Me),
    Recorded::Known(Writer::MeBefore),
    Recorded::Known(Writer::Other),
    Recorded::Known(Writer::LeftByPeer),
    Recorded::Known(Writer::LeftByMe),
];
const PROOFS: [Proof; 9] = [
    Proof::None,
    Proof::Asked,
    Proof::Off,
    Proof::Outdated,
    Proof::Primary,
    Proof::Dead,
    Proof::DeadAhead,
    Proof::Alive,
    Proof::Failed,
];
const SUSPICIONS: [Suspicion; 4] = [Suspicion::Heard, Suspicion::Late, Suspicion::Silent, Suspicion::Unheard];
const WISHES: [Wish; 4] = [Wish::None, Wish::Promote, Wish::Force, Wish::HandOver];
const DISKS: [DiskState; 5] =
    [DiskState::Failed, DiskState::Inconsistent, DiskState::Diverged, DiskState::Outdated, DiskState::UpToDate];

fn set(view: &mut View, word: &str) {
    if let Some((key, value)) = word.split_once('=') {
        match key {
            "disk" => view.disk = of_word(&DISKS, value),
            "peer" => view.peer = of_word(&SUSPICIONS, value),
            "record" => view.record = of_word(&RECORDS, value),
            "proof" => view.proof = of_word(&PROOFS, value),
            "wish" => view.wish = of_word(&WISHES, value),
            "gateway" => view.gateway = Some(value == "answers"),
            _ => panic!("`{key}` is not known"),
        }
        return;
    }
    let (name, on) = word.strip_prefix('-').map_or((word, true), |name| (name, false));
    let flag = match name {
        "link" => &mut view.link,
        "carrier" => &mut view.carrier,
        "busy" => &mut view.busy,
        "met" => &mut view.met,
        "disk-stalled" => &mut view.disk_stalled,
        "overslept" => &mut view.overslept,
        "automatic" => &mut view.automatic,
        "accept-split-brain" => &mut view.accept_split_brain,
        "peer-primary" => &mut view.peer_primary,
        "peer-in-sync" => &mut view.peer_in_sync,
        "overruled" => &mut view.overruled,
        "peer-outdated" => &mut view.peer_outdated,
        "waits" => &mut view.waits,
        "answers" => &mut view.answers,
        "limbo" => &mut view.limbo,
        "me-recorded" => &mut view.me_recorded,
        "peer-recorded" => &mut view.peer_recorded,
        "renewing" => &mut view.renewing,
        "claim-open" => &mut view.claim_open,
        "my-turn" => &mut view.my_turn,
        "maintenance" => &mut view.maintenance,
        "spent" => &mut view.spent,
        "dwelt" => &mut view.dwelt,
        "fence-turn" => &mut view.fence_turn,
        "agent" => &mut view.agent,
        "vouched" => &mut view.vouched,
        _ => panic!("`{name}` is not known"),
    };
    *flag = on;
}

#[test]
fn the_table_decides_as_written() {
    let mut rules = BTreeSet::new();
    let mut wrong = String::new();
    for (name, text) in texts("decisions") {
        let healthy = View::healthy(Arbiter::None, Role::Secondary);
        let (mut base, mut view) = (healthy, healthy);
        for (number, line) in text.lines().enumerate() {
            let words: Vec<&str> = line.split('#').next().expect("split gives a part").split_whitespace().collect();
            match words.as_slice() {
                [] => {}
                ["base", mode, role] => {
                    let modes = [Arbiter::Etcd, Arbiter::Fence, Arbiter::Agent, Arbiter::None];
                    let arbiter = *modes.iter().find(|known| known.word() == *mode).expect("a mode");
                    base = View::healthy(arbiter, of_word(&[Role::Primary, Role::Secondary], role));
                    view = base;
                }
                ["reset"] => view = base,
                ["with", words @ ..] => words.iter().for_each(|word| set(&mut view, word)),
                ["gives", rule, verdict] => {
                    let (said, follows) = decide(&view);
                    rules.insert(said);
                    let verdict_word = format!("{follows:?}").to_lowercase();
                    if said.name() != *rule || verdict_word != verdict.replace('-', "") {
                        wrong += &format!("{name}:{}: {line}: says {said} {verdict_word} of {view}\n", number + 1);
                    }
                }
                _ => panic!("{name}:{}: not understood: {line}", number + 1),
            }
        }
    }
    assert!(wrong.is_empty(), "\n{wrong}");
    // Said by the machine and not by the table.
    let elsewhere = [Rule::HandOverLost];
    let missing: Vec<&Rule> = Rule::ALL.iter().filter(|r| !rules.contains(r) && !elsewhere.contains(r)).collect();
    assert!(missing.is_empty(), "no row shows {missing:?}");
}

/// Every combination that matters: nobody takes over who must not.
#[test]
fn no_combination_promotes_what_must_not_be() {
    let mut seen = 0u64;
    for arbiter in [Arbiter::Etcd, Arbiter::Fence, Arbiter::Agent, Arbiter::None] {
        for disk in DISKS {
            for peer in SUSPICIONS {
                for record in RECORDS {
                    for proof in PROOFS {
                        for bits in 0..1u32 << 10 {
                            let bit = |n: u32| bits >> n & 1 == 1;
                            let view = View {
                                disk,
                                peer,
                                record,
                                proof,
                                link: bit(0),
                                answers: bit(1),
                                limbo: bit(2),
                                me_recorded: bit(3),
                                claim_open: bit(4),
                                renewing: bit(5),
                                maintenance: bit(6),
                                spent: bit(7),
                                met: bit(8),
                                overslept: bit(9),
                                fence_turn: true,
                                my_turn: true,
                                ..View::healthy(arbiter, Role::Secondary)
                            };
                            check(&view);
                            seen += 1;
                        }
                    }
                }
            }
        }
    }
    assert!(seen > 6_000_000);
}

fn check(view: &View) {
    use repblk::failover::decision::Verdict;
    let (rule, verdict) = decide(view);
    if verdict != Verdict::TakeOver {
        return;
    }
    assert_eq!(view.disk, DiskState::UpToDate, "{rule}: {view}");
    assert!(view.arbiter != Arbiter::None, "{rule}: {view}");
    let orderly = matches!(rule, Rule::TakeOverHanded | Rule::TakeBack | Rule::TakeOverOwnRecord);
    if view.arbiter == Arbiter::Etcd {
        assert!(view.answers && view.me_recorded && !view.limbo, "{rule}: {view}");
        assert!(matches!(view.record, Recorded::Known(_)), "{rule}: {view}");
        let waited = view.claim_open && !view.renewing && view.peer >= Suspicion::Silent && !view.overslept;
        assert!(orderly || waited || view.proof == Proof::Dead, "{rule}: {view}");
    } else {
        let proof = if view.arbiter == Arbiter::Fence { Proof::Off } else { Proof::Dead };
        assert_eq!(view.proof, proof, "{rule}: {view}");
    }
    assert!(orderly || (!view.link && !view.maintenance && !view.spent), "{rule}: {view}");
}
