//! `[etcd]`: the cluster that holds the operations.

use std::path::Path;
use std::path::PathBuf;
use std::sync::Arc;

use http::Uri;

use crate::adapters::transport;
use crate::adapters::transport::ClientIdentity;
use crate::adapters::transport::Endpoint;
use crate::adapters::transport::Trust;
use crate::config::passthrough::SYSTEM_AUTHORITIES;
use crate::config::tables::etcd as key;
use crate::etcd::Config;
use crate::etcd::Credentials;
use crate::etcd::Identity;
use crate::model::limits;
use crate::schema::LocatedText;
use crate::schema::Reader;
use crate::schema::SecretSource;
use crate::schema::Section;

/// Longest prefix in bytes: it stands in every key.
const PREFIX_BYTES_MAX: usize = 128;

/// Reads the table; `None` after an error was reported, or when it is not used and names no member. `is_used` says that the
/// operations are in etcd.
pub(super) fn read(
    reader: &Reader<'_>,
    section: &Section<'_>,
    source: &SecretSource<'_>,
    is_used: bool,
) -> Option<Config> {
    let endpoints = read_endpoints(reader, section, is_used);
    let is_encrypted = endpoints
        .as_ref()
        .map(|endpoints| endpoints.iter().any(|url| url.starts_with("https://")));
    let prefix = read_prefix(reader, section);
    let credentials = read_credentials(reader, section, source);
    let identity = read_identity(section, source, is_encrypted);
    let ca = section.read_text(&key::CA);
    let lease = section.read_duration(&key::LEASE);
    let authorities = if is_encrypted == Some(true) {
        Some(read_authorities(section, source, ca.as_ref())?)
    } else {
        if let Some(ca) = ca.filter(|_| is_encrypted == Some(false)) {
            reader.report_text(&ca, "has no effect with http://", "remove it");
        }
        None
    };
    let config = Config {
        endpoints: endpoints?,
        prefix: prefix?,
        authorities,
        identity: identity.ok()?,
        credentials: credentials.ok()?,
        lease,
    };
    check_certificates(section, &config)?;
    if is_used {
        warn_of_cleartext(reader, &config);
    } else {
        let what = "has no effect without operations.store = \"etcd\"";
        reader.warn(format!("etcd: {what}"));
    }
    Some(config)
}

fn read_endpoints(
    reader: &Reader<'_>,
    section: &Section<'_>,
    is_used: bool,
) -> Option<Vec<String>> {
    let found = section.read_distinct_texts(&key::ENDPOINTS);
    if found.is_empty() {
        if is_used {
            let hint = "write endpoints = [\"https://etcd1:2379\"] in [etcd]";
            let what = "must name a member with operations.store = \"etcd\"";
            section.report_key(key::ENDPOINTS.name, what, hint);
        }
        return None;
    }
    let mut endpoints = Vec::new();
    for endpoint in &found {
        match check_endpoint(&endpoint.text) {
            Ok(url) => endpoints.push(url),
            Err((what, hint)) => reader.report_text(endpoint, what, hint),
        }
    }
    let scheme = |url: &String| url.starts_with("https://");
    let first = endpoints.first().map(scheme);
    if endpoints.iter().any(|url| Some(scheme(url)) != first) {
        let hint = "use https:// for all of them";
        section.report_key(key::ENDPOINTS.name, "has both http:// and https://", hint);
        return None;
    }
    (endpoints.len() == found.len()).then_some(endpoints)
}

/// The URL without a `/` at its end.
fn check_endpoint(text: &str) -> Result<String, (&'static str, &'static str)> {
    const FORM: (&str, &str) = (
        "is not the URL of a member",
        "write https://host:2379, with the port and without a path",
    );
    let uri: Uri = text.parse().map_err(|_malformed| FORM)?;
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b".-_:[]".contains(&byte);
    let authority = uri.authority().ok_or(FORM)?.as_str();
    let is_known = matches!(uri.scheme_str(), Some("http" | "https"));
    let has_path = uri.path() != "/" || uri.query().is_some() || text.contains('#');
    if !is_known || has_path || !authority.bytes().all(is_plain) || uri.port_u16().is_none() {
        return Err(FORM);
    }
    Ok(text.trim_end_matches('/').to_owned())
}

