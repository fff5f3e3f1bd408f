use std::path::Path;

use super::*;

const GOOD: &str = include_str!("../../../docs/repblk.example.toml");

fn problems(text: &str) -> Vec<String> {
    let error = Config::parse(text, Path::new("r.toml")).expect_err("the text is wrong");
    error.to_string().lines().map(str::to_owned).collect()
}

/// The example with the first line that starts with `from` replaced, and the number of that line.
fn with(from: &str, to: &str) -> (String, usize) {
    let line = GOOD.lines().position(|line| line.trim_start().starts_with(from)).expect("the example has the line");
    let text = GOOD.lines().enumerate().map(|(i, l)| if i == line { to } else { l }).collect::<Vec<_>>().join("\n");
    (text, line + 1)
}

#[test]
fn the_example_is_right_and_says_the_defaults() {
    let config = Config::parse(GOOD, Path::new("r.toml")).expect("the example is right");
    assert_eq!(config.cluster, "plant7");
    assert_eq!(config.nodes.iter().map(|n| n.name.as_str()).collect::<Vec<_>>(), ["alpha", "beta"]);
    let minimal = r#"
        cluster = "c"
        [[node]]
        name = "b"
        data = "10.0.0.2:7789"
        [[node]]
        name = "a"
        data = "10.0.0.1:7789"
        [[volume]]
        name = "mes"
        on.a.device = "/dev/sdb"
        on.b.device = "/dev/sdc"
    "#;
    let minimal = Config::parse(minimal, Path::new("r.toml")).expect("the least that is right");
    assert_eq!(minimal.nodes[0].control, Path::new("/run/repblk/b.sock"));
    assert_eq!(minimal.volumes[0].peers_of("a").collect::<Vec<_>>(), ["b"]);
    assert_eq!(minimal.volumes[0].copies[0].node, "b", "copies follow the order of the nodes");
    // The example spells out every default, so that both volumes are equal but for their copies.
    let mut example = config.volumes[0].clone();
    example.copies.clone_from(&minimal.volumes[0].copies);
    assert_eq!(example, minimal.volumes[0]);
}

#[test]
fn an_unknown_key_is_named_with_its_line_and_a_suggestion() {
    let (text, line) = with("mode =", "mod = \"sync\"");
    assert_eq!(
        problems(&text),
        [format!("r.toml:{line}: unknown key \"mod\" in [[volume]] \"mes\"; did you mean \"mode\"?")]
    );
    let (text, line) = with("cluster =", "cluster = \"plant7\"\ncolour = 3");
    assert_eq!(
        problems(&text),
        [format!(
            "r.toml:{}: unknown key \"colour\" in the file; known here are cluster, heartbeat_interval_ms, security, limits, control, arbiter, node, volume",
            line + 1
        )]
    );
}

#[test]
fn every_wrong_value_says_what_would_be_right() {
    let cases = [
        ("mode =", "mode = \"mirror\"", "it must be \"sync\", \"semisync\" or \"async\""),
        ("peer_timeout_ms", "peer_timeout_ms = 1", "a whole number from 200 to 600000 (default 2500)"),
        ("peer_timeout_ms", "peer_timeout_ms = \"3s\"", "a whole number from 200 to 600000 (default 2500)"),
        ("peer_timeout_ms", "peer_timeout_ms = -3", "a whole number from 200"),
        ("ping_interval_ms", "ping_interval_ms = 2000", "make it at most 1250"),
        ("resync_rate_max_mib_s", "resync_rate_max_mib_s = 4", "write 0 for no limit"),
        ("direct", "direct = \"yes\"", "it must be true or false, without quotes"),
        ("engine", "engine = \"aio\"", "\"auto\" or \"thread\""),
        ("pool_mib", "pool_mib = 100", "is no power of two"),
        ("data =", "data = \"10.0.0.1\"", "an IP address and a port"),
        ("data =", "data = \"0.0.0.0:7789\"", "an IP address and a port"),
        ("control =", "control = \"repblk.sock\"", "an absolute path of at most 107 bytes"),
        ("nbd =", "nbd = [\"10.0.0.1:10809\"]", "\"unix:/absolute/path\" or \"tcp:IP:PORT\""),
        ("cluster =", "cluster = \"a b\"", "a name has 1 to 63 letters"),
    ];
    for (from, to, right) in cases {
        let (text, line) = with(from, to);
        let found = problems(&text);
        let start = format!("r.toml:{line}: ");
        assert!(found.iter().any(|p| p.starts_with(&start) && p.contains(right)), "{to}: {found:?}");
    }
}

