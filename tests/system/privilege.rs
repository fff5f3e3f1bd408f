//! What the daemon needs of a host, and no more: pairs that live under the sandbox of their unit, as a user of their own.

use std::os::unix::fs::{MetadataExt, chown};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::ledger::Ledger;
use crate::node::{Node, REPBLK, Sandbox, User, VOLUME};
use crate::pair::{Pair, Setup, in_sync, reconfigure};
use crate::tools::{LONG, Running, SHORT, public_folder, run, signal, wait_for};

/// Whom the daemons run as; no user of the host.
const DAEMON: u32 = 61_234;
/// The exposure that `systemd-analyze security` may find, in tenths: what docs/security.md says, and one for another version of systemd.
const EXPOSURE_MAX: u32 = 15;

fn unit(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("docs").join(name)
}

fn daemon() -> User {
    User { number: DAEMON, groups: Vec::new() }
}

fn operator() -> User {
    User { number: 60_001, groups: vec![DAEMON] }
}

/// A pair in the sandbox of `units`, formatted and not started; whatever it needs belongs to its user.
fn confined(units: &[PathBuf], setup: &Setup) -> Pair {
    let (dir, program) = public_folder(REPBLK);
    // As docs/operations.md has it: the folder of keys is the daemon's before root makes them.
    let keys = dir.path().join("keys");
    std::fs::create_dir(&keys).expect("the test's folder can be written");
    give(&keys);
    let mut pair = Pair::within(dir, setup);
    give(pair.dir.path());
    let folder = pair.dir.path().to_path_buf();
    for node in [&mut pair.alpha, &mut pair.beta] {
        let control = format!("cluster = \"test\"\n[control]\ngroup = \"{DAEMON}\"");
        reconfigure(&node.config, "cluster = \"test\"", &control);
        give(&node.device);
        node.program.clone_from(&program);
        node.sandbox = Some(Sandbox { units: units.to_vec(), user: daemon(), folder: folder.clone() });
    }
    pair
}

fn give(path: &Path) {
    chown(path, Some(DAEMON), Some(DAEMON)).expect("these tests run as root");
}

/// Formats and starts both nodes, all by the daemon's user.
fn begin(pair: &mut Pair) {
    for node in [&mut pair.alpha, &mut pair.beta] {
        node.cli_as(&daemon(), &["init"]).ok();
        node.start();
    }
    pair.wait_connected();
}

/// What the kernel says of a process, by the first word of the line.
fn fact(pid: u32, name: &str) -> String {
    let text = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("the process runs");
    let line = text.lines().find_map(|line| line.strip_prefix(name)).expect("Linux says so");
    line.trim().to_owned()
}

/// Everything that a pair does, with nothing but its files: keys, sync, load, attach, a service, a switchover by a member of its group, renewal.
#[test]
fn a_pair_lives_in_the_sandbox_of_its_unit_as_a_user_of_its_own() {
    let mut pair = confined(&[unit("repblk.service")], &Setup { keys: true, ..Setup::default() });
    let book = pair.dir.path().join("book");
    let word = format!("[\"/bin/sh\", \"-c\", \"echo $REPBLK_NODE $REPBLK_ACTION >> {}\"]", book.display());
    let service = format!("[[volume.service]]\nname = \"x\"\nstart = {word}\nstop = {word}\n[volume.on.alpha]");
    for node in [&pair.alpha, &pair.beta] {
        reconfigure(&node.config, "[volume.on.alpha]", &service);
    }
    begin(&mut pair);
    for node in [&pair.alpha, &pair.beta] {
        let pid = node.pid();
        assert_eq!(fact(pid, "Uid:"), [DAEMON; 4].map(|number| number.to_string()).join("\t"));
        for (name, expected) in [
            ("CapEff:", "0000000000000000"),
            ("CapBnd:", "0000000000000000"),
            ("CapAmb:", "0000000000000000"),
            ("NoNewPrivs:", "1"),
            ("Seccomp:", "2"),
        ] {
            assert_eq!(fact(pid, name), expected, "{name}");
        }
        // Nobody but root looks into a process that is not to be dumped.
        assert_eq!(std::fs::metadata(format!("/proc/{pid}/mem")).expect("it runs").uid(), 0);
        assert!(!node.log_text().contains("io_uring is not to be had"), "the ring is admitted:\n{}", node.log_end());
    }
    pair.alpha.cli_as(&operator(), &["promote", "--force"]).ok();
    pair.wait_in_sync();
    let ledger = Ledger::start(&[pair.alpha.place(), pair.beta.place()], 2, 64);
    ledger.wait_more(200, SHORT);
    // Root renews, and the daemons can read what he made.
    pair.alpha.cli(&["cert", "renew", "--secret", "--days", "20"]).ok();
    let keys = pair.dir.path().join("keys");
    let owner = |name: &str| std::fs::metadata(keys.join(name)).expect("it was made").uid();
    assert_eq!(["alpha.key", "alpha.pem", "ca.pem", "cluster.secret"].map(owner), [DAEMON; 4]);
    assert_eq!(owner("ca.key"), 0, "the daemon cannot make nodes");
    for node in [&pair.alpha, &pair.beta] {
        wait_for("the new certificate", SHORT, || node.cli(&["status"]).ok().contains("expires on").then_some(()));
    }
    pair.proxy.cut();
    pair.alpha.wait("the loss of the link", SHORT, |volume| volume["peers"][0]["connection"] != "connected");
    pair.proxy.mend();
    pair.alpha.wait("the link with new keys", SHORT, in_sync);
    pair.alpha.cli_as(&operator(), &["switchover"]).ok();
    ledger.wait_more(200, SHORT);
    ledger.stop().audit(&mut pair.beta.client());
    let written = std::fs::read_to_string(&book).expect("services ran");
    let starts: Vec<_> = written.lines().filter(|line| line.ends_with("start")).collect();
    assert_eq!(starts, ["alpha start", "beta start"]);
    pair.assert_identical();
}

