//! The question before a restore or a delete, on a real pseudo-terminal.

use std::io::Write;
use std::process::Command;
use std::process::Stdio;

use crate::client_commands::Ended;
use crate::client_commands::Home;
use crate::client_commands::plain_server;
use crate::client_commands::status;
use crate::harness::Gateway;
use crate::harness::SIM;
use crate::requirements::require_programs;

/// Runs the program on a terminal on which this is typed.
fn on_terminal(home: &Home, user: &str, words: &str, typed: &str) -> Ended {
    let command = home.command(user, words);
    let program = command.get_program().to_str().unwrap();
    let mut terminal = Command::new("script");
    terminal
        .args(["--quiet", "--return", "--command"])
        .arg(format!("{program} {words}"))
        .arg("/dev/null");
    for (name, value) in command.get_envs() {
        if let Some(value) = value {
            terminal.env(name, value);
        }
    }
    let mut running = terminal
        .env("TERM", "xterm")
        .current_dir(home.path())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = running.stdin.take().unwrap();
    stdin.write_all(typed.as_bytes()).unwrap();
    // Kept open: its end would be read as the end of the input.
    let ended = Ended::from_output(running.wait_with_output().unwrap());
    drop(stdin);
    ended
}

fn restores(home: &Home) -> usize {
    let listed = home.run("alice", "status list --op restore-Backup --output json");
    listed.records().len() - 1
}

#[apply(test)]
fn a_restore_shows_the_plan_and_asks() {
    require_programs(&["script"]);
    let gateway = Gateway::start(SIM);
    let home = Home::new(gateway.api);
    for typed in ["n\n", "\n", "restore\n"] {
        let declined = on_terminal(&home, "alice", "backup restore 1 456 --wait", typed);
        assert_eq!(declined.status, 2, "{typed:?}: {declined:?}");
        for part in [
            "(id 1)",
            "(id 456)",
            "made 20",
            " ago)",
            "overwrites",
            "disk0",
        ] {
            assert!(declined.out.contains(part), "{part}: {declined:?}");
        }
        assert!(declined.out.contains("nothing was changed"), "{declined:?}");
    }
    assert_eq!(restores(&home), 0, "nothing was sent");
    let restored = on_terminal(&home, "alice", "backup restore 1 @latest --wait", "y\n");
    assert_eq!(restored.status, 0, "{restored:?}");
    assert!(restored.out.contains("SUCCESS 100 %"), "{restored:?}");
    assert_eq!(restores(&home), 1, "once");
    // Without the right there is no question, and the grant to ask for.
    let denied = on_terminal(&home, "carol", "backup delete 1 456", "y\n");
    assert_eq!(denied.status, 2, "{denied:?}");
    assert!(
        denied.out.contains("grant with the action `delete`"),
        "{denied:?}"
    );
    assert!(!denied.out.contains("[y/N]"), "{denied:?}");
}

#[apply(test)]
fn a_delete_that_would_be_refused_is_not_asked_about() {
    require_programs(&["script"]);
    let gateway = Gateway::start(SIM);
    let home = Home::new(gateway.api);
    let protected = home.run("alice", "backup update 1 456 --protect --wait");
    assert_eq!(protected.status, 0, "{protected:?}");
    let refused = on_terminal(&home, "alice", "backup delete 1 456", "y\n");
    assert_eq!(refused.status, 2, "{refused:?}");
    assert!(refused.out.contains("BackupProtected"), "{refused:?}");
    assert!(!refused.out.contains("[y/N]"), "{refused:?}");
}

#[apply(test)]
fn a_restore_is_done_as_it_was_shown_or_not_at_all() {
    require_programs(&["script"]);
    let gateway = Gateway::start(SIM);
    let home = Home::new(gateway.api);
    let planned = home.run("alice", "backup plan 1 456 --output json");
    let plan = &planned.records()[0]["plan"];
    let fingerprint = plan["fingerprint"].as_str().unwrap();
    let words = format!("backup restore 1 456 --yes --wait --if-plan {fingerprint}");
    assert_eq!(home.run("alice", &words).status, 0, "as planned");
    let other = on_terminal(&home, "alice", "backup restore 1 456 --if-plan 0123", "y\n");
    assert_eq!(other.status, 2, "the plan that was named counts: {other:?}");
    assert!(other.out.contains("PlanStale"), "{other:?}");
}

#[apply(test)]
fn a_server_without_plans_is_asked_with_what_is_known() {
    require_programs(&["script"]);
    let success = serde_json::json!({"state": "SUCCESS", "status": 200, "message": "Restored."});
    let server = plain_server(status(100, &success));
    let home = Home::new(server.address);
    let restored = on_terminal(&home, "alice", "backup restore 1 456 --wait", "yes\n");
    assert_eq!(restored.status, 0, "{restored:?}");
    for part in [
        "VM web (id 1)",
        "backup first (id 456)",
        "Restore web? [y/N]",
    ] {
        assert!(restored.out.contains(part), "{part}: {restored:?}");
    }
    let asked = server.asked();
    let sent = asked
        .iter()
        .find(|asked| asked.target.ends_with("/restore"))
        .unwrap();
    assert!(!sent.headers.contains_key("if-plan"), "no plan: {sent:?}");
    assert_eq!(sent.body, "{}", "nothing was added: {sent:?}");
}