/// The example with its arbiter replaced.
fn arbiter(table: &str) -> String {
    let (head, rest) = GOOD.split_once("[arbiter]").expect("the example has an arbiter");
    let (_, nodes) = rest.split_once("[[node]]").expect("and nodes behind it");
    format!("{head}{table}\n[[node]]{nodes}")
}

#[test]
fn an_arbiter_of_each_kind_is_read_and_the_example_says_the_defaults() {
    let read = |text: &str| Config::parse(text, Path::new("r.toml")).expect("it is right").arbiter;
    let example = read(GOOD);
    let least = "[arbiter]\nkind = \"etcd\"\nendpoints = [\"https://10.0.3.1:2379\"]";
    assert_eq!(example, read(&arbiter(least)));
    let asked_again = Duration::from_secs(1);
    assert_eq!(example.timing, crate::failover::config::Timing { proof_again: asked_again, ..Default::default() });
    assert_eq!(read(&arbiter("")), read(&arbiter("[arbiter]\nkind = \"none\"")), "no table is kind none");
    let ArbiterKind::Fence(fence) = read(&arbiter("[arbiter]\nkind = \"fence\"\ncommand = [\"/f\", \"x\"]")).kind
    else {
        panic!("a fence")
    };
    assert_eq!((fence.command, fence.timeout), (vec!["/f".to_owned(), "x".to_owned()], Duration::from_secs(60)));
    // What stands there as a remark is right, too, where it belongs.
    let with_remarks = |kind: &str, keys: &[&str]| {
        let remarks = GOOD.lines().filter_map(|line| line.strip_prefix("# "));
        let lines = remarks.filter(|line| keys.iter().any(|key| line.starts_with(&format!("{key} = "))));
        arbiter(&format!("[arbiter]\nkind = \"{kind}\"\n{}", lines.collect::<Vec<_>>().join("\n")))
    };
    let fence_keys = ["command", "command_timeout_ms", "fence_again_ms", "fence_delay_ms", "gateway"];
    let fence = read(&with_remarks("fence", &fence_keys));
    assert!(fence.gateway.is_some() && fence.timing == crate::failover::config::Timing::default());
    assert!(read(&with_remarks("none", &["accept_split_brain", "gateway"])).accepts_split_brain());
}

