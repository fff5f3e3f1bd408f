//! Seeds that once failed, each with the name of its fault. What it taught is a scenario of that name.

use repblk::condition::{DiskState, Role};
use repblk::volume::Limits;
use repblk::volume::io::Command;
use repblk::volume::rule::Rule;

use crate::media::Loss;
use crate::story::Story;
use crate::swarm::{MS, Options, SECOND};
use crate::world::World;

const A: usize = 0;
const B: usize = 1;

/// A seed and what was wrong.
const SEEDS: &[(u64, &str)] = &[
    (3, "a pause outlived the link and the daemon that asked for it"),
    (12, "a resync took places in the log that writes had been promised"),
    (23, "an orderly end was recorded before its flush had ended"),
    (26, "a segment that ended as it was launched took its successor with it"),
    (57, "a write that waited for the activity log of a failing disk kept its extent"),
    (166, "a primary without a disk read around what its peer had received and not yet written"),
    (100, "a write that only a failed disk held was acknowledged"),
    (106_383, "a read was refused while the good copy waited for the end of its resync"),
    (100_241, "a node ended while blocks were read for a resync whose link was lost"),
];

#[test]
fn what_once_failed_does_not_fail_again() {
    for &(seed, name) in SEEDS {
        if let Err(why) = crate::runner::check(seed, crate::runner::Draw::First) {
            panic!("{name}: {why}");
        }
    }
}

/// A disk fails and the other copy goes on; both daemons are killed, and the one with the failed disk starts alone.
#[test]
fn a_copy_whose_disk_failed_is_promoted_by_nobody() {
    for (failing, kind) in [(A, "write"), (A, "flush"), (B, "write"), (B, "flush")] {
        let mut s = Story::with(500, Options { clients: 2, ..Options::calm() });
        s.load(200 * MS).w.nodes[failing].disk.fail_next(kind);
        s.load(300 * MS).idles();
        s.w.kill(A);
        s.w.kill(B);
        s.start(failing);
        let up = |w: &mut World| w.nodes[failing].disk_is(DiskState::Inconsistent);
        assert!(s.w.run_until(5 * SECOND, up), "{kind}: it knows that it is no good copy:\n  {}", s.w.summary());
        let refused = s.promote_unseen(failing).expect_err("the other has what it lacks");
        assert_eq!(refused.rule, Rule::Inconsistent);
        s.start(1 - failing).ends();
    }
}

/// A primary's flush fails while no peer is there to record it, and its daemon is killed and started again on the same host. What the disk
/// has dropped had been acknowledged, and only the other copy still has it.
#[test]
fn a_copy_whose_flush_failed_is_no_source() {
    for seed in 1..=8 {
        let mut s = Story::with(600 + seed, Options { flush_every: 1000, clients: 2, ..Options::calm() });
        s.w.operator.mute = true;
        s.load(200 * MS).cut_for(SECOND);
        s.w.nodes[A].disk.fail_next("flush");
        let failed = s.w.run_until(5 * SECOND, |w| w.nodes[A].disk_is(DiskState::Failed));
        assert!(failed, "a flush is due:\n  {}", s.w.summary());
        s.wait(100 * MS).w.kill(A);
        s.w.operator.mute = false;
        s.start(A).settles_with_somebody();
        s.ends();
    }
}

/// A write that came after the flush for the generation without the peer waits for nothing but that generation, and is answered with it; a
/// flush follows, and the power goes.
#[test]
fn a_flush_covers_what_waited_for_an_exclusion() {
    for at in 0..600 {
        let disk = Options { disk_delay: 3 * MS, loss: Some(Loss::Everything), ..Options::calm() };
        let mut s = Story::with(800 + at, Options { clients: 2, depth: 1, think: MS, flush_every: 2, ..disk });
        s.load(100 * MS).cut_for(SECOND).wait(at % 100 * MS / 2).w.power_loss(A);
        s.start(A).settles_with_somebody();
        s.ends();
    }
}

