//! What runs on the primary: real programs that write down what was done to them, on both nodes in one book.

use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::node::Node;
use crate::pair::{Pair, Setup, reconfigure};
use crate::tools::{SHORT, wait_for};

/// The book of what was done.
struct Hooks {
    folder: PathBuf,
    read: usize,
}

impl Hooks {
    /// Two services for the volume of a pair that is not started yet. A file `NODE-ACTION-SERVICE` in the folder makes that fail.
    fn configure(pair: &Pair) -> Self {
        let folder = pair.dir.path().to_path_buf();
        let script = format!(
            "cd {} && echo \\\"$REPBLK_NODE $REPBLK_ACTION $REPBLK_SERVICE\\\" >> book && [ ! -e $REPBLK_NODE-$REPBLK_ACTION-$REPBLK_SERVICE ]",
            folder.display()
        );
        let service = |name: &str| {
            let words = format!("[\"/bin/sh\", \"-c\", \"{script}\"]");
            format!("[[volume.service]]\nname = \"{name}\"\nstart = {words}\nstop = {words}\n")
        };
        let tables = format!("{}{}[volume.on.alpha]", service("mount"), service("database"));
        for node in [&pair.alpha, &pair.beta] {
            reconfigure(&node.config, "[volume.on.alpha]", &tables);
        }
        Self { folder, read: 0 }
    }

    fn fail(&self, what: &str, fails: bool) {
        let file = self.folder.join(what);
        let done = if fails { std::fs::write(file, "") } else { std::fs::remove_file(file) };
        done.expect("the test's folder can be written");
    }

    fn lines(&self) -> Vec<String> {
        read(&self.folder.join("book"))
    }

    /// Waits for what is written next, in this order.
    #[track_caller]
    fn expect(&mut self, expected: &[&str]) {
        let end = self.read + expected.len();
        wait_for(&format!("{expected:?} after {:?}", self.lines()), SHORT, || {
            (self.lines().len() >= end).then_some(())
        });
        assert_eq!(self.lines()[self.read..end], *expected);
        self.read = end;
    }
}

fn read(path: &Path) -> Vec<String> {
    std::fs::read_to_string(path).unwrap_or_default().lines().map(str::to_owned).collect()
}

#[track_caller]
fn wait_states(node: &Node, expected: &[&str]) {
    node.wait(&format!("services {expected:?}"), SHORT, |volume| {
        let services = volume["services"].as_array().expect("there are services");
        services.iter().map(|service| service["state"].as_str().expect("a word")).eq(expected.iter().copied())
    });
}

const UP: [&str; 2] = ["up", "up"];
const DOWN: [&str; 2] = ["down", "down"];

#[test]
fn services_follow_the_role_in_order_and_go_back_once() {
    let pair = Pair::new(&Setup::default());
    let mut hooks = Hooks::configure(&pair);
    let mut pair = pair.begin();
    for node in [&pair.alpha, &pair.beta] {
        wait_states(node, &DOWN);
    }
    // What may have been left was stopped, on each node by itself.
    let mut swept = hooks.lines();
    swept.sort();
    assert_eq!(swept, ["alpha stop database", "alpha stop mount", "beta stop database", "beta stop mount"]);
    hooks.read = swept.len();
    pair.alpha.cli(&["promote", "--force"]).ok();
    pair.wait_in_sync();
    hooks.expect(&["alpha start mount", "alpha start database"]);
    wait_states(&pair.alpha, &UP);

    // The other one cannot start them: they go back, and nothing bounces.
    hooks.fail("beta-start-database", true);
    pair.alpha.cli(&["switchover"]).ok();
    hooks.expect(&["alpha stop database", "alpha stop mount", "beta start mount", "beta start database"]);
    hooks.expect(&["beta stop database", "beta stop mount", "alpha start mount", "alpha start database"]);
    wait_states(&pair.alpha, &UP);
    assert!(pair.beta.log_text().contains("could not be started"));
    pair.wait_in_sync();

    // One that cannot be stopped forbids it, and what was stopped starts again.
    hooks.fail("alpha-stop-mount", true);
    let refused = pair.alpha.cli(&["switchover"]).exits(5);
    assert!(refused.contains("could not be stopped"), "{refused}");
    hooks.expect(&["alpha stop database", "alpha stop mount", "alpha start database"]);
    hooks.fail("alpha-stop-mount", false);
    wait_states(&pair.alpha, &UP);

    // An operator stops them, and starts them again.
    pair.alpha.cli(&["services", "stop"]).ok();
    hooks.expect(&["alpha stop database", "alpha stop mount"]);
    pair.alpha.cli(&["services", "start"]).ok();
    hooks.expect(&["alpha start mount", "alpha start database"]);
    wait_states(&pair.alpha, &UP);

    hooks.fail("beta-start-database", false);
    pair.alpha.cli(&["switchover"]).ok();
    hooks.expect(&["alpha stop database", "alpha stop mount", "beta start mount", "beta start database"]);
    wait_states(&pair.beta, &UP);
    wait_states(&pair.alpha, &DOWN);
    let text = pair.beta.cli(&["status"]).ok();
    assert!(text.contains("service      database: up"), "{text}");

    // An end in order stops them before the device goes.
    assert_eq!(pair.beta.terminate(Duration::from_secs(14)), Some(0), "{}", pair.beta.log_end());
    hooks.expect(&["beta stop database", "beta stop mount"]);
}