/// A device that follows the primary needs no more.
#[test]
fn attach_lives_in_the_same_sandbox() {
    let mut pair = confined(&[unit("repblk.service")], &Setup::default());
    begin(&mut pair);
    pair.alpha.cli_as(&operator(), &["promote", "--force"]).ok();
    pair.wait_in_sync();
    let sandbox = pair.alpha.sandbox.clone().expect("it was made above");
    let mut command = sandbox.command();
    command.arg(&pair.alpha.program).arg("--config").arg(&pair.alpha.config);
    command.args(["attach", VOLUME, "--dir"]).arg(pair.dir.path());
    let _attached = Running::start(command);
    let device = pair.dir.path().join(format!("attach-{VOLUME}.nbd"));
    wait_for("the device", SHORT, || device.exists().then_some(()));
    let uri = format!("nbd+unix:///?socket={}", device.display());
    run("qemu-io", ["-f", "raw", "-c", "write -P 9 1M 2M", "-c", "flush", "-c", "read -P 9 1M 2M", &uri], LONG).ok();
    pair.assert_identical();
}

/// The keys are in the daemon's memory, and on no disk when it crashes; what forbids it is the daemon itself.
#[test]
fn a_daemon_that_crashes_leaves_no_memory_behind() {
    let (unit, _remove) = {
        let dir = tempfile::tempdir().expect("a folder");
        let unit = dir.path().join("dumps.service");
        std::fs::write(&unit, "[Service]\nLimitCORE=infinity\n").expect("it can be written");
        (unit, dir)
    };
    let mut pair = confined(&[unit], &Setup::default());
    begin(&mut pair);
    let dumps = |folder: &Path| {
        let entries = std::fs::read_dir(folder).expect("it is there").map(|entry| entry.expect("is read").file_name());
        entries.filter(|name| name.to_string_lossy().starts_with("core")).count()
    };
    let sandbox = pair.alpha.sandbox.clone().expect("it was made above");
    let (pid, pattern) = (pair.alpha.pid(), std::fs::read_to_string("/proc/sys/kernel/core_pattern").expect("Linux"));
    assert!(
        fact(pid, "CoreDumping:") == "0" && std::fs::metadata(format!("/proc/{pid}/mem")).is_ok_and(|m| m.uid() == 0)
    );
    signal(pid, "ABRT");
    assert_eq!(pair.alpha.wait_end(SHORT), None, "a signal ended it");
    assert_eq!(dumps(pair.dir.path()), 0);
    if pattern.trim() == "core" {
        // Whatever else crashes in that place is dumped.
        let mut other = sandbox.command();
        other.args(["sh", "-c", "kill -ABRT $$"]);
        Running::start(other).finish(SHORT);
        assert_eq!(dumps(pair.dir.path()), 1);
    }
}

