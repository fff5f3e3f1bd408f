//! Stories, and random courses of events against the rules of the room.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::judge::tests::standing;
use super::*;

const SIZE: u64 = 1 << 20;

fn follower(on_doubt: OnDoubt, remembered: Option<(Standing, u64)>) -> Follower {
    let mut out = Vec::new();
    let setup = Setup { cluster: "plant7".into(), on_doubt, remembered };
    let follower = Follower::new(setup, &mut out);
    assert_eq!(out, [Effect::Seek { above: None }]);
    follower
}

fn step(follower: &mut Follower, at_ms: u64, input: Input) -> Vec<Effect> {
    let mut out = Vec::new();
    follower.step(Moment(at_ms * 1_000_000), input, &mut out);
    out.retain(|effect| !matches!(effect, Effect::Report(_)));
    out
}

fn offer(connection: u64, standing: Standing) -> Input {
    Input::Offered { connection, standing: Box::new(standing), size: SIZE }
}

fn asked(number: u64, class: Class, start: u64, len: u64) -> Input {
    Input::Asked { number, client: 1, class, range: ByteRange::new(start, len), fua: false }
}

fn replied(connection: u64, number: u64) -> Input {
    Input::Replied { connection, number, error: 0 }
}

fn lost(connection: u64) -> Input {
    Input::Lost { connection, why: "it closed".into() }
}

fn send(connection: u64, number: u64) -> Effect {
    Effect::Send { connection, number }
}

fn answer(number: u64) -> Effect {
    Effect::Answer { number, error: 0 }
}

#[test]
fn what_is_open_is_sent_again_in_order_and_answered_once() {
    let mut f = follower(OnDoubt::Hold, None);
    assert_eq!(step(&mut f, 0, asked(1, Class::Change, 0, 10)), [], "there is no primary yet");
    let first = [Effect::Rest, Effect::Take { connection: 7 }, send(7, 1)];
    assert_eq!(step(&mut f, 1, offer(7, standing(1, 5, &[10]))), first);
    assert_eq!(step(&mut f, 2, asked(2, Class::Flush, 0, 0)), [send(7, 2)]);
    assert_eq!(step(&mut f, 3, asked(3, Class::Read, 50, 10)), [send(7, 3)]);
    assert_eq!(step(&mut f, 4, replied(7, 1)), [Effect::Remember, answer(1)]);
    assert_eq!(step(&mut f, 5, lost(7)), [Effect::Seek { above: None }]);
    let again = [Effect::Rest, Effect::Take { connection: 8 }, send(8, 2), send(8, 3)];
    assert_eq!(step(&mut f, 6, offer(8, standing(2, 6, &[11, 10]))), again);
    assert_eq!(step(&mut f, 7, replied(7, 2)), [], "the old connection does not count");
    assert_eq!(step(&mut f, 8, replied(8, 2)), [Effect::Remember, answer(2)]);
    assert_eq!(f.proven().expect("there was an answer").0.term.0, 6);
}

#[test]
fn overlapping_changes_are_never_under_way_together() {
    let mut f = follower(OnDoubt::Hold, None);
    step(&mut f, 0, offer(1, standing(1, 5, &[10])));
    assert_eq!(step(&mut f, 0, asked(1, Class::Change, 0, 10)), [send(1, 1)]);
    assert_eq!(step(&mut f, 0, asked(2, Class::Change, 5, 10)), []);
    assert_eq!(step(&mut f, 0, asked(3, Class::Read, 12, 1)), [], "it must not see what 2 replaces");
    assert_eq!(step(&mut f, 0, asked(4, Class::Change, 20, 10)), [send(1, 4)], "others go on");
    assert_eq!(step(&mut f, 0, replied(1, 1)), [Effect::Remember, answer(1), send(1, 2)]);
    assert_eq!(step(&mut f, 0, replied(1, 2)), [answer(2), send(1, 3)]);
}

#[test]
fn in_doubt_nothing_is_answered() {
    let mut f = follower(OnDoubt::Hold, None);
    step(&mut f, 0, offer(1, standing(1, 5, &[11, 10])));
    step(&mut f, 0, asked(1, Class::Change, 0, 10));
    step(&mut f, 0, replied(1, 1));
    step(&mut f, 0, asked(2, Class::Read, 0, 10));
    step(&mut f, 0, lost(1));
    let left_behind = standing(2, 6, &[12, 10]);
    let effects = step(&mut f, 1, offer(2, left_behind.clone()));
    assert!(matches!(&effects[..], [Effect::Close { connection: 2, .. }]), "{effects:?}");
    assert!(matches!(f.stage(), Stage::Seeking { doubt: Some(why) } if why.contains("does not descend")));
    // The right one comes back after all.
    let effects = step(&mut f, 2, offer(3, standing(1, 7, &[11, 10])));
    assert_eq!(effects, [Effect::Rest, Effect::Take { connection: 3 }, send(3, 2)]);

    let mut f = follower(OnDoubt::Fail, Some((standing(1, 5, &[11, 10]), SIZE)));
    step(&mut f, 0, asked(9, Class::Read, 0, 10));
    let effects = step(&mut f, 1, offer(2, left_behind));
    assert!(effects.contains(&Effect::Answer { number: 9, error: EIO }), "{effects:?}");
    let failed = Effect::Answer { number: 10, error: EIO };
    assert_eq!(step(&mut f, 2, asked(10, Class::Change, 0, 1)), [failed], "for good");
}

