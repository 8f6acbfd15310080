//! The URL of a server, as configuration files have it.

use std::net::IpAddr;
use std::net::SocketAddr;
use std::path::PathBuf;

/// The URL of a server, taken apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ServerUrl {
    /// `unix:///path`: the path of a socket.
    Unix(PathBuf),
    /// `http://127.0.0.1:port/path`: an address of this machine, and the segments of the path.
    Loopback(SocketAddr, Vec<String>),
    /// `https://host:port/path`: host and port, and the segments of the path.
    Https(String, Vec<String>),
}

/// A server that is reached over the network, by the part of its URL before the path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ServerOrigin {
    /// `http://127.0.0.1:port`: an address of this machine.
    Loopback(SocketAddr),
    /// `https://host:port`: host and port.
    Https(String),
}

impl ServerOrigin {
    /// From what stands before and behind `://` in a URL, without the path.
    ///
    /// # Errors
    /// [`UrlError::Form`] for another scheme or a malformed authority, [`UrlError::Plaintext`] for HTTP to another machine.
    pub fn parse(scheme: &str, authority: &str) -> Result<Self, UrlError> {
        // User names are refused: the HTTP client would send them as credentials.
        if !is_authority(authority) {
            return Err(UrlError::Form);
        }
        match scheme {
            "https" => Ok(Self::Https(authority.to_owned())),
            "http" => {
                let address = parse_loopback(authority);
                address.map(Self::Loopback).ok_or(UrlError::Plaintext)
            }
            _ => Err(UrlError::Form),
        }
    }
}

/// Why a URL cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UrlError {
    /// It has none of the forms.
    #[error(
        "is neither unix:///path/of/the/socket, https://host:port/path nor http://127.0.0.1:port/path"
    )]
    Form,
    /// It is plain HTTP to another machine.
    #[error("would send credentials in cleartext to another machine; use https://")]
    Plaintext,
}

impl ServerUrl {
    /// From `unix:///path`, `https://host:port/path` or `http://127.0.0.1:port/path`.
    ///
    /// # Errors
    /// [`UrlError::Form`] when it has none of these forms, [`UrlError::Plaintext`] for HTTP to another machine.
    pub fn parse(url: &str) -> Result<Self, UrlError> {
        let socket = url.strip_prefix("unix://");
        if let Some(path) = socket.filter(|path| path.starts_with('/')) {
            return Ok(Self::Unix(PathBuf::from(path)));
        }
        let (scheme, rest) = url.split_once("://").ok_or(UrlError::Form)?;
        let rest = rest.strip_suffix('/').unwrap_or(rest);
        let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
        let segments: Vec<&str> = path.split('/').filter(|_| !path.is_empty()).collect();
        // Queries and escapes are refused: each would mean something else to the HTTP client.
        if !segments.iter().all(|segment| is_segment(segment)) {
            return Err(UrlError::Form);
        }
        let segments = segments.into_iter().map(str::to_owned).collect();
        Ok(match ServerOrigin::parse(scheme, authority)? {
            ServerOrigin::Loopback(address) => Self::Loopback(address, segments),
            ServerOrigin::Https(authority) => Self::Https(authority, segments),
        })
    }
}

fn is_authority(text: &str) -> bool {
    // Underscores are in no host name of the DNS, but in those of many private networks.
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b".-_:[]".contains(&byte);
    !text.is_empty() && text.bytes().all(is_plain)
}

fn is_segment(text: &str) -> bool {
    let is_unreserved = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~".contains(&byte);
    !matches!(text, "" | "." | "..") && text.bytes().all(is_unreserved)
}

/// An IP address of this machine, with or without a port. A name is refused: it may resolve to any machine.
fn parse_loopback(authority: &str) -> Option<SocketAddr> {
    let without_port = || {
        let host = authority.trim_start_matches('[').trim_end_matches(']');
        let host: Option<IpAddr> = host.parse().ok();
        host.map(|host| SocketAddr::new(host, 80))
    };
    let address = authority.parse().ok().or_else(without_port)?;
    Some(address).filter(|address: &SocketAddr| address.ip().is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(segments: &[&str]) -> Vec<String> {
        segments
            .iter()
            .map(|segment| (*segment).to_owned())
            .collect()
    }

    #[test]
    fn urls_with_one_of_three_forms_are_read() {
        let loopback = |address: &str, segments: &[&str]| {
            ServerUrl::Loopback(address.parse().unwrap(), path(segments))
        };
        let https = |authority: &str, segments: &[&str]| {
            ServerUrl::Https(authority.to_owned(), path(segments))
        };
        let rows = [
            (
                "unix:///run/vmm.socket",
                ServerUrl::Unix(PathBuf::from("/run/vmm.socket")),
            ),
            ("https://lab.example:8443", https("lab.example:8443", &[])),
            ("https://[::1]:8443/", https("[::1]:8443", &[])),
            ("https://vmm_1:8443", https("vmm_1:8443", &[])),
            (
                "https://lab.example/cloud/v1",
                https("lab.example", &["cloud", "v1"]),
            ),
            ("http://127.0.0.1:8080", loopback("127.0.0.1:8080", &[])),
            ("http://127.0.0.1", loopback("127.0.0.1:80", &[])),
            ("http://[::1]:8080/a", loopback("[::1]:8080", &["a"])),
        ];
        for (url, expected) in rows {
            assert_eq!(ServerUrl::parse(url), Ok(expected), "{url}");
        }
    }

    #[test]
    fn urls_of_other_forms_and_in_cleartext_are_refused() {
        let rows = [
            ("http://192.0.2.1:8080", UrlError::Plaintext),
            ("http://localhost:8080", UrlError::Plaintext),
            ("http://127.0.0.1.evil.example", UrlError::Plaintext),
            ("unix://relative", UrlError::Form),
            ("https://", UrlError::Form),
            ("https://user@lab.example", UrlError::Form),
            ("https://lab.example/a/../b", UrlError::Form),
            ("https://lab.example/a//b", UrlError::Form),
            ("https://lab.example/a%2fb", UrlError::Form),
            ("https://lab.example/?x", UrlError::Form),
            ("ftp://lab.example", UrlError::Form),
            ("lab.example", UrlError::Form),
        ];
        for (url, expected) in rows {
            assert_eq!(ServerUrl::parse(url), Err(expected), "{url}");
        }
    }
}
