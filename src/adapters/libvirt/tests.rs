use std::path::Path;
use std::path::PathBuf;
use std::time::Duration;

use tokio::io::AsyncReadExt;
use tokio::io::AsyncWriteExt;
use tokio::net::UnixListener;
use tokio::net::UnixStream;

use super::client::Client;
use super::image_users;
use super::link::ReconnectingLink;
use super::native::Domain;
use super::native::error_code;
use super::native::procedure;
use super::rpc::Connection;
use super::rpc::Program;
use super::rpc::RpcError;
use super::*;
use crate::model::OperationSeq;
use crate::runtime::SystemClock;

const REMOTE: u32 = 0x2000_8086;
const KEEPALIVE: u32 = 0x6b65_6570;

/// One call as a daemon sees it.
#[derive(Debug, PartialEq, Eq)]
struct Call {
    program: u32,
    procedure: u32,
    serial: u32,
    body: Vec<u8>,
}

fn words(all: &[u32]) -> Vec<u8> {
    all.iter().flat_map(|word| word.to_be_bytes()).collect()
}

/// A text as XDR has it.
fn string(text: &str) -> Vec<u8> {
    let mut padded = text.as_bytes().to_vec();
    padded.resize(text.len().next_multiple_of(4), 0);
    [words(&[u32::try_from(text.len()).unwrap()]), padded].concat()
}

/// A client of a scripted libvirtd in this folder, and the VM that it is asked about.
fn scripted(folder: &Path) -> (UnixListener, Client, Domain) {
    let config = Config {
        socket: folder.join("s"),
        ..Config::default()
    };
    std::fs::remove_file(&config.socket).unwrap_or_default();
    let listener = UnixListener::bind(&config.socket).unwrap();
    let client = Client::new(&config, &SystemClock::shared(), &Tasks::default());
    let vm = Domain {
        name: "vm".to_owned(),
        uuid: [1; 16],
        id: -1,
    };
    (listener, client, vm)
}

/// A status and the body after it.
type Reply = (u32, Vec<u8>);

/// libvirt's error of this number.
fn native_error(code: u32) -> Reply {
    (1, [words(&[code, 10, 1, 4]), b"text".to_vec()].concat())
}

async fn receive(stream: &mut UnixStream) -> Option<Call> {
    let bytes = stream.read_u32().await.ok()?;
    let mut frame = vec![0; usize::try_from(bytes).unwrap().checked_sub(4).unwrap()];
    stream.read_exact(&mut frame).await.ok()?;
    let (head, body) = frame.split_at(24);
    let words: Vec<u32> = head
        .chunks_exact(4)
        .map(|chunk| u32::from_be_bytes(chunk.try_into().unwrap()))
        .collect();
    Some(Call {
        program: words[0],
        procedure: words[2],
        serial: words[4],
        body: body.to_vec(),
    })
}

async fn answer(stream: &mut UnixStream, to: &Call, status: u32, body: &[u8]) {
    let bytes = u32::try_from(body.len()).unwrap().checked_add(28).unwrap();
    let mut frame = words(&[bytes, to.program, 1, to.procedure, 1, to.serial, status]);
    frame.extend_from_slice(body);
    stream.write_all(&frame).await.unwrap();
}

fn folder() -> tempfile::TempDir {
    tempfile::tempdir().unwrap()
}

fn by(after: Duration) -> Deadline {
    SystemClock.deadline(after)
}

const LONG: Duration = Duration::from_secs(10);

async fn connected(socket: &Path, keepalive: Duration) -> (Connection, UnixStream) {
    let listener = UnixListener::bind(socket).unwrap();
    let tasks = Tasks::default();
    let client = Connection::open(socket, keepalive, &tasks).await.unwrap();
    let (server, _) = listener.accept().await.unwrap();
    (client, server)
}

#[tokio::test]
async fn answers_find_their_calls_in_any_order() {
    let folder = folder();
    let (client, mut server) = connected(&folder.path().join("s"), LONG).await;
    let daemon = async {
        let first = receive(&mut server).await.unwrap();
        let second = receive(&mut server).await.unwrap();
        let event = words(&[28, REMOTE, 1, 99, 2, first.serial, 0]);
        server.write_all(&event).await.unwrap();
        let stranger = Call {
            serial: 4711,
            ..receive_none()
        };
        answer(&mut server, &stranger, 0, b"none").await;
        answer(&mut server, &second, 0, &second.body).await;
        answer(&mut server, &first, 0, &first.body).await;
    };
    let one = client.call(Program::Remote, 1, b"1111", by(LONG));
    let two = client.call(Program::Remote, 2, b"2222", by(LONG));
    let (one, two, ()) = tokio::join!(one, two, daemon);
    assert_eq!(one.unwrap(), b"1111", "its own");
    assert_eq!(two.unwrap(), b"2222", "its own");
}

