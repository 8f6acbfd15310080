//! The address of the client: that of the connection, or the one that a trusted proxy reports.
//!
//! The one place where `X-Forwarded-For` and the client's `X-Request-Id` and `traceparent` are read.

use std::net::IpAddr;

use http::HeaderMap;
use http::HeaderName;
use ipnet::IpNet;

use crate::gate::header_names::REQUEST_ID;
use crate::gate::header_names::TRACE_PARENT;
use crate::gate::request::RequestHead;
use crate::model::RequestId;
use crate::model::SpanId;
use crate::model::TraceContext;
use crate::model::limits;

const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");

/// The proxies whose reports about their clients are trusted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TrustedProxies(Vec<IpNet>);

impl TrustedProxies {
    /// Exactly these addresses.
    #[must_use]
    pub const fn new(networks: Vec<IpNet>) -> Self {
        Self(networks)
    }

    /// Reads an address or a network such as `10.0.0.0/8`; `None` when it is neither.
    #[must_use]
    pub fn network(text: &str) -> Option<IpNet> {
        let address: Option<IpAddr> = text.parse().ok();
        let network =
            address.map_or_else(|| text.parse().ok(), |address| Some(IpNet::from(address)));
        network.map(|network| network.trunc())
    }

    /// All of them.
    pub fn networks(&self) -> impl Iterator<Item = &IpNet> {
        self.0.iter()
    }

    /// Whether the address is one of theirs.
    #[must_use]
    pub fn include(&self, address: IpAddr) -> bool {
        self.0.iter().any(|network| network.contains(&address))
    }
}

/// Where a request comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClientAddress {
    /// The address of the client, or of the nearest hop that is not trusted. An IPv4 address mapped into IPv6 is reported as
    /// the IPv4 address. `None` when the connection has no address.
    pub address: Option<IpAddr>,
    /// Whether the connection comes from a trusted proxy.
    pub by_proxy: bool,
}

impl ClientAddress {
    /// Where the request comes from. Headers from peers that are not trusted are ignored, and so is a list with
    /// a malformed address between its right end and the result.
    #[must_use]
    pub fn from_request(head: &RequestHead<'_>, trusted: &TrustedProxies) -> Self {
        let peer = head.peer.map(|peer| peer.to_canonical());
        let by_proxy = peer.is_some_and(|peer| trusted.include(peer));
        let address = if by_proxy {
            forwarded(head.headers, trusted).or(peer)
        } else {
            peer
        };
        Self { address, by_proxy }
    }

    /// The id that the trusted proxy gave the request.
    #[must_use]
    pub fn request_id(self, headers: &HeaderMap) -> Option<RequestId> {
        RequestId::new(self.trusted_field(headers, &REQUEST_ID)?).ok()
    }

    /// The trace that the trusted proxy made the request a part of, with `span` as the work of this gateway.
    #[must_use]
    pub fn trace(self, headers: &HeaderMap, span: SpanId) -> Option<TraceContext> {
        TraceContext::continued(self.trusted_field(headers, &TRACE_PARENT)?, span)
    }

    /// The value of a field that only a trusted proxy may send, and only once.
    fn trusted_field<'h>(self, headers: &'h HeaderMap, name: &HeaderName) -> Option<&'h str> {
        if !self.by_proxy {
            return None;
        }
        let mut values = headers.get_all(name).iter();
        match (values.next(), values.next()) {
            (Some(value), None) => value.to_str().ok(),
            (Some(_), Some(_)) | (None, _) => None,
        }
    }
}

/// The rightmost address that is not trusted, or the leftmost if all are; `None` when there is none or one is malformed.
fn forwarded(headers: &HeaderMap, trusted: &TrustedProxies) -> Option<IpAddr> {
    let mut farthest = None;
    let mut hops = 0_usize;
    for value in headers.get_all(FORWARDED_FOR).iter().rev() {
        for item in value.to_str().ok()?.rsplit(',').map(str::trim) {
            hops = hops.saturating_add(1);
            if hops > limits::FORWARDED_HOPS_MAX {
                return None;
            }
            // Empty elements of a list mean nothing (RFC 9110 section 5.6.1).
            if item.is_empty() {
                continue;
            }
            let address = address(item)?;
            farthest = Some(address);
            if !trusted.include(address) {
                return farthest;
            }
        }
    }
    farthest
}