fn read_prefix(reader: &Reader<'_>, section: &Section<'_>) -> Option<String> {
    let found = section.read_text(&key::PREFIX)?;
    let name = found.text.strip_prefix('/');
    let is_name = |part: &str| {
        let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
        !part.is_empty() && part.bytes().all(is_plain)
    };
    if name.is_none_or(|name| !name.split('/').all(is_name)) {
        let hint =
            "write \"/snapgate\": letters, digits, `.`, `_` and `-`, with single `/` between names";
        reader.report_text(&found, "is not a prefix of keys", hint);
        return None;
    }
    if found.text.len() > PREFIX_BYTES_MAX {
        let what = format!("is longer than {PREFIX_BYTES_MAX} bytes");
        reader.report_text(&found, what, "choose a shorter one");
        return None;
    }
    Some(found.text)
}

/// What was set and could not be used; it was reported.
struct Reported;

fn read_credentials(
    reader: &Reader<'_>,
    section: &Section<'_>,
    source: &SecretSource<'_>,
) -> Result<Option<Credentials>, Reported> {
    let username = section.read_text(&key::USERNAME);
    let password = section.read_secret(&key::PASSWORD, source);
    match (username, password) {
        (Some(username), Some((_, password))) => Ok(Some(Credentials {
            username: username.text,
            password,
        })),
        (None, None) if !section.has(key::PASSWORD.name) => Ok(None),
        (Some(username), None) => {
            if !section.has(key::PASSWORD.name) {
                let hint = "write password = \"file:etcd.password\" beside it";
                reader.report_text(&username, "has no password", hint);
            }
            Err(Reported)
        }
        (None, _) => {
            let hint = "write username = \"...\" beside it";
            section.report_key(key::PASSWORD.name, "has no username", hint);
            Err(Reported)
        }
    }
}

fn read_identity(
    section: &Section<'_>,
    source: &SecretSource<'_>,
    is_encrypted: Option<bool>,
) -> Result<Option<Identity>, Reported> {
    let certificate = section.read_text(&key::CLIENT_CERT);
    let private_key = section.read_text(&key::CLIENT_KEY);
    let (certificate, private_key) = match (certificate, private_key) {
        (None, None) => return Ok(None),
        (Some(certificate), Some(private_key)) => (certificate, private_key),
        (Some(certificate), None) => {
            section.report_text(&certificate, "has no key", "write client_key = \"...\"");
            return Err(Reported);
        }
        (None, Some(private_key)) => {
            let hint = "write client_cert = \"...\"";
            section.report_text(&private_key, "has no certificate", hint);
            return Err(Reported);
        }
    };
    if is_encrypted == Some(false) {
        section.report_text(&certificate, "has no effect with http://", "use https://");
        return Err(Reported);
    }
    let read = |found: &LocatedText, path: &Path| {
        let report = |what: String| section.report_text(found, what, "name a file in PEM form");
        source.read(path).map_err(report).ok()
    };
    let certificates = read(&certificate, &section.resolve_path(&certificate));
    let key_file = section.resolve_path(&private_key);
    source.mark_secret_file(&key_file, "a private key");
    let key = read(&private_key, &key_file);
    match (certificates, key) {
        (Some(certificates), Some(key)) => Ok(Some(Identity {
            certificates: certificates.into(),
            key: crate::model::Secret::new(key),
        })),
        (_, _) => Err(Reported),
    }
}

fn read_authorities(
    section: &Section<'_>,
    source: &SecretSource<'_>,
    ca: Option<&LocatedText>,
) -> Option<Arc<str>> {
    let path = ca.map_or_else(
        || PathBuf::from(SYSTEM_AUTHORITIES),
        |file| section.resolve_path(file),
    );
    let authorities = source.read(&path);
    let report = |what: String| section.report_key(key::CA.name, what, "name a file in PEM form");
    authorities.map(Arc::from).map_err(report).ok()
}

