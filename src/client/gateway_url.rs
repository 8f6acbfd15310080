//! The URL of a gateway: TLS to any host, plain HTTP to this machine alone.

use std::net::IpAddr;
use std::net::Ipv4Addr;
use std::net::Ipv6Addr;
use std::net::SocketAddr;

use percent_encoding::AsciiSet;
use percent_encoding::NON_ALPHANUMERIC;
use percent_encoding::utf8_percent_encode;

use crate::model::limits;

/// Everything but the unreserved characters of RFC 3986, section 2.3.
const ESCAPED: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'.')
    .remove(b'_')
    .remove(b'~');
/// The one host name that plain HTTP may be used with: it never leaves this machine.
pub(super) const LOCAL_NAME: &str = "localhost";

/// Where a gateway is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GatewayUrl {
    /// Scheme, host and port.
    origin: String,
    /// What is put before each path: empty, or for instance `/cloud`.
    base: String,
    /// Whether the connection is encrypted.
    is_tls: bool,
}

/// Why a URL cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum GatewayUrlError {
    /// It has neither form.
    #[error("expected https://host:port or http://127.0.0.1:port")]
    Form,
    /// It is plain HTTP to another machine.
    #[error("would send credentials in cleartext to another machine; use https://")]
    Cleartext,
}

/// A link or id that no request can be made for.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("cannot make a request for {0:?}")]
pub struct TargetError(String);

impl GatewayUrl {
    /// From `https://host:port/path` or `http://127.0.0.1:port/path`, where the path is that of a proxy in front and mostly absent.
    ///
    /// # Errors
    /// [`GatewayUrlError`] for another form, and for plain HTTP to another machine.
    pub fn parse(url: &str) -> Result<Self, GatewayUrlError> {
        let (scheme, rest) = url.split_once("://").ok_or(GatewayUrlError::Form)?;
        let rest = rest.trim_end_matches('/');
        let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
        let mut segments = path.split('/').filter(|_| !path.is_empty());
        // User names are refused: the HTTP library would send them as credentials. Queries and escapes mean nothing in a base.
        if !is_authority(authority) || !segments.all(is_segment) {
            return Err(GatewayUrlError::Form);
        }
        let is_tls = match scheme {
            "https" => true,
            "http" if is_local(authority) => false,
            "http" => return Err(GatewayUrlError::Cleartext),
            _ => return Err(GatewayUrlError::Form),
        };
        let base = if path.is_empty() {
            String::new()
        } else {
            format!("/{path}")
        };
        Ok(Self {
            origin: format!("{scheme}://{authority}"),
            base,
            is_tls,
        })
    }

    /// Whether the connection is encrypted.
    #[must_use]
    pub const fn is_tls(&self) -> bool {
        self.is_tls
    }

    /// The whole address of a path and query of the API.
    pub(super) fn address(&self, target: &str) -> String {
        format!("{}{}{target}", self.origin, self.base)
    }

    /// The path and query of a link that the gateway gave, below this URL.
    ///
    /// # Errors
    /// [`TargetError`] for anything but a path of this gateway: credentials go nowhere else.
    pub fn link_target(&self, link: &str) -> Result<String, TargetError> {
        let refused = || TargetError(link.chars().take(80).collect());
        let path = link.strip_prefix(&self.origin).unwrap_or(link);
        let is_visible = path.bytes().all(|byte| byte.is_ascii_graphic());
        if !path.starts_with('/') || path.starts_with("//") || !is_visible {
            return Err(refused());
        }
        if path.len() > limits::LINK_BYTES_MAX {
            return Err(refused());
        }
        // Behind a proxy with a path, links have that path or not, as the proxy is configured.
        let below = path.strip_prefix(&self.base);
        let below = below.filter(|below| below.starts_with('/'));
        Ok(below.unwrap_or(path).to_owned())
    }
}

/// The same form as it is shown in messages.
impl std::fmt::Display for GatewayUrl {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}{}", self.origin, self.base)
    }
}

/// The path made of these segments, each as it is: they are escaped here.
///
/// # Errors
/// [`TargetError`] for a segment that libraries and proxies would drop.
pub fn path_of(segments: &[&str]) -> Result<String, TargetError> {
    let mut path = String::new();
    for segment in segments {
        if matches!(*segment, "" | "." | "..") {
            return Err(TargetError((*segment).to_owned()));
        }
        path.push('/');
        path.extend(utf8_percent_encode(segment, ESCAPED));
    }
    Ok(path)
}

