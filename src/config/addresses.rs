//! Where the gateway listens, and what links begin with.
//!
//! Every rule looks at the address that is really used. Where a socket is inherited from the service manager, or an address
//! is given on the command line, that one counts and the key of the file does not.

use std::net::IpAddr;
use std::net::SocketAddr;

use crate::config::tables;
use crate::gate::PublicUrl;
use crate::schema::Key;
use crate::schema::Reader;
use crate::schema::Section;
use crate::schema::Text;

/// An address that is used instead of the one in the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FixedAddress {
    /// The address; its port is not 0 unless a free one is to be taken.
    pub address: SocketAddr,
    /// Where it comes from, for messages: `the inherited API socket` or `--listen`.
    pub origin: &'static str,
}

/// The addresses that are used instead of those in the file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FixedAddresses {
    /// Instead of `server.listen`.
    pub api: Option<FixedAddress>,
    /// Instead of `server.admin`.
    pub admin: Option<FixedAddress>,
}

/// The two addresses that are used, and what to tell the operator about keys that are not.
pub(super) struct Addresses {
    pub(super) listen: SocketAddr,
    pub(super) admin: SocketAddr,
    pub(super) notes: Vec<String>,
}

/// Whether only this machine reaches it; `::ffff:127.0.0.1` is `127.0.0.1`.
pub(super) fn is_loopback(address: SocketAddr) -> bool {
    address.ip().to_canonical().is_loopback()
}

fn is_wildcard(address: SocketAddr) -> bool {
    address.ip().to_canonical().is_unspecified()
}

/// Whether one of them keeps the other from being bound.
fn collide(one: SocketAddr, two: SocketAddr) -> bool {
    let (first, second) = (one.ip().to_canonical(), two.ip().to_canonical());
    // A wildcard of IPv6 takes the port of IPv4 as well.
    let covers = |wide: IpAddr, other: IpAddr| {
        wide.is_unspecified() && (wide.is_ipv6() || wide.is_ipv4() == other.is_ipv4())
    };
    one.port() == two.port()
        && one.port() != 0
        && (first == second || covers(first, second) || covers(second, first))
}

/// Reads `listen` and `admin`; `is_safe` says that passwords are encrypted or that cleartext is known and wanted.
pub(super) fn read(
    reader: &Reader<'_>,
    section: &Section<'_>,
    fixed: &FixedAddresses,
    is_safe: bool,
) -> Option<Addresses> {
    let mut notes = Vec::new();
    let listen = address(
        reader,
        section,
        &tables::server::LISTEN,
        fixed.api,
        &mut notes,
    );
    let admin = address(
        reader,
        section,
        &tables::server::ADMIN,
        fixed.admin,
        &mut notes,
    );
    if let Some(listen) = listen
        && !is_loopback(listen)
        && !is_safe
    {
        let origin = fixed
            .api
            .map(|fixed| format!("{}, ", fixed.origin))
            .unwrap_or_default();
        let what = format!("{origin}{listen} would send passwords in cleartext");
        let hint = "name a [[certificate]], listen on a loopback address behind a TLS proxy, or write [insecure] plaintext = true";
        section.report_key(tables::server::LISTEN.name, what, hint);
    }
    let (listen, admin) = (listen?, admin?);
    let are_bound = fixed.api.is_some() && fixed.admin.is_some();
    if collide(listen, admin) && !are_bound {
        let what = if listen == admin {
            "is the same as listen".to_owned()
        } else {
            format!("{admin} conflicts with listen, {listen}")
        };
        section.report_key(tables::server::ADMIN.name, what, "choose another port");
    }
    Some(Addresses {
        listen,
        admin,
        notes,
    })
}

fn address(
    reader: &Reader<'_>,
    section: &Section<'_>,
    key: &Key<Text>,
    fixed: Option<FixedAddress>,
    notes: &mut Vec<String>,
) -> Option<SocketAddr> {
    let found = section.read_text(key)?;
    let address: Option<SocketAddr> = found.text.parse().ok();
    if address.is_none() {
        let what = format!("{:?} is not an address and port", found.text);
        reader.report_text(&found, what, "write \"127.0.0.1:8080\" or \"[::1]:8080\"");
    }
    let Some(FixedAddress {
        address: used,
        origin,
    }) = fixed
    else {
        return address;
    };
    if section.has(key.name) && address.is_some_and(|address| address != used) {
        let name = key.name;
        notes.push(format!(
            "server.{name}: {:?} is not used; {origin} is {used}",
            found.text
        ));
    }
    Some(used)
}

/// Reads `public_url`, or makes it from the address that is used.
pub(super) fn public_url(
    reader: &Reader<'_>,
    section: &Section<'_>,
    listen: Option<SocketAddr>,
    is_encrypted: bool,
) -> Option<PublicUrl> {
    if let Some(found) = section.read_text(&tables::server::PUBLIC_URL) {
        let url = PublicUrl::new(&found.text);
        if url.is_none() {
            let what = format!("{:?} is not a valid base URL", found.text);
            let hint = "write http:// or https://, a host, and optionally a port and a path; no user, query or fragment";
            reader.report_text(&found, what, hint);
        }
        return url;
    }
    let listen = listen?;
    let scheme = if is_encrypted { "https" } else { "http" };
    let url = PublicUrl::new(&format!("{scheme}://{listen}"));
    // The number of an interface means nothing on another machine.
    let has_scope = matches!(listen, SocketAddr::V6(address) if address.scope_id() != 0);
    if url.is_none() || is_wildcard(listen) || has_scope {
        let what = format!("is required, because clients cannot use {listen} in links");
        let hint = "write public_url = \"https://the-name-clients-use\"";
        section.report_key(tables::server::PUBLIC_URL.name, what, hint);
        return None;
    }
    url
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_collide_when_both_cannot_be_bound() {
        let rows = [
            ("127.0.0.1:80", "127.0.0.1:80", true),
            ("127.0.0.1:80", "127.0.0.2:80", false),
            ("127.0.0.1:80", "127.0.0.1:81", false),
            ("127.0.0.1:0", "127.0.0.1:0", false),
            ("0.0.0.0:80", "127.0.0.1:80", true),
            ("127.0.0.1:80", "[::]:80", true),
            ("0.0.0.0:80", "[::1]:80", false),
            ("[::ffff:127.0.0.1]:80", "127.0.0.1:80", true),
        ];
        for (one, two, expected) in rows {
            let (first, second) = (one.parse().unwrap(), two.parse().unwrap());
            assert_eq!(collide(first, second), expected, "{one} and {two}");
            assert_eq!(collide(second, first), expected, "{two} and {one}");
        }
    }
}
