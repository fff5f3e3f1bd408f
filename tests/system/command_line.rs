//! The command line: exit codes, refusals, JSON, events, completions, complaints about the configuration.

use std::process::Command;
use std::time::Duration;

use serde_json::Value;

use crate::node::REPBLK;
use crate::pair::{Pair, Setup, reconfigure};
use crate::tools::{Running, SHORT, run, wait_for};

#[test]
fn exit_codes_and_refusals_are_as_documented() {
    let mut pair = Pair::up(&Setup::default());
    let config = pair.alpha.config.display().to_string();
    // 1: a rule, its name, and the way out.
    let refusals: [(&str, &[&str], &str, &str); 7] = [
        ("alpha", &["promote"], "already-primary", "Nothing needs to be done"),
        ("beta", &["promote"], "peer-is-primary", "repblk switchover"),
        ("beta", &["promote", "--force"], "peer-is-primary", "repblk switchover"),
        ("beta", &["promote", "--force", "--peer-is-down"], "peer-is-primary", "repblk switchover"),
        ("beta", &["demote"], "not-primary", "Nothing needs to be done"),
        ("beta", &["switchover"], "not-primary", "on the primary node"),
        ("alpha", &["resync", "--discard-local"], "already-primary", "Demote this node first"),
    ];
    for (node, args, rule, way_out) in refusals {
        let node = if node == "alpha" { &pair.alpha } else { &pair.beta };
        let ran = node.cli(args);
        assert!(ran.took < Duration::from_secs(2), "{args:?} took {:?}", ran.took);
        let said = ran.exits(1);
        assert!(said.contains(&format!("refused by the rule {rule}")), "{args:?}: {said}");
        assert!(said.contains(way_out), "{args:?} names the way out: {said}");
    }
    let client = pair.alpha.client();
    let said = pair.alpha.cli(&["demote"]).exits(1);
    assert!(said.contains("clients-connected") && said.contains("--disconnect-clients"), "{said}");
    drop(client);
    // 2: the command line or the configuration.
    for args in
        [&["frobnicate"][..], &["status", "--wrong"], &["promote", "--timeout", "0"], &["pause", "--volume", "logs"]]
    {
        let said = pair.alpha.cli(args).exits(2);
        assert!(!said.trim().is_empty());
    }
    let said = run(REPBLK, ["--config", &config, "--node", "alpa", "status"], SHORT).exits(2);
    assert!(said.contains("did you mean \"alpha\"?"), "{said}");
    let said = run(REPBLK, ["--config", "/nonexistent/repblk.toml", "status"], SHORT).exits(2);
    assert!(said.contains("/nonexistent/repblk.toml") && said.contains("--config"), "{said}");
    // 0: what works.
    for args in [&["pause"][..], &["resume"], &["status"], &["--help"], &["--version"]] {
        pair.alpha.cli(args).ok();
    }
    pair.alpha.cli(&["demote"]).ok();
    assert_eq!(pair.alpha.status()["role"], "secondary");
    pair.beta.cli(&["promote"]).ok();
    pair.beta.cli(&["disconnect"]).ok();
    let said = pair.beta.cli(&["switchover"]).exits(1);
    assert!(said.contains("not-connected"), "{said}");
    pair.beta.cli(&["connect"]).ok();
    pair.assert_identical();
    pair.beta.cli(&["resync", "--full"]).ok();
    pair.assert_identical();
    // 3: no daemon.
    pair.alpha.kill();
    let said = pair.alpha.cli(&["status"]).exits(3);
    assert!(said.contains("repblk serve"), "{said}");
}

#[test]
fn the_status_has_every_field_that_was_promised() {
    let setup = Setup { volume_keys: "resync_rate_max_mib_s = 8", ..Setup::default() };
    let pair = Pair::fresh(&setup);
    pair.alpha.cli(&["promote", "--force"]).ok();
    pair.alpha.wait("a resync", SHORT, |v| v["resync"]["bytes_done"].as_u64() > Some(0));
    let text = pair.alpha.cli(&["status", "--json"]).ok();
    assert_eq!(text.lines().count(), 1, "one object on one line: {text}");
    let status: Value = serde_json::from_str(&text).expect("is JSON");
    assert_eq!(status["schema"], 1);
    let volume = &status["volumes"][0];
    let strings = [
        "/volume",
        "/role",
        "/disk_state",
        "/mode",
        "/generation",
        "/peers/0/name",
        "/peers/0/connection",
        "/peers/0/replication",
        "/peers/0/disk_state",
        "/promotable/reason",
    ];
    for field in strings {
        assert!(volume.pointer(field).is_some_and(Value::is_string), "{field} is a string: {volume:#}");
    }
    let numbers = [
        "/term",
        "/nbd/clients",
        "/peers/0/out_of_sync_bytes",
        "/resync/percent",
        "/resync/bytes_done",
        "/resync/bytes_total",
        "/resync/rate",
        "/resync/eta_s",
    ];
    for field in numbers {
        assert!(volume.pointer(field).is_some_and(Value::is_number), "{field} is a number: {volume:#}");
    }
    assert!(volume["promotable"]["yes"].is_boolean(), "{volume:#}");
    assert!(volume.as_object().is_some_and(|fields| fields.contains_key("frozen")), "{volume:#}");
    assert_eq!(volume["resync"]["part"], "source");
    let target = pair.beta.status();
    assert_eq!(target["resync"]["part"], "target", "{target:#}");
    assert_eq!(target["disk_state"], "inconsistent", "{target:#}");
    pair.wait_in_sync();
    let volume = pair.alpha.status();
    assert!(volume["resync"].is_null() && volume["frozen"].is_null(), "{volume:#}");
    // For people, too.
    let text = pair.alpha.cli(&["status"]).ok();
    for word in ["mes", "primary", "uptodate", "beta", "connected"] {
        assert!(text.to_lowercase().contains(word), "{word} is shown: {text}");
    }
    pair.assert_identical();
}

