//! The stand-in answers as the server code of Proxmox VE 8.4 was seen to: each verb, and what a killed task leaves.

use std::fs;
use std::process::Command;

use crate::proxmox::ProxmoxServer;

/// What a killed task leaves, as the server code of Proxmox VE 8.4 was seen to leave it.
const TRANSCRIPT: &str = "tests/golden/proxmox-crash.txt";

fn output_of(script: &str, lab: &ProxmoxServer) -> String {
    let output = Command::new("/usr/bin/python3")
        .arg("-B")
        .arg(format!(
            "{}/tests/beds/{script}",
            env!("CARGO_MANIFEST_DIR")
        ))
        .arg(lab.path("lab.json"))
        .output()
        .unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{script}: {text}{errors}");
    text
}

#[apply(test)]
fn every_verb_is_answered_as_the_server_answers_it() {
    let lab = ProxmoxServer::new();
    let text = output_of("proxmox_verbs.py", &lab);
    assert!(text.ends_with("39 passed, 0 failed\n"), "{text}");
}

#[apply(test)]
fn a_killed_task_leaves_what_the_server_leaves() {
    let lab = ProxmoxServer::new();
    let text = output_of("proxmox_crash.py", &lab);
    let expected = fs::read_to_string(TRANSCRIPT).unwrap();
    assert_eq!(text, expected, "{TRANSCRIPT}");
}