/// The survivor holds writes that its old primary had acknowledged and never flushed: its first flush covers them, though it wrote none.
#[test]
fn the_first_flush_of_a_new_primary_covers_what_it_was_sent() {
    for seed in 0..60 {
        let options = Options { loss: Some(Loss::Everything), clients: 1, depth: 1, flush_every: 2, ..Options::calm() };
        let mut s = Story::with(1000 + seed, options);
        s.load(50 * MS).w.kill(A);
        s.take_over(B).wait(seed % 6 * MS).w.power_loss(B);
        s.start(B).start(A).settles_with_somebody();
        s.ends();
    }
}

/// A node was primary, is secondary in the same life, and loses its peer with much of the stream in its cache: its orderly end has nothing
/// left to flush by its own count.
#[test]
fn an_orderly_end_of_a_secondary_leaves_nothing_in_the_cache() {
    let mut s = Story::with(900, Options { flush_every: 1000, clients: 2, ..Options::calm() });
    s.load(100 * MS).idles();
    assert_eq!(s.tell(A, Command::Switchover), Ok(()));
    s.load(200 * MS).w.kill(B);
    s.wait(50 * MS);
    assert!(s.w.nodes[A].disk.data.unflushed() > 0, "nothing asked for a flush");
    assert_eq!(s.tell(A, Command::Shutdown), Ok(()));
    assert_eq!(s.w.nodes[A].disk.data.unflushed(), 0);
    s.ends();
}

/// A full resync is asked for while another one is coming to its end, and nobody looks for dirty blocks any more.
#[test]
fn a_full_resync_asked_for_at_the_end_of_another_begins() {
    let replication = |w: &World| w.nodes[A].snapshot(w.now).map(|told| told.peers[0].replication);
    for at in 0..60 {
        let mut s = Story::with(700 + at, Options { clients: 1, disk_delay: MS, latency: MS, ..Options::calm() });
        s.load(100 * MS).idles();
        assert_eq!(s.tell(A, Command::Resync { full: true, discard: None }), Ok(()));
        assert!(s.w.run_until(5 * SECOND, |w| replication(w) == Some("source")), "a resync:\n  {}", s.w.summary());
        s.wait(at * MS);
        assert_eq!(s.tell(A, Command::Resync { full: true, discard: None }), Ok(()));
        s.settles().ends();
    }
}

/// The link of a resync is lost while its source reads many blocks, and the source is told to end.
#[test]
fn an_end_waits_for_reads_of_a_lost_resync() {
    for at in 0..20 {
        let mut s = Story::with(400 + at, Options { clients: 1, disk_delay: 5 * MS, ..Options::calm() });
        s.load(100 * MS).idles();
        assert_eq!(s.tell(A, Command::Resync { full: true, discard: None }), Ok(()));
        assert!(s.w.run_until(5 * SECOND, |w| w.nodes[B].disk_is(DiskState::Inconsistent)), "the resync starts");
        s.wait(at * MS).w.cut_now("scenario");
        // Whatever it answers: a node that says that it has ended has nothing in flight (`stop_in_order`).
        assert_eq!(s.tell(A, Command::Shutdown), Ok(()));
        s.ends();
    }
}

/// A node becomes primary and hands the role back before the other copy's first flush has ended.
#[test]
fn a_role_that_is_handed_back_at_once_is_taken() {
    let mut s = Story::with(500, Options { clients: 1, disk_delay: 5 * MS, ..Options::calm() });
    s.load(100 * MS).idles();
    for round in 0..4 {
        for node in [A, B] {
            assert_eq!(s.tell(node, Command::Switchover), Ok(()), "round {round}, away from {node}");
        }
    }
    assert_eq!(s.role(A), Some(Role::Primary));
    s.ends();
}

