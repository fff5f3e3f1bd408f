//! Named stories: the faults that a mirror must survive, one at a time, each told so that it can be read.

use repblk::condition::{DiskState, Mode, Role};
use repblk::volume::io::{Command, Discard};
use repblk::volume::rule::Rule;

use crate::disk::Health;
use crate::media::Loss;
use crate::story::{Blow, Story};
use crate::swarm::{MS, Options, SECOND};
use crate::world::World;

const A: usize = 0;
const B: usize = 1;
const C: usize = 2;

#[test]
fn a_link_cut_under_load_costs_a_resync_of_what_changed() {
    let mut s = Story::with(1, Options { data_len: 4 << 20, span: 1024, clients: 2, ..Options::calm() });
    s.load(500 * MS).cut_for(2 * SECOND).wait(1500 * MS);
    assert!(s.w.history.acknowledgements() > 0);
    let before = s.resynced(A);
    s.idles().wait(SECOND).settles();
    let changed = s.resynced(A) - before;
    assert!(changed > 0, "something changed while the link was cut");
    assert!(changed <= 2 * s.w.options.span * 512, "only what changed was copied: {changed} bytes");
    s.ends();
}

#[test]
fn writes_wait_until_the_peer_is_excluded() {
    let mut s = Story::begin(2);
    s.load(200 * MS);
    s.w.operator.mute = true;
    s.cut_for(3 * SECOND).wait(100 * MS);
    let before = s.w.history.acknowledgements();
    s.wait(SECOND);
    assert_eq!(s.w.history.acknowledgements(), before, "nothing is acknowledged before the arbiter has agreed");
    s.w.operator.mute = false;
    s.wait(SECOND);
    assert!(s.w.history.acknowledgements() > before, "and then it goes on");
    s.ends();
}

#[test]
fn a_peer_that_returns_before_it_is_excluded_is_not_excluded() {
    for seed in 1..=6 {
        let mut s = Story::begin(600 + seed);
        s.load(200 * MS);
        let generation = s.w.nodes[A].view(B).map(|view| view.generation);
        s.w.operator.mute = true;
        s.cut_for(seed * 50 * MS).wait(seed * 50 * MS);
        let before = s.w.history.acknowledgements();
        s.settles().wait(300 * MS);
        assert!(s.w.history.acknowledgements() > before, "what waited is answered, since both have it");
        assert_eq!(s.w.nodes[A].view(B).map(|view| view.generation), generation, "nothing was minted");
        s.w.operator.mute = false;
        s.ends();
    }
}

#[test]
fn a_primary_that_dies_while_it_waits_has_made_no_fork() {
    for seed in 1..=6 {
        let mut s = Story::begin(620 + seed);
        s.load(200 * MS);
        s.w.operator.mute = true;
        s.part_for(200 * MS).wait(100 * MS).w.kill(A);
        s.w.operator.mute = false;
        s.wait(100 * MS).take_over(B).load(200 * MS).start(A).settles();
        assert!(!s.w.memory.split_brain, "the old primary is behind, and no fork");
        s.ends();
    }
}

#[test]
fn the_primary_loses_power_the_peer_takes_over_and_the_old_one_returns_as_target() {
    for seed in 1..=6 {
        let mut s = Story::begin(seed);
        s.load(SECOND).w.power_loss(A);
        s.wait(100 * MS).take_over(B).load(SECOND);
        s.start(A).settles();
        assert_eq!((s.role(A), s.role(B)), (Some(Role::Secondary), Some(Role::Primary)));
        s.ends();
    }
}

#[test]
fn the_secondary_loses_power_with_unflushed_acknowledged_writes() {
    for seed in 1..=6 {
        let mut s = Story::with(seed, Options { flush_every: 1000, clients: 2, ..Options::calm() });
        s.load(600 * MS).w.power_loss(B);
        s.load(300 * MS).start(B).settles().idles();
        // The primary loses everything: what the secondary has now must be all.
        s.w.power_loss(A);
        s.wait(50 * MS).take_over(B).load(200 * MS).start(A).ends();
    }
}

#[test]
fn the_primary_loses_power_and_returns_first() {
    for seed in 1..=6 {
        let mut s = Story::with(seed, Options { flush_every: 1000, clients: 2, ..Options::calm() });
        s.load(600 * MS).w.power_loss(A);
        s.start(A).settles_with_somebody();
        s.ends();
    }
}