#[test]
fn an_arbiter_that_would_be_unsafe_or_useless_is_refused() {
    let etcd = |more: &str| format!("kind = \"etcd\"\nendpoints = [\"http://127.0.0.1:2379\"]\n{more}");
    let cases = [
        (etcd("lease_ms = 3000"), "2 x renew_ms + arbiter_timeout_ms = 2 x 1500 ms + 1000 ms = 4000 ms"),
        (etcd("heartbeat_timeout_ms = 500"), "at least 4 x 200 ms = 800 ms"),
        (etcd("heartbeat_timeout_ms = 9000"), "longer than the lease"),
        (etcd("command = [\"/f\"]"), "command would do nothing here: it belongs to kind = \"fence\""),
        (etcd("user = \"u\""), "both of user and password_file"),
        (etcd("").replace("127.0.0.1", "10.0.0.9"), "say insecure = true"),
        (etcd("").replace("http", "ftp"), "\"https://HOST:PORT\""),
        (etcd("key = \"/k\"\ncertificate = \"/c\"").replace("http", "https"), "has no ca"),
        (etcd("ca = \"/c\"\nkey = \"/k\"").replace("http", "https"), "both of certificate and key"),
        (etcd("ca = \"/c\"\ninsecure = true").replace("http", "https"), "insecure would do nothing here"),
        (etcd("ca = \"/c\""), "ca would do nothing here"),
        (etcd("").replace("2379\"", "2379\", \"https://127.0.0.1:2\""), "some endpoints are https"),
        (
            "kind = \"fence\"\ncommand = [\"/f\"]\nagent_hang_ms = 2500".to_owned(),
            "agent_hang_ms would do nothing here",
        ),
        ("kind = \"agent\"\nlease_ms = 5000".to_owned(), "lease_ms would do nothing here"),
        ("kind = \"agent\"".to_owned(), "node \"alpha\" has no agent"),
        (etcd("lease_m = 3"), "did you mean \"lease_ms\"?"),
        ("kind = \"etcd\"".to_owned(), "has no usable endpoints"),
        ("kind = \"etc\"".to_owned(), "\"etcd\", \"fence\", \"agent\" or \"none\""),
        ("automatic = true".to_owned(), "has no kind"),
        ("kind = \"fence\"\ncommand = [\"fence\"]".to_owned(), "has no usable command"),
        ("kind = \"none\"\nlease_ms = 5000".to_owned(), "lease_ms would do nothing here"),
        ("kind = \"none\"\naccept_split_brain = true".to_owned(), "has no gateway"),
        ("kind = \"none\"\ngateway = \"10.0.0.1\"".to_owned(), "a gateway permits nothing"),
    ];
    for (table, what) in cases {
        let found = problems(&arbiter(&format!("[arbiter]\n{table}")));
        assert!(found.iter().any(|p| p.contains(what)), "{table}: {found:?}");
    }
    let tls = arbiter(&format!("[arbiter]\n{}", etcd("").replace("http", "https")));
    assert!(Config::parse(&tls, Path::new("r.toml")).is_ok(), "the nodes have keys");
    let found = problems(&without_keys(&tls, "insecure = true"));
    assert!(found.iter().any(|p| p.contains("no keys in [security]")), "{found:?}");
    let found = problems(&GOOD.replace("heartbeat = [", "heartbeat = [] # ["));
    assert!(found.iter().any(|p| p.contains("at least one heartbeat path")), "{found:?}");
}

#[test]
fn agents_run_on_every_host_or_on_none() {
    let nodes = |text: String| {
        text.replace("data = \"10.0.0.1:7789\"", "data = \"10.0.0.1:7789\"\nagent = \"10.0.1.1:7791\"")
            .replace("data = \"10.0.0.2:7789\"", "data = \"10.0.0.2:7789\"\nagent = \"10.0.1.2:7791\"")
    };
    let agents = nodes(arbiter("[arbiter]\nkind = \"agent\"\nagent_hang_ms = 2500"));
    let config = Config::parse(&agents, Path::new("r.toml")).expect("it is right");
    assert_eq!((config.arbiter.kind, config.arbiter.agent.hang), (ArbiterKind::Agent, Duration::from_millis(2500)));
    assert!(config.nodes.iter().all(|node| node.agent.is_some()));
    assert!(Config::parse(&nodes(GOOD.to_owned()), Path::new("r.toml")).is_ok(), "beside an etcd, too");
    let one = nodes(GOOD.to_owned()).replace("agent = \"10.0.1.2:7791\"", "");
    assert!(problems(&one)[0].contains("node \"beta\" has no agent, and another node has one"), "{:?}", problems(&one));
    let unasked = nodes(arbiter("[arbiter]\nkind = \"none\""));
    assert!(problems(&unasked)[0].contains("nobody would ask it"), "{:?}", problems(&unasked));
}

/// The example with a service in the place of the remarks about services.
fn service(tables: &str) -> String {
    GOOD.replace("[volume.on.alpha]", &format!("{tables}\n[volume.on.alpha]"))
}

