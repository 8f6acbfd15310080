//! `[cluster]`, and which backends can be used from every gateway of a cluster.

use std::net::SocketAddr;
use std::sync::Arc;

use crate::adapters::registry::BackendConfig;
use crate::cluster::Config;
use crate::config::tables::backend as backend_key;
use crate::config::tables::cluster as key;
use crate::listener::Certificate;
use crate::listener::ClientCertificates;
use crate::listener::Tls;
use crate::listener::TlsError;
use crate::model::GatewayName;
use crate::model::Secret;
use crate::operations;
use crate::operations::StoreLocation;
use crate::schema::LocatedText;
use crate::schema::Reader;
use crate::schema::SecretSource;
use crate::schema::Section;

/// Whether the gateway is meant to be a member of a cluster, rightly configured or not.
pub(super) fn is_wanted(section: &Section<'_>) -> bool {
    section.has(key::NAME.name)
}

/// Where gateways hand each other requests, with mutual TLS. A change needs a restart.
#[derive(Clone, Debug)]
pub struct PeerChannel {
    /// The address of the port.
    pub listen: SocketAddr,
    /// Host and port at which other gateways reach it.
    pub advertise: String,
    /// The certificates of the authority of the cluster, as PEM.
    pub authorities: Arc<str>,
    /// The certificate of this gateway, as PEM.
    pub certificates: Arc<str>,
    /// Its key, as PEM.
    pub key: Secret,
    /// The same for the port.
    pub tls: Tls,
}

/// Reads the table; `None` for a single gateway, or after an error was reported.
pub(super) fn read(
    reader: &Reader<'_>,
    section: &Section<'_>,
    source: &SecretSource<'_>,
    operations: Option<&operations::Config>,
) -> Option<(Config, Option<PeerChannel>)> {
    let Some(found) = section.read_text(&key::NAME) else {
        for name in PEER_KEYS.into_iter().chain([key::ADVERTISE.name]) {
            if section.has(name) {
                section.report_key(name, "has no effect without cluster.name", "remove it");
            }
        }
        return None;
    };
    let name = GatewayName::new(&found.text)
        .map_err(|error| section.report_text(&found, error.to_string(), ""))
        .ok();
    let peers = read_peers(reader, section, source);
    match &operations?.store {
        StoreLocation::Etcd(etcd) => {
            let peers = peers.ok()?;
            let config = Config {
                name: name?,
                advertise: peers.as_ref().map(|peers| peers.advertise.clone()),
                lease: etcd.lease,
            };
            Some((config, peers))
        }
        StoreLocation::File(_) => {
            let what = "needs operations.store = \"etcd\": gateways cannot share a file";
            let hint = "write store = \"etcd\" in [operations] and the endpoints in [etcd], or remove the name";
            section.report_text(&found, what, hint);
            None
        }
    }
}

/// Keys that are written all or none.
const PEER_KEYS: [&str; 4] = [
    key::LISTEN.name,
    key::CA.name,
    key::CERT.name,
    key::KEY.name,
];

/// Something is wrong, and was reported.
struct Reported;

