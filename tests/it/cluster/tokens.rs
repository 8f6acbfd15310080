//! API tokens of a cluster: made and revoked once, accepted and refused by every gateway, whatever the files beside them say.

use std::fs;
use std::path::Path;
use std::time::Duration;
use std::time::Instant;

use crate::client::Client;
use crate::cluster::etcd_bed::EtcdBed;
use crate::cluster::gateways::Gateways;
use crate::cluster::gateways::Setup;
use crate::cluster::require_etcd;
use crate::harness::command_output;
use crate::harness::eventually;
use crate::harness::settings_for_alice;
use crate::kill::simulated_vmm::Behaviour;
use crate::kill::simulated_vmm::FakeVmm;

const BACKUP: &str = "/vms/1/backups/456";
/// Nothing answers there: who is let through gets a 502.
const ROUTE: &str = "[[passthrough]]\nname = \"nowhere\"\npath = \"/nowhere\"\nupstreams = [\"http://127.0.0.1:9\"]\nallow = [\"user:alice\"]\n";
/// What is promised.
const WITHIN: Duration = Duration::from_secs(1);

/// `snapgate token`: status, output and messages.
fn token(verb: &str, config: &Path, more: &[&str]) -> (i32, String, String) {
    command_output(&[&["token", verb], more].concat(), config)
}

fn created(config: &Path, name: &str) -> String {
    let (status, token, messages) = token("create", config, &["--name", name, "--owner", "alice"]);
    assert_eq!(status, 0, "{messages}");
    token.trim().to_owned()
}

fn status(gateways: &Gateways, number: usize, secret: &str, path: &str) -> u16 {
    let client = Client::new(gateways.get(number).api, "token", secret);
    client.get(path).status
}

/// Waits until a gateway judges the token so on a route that it answers without the active one. Returns the time that it took.
fn judged(gateways: &Gateways, number: usize, secret: &str, expected: u16) -> Duration {
    let begun = Instant::now();
    eventually("the token is judged so", || {
        status(gateways, number, secret, "/nowhere/x") == expected
    });
    begun.elapsed()
}

