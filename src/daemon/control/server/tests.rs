use std::path::Path;
use std::sync::Mutex;

use serde_json::json;

use super::*;
use crate::condition::{DiskState, Mode, Role};
use crate::daemon::config::{ControlSpec, Readers};
use crate::daemon::handle::CopyIdentity;
use crate::dataplane::mailbox::{Counters, Letter, News, State};
use crate::units::{ClusterId, DiskInstance, GenerationId, PeerNo, Term, VolumeId};
use crate::volume::io::{PeerSnapshot, Refusal, Snapshot};
use crate::volume::rule::Rule;

/// How the pretended volume's thread behaves.
#[derive(Clone, Copy, PartialEq)]
enum Thread {
    /// Answers everything; refuses to pause.
    Well,
    /// Says how things are, never answers a command.
    Slow,
    /// Answers nothing.
    Hung,
}

fn lost_peer() -> PeerSnapshot {
    PeerSnapshot {
        name: "beta".into(),
        connection: "connecting",
        since: Duration::ZERO,
        replication: "off",
        disk: None,
        role: None,
        out_of_sync_bytes: 0,
        base: GenerationId::NONE,
        why: "the peer closed the link".into(),
    }
}

fn state() -> State {
    let volume = Snapshot {
        role: Role::Secondary,
        disk: DiskState::UpToDate,
        mode: Mode::Sync,
        generation: GenerationId(1),
        history: [GenerationId::NONE; crate::generation::HISTORY_LEN],
        term: Term(1),
        whole_since: Term(0),
        peers: vec![lost_peer()],
        resync: None,
        frozen: None,
        not_promotable: None,
        requests: 0,
        unstable_writes: 0,
        mirrored_bytes: 0,
        resynced_bytes: 0,
    };
    State { volume, clients: 0, counters: Counters::default(), up: Duration::ZERO }
}

fn news_of(thread: Thread, letter: Letter) -> Option<News> {
    match letter {
        Letter::Ask { ticket } if thread != Thread::Hung => Some(News::State { ticket, state: Box::new(state()) }),
        Letter::Command { ticket, command } if thread == Thread::Well => {
            let refusal = Refusal { rule: Rule::NoResyncPartner, what: "no".into(), way_out: "Wait".into() };
            let result = if command == Command::Pause { Err(refusal) } else { Ok(()) };
            Some(News::Answer { ticket, result })
        }
        _ => None,
    }
}

fn desk(thread: Thread) -> ControlDesk {
    let text = include_str!("../../../../docs/repblk.example.toml");
    let (head, rest) = text.split_once("[arbiter]").expect("the example has an arbiter");
    let (_, nodes) = rest.split_once("[[node]]").expect("and nodes behind it");
    let text = format!("{head}[[node]]{nodes}");
    let config = Arc::new(Config::parse(&text, Path::new("example")).expect("the example is right"));
    let events = EventHub::new("alpha");
    let identity =
        CopyIdentity { cluster: ClusterId(1), volume: VolumeId(2), instance: DiskInstance(3), size: 1 << 20 };
    let (sender, mut receiver) = tokio::sync::mpsc::unbounded_channel();
    let sender = Mutex::new(sender);
    let spec = config.volumes[0].clone();
    let copy = spec.copies[0].clone();
    let post = move |letter| sender.lock().expect("unpoisoned").send(letter).map_err(|error| error.to_string());
    let volume = Arc::new(VolumeHandle::new(spec, copy, identity, events.clone(), post, |_| {}));
    let hearing = Arc::clone(&volume);
    tokio::spawn(async move {
        while let Some(letter) = receiver.recv().await {
            if let Some(news) = news_of(thread, letter) {
                hearing.hear(news);
            }
        }
    });
    let ear = Arc::new(Ear::new(config.heartbeat_interval));
    let guard = Guard::without_keys();
    let around = crate::daemon::failover::Surroundings {
        config: Arc::clone(&config),
        me: config.nodes[0].clone(),
        paths: Arc::new(crate::daemon::beat_path::BeatPaths::new(&config, &config.nodes[0], &[], 1, &guard)),
        incarnation: 1,
        guard: Arc::clone(&guard),
    };
    let post = crate::daemon::failover::start(&around, &volume, &mut Vec::new()).expect("nothing is remembered");
    let keeper = Doorkeeper::new("alpha", &config.control).expect("this process is somebody");
    ControlDesk {
        config,
        posts: vec![post],
        node: "alpha".into(),
        volumes: vec![volume],
        ear,
        guard,
        events,
        keeper,
        operators: Room::for_operators(),
        readers: Room::for_readers(),
    }
}

/// The replies to `requests`, after which the client closes.
async fn replies(desk: &ControlDesk, requests: &[u8]) -> Vec<serde_json::Value> {
    replies_to(desk, &user(0), requests).await
}

