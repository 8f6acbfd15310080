//! What is passed through, and where to.

use std::path::PathBuf;
use std::sync::Arc;

use http::HeaderName;
use http::HeaderValue;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::PrivateKeyDer;
use rustls::pki_types::pem::PemObject;

use crate::config::tables::passthrough as key;
use crate::gate::AuthorizationRule;
use crate::gate::BodyRule;
use crate::gate::FieldError;
use crate::gate::FieldRule;
use crate::gate::Grantee;
use crate::gate::HostRule;
use crate::gate::PASS_THROUGH_METHODS;
use crate::gate::PassThroughAccess;
use crate::gate::PassThroughRoute;
use crate::gate::PathPrefix;
use crate::gate::PoolId;
use crate::listener::Authorities;
use crate::listener::Balance;
use crate::listener::HealthCheck;
use crate::listener::PoolConfig;
use crate::listener::Timeouts;
use crate::listener::Upstream;
use crate::listener::UpstreamAddress;
use crate::listener::UpstreamIdentity;
use crate::listener::UpstreamTrust;
use crate::model::PassName;
use crate::model::limits;
use crate::schema::Key;
use crate::schema::LocatedText;
use crate::schema::Reader;
use crate::schema::SecretSource;
use crate::schema::Section;
use crate::schema::Text;
use crate::schema::TextList;

/// Where Debian and most others keep the certificates of the authorities the system trusts.
pub(super) const SYSTEM_AUTHORITIES: &str = "/etc/ssl/certs/ca-certificates.crt";

/// Keys that mean nothing without TLS.
const OF_TLS: &[&Key<Text>] = &[
    &key::SERVER_FINGERPRINT,
    &key::CA,
    &key::CLIENT_CERT,
    &key::CLIENT_KEY,
];

/// Reads every `[[passthrough]]`: the route, and its upstreams in the same place of the second list.
pub(super) fn read(
    reader: &Reader<'_>,
    sections: &[Section<'_>],
    allowed: Vec<Vec<Grantee>>,
    source: &SecretSource<'_>,
) -> (Vec<PassThroughRoute>, Vec<PoolConfig>) {
    let mut routes: Vec<PassThroughRoute> = Vec::new();
    let mut pools = Vec::new();
    for (section, allowed) in sections.iter().zip(allowed) {
        if routes.len() >= limits::PASSTHROUGH_MAX {
            let what = format!("more than {} routes", limits::PASSTHROUGH_MAX);
            section.report(what, "");
            break;
        }
        let one = One {
            reader,
            section,
            source,
        };
        let name = one.name();
        let (route, pool) = (one.route(name.clone(), allowed), one.pool(name));
        let (Some(route), Some(pool)) = (route, pool) else {
            continue;
        };
        if routes.iter().any(|other| other.name == route.name) {
            let what = format!("duplicate route \"{}\"", route.name);
            section.report_key(key::NAME.name, what, "choose another name");
        }
        let same = |other: &&PassThroughRoute| {
            other.prefix == route.prefix && overlap(&other.hosts, &route.hosts)
        };
        if let Some(other) = routes.iter().find(same) {
            let what = format!("also belongs to route \"{}\"", other.name);
            section.report_key(key::PATH.name, what, "choose another path, or other hosts");
        }
        routes.push(route);
        pools.push(pool);
    }
    (routes, pools)
}

fn overlap(one: &[String], two: &[String]) -> bool {
    (one.is_empty() && two.is_empty()) || one.iter().any(|host| two.contains(host))
}

/// One `[[passthrough]]`.
struct One<'a> {
    reader: &'a Reader<'a>,
    section: &'a Section<'a>,
    source: &'a SecretSource<'a>,
}