fn receive_none() -> Call {
    Call {
        program: REMOTE,
        procedure: 1,
        serial: 0,
        body: Vec::new(),
    }
}

#[tokio::test]
async fn errors_of_the_daemon_carry_its_number() {
    let folder = folder();
    let (client, mut server) = connected(&folder.path().join("s"), LONG).await;
    let daemon = async {
        let call = receive(&mut server).await.unwrap();
        let mut body = words(&[42, 10, 1, 4]);
        body.extend_from_slice(b"gone");
        answer(&mut server, &call, 1, &body).await;
        let call = receive(&mut server).await.unwrap();
        answer(&mut server, &call, 1, &words(&[42])).await;
    };
    let calls = async {
        let native = client.call(Program::Remote, 23, b"", by(LONG)).await;
        let cut = client.call(Program::Remote, 23, b"", by(LONG)).await;
        (native.unwrap_err(), cut.unwrap_err())
    };
    let ((native, cut), ()) = tokio::join!(calls, daemon);
    assert_eq!(native.code(), Some(42), "libvirt's number");
    assert!(!native.may_have_happened(), "a clear answer");
    assert!(matches!(cut, RpcError::Malformed(_)), "{cut:?}");
    assert!(cut.may_have_happened(), "no answer that says anything");
}

#[tokio::test]
async fn a_broken_connection_ends_every_call() {
    let rows: [(&str, Option<Vec<u8>>); 4] = [
        ("closed", None),
        ("too short a frame", Some(words(&[27]))),
        ("too long a frame", Some(words(&[u32::MAX, 0]))),
        ("cut within a frame", Some(words(&[28, REMOTE]))),
    ];
    for (name, bytes) in rows {
        let folder = folder();
        let (client, mut server) = connected(&folder.path().join("s"), LONG).await;
        let daemon = async {
            receive(&mut server).await.unwrap();
            if let Some(bytes) = bytes {
                server.write_all(&bytes).await.unwrap();
            }
            drop(server);
        };
        let call = client.call(Program::Remote, 1, b"", by(LONG));
        let (call, ()) = tokio::join!(call, daemon);
        let error = call.unwrap_err();
        assert!(matches!(error, RpcError::Lost(_)), "{name}: {error:?}");
        assert!(error.may_have_happened(), "{name}: it was sent");
        assert!(!client.is_open(), "{name}: of no more use");
        let next = client.call(Program::Remote, 1, b"", by(LONG)).await;
        assert!(
            !next.unwrap_err().may_have_happened(),
            "{name}: nothing was sent"
        );
    }
}

#[tokio::test]
async fn calls_without_a_waiter_keep_their_place() {
    let folder = folder();
    let (client, mut server) = connected(&folder.path().join("s"), LONG).await;
    let short = Duration::from_millis(50);
    for number in 0..4 {
        let error = client
            .call(Program::Remote, number, b"", by(short))
            .await
            .unwrap_err();
        assert!(matches!(error, RpcError::TimedOut), "{number}: {error:?}");
    }
    let fifth = client.call(Program::Remote, 5, b"", by(short)).await;
    assert!(matches!(fifth, Err(RpcError::NotSent)), "{fifth:?}");
    let first = receive(&mut server).await.unwrap();
    answer(&mut server, &first, 0, b"").await;
    let daemon = async {
        for _ in 0..3 {
            receive(&mut server).await.unwrap();
        }
        let call = receive(&mut server).await.unwrap();
        answer(&mut server, &call, 0, b"late").await;
    };
    let call = client.call(Program::Remote, 6, b"", by(LONG));
    let (call, ()) = tokio::join!(call, daemon);
    assert_eq!(call.unwrap(), b"late", "room again");
}

#[tokio::test]
async fn silence_ends_a_connection_and_pings_are_answered() {
    let folder = folder();
    let (client, mut server) = connected(&folder.path().join("s"), Duration::from_millis(20)).await;
    let call = client.call(Program::Remote, 1, b"", by(LONG));
    let daemon = async {
        let ping = words(&[28, KEEPALIVE, 1, 1, 2, 0, 0]);
        server.write_all(&ping).await.unwrap();
        let mut seen = (0, 0);
        while let Some(frame) = receive(&mut server).await {
            match (frame.program, frame.procedure) {
                (KEEPALIVE, 1) => seen.0 += 1,
                (KEEPALIVE, 2) => seen.1 += 1,
                _ => {}
            }
        }
        seen
    };
    let (call, (pings, pongs)) = tokio::join!(call, daemon);
    assert!(matches!(call, Err(RpcError::Lost(_))), "{call:?}");
    assert_eq!(pongs, 1, "our answer to its ping");
    assert!((4..=6).contains(&pings), "asked before giving up: {pings}");
}

