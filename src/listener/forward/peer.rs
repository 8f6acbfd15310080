//! How an upstream is connected to: every limit set, nothing looked up, nobody trusted by default.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

use pingora::Error;
use pingora::ErrorType;
use pingora::protocols::tls::SslDigest;
use pingora::upstreams::peer::HttpPeer;
use pingora::upstreams::peer::HttpUpstreamRequestPolicy;

use crate::gate::PoolId;
use crate::listener::forward::config::Authorities;
use crate::listener::forward::config::PoolConfig;
use crate::listener::forward::config::Upstream;
use crate::listener::forward::config::UpstreamAddress;
use crate::listener::forward::config::UpstreamTrust;
use crate::listener::forward::upgrade::UpgradeConnector;

/// Where exactly one upstream is, after names were looked up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum ResolvedAddress {
    Inet(SocketAddr),
    Socket(Arc<Path>),
}

/// Connections with different keys are never shared: not between routes, upstreams, reloads, nor with upgrades.
fn group_key(pool: PoolId, index: usize, upgrade: bool) -> u64 {
    let index = u64::try_from(index).unwrap_or(u64::MAX);
    pool.0
        .wrapping_mul(1 << 16)
        .wrapping_add(index.wrapping_mul(2))
        .wrapping_add(u64::from(upgrade))
}

/// The peer of an upstream.
pub(super) fn peer(
    (pool, config): (PoolId, &PoolConfig),
    (index, upstream): (usize, &Upstream),
    address: &ResolvedAddress,
    upgrade: bool,
) -> Result<HttpPeer, Box<Error>> {
    // Never empty where there is TLS: without a name to check Pingora checks nothing.
    let name = match (&upstream.place, upstream.tls) {
        (UpstreamAddress::Host(host, _), true) => host.clone(),
        (UpstreamAddress::Host(..) | UpstreamAddress::Socket(_), false) => String::new(),
        (UpstreamAddress::Socket(_), true) => "localhost".to_owned(),
    };
    let mut peer = match address {
        ResolvedAddress::Inet(address) => HttpPeer::new(*address, upstream.tls, name),
        ResolvedAddress::Socket(path) => {
            HttpPeer::new_uds(&path.to_string_lossy(), upstream.tls, name)?
        }
    };
    peer.group_key = group_key(pool, index, upgrade);
    let timeouts = &config.timeouts;
    let options = &mut peer.options;
    options.connection_timeout = Some(timeouts.connect);
    options.total_connection_timeout = Some(timeouts.connect_total);
    options.read_timeout = Some(if upgrade {
        timeouts.upgraded
    } else {
        timeouts.read
    });
    options.write_timeout = Some(timeouts.write);
    options.idle_timeout = Some(timeouts.idle);
    options.http_upstream_request_policy = if upgrade {
        HttpUpstreamRequestPolicy::standard()
    } else {
        HttpUpstreamRequestPolicy::deny_upgrades()
    };
    if upgrade {
        options.custom_l4 = Some(Arc::new(UpgradeConnector {
            connect: timeouts.connect,
        }));
    }
    if upstream.tls {
        let unusable = |error| Error::because(ErrorType::InvalidCert, "no authority", error);
        let authorities = match &config.trust {
            Some(UpstreamTrust::Authorities(all)) => all.clone(),
            Some(UpstreamTrust::Pin(_)) => {
                // The signature of the handshake is checked all the same, and the pin once it is over.
                options.verify_cert = false;
                options.verify_hostname = false;
                Authorities::nobody().map_err(unusable)?
            }
            None => Authorities::nobody().map_err(unusable)?,
        };
        options.ca = Some(authorities.0);
        peer.client_cert_key = config
            .identity
            .as_ref()
            .map(|identity| Arc::clone(&identity.pair));
    }
    Ok(peer)
}

/// Whether the upstream that was connected to has the certificate it must have. To be asked before anything is sent.
pub(super) fn check_pin(
    config: &PoolConfig,
    tls: bool,
    digest: Option<&SslDigest>,
) -> Result<(), Box<Error>> {
    let (Some(UpstreamTrust::Pin(pin)), true) = (&config.trust, tls) else {
        return Ok(());
    };
    let found = digest.map(|digest| digest.cert_digest.as_slice());
    if found == Some(pin.as_slice()) {
        return Ok(());
    }
    Err(Error::explain(
        ErrorType::InvalidCert,
        "the certificate is not the pinned one",
    )
    .into_up())
}