/// A primary that died asks for its role while the resync from it is about to start: the peer's promise of the new term and the
/// start of the stream cross, and the start speaks of the old term.
#[test]
fn a_claim_crosses_the_start_of_a_resync() {
    for at in 0..40 {
        let mut s = Story::with(300 + at, Options { clients: 1, latency: 2 * MS, ..Options::calm() });
        s.load(100 * MS).cut_for(300 * MS).load(400 * MS).idles().w.kill(A);
        s.start(A);
        let met = s.w.run_until(5 * SECOND, |w| w.nodes[B].disk_is(DiskState::Inconsistent));
        if met {
            s.wait(at * MS / 8);
            // It may be refused; what counts is that nobody is accused of breaking the protocol (see `marks`).
            let _ = s.tell(A, Command::Promote { force: false, peer_is_down: false });
        }
        s.ends();
    }
}

/// The secondary's process is killed, and as soon as the primary has recorded that it goes on alone, but before it may, it loses power.
/// Its record calls the secondary behind, while only the secondary still has what both had acknowledged.
#[test]
fn a_generation_outlives_the_data_it_vouches_for() {
    for seed in 1..=12 {
        let options = Options { flush_every: 1000, clients: 2, loss: Some(Loss::Everything), ..Options::calm() };
        let mut s = Story::with(400 + seed, options);
        s.w.operator.mute = true;
        s.load(300 * MS).w.kill(B);
        // Both copies of the superblock are written by now, and no flush was due.
        s.wait(seed * MS).w.power_loss(A);
        s.w.operator.mute = false;
        s.start(A).start(B).settles_with_somebody();
        s.ends();
    }
}

/// A copy that is behind is brought up to date halfway, and is then set back to a snapshot from before: the source had called blocks
/// clean that the snapshot lacks.
#[test]
fn a_copy_is_set_back_while_it_is_brought_up_to_date() {
    let mut s = Story::with(51, Options { rate_max: 256 << 10, clients: 2, ..Options::calm() });
    s.load(100 * MS).w.kill(B);
    let old = s.w.nodes[B].disk.image();
    s.load(800 * MS).start(B);
    let running = s.w.run_until(5 * SECOND, |w| w.nodes[B].disk_is(DiskState::Inconsistent));
    assert!(running, "the resync runs:\n  {}", s.w.summary());
    s.wait(300 * MS).w.kill(B);
    s.w.nodes[B].disk.restore(old);
    s.w.operator.stale[B] = true;
    s.start(B).settles().ends();
}

/// The host keeps a small transfer log full for ever: the resync must come to its end all the same.
#[test]
fn a_busy_host_does_not_starve_a_resync() {
    let limits = Limits { log_entries: 8, unstable_bytes: 8 << 10, ..Limits::default() };
    let options = Options { limits, clients: 3, depth: 16, think: MS / 4, request_sectors_max: 8, ..Options::calm() };
    let mut s = Story::with(31, options);
    s.load(200 * MS).cut_for(200 * MS).load(400 * MS);
    let synced = s.w.run_until(20 * SECOND, |w| w.settled());
    assert!(synced, "the resync ends under load:\n  {}", s.w.summary());
    s.ends();
}

/// The last heartbeat of a former primary is still fresh when the node that has taken over from it since is to be promoted once
/// more: it tells of an earlier term, and nobody is primary.
#[test]
fn an_old_heartbeat_refuses_no_promotion() {
    let mut s = Story::begin(55);
    assert_eq!(s.tell(A, Command::Switchover), Ok(()));
    let peer_is_primary =
        |s: &Story| s.w.nodes[A].snapshot(s.w.now).is_some_and(|told| told.peers[0].role == Some(Role::Primary));
    assert!(peer_is_primary(s.wait(SECOND)));
    s.w.beats_cut_until = s.w.now + 10 * SECOND;
    assert_eq!(s.tell(B, Command::Demote { disconnect_clients: true }), Ok(()));
    assert_eq!(s.tell(A, Command::Promote { force: true, peer_is_down: false }), Ok(()));
    s.cut_for(10 * SECOND);
    assert_eq!(s.tell(A, Command::Demote { disconnect_clients: true }), Ok(()));
    assert!(!peer_is_primary(&s));
    assert_eq!(s.tell(A, Command::Promote { force: false, peer_is_down: true }), Ok(()));
}