impl One<'_> {
    fn name(&self) -> Option<PassName> {
        let found = self.section.read_text(&key::NAME)?;
        PassName::new(&found.text)
            .map_err(|error| self.reader.report_text(&found, error.to_string(), ""))
            .ok()
    }

    fn route(&self, name: Option<PassName>, allowed: Vec<Grantee>) -> Option<PassThroughRoute> {
        let section = self.section;
        let found = section.read_text(&key::PATH);
        let prefix = found.and_then(|found| {
            PathPrefix::new(&found.text)
                .map_err(|error| {
                    let what = format!("{:?} {error}", found.text);
                    self.reader
                        .report_text(&found, what, "write path = \"/manager\"");
                })
                .ok()
        });
        let access = self.access(allowed);
        let authorization = self.authorization();
        let body = BodyRule {
            bytes_max: wide(section.read_size(&key::BODY)),
            pause: section.read_duration(&key::BODY_PAUSE),
            rate_min: wide(section.read_size(&key::BODY_RATE)),
        };
        let (hosts, methods) = (self.hosts(), self.methods());
        let fields = Arc::new(self.fields());
        let strip = section.read_flag(&key::STRIP_PREFIX);
        let upgrade = section.read_flag(&key::UPGRADE);
        let host = match section.read_choice(&key::HOST) {
            Some("upstream") => HostRule::Upstream,
            Some(_) | None => HostRule::Keep,
        };
        Some(PassThroughRoute {
            name: name?,
            prefix: prefix?,
            hosts,
            strip,
            access: access?,
            methods,
            host,
            authorization: authorization?,
            fields,
            upgrade,
            body,
            pool: PoolId::default(),
        })
    }

    fn hosts(&self) -> Vec<String> {
        let mut hosts = Vec::new();
        for found in self.section.read_texts(&key::HOSTS) {
            let plain =
                |character: char| character.is_ascii_alphanumeric() || ".-_[]:".contains(character);
            let host: Option<http::uri::Authority> = found.text.parse().ok();
            match host.filter(|host| host.port().is_none() && found.text.chars().all(plain)) {
                Some(found) => hosts.push(found.host().to_ascii_lowercase()),
                None => {
                    let what = format!("{:?} is not a host name", found.text);
                    let hint = "write a name or address without a port";
                    self.reader.report_text(&found, what, hint);
                }
            }
        }
        hosts
    }

    fn methods(&self) -> Vec<&'static str> {
        let mut methods = Vec::new();
        for found in self.section.read_texts(&key::METHODS) {
            match PASS_THROUGH_METHODS
                .iter()
                .find(|pass_through_method| **pass_through_method == found.text)
            {
                Some(found) => methods.push(*found),
                None => {
                    let what = format!("{:?} cannot be passed through", found.text);
                    let hint = format!("expected one of {}", PASS_THROUGH_METHODS.join(", "));
                    self.reader.report_text(&found, what, &hint);
                }
            }
        }
        methods
    }

    fn fields(&self) -> FieldRule {
        let mut rule = FieldRule::default();
        self.names(&key::REMOVE_HEADERS, |name| rule.remove(name));
        self.names(&key::KEEP_HEADERS, |name| rule.keep(name));
        if let Some(name) = rule.contradiction() {
            let what = format!("{:?} is also in remove_headers", name.as_str());
            self.section
                .report_key(key::KEEP_HEADERS.name, what, "remove one of them");
        }
        rule
    }

    /// Hands in every header name of a list, and reports those that cannot be in it.
    fn names(
        &self,
        list: &Key<TextList>,
        mut add: impl FnMut(HeaderName) -> Result<(), FieldError>,
    ) {
        for found in self.section.read_texts(list) {
            let what = match HeaderName::from_bytes(found.text.as_bytes()).map(&mut add) {
                Ok(Ok(())) => continue,
                Ok(Err(error)) => error.to_string(),
                Err(_) => "is not a header field name".to_owned(),
            };
            let what = format!("{:?} {what}", found.text);
            self.reader.report_text(&found, what, "remove it");
        }
    }

    fn access(&self, allowed: Vec<Grantee>) -> Option<PassThroughAccess> {
        let section = self.section;
        let open = section.read_choice(&key::AUTHENTICATION)? == "none";
        if open && section.has(key::ALLOW.name) {
            let what = "has no effect with authentication = \"none\"";
            section.report_key(key::ALLOW.name, what, "remove one of them");
        }
        if !open && !section.has(key::ALLOW.name) {
            section.report_missing(key::ALLOW.name, "write allow = [\"group:NAME\"]");
        }
        Some(if open {
            PassThroughAccess::Open
        } else {
            PassThroughAccess::Allowed(allowed)
        })
    }

    fn authorization(&self) -> Option<AuthorizationRule> {
        let section = self.section;
        let found = section.read_text(&key::AUTHORIZATION);
        let keep = section.read_choice(&key::CLIENT_AUTHORIZATION)? == "keep";
        let Some(found) = found else {
            return Some(if keep {
                AuthorizationRule::Keep
            } else {
                AuthorizationRule::Strip
            });
        };
        if keep {
            let what = "cannot be combined with client_authorization = \"keep\"";
            section.report_key(key::AUTHORIZATION.name, what, "remove one of them");
        }
        if !found.text.starts_with("file:") && !found.text.starts_with("env:") {
            let what = "contains the secret itself";
            let hint = "write \"file:PATH\" or \"env:NAME\"";
            self.reader.report_text(&found, what, hint);
            return None;
        }
        let secret = self.source.resolve(&found.text, &self.reader.folder());
        let secret = secret
            .map_err(|error| self.reader.report_text(&found, error, ""))
            .ok()?;
        let value = HeaderValue::from_str(&secret)
            .ok()
            .filter(|text| !text.is_empty());
        let Some(mut value) = value else {
            let what = "the secret is not a valid header field value";
            let hint = "expected one line of visible ASCII, such as: Bearer TOKEN";
            self.reader.report_text(&found, what, hint);
            return None;
        };
        value.set_sensitive(true);
        Some(AuthorizationRule::Set(value))
    }

    fn pool(&self, route: Option<PassName>) -> Option<PoolConfig> {
        let section = self.section;
        let upstreams = self.upstreams();
        let tls = upstreams.iter().any(|upstream| upstream.tls);
        let is_mixed = upstreams.iter().any(|upstream| upstream.tls != tls);
        if is_mixed {
            let what = "mixes https and other schemes";
            section.report_key(key::UPSTREAMS.name, what, "write two routes");
        }
        let trust = self.trust(tls);
        let identity = self.identity(tls);
        let timeouts = Timeouts {
            connect: section.read_duration(&key::CONNECT_TIMEOUT),
            connect_total: section.read_duration(&key::CONNECT_TOTAL_TIMEOUT),
            read: section.read_duration(&key::READ_TIMEOUT),
            write: section.read_duration(&key::WRITE_TIMEOUT),
            idle: section.read_duration(&key::IDLE_TIMEOUT),
            upgraded: section.read_duration(&key::UPGRADED_TIMEOUT),
        };
        let balance = match section.read_choice(&key::BALANCE) {
            Some("least-loaded") => Balance::LeastLoaded,
            Some(_) | None => Balance::RoundRobin,
        };
        let health_check = self.health_check();
        let failures = section.read_u32(&key::EJECT_FAILURES);
        let pause = section.read_duration(&key::EJECT_PAUSE);
        let resolve = section.read_duration(&key::RESOLVE);
        Some(PoolConfig {
            route: route?,
            upstreams,
            balance,
            timeouts,
            trust,
            identity,
            health_check,
            failures,
            pause,
            resolve,
        })
    }

    fn health_check(&self) -> Option<HealthCheck> {
        let section = self.section;
        let interval = section.read_duration(&key::HEALTH_INTERVAL);
        let timeout = section.read_duration(&key::HEALTH_TIMEOUT);
        let rise = section.read_u32(&key::HEALTH_RISE);
        let fall = section.read_u32(&key::HEALTH_FALL);
        let found = section.read_text(&key::HEALTH_PATH)?;
        let visible = found.text.bytes().all(|byte| byte.is_ascii_graphic());
        let good =
            found.text.starts_with('/') && visible && found.text.parse::<http::Uri>().is_ok();
        if !good {
            let what = format!("{:?} is not a path", found.text);
            let hint = "write health_path = \"/healthz\"";
            self.reader.report_text(&found, what, hint);
        }
        good.then_some(HealthCheck {
            path: found.text,
            interval,
            timeout,
            rise,
            fall,
        })
    }

    fn upstreams(&self) -> Vec<Upstream> {
        let mut made: Vec<Upstream> = Vec::new();
        for found in self.section.read_texts(&key::UPSTREAMS) {
            let Some(upstream_address) = upstream(&found.text) else {
                let what = format!("{:?} is not an upstream address", found.text);
                let hint = "write http://host:port, https://host:port or unix:///path, without a path after it";
                self.reader.report_text(&found, what, hint);
                continue;
            };
            if made.contains(&upstream_address) {
                let what = format!("duplicate upstream {:?}", found.text);
                self.reader.report_text(&found, what, "remove one");
            } else if made.len() >= limits::PASSTHROUGH_MAX {
                let what = format!("more than {} upstreams", limits::PASSTHROUGH_MAX);
                self.reader.report_text(&found, what, "");
            } else {
                made.push(upstream_address);
            }
        }
        made
    }

    fn trust(&self, tls: bool) -> Option<UpstreamTrust> {
        let section = self.section;
        let (pin, ca) = (
            section.read_text(&key::SERVER_FINGERPRINT),
            section.read_text(&key::CA),
        );
        if !tls {
            for name in OF_TLS
                .iter()
                .map(|key| key.name)
                .filter(|key| section.has(key))
            {
                section.report_key(name, "has no effect without https", "remove it");
            }
            return None;
        }
        if let Some(found) = pin {
            if section.has(key::CA.name) {
                let what = "has no effect with server_fingerprint";
                section.report_key(key::CA.name, what, "remove one of them");
            }
            let pin = fingerprint(&found.text);
            if pin.is_none() {
                let what = "is not the SHA-256 of a certificate (64 hexadecimal digits)";
                let hint = "run: openssl x509 -noout -fingerprint -sha256 -in server.crt";
                self.reader.report_text(&found, what, hint);
            }
            return pin.map(UpstreamTrust::Pin);
        }
        let path = ca.as_ref().map_or_else(
            || PathBuf::from(SYSTEM_AUTHORITIES),
            |file| self.reader.folder().join(&file.text),
        );
        let report = |what: String| {
            let hint = "name a file with certificates in PEM form, or write server_fingerprint";
            section.report_key(key::CA.name, what, hint);
        };
        let pem = self.source.read(&path).map_err(report).ok()?;
        let all: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem.as_bytes()).collect();
        let problem =
            |error: &dyn std::error::Error| report(format!("{}: {error}", path.display()));
        let all = all.map_err(|error| problem(&error)).ok()?;
        let all = Authorities::new(&all);
        all.map_err(|error| problem(&error))
            .ok()
            .map(UpstreamTrust::Authorities)
    }

    fn identity(&self, tls: bool) -> Option<UpstreamIdentity> {
        let section = self.section;
        let (cert, secret) = (
            section.read_text(&key::CLIENT_CERT),
            section.read_text(&key::CLIENT_KEY),
        );
        if !tls {
            return None;
        }
        let (cert, secret) = match (cert, secret) {
            (None, None) => return None,
            (Some(cert), Some(secret)) => (cert, secret),
            (Some(_), None) => {
                let what = "is required with client_cert";
                section.report_key(key::CLIENT_KEY.name, what, "write both, or neither");
                return None;
            }
            (None, Some(_)) => {
                let what = "is required with client_key";
                section.report_key(key::CLIENT_CERT.name, what, "write both, or neither");
                return None;
            }
        };
        let chain = self.pem(&cert)?;
        let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(chain.as_bytes()).collect();
        let chain = chain
            .map_err(|error| self.reader.report_text(&cert, error.to_string(), ""))
            .ok()?;
        let path = self.reader.folder().join(&secret.text);
        self.source.mark_secret_file(&path, "a private key");
        // The reason is not reported: its text could hold a part of the key.
        let key = PrivateKeyDer::from_pem_slice(self.pem(&secret)?.as_bytes());
        let Ok(key) = key else {
            self.reader
                .report_text(&secret, "is not a private key in PEM form", "");
            return None;
        };
        UpstreamIdentity::new(&chain, &key)
            .map_err(|error| self.reader.report_text(&cert, error.to_string(), ""))
            .ok()
    }

    fn pem(&self, found: &LocatedText) -> Option<String> {
        let path = self.reader.folder().join(&found.text);
        let text = self.source.read(&path);
        text.map_err(|what| self.reader.report_text(found, what, ""))
            .ok()
    }
}