#[test]
fn services_of_each_kind_are_read_as_the_example_has_them() {
    let start = GOOD.find("# [[volume.service]]").expect("the example has services as a remark");
    let remarks = GOOD[start..].lines().map_while(|line| line.strip_prefix("# "));
    let lines: Vec<&str> = remarks.filter(|line| line.starts_with("[[") || line.contains(" = ")).collect();
    let config = Config::parse(&service(&lines.join("\n")), Path::new("r.toml")).expect("the remarks are right");
    let services = &config.volumes[0].services;
    let kinds: Vec<&str> = services.iter().map(|service| service.kind.word()).collect();
    assert_eq!(kinds, ["command", "unit", "address"]);
    assert!(services.iter().all(|service| service.stop_limit == Duration::from_secs(60)), "they say the default");
    let ServiceKind::Address { address, prefix, interface } = &services[2].kind else { panic!("an address") };
    assert_eq!((address.to_string().as_str(), *prefix, interface.as_str()), ("10.0.2.100", 24, "eth0"));
}

#[test]
fn a_service_that_makes_no_sense_is_refused() {
    let address = "[[volume.service]]\nname = \"ip\"\naddress = \"10.0.2.100/24\"\ninterface = \"eth0\"\n";
    let one = |keys: &str| format!("[[volume.service]]\nname = \"x\"\n{keys}");
    let cases = [
        (one(""), "has no start, unit or address"),
        (one("unit = \"a.service\"\naddress = \"10.0.0.1/8\""), "more than one of start, unit and address"),
        (one("unit = \"a.service\"\nstop = [\"/bin/x\"]"), "stop would do nothing here"),
        (one("unit = \"--now\""), "the name of a systemd unit"),
        (one("start = [\"/bin/x\"]"), "has no usable stop"),
        (one("start = [\"x\"]\nstop = [\"/bin/x\"]"), "has no usable start"),
        (one("address = \"10.0.2.100\"\ninterface = \"eth0\""), "length of its network's prefix"),
        (one("address = \"10.0.2.100/33\"\ninterface = \"eth0\""), "length of its network's prefix"),
        (one("address = \"10.0.2.100/24\""), "has no interface"),
        (one("address = \"10.0.2.100/24\"\ninterface = \"-x\""), "the name of a network interface"),
        (one("unit = \"a.service\"\nstart_timeout_ms = 1"), "a whole number from 100"),
        (format!("{address}{}", one("unit = \"a.service\"")), "addresses come last"),
        (format!("{0}\n{0}", one("unit = \"a.service\"")), "is there twice"),
    ];
    for (tables, what) in cases {
        let found = problems(&service(&tables));
        assert!(found.iter().any(|p| p.contains(what)), "{tables}: {found:?}");
    }
}

#[test]
fn what_does_not_fit_together_is_found() {
    let cases = [
        ("name = \"beta\"", "name = \"alpha\"", "the name of the node alpha is used twice"),
        ("data = \"10.0.0.2", "data = \"10.0.0.1:7789\"", "the TCP address 10.0.0.1:7789 is used twice"),
        ("heartbeat =", "heartbeat = []", "give every node as many"),
        ("[volume.on.beta]", "[volume.on.bet]", "did you mean [volume.on.beta]?"),
        ("device = ", "device = \"sdb\"", "it must be an absolute path"),
    ];
    for (from, to, what) in cases {
        let found = problems(&with(from, to).0);
        assert!(found.iter().any(|p| p.contains(what)), "{to}: {found:?}");
    }
    let cut = GOOD.split("[volume.on.beta]").next().expect("has a head");
    assert!(problems(cut)[0].contains("has 1 of the 2 copies it needs"), "{:?}", problems(cut));
}

