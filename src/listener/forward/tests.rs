//! The choice of upstreams, their health and their peers, without sockets.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use pingora::upstreams::peer::H1UpgradePolicy;
use pingora::upstreams::peer::Peer;

use super::*;
use crate::gate::PoolId;
use crate::listener::forward::peer::ResolvedAddress;
use crate::listener::forward::peer::build_peer;
use crate::listener::forward::pool::Pool;
use crate::model::PassName;
use crate::model::Timestamp;
use crate::runtime::Clock;
use crate::runtime::ManualClock;
use crate::runtime::Tasks;
use crate::telemetry::Metrics;

fn config(balance: Balance) -> PoolConfig {
    let upstream = |port: u16| Upstream {
        address: UpstreamAddress::Host("192.0.2.1".to_owned(), port),
        tls: false,
        label: Arc::from(format!("192.0.2.1:{port}")),
    };
    let second = Duration::from_secs(1);
    let seconds = Duration::from_secs;
    PoolConfig {
        route: PassName::new("r").unwrap(),
        upstreams: vec![upstream(1), upstream(2), upstream(3)],
        balance,
        timeouts: Timeouts {
            connect: second,
            connect_total: seconds(2),
            read: seconds(3),
            write: seconds(4),
            idle: seconds(5),
            upgraded: seconds(6),
        },
        trust: None,
        identity: None,
        health_check: Some(HealthCheck {
            path: "/".to_owned(),
            interval: second,
            timeout: second,
            rise: 2,
            fall: 2,
        }),
        failures: 2,
        pause: seconds(10),
        resolve: second,
    }
}

fn pool(balance: Balance) -> (Arc<Pool>, Arc<ManualClock>) {
    let clock = Arc::new(ManualClock::new(Timestamp::default()));
    let its: Arc<dyn Clock> = Arc::<ManualClock>::clone(&clock);
    let metrics = Arc::new(Metrics::new().unwrap());
    let pool = Pool::new(PoolId(7), config(balance), its, metrics);
    (Arc::new(pool), clock)
}

/// The upstreams of the next requests, each over before the next begins.
fn picks(pool: &Arc<Pool>, count: usize) -> Vec<usize> {
    (0..count)
        .map(|_| pool.select(None).unwrap().index)
        .collect()
}

#[test]
fn round_robin_selects_in_turn_and_retries_go_elsewhere() {
    let (pool, _) = pool(Balance::RoundRobin);
    assert_eq!(picks(&pool, 5), [0, 1, 2, 0, 1], "round");
    for failed in 0..3 {
        let again = pool.select(Some(failed)).unwrap();
        assert_ne!(again.index, failed, "elsewhere");
    }
    assert_eq!(picks(&pool, 1), [2], "and take no turn");
}

#[test]
fn the_least_loaded_upstream_is_selected() {
    let (pool, _) = pool(Balance::LeastLoaded);
    let held: Vec<_> = (0..5).map(|_| pool.select(None).unwrap()).collect();
    let mut loads = [0; 3];
    for lease in &held {
        loads[lease.index] += 1;
    }
    loads.sort_unstable();
    assert_eq!(loads, [1, 2, 2], "spread");
    let free = held[0].index;
    let kept: Vec<_> = held
        .into_iter()
        .filter(|lease| lease.index != free)
        .collect();
    assert_eq!(picks(&pool, 4), [free; 4], "the free one, as long as it is");
    drop(kept);
}

#[test]
fn consecutive_failures_eject_an_upstream_for_a_while() {
    let (pool, clock) = pool(Balance::RoundRobin);
    let fail = |index: usize, succeeded: bool| pool.report(index, succeeded);
    fail(1, false);
    fail(1, true);
    fail(1, false);
    assert!(picks(&pool, 3).contains(&1), "not in a row");
    fail(1, false);
    assert!(!picks(&pool, 6).contains(&1), "left alone");
    clock.advance(Duration::from_secs(10));
    assert!(picks(&pool, 3).contains(&1), "tried again");
    fail(1, false);
    assert!(!picks(&pool, 6).contains(&1), "one more is enough then");
    for index in [0, 0, 2, 2] {
        pool.report(index, false);
    }
    assert!(
        pool.select(None).is_some(),
        "one that fails is better than none"
    );
}

#[test]
fn health_checks_need_several_results_in_a_row() {
    let (pool, _) = pool(Balance::RoundRobin);
    let bad = Err("no".to_owned());
    pool.record_health_check(0, &bad);
    assert!(picks(&pool, 3).contains(&0), "once is no proof");
    pool.record_health_check(0, &Ok(()));
    pool.record_health_check(0, &bad);
    assert!(
        picks(&pool, 3).contains(&0),
        "nor is it with a good one between"
    );
    pool.record_health_check(0, &bad);
    assert!(!picks(&pool, 6).contains(&0), "down");
    for index in [1, 2] {
        pool.record_health_check(index, &bad);
        pool.record_health_check(index, &bad);
    }
    assert!(
        pool.select(None).is_none(),
        "none is able, and none is asked"
    );
    pool.record_health_check(2, &Ok(()));
    assert!(
        pool.select(None).is_none(),
        "once is no proof of health either"
    );
    pool.record_health_check(2, &Ok(()));
    assert_eq!(picks(&pool, 3), [2; 3], "up");
}

