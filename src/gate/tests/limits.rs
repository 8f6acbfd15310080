//! Rates, requests at once and lock-outs in the whole walk.

use std::net::IpAddr;
use std::num::NonZeroU32;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use crate::gate::authn::ClientStanding;
use crate::gate::authn::VERIFIED;
use crate::gate::tests::rig::Rig;
use crate::gate::tests::rig::header;
use crate::gate::tests::rig::status;
use crate::gate::*;

const GET: &str = "GET /vms/33333/backups/456\nv";

fn rate(per_second: u32, burst: u32) -> Option<Rate> {
    let number = |value| NonZeroU32::new(value).unwrap();
    Some(Rate {
        per_second: number(per_second),
        burst: number(burst),
    })
}

/// A request from an address behind a proxy that is trusted.
fn from(address: &str, user: &str, password: &str) -> String {
    let pair = STANDARD.encode(format!("{user}:{password}"));
    format!("{GET}\nAuthorization: Basic {pair}\nX-Forwarded-For: {address}")
}

fn rig() -> Rig {
    let mut rig = Rig::new();
    rig.peer = Some(IpAddr::from([10, 0, 0, 1]));
    rig.reload(|rig| {
        let proxy = TrustedProxies::network("10.0.0.1").unwrap();
        rig.trusted_proxies = TrustedProxies::new(vec![proxy]);
    });
    rig
}

fn verified() -> usize {
    VERIFIED.with(std::cell::Cell::get)
}

#[tokio::test]
async fn a_rate_limit_is_enforced_and_reported() {
    let mut rig = rig();
    rig.reload(|rig| rig.rates.principal = rate(1, 2));
    let get = format!("{GET}\nas: ann");
    let first = rig.send(&get).await;
    assert_eq!(status(&first), 200, "first");
    assert_eq!(
        header(&first, "ratelimit-policy"),
        "\"principal\";q=2;w=2",
        "policy"
    );
    assert_eq!(
        header(&first, "ratelimit"),
        "\"principal\";r=1;t=1",
        "one is left"
    );
    assert_eq!(status(&rig.send(&get).await), 200, "second");
    let third = rig.send(&get).await;
    assert_eq!(
        (status(&third), third.refusal),
        (429, Some("RateLimited")),
        "third"
    );
    assert_eq!(header(&third, "retry-after"), "1", "when to come again");
    assert_eq!(
        header(&third, "ratelimit"),
        "\"principal\";r=0;t=1",
        "nothing is left"
    );
    let other = rig.send(&format!("{GET}\nas: reader")).await;
    assert_eq!(status(&other), 200, "another caller");
    let malformed = get.replace("\nv", "\nX-Cloud-Specification-Version: x");
    assert_eq!(
        status(&rig.send(&malformed).await),
        400,
        "the version comes before"
    );
    let elsewhere = get.replace("33333", "nowhere");
    assert_eq!(
        status(&rig.send(&elsewhere).await),
        429,
        "permission comes after"
    );
    assert_eq!(
        status(&rig.send("GET /versions").await),
        200,
        "without credentials"
    );
    rig.clock.advance(Duration::from_secs(1));
    assert_eq!(status(&rig.send(&get).await), 200, "in time");
    rig.reload(|rig| rig.rates = RateLimits::default());
    let free = rig.send(&get).await;
    assert_eq!(status(&free), 200, "no limit");
    assert_eq!(header(&free, "ratelimit"), "", "no limit, no header");
}

#[tokio::test]
async fn a_rate_by_address_goes_by_the_client_behind_the_proxy() {
    let mut rig = rig();
    rig.reload(|rig| rig.rates.address = rate(1, 1));
    let rows = [
        ("first", from("198.51.100.1", "ann", "pw"), 200),
        ("another user", from("198.51.100.1", "reader", "pw"), 429),
        ("another address", from("198.51.100.2", "ann", "pw"), 200),
        ("one /64", from("2001:db8::1", "ann", "pw"), 200),
        ("the same /64", from("2001:db8::2", "ann", "pw"), 429),
        ("loopback", from("127.0.0.1", "ann", "pw"), 200),
        ("loopback again", from("127.0.0.1", "ann", "pw"), 200),
    ];
    for (name, request, expected) in rows {
        assert_eq!(status(&rig.send(&request).await), expected, "{name}");
    }
}

#[tokio::test]
async fn concurrent_requests_are_bounded_and_waiting_ones_take_no_slot() {
    let mut rig = rig();
    rig.reload(|rig| rig.rates.principal_concurrent = 1);
    rig.operations.state().waits_for_changes = true;
    let request = "DELETE /vms/33333/backups/456\nas: ann\nv";
    let uri = header(&rig.send(request).await, "location").to_owned();
    let poll = format!("GET {uri}\nas: ann\nPrefer: wait=10");
    let waits = rig.send(&poll);
    tokio::pin!(waits);
    let early = tokio::time::timeout(Duration::from_millis(50), &mut waits).await;
    assert!(early.is_err(), "it waits");
    let get = format!("{GET}\nas: ann");
    assert_eq!(status(&rig.send(&get).await), 200, "beside one that waits");
    let place = rig.shared.limiter.hold_slot("ann");
    let found = rig.send(&get).await;
    assert_eq!(
        (status(&found), found.refusal),
        (429, Some("TooManyAtOnce")),
        "full"
    );
    assert_eq!(header(&found, "retry-after"), "1", "soon");
    drop(place);
    assert_eq!(status(&rig.send(&get).await), 200, "free again");
}