/// The link goes, and a moment later the primary's power: it had recorded a generation of its own, and nothing of what both copies
/// held was stable there. It returns as source, and must not overwrite with less what its peer still has.
#[test]
fn what_both_copies_held_survives_the_loss_of_the_link_and_of_the_cache_of_the_primary() {
    for seed in 1..=6 {
        let mut s = Story::with(seed, Options { clients: 1, loss: Some(Loss::Everything), ..Options::calm() });
        s.load(100 * MS).idles();
        let before = s.w.history.acknowledgements();
        for write in 0..4 {
            s.w.request_write(0, 64 * write, 8, false);
        }
        s.wait(20 * MS);
        assert_eq!(s.w.history.acknowledgements(), before + 4, "both copies have them");
        s.cut_for(SECOND).wait(100 * MS).w.power_loss(A);
        s.start(A).settles_with_somebody().ends();
    }
}

#[test]
fn both_lose_power_at_once() {
    for seed in 1..=10 {
        let mut s = Story::with(seed, Options { flush_every: 5, clients: 2, ..Options::calm() });
        s.load(600 * MS).w.power_loss(A);
        s.w.power_loss(B);
        s.start(A).start(B).settles_with_somebody();
        s.ends();
    }
}

/// A lone client that flushes behind each write finds everything stable there, nobody is asked for it, and it is.
#[test]
fn copies_without_a_cache_are_stable_when_they_are_written() {
    for (seed, write_through) in [(1, [true; 3]), (2, [true; 3]), (3, [true, false, false]), (4, [false, true, false])]
    {
        let loss = Some(Loss::Everything);
        let options = Options { write_through, loss, flush_every: 2, clients: 1, depth: 1, ..Options::calm() };
        let mut s = Story::with(seed, options);
        let before = [A, B].map(|node| s.w.nodes[node].disk.flushes);
        s.load(600 * MS);
        assert!(s.w.history.acknowledgements() > 50);
        for node in [A, B] {
            assert_eq!(s.w.nodes[node].disk.flushes == before[node], write_through[node], "asked for a flush: {node}");
        }
        s.w.power_loss(A);
        s.w.power_loss(B);
        s.start(A).start(B).settles_with_somebody();
        s.ends();
    }
}

#[test]
fn a_process_killed_and_restarted_resyncs_its_activity_log_only() {
    let mut s = Story::with(3, Options { data_len: 4 << 20, span: 256, clients: 2, ..Options::calm() });
    let before = s.resynced(B);
    // Cleared bits reach the disk within two seconds.
    s.wait(3 * SECOND).load(500 * MS).w.kill(A);
    s.start(A).settles_with_somebody();
    let copied = s.resynced(B) - before;
    assert!(copied <= 8 * (64 << 10), "at most the activity log: {copied} bytes");
    s.ends();
}

#[test]
fn any_frame_may_be_the_last_of_a_resync() {
    for blow in [Blow::Cut, Blow::Kill(A), Blow::Kill(B), Blow::Power(B)] {
        for left in (0..60).step_by(if blow == Blow::Cut { 1 } else { 3 }) {
            let mut s = Story::with(left + 1, Options { clients: 1, span: 256, ..Options::calm() });
            s.load(100 * MS).cut_for(600 * MS).wait(500 * MS).idles();
            s.trap(left, blow).wait(400 * MS).ends();
        }
    }
}

#[test]
fn the_target_crashes_in_the_middle_of_a_full_resync() {
    for power in [false, true] {
        let mut s = slow_resync(5);
        if power {
            s.w.power_loss(B)
        } else {
            s.w.kill(B)
        }
        assert_eq!(s.disk(A), Some(DiskState::UpToDate));
        s.start(B).wait(50 * MS);
        let refused = s.tell(B, Command::Promote { force: false, peer_is_down: true });
        assert!(refused.is_err(), "a target is not promotable");
        s.ends();
    }
}

#[test]
fn the_source_crashes_in_the_middle_of_a_full_resync() {
    let mut s = slow_resync(6);
    s.w.power_loss(A);
    s.wait(6 * SECOND);
    let refused = s.promote_unseen(B).expect_err("a mix is not served");
    assert_eq!(refused.rule, Rule::Inconsistent);
    s.start(A).ends();
}

/// In the middle of a full resync from A to B, under load.
fn slow_resync(seed: u64) -> Story {
    let mut s = Story::with(seed, Options { rate_max: 1 << 20, clients: 1, ..Options::calm() });
    s.load(100 * MS);
    assert_eq!(s.tell(B, Command::Resync { full: true, discard: None }), Ok(()));
    let running = s.w.run_until(5 * SECOND, |w| w.nodes[B].disk_is(DiskState::Inconsistent));
    assert!(running, "the resync runs:\n  {}", s.w.summary());
    s.wait(100 * MS);
    s
}