/// Certificates and keys that no connection could use are errors of the configuration.
fn check_certificates(section: &Section<'_>, config: &Config) -> Option<()> {
    let Some(authorities) = &config.authorities else {
        return Some(());
    };
    let identity = config.identity.as_ref();
    let usable = transport::Client::new(transport::ClientSettings {
        endpoint: Endpoint::Https {
            authority: "localhost:2379".to_owned(),
            trust: Trust::Authorities(authorities.as_bytes().to_vec()),
            identity: identity.map(|identity| ClientIdentity {
                certificates: identity.certificates.as_bytes().to_vec(),
                key: identity.key.clone(),
            }),
        },
        connect_timeout: limits::SPANS_TIMEOUT,
        body_bytes_max: 1,
    });
    match usable {
        Ok(_) => Some(()),
        Err(error @ transport::BuildError::Identity(_)) => {
            section.report_key(key::CLIENT_CERT.name, error.to_string(), "");
            None
        }
        Err(error) => {
            section.report_key(key::CA.name, error.to_string(), "name a file in PEM form");
            None
        }
    }
}

fn warn_of_cleartext(reader: &Reader<'_>, config: &Config) {
    let crosses_network = |url: &String| {
        let uri: Option<Uri> = url.parse().ok();
        let is_local = uri.and_then(|uri| uri.host().map(is_loopback_host));
        url.starts_with("http://") && is_local != Some(true)
    };
    if let Some(url) = config.endpoints.iter().find(|url| crosses_network(url)) {
        let sent = if config.credentials.is_some() {
            "operations and the password of etcd"
        } else {
            "operations"
        };
        reader.warn(format!(
            "etcd.endpoints: {url}: {sent} cross the network in cleartext, and any machine on it can change them; use https://"
        ));
    }
}

