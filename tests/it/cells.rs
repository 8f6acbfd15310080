//! Cells of docs/scale.md: the router of the manual sends each VM to its cell, and the tables are those of the simulation.

use std::fs;
use std::net::SocketAddr;
use std::net::TcpStream;
use std::process::Child;
use std::process::Command;
use std::process::Stdio;

use crate::client::Client;
use crate::harness::Gateway;
use crate::harness::eventually;
use crate::harness::settings_for_alice;
use crate::ports::free_port;
use crate::requirements::require_programs;

const DOCUMENT: &str = "docs/scale.md";

/// The first block of the document that begins with this line.
fn block(first_line: &str) -> String {
    let text = fs::read_to_string(DOCUMENT).unwrap();
    text.split("```")
        .map(str::trim)
        .find(|block| block.starts_with(first_line))
        .unwrap_or_else(|| panic!("{DOCUMENT} has no block that begins with {first_line:?}"))
        .to_owned()
}

/// A gateway with VMs of one prefix, known to its clients under its own address.
fn cell(number: u16, prefix: &str) -> (Gateway, String) {
    let url = format!("http://127.0.0.1:{}", free_port());
    let sim = format!(
        "[[backend]]\nname = \"sim\"\nkind = \"sim\"\nvms = [\"{prefix}*\"]\n[backend.sim]\nsimulated_vms = [\"{prefix}1\"]\n"
    );
    let address = url.trim_start_matches("http://");
    let settings = settings_for_alice(&sim).replacen(
        "listen = \"127.0.0.1:0\"",
        &format!("listen = \"{address}\"\npublic_url = \"{url}\""),
        1,
    );
    let settings = settings.replacen(
        "[operations]\n",
        &format!("[operations]\ncell = {number}\n"),
        1,
    );
    (Gateway::start(&settings), url)
}

#[apply(test)]
fn the_router_of_the_manual_sends_each_vm_to_its_cell_and_links_lead_there() {
    require_programs(&["haproxy"]);
    let (first, first_url) = cell(1, "az1-");
    let (second, second_url) = cell(2, "az2-");
    let folder = tempfile::tempdir().unwrap();
    let map = folder.path().join("cells.map");
    fs::write(&map, block("az1-")).unwrap();
    let router = SocketAddr::from(([127, 0, 0, 1], free_port()));
    let config = block("frontend backup")
        .replace("/etc/haproxy/cells.map", map.to_str().unwrap())
        .replace(":443 ssl crt /etc/haproxy/backup.pem", &router.to_string())
        .replace("gw1.az1:8080", &first.api.to_string())
        .replace("gw1.az2:8080", &second.api.to_string());
    let defaults =
        "defaults\n  mode http\n  timeout connect 5s\n  timeout client 20s\n  timeout server 20s\n";
    let file = folder.path().join("haproxy.cfg");
    // The other gateways of each cell, and their health checks, are those of docs/cluster.md.
    let config: String = config
        .lines()
        .filter(|line| !line.contains("gw2.") && !line.contains("httpchk"))
        .map(|line| line.replace(" check port 8970", "") + "\n")
        .collect();
    fs::write(&file, format!("{defaults}{config}")).unwrap();
    let child = Command::new("haproxy")
        .args(["-db", "-f", file.to_str().unwrap()])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let _haproxy = Stopped(child);
    eventually("HAProxy listens", || TcpStream::connect(router).is_ok());

    let client = Client::new(router, "alice", "secret");
    for (vm, url) in [("az1-1", &first_url), ("az2-1", &second_url)] {
        let made = client.post(&format!("/back_up?vm={vm}"), "{\"name\": \"routed\"}");
        let made = client.finished(&made.status_uri());
        let target = made["target_uri"].as_str().unwrap();
        let backup = client.get(target);
        assert_eq!(backup.status, 200, "{target}");
        let restore = backup.json()["restore"].as_str().unwrap().to_owned();
        assert!(
            restore.starts_with(url.as_str()),
            "{restore} leads to {url}"
        );
        let changed = client.put(target, "{\"description\": \"through the router\"}");
        let changed = client.finished(&changed.status_uri());
        assert_eq!(changed["state"], "SUCCESS", "{changed}");
    }
    assert_eq!(client.get("/vms/az3-1/backups").status, 404, "no cell");
    assert_eq!(client.get("/statuses").status, 404, "no VM");
}

/// A process that ends with the test.
struct Stopped(Child);

impl Drop for Stopped {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

#[apply(test)]
fn the_tables_about_cells_are_those_of_the_simulation() {
    require_programs(&["python3"]);
    let output = Command::new("python3")
        .arg("benches/cells.py")
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let printed = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{printed}");
    let text = fs::read_to_string(DOCUMENT).unwrap();
    assert!(printed.lines().count() > 30, "{printed}");
    for line in printed.lines() {
        assert!(text.contains(line), "{DOCUMENT} has no line {line:?}");
    }
}