#[test]
fn a_switchover_under_load_gives_no_error_and_no_resync() {
    for mode in [Mode::Sync, Mode::SemiSync, Mode::Async] {
        let mut s = Story::with(7, Options { mode, clients: 3, ..Options::calm() });
        s.load(300 * MS);
        let before = [s.resynced(A), s.resynced(B)];
        assert_eq!(s.tell(A, Command::Switchover), Ok(()));
        s.load(300 * MS).settles();
        assert_eq!((s.role(A), s.role(B)), (Some(Role::Secondary), Some(Role::Primary)));
        assert_eq!([s.resynced(A), s.resynced(B)], before, "nothing is copied");
        assert!(!s.w.marks.contains_key("client error"));
        s.ends();
    }
}

#[test]
fn an_end_in_order_needs_no_resync() {
    let mut s = Story::begin(8);
    s.load(300 * MS).idles();
    assert_eq!(s.tell(B, Command::Shutdown), Ok(()));
    s.wait(3 * SECOND).settles();
    assert_eq!(s.resynced(B), 0);
    s.rest();
    assert_eq!(s.tell(A, Command::Shutdown), Ok(()));
    s.wait(3 * SECOND);
    assert_eq!(s.tell(A, Command::Promote { force: false, peer_is_down: false }), Ok(()));
    s.settles();
    assert_eq!((s.resynced(A), s.resynced(B)), (0, 0));
    s.ends();
}

#[test]
fn a_split_brain_is_seen_and_nothing_is_overwritten() {
    let mut s = Story::with(9, Options { careless: true, clients: 2, ..Options::calm() });
    s.load(200 * MS).part_for(12 * SECOND);
    s.w.memory.forked = true;
    s.take_over(B);
    s.load(500 * MS);
    for node in [A, B] {
        // Both have something of their own, whichever the clients chose.
        s.w.nodes[node].disk.data.rot(2000 + node, 99 << 24 | 1);
    }
    s.load(500 * MS).idles();
    let images = [A, B].map(|n: usize| s.w.nodes[n].disk.data.view().to_vec());
    s.wait(12 * SECOND);
    assert!(s.w.memory.split_brain, "it is reported:\n  {}", s.w.summary());
    for (node, image) in images.iter().enumerate() {
        assert_eq!(s.w.nodes[node].disk.data.view(), image, "nothing is overwritten");
    }
}

#[test]
fn an_operator_gives_one_side_of_a_split_up() {
    let mut s = Story::with(10, Options { careless: true, clients: 2, ..Options::calm() });
    s.load(200 * MS).part_for(8 * SECOND);
    s.w.memory.forked = true;
    s.take_over(B).load(SECOND).idles().wait(8 * SECOND);
    assert!(s.w.memory.split_brain, "it is reported:\n  {}", s.w.summary());
    assert_eq!(s.tell(B, Command::Demote { disconnect_clients: true }), Ok(()));
    assert_eq!(s.tell(B, Command::Resync { full: false, discard: Some(Discard::Unsaved) }), Ok(()));
    s.settles();
    assert_eq!(s.role(A), Some(Role::Primary));
    s.ends();
}

#[test]
fn an_error_of_the_primary_disk_reaches_no_client_while_the_peer_is_good() {
    for kind in ["write", "read", "flush", "commit"] {
        let mut s = Story::begin(11);
        s.load(200 * MS).w.nodes[A].disk.fail_next(kind);
        s.load(2 * SECOND);
        assert!(!s.w.marks.contains_key("client error"), "{kind}: no client sees it");
        let before = s.w.history.acknowledgements();
        s.load(500 * MS);
        assert!(s.w.history.acknowledgements() > before, "{kind}: it goes on:\n  {}", s.w.summary());
        s.ends();
    }
}

#[test]
fn a_failing_disk_of_the_secondary_does_not_stop_the_primary() {
    for kind in ["write", "flush", "commit"] {
        let mut s = Story::begin(12);
        s.load(200 * MS).w.nodes[B].disk.fail_next(kind);
        s.load(2 * SECOND);
        let before = s.w.history.acknowledgements();
        s.load(500 * MS);
        assert!(s.w.history.acknowledgements() > before, "{kind}: it goes on:\n  {}", s.w.summary());
        s.ends();
    }
}

#[test]
fn a_hanging_disk_of_the_secondary_is_left_behind_in_bounded_time() {
    let mut s = Story::begin(13);
    s.load(200 * MS).w.nodes[B].disk.health = Health::Hung;
    s.load(5 * SECOND);
    let before = s.w.history.acknowledgements();
    s.load(500 * MS);
    assert!(s.w.history.acknowledgements() > before, "it goes on:\n  {}", s.w.summary());
    s.ends();
}

