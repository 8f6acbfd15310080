//! `[tracing]`: where finished requests and operations are sent as spans.

use std::path::PathBuf;
use std::sync::Arc;

use http::Uri;

use crate::adapters::transport;
use crate::adapters::transport::Endpoint;
use crate::adapters::transport::ServerOrigin;
use crate::adapters::transport::Trust;
use crate::adapters::transport::UrlError;
use crate::config::passthrough::SYSTEM_AUTHORITIES;
use crate::config::tables::tracing as key;
use crate::model::Secret;
use crate::model::limits;
use crate::schema::LocatedText;
use crate::schema::Reader;
use crate::schema::SecretSource;
use crate::schema::Section;

/// A collector of traces.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TraceExport {
    /// Its address.
    pub(super) origin: ServerOrigin,
    /// Path and query there.
    pub target: String,
    /// The certificates of the authorities that are believed, as PEM; `None` for plain HTTP on this machine.
    pub(super) authorities: Option<Arc<str>>,
    /// What is sent as `Authorization`.
    pub authorization: Option<Secret>,
}

impl TraceExport {
    /// A client of the collector; connects to nothing yet.
    ///
    /// # Errors
    /// [`transport::BuildError`] when a certificate cannot be used.
    pub fn client(&self) -> Result<transport::Client, transport::BuildError> {
        let endpoint = match &self.origin {
            ServerOrigin::Loopback(address) => Endpoint::Http(*address),
            ServerOrigin::Https(authority) => Endpoint::Https {
                authority: authority.clone(),
                trust: Trust::Authorities(
                    self.authorities
                        .as_deref()
                        .unwrap_or_default()
                        .as_bytes()
                        .to_vec(),
                ),
                identity: None,
            },
        };
        transport::Client::new(transport::ClientSettings {
            endpoint,
            connect_timeout: limits::SPANS_TIMEOUT,
            body_bytes_max: limits::SPANS_ANSWER_BYTES_MAX,
        })
    }
}

/// Reads the table; `None` without an endpoint or after an error was reported.
pub(super) fn read(
    reader: &Reader<'_>,
    section: &Section<'_>,
    source: &SecretSource<'_>,
) -> Option<TraceExport> {
    let url = section.read_text(&key::ENDPOINT);
    let ca = section.read_text(&key::CA);
    let authorization = section.read_secret(&key::AUTHORIZATION, source);
    let Some(url) = url else {
        for (found, name) in [
            (ca.is_some(), "ca"),
            (authorization.is_some(), "authorization"),
        ] {
            if found {
                section.report_key(name, "has no effect without endpoint", "remove it");
            }
        }
        return None;
    };
    let (origin, target) = parse_url(&url.text)
        .map_err(|(what, hint)| reader.report_text(&url, what, hint))
        .ok()?;
    let authorities = match &origin {
        ServerOrigin::Loopback(_) => {
            if let Some(ca) = &ca {
                reader.report_text(ca, "has no effect with http://", "remove it");
            }
            None
        }
        ServerOrigin::Https(_) => Some(read_authorities(reader, section, source, ca.as_ref())?),
    };
    let export = TraceExport {
        origin,
        target,
        authorities,
        authorization: authorization.map(|(_, secret)| secret),
    };
    export
        .client()
        .map_err(|error| section.report_key(key::CA.name, error.to_string(), ""))
        .ok()?;
    Some(export)
}

fn read_authorities(
    reader: &Reader<'_>,
    section: &Section<'_>,
    source: &SecretSource<'_>,
    ca: Option<&LocatedText>,
) -> Option<Arc<str>> {
    let path = ca.map_or_else(
        || PathBuf::from(SYSTEM_AUTHORITIES),
        |file| reader.folder().join(&file.text),
    );
    let authorities = source.read(&path);
    let report = |what: String| section.report_key(key::CA.name, what, "name a file in PEM form");
    authorities.map(Arc::from).map_err(report).ok()
}

/// The collector, and path and query there.
fn parse_url(text: &str) -> Result<(ServerOrigin, String), (&'static str, &'static str)> {
    const FORM: (&str, &str) = (
        "is not the URL of a collector",
        "write http://127.0.0.1:4318/v1/traces, or https://host/v1/traces",
    );
    const PLAINTEXT: (&str, &str) = (
        "would send traces in cleartext to another machine",
        "write https://; http:// only to an address such as 127.0.0.1",
    );
    let uri: Uri = text.parse().map_err(|_malformed| FORM)?;
    let (Some(scheme), Some(authority)) = (uri.scheme(), uri.authority()) else {
        return Err(FORM);
    };
    let origin = ServerOrigin::parse(scheme.as_str(), authority.as_str());
    let origin = origin.map_err(|error| match error {
        UrlError::Form => FORM,
        UrlError::Plaintext => PLAINTEXT,
    })?;
    let target = uri.path_and_query().map_or("/", |path| path.as_str());
    if text.contains('#') || target == "/" {
        return Err(FORM);
    }
    Ok((origin, target.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn collectors_are_encrypted_or_of_this_machine() {
        let rows = [
            ("http://127.0.0.1:4318/v1/traces", ""),
            ("https://otel.example.com/v1/traces", ""),
            ("http://otel.example.com/v1/traces", "in cleartext"),
            ("https://u:p@otel.example.com/v1/traces", "is not the URL"),
            ("https://otel.example.com", "is not the URL"),
            ("127.0.0.1:4318", "is not the URL"),
            ("grpc://127.0.0.1:4317/x", "is not the URL"),
        ];
        for (text, expected) in rows {
            let what = parse_url(text).err().map_or("", |(what, _)| what);
            assert_eq!(what.is_empty(), expected.is_empty(), "{text}: {what}");
            assert!(what.contains(expected), "{text}: {what}");
        }
    }
}
