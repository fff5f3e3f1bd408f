use std::io::{Read, Write};
use std::net::TcpListener;

use super::*;
use crate::daemon::identity::cluster_id;
use crate::tls::{Authority, Holder, Kind};

#[path = "../../../../tests/system/etcd.rs"]
mod server;
use server::EtcdServer;

fn client(server: &EtcdServer, login: Option<Login>) -> Etcd {
    let place = Place { endpoints: vec![server.client.to_string()], login, tls: None };
    Etcd::new(place, "/repblk/test/mes", Duration::from_secs(5))
}

async fn read(etcd: &mut Etcd) -> ArbiterAnswer {
    etcd.ask(&ArbiterRequest::Read).await.answer
}

async fn swap(etcd: &mut Etcd, expected: u64, text: &str) -> ArbiterAnswer {
    etcd.ask(&ArbiterRequest::Swap { expected: Revision(expected), text: text.to_owned() }).await.answer
}

fn revision(answer: &ArbiterAnswer) -> u64 {
    match answer {
        ArbiterAnswer::Is { revision, .. } | ArbiterAnswer::Swapped { revision } => revision.0,
        other => panic!("{other:?} has no revision"),
    }
}

#[tokio::test]
async fn a_record_is_made_changed_and_never_over_another() {
    let mut server = EtcdServer::start();
    let (mut one, mut two) = (client(&server, None), client(&server, None));
    assert_eq!(read(&mut one).await, ArbiterAnswer::Is { revision: Revision(0), text: None });
    let made = revision(&swap(&mut one, 0, "first, with \u{e4} and \"").await);
    assert_eq!(swap(&mut two, 0, "second").await, ArbiterAnswer::Refused, "it is there already");
    let text = Some("first, with \u{e4} and \"".to_owned());
    assert_eq!(read(&mut two).await, ArbiterAnswer::Is { revision: Revision(made), text });
    let changed = revision(&swap(&mut two, made, "third").await);
    assert!(changed > made);
    assert_eq!(swap(&mut one, made, "fourth").await, ArbiterAnswer::Refused);
    // What it said survives it, and so do clients that were connected.
    server.kill();
    // Whether the end of an idle connection is noticed before the question is written is a matter of luck.
    assert!(matches!(read(&mut one).await, ArbiterAnswer::Unreachable | ArbiterAnswer::Unknown));
    assert_eq!(read(&mut one).await, ArbiterAnswer::Unreachable);
    server.resume();
    let is = ArbiterAnswer::Is { revision: Revision(changed), text: Some("third".to_owned()) };
    assert_eq!(read(&mut two).await, is);
    assert_eq!(read(&mut one).await, is);
}

#[tokio::test]
async fn a_user_needs_the_password_and_logs_in_again_when_the_token_ends() {
    let server = EtcdServer::start();
    for args in [
        &["user", "add", "root:r"][..],
        &["user", "grant-role", "root", "root"],
        &["role", "add", "repblk"],
        &["role", "grant-permission", "repblk", "--prefix=true", "readwrite", "/repblk/"],
        &["user", "add", "pair:secret"],
        &["user", "grant-role", "pair", "repblk"],
        &["auth", "enable"],
    ] {
        server.ctl(args);
    }
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("password");
    std::fs::write(&file, "secret\n").expect("can be written");
    std::fs::set_permissions(&file, std::os::unix::fs::PermissionsExt::from_mode(0o600)).expect("set");
    let login = |user: &str| Some(Login { user: user.to_owned(), password_file: file.clone() });
    let mut pair = client(&server, login("pair"));
    assert_eq!(read(&mut pair).await, ArbiterAnswer::Is { revision: Revision(0), text: None });
    let made = revision(&swap(&mut pair, 0, "x").await);
    // Whoever does not say who it is has asked in vain, and that is no "refused".
    let mut nobody = client(&server, None);
    let answered = nobody.ask(&ArbiterRequest::Swap { expected: Revision(made), text: "y".to_owned() }).await;
    assert_eq!(answered.answer, ArbiterAnswer::Unknown, "{answered:?}");
    let mut stranger = client(&server, login("stranger"));
    let answered = stranger.ask(&ArbiterRequest::Read).await;
    assert_eq!(answered.answer, ArbiterAnswer::Unreachable, "a login that fails has asked nothing: {answered:?}");
    assert!(answered.trouble.is_some_and(|why| why.contains("stranger")), "the log names the user");
    // etcd forgets tokens after some minutes: the first question after that is lost, the next one logs in.
    pair.token = Some("forgotten.1".to_owned());
    assert_eq!(read(&mut pair).await, ArbiterAnswer::Unknown);
    assert_eq!(revision(&read(&mut pair).await), made);
}

/// A server that reads a request and says `answer`; none: it closes, or with `wait` says nothing.
fn strange(answer: Option<&'static str>, wait: bool) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = listener.local_addr().expect("is bound").to_string();
    std::thread::spawn(move || {
        while let Ok((mut stream, _)) = listener.accept() {
            let mut seen = Vec::new();
            let mut bytes = [0; 4096];
            // The whole request is a header with its body behind it, which ends with a brace.
            while !(seen.ends_with(b"}") && seen.windows(4).any(|at| at == b"\r\n\r\n")) {
                match stream.read(&mut bytes) {
                    Ok(0) | Err(_) => break,
                    Ok(len) => seen.extend_from_slice(&bytes[..len]),
                }
            }
            if wait {
                // Until the client gives up.
                let _ = stream.read(&mut bytes);
            }
            let _ = answer.map(|answer| {
                stream.write_all(
                    format!("HTTP/1.1 {}\r\nContent-Length: {}\r\n\r\n{answer}", &answer[..3], answer.len()).as_bytes(),
                )
            });
        }
    });
    address
}