#[apply(test)]
fn tokens_and_their_revocation_reach_every_gateway() {
    require_etcd();
    let etcd = EtcdBed::start(1);
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("vmm");
    let _vmm = FakeVmm::start(&Behaviour {
        socket: socket.clone(),
        once: true,
        tasks: true,
        delay: Duration::from_millis(30),
    });
    let setup = Setup {
        recovery: "replay-safe",
        settle: "0s",
        lease: 3,
        simulator: &socket,
        peers: true,
        clocks: false,
    };
    // The tokens of the gateway that was alone before, and what it took along into the cluster.
    let alone = folder.path().join("alone.toml");
    let backend = "[[backend]]\nname = \"lab\"\nkind = \"sim\"\nvms = [\"*\"]\n[authentication]\ntokens = \"old.tokens\"\n";
    fs::write(&alone, settings_for_alice(backend)).unwrap();
    let (first, second) = (created(&alone, "first"), created(&alone, "second"));
    let tokens = folder.path().join("old.tokens");
    let more = |name: &str| {
        format!(
            "[authentication]\ntokens = \"{}.tokens\"\n{ROUTE}",
            folder.path().join(name).display()
        )
    };
    for name in ["a", "b"] {
        fs::copy(&tokens, folder.path().join(format!("{name}.tokens"))).unwrap();
    }
    let mut gateways = Gateways::start_with(2, &|_| etcd.toml(), setup, &more);
    let active = gateways.active();
    let standby = 1 - active;
    let config = |number: usize| gateways.file(["a.toml", "b.toml"][number]);
    let (active_config, standby_config) = (config(active), config(standby));
    for number in [active, standby] {
        judged(&gateways, number, &first, 502);
        assert_eq!(status(&gateways, number, &second, BACKUP), 200, "imported");
    }

    // Made beside the gateway on standby: valid at the active one when the command ends, and soon at all.
    let (code, made, messages) = token(
        "create",
        &standby_config,
        &["--name", "third", "--owner", "alice"],
    );
    assert_eq!(code, 0, "{messages}");
    assert!(
        messages.contains("the active gateway accepts it now"),
        "{messages}"
    );
    let third = made.trim();
    for number in [active, standby] {
        assert_eq!(
            status(&gateways, number, third, BACKUP),
            200,
            "valid at once"
        );
        let took = judged(&gateways, number, third, 502);
        assert!(took < WITHIN, "{took:?}");
    }
    let (code, _, messages) = token(
        "create",
        &active_config,
        &["--name", "third", "--owner", "alice"],
    );
    assert!(
        code == 1 && messages.contains("token third exists"),
        "{messages}"
    );

    // Revoked beside the active one.
    let (code, _, messages) = token("revoke", &active_config, &["first"]);
    assert_eq!(code, 0, "{messages}");
    assert!(
        messages.contains("the active gateway refuses it now"),
        "{messages}"
    );
    for number in [active, standby] {
        assert_eq!(
            status(&gateways, number, &first, BACKUP),
            401,
            "refused at once"
        );
        let took = judged(&gateways, number, &first, 401);
        assert!(took < WITHIN, "{took:?}");
    }
    let (code, _, messages) = token("revoke", &active_config, &["first"]);
    assert!(
        code == 1 && messages.contains("unknown token \"first\""),
        "{messages}"
    );
    let (_, list, _) = token("list", &standby_config, &[]);
    let names: Vec<_> = list
        .lines()
        .filter_map(|line| line.split(' ').next())
        .collect();
    assert_eq!(names, ["second", "third"], "{list}");

    let explain = |name| {
        let question = ["explain", "--token", name, "GET", BACKUP];
        command_output(&question, &standby_config)
    };
    let (code, answer, messages) = explain("third");
    assert_eq!(code, 0, "{answer}{messages}");
    let (code, _, messages) = explain("first");
    assert!(
        code != 0 && messages.contains("unknown token \"first\""),
        "{messages}"
    );

    // The next active gateway has the revoked token in its file still, and so has the one that starts again.
    gateways.running[active].take().unwrap().kill();
    assert_eq!(gateways.active(), standby, "another one took over");
    gateways.restart(active);
    eventually("the other one is ready again", || {
        Client::bare(gateways.get(active).admin)
            .get("/readyz")
            .status
            == 200
    });
    for number in [active, standby] {
        judged(&gateways, number, third, 502);
        for (secret, expected) in [(first.as_str(), 401), (&second, 200), (third, 200)] {
            assert_eq!(
                status(&gateways, number, secret, BACKUP),
                expected,
                "{number}"
            );
        }
        assert_eq!(
            status(&gateways, number, &first, "/nowhere/x"),
            401,
            "{number}"
        );
    }

    // A configuration that is read again brings the tokens of its file not back.
    let text = fs::read_to_string(&active_config).unwrap();
    fs::write(&active_config, format!("{text}# changed\n")).unwrap();
    let reloads = "snapgate_config_reloads_total{result=\"ok\"} 1";
    eventually("it was read again", || {
        let metrics = Client::bare(gateways.get(active).admin).get("/metrics");
        String::from_utf8(metrics.body).unwrap().contains(reloads)
    });
    assert_eq!(
        status(&gateways, active, &first, "/nowhere/x"),
        401,
        "after a reload"
    );

    // Without etcd nothing is changed, and the command says so.
    etcd.signal(0, "KILL");
    let (code, _, messages) = token(
        "create",
        &active_config,
        &["--name", "fourth", "--owner", "alice"],
    );
    assert!(
        code == 1 && messages.contains("nothing was changed"),
        "{messages}"
    );
    etcd.restart(0);
    let (_, list, _) = token("list", &active_config, &[]);
    assert!(!list.contains("fourth"), "{list}");
}
