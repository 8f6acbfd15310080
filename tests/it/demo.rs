//! The first hour: the demo again and again, and the smallest configuration as it comes.

use std::fs;
use std::path::Path;
use std::path::PathBuf;
use std::process::Output;

use crate::client::Client;
use crate::harness::Process;
use crate::harness::program;

fn reset(folder: &Path) -> Output {
    // Ends before it serves, or the test fails at the port: it is refused everywhere else.
    program()
        .args(["demo", "--reset", "--listen", "192.0.2.1:1", "--dir"])
        .arg(folder)
        .output()
        .unwrap()
}

fn first_line(image: PathBuf) -> String {
    let bytes = fs::read(image).unwrap();
    String::from_utf8(bytes[..64].to_vec()).unwrap()
}

fn demo(process: &Process) -> Client {
    Client::new(process.api, "demo", "demo")
}

#[apply(test)]
fn a_reset_makes_the_demo_as_it_was_at_first_and_keeps_what_is_not_the_demos() {
    let home = tempfile::tempdir().unwrap();
    let folder = home.path().join("demo");
    let process = Process::start_demo(&folder, &[]);
    let printed = process.printed.join("\n");
    for expected in [
        "/ui/ and sign in as demo with the password demo",
        "five digits",
        "six digits",
        "demo --reset --dir",
        "the second time 404",
        "the second time 409",
    ] {
        assert!(printed.contains(expected), "{expected}: {printed}");
    }
    let client = demo(&process);
    assert_eq!(client.get("/ui/").status, 200, "the page that it names");
    let deleted = client.delete("/vms/333333/backups/456");
    assert_eq!(deleted.status, 202, "the first time");
    client.finished(deleted.json()["status_uri"].as_str().unwrap());
    assert_eq!(
        client.delete("/vms/333333/backups/456").status,
        404,
        "the second time"
    );
    let refused = reset(&folder);
    let text = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert_eq!(refused.status.code(), Some(1), "{text}");
    assert!(text.contains("a gateway is running on"), "{text}");
    assert!(text.contains("nothing was changed"), "{text}");
    assert_eq!(
        client.get("/vms/33333/backups/456").status,
        200,
        "it serves on"
    );
    process.signal("TERM");
    assert_eq!(process.wait(), Some(0), "stopped");

    fs::create_dir(folder.join("vms/mine")).unwrap();
    fs::write(folder.join("vms/mine/disk.img"), "mine").unwrap();
    fs::write(folder.join("vms/33333/disk.img"), "spoilt").unwrap();
    let process = Process::start_demo(&folder, &["--reset"]);
    assert!(
        process.printed[0].ends_with(" reset"),
        "{:?}",
        process.printed
    );
    let client = demo(&process);
    for vm in ["33333", "333333"] {
        let path = format!("/vms/{vm}/backups/456");
        assert_eq!(client.get(&path).status, 200, "{vm}: its backup is back");
        let line = first_line(folder.join("vms").join(vm).join("disk.img"));
        assert!(line.contains("changed after the backup"), "{vm}: {line}");
    }
    let list = client.get("/statuses").json();
    assert_eq!(list["statuses"].as_array().map(Vec::len), Some(0), "{list}");
    let mine = fs::read_to_string(folder.join("vms/mine/disk.img")).unwrap();
    assert_eq!(mine, "mine", "another VM stays");
}

#[apply(test)]
fn a_reset_touches_no_folder_that_holds_no_demo() {
    let home = tempfile::tempdir().unwrap();
    let folder = home.path().join("mine");
    fs::create_dir_all(folder.join("vms/33333")).unwrap();
    fs::write(folder.join("snapgate.toml"), "# mine\n").unwrap();
    for place in [folder.clone(), home.path().join("absent")] {
        let refused = reset(&place);
        let text = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert_eq!(refused.status.code(), Some(1), "{text}");
        assert!(
            text.contains("is not a demo folder; nothing was changed"),
            "{text}"
        );
    }
    assert!(folder.join("vms/33333").exists(), "it is still there");
    let names = fs::read_dir(&folder).unwrap().count();
    assert_eq!(names, 2, "and nothing else");
    assert!(!home.path().join("absent").exists(), "nothing is made");
}

#[apply(test)]
fn the_demo_is_not_served_in_cleartext_to_other_machines() {
    let home = tempfile::tempdir().unwrap();
    let output = program()
        .args([
            "demo",
            "--listen",
            "0.0.0.0:0",
            "--admin",
            "127.0.0.1:0",
            "--dir",
        ])
        .arg(home.path().join("demo"))
        .output()
        .unwrap();
    let text = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(78), "{text}");
    assert!(
        text.contains("the address given by --listen, 0.0.0.0:0 would send passwords in cleartext"),
        "{text}"
    );
}

#[apply(test)]
fn the_smallest_configuration_has_the_password_it_says() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name).display().to_string();
    for made in ["vms/web", "backups"] {
        fs::create_dir_all(at(made)).unwrap();
    }
    let text = fs::read_to_string("config/minimal.toml").unwrap();
    assert!(text.contains("The password is `example`."), "it says so");
    let text = text
        .replace(
            "/var/lib/snapgate/operations.sqlite",
            &at("operations.sqlite"),
        )
        .replace("/srv/vms", &at("vms"))
        .replace("/srv/backups", &at("backups"));
    let ports = "[server]\nlisten = \"127.0.0.1:0\"\nadmin = \"127.0.0.1:0\"\n";
    fs::write(at("c.toml"), format!("{ports}{text}")).unwrap();
    let init = program()
        .args(["init", "--config", &at("c.toml"), "--accept-contents"])
        .output()
        .unwrap();
    assert!(init.status.success(), "{init:?}");
    let process = Process::start(&["serve", "--config", &at("c.toml")]);
    let admin = Client::new(process.api, "admin", "example");
    assert_eq!(
        admin.get("/vms/web/backups").status,
        200,
        "it is the password"
    );
    let other = Client::new(process.api, "admin", "examples");
    assert_eq!(other.get("/vms/web/backups").status, 401, "and no other");
}