fn is_loopback_host(host: &str) -> bool {
    let address: Result<std::net::IpAddr, _> = host.trim_matches(['[', ']']).parse();
    host == "localhost" || address.is_ok_and(|address| address.to_canonical().is_loopback())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::config::load;
    use crate::operations::StoreLocation;

    #[test]
    fn endpoints_name_a_scheme_a_host_and_a_port() {
        let rows = [
            ("https://etcd1:2379", true),
            ("http://127.0.0.1:2379/", true),
            ("https://[2001:db8::1]:2379", true),
            ("etcd1:2379", false),
            ("https://etcd1", false),
            ("https://user@etcd1:2379", false),
            ("https://etcd1:2379/v3", false),
            ("https://etcd1:2379?x", false),
            ("unix:///run/etcd", false),
        ];
        for (text, is_good) in rows {
            assert_eq!(check_endpoint(text).is_ok(), is_good, "{text}");
        }
    }

    /// Loads a configuration with this table; the problems and warnings as one text.
    fn report(operations: &str, table: &str) -> (String, Option<Config>) {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("c.toml");
        let made = rcgen::generate_simple_self_signed(["etcd1".to_owned()]).unwrap();
        fs::write(folder.path().join("ca.pem"), made.cert.pem()).unwrap();
        fs::write(
            folder.path().join("key.pem"),
            made.signing_key.serialize_pem(),
        )
        .unwrap();
        fs::write(folder.path().join("password"), "secret\n").unwrap();
        fs::write(
            &file,
            format!("[operations]\n{operations}\n[etcd]\n{table}"),
        )
        .unwrap();
        match load(&file, &|_| None) {
            Ok(settings) => {
                let config = match &settings.operations.store {
                    StoreLocation::Etcd(config) => Some(Config::clone(config)),
                    StoreLocation::File(_) => None,
                };
                (settings.notes.join("\n"), config)
            }
            Err(problems) => (problems.to_string(), None),
        }
    }

    #[test]
    #[expect(clippy::too_many_lines, reason = "a table")]
    fn every_error_names_its_key() {
        const USED: &str = "store = \"etcd\"\noperator_file = \"o\"";
        const TLS: &str = "endpoints = [\"https://etcd1:2379\"]\nca = \"ca.pem\"\n";
        let tls = |more: &str| format!("{TLS}{more}");
        let plain = |more: &str| format!("endpoints = [\"http://127.0.0.1:1\"]\n{more}");
        let rows = [
            (
                "no member",
                USED,
                String::new(),
                "etcd.endpoints: must name a member",
            ),
            (
                "no operator file",
                "store = \"etcd\"",
                tls(""),
                "operations.operator_file: is required",
            ),
            (
                "not used",
                "store = \"./etcd\"",
                tls(""),
                "etcd: has no effect without operations.store",
            ),
            (
                "a malformed member",
                USED,
                "endpoints = [\"etcd1\"]".to_owned(),
                "etcd.endpoints[0]: is not the URL",
            ),
            (
                "twice",
                USED,
                "endpoints = [\"http://a:1\", \"http://a:1\"]".to_owned(),
                "etcd.endpoints[1]: duplicate",
            ),
            (
                "mixed",
                USED,
                "endpoints = [\"http://a:1\", \"https://b:1\"]".to_owned(),
                "has both http:// and https://",
            ),
            (
                "prefix",
                USED,
                plain("prefix = \"snapgate\""),
                "etcd.prefix: is not a prefix of keys",
            ),
            (
                "prefix with an empty part",
                USED,
                plain("prefix = \"/a//b\""),
                "etcd.prefix: is not a prefix of keys",
            ),
            (
                "ca without TLS",
                USED,
                plain("ca = \"ca.pem\""),
                "etcd.ca: has no effect with http://",
            ),
            (
                "absent ca",
                USED,
                "endpoints = [\"https://a:1\"]\nca = \"no.pem\"".to_owned(),
                "etcd.ca: cannot read",
            ),
            (
                "certificate alone",
                USED,
                tls("client_cert = \"ca.pem\""),
                "etcd.client_cert: has no key",
            ),
            (
                "key alone",
                USED,
                tls("client_key = \"key.pem\""),
                "etcd.client_key: has no certificate",
            ),
            (
                "not a key",
                USED,
                tls("client_cert = \"ca.pem\"\nclient_key = \"password\""),
                "etcd.client_cert: the client certificate and key",
            ),
            (
                "user alone",
                USED,
                plain("username = \"u\""),
                "etcd.username: has no password",
            ),
            (
                "password alone",
                USED,
                plain("password = \"file:password\""),
                "etcd.password: has no username",
            ),
            (
                "the password itself",
                USED,
                plain("username = \"u\"\npassword = \"secret\""),
                "etcd.password: contains the secret itself",
            ),
            (
                "unknown key",
                USED,
                plain("endpoint = \"x\""),
                "etcd.endpoint: unknown key",
            ),
            (
                "cleartext",
                USED,
                "endpoints = [\"http://etcd1:1\"]".to_owned(),
                "operations cross the network in cleartext",
            ),
            ("loopback", USED, plain(""), ""),
        ];
        for (name, operations, table, expected) in rows {
            let (found, _) = report(operations, &table);
            assert_eq!(found.is_empty(), expected.is_empty(), "{name}: {found}");
            assert!(found.contains(expected), "{name}: {found}");
        }
        let all = tls(
            "prefix = \"/lab/gateways\"\nclient_cert = \"ca.pem\"\nclient_key = \"key.pem\"\nusername = \"u\"\npassword = \"file:password\"\nlease = \"5s\"",
        );
        let (problems, config) = report(USED, &all);
        let config = config.unwrap_or_else(|| panic!("{problems}"));
        assert_eq!(config.prefix, "/lab/gateways", "the prefix");
        assert_eq!(config.lease.as_secs(), 5, "the lease");
        let credentials = config.credentials.unwrap();
        assert_eq!(credentials.password.reveal(), "secret", "from its file");
        assert!(config.identity.is_some(), "the certificate");
    }
}
