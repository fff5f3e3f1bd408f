//! Who may command a daemon: other users of the host, as the kernel tells them apart.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::time::Duration;

use crate::node::{Node, REPBLK, User};
use crate::pair::{Pair, Setup, reconfigure};
use crate::tools::public_folder;

/// A number that no group of the host has.
const GROUP: u32 = 54_321;

/// A pair whose files every user may see, before its start. `control` is the table of that name, for both nodes.
fn visible(control: &str) -> Pair {
    let (dir, program) = public_folder(REPBLK);
    let mut pair = Pair::within(dir, &Setup::default());
    for node in [&mut pair.alpha, &mut pair.beta] {
        reconfigure(&node.config, "cluster = \"test\"", &format!("cluster = \"test\"\n[control]\n{control}"));
        node.program.clone_from(&program);
    }
    pair
}

fn nobody() -> User {
    User { number: 65_534, groups: Vec::new() }
}

fn member() -> User {
    User { number: 60_001, groups: vec![7, GROUP] }
}

fn permissions(node: &Node) -> (u32, u32) {
    let facts = std::fs::metadata(&node.control).expect("the daemon listens");
    (facts.permissions().mode() & 0o777, facts.gid())
}

#[test]
fn a_member_of_the_group_commands_and_another_user_is_kept_out() {
    let pair = visible(&format!("group = \"{GROUP}\"")).begin();
    let alpha = &pair.alpha;
    assert_eq!(permissions(alpha), (0o660, GROUP));
    for args in [&["status"][..], &["plan"], &["promote", "--force"]] {
        let told = alpha.cli_as(&nobody(), args).exits(1);
        assert!(told.contains("refused by the rule control-group: "), "{told}");
        assert!(told.contains(&format!("members of the group {GROUP}")), "{told}");
    }
    alpha.cli_as(&member(), &["promote", "--force"]).ok();
    pair.wait_in_sync();
    assert!(alpha.cli_as(&member(), &["status"]).ok().contains("primary, uptodate"));
    // Whoever has the daemon's own group, and is not in the one that counts.
    alpha.cli_as(&User { number: 60_002, groups: vec![0] }, &["disconnect"]).exits(1);
    let log = alpha.log_text();
    let line = log.lines().find(|line| line.contains("operator's command")).expect("it is in the journal");
    assert!(line.contains("user=\"60001\" uid=60001 pid="), "{line}");
    alpha.cli(&["pause"]).ok();
    alpha.cli(&["resume"]).ok();
    let log = alpha.log_text();
    let line = log.lines().rfind(|line| line.contains("operator's command")).expect("it is in the journal");
    assert!(line.contains("user=\"root\" uid=0 pid="), "{line}");
    pair.assert_identical();
}

#[test]
fn everyone_may_look_where_that_is_said_and_nobody_more() {
    let pair = visible(&format!("group = \"{GROUP}\"\nread = \"everyone\"")).begin();
    let alpha = &pair.alpha;
    assert_eq!(permissions(alpha), (0o666, GROUP));
    assert!(alpha.cli_as(&nobody(), &["status"]).ok().contains("volume mes"));
    alpha.cli_as(&nobody(), &["plan"]).ok();
    alpha.cli_as(&nobody(), &["history"]).ok();
    for args in
        [&["promote", "--force"][..], &["demote"], &["disconnect"], &["resync", "--full"], &["maintenance", "on"]]
    {
        let told = alpha.cli_as(&nobody(), args).exits(1);
        assert!(told.contains("refused by the rule control-read-only: user nobody may look at node alpha"), "{told}");
    }
    alpha.cli_as(&member(), &["promote", "--force"]).ok();
    pair.wait_in_sync();
    assert_eq!(alpha.log_text().matches("operator's command").count(), 1, "what was refused was not done");
    pair.assert_identical();
}

/// A host without the group has no such members, and the log says so where the configuration names one.
#[test]
fn a_group_that_is_not_there_opens_nothing() {
    let pair = visible("group = \"no-such-group\"").begin();
    assert_eq!(permissions(&pair.alpha), (0o600, 0));
    pair.alpha.cli_as(&member(), &["status"]).exits(1);
    assert!(pair.alpha.log_text().contains("this host has no such group"), "{}", pair.alpha.log_end());
}

/// What listens on TCP takes no command, whatever is said to it.
#[test]
fn nothing_is_commanded_over_tcp() {
    let pair = Pair::up(&Setup::default());
    let request = b"{\"version\":1,\"ask\":{\"do\":{\"volume\":null,\"verb\":\"disconnect\",\"timeout_ms\":1000}}}\n";
    for address in [&pair.alpha.data, &pair.alpha.nbd_tcp] {
        let mut stream = TcpStream::connect(address).expect("the daemon listens");
        stream.set_read_timeout(Some(Duration::from_secs(1))).expect("is set");
        stream.write_all(request).expect("there is room");
        let mut said = Vec::new();
        // It may close, or wait for the rest of what it takes for a greeting.
        let _ = stream.read_to_end(&mut said);
        assert!(!String::from_utf8_lossy(&said).contains("reply"), "{address}: {said:?}");
    }
    assert!(!pair.alpha.log_text().contains("command=\"disconnect\""));
    pair.assert_identical();
}