#[tokio::test]
async fn reloads_keep_what_did_not_change() {
    let clock: Arc<dyn Clock> = Arc::new(ManualClock::new(Timestamp::default()));
    let metrics = Arc::new(Metrics::new().unwrap());
    let upstreams = Upstreams::new(clock, Arc::clone(&metrics), Tasks::default());
    let one = PoolConfig {
        health_check: None,
        ..config(Balance::RoundRobin)
    };
    let two = PoolConfig {
        route: PassName::new("two").unwrap(),
        ..one.clone()
    };
    let first = upstreams.activate(&[one, two.clone()]);
    let second = upstreams.activate(std::slice::from_ref(&two));
    assert_eq!(second, [first[1]], "the same upstreams");
    assert!(
        upstreams.pool(first[0]).is_some(),
        "requests under way find theirs"
    );
    let text = String::from_utf8(metrics.encode_text()).unwrap();
    assert!(
        !text.contains("passthrough=\"r\""),
        "metrics end at once: {text}"
    );
    let changed = PoolConfig { failures: 9, ..two };
    let third = upstreams.activate(&[changed]);
    assert_ne!(third, second, "others");
    assert!(upstreams.pool(first[0]).is_none(), "not for ever");
}

#[test]
fn every_limit_of_a_peer_is_set() {
    let mut config = config(Balance::RoundRobin);
    let address: SocketAddr = "192.0.2.1:1".parse().unwrap();
    let upstream = config.upstreams[0].clone();
    let make = |config: &PoolConfig, upstream: &Upstream, index: usize, upgrade: bool| {
        let address = ResolvedAddress::Inet(address);
        build_peer((PoolId(7), config), (index, upstream), &address, upgrade).unwrap()
    };
    let seconds = |count| Some(Duration::from_secs(count));
    let plain = make(&config, &upstream, 0, false);
    let options = &plain.options;
    assert_eq!(options.connection_timeout, seconds(1), "connect");
    assert_eq!(options.total_connection_timeout, seconds(2), "total");
    assert_eq!(options.read_timeout, seconds(3), "read");
    assert_eq!(options.write_timeout, seconds(4), "write");
    assert_eq!(options.idle_timeout, seconds(5), "idle");
    let policy = options.http_upstream_request_policy;
    assert_eq!(policy.h1_upgrade, H1UpgradePolicy::Deny, "no upgrades");
    let upgraded = make(&config, &upstream, 0, true);
    assert_eq!(upgraded.options.read_timeout, seconds(6), "silent");
    let policy = upgraded.options.http_upstream_request_policy;
    assert_eq!(
        policy.h1_upgrade,
        H1UpgradePolicy::WebSocketOnly,
        "upgrades"
    );
    let other = make(&config, &upstream, 1, false);
    let hashes = [&plain, &upgraded, &other].map(|peer| peer.reuse_hash());
    assert!(
        hashes[0] != hashes[1] && hashes[0] != hashes[2],
        "nothing is shared"
    );
    let tls = Upstream {
        tls: true,
        ..upstream
    };
    for trust in [None, Some(UpstreamTrust::Pin([1; 32]))] {
        config.trust = trust.clone();
        let peer = make(&config, &tls, 0, false);
        assert!(!peer.sni.is_empty(), "never without a name: {trust:?}");
        assert_eq!(
            peer.options
                .ca
                .as_ref()
                .map(|authorities| authorities.len()),
            Some(1),
            "{trust:?}"
        );
        assert_eq!(peer.options.verify_cert, trust.is_none(), "{trust:?}");
    }
}

/// What the metrics say of the first upstream: 1, 0, or nothing.
fn exported_health(metrics: &Metrics) -> Option<String> {
    let text = String::from_utf8(metrics.encode_text()).unwrap();
    let series =
        "snapgate_passthrough_upstream_healthy{passthrough=\"r\",upstream=\"192.0.2.1:1\"} ";
    let value = text.lines().find_map(|line| line.strip_prefix(series));
    value.map(str::to_owned)
}

#[test]
fn the_exported_health_is_the_last_one_and_ends_with_the_pool() {
    const ROUNDS: usize = 400;
    let clock: Arc<dyn Clock> = Arc::new(ManualClock::new(Timestamp::default()));
    for round in 0..ROUNDS {
        let metrics = Arc::new(Metrics::new().unwrap());
        let settings = PoolConfig {
            failures: 1,
            ..config(Balance::RoundRobin)
        };
        let pool = Pool::new(
            PoolId(7),
            settings,
            Arc::clone(&clock),
            Arc::clone(&metrics),
        );
        let start = std::sync::Barrier::new(3);
        let retires = round % 2 == 1;
        std::thread::scope(|scope| {
            for succeeds in [true, false] {
                let (pool, start) = (&pool, &start);
                scope.spawn(move || {
                    start.wait();
                    for turn in 0..8 {
                        pool.report(0, succeeds == (turn % 2 == 0));
                    }
                });
            }
            start.wait();
            if retires {
                pool.retire();
            }
        });
        let exported = exported_health(&metrics);
        if retires {
            assert_eq!(exported, None, "round {round}: retired");
        } else if exported.is_some() {
            pool.publish_health();
            assert_eq!(exported, exported_health(&metrics), "round {round}");
        }
    }
}