#[tokio::test]
async fn wrong_passwords_lock_out_where_they_come_from_and_nowhere_else() {
    let mut rig = rig();
    rig.reload(|rig| rig.lockout.attempts = 2);
    let (bad, good) = (["198.51.100.1", "203.0.113.5"], "198.51.100.9");
    for user in ["ann", "unknown_user"] {
        for _ in 0..3 {
            let found = rig.send(&from(bad[0], user, "wrong")).await;
            assert_eq!(status(&found), 401, "{user}: looked at");
        }
        let before = verified();
        for password in ["wrong", "pw"] {
            let found = rig.send(&from(bad[0], user, password)).await;
            let answer = (status(&found), found.refusal, header(&found, "retry-after"));
            let expected = (429, Some("TooManyAttempts"), "1");
            assert_eq!(answer, expected, "{user}: the same whether it exists");
        }
        assert_eq!(verified(), before, "{user}: no hash was spent");
    }
    assert_eq!(
        status(&rig.send(&from(good, "ann", "pw")).await),
        200,
        "elsewhere"
    );
    let found = rig.send(&from(bad[0], "ann", "pw")).await;
    assert_eq!(status(&found), 200, "and then, remembered, even there");
    for _ in 0..100 {
        rig.send(&from(bad[0], "ann", "guess")).await;
    }
    let found = rig.send(&from(bad[0], "ann", "pw")).await;
    assert_eq!(
        status(&found),
        429,
        "not after guesses at what is remembered"
    );
    assert_eq!(
        status(&rig.send(&from(good, "ann", "pw")).await),
        200,
        "still elsewhere"
    );
    rig.clock.advance(Duration::from_secs(1));
    assert_eq!(
        status(&rig.send(&from(bad[0], "ann", "pw")).await),
        200,
        "over"
    );
    for _ in 0..9 {
        rig.send(&from("127.0.0.1", "ann", "wrong")).await;
    }
    let found = rig.send(&from("127.0.0.1", "ann", "pw")).await;
    assert_eq!(
        status(&found),
        200,
        "loopback is everybody behind a proxy without a name"
    );
    assert_eq!(
        status(&rig.send(&from(bad[1], "ann", "pw")).await),
        200,
        "a new address"
    );
}

#[test]
fn proxies_and_loopback_addresses_are_shared() {
    let mut rig = rig();
    let rows = [
        ("the proxy", "10.0.0.1", true),
        ("the same, in IPv6", "::ffff:10.0.0.1", true),
        ("its neighbour", "10.0.0.2", false),
        ("a client", "203.0.113.1", false),
        ("loopback", "127.0.0.1", true),
        ("loopback in IPv6", "::1", true),
        ("an IPv6 client", "2001:db8::1", false),
    ];
    for (name, peer, expected) in rows {
        let shared = rig.gate.is_shared(peer.parse().unwrap());
        assert_eq!(shared, expected, "{name}");
    }
    rig.reload(|rig| rig.trusted_proxies = TrustedProxies::default());
    let former = rig.gate.is_shared(IpAddr::from([10, 0, 0, 1]));
    assert!(!former, "trusted no longer");
}

#[tokio::test]
async fn a_full_queue_of_password_checks_refuses_at_once_and_remembered_callers_pass() {
    let rig = rig();
    let remembered = from("198.51.100.1", "ann", "pw");
    assert_eq!(status(&rig.send(&remembered).await), 200, "verified");
    let before = verified();
    let queue = &rig.shared.password_queue;
    let mut others = Vec::new();
    for turn in 0..u64::MAX {
        let mut other = Box::pin(queue.acquire(turn, ClientStanding::Clean));
        match futures_util::poll!(other.as_mut()) {
            std::task::Poll::Ready(Err(_)) => break,
            std::task::Poll::Ready(Ok(place)) => others.push((Some(place), None)),
            std::task::Poll::Pending => others.push((None, Some(other))),
        }
    }
    for (name, request) in [
        ("right", from("198.51.100.2", "reader", "pw")),
        ("wrong", from("198.51.100.2", "reader", "guess")),
        ("unknown", from("198.51.100.2", "ghost", "guess")),
    ] {
        let refused = rig.send(&request).await;
        assert_eq!(
            (status(&refused), refused.refusal),
            (503, Some("LoginQueueFull")),
            "{name}"
        );
        assert_eq!(
            header(&refused, "retry-after"),
            "1",
            "{name}: when to come again"
        );
    }
    assert_eq!(status(&rig.send(&remembered).await), 200, "remembered");
    assert_eq!(verified(), before, "no password was checked");
    drop(others);
    let late = from("198.51.100.2", "reader", "pw");
    assert_eq!(status(&rig.send(&late).await), 200, "when it is over");
}
