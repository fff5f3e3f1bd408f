//! Courses of events, with services that do as they are told.

use super::*;

const S: u64 = 1_000_000_000;
const NEVER: Moment = Moment(u64::MAX);

/// A mount, a database and an address, and what was done to them.
struct Scene {
    machine: Services,
    now: Moment,
    ledger: Vec<String>,
    alarms: Vec<String>,
    rested: Vec<Result<(), String>>,
    /// These fail, or hang.
    fails: Vec<&'static str>,
    hangs: Vec<&'static str>,
    hung: Option<u64>,
}

const NAMES: [&str; 3] = ["mount", "database", "address"];

impl Scene {
    fn new() -> Self {
        let rung = |address| Rung { address, start_limit: Duration::from_secs(10), stop_limit: Duration::from_secs(5) };
        let mut scene = Self {
            machine: Services::new(vec![rung(false), rung(false), rung(true)]),
            now: Moment(S),
            ledger: vec![],
            alarms: vec![],
            rested: vec![],
            fails: vec![],
            hangs: vec![],
            hung: None,
        };
        scene.give(Input::Lease { until: NEVER });
        scene
    }

    fn primary() -> Self {
        let mut scene = Self::new();
        scene.give(Input::Role { primary: true });
        scene.take();
        scene
    }

    fn take(&mut self) -> String {
        std::mem::take(&mut self.ledger).join(" ")
    }

    fn give(&mut self, input: Input) {
        let mut out = vec![];
        self.machine.step(self.now, input, &mut out);
        for effect in out {
            match effect {
                Effect::Run { job, service, action } => {
                    let word = if action == Action::Start { "+" } else { "-" };
                    let what = format!("{word}{}", NAMES[service]);
                    self.ledger.push(what.clone());
                    if self.hangs.contains(&what.as_str()) {
                        self.hung = Some(job);
                        continue;
                    }
                    let failed = self.fails.contains(&what.as_str());
                    let result = if failed { Err("exit code 1".to_owned()) } else { Ok(()) };
                    self.give(Input::Done { job, result });
                }
                Effect::Kill { job } => {
                    self.ledger.push("kill".to_owned());
                    assert_eq!(self.hung.take(), Some(job));
                    self.give(Input::Done { job, result: Err("killed".to_owned()) });
                }
                Effect::Announce { service } => self.ledger.push(format!("!{}", NAMES[service])),
                Effect::Rested { result, .. } => self.rested.push(result),
                Effect::HandBack => self.ledger.push("hand-back".to_owned()),
                Effect::Report { text, alarm: true, .. } => self.alarms.push(text),
                Effect::Report { .. } => {}
            }
        }
    }

    /// Time passes, with every deadline in it.
    fn run(&mut self, seconds: u64) {
        let end = self.now.after(Duration::from_secs(seconds));
        while let Some(due) = self.machine.next_deadline(self.now).filter(|&due| due <= end) {
            self.now = due.max(self.now);
            self.give(Input::Wake);
        }
        self.now = end;
    }

    fn states(&self) -> String {
        self.machine.states().iter().map(|(state, _)| state.word()).collect::<Vec<_>>().join(" ")
    }
}

#[test]
fn what_may_have_been_left_is_stopped_before_anything_starts() {
    let mut scene = Scene::new();
    assert_eq!(scene.take(), "-address -database -mount");
    assert_eq!(scene.states(), "down down down");
    let mut early = Scene { hangs: vec!["-mount"], ..Scene::new() };
    early.machine = Services::new(early.machine.rungs.clone());
    early.give(Input::Lease { until: NEVER });
    early.give(Input::Role { primary: true });
    early.take();
    assert_eq!(early.states(), "stopping down down");
    early.hangs.clear();
    let job = early.hung.take().expect("it hangs");
    early.give(Input::Done { job, result: Ok(()) });
    assert_eq!(early.take(), "+mount +database +address !address");
}

#[test]
fn they_start_in_order_and_stop_in_reverse() {
    let mut scene = Scene::new();
    scene.take();
    scene.give(Input::Role { primary: true });
    assert_eq!(scene.take(), "+mount +database +address !address");
    assert_eq!(scene.states(), "up up up");
    scene.give(Input::Role { primary: false });
    assert_eq!(scene.take(), "-address -database -mount");
    assert!(scene.alarms.is_empty());
}

#[test]
fn an_address_is_announced_again_and_after_the_network_was_away() {
    let mut scene = Scene::primary();
    scene.run(1);
    assert_eq!(scene.take(), ["!address"; 4].join(" "));
    scene.run(3600);
    assert_eq!(scene.take(), ["!address"; 6].join(" "));
    scene.give(Input::Healed);
    scene.run(1);
    assert_eq!(scene.take(), ["!address"; 5].join(" "));
}

