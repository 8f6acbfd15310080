//! Requests that are broken, ambiguous or meant to be read in two ways, byte for byte.

pub(crate) mod framing;
pub(crate) mod heads;

use crate::hostile::framing::chunk_grammar;
use crate::hostile::framing::conditions_and_codings;
use crate::hostile::framing::framing;
use crate::hostile::heads::heads;
use crate::hostile::heads::hosts;
use crate::hostile::heads::targets;
use crate::hostile::heads::versions_and_methods;

/// What must become of one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    /// It is refused with this status before anything of it is acted on.
    Refused(u16),
    /// It is one well-formed request after all, answered with this status.
    Taken(u16),
}

/// One request, with whatever its sender hides behind it.
#[derive(Clone, Debug)]
pub(crate) struct Hostile {
    pub(crate) name: &'static str,
    pub(crate) bytes: Vec<u8>,
    pub(crate) fate: Fate,
}

pub(crate) const WHO: &str = "Host: gateway.example\r\nAuthorization: Basic YWxpY2U6c2VjcmV0\r\nX-Cloud-Client-Specification-Version: 0.1\r\n";

/// The path of the hidden request: a peer that sees it was desynchronised.
const HIDDEN: &str = "/vms/1/backups/hidden";

pub(crate) fn hidden() -> String {
    format!("DELETE {HIDDEN} HTTP/1.1\r\n{WHO}\r\n")
}

pub(crate) fn row(name: &'static str, bytes: impl Into<Vec<u8>>, fate: Fate) -> Hostile {
    Hostile {
        name,
        bytes: bytes.into(),
        fate,
    }
}

/// A GET of a backup with one more line in its head.
pub(crate) fn with(line: &str) -> String {
    format!("GET /vms/1/backups/456 HTTP/1.1\r\n{WHO}{line}\r\n\r\n")
}

/// A PUT whose framing is given, with a body and a hidden request behind it.
pub(crate) fn put(framing: &str, body: &str) -> String {
    format!(
        "PUT /vms/1/backups/456 HTTP/1.1\r\n{WHO}Content-Type: application/json\r\n{framing}\r\n\r\n{body}{}",
        hidden()
    )
}

pub(crate) fn line(request_line: &str) -> String {
    format!("{request_line}\r\n{WHO}\r\n")
}

/// Every row.
pub(crate) fn all() -> Vec<Hostile> {
    let mut rows = framing();
    rows.extend(chunk_grammar());
    rows.extend(heads());
    rows.extend(hosts());
    rows.extend(targets());
    rows.extend(versions_and_methods());
    rows.extend(conditions_and_codings());
    rows
}