#[tokio::test]
async fn a_dropped_connection_ends_both_tasks() {
    let folder = folder();
    let socket = folder.path().join("s");
    let listener = UnixListener::bind(&socket).unwrap();
    let tasks = Tasks::default();
    let client = Connection::open(&socket, LONG, &tasks).await.unwrap();
    let (mut server, _) = listener.accept().await.unwrap();
    drop(client);
    tokio::time::timeout(LONG, tasks.ended())
        .await
        .expect("no task is left");
    assert_eq!(server.read(&mut [0; 8]).await.unwrap(), 0, "closed");
}

/// A daemon that greets with these kinds of authentication and answers everything with nothing.
async fn greet(listener: &UnixListener, kinds: &[u32]) -> Vec<u32> {
    let (mut server, _) = listener.accept().await.unwrap();
    let mut seen = Vec::new();
    while let Some(call) = receive(&mut server).await {
        seen.push(call.procedure);
        let mut body = Vec::new();
        if call.procedure == 66 {
            body = words(&[u32::try_from(kinds.len()).unwrap()]);
            body.extend(words(kinds));
        }
        answer(&mut server, &call, 0, &body).await;
        if call.procedure == 7 {
            break;
        }
    }
    seen
}

#[tokio::test]
async fn authentication_is_what_the_daemon_asks_for() {
    let rows: [(&str, &[u32], &[u32]); 4] = [
        ("none", &[0], &[66, 1, 7]),
        ("none offered", &[], &[66, 1, 7]),
        ("polkit", &[2], &[66, 70, 1, 7]),
        ("SASL", &[1], &[66]),
    ];
    for (name, kinds, expected) in rows {
        let folder = folder();
        let config = Config {
            socket: folder.path().join("s"),
            ..Config::default()
        };
        let listener = UnixListener::bind(&config.socket).unwrap();
        let link = ReconnectingLink::new(config, SystemClock::shared(), Tasks::default());
        let call = async {
            let result = link.call(Program::Remote, 7, &[], by(LONG)).await;
            drop(link);
            result
        };
        let (result, seen) = tokio::join!(call, greet(&listener, kinds));
        assert_eq!(seen, expected, "{name}");
        assert_eq!(result.is_ok(), expected.contains(&7), "{name}: {result:?}");
    }
}

#[tokio::test]
async fn a_vm_whose_definition_cannot_be_read_may_use_any_disk() {
    let list = [words(&[1, 5]), b"other\0\0\0".to_vec(), vec![2; 16]].concat();
    // the answer of libvirt, whether the disks are known to be unshared
    let rows = [
        ((0, string("<domain/>")), true),
        (native_error(error_code::NO_DOMAIN), true),
        (native_error(error_code::OPERATION_TIMEOUT), false),
        (native_error(error_code::ACCESS_DENIED), false),
        (native_error(error_code::INTERNAL), false),
        ((0, string("<domain")), false),
        ((0, string("<network/>")), false),
    ];
    for (found, expected) in rows {
        // Off, running and so answered for the next start, and for now.
        for (id, asked) in [(u32::MAX, 2), (7, 2), (7, 0)] {
            let folder = folder();
            let (listener, client, vm) = scripted(folder.path());
            let check =
                async move { image_users::check_unshared(&client, &vm, &[], true, by(LONG)).await };
            let daemon = async {
                let (mut server, _) = listener.accept().await.unwrap();
                while let Some(call) = receive(&mut server).await {
                    let (status, body) = match call.procedure {
                        66 => (0, words(&[1, 0])),
                        procedure::DOMAINS => (0, [list.clone(), words(&[id, 1])].concat()),
                        procedure::DOMAIN_XML if call.body.ends_with(&words(&[asked])) => {
                            found.clone()
                        }
                        procedure::DOMAIN_XML => (0, string("<domain/>")),
                        _ => (0, Vec::new()),
                    };
                    answer(&mut server, &call, status, &body).await;
                }
            };
            let (checked, ()) = tokio::join!(check, daemon);
            assert_eq!(
                checked.is_ok(),
                expected,
                "{found:?} {id} {asked}: {checked:?}"
            );
        }
    }
}

/// A pool with one volume, as libvirt answers for it.
struct Pool {
    /// For the image of the disk.
    by_path: Reply,
    /// For the volume.
    xml: Reply,
    /// Where the volume is.
    path: PathBuf,
    /// Whether this host sees the files.
    is_local: bool,
}

