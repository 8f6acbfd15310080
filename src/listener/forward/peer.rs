//! Builds the Pingora peer of an upstream: every limit set, no name resolution, no certificate trusted by default.

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

/// The certificate authorities Pingora trusts for upstreams unless a peer brings its own: none. Pingora panics if the file it
/// is given (or, without one, the system store) cannot be read, and nothing here needs the system store.
pub(in crate::listener) const NO_AUTHORITIES: &str = "/dev/null";

/// The address of an upstream after name resolution.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum ResolvedAddress {
    Inet(SocketAddr),
    Socket(Arc<Path>),
}

/// Pingora never shares connections with different keys: not between routes, upstreams or reloads, nor with upgrades.
fn group_key(pool: PoolId, index: usize, upgrade: bool) -> u64 {
    let index = u64::try_from(index).unwrap_or(u64::MAX);
    pool.0
        .wrapping_mul(1 << 16)
        .wrapping_add(index.wrapping_mul(2))
        .wrapping_add(u64::from(upgrade))
}

/// The peer of an upstream.
pub(super) fn build_peer(
    (pool, config): (PoolId, &PoolConfig),
    (index, upstream): (usize, &Upstream),
    address: &ResolvedAddress,
    upgrade: bool,
) -> Result<HttpPeer, Box<Error>> {
    // Never empty with TLS: without a name Pingora verifies nothing.
    let name = match (&upstream.address, upstream.tls) {
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
        set_tls(&mut peer, config)?;
    }
    Ok(peer)
}

/// Sets whom a connection trusts, and the client certificate of the gateway.
fn set_tls(peer: &mut HttpPeer, config: &PoolConfig) -> Result<(), Box<Error>> {
    let unusable = |error| Error::because(ErrorType::InvalidCert, "no trusted authority", error);
    let authorities = match &config.trust {
        Some(UpstreamTrust::Authorities(all)) => all.clone(),
        Some(UpstreamTrust::Pin(_)) => {
            // The handshake signature is verified anyway, and `check_pin` compares the certificate afterwards.
            peer.options.verify_cert = false;
            peer.options.verify_hostname = false;
            Authorities::trusting_none().map_err(unusable)?
        }
        None => Authorities::trusting_none().map_err(unusable)?,
    };
    peer.options.ca = Some(authorities.0);
    peer.client_cert_key = config
        .identity
        .as_ref()
        .map(|identity| Arc::clone(&identity.pair));
    Ok(())
}

/// Checks that the connected upstream has the pinned certificate. Call before anything is sent.
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
        "the certificate does not match `server_fingerprint`",
    )
    .into_up())
}
