//! What programs that know nothing of repblk make of the NBD server.

use std::io::{Read, Seek, SeekFrom, Write};

use serde_json::Value;

use crate::node::{Node, VOLUME};
use crate::pair::{MIB, Pair, Setup};
use crate::raw_nbd::Raw;
use crate::tools::{LONG, SHORT, noise, run};

#[track_caller]
fn nbdinfo(args: &[&str]) -> Value {
    serde_json::from_str(&run("nbdinfo", args, SHORT).ok()).expect("nbdinfo --json prints JSON")
}

#[test]
fn every_property_is_shown_on_both_kinds_of_socket() {
    let pair = Pair::up(&Setup::default());
    let size = pair.alpha.data_len();
    for uri in [pair.alpha.unix_uri(), pair.alpha.tcp_uri()] {
        let info = nbdinfo(&["--json", &uri]);
        assert_eq!(info["protocol"], "newstyle-fixed", "{info:#}");
        assert_eq!(info["structured"], true, "{info:#}");
        let export = &info["exports"][0];
        let expected = [
            ("export-size", Value::from(size)),
            ("is_read_only", false.into()),
            ("can_multi_conn", true.into()),
            ("can_fua", true.into()),
            ("can_flush", true.into()),
            ("can_trim", true.into()),
            ("can_zero", true.into()),
            ("can_fast_zero", true.into()),
            ("can_cache", true.into()),
            ("can_df", true.into()),
            ("block_size_minimum", 1.into()),
            ("block_size_preferred", 4096.into()),
            ("block_size_maximum", (32 * MIB).into()),
            ("export-name", VOLUME.into()),
        ];
        for (key, value) in expected {
            assert_eq!(export[key], value, "{key} at {uri}: {export:#}");
        }
        assert_eq!(export["contexts"], serde_json::json!(["base:allocation"]), "{export:#}");
        let description = export["description"].as_str().expect("a description");
        assert!(description.contains("volume mes of cluster test"), "{description}");
    }
    let place = format!("nbd+unix:///?socket={}", pair.alpha.nbd_unix.display());
    let list = nbdinfo(&["--list", "--json", &place]);
    assert_eq!(list["exports"][0]["export-name"], VOLUME, "{list:#}");
    // The kernel's own client lists, too.
    let (ip, port) = pair.alpha.nbd_tcp.split_once(':').expect("IP:PORT");
    let listed = run("nbd-client", ["-l", ip, port], SHORT).ok();
    assert!(listed.lines().any(|line| line.trim() == VOLUME || line.starts_with("mes")), "{listed}");
    let image: Value =
        serde_json::from_str(&run("qemu-img", ["info", "--output=json", &pair.alpha.unix_uri()], SHORT).ok())
            .expect("qemu-img prints JSON");
    assert_eq!(image["virtual-size"], size, "{image:#}");
    // An unknown export is refused with the names that there are.
    let wrong = run("qemu-img", ["info", &pair.alpha.unix_uri().replace("/mes?", "/mesx?")], SHORT).fails();
    assert!(wrong.contains("no such export"), "{wrong}");
}

