//! Names of VMs and backups, lists, and what is shown of them.

use serde_json::json;

use crate::client_commands::Home;
use crate::client_commands::ScriptedServer;
use crate::client_commands::backup;
use crate::client_commands::refusal;
use crate::harness::Gateway;
use crate::harness::Process;
use crate::harness::SIM;

#[apply(test)]
fn a_backup_is_an_id_a_unique_name_or_the_latest() {
    let gateway = Gateway::start(SIM);
    let home = Home::new(gateway.api);
    for name in ["one", "two"] {
        let ended = home.run("alice", &format!("backup create 1 {name} --wait"));
        assert_eq!(ended.status, 0, "{ended:?}");
    }
    let id_of = |backup: &str| {
        let shown = home.run("alice", &format!("backup show 1 {backup} --output json"));
        assert_eq!(shown.status, 0, "{shown:?}");
        shown.records()[0]["id"].as_str().unwrap().to_owned()
    };
    assert_eq!(id_of("456"), "456", "by id");
    assert_eq!(id_of("two"), id_of("@latest"), "by name, and the latest");
    assert_ne!(id_of("one"), id_of("two"), "two backups");
    let updated = home.run(
        "alice",
        "backup update 1 one --name three --tag a --tag b --protect",
    );
    assert_eq!(updated.status, 0, "{updated:?}");
    let shown = home.run("alice", "backup show 1 three");
    assert!(shown.out.contains("a, b"), "{shown:?}");
    assert!(shown.out.contains("protected   yes"), "{shown:?}");
    let protected = home.run("alice", "backup delete 1 three --yes --wait");
    assert_eq!(protected.status, 2, "{protected:?}");
    let cleared = home.run(
        "alice",
        "backup update 1 three --no-tags --unprotect --wait",
    );
    assert_eq!(cleared.status, 0, "{cleared:?}");
    let deleted = home.run("alice", "backup delete 1 three --yes --wait");
    assert_eq!(deleted.status, 0, "{deleted:?}");
    let listed = home.run("alice", "backup list 1 --name t* --output json");
    let records = listed.records();
    assert_eq!(records.len(), 2, "one backup and the result: {listed:?}");
    assert_eq!(records[0]["backup"]["name"], "two", "{listed:?}");
}

#[apply(test)]
fn an_ambiguous_name_is_a_usage_error_that_lists_the_ids() {
    let server = ScriptedServer::start(|asked, _| {
        let path = asked.target.split('?').next().unwrap();
        match path {
            "/vms/1" => Some((200, json!({"name": "web"}).to_string())),
            "/vms/1/backups" => {
                let time = "2026-01-01T00:00:00Z";
                let listed = [
                    backup("a", "twice", time),
                    backup("b", "twice", time),
                    backup("c", "once", time),
                ];
                Some((200, json!({ "backups": listed }).to_string()))
            }
            "/vms" => {
                let vm = |id: &str| json!({"id": id, "name": "same", "uri": "x", "backups": "x"});
                let vms = [vm("7"), vm("8")];
                Some((200, json!({"vms": vms, "complete": true}).to_string()))
            }
            "/vms/same" => refusal(404, "NoSuchVm"),
            _ => refusal(404, "NoSuchBackup"),
        }
    });
    let home = Home::new(server.address);
    let rows = [
        ("backup delete 1 twice --yes", "\"a\", \"b\""),
        ("backup restore same x --yes", "\"7\", \"8\""),
    ];
    for (words, ids) in rows {
        let ended = home.run("alice", words);
        assert_eq!(ended.status, 64, "{words}: {ended:?}");
        assert!(ended.err.contains(ids), "{words}: {ended:?}");
    }
    let changes = server.asked();
    let changes: Vec<_> = changes
        .iter()
        .filter(|asked| asked.method != "GET")
        .collect();
    assert!(changes.is_empty(), "nothing was changed: {changes:?}");
}

#[apply(test)]
fn vms_are_found_by_name_and_every_page_of_a_list_is_read() {
    let home = tempfile::tempdir().unwrap();
    let folder = home.path().join("demo");
    let ports = ["--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0"];
    let gateway =
        Process::start(&[&["demo", "--dir", folder.to_str().unwrap()], &ports[..]].concat());
    let home = Home::new(gateway.api);
    let run = |words: &str| {
        let mut command = home.command("demo", words);
        command.env("SNAPGATE_PASSWORD_FILE", folder.join("client-password"));
        crate::client_commands::Ended::from_output(command.output().unwrap())
    };
    let listed = run("vm list");
    assert_eq!(listed.status, 0, "{listed:?}");
    assert!(
        listed.out.contains("33333") && listed.out.contains("web01-copy"),
        "{listed:?}"
    );
    let shown = run("vm show web01 --output json");
    assert_eq!(shown.records()[0]["id"], "33333", "{shown:?}");
    assert!(shown.out.contains("restore"), "what may be done: {shown:?}");
    let limited = run("vm list --limit 1 --output json");
    assert_eq!(
        limited.records().len(),
        2,
        "one VM and the result: {limited:?}"
    );
    let named = run("vm list --name web01-* --output json");
    assert_eq!(named.records()[0]["vm"]["id"], "333333", "{named:?}");
}

#[apply(test)]
fn lists_follow_the_links_of_the_gateway_and_names_cannot_steer_the_terminal() {
    let gateway = Gateway::start(&SIM.replace("duration", "simulated_backups = 1500\nduration"));
    let home = Home::new(gateway.api);
    let listed = home.run("alice", "backup list 1 --output json");
    assert_eq!(listed.records().len(), 1501, "two pages and the result");
    let mut create = home.command("alice", "backup create 1");
    create.arg("a\u{202e}b").arg("--wait");
    assert_eq!(create.output().unwrap().status.code(), Some(0), "made");
    let listed = home.run("alice", "backup list 1 --tag none");
    assert_eq!(listed.status, 0, "{listed:?}");
    let listed = home.run("alice", "backup list 1 --sort -created --limit 1");
    assert!(listed.out.contains("a\\u{202e}b"), "escaped: {listed:?}");
}

#[apply(test)]
fn operations_are_listed_shown_and_watched() {
    let gateway = Gateway::start(SIM);
    let home = Home::new(gateway.api);
    let restored = home.run("alice", "backup restore 1 456 --yes --wait --output json");
    let seq = restored.result()["status"]["seq"]
        .as_str()
        .unwrap()
        .to_owned();
    let listed = home.run("alice", "status list --vm 1 --op restore-Backup");
    assert!(listed.out.contains(&seq), "{listed:?}");
    let shown = home.run("alice", &format!("status show {seq}"));
    assert!(shown.out.contains("state       SUCCESS"), "{shown:?}");
    let watched = home.run("alice", "status watch --limit 1 --output json");
    assert_eq!(watched.status, 0, "{watched:?}");
    assert_eq!(
        watched.records()[0]["status"]["seq"],
        seq.as_str(),
        "{watched:?}"
    );
    let planned = home.run("alice", "backup plan 1 456");
    assert_eq!(planned.status, 0, "{planned:?}");
    assert!(planned.out.contains("fingerprint"), "{planned:?}");
}
