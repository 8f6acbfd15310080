//! The origin of a web page (RFC 6454): scheme, host and port, compared as browsers compare them.

use std::fmt;
use std::net::Ipv6Addr;

/// Why a text is not an origin that can be allowed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OriginError {
    /// A wildcard.
    #[error("would allow pages of every site")]
    Wildcard,
    /// The origin of sandboxed frames, local files and redirects, which every page can have.
    #[error("is the origin that every page can have")]
    Null,
    /// Anything else.
    #[error("is not an origin")]
    Malformed,
}

/// The origin of a page: only `http` and `https` have one that names a site.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WebOrigin {
    scheme: &'static str,
    /// In lower case; an IPv6 address in brackets and in its canonical form. `a.example.` is another host than `a.example`.
    host: String,
    port: u16,
}

impl WebOrigin {
    /// Reads `scheme://host` or `scheme://host:port`, and nothing after it.
    ///
    /// # Errors
    /// [`OriginError`], a fragment that follows the text.
    pub fn parse(text: &str) -> Result<Self, OriginError> {
        if text.contains('*') {
            return Err(OriginError::Wildcard);
        }
        if text.eq_ignore_ascii_case("null") {
            return Err(OriginError::Null);
        }
        Self::from_parts(text).ok_or(OriginError::Malformed)
    }

    fn from_parts(text: &str) -> Option<Self> {
        let (scheme, authority) = text.split_once("://")?;
        let (scheme, default_port) = if scheme.eq_ignore_ascii_case("https") {
            ("https", 443)
        } else if scheme.eq_ignore_ascii_case("http") {
            ("http", 80)
        } else {
            return None;
        };
        let (host, port) = if let Some(inner) = authority.strip_prefix('[') {
            let (address, port) = inner.split_once(']')?;
            let address: Ipv6Addr = address.parse().ok()?;
            (format!("[{address}]"), port)
        } else {
            let end = authority.find(':').unwrap_or(authority.len());
            let (host, port) = authority.split_at_checked(end)?;
            if host.is_empty() || !host.bytes().all(is_host_byte) {
                return None;
            }
            (host.to_ascii_lowercase(), port)
        };
        let port = match port {
            "" => default_port,
            port => parse_port(port.strip_prefix(':')?)?,
        };
        Some(Self { scheme, host, port })
    }

    /// Whether pages of it travel unencrypted from another machine, so that anyone on the way can change what they do.
    #[must_use]
    pub fn is_forgeable(&self) -> bool {
        let is_local = ["localhost", "127.0.0.1", "[::1]"].contains(&self.host.as_str());
        self.scheme == "http" && !is_local
    }
}

/// The bytes of host names and IPv4 addresses; browsers write other alphabets in Punycode.
const fn is_host_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_')
}

/// A port as browsers write it: no sign, no leading zero.
fn parse_port(digits: &str) -> Option<u16> {
    let port: u16 = digits.parse().ok()?;
    (port > 0 && port.to_string() == digits).then_some(port)
}

impl fmt::Display for WebOrigin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://{}", self.scheme, self.host)?;
        match (self.scheme, self.port) {
            ("https", 443) | ("http", 80) => Ok(()),
            (_, port) => write!(f, ":{port}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn origins_are_read_as_browsers_write_them() {
        let rows = [
            ("https://console.example", Some("https://console.example")),
            ("HTTPS://Console.Example", Some("https://console.example")),
            (
                "https://console.example:443",
                Some("https://console.example"),
            ),
            ("http://console.example:80", Some("http://console.example")),
            (
                "http://console.example:443",
                Some("http://console.example:443"),
            ),
            (
                "https://console.example:8443",
                Some("https://console.example:8443"),
            ),
            ("https://console.example.", Some("https://console.example.")),
            ("http://127.0.0.1:3000", Some("http://127.0.0.1:3000")),
            ("https://[::1]:8443", Some("https://[::1]:8443")),
            ("https://[0:0:0:0:0:0:0:1]", Some("https://[::1]")),
            (
                "https://xn--bcher-kva.example",
                Some("https://xn--bcher-kva.example"),
            ),
            ("", None),
            ("console.example", None),
            ("//console.example", None),
            ("https://", None),
            ("https:///", None),
            ("https://console.example/", None),
            ("https://console.example/path", None),
            ("https://console.example?x", None),
            ("https://console.example#x", None),
            ("https://user@console.example", None),
            ("https://a.example https://b.example", None),
            ("https://a.example, https://b.example", None),
            ("https://console.example:", None),
            ("https://console.example:0", None),
            ("https://console.example:0443", None),
            ("https://console.example:+443", None),
            ("https://console.example:65536", None),
            ("https://[::1", None),
            ("https://[::1%25eth0]", None),
            ("https://[console.example]", None),
            ("https://b\u{fc}cher.example", None),
            ("ftp://console.example", None),
            ("file://", None),
            ("chrome-extension://abc", None),
        ];
        for (text, expected) in rows {
            let found = WebOrigin::parse(text).map(|origin| origin.to_string());
            let expected = expected.map(str::to_owned).ok_or(OriginError::Malformed);
            assert_eq!(found, expected, "{text:?}");
        }
        for text in ["*", "https://*.example", "https://*"] {
            assert_eq!(WebOrigin::parse(text), Err(OriginError::Wildcard), "{text}");
        }
        for text in ["null", "NULL"] {
            assert_eq!(WebOrigin::parse(text), Err(OriginError::Null), "{text}");
        }
    }

    #[test]
    fn different_spellings_of_one_origin_are_equal_and_others_are_not() {
        let origin = |text: &str| WebOrigin::parse(text).unwrap();
        let one = origin("https://console.example");
        for same in ["https://CONSOLE.example:443", "HTTPS://console.EXAMPLE"] {
            assert_eq!(origin(same), one, "{same}");
        }
        for other in [
            "http://console.example",
            "https://console.example:8443",
            "https://console.example.",
            "https://a.console.example",
            "https://console.example.evil.example",
        ] {
            assert_ne!(origin(other), one, "{other}");
        }
        assert!(origin("http://console.example").is_forgeable(), "plain");
        assert!(!one.is_forgeable(), "encrypted");
        assert!(!origin("http://localhost:3000").is_forgeable(), "local");
    }
}