#[test]
fn broken_toml_and_a_missing_file_name_their_place() {
    assert!(problems("cluster = \n")[0].starts_with("r.toml:1: "));
    assert!(problems("cluster = \"c\"\n[[node]\n")[0].starts_with("r.toml:2: "));
    let missing = Config::load(Path::new("/nonexistent/r.toml")).expect_err("is not there").to_string();
    assert!(missing.starts_with("/nonexistent/r.toml: cannot be read"), "{missing}");
}

#[test]
fn all_problems_are_told_at_once_in_order() {
    let text = GOOD.replacen("mode =", "mod =", 1).replacen("data =", "date =", 1);
    let found = problems(&text);
    assert!(found.len() >= 3, "{found:?}");
    assert!(found.iter().any(|p| p.contains("date")) && found.iter().any(|p| p.contains("mod")));
}

#[test]
fn a_node_is_chosen_by_name_or_host() {
    let config = Config::parse(GOOD, Path::new("r.toml")).expect("the example is right");
    assert_eq!(config.choose_node(Some("beta"), "x").map(|n| n.name.as_str()), Ok("beta"));
    assert_eq!(config.choose_node(None, "alpha.plant.example").map(|n| n.name.as_str()), Ok("alpha"));
    let refused = config.choose_node(Some("alfa"), "x").expect_err("there is no such node");
    assert!(refused.contains("did you mean \"alpha\"?"), "{refused}");
    assert!(config.choose_node(None, "gamma").expect_err("no such host").contains("--node NAME"));
}

/// Found by fuzzing: names and paths with a line break or an escape sequence stood as they are in complaints.
#[test]
fn a_complaint_is_one_line_whatever_the_file_holds() {
    let names = GOOD.replace("\"alpha\"", "\"al\\u001b[2Jpha\"");
    let paths = GOOD.replace("control = ", "control = \"/run/a\\nb\" #");
    for text in [names, paths, GOOD.replace("mode =", "\"mo\\nde\" =")] {
        for problem in Config::parse(&text, Path::new("r.toml")).expect_err("is wrong").problems {
            assert!(!problem.1.contains(char::is_control), "{problem:?}");
        }
    }
}

/// The same with `line` instead of keys, and no word about NBD clients.
fn without_keys(text: &str, line: &str) -> String {
    let text = text.replace("nbd_tls = \"require\"", "").replace("nbd_client_certificates = true", "");
    text.replace("keys = \"/etc/repblk/keys\"", line)
}

/// The same with all addresses on this host, but for NBD.
fn on_one_host(text: &str) -> String {
    let data = text.replace("10.0.0.1:", "127.0.0.1:").replace("10.0.0.2:", "127.0.0.2:");
    data.replace("10.0.1.1:", "127.0.1.1:").replace("10.0.1.2:", "[::1]:")
}

/// The same with NBD on this host, too.
fn all_on_one_host(text: &str) -> String {
    on_one_host(text).replace("tcp:10.0.2.1:", "tcp:127.0.2.1:").replace("tcp:10.0.2.2:", "tcp:[::1]:")
}

#[test]
fn what_leaves_the_host_is_protected_unless_it_is_said_otherwise() {
    // Keys are not needed for the record.
    let good = &GOOD.replace("https://10.0.3.1", "http://127.0.0.1");
    let read = |text: &str| Config::parse(text, Path::new("r.toml")).expect("it is right").security;
    let without = without_keys(good, "").replace("[security]", "");
    let default = Security::Keys("/etc/repblk/keys".into());
    assert_eq!(read(&without), default, "nothing needs to be said");
    assert_eq!(read(good), default);
    assert_eq!(read(&all_on_one_host(&without)), Security::Loopback);
    assert_eq!(read(&all_on_one_host(good)), default, "said, it holds on loopback, too");
    // One heartbeat that leaves the host is enough, and so is NBD.
    assert_eq!(read(&all_on_one_host(&without).replace("127.0.1.1:", "10.0.1.1:")), default);
    assert_eq!(read(&on_one_host(&without)), default);
    let insecure = without_keys(good, "insecure = true");
    assert_eq!(read(&insecure), Security::Insecure);
    assert_eq!(read(&on_one_host(&insecure)), Security::Insecure);
    assert!(problems(&all_on_one_host(&insecure))[0].contains("insecure = true does nothing"));
    let both = good.replace("# insecure = true\n", "insecure = true\n");
    let found = problems(&both);
    assert!(found.iter().any(|problem| problem.contains("keys would do nothing beside insecure")), "{found:?}");
    assert!(problems(&good.replace("keys = \"/", "keys = \"")).iter().any(|p| p.contains("absolute path")));
}

