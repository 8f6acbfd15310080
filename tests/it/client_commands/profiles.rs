//! Profiles, and where credentials may be.

use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::process::Stdio;

use crate::client_commands::Ended;
use crate::client_commands::Home;
use crate::client_commands::write_secret;
use crate::harness::Gateway;
use crate::harness::SIM;

fn login(home: &Home, words: &str, typed: &str) -> Ended {
    let mut running = home
        .bare(&format!("login {words}"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = running.stdin.take().unwrap();
    stdin.write_all(typed.as_bytes()).unwrap();
    drop(stdin);
    Ended::from_output(running.wait_with_output().unwrap())
}

#[apply(test)]
fn a_login_makes_a_profile_that_its_owner_alone_may_read() {
    let gateway = Gateway::start(SIM);
    let home = Home::new(gateway.api);
    let url = format!("http://{}", gateway.api);
    let wrong = login(&home, &format!("--url {url} --user alice"), "wrong\n");
    assert_eq!(wrong.status, 2, "{wrong:?}");
    let file = home.path().join(".config/snapgate/client.toml");
    assert!(!file.exists(), "credentials that are refused are not kept");
    let made = login(&home, &format!("--url {url} --user alice"), "secret\n");
    assert_eq!(made.status, 0, "{made:?}");
    let mode = fs::metadata(&file).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode, 0o600, "for its owner alone");
    let run = |words: &str| Ended::from_output(home.bare(words).output().unwrap());
    let listed = run("vm list");
    assert_eq!(listed.status, 0, "{listed:?}");
    let other = login(
        &home,
        &format!("--profile carol --url {url} --user carol"),
        "secret\n",
    );
    assert_eq!(other.status, 0, "{other:?}");
    let denied = run("backup delete 1 456 --yes --profile carol");
    assert_eq!(denied.status, 2, "as carol: {denied:?}");
    fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).unwrap();
    let exposed = run("vm list");
    assert_eq!(exposed.status, 64, "{exposed:?}");
    let remedy = format!("chmod 600 {}", file.display());
    assert!(exposed.err.contains(&remedy), "{exposed:?}");
}

#[apply(test)]
fn secrets_come_from_files_and_the_environment_and_never_from_arguments() {
    let gateway = Gateway::start(SIM);
    let home = Home::new(gateway.api);
    let readable = home.path().join("readable");
    write_secret(&readable, "secret\n");
    fs::set_permissions(&readable, fs::Permissions::from_mode(0o644)).unwrap();
    let words = format!("vm list --password-file {}", readable.display());
    let refused = home.run("alice", &words);
    assert_eq!(refused.status, 64, "{refused:?}");
    assert!(refused.err.contains("chmod o= "), "{refused:?}");
    let url = format!("http://{}", gateway.api);
    let mut by_environment = home.bare("vm list");
    by_environment
        .env("SNAPGATE_URL", &url)
        .env("SNAPGATE_USER", "alice")
        .env("SNAPGATE_PASSWORD", "secret");
    let listed = Ended::from_output(by_environment.output().unwrap());
    assert_eq!(listed.status, 0, "{listed:?}");
    let mut by_token = home.bare("vm list");
    by_token
        .env("SNAPGATE_URL", &url)
        .env("SNAPGATE_TOKEN", "sg_wrong");
    let refused = Ended::from_output(by_token.output().unwrap());
    assert_eq!(refused.status, 2, "a token that is none: {refused:?}");
    let help = Ended::from_output(home.bare("backup restore --help").output().unwrap());
    for option in ["--password ", "--token "] {
        assert!(!help.out.contains(option), "{option}: {help:?}");
    }
}
