//! `snapgate operations` beside a running gateway, through its admin port, and after it has stopped.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use serde_json::Value;

use crate::client::Client;
use crate::harness::Process;
use crate::harness::SECRET_HASH;
use crate::harness::SIM;
use crate::harness::command_output;
use crate::harness::eventually;
use crate::harness::metric;
use crate::harness::program;

/// Status, standard output and standard error of `snapgate operations`.
fn operations(config: &Path, arguments: &[&str]) -> (i32, String, String) {
    command_output(&[&["operations"], arguments].concat(), config)
}

fn lines(text: &str) -> Vec<Value> {
    text.lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

/// The operations that the trail says were acknowledged.
fn acknowledged(trail: &Path) -> Vec<u64> {
    lines(&fs::read_to_string(trail).unwrap())
        .iter()
        .filter(|line| line["action"] == "acknowledge")
        .map(|line| {
            assert!(
                line["principal"].as_str().unwrap().starts_with("os:"),
                "which account of the system: {line}"
            );
            assert_eq!(line["client"], "127.0.0.1", "from where: {line}");
            line["operation"].as_str().unwrap().parse().unwrap()
        })
        .collect()
}

/// A gateway whose VM manager forgot, with the operation of unknown outcome and one that runs.
fn gateway_with_an_unknown_outcome(config: &Path) -> (Process, u64, u64) {
    let sim = SIM.replace("SECRET_HASH", SECRET_HASH).replace(
        "duration = \"50ms\"",
        "duration = \"10m\"\nrecovery = \"no-trace\"",
    );
    let ports = "[server]\nlisten = \"127.0.0.1:0\"\nadmin = \"127.0.0.1:0\"\n";
    fs::write(
        config,
        format!("{ports}[log]\naudit = \"audit.jsonl\"\n{sim}"),
    )
    .unwrap();
    let arguments = ["serve", "--config", config.to_str().unwrap()];
    let seq = |uri: &str| uri.rsplit_once('=').unwrap().1.parse::<u64>().unwrap();
    let first = Process::start(&arguments);
    let alice = Client::new(first.api, "alice", "secret");
    let lost = alice.post("/vms/1/backups/456/restore", "").status_uri();
    eventually("begun", || alice.get(&lost).json()["state"] == "RUNNING");
    // The simulated VM manager is gone with it, and with that every trace of the restore.
    first.kill();
    let second = Process::start(&arguments);
    let alice = Client::new(second.api, "alice", "secret");
    let status = alice.finished(&lost);
    assert_eq!(
        status["state"], "UNKNOWN",
        "the outcome is unknown: {status}"
    );
    let running = alice.post("/vms/2/backups/456/restore", "").status_uri();
    (second, seq(&lost), seq(&running))
}

#[apply(test)]
fn operators_work_beside_a_running_gateway_and_after_it() {
    let folder = tempfile::tempdir().unwrap();
    let config = folder.path().join("snapgate.toml");
    let trail = folder.path().join("audit.jsonl");
    let file = folder.path().join("operations.db.operator");
    let (gateway, lost, running) = gateway_with_an_unknown_outcome(&config);
    let (lost_text, running_text) = (lost.to_string(), running.to_string());
    let lost_quoted = format!("\"{lost}\"");
    let unknown = || metric(gateway.admin, "snapgate_operations_unknown");
    assert!((unknown() - 1.0).abs() < 0.1, "it is counted");

    // arguments, numbers of the operations that are printed
    let rows: [(&[&str], Vec<u64>); 7] = [
        (&["list", "--json"], vec![running, lost]),
        (&["list", "--json", "--limit", "1"], vec![running]),
        (&["list", "--json", "--limit", "0"], vec![]),
        (&["list", "--json", "--state", "unknown"], vec![lost]),
        (&["list", "--json", "--state", "unfinished"], vec![running]),
        (&["show", "--json", &lost_text], vec![lost]),
        (&["show", "--json", &lost_quoted], vec![lost]),
    ];
    for (arguments, expected) in rows {
        let (status, out, err) = operations(&config, arguments);
        assert_eq!((status, err.as_str()), (0, ""), "{arguments:?}: {out}");
        let found: Vec<_> = lines(&out)
            .iter()
            .map(|line| line["seq"].as_str().unwrap().parse::<u64>().unwrap())
            .collect();
        assert_eq!(found, expected, "{arguments:?}");
    }
    let refused = [
        (&["show", "1"][..], "no such operation: 1"),
        (&["acknowledge", &running_text], "only an unknown outcome"),
        (&["acknowledge", "1"], "no such operation: 1"),
        (&["show", "0"], "0 is not an operation number"),
        (&["cancel", &lost_text], "cannot be cancelled"),
        (&["cancel", "1"], "no such operation: 1"),
    ];
    for (arguments, expected) in refused {
        let (status, out, err) = operations(&config, arguments);
        assert_eq!((status, out.as_str()), (1, ""), "{arguments:?}: {err}");
        assert!(err.contains(expected), "{arguments:?}: {err}");
    }

    for time in ["once", "and again"] {
        let (status, out, err) = operations(&config, &["acknowledge", &lost_text]);
        assert_eq!((status, err.as_str()), (0, ""), "{time}: {out}");
        assert!(out.contains("acknowledged="), "{time}: {out}");
    }
    assert_eq!(acknowledged(&trail), [lost], "one line in the trail");
    assert!(unknown() < 0.1, "nothing is left to look at");

    let (status, out, err) = operations(&config, &["cancel", &running_text]);
    assert_eq!((status, err.as_str()), (0, ""), "cancel: {out}");
    eventually("cancelled by the running gateway", || {
        let (_, out, _) = operations(&config, &["show", "--json", &running_text]);
        lines(&out)[0]["phase"] == "cancelled"
    });
    let trail_text = fs::read_to_string(&trail).unwrap();
    assert!(
        trail_text.contains("\"action\":\"cancel\""),
        "in the trail: {trail_text}"
    );

    let mode = fs::metadata(&file).unwrap().permissions().mode();
    assert_eq!(
        mode & 0o777,
        0o600,
        "the token has the permissions of the store"
    );
    for (way, client) in [
        ("no token", Client::bare(gateway.admin)),
        (
            "a wrong one",
            Client::bare(gateway.admin).with("Authorization", "Bearer 0000"),
        ),
    ] {
        assert_eq!(client.get("/operations").status, 401, "{way}");
        let path = format!("/operations/{lost}/acknowledge");
        assert_eq!(client.send("POST", &path, Some(b"")).status, 401, "{way}");
    }

    gateway.signal("TERM");
    assert_eq!(gateway.wait(), Some(0), "stopped");
    assert!(!file.exists(), "no gateway is left to ask");
    let (status, out, err) = operations(&config, &["acknowledge", "--json", &lost_text]);
    assert_eq!((status, err.as_str()), (0, ""), "offline: {out}");
    assert_eq!(lines(&out)[0]["phase"], "unknown", "the same operation");
    assert_eq!(acknowledged(&trail), [lost], "and still one line");
}

#[apply(test)]
fn an_acknowledgement_without_a_gateway_names_the_account_too() {
    let folder = tempfile::tempdir().unwrap();
    let config = folder.path().join("snapgate.toml");
    let (gateway, lost, _) = gateway_with_an_unknown_outcome(&config);
    gateway.signal("TERM");
    assert_eq!(gateway.wait(), Some(0), "stopped");
    let (status, out, err) = operations(&config, &["acknowledge", &lost.to_string()]);
    assert_eq!((status, err.as_str()), (0, ""), "done: {out}");
    let trail = lines(&fs::read_to_string(folder.path().join("audit.jsonl")).unwrap());
    let last = trail.last().unwrap();
    assert_eq!(last["action"], "acknowledge", "{last}");
    assert_eq!(last["client"], "local", "on this machine: {last}");
    let name = last["principal"].as_str().unwrap();
    assert!(name.starts_with("os:") && name.len() > 3, "who: {last}");
    let verified = program()
        .args(["audit", "verify"])
        .arg(folder.path().join("audit.jsonl"))
        .status();
    assert!(verified.unwrap().success(), "in the same chain");
}

#[apply(test)]
fn an_unreachable_gateway_is_reported_with_a_remedy() {
    let folder = tempfile::tempdir().unwrap();
    let config = folder.path().join("snapgate.toml");
    let file = folder.path().join("operations.db.operator");
    let sim = SIM.replace("SECRET_HASH", SECRET_HASH);
    let ports = "[server]\nlisten = \"127.0.0.1:0\"\nadmin = \"127.0.0.1:0\"\n";
    fs::write(&config, format!("{ports}{sim}")).unwrap();
    let gateway = Process::start(&["serve", "--config", config.to_str().unwrap()]);
    let good = fs::read_to_string(&file).unwrap();
    let token = good.split("token\":\"").nth(1).unwrap().get(..8).unwrap();
    let unused = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let closed = unused.local_addr().unwrap().to_string();
    drop(unused);
    let rows = [
        (
            "another token",
            good.replace(token, "00000000"),
            "operator token required",
        ),
        (
            "no gateway",
            good.replace(&gateway.admin.to_string(), &closed),
            "does not answer",
        ),
        (
            "something else",
            "hello".to_owned(),
            "operations.db.operator",
        ),
    ];
    for (name, content, expected) in rows {
        fs::write(&file, content).unwrap();
        let (status, out, err) = operations(&config, &["list"]);
        assert_eq!((status, out.as_str()), (1, ""), "{name}: {err}");
        assert!(err.contains(expected), "{name}: {err}");
    }
    fs::remove_file(&file).unwrap();
    let (status, _, err) = operations(&config, &["list"]);
    assert_eq!(status, 1, "no file: {err}");
    assert!(
        err.contains("is in use by another snapgate process"),
        "{err}"
    );
}
