//! `[[issuer]]`: whose JSON Web Tokens are taken, and where the keys come from.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use http::Uri;

use crate::adapters::transport;
use crate::adapters::transport::Endpoint;
use crate::adapters::transport::ServerOrigin;
use crate::adapters::transport::Trust;
use crate::adapters::transport::UrlError;
use crate::config::passthrough::SYSTEM_AUTHORITIES;
use crate::config::tables::issuer as key;
use crate::gate::Algorithm;
use crate::gate::Issuer;
use crate::gate::KeyRing;
use crate::gate::KeySet;
use crate::model::GroupName;
use crate::model::IssuerName;
use crate::model::limits;
use crate::schema::LocatedText;
use crate::schema::Reader;
use crate::schema::SecretSource;
use crate::schema::Section;

/// What is wrong with a URL, and what to do about it.
type Wrong = (&'static str, &'static str);

/// One issuer, and the place that its keys are fetched from, if it is one.
pub(super) struct Read {
    /// Its name; some when it is one, whatever else is wrong.
    pub(super) name: Option<IssuerName>,
    pub(super) groups: BTreeMap<String, GroupName>,
    pub(super) issuer: Option<(Issuer, Option<KeySource>)>,
}

/// Reads one `[[issuer]]`.
pub(super) fn read(reader: &Reader<'_>, section: &Section<'_>, source: &SecretSource<'_>) -> Read {
    let here = Reading {
        reader,
        section,
        source,
    };
    let name = section.read_text(&key::NAME).and_then(|found| {
        let name = IssuerName::new(&found.text);
        name.map_err(|error| reader.report_text(&found, error.to_string(), ""))
            .ok()
    });
    let text = |key| section.read_text(key).map(|text| text.text);
    let issuer = text(&key::ISSUER);
    let (subject_claim, groups_claim) = (text(&key::SUBJECT_CLAIM), text(&key::GROUPS_CLAIM));
    let audience = section.read_texts(&key::AUDIENCE);
    let algorithms = section.read_texts(&key::ALGORITHMS);
    let algorithms = algorithms
        .iter()
        .filter_map(|algorithm| here.algorithm(algorithm));
    let algorithms = algorithms.collect();
    let groups = section.read_texts(&key::GROUPS);
    let groups: BTreeMap<String, GroupName> = groups
        .iter()
        .filter_map(|group| here.mapped(group))
        .collect();
    let leeway = section.read_duration(&key::LEEWAY);
    let keys = here.keys(name.as_ref());
    let made = (name.clone(), issuer, keys, subject_claim, groups_claim);
    let (Some(its), Some(issuer), Some((keys, fetched)), Some(subject_claim), Some(groups_claim)) =
        made
    else {
        let issuer = None;
        return Read {
            name,
            groups,
            issuer,
        };
    };
    let issuer = Issuer {
        name: its,
        issuer,
        audience: audience.into_iter().map(|text| text.text).collect(),
        keys,
        algorithms,
        subject_claim,
        groups_claim,
        groups: groups.clone(),
        leeway,
    };
    Read {
        name,
        groups,
        issuer: Some((issuer, fetched)),
    }
}

struct Reading<'a> {
    reader: &'a Reader<'a>,
    section: &'a Section<'a>,
    source: &'a SecretSource<'a>,
}