#[test]
fn a_silent_primary_is_left_for_a_newer_one_and_for_no_other() {
    let mut f = follower(OnDoubt::Hold, None);
    step(&mut f, 0, offer(1, standing(1, 5, &[10])));
    assert_eq!(f.next_deadline(), None, "silence without a question is no silence");
    step(&mut f, 500, asked(1, Class::Change, 0, 10));
    assert_eq!(step(&mut f, 1400, Input::Wake), []);
    assert_eq!(step(&mut f, 1500, Input::Wake), [Effect::Seek { above: Some(Term(5)) }]);
    let same = step(&mut f, 1600, offer(2, standing(1, 5, &[10])));
    assert!(matches!(&same[..], [Effect::Close { connection: 2, .. }]), "{same:?}");
    let newer = step(&mut f, 1700, offer(3, standing(2, 6, &[11, 10])));
    let [Effect::Close { connection: 1, .. }, rest @ ..] = &newer[..] else { panic!("{newer:?}") };
    let expected = [Effect::Seek { above: None }, Effect::Rest, Effect::Take { connection: 3 }, send(3, 1)];
    assert_eq!(rest, expected, "the old one is closed first");
    assert_eq!(step(&mut f, 1800, replied(1, 1)), [], "and never heard again");
    assert_eq!(step(&mut f, 1900, replied(3, 1)), [Effect::Remember, answer(1)]);
}

#[test]
fn an_answer_ends_the_search_and_long_silence_the_connection() {
    let mut f = follower(OnDoubt::Hold, None);
    step(&mut f, 0, offer(1, standing(1, 5, &[10])));
    step(&mut f, 0, asked(1, Class::Read, 0, 10));
    step(&mut f, 0, asked(2, Class::Read, 0, 10));
    step(&mut f, 1000, Input::Wake);
    assert_eq!(step(&mut f, 1100, replied(1, 1)), [Effect::Rest, answer(1)]);
    step(&mut f, 2100, Input::Wake);
    let effects = step(&mut f, 16_100, Input::Wake);
    assert!(matches!(&effects[..], [Effect::Close { connection: 1, .. }, Effect::Seek { above: None }]), "{effects:?}");
    assert_eq!(f.open(), 1);
}

#[test]
fn a_server_that_shuts_down_or_lost_its_step_is_left() {
    for reply in [Input::Replied { connection: 1, number: 1, error: ESHUTDOWN }, replied(1, 99)] {
        let mut f = follower(OnDoubt::Hold, None);
        step(&mut f, 0, offer(1, standing(1, 5, &[10])));
        step(&mut f, 0, asked(1, Class::Read, 0, 10));
        let effects = step(&mut f, 0, reply);
        assert!(matches!(&effects[..], [Effect::Close { connection: 1, .. }, Effect::Seek { .. }]), "{effects:?}");
    }
}

#[test]
fn what_a_client_left_behind_keeps_its_place_until_it_is_over() {
    let mut f = follower(OnDoubt::Hold, None);
    step(&mut f, 0, offer(1, standing(1, 5, &[10])));
    step(&mut f, 0, asked(1, Class::Change, 0, 10));
    step(&mut f, 0, asked(2, Class::Change, 0, 10));
    assert_eq!(step(&mut f, 0, Input::ClientGone { client: 1 }), [Effect::Forget { number: 2 }]);
    let other = Input::Asked { number: 3, client: 2, class: Class::Change, range: ByteRange::new(5, 1), fua: true };
    assert_eq!(step(&mut f, 0, other), [], "the abandoned write may still happen");
    assert_eq!(step(&mut f, 0, replied(1, 1)), [Effect::Remember, Effect::Forget { number: 1 }, send(1, 3)]);
}

#[derive(Clone, Copy, Debug)]
enum Event {
    Ask(Class, u64, u64),
    Reply(prop::sample::Index),
    Lose,
    /// The other node is promoted, in order or left behind.
    FailOver {
        good: bool,
    },
    Wait(u64),
}

