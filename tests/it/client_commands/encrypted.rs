//! Connections over TLS: whom the commands trust, and the certificates that they show.

use std::fs;

use crate::client_commands::Ended;
use crate::client_commands::Home;
use crate::client_commands::write_secret;
use crate::harness::Gateway;
use crate::harness::SIM;
use crate::tls::Authority;
use crate::tls::HOLDERS;
use crate::tls::certificate;

#[apply(test)]
fn commands_trust_the_given_authority_alone_and_show_a_certificate() {
    let folder = tempfile::tempdir().unwrap();
    let trusted = certificate(folder.path(), "one", &["localhost"]);
    let authority = Authority::new();
    fs::write(folder.path().join("authority.pem"), &authority.pem).unwrap();
    let gateway = Gateway::start_in(folder, &format!("{SIM}{HOLDERS}"));
    let home = Home::new(gateway.api);
    fs::write(home.path().join("trusted.pem"), trusted).unwrap();
    fs::write(home.path().join("other.pem"), &authority.pem).unwrap();
    let (chain, key) = authority.identity("ci.example");
    fs::write(home.path().join("ci.pem"), chain).unwrap();
    write_secret(&home.path().join("ci.key"), &key);
    let port = gateway.api.port();
    let run = |options: &str| {
        let words =
            format!("backup show 1 456 --url https://localhost:{port} --retry-for 0s {options}");
        Ended::from_output(home.bare(&words).output().unwrap())
    };
    let shown = "--cert ci.pem --key ci.key";
    let password = "--user alice --password-file password";
    // name, options, exit status, what the message names
    let rows = [
        ("a certificate", format!("--ca trusted.pem {shown}"), 0, ""),
        ("a password", format!("--ca trusted.pem {password}"), 0, ""),
        ("nothing", "--ca trusted.pem".to_owned(), 2, "401"),
        (
            "another authority",
            format!("--ca other.pem {shown}"),
            5,
            "certificate",
        ),
        ("those of the system", password.to_owned(), 5, "certificate"),
    ];
    for (name, options, status, part) in rows {
        let ended = run(&options);
        assert_eq!(ended.status, status, "{name}: {ended:?}");
        assert!(ended.err.contains(part), "{name}: {ended:?}");
    }
    let plain =
        format!("backup show 1 456 --url http://localhost:{port} --retry-for 0s {password}");
    let ended = Ended::from_output(home.bare(&plain).output().unwrap());
    assert_ne!(ended.status, 0, "no TLS: {ended:?}");
}