/// The path with these names and values after the `?`, each as it is.
#[must_use]
pub fn with_query(mut path: String, query: &[(&str, &str)]) -> String {
    for (name, value) in query {
        path.push(if path.contains('?') { '&' } else { '?' });
        path.extend(utf8_percent_encode(name, ESCAPED));
        path.push('=');
        path.extend(utf8_percent_encode(value, ESCAPED));
    }
    path
}

fn is_authority(text: &str) -> bool {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b".-_:[]".contains(&byte);
    !text.is_empty() && text.bytes().all(is_plain)
}

fn is_segment(text: &str) -> bool {
    let is_unreserved = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~".contains(&byte);
    !matches!(text, "" | "." | "..") && text.bytes().all(is_unreserved)
}

/// Whether it is an address of this machine, or `localhost`, which is never looked up (see [`local_addresses`]).
fn is_local(authority: &str) -> bool {
    let host = match authority.parse::<SocketAddr>() {
        Ok(address) => return address.ip().is_loopback(),
        Err(_) if authority.starts_with('[') => authority.trim_matches(['[', ']']),
        Err(_) => authority
            .split_once(':')
            .map_or(authority, |(host, _port)| host),
    };
    host == LOCAL_NAME || host.parse().is_ok_and(|host: IpAddr| host.is_loopback())
}

/// What `localhost` is for this client, whatever a name server says.
pub(super) fn local_addresses() -> [SocketAddr; 2] {
    // Port 0 stands for that of the URL.
    [
        SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
        SocketAddr::from((Ipv6Addr::LOCALHOST, 0)),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_http_goes_to_this_machine_alone() {
        let rows = [
            ("https://lab.example:8443", Ok(true)),
            ("https://lab.example/cloud/", Ok(true)),
            ("http://127.0.0.1:8080", Ok(false)),
            ("http://[::1]:8080", Ok(false)),
            ("http://[::1]", Ok(false)),
            ("http://localhost:8080", Ok(false)),
            ("http://192.0.2.1:8080", Err(GatewayUrlError::Cleartext)),
            ("http://lab.example", Err(GatewayUrlError::Cleartext)),
            (
                "http://localhost.evil.example",
                Err(GatewayUrlError::Cleartext),
            ),
            (
                "http://127.0.0.1.evil.example",
                Err(GatewayUrlError::Cleartext),
            ),
            ("https://user@lab.example", Err(GatewayUrlError::Form)),
            ("https://lab.example/?a=b", Err(GatewayUrlError::Form)),
            ("https://", Err(GatewayUrlError::Form)),
            ("unix:///run/x", Err(GatewayUrlError::Form)),
            ("lab.example", Err(GatewayUrlError::Form)),
        ];
        for (url, expected) in rows {
            let found = GatewayUrl::parse(url).map(|url| url.is_tls());
            assert_eq!(found, expected, "{url}");
        }
    }

    #[test]
    fn links_stay_on_the_gateway_and_below_its_path() {
        let url = GatewayUrl::parse("https://lab.example/cloud").unwrap();
        let rows = [
            ("/statuses?seq=1", Some("/statuses?seq=1")),
            ("/cloud/statuses?seq=1", Some("/statuses?seq=1")),
            ("https://lab.example/cloud/vms/1", Some("/vms/1")),
            ("https://evil.example/vms/1", None),
            ("//evil.example/vms", None),
            ("statuses", None),
            ("/a b", None),
        ];
        for (link, expected) in rows {
            let found = url.link_target(link).ok();
            assert_eq!(found.as_deref(), expected, "{link}");
        }
        assert_eq!(
            url.address("/vms"),
            "https://lab.example/cloud/vms",
            "the whole address"
        );
    }

    #[test]
    fn ids_are_escaped_and_those_that_would_vanish_are_refused() {
        let path = path_of(&["vms", "a/b c", "backups"]).unwrap();
        assert_eq!(path, "/vms/a%2Fb%20c/backups", "escaped");
        for id in ["", ".", ".."] {
            assert!(path_of(&["vms", id]).is_err(), "{id:?}");
        }
        let query = with_query(
            path_of(&["vms"]).unwrap(),
            &[("name", "a&b*"), ("limit", "1")],
        );
        assert_eq!(query, "/vms?name=a%26b%2A&limit=1", "escaped");
    }
}