#[test]
fn holes_and_data_are_told_apart() {
    let pair = Pair::up(&Setup::default());
    let uri = pair.alpha.unix_uri();
    run("qemu-io", ["-f", "raw", "-c", "write -P 7 8M 1M", "-c", "flush", &uri], SHORT).ok();
    let map = nbdinfo(&["--map", "--json", &uri]);
    let kind_at = |at: u64| {
        let extents = map.as_array().expect("a list of extents");
        let covers = |e: &&Value| {
            let start = e["offset"].as_u64().expect("a number");
            (start..start + e["length"].as_u64().expect("a number")).contains(&at)
        };
        extents.iter().find(covers).map(|e| e["type"].as_u64().expect("a number"))
    };
    assert_eq!(kind_at(8 * MIB), Some(0), "what was written is data: {map:#}");
    assert_eq!(kind_at(9 * MIB - 1), Some(0), "{map:#}");
    assert_eq!(kind_at(20 * MIB), Some(3), "what was never written is a hole that reads as zeroes: {map:#}");
    let image = run("qemu-img", ["map", "--output=json", "-f", "raw", &uri], SHORT).ok();
    let image: Value = serde_json::from_str(&image).expect("qemu-img prints JSON");
    let data: u64 = image.as_array().expect("a list").iter().filter(|e| e["data"] == true).map(length).sum();
    assert!((MIB..4 * MIB).contains(&data), "about the written MiB is data, not {data}: {image:#}");
    // Zeroed with permission to punch, and trimmed: a hole again, here and there.
    let before = [&pair.alpha, &pair.beta].map(allocated);
    run("qemu-io", ["-f", "raw", "-c", "write -z -u 8M 512k", "-c", "discard 8704k 512k", "-c", "flush", &uri], SHORT)
        .ok();
    run("qemu-io", ["-f", "raw", "-c", "read -P 0 8M 512k", &uri], SHORT).ok();
    pair.assert_identical();
    for (node, before) in [&pair.alpha, &pair.beta].into_iter().zip(before) {
        let freed = before.saturating_sub(allocated(node));
        // The file system may need a block more for the list of extents.
        assert!(freed >= MIB - 64 * 1024, "{}: the hole gave back {freed} bytes", node.name);
    }
}

fn length(extent: &Value) -> u64 {
    extent["length"].as_u64().expect("a number")
}

fn allocated(node: &Node) -> u64 {
    use std::os::unix::fs::MetadataExt;
    std::fs::metadata(&node.device).expect("it is there").blocks() * 512
}

#[test]
fn copying_tools_get_out_what_they_put_in() {
    let pair = Pair::up(&Setup::default());
    let uri = pair.alpha.unix_uri();
    let size = usize::try_from(pair.alpha.data_len()).expect("64 bits");
    let (image, back) = (pair.dir.path().join("in.raw"), pair.dir.path().join("out.raw"));
    let (image_name, back_name) = (image.display().to_string(), back.display().to_string());
    let mut bytes = noise(1, size);
    bytes[5 << 20..9 << 20].fill(0);
    std::fs::write(&image, &bytes).expect("the folder can be written");
    run("nbdcopy", ["--flush", "--connections=4", &image_name, &uri], LONG).ok();
    run("nbdcopy", ["--connections=4", &pair.alpha.tcp_uri(), &back_name], LONG).ok();
    assert!(std::fs::read(&back).expect("was written") == bytes, "what comes back is what went in");
    // Every kind of request that qemu knows, each verified.
    let steps = [
        "write -P 0xa5 0 64k",
        "write -P 0x5a 4097 511",
        "write -f -P 0x11 1M 4k",
        "write -z 2M 128k",
        "discard 3M 64k",
        "aio_write -P 0x22 10M 1M",
        "aio_write -P 0x33 12M 256k",
        "aio_flush",
        "read -P 0xa5 0 4097",
        "read -P 0x5a 4097 511",
        "read -P 0xa5 4608 4k",
        "read -P 0x11 1M 4k",
        "read -P 0 2M 128k",
        "read -P 0x22 10M 1M",
        "read -P 0x33 12M 256k",
        "flush",
    ];
    let mut args = vec!["-f", "raw", "-t", "none"];
    steps.iter().for_each(|step| args.extend(["-c", step]));
    args.push(&uri);
    let said = run("qemu-io", &args, SHORT).ok();
    assert!(!said.contains("Pattern verification failed"), "{said}");
    run("qemu-img", ["convert", "-n", "-f", "raw", "-O", "raw", "-m", "8", &image_name, &uri], LONG).ok();
    let compared = run("qemu-img", ["compare", "-f", "raw", "-F", "raw", &image_name, &uri], LONG).ok();
    assert!(compared.contains("Images are identical"), "{compared}");
    pair.assert_identical();
}

