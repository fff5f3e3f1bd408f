//! Orders of whoever decides about failover, one at a time: what was answered holds, and what was not counts for nothing.

use repblk::condition::{DiskState, Role};
use repblk::units::Term;
use repblk::volume::io::{Command, Standing};
use repblk::volume::rule::Rule;

use crate::story::Story;
use crate::swarm::{MS, Options, SECOND};

const A: usize = 0;
const B: usize = 1;

fn standing(s: &mut Story, node: usize) -> Standing {
    s.w.nodes[node].running().volume.standing()
}

/// A pair whose disks take their time, and the term after the one in force.
fn with_slow_disks(seed: u64) -> (Story, Term) {
    let mut s = Story::with(seed, Options { clients: 2, disk_delay: 20 * MS, ..Options::calm() });
    s.load(300 * MS).idles();
    let Term(term) = standing(&mut s, B).term;
    (s, Term(term + 1))
}

/// Whoever is told of a promise may count on it for ever. So it is told when it is durable, and no role is taken on it before.
#[test]
fn a_promise_counts_when_it_is_durable_and_then_for_ever() {
    let (mut s, term) = with_slow_disks(61);
    let ticket = s.w.order(B, Command::Promise { term, part: true });
    let mut waited = 0;
    while !s.w.answers.contains_key(&ticket) {
        let told = standing(&mut s, B);
        assert!(told.promised.is_none() && told.term < term, "told before it was answered: {told:?}");
        if waited == 0 {
            let early = s.w.order(B, Command::TakeOver { term, force: true });
            s.wait(MS);
            let refused = s.w.answers[&early].clone().expect_err("nothing is promised yet");
            assert_eq!(refused.rule, Rule::NotPromised);
        }
        s.wait(MS);
        waited += 1;
    }
    assert!(waited > 10, "the disk took its time");
    assert_eq!(standing(&mut s, B).promised, Some(term));
    s.w.power_loss(B);
    s.start(B).wait(SECOND);
    let told = standing(&mut s, B);
    assert_eq!((told.term, told.promised), (term, None), "the term is taken for ever; a promise is of one life");
    let refused = s.tell(B, Command::Promise { term, part: true }).expect_err("somebody may have been promised it");
    assert_eq!(refused.rule, Rule::OldTerm);
    s.ends();
}

/// While a promise holds, nothing of an older primary comes in, not even over a new link.
#[test]
fn a_promise_keeps_links_away_until_it_is_released() {
    let (mut s, term) = with_slow_disks(62);
    assert_eq!(s.tell(B, Command::Promise { term, part: true }), Ok(()));
    for _ in 0..30 {
        s.wait(100 * MS);
        assert!(!standing(&mut s, B).link && !standing(&mut s, A).link, "no link while the promise holds");
    }
    assert_eq!(s.tell(B, Command::Release), Ok(()));
    s.settles();
    assert_eq!(s.role(A), Some(Role::Primary));
    s.ends();
}

/// A copy that was said to be outdated stays so, whatever happens to it, and is not promoted by itself.
#[test]
fn a_copy_that_was_outdated_stays_so() {
    let (mut s, _) = with_slow_disks(63);
    let equal = s.tell(B, Command::Outdate).expect_err("they are equal and linked");
    assert_eq!(equal.rule, Rule::AlreadyInSync);
    s.part_for(20 * SECOND).wait(3 * SECOND);
    let ticket = s.w.order(B, Command::Outdate);
    while !s.w.answers.contains_key(&ticket) {
        assert_ne!(standing(&mut s, B).disk, DiskState::Outdated, "told before it is durable");
        s.wait(MS);
    }
    assert_eq!(standing(&mut s, B).disk, DiskState::Outdated);
    s.w.power_loss(B);
    s.start(B).wait(SECOND);
    assert_eq!(standing(&mut s, B).disk, DiskState::Outdated);
    let refused = s.tell(B, Command::Promote { force: false, peer_is_down: true }).expect_err("it lacks writes");
    assert_eq!(refused.rule, Rule::Outdated);
    s.ends();
}
