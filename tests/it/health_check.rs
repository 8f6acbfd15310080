//! What containers and units run beside the gateway: `snapgate health`, and commands without `--config`.

use std::fs;
use std::net::SocketAddr;
use std::process::Output;

use crate::harness::Process;
use crate::harness::SECRET_HASH;
use crate::harness::SIM;
use crate::harness::eventually;
use crate::harness::program;

fn ask(admin: SocketAddr, more: &[&str]) -> Output {
    let admin = admin.to_string();
    let mut command = program();
    command.args(["health", "--admin", &admin]).args(more);
    command.output().unwrap()
}

fn is_yes(admin: SocketAddr, more: &[&str]) -> bool {
    ask(admin, more).status.code() == Some(0)
}

#[apply(test)]
fn the_health_check_follows_the_gateway() {
    let folder = tempfile::tempdir().unwrap();
    let config = folder.path().join("snapgate.toml");
    let server =
        "[server]\nlisten = \"127.0.0.1:0\"\nadmin = \"127.0.0.1:0\"\ndrain_notice = \"600s\"\n";
    let sim = SIM.replace("SECRET_HASH", SECRET_HASH);
    fs::write(&config, format!("{server}{sim}")).unwrap();
    let process = Process::start(&["serve", "--config", config.to_str().unwrap()]);
    let admin = process.admin;
    let found = ask(admin, &[]);
    assert_eq!(found.stdout, b"ok\n", "alive: {found:?}");
    assert!(is_yes(admin, &[]), "alive");
    assert!(is_yes(admin, &["--ready"]), "ready");

    process.signal("TERM");
    eventually("a gateway that drains is not ready", || {
        !is_yes(admin, &["--ready"])
    });
    let found = ask(admin, &["--ready"]);
    let text = String::from_utf8_lossy(&found.stderr);
    assert!(text.contains("503") && text.contains("stopping"), "{text}");
    assert!(is_yes(admin, &[]), "but alive");

    process.kill();
    let found = ask(admin, &[]);
    let text = String::from_utf8_lossy(&found.stderr);
    assert_eq!(found.status.code(), Some(1), "gone: {text}");
    assert!(
        text.contains(&format!("the admin port {admin} does not answer")),
        "{text}"
    );
}

#[apply(test)]
fn commands_without_config_use_the_variable_or_the_installed_file() {
    let folder = tempfile::tempdir().unwrap();
    let sim = SIM.replace("SECRET_HASH", SECRET_HASH);
    let named = folder.path().join("named.toml");
    let other = folder.path().join("other.toml");
    fs::write(&named, &sim).unwrap();
    fs::write(&other, sim.replace("lab", "mill")).unwrap();
    let check = |variable: &str, more: &[&str]| {
        let mut command = program();
        command
            .arg("check")
            .args(more)
            .env("SNAPGATE_CONFIG", variable);
        let output = command.output().unwrap();
        (
            output.status.code(),
            String::from_utf8_lossy(&output.stdout).into_owned(),
            String::from_utf8_lossy(&output.stderr).into_owned(),
        )
    };
    let (status, summary, errors) = check(named.to_str().unwrap(), &[]);
    assert_eq!(status, Some(0), "the variable: {errors}");
    assert!(summary.contains("backend   lab"), "{summary}");
    let option = ["--config", other.to_str().unwrap()];
    let (_, summary, errors) = check(named.to_str().unwrap(), &option);
    assert!(
        summary.contains("backend   mill"),
        "the option wins: {summary}{errors}"
    );
    let installed = "/etc/snapgate/snapgate.toml";
    if !fs::exists(installed).unwrap() {
        let (status, _, errors) = check("", &[]);
        assert_eq!(status, Some(78), "{errors}");
        assert!(errors.contains(installed), "names the file: {errors}");
    }
}