#[test]
fn requests_that_wait_show_why() {
    let pair = Pair::up(&Setup::default());
    let mut client = pair.alpha.client();
    crate::tools::signal(pair.beta.pid(), "STOP");
    let writing = std::thread::spawn(move || client.write(0, &[1; 4096], crate::raw_nbd::FUA));
    let waiting = pair.alpha.wait("a write that waits", SHORT, |v| v["requests"].as_u64() > Some(0));
    assert_eq!(waiting["role"], "primary");
    crate::tools::signal(pair.beta.pid(), "CONT");
    assert_eq!(writing.join().expect("does not panic").expect("is served"), 0);
    pair.assert_identical();
}

#[test]
fn events_tell_how_things_are_and_then_every_change() {
    let pair = Pair::up(&Setup::default());
    let listen = |name: &str, json: &str| {
        let path = pair.dir.path().join(name);
        let line = format!(
            "exec {REPBLK} --config {} --node alpha events {json} > {}",
            pair.alpha.config.display(),
            path.display()
        );
        let mut command = Command::new("sh");
        command.args(["-ec", &line]);
        (Running::start(command), path)
    };
    let listeners = [listen("events.json", "--json"), listen("events.txt", "")];
    let heard = |listener: usize| std::fs::read_to_string(&listeners[listener].1).unwrap_or_default();
    // Both listen when they have told how things are.
    wait_for("the listeners", SHORT, || (heard(0).contains("exists_end") && !heard(1).is_empty()).then_some(()));
    pair.proxy.reset();
    wait_for("the loss of the link and a new one", SHORT, || heard(0).contains("link_up").then_some(()));
    pair.wait_in_sync();
    pair.alpha.cli(&["switchover"]).ok();
    wait_for("the change of role", SHORT, || {
        (heard(0).contains("\"what\":\"role\"") && heard(1).contains("role")).then_some(())
    });
    let (json, text) = (heard(0), heard(1));
    let events: Vec<Value> = json.lines().map(|line| serde_json::from_str(line).expect("one object a line")).collect();
    let kind = |name: &str| events.iter().position(|event| event["event"] == name);
    assert_eq!(events[0]["event"], "exists", "first how things are");
    assert_eq!(events[0]["status"]["role"], "primary");
    assert!(kind("exists_end") < kind("link_down") && kind("link_down") < kind("link_up"), "{json}");
    let role = events.iter().find(|event| event["event"] == "changed" && event["what"] == "role");
    let role = role.unwrap_or_else(|| panic!("the change of role is told: {json}"));
    assert_eq!((&role["old"], &role["new"]), (&"primary".into(), &"secondary".into()));
    assert!(role["why"].as_str().is_some_and(|why| !why.is_empty()) && role["time_ms"].is_u64(), "{role}");
    assert!(text.contains("role"), "{text}");
    pair.assert_identical();
}

#[test]
fn the_configuration_is_checked_with_line_and_advice() {
    let pair = Pair::new(&Setup { volume_keys: "peer_timeout_ms = 3000", ..Setup::default() });
    let config = &pair.alpha.config;
    let check = || run(REPBLK, ["--config", &config.display().to_string(), "config", "check"], SHORT);
    let said = check().ok();
    assert!(said.contains("right") && said.contains("volume mes") && said.contains("node beta"), "{said}");
    let text = std::fs::read_to_string(config).expect("is there");
    let line_of = |what: &str| 1 + text.lines().position(|line| line.starts_with(what)).expect("is in the text");
    let wrongs = [
        ("mode = \"sync\"", "mode = \"synk\"", "\"sync\", \"semisync\" or \"async\""),
        ("peer_timeout_ms = 3000", "peer_timeout = 3000", "did you mean peer_timeout_ms"),
        ("peer_timeout_ms = 3000", "peer_timeout_ms = 3", "200"),
        ("cluster = \"test\"", "cluster = \"\"", "a name has"),
    ];
    for (right, wrong, advice) in wrongs {
        reconfigure(config, right, wrong);
        let said = check().exits(2);
        let place = format!("{}:{}:", config.display(), line_of(right));
        assert!(said.contains(&place), "{wrong}: the line is named ({place}): {said}");
        assert!(
            said.replace(['`', '"'], "").contains(&advice.replace(['`', '"'], "")),
            "{wrong}: what would be right: {said}"
        );
        std::fs::write(config, &text).expect("can be written");
    }
    std::fs::write(config, text.replace("[[node]]", "[[node")).expect("can be written");
    assert!(check().exits(2).contains(".toml:3"), "a mistake of syntax has its line");
    // Nothing that is wrong is served.
    let said = run(REPBLK, ["--config", &config.display().to_string(), "--node", "alpha", "serve"], SHORT).exits(2);
    assert!(said.contains(".toml:3"), "{said}");
}

#[test]
fn completions_are_written_for_every_shell() {
    for shell in ["bash", "zsh", "fish"] {
        let script = run(REPBLK, ["completions", shell], SHORT).ok();
        assert!(script.contains("switchover") && script.contains("discard-local"), "{shell}: {script}");
    }
    run("bash", ["-n", "-c", &run(REPBLK, ["completions", "bash"], SHORT).ok()], SHORT).ok();
}