fn user(user: u32) -> Peer {
    Peer { user, group: user, more_groups: Vec::new(), process: None }
}

/// The same for any user.
async fn replies_to(desk: &ControlDesk, peer: &Peer, requests: &[u8]) -> Vec<serde_json::Value> {
    let mut out = Vec::new();
    desk.serve(peer, requests, &mut out).await.expect("a vector takes everything");
    out.split(|&byte| byte == b'\n')
        .filter(|line| !line.is_empty())
        .map(|line| serde_json::from_slice::<serde_json::Value>(line).expect("replies are JSON")["reply"].clone())
        .collect()
}

#[tokio::test]
async fn commands_are_done_or_refused_with_a_rule() {
    let desk = desk(Thread::Well);
    let connect = "{\"version\":1,\"ask\":{\"do\":{\"volume\":null,\"verb\":\"connect\",\"timeout_ms\":9000}}}\n";
    let pause = "{\"version\":1,\"ask\":{\"do\":{\"volume\":\"mes\",\"verb\":\"pause\",\"timeout_ms\":9000}}}\n";
    let found = replies(&desk, format!("{connect}{pause}").as_bytes()).await;
    assert_eq!(found[0], json!({"done": {"volume": "mes"}}));
    assert_eq!(found[1]["refused"]["rule"], "no-resync-partner");
}

/// For whom the system's permissions left the socket open.
fn open_to_everyone(desk: ControlDesk) -> ControlDesk {
    let spec = ControlSpec { read: Readers::Everyone, group: "4000000".into(), group_is_named: true };
    ControlDesk { keeper: Doorkeeper::new("alpha", &spec).expect("this process is somebody"), ..desk }
}

#[tokio::test]
async fn who_may_look_is_told_and_commands_nothing() {
    let desk = open_to_everyone(desk(Thread::Well));
    let asks = "{\"version\":1,\"ask\":\"status\"}\n{\"version\":1,\"ask\":{\"history\":{\"volume\":null}}}\n";
    let pause = "{\"version\":1,\"ask\":{\"do\":{\"volume\":null,\"verb\":\"connect\",\"timeout_ms\":9000}}}\n";
    let stranger = user(65_534);
    let found = replies_to(&desk, &stranger, format!("{asks}{pause}{asks}").as_bytes()).await;
    assert_eq!(found.len(), 3, "the refusal is the last word");
    assert_eq!((&found[0]["status"]["node"], &found[1]["history"]), (&json!("alpha"), &json!([])));
    assert_eq!(found[2]["forbidden"]["rule"], "control-read-only");
    let member = Peer { more_groups: vec![4, 4_000_000], ..stranger };
    let found = replies_to(&desk, &member, pause.as_bytes()).await;
    assert_eq!(found, [json!({"done": {"volume": "mes"}})]);
}

/// Any number of them, whatever they do.
#[tokio::test(start_paused = true)]
async fn who_may_only_look_keeps_no_operator_waiting() {
    let desk = Arc::new(open_to_everyone(desk(Thread::Well)));
    let mut silent = Vec::new();
    for number in 0..200 {
        let (client, server) = tokio::io::duplex(64);
        let (reader, writer) = tokio::io::split(server);
        let desk = Arc::clone(&desk);
        tokio::spawn(async move { desk.serve(&user(65_534), reader, writer).await });
        let (from_daemon, mut to_daemon) = tokio::io::split(client);
        if number % 2 == 0 {
            // Answered with more than anybody takes.
            to_daemon.write_all(b"{\"version\":1,\"ask\":\"events\"}\n").await.expect("fits");
        }
        silent.push((from_daemon, to_daemon));
    }
    tokio::task::yield_now().await;
    assert!(desk.operators.lobby.is_empty(), "they sit elsewhere");
    assert_eq!(desk.operators.open.available_permits(), OPEN_MAX);
    let began = Instant::now();
    let connect = "{\"version\":1,\"ask\":{\"do\":{\"volume\":null,\"verb\":\"connect\",\"timeout_ms\":9000}}}\n";
    assert_eq!(replies(&desk, connect.as_bytes()).await, [json!({"done": {"volume": "mes"}})]);
    assert!(began.elapsed() < Duration::from_millis(50));
}

#[tokio::test]
async fn status_has_the_node_and_its_volumes() {
    let found = replies(&desk(Thread::Well), b"{\"version\":1,\"ask\":\"status\"}\n").await;
    let status = &found[0]["status"];
    assert_eq!((&status["schema"], &status["node"]), (&json!(1), &json!("alpha")));
    assert_eq!(status["volumes"][0]["role"], "secondary");
    assert_eq!(status["volumes"][0]["trouble"], json!(null));
}

