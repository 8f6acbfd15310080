//! README's demo and the tutorial, run as they stand: what a newcomer pastes works, and the responses are those that the text shows.
//!
//! They use fixed ports and the home folder, so each runs in a network namespace and a folder of its own. What they install is
//! there already: the blocks with `apt-get` and `cargo` are left out.

use std::collections::BTreeSet;
use std::env;
use std::fs;
use std::path::Path;
use std::process::Command;

use crate::requirements::require_programs;
use crate::requirements::require_root;

/// The shell blocks of a document after one of its headings, those of the installation left out.
fn shell_blocks(document: &str, heading: &str) -> Vec<String> {
    let text = fs::read_to_string(document).unwrap();
    let (_, text) = text
        .split_once(heading)
        .unwrap_or_else(|| panic!("{document} has no {heading:?}"));
    let mut blocks = Vec::new();
    let mut block: Option<String> = None;
    for line in text.lines() {
        match &mut block {
            None if line == "```sh" => block = Some(String::new()),
            None => {}
            Some(commands) if line == "```" => {
                blocks.push(std::mem::take(commands));
                block = None;
            }
            Some(commands) => {
                commands.push_str(line);
                commands.push('\n');
            }
        }
    }
    blocks
}

/// Waits until the gateway answers, or fails the script.
const WAIT_UNTIL_READY: &str = "for _ in $(seq 300); do curl -s -o /dev/null http://127.0.0.1:8080/versions && break; sleep 0.1; done\n\
     curl -sf -o /dev/null http://127.0.0.1:8080/versions || { cat gateway.log; exit 1; }\n";

/// Runs a script in a network namespace of its own, with `home` as home folder. Returns what it printed.
fn run_script(home: &Path, script: &str) -> String {
    let program = Path::new(env!("CARGO_BIN_EXE_snapgate"));
    let programs = program.parent().unwrap().to_str().unwrap();
    let path = format!("{programs}:{}", env::var("PATH").unwrap_or_default());
    let script = format!("ip link set lo up\ncd \"$HOME\"\n{script}");
    let output = Command::new("timeout")
        .args(["120", "unshare", "--net", "bash", "-c", &script])
        .env("HOME", home)
        .env("PATH", path)
        .output()
        .unwrap();
    let printed = String::from_utf8_lossy(&output.stdout).into_owned();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success(),
        "the commands failed: {}\n{printed}\n{errors}",
        output.status
    );
    printed
}

/// Asserts that these texts were printed, in this order.
fn assert_in_order(printed: &str, expected: &[&str]) {
    let mut rest = printed;
    for text in expected {
        let Some((_, after)) = rest.split_once(text) else {
            panic!("{text:?} is missing, or not in this place:\n{printed}");
        };
        rest = after;
    }
}

#[apply(test)]
fn every_command_of_the_demo_in_the_readme_does_what_the_readme_says() {
    require_programs(&["curl", "ip"]);
    require_root("a network namespace");
    let home = tempfile::tempdir().unwrap();
    let blocks = shell_blocks("README.md", "## Try it");
    let [start, get, restore, status, update, delete, ..] = blocks.as_slice() else {
        panic!("the demo has a block to start it and five steps: {blocks:?}");
    };
    assert!(
        start.trim_end().ends_with("cargo run -- demo"),
        "the command that starts the demo: {start}"
    );
    let script = format!(
        "snapgate demo >gateway.log 2>&1 &\ngateway=$!\n{WAIT_UNTIL_READY}\
         {get}\n{restore}\n{status}\n{update}\n{delete}\n\
         kill $gateway\nwait $gateway"
    );
    let printed = run_script(home.path(), &script);
    assert_in_order(
        &printed,
        &[
            "HTTP/1.1 200 OK",
            "\"name\":\"web01_",
            "\"state\":\"AVAILABLE\"",
            // The damaged disk, the restore, and the disk as it was.
            "broken",
            "HTTP/1.1 202 Accepted",
            "\"message\":\"The VM was restored.\",\"state\":\"SUCCESS\"",
            "VM 33333 block 0000000 as it was backed up",
            // The Status once more, the update, the delete.
            "HTTP/1.1 200 OK",
            "\"state\":\"SUCCESS\"",
            "HTTP/1.1 202 Accepted",
            "\"op\":\"update-Backup\",\"progress\":100",
            "HTTP/1.1 202 Accepted",
            "\"op\":\"delete-Backup\"",
        ],
    );
}

