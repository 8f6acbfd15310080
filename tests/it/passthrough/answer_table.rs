//! What becomes of each answer of an upstream: one table, for clients of HTTP/1.0, HTTP/1.1 and HTTP/2, and for both ways that
//! answers take.

use crate::client::Client;
use crate::harness::Gateway;
use crate::harness::SIM;
use crate::http2::Connection;
use crate::http2::Secure;
use crate::http2::request;
use crate::passthrough::WAYS;
use crate::passthrough::http;
use crate::passthrough::rest;
use crate::passthrough::route;
use crate::passthrough::send;
use crate::passthrough::upstream::Upstream;

/// What a client must see.
#[derive(Clone, Copy, Debug)]
enum Seen {
    /// 502 of the gateway.
    Refused,
    /// This status and body.
    Whole(u16, &'static str),
    /// A part of this body and an end that shows it, or 502.
    Broken(&'static str),
}

struct Row {
    name: &'static str,
    answer: &'static str,
    seen: Seen,
    /// Whether the connection stays open after the answer: only where the gateway can know that the answer is over.
    stays: bool,
}

const fn row(name: &'static str, answer: &'static str, seen: Seen) -> Row {
    Row {
        name,
        answer,
        seen,
        stays: false,
    }
}

const fn open(name: &'static str, answer: &'static str, seen: Seen) -> Row {
    Row {
        stays: true,
        ..row(name, answer, seen)
    }
}

use Seen::Broken;
use Seen::Refused;
use Seen::Whole;

const FRAMING: &[Row] = &[
    open(
        "a length",
        "HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabc",
        Whole(200, "abc"),
    ),
    row(
        "an open end",
        "HTTP/1.1 200 OK\r\n\r\nabc",
        Whole(200, "abc"),
    ),
    open(
        "chunks",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3;a=b\r\nabc\r\n0\r\nX-T: 1\r\n\r\n",
        Whole(200, "abc"),
    ),
    open(
        "a length twice",
        "HTTP/1.1 200 OK\r\nContent-Length: 3\r\nContent-Length: 3\r\n\r\nabc",
        Refused,
    ),
    open(
        "two lengths",
        "HTTP/1.1 200 OK\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\nabcd",
        Refused,
    ),
    open(
        "a list of lengths",
        "HTTP/1.1 200 OK\r\nContent-Length: 3, 3\r\n\r\nabc",
        Refused,
    ),
    open(
        "a length that is a word",
        "HTTP/1.1 200 OK\r\nContent-Length: abc\r\n\r\nabc",
        Refused,
    ),
    open(
        "a length with a sign",
        "HTTP/1.1 200 OK\r\nContent-Length: +3\r\n\r\nabc",
        Refused,
    ),
    open(
        "an empty length",
        "HTTP/1.1 200 OK\r\nContent-Length:\r\n\r\nabc",
        Refused,
    ),
    row(
        "HTTP/1.0, kept alive",
        "HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 3\r\n\r\nabc",
        Whole(200, "abc"),
    ),
    row(
        "HTTP/1.0 in chunks",
        "HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
        Refused,
    ),
    open(
        "an empty coding",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: , chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
        Refused,
    ),
    open(
        "two codings",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
        Refused,
    ),
    open(
        "the coding that is none",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: identity\r\nContent-Length: 3\r\n\r\nabc",
        Refused,
    ),
    open(
        "no content with a length",
        "HTTP/1.1 204 No\r\nContent-Length: 0\r\n\r\n",
        Whole(204, ""),
    ),
    open(
        "no content in chunks",
        "HTTP/1.1 204 No\r\nTransfer-Encoding: chunked\r\n\r\n",
        Whole(204, ""),
    ),
    open(
        "no content with content",
        "HTTP/1.1 204 No\r\nContent-Length: 6\r\n\r\npoison",
        Whole(204, ""),
    ),
    open(
        "not modified with a length",
        "HTTP/1.1 304 No\r\nContent-Length: 7\r\n\r\n",
        Whole(304, ""),
    ),
    open(
        "two answers in one packet",
        "HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabcHTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\npoison",
        Whole(200, "abc"),
    ),
    open(
        "a longer body than announced",
        "HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabcdef",
        Whole(200, "abc"),
    ),
    row(
        "a shorter body",
        "HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nabc",
        Broken("abc"),
    ),
    row(
        "no body at all",
        "HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n",
        Broken(""),
    ),
];

const CHUNKS: &[Row] = &[
    open(
        "a coding in capitals",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: CHUNKED\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
        Whole(200, "abc"),
    ),
    row(
        "chunks cut off",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n",
        Broken("abc"),
    ),
    row(
        "a chunk cut off",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n9\r\nabc",
        Broken("abc"),
    ),
    open(
        "no size",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\nzz\r\n\r\n",
        Broken("abc"),
    ),
    open(
        "a size with a sign",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n+3\r\nabc\r\n0\r\n\r\n",
        Broken(""),
    ),
    open(
        "a size beyond all numbers",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nfffffffffffffffff\r\nabc\r\n0\r\n\r\n",
        Broken(""),
    ),
    open(
        "a chunk longer than its size",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nabc\r\n0\r\n\r\n",
        Broken("ab"),
    ),
    open(
        "line feeds alone",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\nabc\n0\n\n",
        Broken(""),
    ),
];

const HEADS: &[Row] = &[
    open(
        "an unasked upgrade",
        "HTTP/1.1 101 Up\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n",
        Refused,
    ),
    open(
        "a status above all",
        "HTTP/1.1 999 OK\r\nContent-Length: 0\r\n\r\n",
        Refused,
    ),
    open(
        "a status below all",
        "HTTP/1.1 099 OK\r\nContent-Length: 0\r\n\r\n",
        Refused,
    ),
    open(
        "another version",
        "HTTP/2.0 200 OK\r\nContent-Length: 0\r\n\r\n",
        Refused,
    ),
    row(
        "a head that ends early",
        "HTTP/1.1 200 OK\r\nContent-Length: 3\r\n",
        Refused,
    ),
    row("a line that ends early", "HTTP/1.1 2", Refused),
    row("nothing", "", Refused),
    open(
        "NUL in a value",
        "HTTP/1.1 200 OK\r\nX-A: a\0b\r\nContent-Length: 0\r\n\r\n",
        Refused,
    ),
    open(
        "a carriage return in a value",
        "HTTP/1.1 200 OK\r\nX-A: a\rb\r\nContent-Length: 0\r\n\r\n",
        Refused,
    ),
    // RFC 9112 section 5.2 lets a proxy replace a fold by spaces.
    open(
        "a folded line",
        "HTTP/1.1 200 OK\r\nX-A: a\r\n  b\r\nContent-Length: 3\r\n\r\nabc",
        Whole(200, "abc"),
    ),
    open(
        "two types",
        "HTTP/1.1 200 OK\r\nContent-Type: a/b\r\nContent-Type: c/d\r\nContent-Length: 0\r\n\r\n",
        Refused,
    ),
    open(
        "two dates",
        "HTTP/1.1 200 OK\r\nDate: Thu, 01 Jan 1970 00:00:00 GMT\r\nDate: Thu, 01 Jan 1970 00:00:01 GMT\r\nContent-Length: 0\r\n\r\n",
        Refused,
    ),
    open(
        "one date twice",
        "HTTP/1.1 200 OK\r\nDate: Thu, 01 Jan 1970 00:00:00 GMT\r\nDate: Thu, 01 Jan 1970 00:00:00 GMT\r\nContent-Length: 0\r\n\r\n",
        Whole(200, ""),
    ),
    open(
        "interim answers",
        "HTTP/1.1 100 Go\r\n\r\nHTTP/1.1 102 Wait\r\nContent-Length: 5\r\n\r\nHTTP/1.1 103 Hint\r\nLink: x\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabc",
        Whole(200, "abc"),
    ),
    open(
        "an interim answer before a bad one",
        "HTTP/1.1 103 Hint\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n",
        Refused,
    ),
    row(
        "an interim answer alone",
        "HTTP/1.1 103 Hint\r\n\r\n",
        Refused,
    ),
];

/// Status, head and body of an answer, and whether it came to its end.
#[derive(Debug)]
struct Found {
    status: u16,
    head: String,
    body: String,
    is_whole: bool,
}

fn path(row: &Row) -> String {
    let answer: String = row
        .answer
        .bytes()
        .map(|byte| format!("%{byte:02X}"))
        .collect();
    let name = if row.stays { "raw-open" } else { "raw" };
    format!("/{name}?{answer}")
}

/// What a client of HTTP/1 reads until the connection ends.
fn ask_http1(gateway: &Gateway, row: &Row, version: &str, fields: &str) -> Found {
    let request = format!(
        "GET {} {version}\r\nHost: x\r\nConnection: close\r\n{fields}",
        path(row)
    );
    let all = rest(&mut send(gateway.api, &request));
    let mut left = &*all;
    loop {
        let (head, body) = left.split_once("\r\n\r\n").expect("a head");
        let status: u16 = head.get(9..12).unwrap().parse().unwrap();
        if status < 200 {
            assert_eq!(version, "HTTP/1.1", "{}: interim: {all}", row.name);
            assert!(!head.contains("ontent-"), "{}: no framing: {all}", row.name);
            left = body;
            continue;
        }
        let codings = head.lines().filter_map(|line| line.split_once(": "));
        let mut codings = codings.filter(|field| field.0.eq_ignore_ascii_case("transfer-encoding"));
        assert!(
            codings.all(|field| field.1 == "chunked"),
            "as all write it: {head}"
        );
        let head = head.to_ascii_lowercase();
        let (body, is_whole) = if head.contains("transfer-encoding: chunked") {
            assert_eq!(version, "HTTP/1.1", "{}: chunks: {all}", row.name);
            unchunk(body)
        } else {
            let length = head
                .lines()
                .find_map(|line| line.strip_prefix("content-length: "));
            let length: Option<usize> = length.map(|length| length.parse().unwrap());
            (
                body.to_owned(),
                length.is_none_or(|length| length == body.len()),
            )
        };
        return Found {
            status,
            head,
            body,
            is_whole,
        };
    }
}

/// The content of chunks, and whether their end came.
fn unchunk(mut text: &str) -> (String, bool) {
    let mut body = String::new();
    while let Some((size, behind)) = text.split_once("\r\n") {
        let size = usize::from_str_radix(size, 16).expect("a size");
        if size == 0 {
            return (body, behind == "\r\n");
        }
        let end = size.min(behind.len());
        body.push_str(behind.get(..end).unwrap());
        text = behind.get(end + 2..).unwrap_or_default();
    }
    (body, false)
}

/// The ways of [`WAYS`] over HTTP/2: a field, and a body.
const WAYS_OF_HTTP2: [(&str, Option<&[u8]>); 3] = [
    ("content-length: 0", None),
    ("content-length: 3", Some(b"abc")),
    ("te: trailers", None),
];

fn ask_http2(
    client: &Connection,
    row: &Row,
    (field, body): (&'static str, Option<&[u8]>),
) -> Found {
    let (name, value) = field.split_once(": ").unwrap();
    let head = request("GET", &path(row)).header(name, value);
    let response = client.begin(head, body);
    match client.finish(response) {
        Ok(answer) => Found {
            status: answer.status,
            head: format!("{:?}", answer.headers).to_ascii_lowercase(),
            body: String::from_utf8(answer.body).unwrap(),
            is_whole: true,
        },
        Err(error) => {
            assert!(error.is_reset(), "{}: the stream ends: {error}", row.name);
            Found {
                status: 200,
                head: String::new(),
                body: String::new(),
                is_whole: false,
            }
        }
    }
}

/// Why the answer is not what it must be. `hides_end`: HTTP/1.0 cannot say that a body without a length was broken off.
fn fault(row: &Row, found: &Found, hides_end: bool) -> Option<&'static str> {
    match row.seen {
        Refused if found.status != 502 || !found.body.contains("BadGateway") => Some("refused"),
        Whole(status, body) if (found.status, &*found.body) != (status, body) => Some("passed on"),
        Whole(..) if !found.is_whole => Some("whole"),
        Broken(_) if found.status == 502 => None,
        Broken(body) if !body.starts_with(&found.body) => Some("a part"),
        Broken(_) if found.is_whole && !hides_end => Some("broken off"),
        Refused | Whole(..) | Broken(_) => None,
    }
}

#[apply(test)]
fn each_answer_becomes_the_same_for_clients_of_every_version() {
    let upstream = Upstream::start();
    let keys = "authentication = \"none\"\neject_failures = 1000\nread_timeout = \"1m\"";
    let settings = format!("{SIM}{}", route("all", "/", &[http(&upstream)], keys));
    let gateway = Gateway::start(&settings);
    let secure = Secure::start(&settings);
    let client = secure.connect();
    // It goes on while all others are answered.
    let slow = client.begin(request("GET", "/parts"), None);
    let mut wrong = Vec::new();
    for row in FRAMING.iter().chain(CHUNKS).chain(HEADS) {
        for fields in WAYS {
            for version in ["HTTP/1.1", "HTTP/1.0"] {
                let found = ask_http1(&gateway, row, version, fields);
                let hides_end = version == "HTTP/1.0";
                let fault = fault(row, &found, hides_end);
                wrong.extend(
                    fault.map(|fault| {
                        format!("{} {version} {fields:?}: {fault}: {found:?}", row.name)
                    }),
                );
            }
        }
        for way in WAYS_OF_HTTP2 {
            let found = ask_http2(&client, row, way);
            let fault = fault(row, &found, false);
            let name = format!("{} HTTP/2 {way:?}", row.name);
            wrong.extend(fault.map(|fault| format!("{name}: {fault}: {found:?}")));
        }
        // What followed on the connection is never read as another answer.
        let next = Client::bare(gateway.api).get("/x");
        assert_eq!(
            (next.status, &*next.body),
            (200, &b"ok"[..]),
            "after {}",
            row.name
        );
        let next = client.send(request("GET", "/x"), None);
        assert_eq!(
            (next.status, &*next.body),
            (200, &b"ok"[..]),
            "after {}",
            row.name
        );
    }
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
    upstream
        .record
        .parts
        .store(4, std::sync::atomic::Ordering::SeqCst);
    let slow = client.finish(slow).unwrap();
    assert_eq!(slow.body, b"abcdefgh", "others go on");
}

#[apply(test)]
fn the_date_of_the_upstream_stays_over_http_1_and_a_refusal_has_its_own() {
    const THEN: &str = "Thu, 01 Jan 1970 00:00:00 GMT";
    let upstream = Upstream::start();
    let keys = "authentication = \"none\"\neject_failures = 1000";
    let settings = format!("{SIM}{}", route("all", "/", &[http(&upstream)], keys));
    let gateway = Gateway::start(&settings);
    let dated = |date: &'static str, framing: &str| {
        let answer = format!("HTTP/1.1 200 OK\r\n{date}Age: 5\r\n{framing}");
        let answer: &'static str = answer.leak();
        row("dated", answer, Whole(200, "abc"))
    };
    let whole = "Content-Length: 3\r\n\r\nabc";
    let hints = "HTTP/1.1 103 Hint\r\nLink: x\r\n\r\nHTTP/1.1 200 OK\r\nDate: Thu, 01 Jan 1970 00:00:00 GMT\r\nContent-Length: 3\r\n\r\nabc";
    for fields in WAYS {
        let found = ask_http1(
            &gateway,
            &row("hints", hints, Whole(200, "abc")),
            "HTTP/1.1",
            fields,
        );
        let date = format!("date: {}", THEN.to_ascii_lowercase());
        assert!(
            found.head.contains(&date),
            "after hints {fields:?}: {found:?}"
        );
    }
    // the field, the rest of the answer, whether its date is the client's
    let rows = [
        ("Date: Thu, 01 Jan 1970 00:00:00 GMT\r\n", whole, true),
        ("dAtE:   Thu, 01 Jan 1970 00:00:00 GMT \r\n", whole, true),
        ("Date: Thu, 01 Jan 1970 00:00:00 GMT\r\n", "\r\nabc", true),
        ("Date: 1 January 1970\r\n", whole, false),
        ("", whole, false),
        // Given up after the head was judged.
        (
            "Date: Thu, 01 Jan 1970 00:00:00 GMT\r\n",
            "Transfer-Encoding: chunked\r\n\r\nzz",
            false,
        ),
    ];
    for (date, framing, is_kept) in rows {
        for fields in WAYS {
            for version in ["HTTP/1.1", "HTTP/1.0"] {
                let found = ask_http1(&gateway, &dated(date, framing), version, fields);
                let dates: Vec<&str> = found
                    .head
                    .lines()
                    .filter_map(|line| line.strip_prefix("date: "))
                    .collect();
                assert_eq!(
                    dates.len(),
                    1,
                    "{date:?} {version} {fields:?}: one: {found:?}"
                );
                // A broken answer may have been passed on in part.
                let may_be_kept = is_kept || (found.status == 200 && framing.ends_with("zz"));
                assert_eq!(
                    dates[0] == THEN.to_ascii_lowercase(),
                    may_be_kept,
                    "{date:?} {version} {fields:?}: {found:?}"
                );
            }
        }
    }
}
