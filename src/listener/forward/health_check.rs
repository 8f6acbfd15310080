//! What goes on beside the requests: names are looked up again and again, and health is asked after.

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
use crate::listener::forward::peer::ResolvedAddress;
use crate::listener::forward::peer::check_pin;
use crate::listener::forward::peer::peer;
use crate::listener::forward::pool::Pool;
use crate::listener::server::NO_AUTHORITIES;
use crate::model::limits;
use crate::runtime::Tasks;

/// Makes the connections of probes; made when the first one is needed.
#[derive(Clone, Default)]
pub(super) struct HealthChecker(Arc<OnceLock<Connector>>);

impl fmt::Debug for HealthChecker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Prober")
    }
}

/// Begins to look after the upstreams of a pool, until it is dropped or retired.
pub(super) fn begin(pool: &Arc<Pool>, checker: &HealthChecker, tasks: &Tasks) {
    for (index, member) in pool.members.iter().enumerate() {
        if let UpstreamAddress::Host(host, port) = &member.upstream.place
            && host.parse::<IpAddr>().is_err()
        {
            let work = look_up(Arc::downgrade(pool), index, host.clone(), *port);
            drop(tasks.spawn(work));
        }
        if let Some(probe) = &pool.config.probe {
            let checker = checker.clone();
            let work = ask(Arc::downgrade(pool), index, probe.clone(), checker);
            drop(tasks.spawn(work));
        }
    }
    drop(tasks.spawn(sweep(Arc::downgrade(pool))));
}

/// Closes connections that waited too long, for ever.
async fn sweep(pool: Weak<Pool>) {
    while let Some(it) = alive(&pool) {
        let now = it.clock.instant();
        for member in &it.members {
            member.idle.sweep(now);
        }
        let pause = it.config.timeouts.idle.max(limits::UPSTREAM_SWEEP_MIN);
        drop(it);
        tokio::time::sleep(pause).await;
    }
}

/// Looks a name up for ever. What was found before stays in use while nothing is found.
async fn look_up(pool: Weak<Pool>, index: usize, host: String, port: u16) {
    let mut failed = false;
    loop {
        let Some(pause) = alive(&pool).map(|alive| alive.config.resolve) else {
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
        let Some(pool) = alive(&pool) else { return };
        let none = found.is_empty();
        if none != failed {
            let route = &pool.config.route;
            if none {
                tracing::warn!(%route, host, "name of an upstream cannot be looked up");
            } else {
                tracing::info!(%route, host, "name of an upstream is found again");
            }
        }
        failed = none;
        if let (false, Some(member)) = (none, pool.members.get(index)) {
            member.found_at(found);
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

fn alive(pool: &Weak<Pool>) -> Option<Arc<Pool>> {
    pool.upgrade().filter(|pool| !pool.is_retired())
}

/// Asks an upstream for its health for ever.
async fn ask(pool: Weak<Pool>, index: usize, probe: HealthCheck, checker: HealthChecker) {
    while let Some(it) = alive(&pool) {
        let connector = checker.0.get_or_init(connector);
        let once = ask_once(&it, index, &probe, connector);
        let outcome = tokio::time::timeout(probe.timeout, once)
            .await
            .unwrap_or_else(|_| Err("no answer in time".to_owned()));
        it.probed(index, &outcome);
        drop(it);
        tokio::time::sleep(probe.interval).await;
    }
}

fn connector() -> Connector {
    let mut options = ConnectorOptions::new(1);
    options.ca_file = Some(NO_AUTHORITIES.to_owned());
    Connector::new(Some(options))
}

/// One GET on a connection of its own, by which no body is read.
async fn ask_once(
    pool: &Pool,
    index: usize,
    probe: &HealthCheck,
    connector: &Connector,
) -> Result<(), String> {
    let member = pool.members.get(index).ok_or("no such upstream")?;
    let addresses = member.addresses();
    let address = addresses.first().ok_or("its name cannot be looked up")?;
    let told = |error: Box<pingora::Error>| error.to_string();
    let config = &pool.config;
    let mut peer =
        peer((pool.id, config), (index, &member.upstream), address, false).map_err(told)?;
    peer.options.read_timeout = Some(probe.timeout.max(Duration::from_millis(1)));
    let (mut session, _) = connector.get_http_session(&peer).await.map_err(told)?;
    let digest = session.digest().ssl_digest.as_deref();
    check_pin(config, member.upstream.tls, digest).map_err(told)?;
    let mut request =
        RequestHeader::build(Method::GET, probe.path.as_bytes(), Some(4)).map_err(told)?;
    let fields = [
        (header::HOST, &*member.upstream.label),
        (header::USER_AGENT, "snapgate"),
        (header::ACCEPT, "*/*"),
        (header::CONNECTION, "close"),
    ];
    for (name, value) in fields {
        request.insert_header(name, value).map_err(told)?;
    }
    session
        .write_request_header(Box::new(request))
        .await
        .map_err(told)?;
    session.read_response().await.map_err(told)?;
    let status = session.get_status();
    session.shutdown().await;
    match status {
        Some(it) if it.is_success() || it.is_redirection() => Ok(()),
        Some(it) => Err(format!("status {}", it.as_u16())),
        None => Err("no status".to_owned()),
    }
}