fn read_peers(
    reader: &Reader<'_>,
    section: &Section<'_>,
    source: &SecretSource<'_>,
) -> Result<Option<PeerChannel>, Reported> {
    let listen = section.read_text(&key::LISTEN);
    let advertise = section.read_text(&key::ADVERTISE);
    let files = [&key::CA, &key::CERT, &key::KEY].map(|name| section.read_text(name));
    if !PEER_KEYS.into_iter().any(|name| section.has(name)) {
        if let Some(advertise) = advertise {
            reader.report_text(&advertise, "has no effect without listen", "remove it");
            return Err(Reported);
        }
        return Ok(None);
    }
    for name in PEER_KEYS.into_iter().filter(|name| !section.has(name)) {
        section.report_missing(name, "listen, ca, cert and key are written all or none");
    }
    let (Some(listen), [Some(ca), Some(cert), Some(private_key)]) = (listen, files) else {
        return Err(Reported);
    };
    let texts = [&ca, &cert, &private_key].map(|file| {
        let report = |what: String| reader.report_text(file, what, "name a file in PEM form");
        source.read(&section.resolve_path(file)).map_err(report)
    });
    source.mark_secret_file(&section.resolve_path(&private_key), "a private key");
    let address: Option<SocketAddr> = listen.text.parse().ok();
    if address.is_none() {
        reader.report_text(
            &listen,
            "is not an IP address and a port",
            "write \"10.0.0.1:8443\"",
        );
    }
    let advertise = read_advertise(reader, advertise.as_ref(), &listen, address);
    let (Some(address), Some(advertise), [Ok(ca_text), Ok(cert_text), Ok(key_text)]) =
        (address, advertise, texts)
    else {
        return Err(Reported);
    };
    let secret = Secret::new(key_text);
    let tls = make_tls(&cert_text, &secret, &ca_text).map_err(|error| {
        let at = match error {
            TlsError::BadAuthority(_) => &ca,
            TlsError::NoKey | TlsError::KeyOfAnotherCertificate => &private_key,
            TlsError::NoCertificate
            | TlsError::BadCertificate(_)
            | TlsError::BadName(_)
            | TlsError::NoName(_)
            | TlsError::NameTwice(..) => &cert,
        };
        reader.report_text(at, error.to_string(), "name a file in PEM form");
        Reported
    })?;
    Ok(Some(PeerChannel {
        listen: address,
        advertise,
        authorities: ca_text.into(),
        certificates: cert_text.into(),
        key: secret,
        tls,
    }))
}

fn make_tls(certificates: &str, private_key: &Secret, authorities: &str) -> Result<Tls, TlsError> {
    let mut certificate = Certificate::new(certificates, private_key, &[])?;
    if certificate.names().is_empty() {
        // It is for an address alone, whose clients send no name.
        let names = ["localhost".to_owned()];
        certificate = Certificate::new(certificates, private_key, &names)?;
    }
    let clients = ClientCertificates::Required(authorities.to_owned());
    Tls::new(vec![certificate], clients)
}

/// Host and port at which other gateways reach the port.
fn read_advertise(
    reader: &Reader<'_>,
    advertise: Option<&LocatedText>,
    listen: &LocatedText,
    address: Option<SocketAddr>,
) -> Option<String> {
    const FORM: &str = "write \"gateway-1.example.com:8443\"";
    let Some(found) = advertise else {
        let is_reachable = address.is_none_or(|address| {
            !address.ip().to_canonical().is_unspecified() && address.port() != 0
        });
        if !is_reachable {
            reader.report_text(
                listen,
                "cannot be reached by others under this address",
                "add advertise = \"host:port\"",
            );
            return None;
        }
        return address.map(|address| address.to_string());
    };
    let authority: Option<http::uri::Authority> = found.text.parse().ok();
    let is_good = authority.is_some_and(|authority| {
        authority.port_u16().is_some_and(|port| port != 0) && !authority.as_str().contains('@')
    });
    if !is_good {
        reader.report_text(found, "is not a host and a port", FORM);
        return None;
    }
    Some(found.text.clone())
}

/// Reads `backend.only_on`.
pub(super) fn read_only_on(section: &Section<'_>) -> Option<GatewayName> {
    let found = section.read_text(&backend_key::ONLY_ON)?;
    GatewayName::new(&found.text)
        .map_err(|error| section.report_text(&found, error.to_string(), ""))
        .ok()
}

/// Reports a backend that only one machine reaches and that names no gateway, and a name without a cluster.
pub(super) fn check_backend(
    section: &Section<'_>,
    config: &BackendConfig,
    only_on: Option<&GatewayName>,
    is_cluster: bool,
) {
    match only_on {
        Some(_) if !is_cluster => {
            let what = "has no effect without cluster.name";
            section.report_key(backend_key::ONLY_ON.name, what, "remove it");
        }
        None if is_cluster && config.is_local() => {
            let kind = config.kind();
            let what = format!(
                "{kind} is reached from one machine, and this gateway is a member of a cluster"
            );
            let hint = "run a gateway on that machine and use it from here with kind = \"cloudapi\", or name the one gateway with only_on = \"...\"";
            section.report_key(backend_key::KIND.name, what, hint);
        }
        Some(_) | None => {}
    }
}