/// An address, perhaps with a port, as proxies write it.
fn address(text: &str) -> Option<IpAddr> {
    let bare = text
        .strip_prefix('[')
        .and_then(|rest| rest.strip_suffix(']'))
        .unwrap_or(text);
    let address: Option<IpAddr> = bare.parse().ok();
    let with_port = || {
        text.parse()
            .ok()
            .map(|socket: std::net::SocketAddr| socket.ip())
    };
    address
        .or_else(with_port)
        .map(|address| address.to_canonical())
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;
    use http::Method;

    use super::*;

    fn client(peer: &str, forwarded: &[&str], id: &[&str]) -> (String, Option<String>) {
        let networks = ["10.0.0.0/8", "192.0.2.7", "fd00::/8"];
        let networks = networks.map(|text| TrustedProxies::network(text).unwrap());
        let trusted = TrustedProxies::new(networks.to_vec());
        let mut headers = HeaderMap::new();
        for value in forwarded {
            headers.append(FORWARDED_FOR, HeaderValue::from_str(value).unwrap());
        }
        for value in id {
            headers.append(REQUEST_ID, HeaderValue::from_str(value).unwrap());
        }
        let head = RequestHead {
            method: &Method::GET,
            target: b"/",
            version: http::Version::HTTP_11,
            headers: &headers,
            peer: Some(peer.parse().unwrap()),
            certificate: &[],
        };
        let client = ClientAddress::from_request(&head, &trusted);
        let id = client.request_id(&headers);
        let id = id.map(|id| id.as_str().to_owned());
        (client.address.unwrap().to_string(), id)
    }

    #[test]
    fn only_trusted_proxies_are_believed_and_only_as_far_as_they_go() {
        let far: Vec<String> = (0..100).map(|last| format!("10.0.0.{last}")).collect();
        let far = format!("203.0.113.9, {}", far.join(", "));
        let rows: [(&str, &str, &[&str], &str); 16] = [
            ("no proxy", "203.0.113.1", &[], "203.0.113.1"),
            ("a forger", "203.0.113.1", &["198.51.100.1"], "203.0.113.1"),
            ("one proxy", "10.0.0.1", &["198.51.100.1"], "198.51.100.1"),
            (
                "one address",
                "192.0.2.7",
                &["198.51.100.1"],
                "198.51.100.1",
            ),
            ("its neighbour", "192.0.2.8", &["198.51.100.1"], "192.0.2.8"),
            (
                "a forger behind a proxy",
                "10.0.0.1",
                &["127.0.0.1, 198.51.100.1"],
                "198.51.100.1",
            ),
            (
                "two proxies",
                "10.0.0.1",
                &["198.51.100.1, 10.2.3.4"],
                "198.51.100.1",
            ),
            (
                "two fields",
                "10.0.0.1",
                &["198.51.100.1", "10.2.3.4"],
                "198.51.100.1",
            ),
            (
                "all trusted",
                "10.0.0.1",
                &["10.9.9.9,10.2.3.4"],
                "10.9.9.9",
            ),
            ("no field", "10.0.0.1", &[], "10.0.0.1"),
            ("malformed", "10.0.0.1", &["unknown"], "10.0.0.1"),
            (
                "malformed before the answer",
                "10.0.0.1",
                &["198.51.100.1, x, 10.2.3.4"],
                "10.0.0.1",
            ),
            (
                "malformed beyond the answer",
                "10.0.0.1",
                &["x, 198.51.100.1"],
                "198.51.100.1",
            ),
            (
                "ports",
                "10.0.0.1",
                &["[2001:db8::1]:443, 10.2.3.4:80"],
                "2001:db8::1",
            ),
            (
                "mapped",
                "::ffff:10.0.0.1",
                &["::ffff:198.51.100.1"],
                "198.51.100.1",
            ),
            ("too many hops", "10.0.0.1", &[&far], "10.0.0.1"),
        ];
        for (name, peer, forwarded, expected) in rows {
            assert_eq!(client(peer, forwarded, &[]).0, expected, "{name}");
        }
    }

    #[test]
    fn empty_elements_of_a_list_of_proxies_mean_nothing() {
        let empty = format!("203.0.113.9{}", ",".repeat(100));
        let rows: [(&str, &str, &[&str], &str); 6] = [
            (
                "a comma at the end",
                "10.0.0.1",
                &["198.51.100.1,"],
                "198.51.100.1",
            ),
            (
                "empty elements",
                "10.0.0.1",
                &[", 198.51.100.1 ,\t, 10.2.3.4 , "],
                "198.51.100.1",
            ),
            (
                "an empty field",
                "10.0.0.1",
                &["198.51.100.1", ""],
                "198.51.100.1",
            ),
            ("nothing but commas", "10.0.0.1", &[",,"], "10.0.0.1"),
            ("empty", "10.0.0.1", &[""], "10.0.0.1"),
            ("too many empty elements", "10.0.0.1", &[&empty], "10.0.0.1"),
        ];
        for (name, peer, forwarded, expected) in rows {
            assert_eq!(client(peer, forwarded, &[]).0, expected, "{name}");
        }
    }

    #[test]
    fn request_ids_come_from_trusted_proxies_alone() {
        let long = "x".repeat(129);
        let rows: [(&str, &str, &[&str], Option<&str>); 6] = [
            ("trusted", "10.0.0.1", &["abc-1"], Some("abc-1")),
            ("not trusted", "203.0.113.1", &["abc-1"], None),
            ("none", "10.0.0.1", &[], None),
            ("two", "10.0.0.1", &["a", "b"], None),
            ("too long", "10.0.0.1", &[&long], None),
            ("a space", "10.0.0.1", &["a b"], None),
        ];
        for (name, peer, id, expected) in rows {
            let found = client(peer, &[], id).1;
            assert_eq!(found.as_deref(), expected, "{name}");
        }
    }

    #[test]
    fn traces_are_continued_for_trusted_proxies_alone() {
        let good = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
        let rows: [(&str, &str, &[&str], bool); 5] = [
            ("trusted", "10.0.0.1", &[good], true),
            ("not trusted", "203.0.113.1", &[good], false),
            ("none", "10.0.0.1", &[], false),
            ("two", "10.0.0.1", &[good, good], false),
            ("malformed", "10.0.0.1", &["00-1-2-01"], false),
        ];
        for (name, peer, values, expected) in rows {
            let mut headers = HeaderMap::new();
            for value in values {
                headers.append(TRACE_PARENT, HeaderValue::from_str(value).unwrap());
            }
            let peer: IpAddr = peer.parse().unwrap();
            let client = ClientAddress {
                address: Some(peer),
                by_proxy: TrustedProxies::network("10.0.0.0/8")
                    .unwrap()
                    .contains(&peer),
            };
            let found = client.trace(&headers, SpanId::from_bits(9));
            assert_eq!(found.is_some(), expected, "{name}");
        }
    }

    #[test]
    fn networks_are_addresses_or_prefixes() {
        for (text, expected) in [
            ("10.0.0.0/8", Some("10.0.0.0/8")),
            ("10.1.2.3/8", Some("10.0.0.0/8")),
            ("127.0.0.1", Some("127.0.0.1/32")),
            ("::1", Some("::1/128")),
            ("fd00::/8", Some("fd00::/8")),
            ("10.0.0.0/33", None),
            ("proxy.example.com", None),
            ("", None),
        ] {
            let found = TrustedProxies::network(text).map(|network| network.to_string());
            assert_eq!(found.as_deref(), expected, "{text:?}");
        }
    }
}