#[test]
fn a_service_that_does_not_start_rolls_the_others_back_and_the_role_goes_back_once() {
    let mut scene = Scene::new();
    scene.take();
    scene.fails = vec!["+database"];
    scene.give(Input::Role { primary: true });
    assert_eq!(scene.take(), "+mount +database -database -mount hand-back");
    assert_eq!(scene.states(), "down failed down");
    // The peer cannot take it: nothing more is tried.
    scene.run(100);
    assert_eq!(scene.take(), "");
    // An operator has mended it; then it fails again, and nothing bounces.
    scene.give(Input::Release);
    assert_eq!(scene.take(), "+mount +database -database -mount");
    assert!(scene.alarms.last().expect("an alarm").contains("repblk services start"));
    scene.fails.clear();
    scene.give(Input::Release);
    assert_eq!(scene.take(), "+mount +database +address !address");
}

#[test]
fn a_role_that_comes_back_is_not_handed_back() {
    let mut scene = Scene::primary();
    scene.give(Input::Role { primary: false });
    scene.take();
    scene.fails = vec!["+mount"];
    scene.run(10);
    scene.give(Input::Role { primary: true });
    assert_eq!(scene.take(), "+mount -mount", "the peer has just failed to start them");
}

#[test]
fn what_hangs_is_ended_after_its_time() {
    let mut scene = Scene::new();
    scene.take();
    scene.hangs = vec!["+database"];
    scene.give(Input::Role { primary: true });
    scene.run(9);
    assert_eq!(scene.take(), "+mount +database");
    assert_eq!(scene.states(), "up starting down");
    scene.run(1);
    assert_eq!(scene.take(), "kill -database -mount hand-back");
    assert!(scene.alarms[0].contains("took too long"), "{:?}", scene.alarms);
}

#[test]
fn a_start_is_given_up_at_once_when_the_role_is_gone() {
    let mut scene = Scene::new();
    scene.take();
    scene.hangs = vec!["+database"];
    scene.give(Input::Role { primary: true });
    scene.give(Input::Role { primary: false });
    assert_eq!(scene.take(), "+mount +database kill -database -mount");
    assert!(scene.alarms.is_empty(), "nothing is wrong with it: {:?}", scene.alarms);
}

#[test]
fn a_role_is_given_up_after_everything_is_stopped() {
    let mut scene = Scene::primary();
    scene.give(Input::Rest { ticket: Ticket(1) });
    assert_eq!(scene.take(), "-address -database -mount");
    assert_eq!(scene.rested, [Ok(())]);
    scene.run(100);
    assert_eq!(scene.take(), "", "they stay stopped until the role is gone, or kept");
    scene.give(Input::Release);
    assert_eq!(scene.take(), "+mount +database +address !address");
    let mut standby = Scene::new();
    standby.give(Input::Rest { ticket: Ticket(2) });
    assert_eq!(standby.rested, [Ok(())]);
    standby.give(Input::Role { primary: true });
    assert!(standby.take().ends_with("-mount"), "an operator wants them stopped");
}

#[test]
fn a_service_that_cannot_be_stopped_forbids_it_and_the_others_start_again() {
    let mut scene = Scene::primary();
    scene.fails = vec!["-mount"];
    scene.give(Input::Rest { ticket: Ticket(1) });
    assert_eq!(scene.take(), "-address -database -mount +database +address !address");
    assert!(scene.rested[0].as_ref().expect_err("it is refused").contains("exit code 1"));
    assert_eq!(scene.states(), "up up up");
}

#[test]
fn where_the_role_was_taken_everything_is_tried_and_somebody_told() {
    let mut scene = Scene::primary();
    (scene.fails, scene.hangs) = (vec!["-database"], vec!["-address"]);
    scene.give(Input::Role { primary: false });
    scene.run(5);
    assert_eq!(scene.take().replace("!address ", ""), "-address kill -database -mount");
    assert_eq!(scene.states(), "down stuck stuck");
    assert_eq!(scene.alarms.len(), 2);
}

#[test]
fn a_lease_that_is_over_takes_the_address_and_leaves_the_rest() {
    let mut scene = Scene::primary();
    scene.give(Input::Lease { until: scene.now.after(Duration::from_secs(70)) });
    scene.run(69);
    scene.take();
    scene.run(1);
    assert_eq!(scene.take(), "-address");
    assert_eq!(scene.states(), "up up down");
    scene.give(Input::Lease { until: NEVER });
    assert_eq!(scene.take(), "+address !address");
}

#[test]
fn nothing_starts_without_a_lease() {
    let mut scene = Scene::new();
    scene.take();
    scene.give(Input::Lease { until: Moment(0) });
    scene.give(Input::Role { primary: true });
    assert_eq!(scene.take(), "");
    scene.give(Input::Lease { until: NEVER });
    assert_eq!(scene.take(), "+mount +database +address !address");
}