impl Reading<'_> {
    /// The keys of a file, or none yet and where they are fetched from.
    fn keys(&self, name: Option<&IssuerName>) -> Option<(Arc<KeyRing>, Option<KeySource>)> {
        let section = self.section;
        let (file, url) = (
            section.read_text(&key::JWKS),
            section.read_text(&key::JWKS_URL),
        );
        let (authorities, refresh, oldest) = (
            section.read_text(&key::JWKS_CA),
            section.read_duration(&key::JWKS_REFRESH),
            section.read_duration(&key::JWKS_MAX_AGE),
        );
        match (file, url) {
            (Some(_), Some(url)) => {
                self.reader
                    .report_text(&url, "cannot be combined with jwks", "remove one of them");
                None
            }
            (None, None) => {
                if !section.has(key::JWKS.name) && !section.has(key::JWKS_URL.name) {
                    let hint =
                        "write jwks = \"keys.json\" for a file, or jwks_url = \"https://...\"";
                    section.report_missing(key::JWKS.name, hint);
                }
                None
            }
            (Some(file), None) => {
                let odd = [
                    (key::JWKS_CA.name, authorities.is_some()),
                    (key::JWKS_REFRESH.name, refresh != limits::ISSUER_REFRESH),
                    (key::JWKS_MAX_AGE.name, oldest != limits::ISSUER_KEYS_AGE),
                ];
                for (name, _) in odd.iter().filter(|key| key.1) {
                    section.report_key(name, "has no effect without jwks_url", "remove it");
                }
                Some((KeyRing::fixed(self.key_set(&file)?), None))
            }
            (None, Some(url)) => {
                let (origin, target) = parse_key_set_url(&url.text)
                    .map_err(|(what, hint)| self.reader.report_text(&url, what, hint))
                    .ok()?;
                let made = KeySource {
                    issuer: name?.clone(),
                    endpoint: self.endpoint(origin, authorities.as_ref())?,
                    target,
                    refresh,
                    oldest,
                };
                Some((KeyRing::awaiting_fetch(), Some(made)))
            }
        }
    }

    /// How the server is reached and known.
    fn endpoint(
        &self,
        origin: ServerOrigin,
        authorities: Option<&LocatedText>,
    ) -> Option<KeyEndpoint> {
        let authority = match origin {
            ServerOrigin::Loopback(address) => {
                if let Some(found) = authorities {
                    let what = "has no effect with http://";
                    self.reader.report_text(found, what, "remove it");
                }
                return Some(KeyEndpoint::Loopback(address));
            }
            ServerOrigin::Https(authority) => authority,
        };
        let path = authorities.map_or_else(
            || PathBuf::from(SYSTEM_AUTHORITIES),
            |file| self.reader.folder().join(&file.text),
        );
        let problem = |what: String| {
            let hint = "name a file with certificates of authorities in PEM form";
            self.section.report_key(key::JWKS_CA.name, what, hint);
        };
        let authorities = self.source.read(&path).map_err(problem).ok()?;
        let made = KeyEndpoint::Https {
            authority,
            authorities: Arc::from(authorities),
        };
        made.client()
            .map_err(|error| problem(format!("cannot use {}: {error}", path.display())))
            .ok()?;
        Some(made)
    }

    fn key_set(&self, path: &LocatedText) -> Option<KeySet> {
        if path.text.contains("://") {
            let hint = "write it as jwks_url";
            self.reader
                .report_text(path, "expected a path, got a URL", hint);
            return None;
        }
        let file = self.reader.folder().join(&path.text);
        let text = self.source.read(&file);
        let keys = text.and_then(|text| {
            KeySet::parse(&text).map_err(|what| format!("{}: {what}", file.display()))
        });
        keys.map_err(|what| self.reader.report_text(path, what, ""))
            .ok()
    }

    fn algorithm(&self, found: &LocatedText) -> Option<Algorithm> {
        let algorithm = Algorithm::from_name(&found.text);
        if algorithm.is_none() {
            let known = Algorithm::ALL.map(Algorithm::as_str).join(", ");
            let what = format!("unsupported algorithm {:?}", found.text);
            self.reader
                .report_text(found, what, &format!("expected one of {known}"));
        }
        algorithm
    }

    fn mapped(&self, found: &LocatedText) -> Option<(String, GroupName)> {
        // The last sign of equality: their names may hold some themselves.
        let parts = found
            .text
            .rsplit_once('=')
            .filter(|parts| !parts.0.is_empty());
        let Some((theirs, ours)) = parts else {
            let what = format!("{:?} is not a mapping of group names", found.text);
            self.reader
                .report_text(found, what, "write \"THEIRS=OURS\"");
            return None;
        };
        let ours = GroupName::new(ours);
        let ours =
            ours.map_err(|error| self.reader.report_text(found, format!("group {error}"), ""));
        Some((theirs.to_owned(), ours.ok()?))
    }
}

/// Where the keys of one issuer are fetched from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeySource {
    /// The issuer.
    pub issuer: IssuerName,
    /// The server.
    pub endpoint: KeyEndpoint,
    /// Path and query there.
    pub target: String,
    /// The longest time between two fetches.
    pub refresh: Duration,
    /// How old the last good set may become while fetches fail.
    pub oldest: Duration,
}

impl KeySource {
    /// Its URL without the query, which may hold a secret.
    #[must_use]
    pub fn display_url(&self) -> String {
        let path = self.target.split('?').next().unwrap_or_default();
        match &self.endpoint {
            KeyEndpoint::Loopback(address) => format!("http://{address}{path}"),
            KeyEndpoint::Https { authority, .. } => format!("https://{authority}{path}"),
        }
    }
}

/// Where a key set is, and how the server that has it proves who it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KeyEndpoint {
    /// Plain HTTP on this machine.
    Loopback(SocketAddr),
    /// TLS.
    Https {
        /// Host, perhaps with a port.
        authority: String,
        /// The certificates of the authorities that are believed, as PEM.
        authorities: Arc<str>,
    },
}