#[test]
fn a_silent_link_is_given_up_in_bounded_time() {
    for from in [A, B] {
        let mut s = Story::begin(14);
        s.load(200 * MS).w.stall(from, 60 * SECOND);
        s.w.data_cut_until = s.w.now + 8 * SECOND;
        s.load(5 * SECOND);
        let before = s.w.history.acknowledgements();
        s.load(500 * MS);
        assert!(s.w.history.acknowledgements() > before, "it goes on:\n  {}", s.w.summary());
        s.ends();
    }
}

#[test]
fn a_copy_restored_from_an_old_snapshot_is_copied_again() {
    let mut s = Story::begin(15);
    s.load(300 * MS).idles();
    let old = s.w.nodes[B].disk.image();
    s.load(200 * MS).cut_for(300 * MS).load(500 * MS).settles().idles();
    s.w.kill(B);
    s.w.nodes[B].disk.restore(old);
    s.load(200 * MS).start(B).settles();
    assert_eq!(s.role(A), Some(Role::Primary));
    s.ends();
}

#[test]
fn a_promotion_beside_a_living_primary_is_refused() {
    let mut s = Story::begin(16);
    let refused = s.tell(B, Command::Promote { force: false, peer_is_down: false }).expect_err("there is a primary");
    assert_eq!(refused.rule, Rule::PeerIsPrimary);
    s.cut_for(2 * SECOND).wait(100 * MS);
    let refused =
        s.tell(B, Command::Promote { force: false, peer_is_down: false }).expect_err("there may be a primary");
    assert!(refused.rule == Rule::PeerUnseen || refused.rule == Rule::Outdated || refused.rule == Rule::PeerIsPrimary);
    s.ends();
}

#[test]
fn a_resync_is_no_way_around_a_disconnect() {
    let mut s = Story::begin(18);
    s.load(200 * MS);
    assert_eq!(s.tell(B, Command::Disconnect), Ok(()));
    s.load(200 * MS);
    for full in [false, true] {
        let refused = s.tell(B, Command::Resync { full, discard: None }).expect_err("an operator keeps them apart");
        assert_eq!(refused.rule, Rule::NotConnected);
    }
    assert_eq!(s.disk(B), Some(DiskState::Outdated));
    assert_eq!(s.tell(B, Command::Connect), Ok(()));
    s.ends();
}

#[test]
fn a_primary_with_a_failed_disk_hands_over_and_does_not_count() {
    let mut s = Story::begin(19);
    s.load(200 * MS).w.nodes[A].disk.fail_next("write");
    s.load(300 * MS);
    assert_eq!(s.disk(A), Some(DiskState::Failed));
    assert_eq!(s.tell(A, Command::Switchover), Ok(()));
    s.wait(300 * MS);
    assert_eq!((s.role(A), s.role(B)), (Some(Role::Secondary), Some(Role::Primary)));
    let established = |w: &World| {
        let snapshot = w.nodes[B].snapshot(w.now).expect("it runs");
        snapshot.peers.iter().any(|peer| peer.replication == "established")
    };
    assert!(!established(&s.w), "a failed copy is not counted:\n  {}", s.w.summary());
    s.ends();
}

#[test]
fn of_two_promotions_at_the_ends_of_a_star_one_succeeds() {
    // The two have no link to each other and ask for the same term: only the node between them can tell who comes first.
    for seed in 1..=12 {
        let mut s = Story::with(seed, Options { nodes: 3, clients: 2, ..Options::calm() });
        s.load(200 * MS).rest();
        assert_eq!(s.tell(A, Command::Demote { disconnect_clients: true }), Ok(()));
        let asked = [B, C].map(|node| s.w.order(node, Command::Promote { force: true, peer_is_down: false }));
        let answered = |w: &mut World| asked.iter().all(|ticket| w.answers.contains_key(ticket));
        assert!(s.w.run_until(15 * SECOND, answered), "both are answered:\n  {}", s.w.summary());
        let refused: Vec<_> = asked.iter().filter_map(|ticket| s.w.answers[ticket].as_ref().err()).collect();
        assert_eq!(refused.len(), 1, "one is refused:\n  {}", s.w.summary());
        assert!([Rule::OldTerm, Rule::Busy, Rule::PeerIsPrimary].contains(&refused[0].rule), "{:?}", refused[0]);
        let primaries = [A, B, C].into_iter().filter(|&node| s.role(node) == Some(Role::Primary));
        assert_eq!(primaries.count(), 1);
    }
}

#[test]
fn flapping_links_do_not_stop_progress() {
    let mut s = Story::begin(17);
    for _ in 0..25 {
        s.load(200 * MS).w.cut_now("flap");
    }
    s.ends();
}

impl Story {
    /// Like `settles`, with the operator seeing to a primary.
    pub(crate) fn settles_with_somebody(&mut self) -> &mut Self {
        self.w.operator.passive = false;
        self.settles();
        self.w.operator.passive = true;
        self
    }
}