/// The packages that a line of a script or document installs with `apt-get`.
fn installed_packages(line: &str) -> BTreeSet<&str> {
    let (_, rest) = line
        .split_once("--no-install-recommends ")
        .unwrap_or_default();
    let packages = rest.split_whitespace();
    packages
        .take_while(|word| !word.contains(['&', '>']))
        .collect()
}

#[apply(test)]
fn whatever_builds_the_gateway_installs_what_the_readme_names() {
    let text = fs::read_to_string("README.md").unwrap();
    let first = text
        .lines()
        .find(|line| line.ends_with("cargo run -- demo"));
    let needed = installed_packages(first.unwrap());
    assert!(needed.contains("build-essential"), "{needed:?}");
    // document, commands in it that install packages to build with, packages that are there before
    let rows: [(&str, usize, &[&str]); 4] = [
        (".ci/run", 1, &[]),
        ("docs/install.md", 2, &[]),
        ("docs/tutorial.md", 1, &[]),
        // The base image is made to compile programs.
        ("config/package/Containerfile", 1, &["build-essential"]),
    ];
    for (document, commands, there) in rows {
        let text = fs::read_to_string(document).unwrap();
        let lists: Vec<_> = text
            .lines()
            .map(installed_packages)
            .filter(|packages| packages.contains("cmake"))
            .collect();
        assert_eq!(lists.len(), commands, "{document}: {lists:?}");
        for packages in lists {
            let missing = needed.difference(&packages);
            let missing: Vec<_> = missing.filter(|package| !there.contains(package)).collect();
            assert!(missing.is_empty(), "{document} lacks {missing:?}");
        }
    }
}

#[apply(test)]
fn the_tutorial_leads_to_a_restored_qemu_vm() {
    require_programs(&["curl", "ip", "qemu-img", "qemu-system-x86_64"]);
    require_root("a network namespace");
    let home = tempfile::tempdir().unwrap();
    let blocks = shell_blocks("docs/tutorial.md", "## 2. Choose the VM");
    let mut script = "set -e\n".to_owned();
    for block in &blocks {
        if block.contains("kind = \"libvirt\"") {
            // The other choice: tests/it/libvirt runs the adapter on a real libvirtd.
            continue;
        }
        if block.contains("snapgate serve") {
            script.push_str("snapgate serve --config snapgate.toml >gateway.log 2>&1 &\n");
            script.push_str("gateway=$!\n");
            script.push_str(WAIT_UNTIL_READY);
            continue;
        }
        if block.contains("snapgate operations list") {
            // "Stop the gateway with Ctrl-C, then:"
            script.push_str("kill -INT $gateway\nwait $gateway\n");
        }
        let commands = block.lines().filter(|line| !line.contains("apt-get"));
        commands.for_each(|line| {
            script.push_str(line);
            script.push('\n');
        });
    }
    script.push_str("kill \"$(cat web-1.pid)\"\n");
    let printed = run_script(home.path(), &script);
    assert_in_order(
        &printed,
        &[
            "VM web-1: web-1 STARTED",
            "\"op\":\"back_up\",\"progress\":100",
            "\"message\":\"The backup was made.\",\"state\":\"SUCCESS\"",
            "{\"backups\":[{\"name\":\"before-upgrade\"",
            "/restore\n",
            "HTTP/1.1 403 Forbidden",
            "\"code\":\"NotPermitted\"",
            "\"message\":\"The VM was restored.\",\"state\":\"SUCCESS\"",
            "succeeded restore backend=my-vms",
            "by=carol",
            "succeeded create backend=my-vms",
            "by=operator",
        ],
    );
}