#[tokio::test(start_paused = true)]
async fn a_hung_volume_is_told_in_bounded_time() {
    let desk = desk(Thread::Hung);
    let began = Instant::now();
    let found = replies(&desk, b"{\"version\":1,\"ask\":\"status\"}\n").await;
    assert!(began.elapsed() < Duration::from_secs(2));
    let trouble = found[0]["status"]["volumes"][0]["trouble"].as_str().expect("has trouble").to_owned();
    assert!(trouble.contains("did not answer within 1500 ms"), "{trouble}");
    assert_eq!(found[0]["status"]["volumes"][0]["role"], "unknown");
}

#[tokio::test(start_paused = true)]
async fn a_slow_command_says_what_it_waits_for_and_times_out() {
    for (thread, what) in [(Thread::Slow, "flush on both copies"), (Thread::Hung, "does not answer")] {
        let desk = desk(thread);
        let began = Instant::now();
        let verb = "{\"demote\":{\"disconnect_clients\":false}}";
        let line =
            format!("{{\"version\":1,\"ask\":{{\"do\":{{\"volume\":null,\"verb\":{verb},\"timeout_ms\":5000}}}}}}\n");
        let found = replies(&desk, line.as_bytes()).await;
        assert!(began.elapsed() < Duration::from_secs(6));
        assert!(found.len() >= 4, "a word at least every two seconds: {found:?}");
        assert!(found[0]["waiting"].as_str().is_some_and(|text| text.contains(what)), "{found:?}");
        let last = found.last().expect("there is one")["timed_out"].as_str().expect("is the end").to_owned();
        assert!(last.contains("goes on in the daemon"), "{last}");
    }
}

#[tokio::test]
async fn nonsense_is_refused_with_a_reason() {
    let desk = desk(Thread::Well);
    let long = [b"{\"version\":1,".as_slice(), &[b' '; REQUEST_LEN_MAX], b"\n"].concat();
    let cases: [(&[u8], &str); 6] = [
        (&long, "one line of at most 4096 bytes"),
        (b"{\"version\":1,\"ask\":\"status\"}", "one line of at most"),
        (b"status\n", "a request is a JSON object"),
        (b"{\"version\":2,\"ask\":\"status\"}\n", "speaks version 1 on its control socket, the client 2"),
        (b"{\"version\":1,\"ask\":\"explode\"}\n", "cannot be understood"),
        (b"{\"version\":1,\"ask\":\"status\",\"more\":1}\n", "cannot be understood"),
    ];
    for (request, what) in cases {
        let found = replies(&desk, request).await;
        assert!(found[0]["bad_request"].as_str().is_some_and(|text| text.contains(what)), "{found:?}");
        assert_eq!(found.len(), 1, "and nothing more is answered");
    }
    let unknown = b"{\"version\":1,\"ask\":{\"do\":{\"volume\":\"x\",\"verb\":\"pause\",\"timeout_ms\":1}}}\n";
    let found = replies(&desk, unknown).await;
    assert!(found[0]["bad_request"].as_str().is_some_and(|text| text.contains("it has: mes")), "{found:?}");
}

#[tokio::test]
async fn events_begin_with_how_things_are() {
    let desk = Arc::new(desk(Thread::Well));
    let (client, server) = tokio::io::duplex(1 << 16);
    let (reader, writer) = tokio::io::split(server);
    let serving = tokio::spawn({
        let desk = Arc::clone(&desk);
        async move { desk.serve(&user(0), reader, writer).await }
    });
    let (from_daemon, mut to_daemon) = tokio::io::split(client);
    to_daemon.write_all(b"{\"version\":1,\"ask\":\"events\"}\n").await.expect("fits");
    let mut lines = BufReader::new(from_daemon).lines();
    let mut next = async || {
        let line = lines.next_line().await.expect("is text").expect("is there");
        serde_json::from_str::<serde_json::Value>(&line).expect("is JSON")["reply"]["event"].clone()
    };
    let first = next().await;
    assert_eq!((&first["event"], &first["status"]["role"]), (&json!("exists"), &json!("secondary")));
    assert_eq!(next().await["event"], "exists_end");
    let note = Happening::Note { text: "hello".into(), warning: false };
    desk.events.tell("mes", note);
    let mut told = next().await;
    if told["text"].as_str().is_some_and(|text| text.starts_with("rule operator-only")) {
        // Failover has seen the volume for the first time.
        told = next().await;
    }
    assert_eq!((&told["event"], &told["text"], &told["volume"]), (&json!("note"), &json!("hello"), &json!("mes")));
    drop(to_daemon);
    drop(lines);
    serving.await.expect("ends").expect("without an error");
}

#[tokio::test(start_paused = true)]
async fn status_says_why_no_link_can_be_made() {
    let desk = desk(Thread::Well);
    let why = async || desk.status().await.volumes[0].peers[0].why.clone();
    assert_eq!(why().await, "the peer closed the link");
    desk.volumes[0].note_no_link(PeerNo(0), "beta refuses the link: wrong size");
    assert_eq!(why().await, "the peer closed the link; beta refuses the link: wrong size");
}
