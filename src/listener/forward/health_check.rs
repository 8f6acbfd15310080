//! Background maintenance of upstreams: name resolution, health checks and closing of idle connections.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::OnceLock;
use std::sync::Weak;
use std::time::Duration;

use http::Method;
use http::header;
use pingora::connectors::ConnectorOptions;
use pingora::connectors::http::v1::Connector;
use pingora::http::RequestHeader;

use crate::listener::forward::config::HealthCheck;
use crate::listener::forward::config::UpstreamAddress;
use crate::listener::forward::peer::NO_AUTHORITIES;
use crate::listener::forward::peer::ResolvedAddress;
use crate::listener::forward::peer::build_peer;
use crate::listener::forward::peer::check_pin;
use crate::listener::forward::pool::Pool;
use crate::model::limits;
use crate::runtime::Tasks;

/// Connects for health checks. The connector is created when the first check needs it.
#[derive(Clone, Default)]
pub(super) struct HealthChecker(Arc<OnceLock<Connector>>);

impl fmt::Debug for HealthChecker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("HealthChecker")
    }
}

/// Starts maintenance of the upstreams of a pool, until it is dropped or retired.
pub(super) fn start_maintenance(pool: &Arc<Pool>, checker: &HealthChecker, tasks: &Tasks) {
    for (index, member) in pool.members.iter().enumerate() {
        if let UpstreamAddress::Host(host, port) = &member.upstream.address
            && host.parse::<IpAddr>().is_err()
        {
            let work = resolve_host(Arc::downgrade(pool), index, host.clone(), *port);
            drop(tasks.spawn(work));
        }
        if let Some(check) = &pool.config.health_check {
            let checker = checker.clone();
            let work = check_health(Arc::downgrade(pool), index, check.clone(), checker);
            drop(tasks.spawn(work));
        }
    }
    drop(tasks.spawn(close_idle_connections(Arc::downgrade(pool))));
}

/// Periodically closes connections that were idle for too long.
async fn close_idle_connections(pool: Weak<Pool>) {
    while let Some(active) = upgrade_active(&pool) {
        let now = active.clock.instant();
        for member in &active.members {
            member.idle.close_expired(now);
        }
        let pause = active.config.timeouts.idle.max(limits::UPSTREAM_SWEEP_MIN);
        drop(active);
        tokio::time::sleep(pause).await;
    }
}

/// Periodically resolves a host name. The previous addresses stay in use while resolution fails.
async fn resolve_host(pool: Weak<Pool>, index: usize, host: String, port: u16) {
    let mut failed = false;
    loop {
        let Some(pause) = upgrade_active(&pool).map(|active| active.config.resolve) else {
            return;
        };
        let found = tokio::time::timeout(
            limits::RESOLVE_TIMEOUT,
            tokio::net::lookup_host((host.as_str(), port)),
        );
        let found: Vec<ResolvedAddress> = match found.await {
            Ok(Ok(found)) => found
                .take(limits::UPSTREAM_ADDRESSES_MAX)
                .map(ResolvedAddress::Inet)
                .collect(),
            Ok(Err(_)) | Err(_) => Vec::new(),
        };
        let Some(pool) = upgrade_active(&pool) else {
            return;
        };
        let none = found.is_empty();
        if none != failed {
            let route = &pool.config.route;
            if none {
                tracing::warn!(%route, host, "upstream name resolution failed");
            } else {
                tracing::info!(%route, host, "upstream name resolution recovered");
            }
        }
        failed = none;
        if let (false, Some(member)) = (none, pool.members.get(index)) {
            member.set_addresses(found);
        }
        drop(pool);
        let pause = if failed {
            pause.min(limits::RESOLVE_RETRY)
        } else {
            pause
        };
        tokio::time::sleep(pause).await;
    }
}

fn upgrade_active(pool: &Weak<Pool>) -> Option<Arc<Pool>> {
    pool.upgrade().filter(|pool| !pool.is_retired())
}

/// Periodically checks the health of an upstream.
async fn check_health(pool: Weak<Pool>, index: usize, check: HealthCheck, checker: HealthChecker) {
    while let Some(active) = upgrade_active(&pool) {
        let connector = checker.0.get_or_init(connector);
        let once = check_once(&active, index, &check, connector);
        let outcome = tokio::time::timeout(check.timeout, once)
            .await
            .unwrap_or_else(|_| Err("timeout".to_owned()));
        active.record_health_check(index, &outcome);
        drop(active);
        tokio::time::sleep(check.interval).await;
    }
}

fn connector() -> Connector {
    let mut options = ConnectorOptions::new(1);
    options.ca_file = Some(NO_AUTHORITIES.to_owned());
    Connector::new(Some(options))
}

/// One GET on a new connection; the body of the response is not read.
async fn check_once(
    pool: &Pool,
    index: usize,
    check: &HealthCheck,
    connector: &Connector,
) -> Result<(), String> {
    let member = pool.members.get(index).ok_or("no such upstream")?;
    let addresses = member.addresses();
    let address = addresses.first().ok_or("name resolution failed")?;
    let as_text = |error: Box<pingora::Error>| error.to_string();
    let config = &pool.config;
    let mut peer = build_peer((pool.id, config), (index, &member.upstream), address, false)
        .map_err(as_text)?;
    peer.options.read_timeout = Some(check.timeout.max(Duration::from_millis(1)));
    let (mut session, _) = connector.get_http_session(&peer).await.map_err(as_text)?;
    let digest = session.digest().ssl_digest.as_deref();
    check_pin(config, member.upstream.tls, digest).map_err(as_text)?;
    let mut request =
        RequestHeader::build(Method::GET, check.path.as_bytes(), Some(4)).map_err(as_text)?;
    let fields = [
        (header::HOST, &*member.upstream.label),
        (header::USER_AGENT, "snapgate"),
        (header::ACCEPT, "*/*"),
        (header::CONNECTION, "close"),
    ];
    for (name, value) in fields {
        request.insert_header(name, value).map_err(as_text)?;
    }
    session
        .write_request_header(Box::new(request))
        .await
        .map_err(as_text)?;
    session.read_response().await.map_err(as_text)?;
    let status = session.get_status();
    session.shutdown().await;
    match status {
        Some(status) if status.is_success() || status.is_redirection() => Ok(()),
        Some(status) => Err(format!("status {}", status.as_u16())),
        None => Err("no status".to_owned()),
    }
}