fn wide(size: usize) -> u64 {
    u64::try_from(size).unwrap_or(u64::MAX)
}

fn upstream(text: &str) -> Option<Upstream> {
    if let Some(path) = text.strip_prefix("unix://") {
        return path.starts_with('/').then(|| Upstream {
            address: UpstreamAddress::Socket(PathBuf::from(path)),
            tls: false,
            label: Arc::from("localhost"),
        });
    }
    let (scheme, rest) = text.split_once("://")?;
    let (tls, port) = match scheme {
        "http" => (false, 80),
        "https" => (true, 443),
        _ => return None,
    };
    let authority: http::uri::Authority = rest.trim_end_matches('/').parse().ok()?;
    let host = authority.host();
    let plain = host.trim_start_matches('[').trim_end_matches(']');
    let port = match authority.as_str().strip_prefix(host)? {
        "" => port,
        text => text.strip_prefix(':')?.parse().ok()?,
    };
    if plain.is_empty() || port == 0 {
        return None;
    }
    let is_name = |text: &str| {
        text.bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b".-_".contains(&byte))
    };
    if plain.parse::<std::net::IpAddr>().is_err() && !is_name(plain) {
        return None;
    }
    Some(Upstream {
        address: UpstreamAddress::Host(plain.to_owned(), port),
        tls,
        label: Arc::from(authority.as_str()),
    })
}

fn fingerprint(text: &str) -> Option<[u8; 32]> {
    let digits: Vec<u8> = text
        .bytes()
        .filter(|byte| *byte != b':')
        .map(|byte| {
            char::from(byte)
                .to_digit(16)
                .and_then(|byte| u8::try_from(byte).ok())
        })
        .collect::<Option<_>>()?;
    let pairs = digits.chunks_exact(2);
    if !pairs.remainder().is_empty() {
        return None;
    }
    let bytes: Vec<u8> = pairs
        .map(|pair| pair.iter().fold(0, |all, digit| (all << 4) | digit))
        .collect();
    bytes.try_into().ok()
}