#[tokio::test]
async fn what_was_sent_and_not_answered_is_unknown() {
    for (answer, wait) in [
        (None, false),
        (None, true),
        (Some("200 OK, but this is no etcd"), false),
        (Some("503 Service Unavailable"), false),
        (Some("404 nothing here"), false),
    ] {
        let place = Place { endpoints: vec![strange(answer, wait)], login: None, tls: None };
        let mut etcd = Etcd::new(place, "k", Duration::from_millis(300));
        for _ in 0..2 {
            assert_eq!(swap(&mut etcd, 1, "x").await, ArbiterAnswer::Unknown, "{answer:?} {wait}");
        }
    }
}

/// Over TLS, both sides with a certificate; a server of another authority, or of another name, is told nothing.
#[tokio::test]
async fn an_etcd_proves_who_it_is_and_so_does_its_client() {
    let server = EtcdServer::with_tls(None);
    let authority = server.file("ca.pem");
    let own = Some((server.file("client.pem"), server.file("client.key")));
    let place = |tls: Visitor, at: String| Place { endpoints: vec![at], login: None, tls: Some(tls) };
    let ask = async |tls: Visitor, at: String| {
        let mut etcd = Etcd::new(place(tls, at), "k", Duration::from_secs(5));
        etcd.ask(&ArbiterRequest::Swap { expected: Revision(0), text: "x".to_owned() }).await
    };
    let good = Visitor { authority, own };
    let nobody = Visitor { own: None, ..good.clone() };
    let refused = ask(nobody, server.client.to_string()).await;
    assert!(matches!(refused.answer, ArbiterAnswer::Unknown | ArbiterAnswer::Unreachable), "{refused:?}");
    let stranger = Visitor { authority: server.file("stranger.pem"), ..good.clone() };
    let refused = ask(stranger, server.client.to_string()).await;
    assert_eq!(refused.answer, ArbiterAnswer::Unreachable);
    assert!(refused.trouble.is_some_and(|why| why.contains("not signed by the authority")), "the log says why");
    let elsewhere = EtcdServer::with_tls(Some("elsewhere.example"));
    let own = Some((elsewhere.file("client.pem"), elsewhere.file("client.key")));
    let other = Visitor { authority: elsewhere.file("ca.pem"), own };
    let renamed = ask(other, elsewhere.client.to_string()).await;
    assert_eq!(renamed.answer, ArbiterAnswer::Unreachable, "{renamed:?}");
    assert!(renamed.trouble.as_ref().is_some_and(|why| why.contains("elsewhere.example")), "{renamed:?}");
    let plain = Place { endpoints: vec![server.client.to_string()], login: None, tls: None };
    assert!(!matches!(read(&mut Etcd::new(plain, "k", Duration::from_secs(5))).await, ArbiterAnswer::Is { .. }));
    let swapped = ask(good, server.client.to_string()).await;
    assert!(matches!(swapped.answer, ArbiterAnswer::Swapped { .. }), "{swapped:?}");
}

#[tokio::test]
async fn the_first_member_that_answers_is_asked() {
    let server = EtcdServer::start();
    let nobody = TcpListener::bind("127.0.0.1:0").expect("a free port").local_addr().expect("is bound");
    let place = Place { endpoints: vec![nobody.to_string(), server.client.to_string()], login: None, tls: None };
    let mut etcd = Etcd::new(place, "k", Duration::from_secs(5));
    assert_eq!(read(&mut etcd).await, ArbiterAnswer::Is { revision: Revision(0), text: None });
    let only = Place { endpoints: vec![nobody.to_string()], login: None, tls: None };
    let mut etcd = Etcd::new(only, "k", Duration::from_secs(5));
    assert_eq!(swap(&mut etcd, 1, "x").await, ArbiterAnswer::Unreachable);
    drop(server);
}

/// Found by review: a password that every user of the host may read was used without a word.
#[tokio::test]
async fn a_password_that_others_may_read_is_not_used() {
    use std::os::unix::fs::PermissionsExt;
    let folder = tempfile::tempdir().expect("a folder");
    let password_file = folder.path().join("password");
    std::fs::write(&password_file, "secret\n").expect("can be written");
    std::fs::set_permissions(&password_file, std::fs::Permissions::from_mode(0o644)).expect("set");
    let login = Login { user: "pair".to_owned(), password_file };
    let endpoints = vec![strange(None, true)];
    let mut etcd = Etcd::new(Place { endpoints, login: Some(login), tls: None }, "k", Duration::from_secs(2));
    let answered = etcd.ask(&ArbiterRequest::Read).await;
    assert_eq!(answered.answer, ArbiterAnswer::Unreachable, "nothing was asked: {answered:?}");
    let why = answered.trouble.expect("it is told");
    assert!(why.contains("password: others than its owner may use it (mode 644)") && !why.contains("secret"), "{why}");
}