fn any_event() -> impl Strategy<Value = Event> {
    let class = prop_oneof![Just(Class::Read), Just(Class::Change), Just(Class::Flush)];
    prop_oneof![
        5 => (class, 0u64..8, 1u64..4).prop_map(|(class, start, len)| Event::Ask(class, start, len)),
        5 => any::<prop::sample::Index>().prop_map(Event::Reply),
        1 => Just(Event::Lose),
        2 => prop::bool::weighted(0.8).prop_map(|good| Event::FailOver { good }),
        1 => (0u64..20_000).prop_map(Event::Wait),
    ]
}

/// Watches the effects of one course of events.
#[derive(Default)]
struct Watch {
    taken: Option<u64>,
    /// Requests that the primary in use has, in the order it got them.
    sent: Vec<u64>,
    open: BTreeMap<u64, (Class, ByteRange)>,
    answered: BTreeSet<u64>,
    doubtful: BTreeSet<u64>,
}

impl Watch {
    fn see(&mut self, effects: &[Effect]) {
        for effect in effects {
            match *effect {
                Effect::Take { connection } => {
                    assert!(!self.doubtful.contains(&connection), "nothing that may lack data is followed");
                    self.taken = Some(connection);
                    self.sent.clear();
                }
                Effect::Close { connection, .. } if self.taken == Some(connection) => self.taken = None,
                Effect::Send { connection, number } => {
                    assert_eq!(self.taken, Some(connection), "only the primary in use is spoken to");
                    assert!(!self.sent.contains(&number), "a connection carries a request once");
                    let (class, range) = self.open[&number];
                    for earlier in self.sent.iter().filter(|earlier| self.open.contains_key(earlier)) {
                        let (theirs, theirs_at) = self.open[earlier];
                        let clash = theirs == Class::Change && class == Class::Change && range.overlaps(theirs_at);
                        assert!(!clash, "{earlier} and {number} change the same block and are under way together");
                    }
                    self.sent.push(number);
                }
                Effect::Answer { number, error: 0 } => {
                    assert!(self.taken.is_some() && self.sent.contains(&number), "a primary in use has answered it");
                    assert!(self.answered.insert(number), "answered twice");
                    self.open.remove(&number);
                }
                _ => {}
            }
        }
    }
}

proptest! {
    #[test]
    fn every_answer_is_a_primarys_and_everything_is_answered_in_the_end(
        events in prop::collection::vec(any_event(), 1..120),
    ) {
        let mut f = follower(OnDoubt::Hold, None);
        let (mut watch, mut now, mut number, mut connection) = (Watch::default(), 0, 0, 1);
        let mut generations = vec![1];
        let mut term = 1;
        watch.see(&step(&mut f, now, offer(connection, standing(1, term, &generations))));
        for event in events {
            match event {
                Event::Ask(class, start, len) => {
                    number += 1;
                    let len = if class == Class::Flush { 0 } else { len };
                    watch.open.insert(number, (class, ByteRange::new(start, len)));
                    watch.see(&step(&mut f, now, asked(number, class, start, len)));
                }
                Event::Reply(which) => {
                    let waiting: Vec<u64> =
                        watch.sent.iter().copied().filter(|number| watch.open.contains_key(number)).collect();
                    if let (Some(taken), false) = (watch.taken, waiting.is_empty()) {
                        let number = waiting[which.index(waiting.len())];
                        watch.see(&step(&mut f, now, replied(taken, number)));
                    }
                }
                Event::Lose => {
                    if let Some(taken) = watch.taken.take() {
                        watch.see(&step(&mut f, now, lost(taken)));
                    }
                }
                Event::FailOver { good } => {
                    term += 1;
                    connection += 1;
                    let minted = term + 100;
                    let mut descent = vec![minted];
                    if good {
                        descent.extend(&generations);
                        generations = descent.clone();
                    } else if f.proven().is_some() {
                        watch.doubtful.insert(connection);
                    }
                    let node = u128::from(term % 2 + 1);
                    watch.see(&step(&mut f, now, offer(connection, standing(node, term, &descent))));
                    if !good && watch.taken == Some(connection) {
                        generations = descent;
                    }
                }
                Event::Wait(ms) => {
                    now += ms;
                    watch.see(&step(&mut f, now, Input::Wake));
                }
            }
            generations.truncate(16);
        }
        // In the end a good primary comes, and answers.
        term += 1;
        connection += 1;
        watch.see(&step(&mut f, now, offer(connection, standing(1, term, &generations))));
        while let (Some(taken), Some(&next)) = (watch.taken, watch.sent.iter().find(|n| watch.open.contains_key(n))) {
            watch.see(&step(&mut f, now, replied(taken, next)));
        }
        prop_assert_eq!(f.open(), 0, "nothing is forgotten");
        prop_assert_eq!(watch.answered.len(), usize::try_from(number).expect("few"));
    }
}