/// Whether nothing is known to be based on the image.
async fn check_beside(folder: &Path, pool: &Pool) -> Result<(), AdapterError> {
    let (listener, client, vm) = scripted(folder);
    let image = folder.join("image");
    let target = image_users::RestoredImage::new("vda", &image, pool.is_local).await;
    let check = async move {
        let targets = [target];
        image_users::check_unshared(&client, &vm, &targets, pool.is_local, by(LONG)).await
    };
    let parts = ["p", "v", pool.path.to_str().unwrap()];
    let listed = [words(&[1]), parts.map(string).concat(), words(&[1])].concat();
    let daemon = async {
        let (mut server, _) = listener.accept().await.unwrap();
        while let Some(call) = receive(&mut server).await {
            let (status, body) = match call.procedure {
                66 => (0, words(&[1, 0])),
                procedure::VOLUME_BY_PATH => pool.by_path.clone(),
                procedure::VOLUMES => (0, listed.clone()),
                procedure::VOLUME_XML => pool.xml.clone(),
                procedure::DOMAINS => (0, words(&[0, 0])),
                _ => (0, Vec::new()),
            };
            answer(&mut server, &call, status, &body).await;
        }
    };
    tokio::join!(check, daemon).0
}

#[tokio::test]
async fn a_volume_that_cannot_be_read_may_be_based_on_any_disk() {
    let folder = folder();
    let at = |name: &str| folder.path().join(name);
    std::fs::write(at("here"), b"an image").unwrap();
    let good = "<volume><name>v</name><target><path>/v</path></target></volume>";
    let (none, internal, system) = (50, 1, 38);
    let (unsupported, denied, timeout) = (3, 88, 68);
    // libvirt's errors for the image and the volume, 0 for none, where that is, whether this host sees it; whether the restore may
    // go on
    let rows = [
        (0, 0, "here", true, true),
        (0, none, "here", true, true),
        (0, system, "gone", true, true),
        (0, system, "here", true, false),
        (0, system, "gone", false, false),
        (0, denied, "here", true, false),
        (none, 0, "here", true, true),
        (unsupported, 0, "here", true, true),
        (system, 0, "here", true, true),
        (denied, 0, "here", true, true),
        (internal, 0, "here", true, false),
        (timeout, 0, "here", true, false),
    ];
    let reply = |code, text: &str| match code {
        0 => (0, string(text)),
        code => native_error(code),
    };
    for (by_path, xml, path, is_local, expected) in rows {
        let name = format!("{by_path} {xml} {path} {is_local}");
        let pool = Pool {
            by_path: reply(by_path, "image"),
            xml: reply(xml, good),
            path: at(path),
            is_local,
        };
        let checked = check_beside(folder.path(), &pool).await;
        assert_eq!(checked.is_ok(), expected, "{name}: {checked:?}");
    }
}

#[tokio::test]
async fn a_lost_connection_is_made_again_and_attempts_pause() {
    let folder = folder();
    let config = Config {
        socket: folder.path().join("s"),
        ..Config::default()
    };
    let link = ReconnectingLink::new(config.clone(), SystemClock::shared(), Tasks::default());
    for attempt in 0..3 {
        let error = link
            .call(Program::Remote, 7, &[], by(LONG))
            .await
            .unwrap_err();
        assert!(
            matches!(error, RpcError::Unreachable(_)),
            "{attempt}: {error:?}"
        );
    }
    let listener = UnixListener::bind(&config.socket).unwrap();
    for life in 0..2 {
        let calls = async {
            let end = by(LONG);
            while link.call(Program::Remote, 7, &[], end).await.is_err() {
                assert!(
                    SystemClock.instant() < end.instant(),
                    "{life}: connects again"
                );
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        let ((), seen) = tokio::join!(calls, greet(&listener, &[0]));
        assert_eq!(seen, [66, 1, 7], "{life}: greeted once");
    }
}

#[tokio::test]
async fn a_silent_daemon_costs_no_more_than_the_deadline() {
    let folder = folder();
    let config = Config {
        socket: folder.path().join("s"),
        ..Config::default()
    };
    let _listener = UnixListener::bind(&config.socket).unwrap();
    let adapter = Libvirt::new(config, SystemClock::shared(), Tasks::default());
    let error = adapter
        .health(by(Duration::from_millis(50)))
        .await
        .unwrap_err();
    assert_eq!(error.fault.kind, FaultKind::TimedOut, "{error:?}");
}

#[test]
fn minted_ids_are_never_numbers() {
    let adapter = Libvirt::new(Config::default(), SystemClock::shared(), Tasks::default());
    let new = NewBackup {
        name: crate::model::BackupName::new("7").unwrap(),
        description: None,
        kind: None,
        tags: Vec::new(),
        protected: false,
    };
    let key = RequestKey(OperationSeq::new(7).unwrap());
    assert_eq!(
        adapter.mint_backup_id(&new, key).unwrap().as_str(),
        "snapgate-7",
        "ours"
    );
}