#[test]
fn clients_of_other_hosts_prove_who_they_are_unless_it_is_said_otherwise() {
    let good = &GOOD.replace("https://10.0.3.1", "http://127.0.0.1");
    let read = |text: &str| Config::parse(text, Path::new("r.toml")).expect("it is right");
    let demands = |text: &str, listener: &str| {
        let rule = read(text).nbd_tls.rule(listener.parse().ok());
        (rule.mode, rule.certificates)
    };
    let (off, allow, require) = (NbdTlsMode::Off, NbdTlsMode::Allow, NbdTlsMode::Require);
    let said = |line: &str| without_keys(good, &format!("keys = \"/etc/repblk/keys\"\n{line}"));
    let cases = [
        // By default, and on a Unix socket.
        ("", "10.0.2.1", (require, true)),
        ("", "0.0.0.0", (require, true)),
        ("", "fd00::1", (require, true)),
        ("", "127.0.0.1", (allow, false)),
        ("", "::1", (allow, false)),
        ("", "", (allow, false)),
        // Said, it holds on loopback, too.
        ("nbd_tls = \"require\"", "127.0.0.1", (require, true)),
        ("nbd_tls = \"require\"", "", (allow, false)),
        ("nbd_tls = \"allow\"", "10.0.2.1", (allow, false)),
        ("nbd_client_certificates = false", "10.0.2.1", (require, false)),
        ("nbd_client_certificates = true", "10.0.2.1", (require, true)),
    ];
    for (line, listener, expected) in cases {
        assert_eq!(demands(&said(line), listener), expected, "{line:?} at {listener:?}");
    }
    // What keeps nobody out is told as that.
    let told = |line: &str| {
        let config = read(&said(line));
        let rule = config.nbd_tls.remote(&config.nodes).expect("they are reached");
        (rule.is_open(), rule.meaning())
    };
    assert!(!told("").0);
    assert!(told("nbd_tls = \"allow\"").0 && told("nbd_tls = \"allow\"").1.contains("NOBODY IS KEPT OUT"));
    assert!(told("nbd_client_certificates = false").0 && told("nbd_client_certificates = false").1.contains("ANYBODY"));
    let local = read(&all_on_one_host(good));
    assert_eq!(local.nbd_tls.remote(&local.nodes), None);
    // Without TLS there is nothing off loopback, unless nothing is encrypted anyway.
    let (text, line) =
        (said("nbd_tls = \"off\""), 1 + said("").lines().position(|line| line.starts_with("keys")).expect("keys"));
    let found = problems(&text);
    assert!(found.len() == 1 && found[0].starts_with(&format!("r.toml:{}: ", line + 1)), "{found:?}");
    for part in ["tcp:10.0.2.1:10809, tcp:10.0.2.2:10809", "\"require\"", "\"allow\"", "insecure = true"] {
        assert!(found[0].contains(part), "{found:?}");
    }
    assert_eq!(demands(&all_on_one_host(&text), "127.0.0.1"), (off, false));
    let insecure = |line: &str| without_keys(good, &format!("insecure = true\n{line}"));
    assert_eq!(demands(&insecure(""), "10.0.2.1"), (off, false));
    assert_eq!(demands(&insecure("nbd_tls = \"off\""), "10.0.2.1"), (off, false));
    for line in ["nbd_tls = \"require\"", "nbd_tls = \"allow\"", "nbd_client_certificates = true"] {
        let found = problems(&insecure(line));
        assert!(found[0].contains("nbd_tls needs keys"), "{found:?}");
    }
    for mode in ["off", "allow"] {
        let found = problems(&said(&format!("nbd_client_certificates = true\nnbd_tls = {mode:?}")));
        assert!(found[0].contains("keeps nobody out"), "{found:?}");
    }
}