/// An agent with the daemon's user, and no capability, ends a daemon that hangs.
#[test]
fn an_agent_of_the_daemons_user_ends_a_daemon_that_hangs() {
    let arbiter = "kind = \"agent\"\nsettled_ms = 500\ndwell_ms = 0\nagent_hang_ms = 2000\n".to_owned();
    let volume_keys = "peer_timeout_ms = 1000\nping_interval_ms = 250";
    let setup = Setup { keys: true, agents: true, arbiter, volume_keys, ..Setup::default() };
    let mut pair = confined(&[unit("repblk.service")], &setup);
    let agent = |node: &Node| {
        let sandbox =
            Sandbox { units: vec![unit("repblk-agent.service")], ..node.sandbox.clone().expect("made above") };
        let mut command = sandbox.command();
        command.arg(&node.program).arg("--config").arg(&node.config).args(["--node", node.name, "agent"]);
        Running::start(command)
    };
    let _agents = [agent(&pair.alpha), agent(&pair.beta)];
    begin(&mut pair);
    pair.alpha.cli_as(&operator(), &["promote", "--force"]).ok();
    pair.wait_in_sync();
    let ledger = Ledger::start(&[pair.alpha.place(), pair.beta.place()], 2, 64);
    ledger.wait_more(200, SHORT);
    signal(pair.alpha.pid(), "STOP");
    pair.beta.wait("the promotion", LONG, |volume| volume["role"] == "primary");
    assert_eq!(pair.alpha.wait_end(SHORT), None, "its agent killed it");
    ledger.wait_more(20, SHORT);
    ledger.stop().audit(&mut pair.beta.client());
}

/// What systemd itself says of the units.
#[test]
fn the_units_are_right_and_exposed_no_more_than_is_said() {
    let dir = tempfile::tempdir().expect("a folder");
    for name in ["repblk", "repblk-agent"] {
        // The program is where the unit expects it on no machine that builds it.
        let text = std::fs::read_to_string(unit(&format!("{name}.service"))).expect("it is there");
        let copy = dir.path().join(format!("{name}.service"));
        std::fs::write(&copy, text.replace("/usr/local/sbin/repblk", "/bin/true")).expect("it can be written");
        let verified = run("systemd-analyze", ["verify", "--man=no", &copy.display().to_string()], SHORT);
        assert_eq!(verified.ok() + "", "", "nothing to complain of");
        let limit = format!("--threshold={EXPOSURE_MAX}");
        let security = ["security", "--offline=true", "--no-pager", &limit, &copy.display().to_string()];
        let told = run("systemd-analyze", security, SHORT).ok();
        println!("{}", told.lines().last().unwrap_or_default());
        // The drop-in for addresses opens what it says, and no more.
        let drop_in = dir.path().join(format!("{name}.service.d"));
        std::fs::create_dir(&drop_in).expect("it can be made");
        std::fs::copy(unit("repblk-services.conf"), drop_in.join("services.conf")).expect("it can be written");
        run("systemd-analyze", ["verify", "--man=no", &copy.display().to_string()], SHORT).ok();
    }
}

/// With the drop-in for services, an address comes and goes with the role; without capabilities beyond the two.
#[test]
fn the_drop_in_for_services_lets_an_address_be_given_and_taken() {
    let sandbox = Sandbox {
        units: vec![unit("repblk.service"), unit("repblk-services.conf")],
        user: daemon(),
        folder: std::env::temp_dir(),
    };
    let script = "ip address add 10.99.0.1/24 dev lo && ip -brief address show dev lo && ip address del 10.99.0.1/24 dev lo && grep CapEff /proc/self/status";
    let mut command = Command::new("unshare");
    let inner = sandbox.command();
    command.arg("--net").arg(inner.get_program()).args(inner.get_args()).args(["sh", "-c", script]);
    let said = Running::start(command).finish(Duration::from_secs(10)).ok();
    assert!(said.contains("10.99.0.1/24"), "{said}");
    assert!(said.contains("CapEff:\t0000000000003000"), "{said}");
    let mut without = Command::new("unshare");
    let inner = Sandbox { units: vec![unit("repblk.service")], ..sandbox }.command();
    without.arg("--net").arg(inner.get_program()).args(inner.get_args()).args(["sh", "-c", script]);
    Running::start(without).finish(Duration::from_secs(10)).fails();
}