#[test]
fn fio_verifies_what_several_connections_wrote() {
    let pair = Pair::up(&Setup::default());
    run("fio", fio(&pair.alpha.unix_uri(), 3, "8m", &["--do_verify=1"]), LONG).ok();
    let counters = pair.alpha.status()["counters"].clone();
    assert!(counters["writes"].as_u64() >= Some(6 * 1024), "fio wrote through this server: {counters}");
    assert!(counters["flushes"].as_u64() >= Some(90), "fio's fsync is a flush: {counters}");
    assert_eq!(counters["errors"], 0);
    println!(
        "resident at most: {} KiB on the primary, {} KiB on the secondary",
        pair.alpha.memory_peak_kib(),
        pair.beta.memory_peak_kib()
    );
    pair.assert_identical();
}

/// Arguments of a fio that writes at random with a checksum in each block, each job in its own part of the volume.
pub(crate) fn fio(uri: &str, jobs: u32, part: &str, more: &[&str]) -> Vec<String> {
    let fixed = [
        "--name=verify",
        "--ioengine=nbd",
        "--rw=randwrite",
        "--bs=4k",
        "--iodepth=16",
        "--fsync=64",
        "--verify=crc32c",
        "--verify_fatal=1",
        "--thread",
        "--randrepeat=1",
    ];
    let own = [
        format!("--uri={uri}"),
        format!("--numjobs={jobs}"),
        format!("--size={part}"),
        format!("--offset_increment={part}"),
    ];
    fixed.iter().chain(more).map(|&arg| arg.to_owned()).chain(own).collect()
}

#[test]
fn an_independent_implementation_understands_the_server() {
    let pair = Pair::up(&Setup::default());
    let mut socket = std::net::TcpStream::connect(&pair.alpha.nbd_tcp).expect("connects");
    socket.set_read_timeout(Some(SHORT)).expect("sockets can do that");
    let export = nbd::client::handshake(&mut socket, VOLUME.as_bytes()).expect("the handshake is understood");
    assert_eq!(export.size, pair.alpha.data_len());
    assert!(!export.readonly && export.send_flush && export.send_trim);
    let mut client = nbd::client::NbdClient::new(&mut socket, &export);
    let bytes = noise(2, 12_345);
    client.seek(SeekFrom::Start(777)).expect("seeks");
    client.write_all(&bytes).expect("writes");
    client.flush().expect("flushes");
    client.seek(SeekFrom::Start(777)).expect("seeks");
    let mut back = vec![0; bytes.len()];
    client.read_exact(&mut back).expect("reads");
    assert!(back == bytes);
    pair.assert_identical();
}

#[test]
fn a_secondary_refuses_at_once_and_names_the_primary() {
    let pair = Pair::up(&Setup::default());
    for uri in [pair.beta.unix_uri(), pair.beta.tcp_uri()] {
        // A program on libnbd shows what the server says only when it is asked for everything; nbdcopy not even then.
        let said = run("nbdcopy", [&uri, "null:"], SHORT).fails();
        assert!(said.contains("server policy"), "{said}");
        let tools = [
            vec!["env", "LIBNBD_DEBUG=1", "nbdinfo", &uri],
            vec!["qemu-img", "info", &uri],
            vec!["qemu-io", "-f", "raw", "-c", "read 0 4k", &uri],
        ];
        for tool in tools {
            let ran = run(tool[0], &tool[1..], SHORT);
            let took = ran.took;
            let said = ran.fails();
            assert!(said.contains("the primary is node alpha"), "{tool:?} shows why: {said}");
            assert!(said.contains(&pair.alpha.nbd_tcp), "{tool:?} shows where to go: {said}");
            assert!(took.as_secs() < 3, "{tool:?} took {took:?} to be refused");
        }
    }
    let mut raw = Raw::greet(&pair.beta.place()).expect("the server greets");
    raw.option(3, &[]).expect("LIST is taken");
    let (kind, listed) = raw.option_reply().expect("an answer");
    assert_eq!(kind, 2, "the export is listed");
    assert!(String::from_utf8_lossy(&listed).contains("the primary is node alpha"), "and described: {listed:?}");
    // EXPORT_NAME has no way to say why; it is closed, not left hanging.
    let mut socket = std::net::TcpStream::connect(&pair.beta.nbd_tcp).expect("connects");
    socket.set_read_timeout(Some(SHORT)).expect("sockets can do that");
    assert!(nbd::client::handshake(&mut socket, VOLUME.as_bytes()).is_err());
}