impl KeyEndpoint {
    /// A client of the server; connects to nothing yet.
    ///
    /// # Errors
    /// [`transport::BuildError`] when a certificate cannot be used.
    pub fn client(&self) -> Result<transport::Client, transport::BuildError> {
        let endpoint = match self {
            Self::Loopback(address) => Endpoint::Http(*address),
            Self::Https {
                authority,
                authorities,
            } => Endpoint::Https {
                authority: authority.clone(),
                trust: Trust::Authorities(authorities.as_bytes().to_vec()),
                identity: None,
            },
        };
        transport::Client::new(transport::ClientSettings {
            endpoint,
            connect_timeout: limits::ISSUER_FETCH_TIMEOUT,
            body_bytes_max: limits::ISSUER_ANSWER_BYTES_MAX,
        })
    }
}

/// The server that has a key set, and path and query there.
fn parse_key_set_url(text: &str) -> Result<(ServerOrigin, String), Wrong> {
    const FORM: Wrong = (
        "is not the URL of a key set",
        "write https://host/path, or http://127.0.0.1:port/path for a server on this machine",
    );
    const PLAINTEXT: Wrong = (
        "would fetch keys in cleartext from another machine",
        "write https://, with jwks_ca for an authority of your own; http:// only to an address such as 127.0.0.1",
    );
    let uri: Uri = text.parse().map_err(|_malformed| FORM)?;
    let (Some(scheme), Some(authority)) = (uri.scheme(), uri.authority()) else {
        return Err(FORM);
    };
    // What address libraries would resolve, so that another path would be asked for than is written.
    let dots = |text: &str| {
        matches!(
            text.to_ascii_lowercase().replace("%2e", ".").as_str(),
            "." | ".."
        )
    };
    if text.contains('#') || uri.path().split('/').any(dots) {
        return Err(FORM);
    }
    let origin = ServerOrigin::parse(scheme.as_str(), authority.as_str());
    let origin = origin.map_err(|error| match error {
        UrlError::Form => FORM,
        UrlError::Plaintext => PLAINTEXT,
    })?;
    let target = uri.path_and_query().map_or("/", |path| path.as_str());
    Ok((origin, target.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_of_key_sets_are_encrypted_or_of_this_machine() {
        let https = |text: &str| Ok(ServerOrigin::Https(text.to_owned()));
        let loopback = |text: &str| Ok(ServerOrigin::Loopback(text.parse().unwrap()));
        let rows = [
            (
                "https://sso.example.com/jwks",
                https("sso.example.com"),
                "/jwks",
            ),
            (
                "https://sso.example.com:8443/realms/a%20b/certs?app=1",
                https("sso.example.com:8443"),
                "/realms/a%20b/certs?app=1",
            ),
            ("https://[::1]/keys/", https("[::1]"), "/keys/"),
            ("https://sso.example.com", https("sso.example.com"), "/"),
            (
                "http://127.0.0.1:8080/jwks",
                loopback("127.0.0.1:8080"),
                "/jwks",
            ),
            ("http://[::1]/jwks", loopback("[::1]:80"), "/jwks"),
            ("http://sso.example.com/jwks", Err("in cleartext"), ""),
            ("http://192.0.2.1/jwks", Err("in cleartext"), ""),
            ("http://localhost/jwks", Err("in cleartext"), ""),
            ("http://127.0.0.1.example.com/", Err("in cleartext"), ""),
            (
                "https://user:pw@sso.example.com/jwks",
                Err("is not the URL"),
                "",
            ),
            (
                "https://sso.example.com/a/../jwks",
                Err("is not the URL"),
                "",
            ),
            (
                "https://sso.example.com/a/%2E%2e/jwks",
                Err("is not the URL"),
                "",
            ),
            ("https://sso.example.com/jwks#k", Err("is not the URL"), ""),
            ("https:///jwks", Err("is not the URL"), ""),
            ("ftp://sso.example.com/jwks", Err("is not the URL"), ""),
            ("sso.example.com/jwks", Err("is not the URL"), ""),
            ("/jwks.json", Err("is not the URL"), ""),
            ("https://sso.example.com/a b", Err("is not the URL"), ""),
        ];
        for (url, expected, path) in rows {
            match (parse_key_set_url(url), expected) {
                (Ok((found, target)), Ok(expected)) => {
                    assert_eq!((found, target.as_str()), (expected, path), "{url}");
                }
                (Err((what, hint)), Err(expected)) => {
                    assert!(what.contains(expected), "{url}: {what}");
                    assert!(hint.contains("https://"), "{url}: the remedy: {hint}");
                }
                (found, expected) => panic!("{url}: {found:?} instead of {expected:?}"),
            }
        }
    }
}