#[test]
fn the_example_says_the_default_limits_and_nonsense_is_refused() {
    let config = Config::parse(GOOD, Path::new("r.toml")).expect("the example is right");
    assert_eq!(config.limits, Limits::default());
    assert_eq!(config.limits.client_idle, None, "an idle database is legal");
    let cases = [
        ("clients =", "clients = 0", "a whole number from 1 to 256 (default 256)"),
        ("clients =", "clients = 257", "a whole number from 1 to 256"),
        ("clients =", "clients = 10", "clients_per_address = 64 is more than clients = 10"),
        ("connections_per_second", "connections_per_second = 0", "a whole number from 1 to 100000 (default 20)"),
        ("connections_burst", "connections_burst = 0", "a whole number from 1"),
        ("negotiation_ms", "negotiation_ms = 10", "a whole number from 500"),
        ("client_idle_s", "client_idle_s = \"never\"", "a whole number from 0"),
        ("client_keepalive_s", "client_keepalive = 30", "did you mean \"client_keepalive_s\"?"),
    ];
    for (from, to, right) in cases {
        let (text, _) = with(from, to);
        let found = problems(&text);
        assert!(found.iter().any(|problem| problem.contains(right)), "{to}: {found:?}");
    }
    // Without the key, the part of one address is no complaint about few clients.
    let (text, _) = with("clients =", "clients = 10");
    let text = text.replace("clients_per_address = 64", "");
    assert_eq!(Config::parse(&text, Path::new("r.toml")).expect("right").limits.clients, 10);
}

#[test]
fn allow_lists_are_read_and_such_as_admit_nobody_are_refused() {
    let read = |text: &str| Config::parse(text, Path::new("r.toml")).map(|config| config.volumes[0].allow.clone());
    assert_eq!(read(GOOD).expect("right"), AllowList::default());
    // What stands there as a remark is right, too.
    let remarks = GOOD.replace("# allow", "allow");
    let allow = read(&remarks).expect("right");
    assert_eq!(allow.addresses, [Prefix::parse("10.0.2.0/24").expect("right")]);
    assert_eq!(allow.certificates, ["db1"]);
    let cases = [
        ("allow =", "allow = []", "would keep everybody out"),
        ("allow =", "allow = [\"10.0.2.9/24\"]", "write \"10.0.2.0/24\", or 10.0.2.9 alone"),
        ("allow =", "allow = [\"db1.example\"]", "is no IP address"),
        ("allow =", "allow = [\"10.0.2.1\", \"10.0.2.1/32\"]", "names \"10.0.2.1/32\" twice"),
        ("allow =", "allow = \"10.0.2.0/24\"", "a list of addresses"),
        ("allow =", "allow = [7]", "a list of addresses"),
        ("allow_certificates", "allow_certificates = []", "would keep everybody out"),
        ("allow_certificates", "allow_certificates = [\"a/b\"]", "is no name that `repblk cert issue` gives"),
        ("nbd_tls", "nbd_tls = \"off\"", "allow_certificates would admit nobody, since clients do not speak TLS"),
    ];
    for (from, to, right) in cases {
        let line = remarks.lines().find(|line| line.starts_with(from)).expect("it is there");
        let found = problems(&remarks.replacen(line, to, 1));
        assert!(found.iter().any(|problem| problem.contains(right)), "{to}: {found:?}");
    }
    let insecure = without_keys(&remarks, "insecure = true");
    let found = problems(&insecure);
    assert!(found.iter().any(|problem| problem.contains("since there are no keys")), "{found:?}");
}
