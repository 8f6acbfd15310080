//! Requests that are broken, ambiguous or meant to be read in two ways, byte for byte.

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

const WHO: &str = "Host: gateway.example\r\nAuthorization: Basic YWxpY2U6c2VjcmV0\r\nX-Cloud-Client-Specification-Version: 0.1\r\n";
/// The path of the hidden request: whoever sees it was desynchronised.
pub(crate) const HIDDEN: &str = "/vms/1/backups/hidden";

fn hidden() -> String {
    format!("DELETE {HIDDEN} HTTP/1.1\r\n{WHO}\r\n")
}

fn row(name: &'static str, bytes: impl Into<Vec<u8>>, fate: Fate) -> Hostile {
    Hostile {
        name,
        bytes: bytes.into(),
        fate,
    }
}

/// A GET of a backup with one more line in its head.
fn with(line: &str) -> String {
    format!("GET /vms/1/backups/456 HTTP/1.1\r\n{WHO}{line}\r\n\r\n")
}

/// A PUT whose framing is given, with a body and a hidden request behind it.
fn put(framing: &str, body: &str) -> String {
    format!(
        "PUT /vms/1/backups/456 HTTP/1.1\r\n{WHO}Content-Type: application/json\r\n{framing}\r\n\r\n{body}{}",
        hidden()
    )
}

fn line(request_line: &str) -> String {
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

/// Bodies that are not what they seem, conditions that do not hold, and credentials that no person typed.
fn conditions_and_codings() -> Vec<Hostile> {
    use Fate::Refused;
    use Fate::Taken;
    let body = "{\"tags\":[]}";
    let coded = |line: &str| put(&format!("{line}\r\nContent-Length: 11"), body);
    let as_user = |pair: &str| {
        let who = WHO.replace("YWxpY2U6c2VjcmV0", pair);
        format!("GET /vms/1/backups/456 HTTP/1.1\r\n{who}\r\n")
    };
    let java = "Accept: text/html, image/gif, image/jpeg, *; q=.2, */*; q=.2";
    vec![
        row("gzip", coded("Content-Encoding: gzip"), Refused(415)),
        row(
            "gzip beside identity",
            coded("Content-Encoding: identity\r\nContent-Encoding: gzip"),
            Refused(415),
        ),
        row("identity", coded("Content-Encoding: identity"), Taken(202)),
        row(
            "a part",
            coded("Content-Range: bytes 0-10/20"),
            Refused(400),
        ),
        row("a part of what", coded("Content-Range: x"), Refused(400)),
        row(
            "a PUT for another tag",
            coded("If-Match: \"x\""),
            Refused(412),
        ),
        row(
            "a GET for another tag",
            with("If-Match: \"x\""),
            Refused(412),
        ),
        row(
            "a GET for a weak tag",
            with("If-Match: W/\"x\""),
            Refused(412),
        ),
        row("a GET for any tag", with("If-Match: *"), Taken(200)),
        row("Java before 19", with(java), Taken(200)),
        row(
            "Java before 19, strict",
            with(&format!("{java}\r\nPrefer: handling=strict")),
            Refused(400),
        ),
        // alice:secret, and then a line end; NUL; DEL; U+009B.
        row(
            "a line end in a password",
            as_user("YWxpY2U6c2VjcmV0Cg=="),
            Refused(401),
        ),
        row(
            "NUL in a password",
            as_user("YWxpY2U6c2VjcmV0AA=="),
            Refused(401),
        ),
        row(
            "DEL in a password",
            as_user("YWxpY2U6c2VjcmV0fw=="),
            Refused(401),
        ),
        row(
            "a C1 control in a password",
            as_user("YWxpY2U6c2VjcmV0wps="),
            Refused(401),
        ),
        row(
            "NUL in a name",
            as_user("YWxpAGNlOnNlY3JldA=="),
            Refused(401),
        ),
    ]
}

fn framing() -> Vec<Hostile> {
    use Fate::Refused;
    use Fate::Taken;
    let body = "{\"tags\":[]}";
    let chunks = "b\r\n{\"tags\":[]}\r\n0\r\n\r\n";
    let te = |it: &str| put(&format!("Transfer-Encoding: {it}"), chunks);
    let cl = |it: &str| put(&format!("Content-Length: {it}"), body);
    vec![
        row(
            "length and chunks",
            put("Content-Length: 11\r\nTransfer-Encoding: chunked", chunks),
            Refused(400),
        ),
        row(
            "chunks and length",
            put("Transfer-Encoding: chunked\r\nContent-Length: 3", chunks),
            Refused(400),
        ),
        row("unknown coding", te("xchunked"), Refused(400)),
        row("chunked first", te("chunked, identity"), Refused(400)),
        row("identity first", te("identity, chunked"), Refused(400)),
        row("chunked twice", te("chunked, chunked"), Refused(400)),
        row(
            "two lines of coding",
            te("chunked\r\nTransfer-Encoding: identity"),
            Refused(400),
        ),
        row(
            "coding after a vertical tab",
            te("\u{b}chunked"),
            Refused(400),
        ),
        row("coding in quotes", te("\"chunked\""), Refused(400)),
        row(
            "coding with a space before the colon",
            put("Transfer-Encoding : chunked", chunks),
            Refused(400),
        ),
        row(
            "coding folded",
            put("Transfer-Encoding:\r\n chunked", chunks),
            Refused(400),
        ),
        row(
            "the same length twice",
            put("Content-Length: 11\r\nContent-Length: 11", body),
            Refused(400),
        ),
        row(
            "two lengths",
            put("Content-Length: 11\r\nContent-Length: 4", body),
            Refused(400),
        ),
        row("a list of lengths", cl("11, 11"), Refused(400)),
        row("a signed length", cl("+11"), Refused(400)),
        row("a negative length", cl("-1"), Refused(400)),
        row("an empty length", cl(""), Refused(400)),
        row("a hexadecimal length", cl("0xb"), Refused(400)),
        row(
            "a length beyond all numbers",
            cl("99999999999999999999999"),
            Refused(400),
        ),
        row("a length beyond the limit", cl("70000"), Refused(413)),
        row("no length at all", put("X-Nothing: 1", body), Refused(411)),
        row("chunks", te("chunked"), Taken(202)),
        row(
            "chunk extensions",
            put(
                "Transfer-Encoding: chunked",
                "b;a=b\r\n{\"tags\":[]}\r\n0\r\n\r\n",
            ),
            Taken(202),
        ),
        row(
            "trailers",
            put(
                "Transfer-Encoding: chunked",
                "b\r\n{\"tags\":[]}\r\n0\r\nX-Cloud-Client-Specification-Version: 9\r\n\r\n",
            ),
            Taken(202),
        ),
        row(
            "a chunk size that is none",
            put(
                "Transfer-Encoding: chunked",
                "zz\r\n{\"tags\":[]}\r\n0\r\n\r\n",
            ),
            Refused(400),
        ),
        row(
            "a negative chunk size",
            put(
                "Transfer-Encoding: chunked",
                "-1\r\n{\"tags\":[]}\r\n0\r\n\r\n",
            ),
            Refused(400),
        ),
        row(
            "a chunk size beyond all numbers",
            put(
                "Transfer-Encoding: chunked",
                "fffffffffffffffff\r\n{}\r\n0\r\n\r\n",
            ),
            Refused(400),
        ),
        row(
            "a chunk longer than its size",
            put(
                "Transfer-Encoding: chunked",
                "2\r\n{\"tags\":[]}\r\n0\r\n\r\n",
            ),
            Refused(400),
        ),
        row(
            "chunks ended by line feeds alone",
            put("Transfer-Encoding: chunked", "b\n{\"tags\":[]}\n0\n\n"),
            Refused(400),
        ),
    ]
}

/// Chunks and trailers that one reader ends elsewhere than another.
fn chunk_grammar() -> Vec<Hostile> {
    let chunked = |body: &str| put("Transfer-Encoding: chunked", body);
    let content = "{\"tags\":[]}";
    let head = |it: &str| chunked(&format!("{it}{content}\r\n0\r\n\r\n"));
    let end = |it: &str| chunked(&format!("b\r\n{content}\r\n{it}"));
    let bytes = |it: &[u8]| {
        let rest = format!("{content}\r\n0\r\n\r\n{}", hidden());
        let framing = put("Transfer-Encoding: chunked", "");
        let framing = framing.strip_suffix(&hidden()).unwrap().as_bytes();
        [framing, it, rest.as_bytes()].concat()
    };
    let refused = |name, bytes: Vec<u8>| row(name, bytes, Fate::Refused(400));
    let taken = |name, bytes: Vec<u8>| row(name, bytes, Fate::Taken(202));
    vec![
        refused("an extension that ends at a line feed", head("b;\n").into()),
        refused(
            "a chunk hidden behind a line feed",
            chunked("2;\nxx\r\n39\r\n0\r\n\r\n").into(),
        ),
        refused("an extension without a name", head("b;\r\n").into()),
        refused("NUL in an extension", bytes(b"b;a\0\r\n")),
        refused("0x80 in an extension", bytes(b"b;\x80\r\n")),
        refused("no token in an extension", head("b;a/b\r\n").into()),
        refused("an extension without its value", head("b;a=\r\n").into()),
        refused("an open quotation", head("b;a=\"b\r\n").into()),
        refused(
            "a carriage return in an extension",
            head("b;a\rb\r\n").into(),
        ),
        refused("a space behind the size", head("b \r\n").into()),
        refused("a space before the size", head(" b\r\n").into()),
        refused("NUL behind the size", bytes(b"b\0\r\n")),
        refused("a prefix of the size", head("0xb\r\n").into()),
        refused("an empty size", end("\r\n\r\n").into()),
        refused("an empty first size", chunked("\r\n\r\n").into()),
        refused("an extension in place of a size", end(";a\r\n\r\n").into()),
        refused(
            "no line end behind the content",
            chunked("b\r\n{\"tags\":[]}0\r\n\r\n").into(),
        ),
        refused(
            "a line feed behind the content",
            chunked("b\r\n{\"tags\":[]}\n0\r\n\r\n").into(),
        ),
        refused("a trailer without a colon", end("0\r\nX-A\r\n\r\n").into()),
        refused("a trailer without a name", end("0\r\n: a\r\n\r\n").into()),
        refused(
            "a trailer with a space before the colon",
            end("0\r\nX-A : a\r\n\r\n").into(),
        ),
        refused("a folded trailer", end("0\r\nX-A: a\r\n b\r\n\r\n").into()),
        refused(
            "a trailer that ends at a line feed",
            end("0\r\nX-A: a\n\r\n").into(),
        ),
        refused(
            "a carriage return in a trailer",
            end("0\r\nX-A: a\rb\r\n\r\n").into(),
        ),
        refused("an end at a line feed", end("0\r\n\n").into()),
        taken(
            "an extension with space around it",
            head("b ; a = \"b;\\\"\" \t;c\r\n").into(),
        ),
        taken(
            "an extension of the last chunk",
            end("000;a\r\n\r\n").into(),
        ),
        taken("zeros before the size", head("0000b\r\n").into()),
    ]
}

fn heads() -> Vec<Hostile> {
    use Fate::Refused;
    use Fate::Taken;
    let many = |count: usize| {
        (0..count)
            .map(|it| format!("X-{it}: 1"))
            .collect::<Vec<_>>()
            .join("\r\n")
    };
    vec![
        row("a folded line", with("X-A: 1\r\n 2"), Refused(400)),
        row("NUL in a value", with("X-A: 1\u{0}2"), Refused(400)),
        row(
            "a bare carriage return in a value",
            with("X-A: 1\r2"),
            Refused(400),
        ),
        row(
            "a control character in a value",
            with("X-A: 1\u{1}2"),
            Refused(400),
        ),
        row("a space in a name", with("X A: 1"), Refused(400)),
        row("a space before the colon", with("X-A : 1"), Refused(400)),
        row("no colon", with("X-A"), Refused(400)),
        row("no name", with(": 1"), Refused(400)),
        row(
            "a name of another alphabet",
            with("X-\u{e9}: 1"),
            Refused(400),
        ),
        row(
            "a leading space",
            format!("GET /vms/1/backups/456 HTTP/1.1\r\n X-A: 1\r\n{WHO}\r\n"),
            Refused(400),
        ),
        row(
            "an underscore in a name",
            with("X_Forwarded_For: 10.0.0.1"),
            Refused(400),
        ),
        row(
            "another alphabet in a value",
            with("X-A: \u{e9}"),
            Taken(200),
        ),
        row(
            "line feeds alone",
            with("X-A: 1").replace("\r\n", "\n"),
            Taken(200),
        ),
        row(
            "empty lines before",
            format!("\r\n\r\n{}", with("X-A: 1")),
            Taken(200),
        ),
        row(
            "one long field",
            with(&format!("X-A: {}", "a".repeat(40_000))),
            Refused(431),
        ),
        row(
            "a megabyte",
            with(&format!("X-A: {}", "a".repeat(1_000_000))),
            Refused(431),
        ),
        row("too many fields", with(&many(120)), Refused(431)),
        row("far too many fields", with(&many(400)), Refused(400)),
        row(
            "Connection names Host",
            with("Connection: Host"),
            Refused(400),
        ),
        row(
            "two credentials",
            with("Authorization: Basic eDp5"),
            Refused(401),
        ),
        row(
            "an upgrade",
            format!(
                "{}{}",
                with("Connection: Upgrade\r\nUpgrade: websocket"),
                hidden()
            ),
            Taken(200),
        ),
        row(
            "an upgrade to HTTP/2",
            format!(
                "{}{}",
                with(
                    "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__"
                ),
                hidden()
            ),
            Taken(200),
        ),
        row("an unknown expectation", with("Expect: 200-ok"), Taken(200)),
        row(
            "a body nobody asked for",
            format!("{}{}", with("Content-Length: 4"), "abcd"),
            Taken(200),
        ),
        row(
            "a request in a body",
            format!(
                "{}{}",
                with(&format!("Content-Length: {}", hidden().len())),
                hidden()
            ),
            Taken(200),
        ),
    ]
}

fn hosts() -> Vec<Hostile> {
    use Fate::Refused;
    use Fate::Taken;
    let rest = WHO.split_once("\r\n").unwrap().1;
    let host = |it: &str| format!("GET /vms/1/backups/456 HTTP/1.1\r\n{it}{rest}\r\n");
    let absolute = |it: &str| format!("GET {it}/vms/1/backups/456 HTTP/1.1\r\n{WHO}\r\n");
    vec![
        row("no Host", host(""), Refused(400)),
        row("an empty Host", host("Host: \r\n"), Refused(400)),
        row("Host twice", host("Host: a\r\nHost: a\r\n"), Refused(400)),
        row("two Hosts", host("Host: a\r\nHost: b\r\n"), Refused(400)),
        row("a Host with a path", host("Host: a/../b\r\n"), Refused(400)),
        row(
            "a Host of rubbish",
            host("Host: a b/../<x>\r\n"),
            Refused(400),
        ),
        row("a Host with a user", host("Host: me@a\r\n"), Refused(400)),
        row(
            "a Host with a bad port",
            host("Host: a:b\r\n"),
            Refused(400),
        ),
        row("a list of Hosts", host("Host: a, b\r\n"), Refused(400)),
        row(
            "absolute form",
            absolute("http://gateway.example"),
            Taken(200),
        ),
        row(
            "absolute form of another host",
            absolute("http://other.example"),
            Refused(400),
        ),
        row(
            "absolute form with a user",
            absolute("http://me@gateway.example"),
            Refused(400),
        ),
        row(
            "absolute form of another scheme",
            absolute("ftp://gateway.example"),
            Refused(400),
        ),
        row(
            "absolute form without a host",
            absolute("http://"),
            Refused(400),
        ),
        row(
            "scheme-relative form",
            absolute("//gateway.example"),
            Refused(404),
        ),
    ]
}

fn targets() -> Vec<Hostile> {
    use Fate::Refused;
    let get = |it: &str| line(&format!("GET {it} HTTP/1.1"));
    vec![
        row(
            "an encoded slash",
            get("/vms/1%2Fbackups/456"),
            Refused(404),
        ),
        row("dot segments", get("/vms/1/x/../backups/456"), Refused(404)),
        row(
            "encoded dot segments",
            get("/vms/1/%2e%2e/1/backups/456"),
            Refused(404),
        ),
        row("an empty segment", get("/vms/1//backups/456"), Refused(404)),
        row(
            "two slashes first",
            get("//vms/1/backups/456"),
            Refused(404),
        ),
        row("a trailing slash", get("/vms/1/backups/456/"), Refused(404)),
        row("a backslash", get("/vms\\1\\backups\\456"), Refused(400)),
        row("NUL, encoded", get("/vms/1/backups/45%006"), Refused(404)),
        row(
            "a line end, encoded",
            get("/vms/1/backups/456%0d%0aX-A:%201"),
            Refused(404),
        ),
        row("half an escape", get("/vms/1/backups/45%3"), Refused(400)),
        row(
            "an escape of nothing",
            get("/vms/1/backups/45%zz"),
            Refused(400),
        ),
        row("no UTF-8, encoded", get("/vms/1/backups/%ff"), Refused(400)),
        row(
            "another alphabet",
            get("/vms/1/backups/\u{e9}"),
            Refused(400),
        ),
        row("a space", get("/vms/1/backups/456 x"), Refused(400)),
        row(
            "two spaces before",
            get(" /vms/1/backups/456"),
            Refused(400),
        ),
        row("two spaces after", get("/vms/1/backups/456 "), Refused(400)),
        row(
            "a version in the target",
            get("/vms/1/backups/456 HTTP/1.1"),
            Refused(400),
        ),
        row("a tab", get("/vms/1/backups/456\tx"), Refused(400)),
        row(
            "a control character",
            get("/vms/1/backups/456\u{1}"),
            Refused(400),
        ),
        row("NUL", get("/vms/1/backups/456\u{0}"), Refused(400)),
        row("delete", get("/vms/1/backups/456\u{7f}"), Refused(400)),
        row(
            "a carriage return",
            get("/vms/1/backups/456\rx"),
            Refused(400),
        ),
        row(
            "a space, encoded",
            get("/vms/1/backups/456%20x"),
            Refused(404),
        ),
        row("an angle bracket", get("/vms/1/backups/<456"), Refused(400)),
        row(
            "a quotation mark",
            get("/vms/1/backups/\"456"),
            Refused(400),
        ),
        row("a fragment", get("/vms/1/backups/456#x"), Refused(400)),
        row(
            "an empty fragment",
            get("/vms/1/backups/456#"),
            Refused(400),
        ),
        row(
            "a fragment of the absolute form",
            get("http://gateway.example/vms/1/backups/456#x"),
            Refused(400),
        ),
        row("a brace", get("/vms/1/backups/{456}"), Refused(400)),
        row("a bar", get("/vms/1/backups/456|x"), Refused(400)),
        row("a circumflex", get("/vms/1/backups/456^x"), Refused(400)),
        row("a grave accent", get("/vms/1/backups/`456"), Refused(400)),
        row("a bracket", get("/vms/1/backups/[456]"), Refused(400)),
        row(
            "a quotation mark in the query",
            get("/vms/1/backups/456?a=\"b\""),
            Refused(400),
        ),
        row(
            "the authority form for a GET",
            get("gateway.example:443"),
            Refused(400),
        ),
        row("no slash", get("vms/1/backups/456"), Refused(400)),
        row("an asterisk", get("*"), Refused(400)),
        row("nothing", "GET  HTTP/1.1\r\n\r\n", Refused(400)),
        row(
            "nine thousand bytes",
            get(&format!("/{}", "a".repeat(9000))),
            Refused(414),
        ),
        row(
            "seventy thousand bytes",
            get(&format!("/{}", "a".repeat(70_000))),
            Refused(400),
        ),
    ]
}

fn versions_and_methods() -> Vec<Hostile> {
    use Fate::Refused;
    use Fate::Taken;
    let path = "/vms/1/backups/456";
    let rest = WHO.split_once("\r\n").unwrap().1;
    vec![
        row("HTTP/0.9", format!("GET {path}\r\n"), Refused(400)),
        row(
            "HTTP/1.2",
            line(&format!("GET {path} HTTP/1.2")),
            Refused(400),
        ),
        row(
            "HTTP/2.0 in words",
            line(&format!("GET {path} HTTP/2.0")),
            Refused(400),
        ),
        row(
            "the preface of HTTP/2",
            "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
            Refused(400),
        ),
        row(
            "something after the version",
            line(&format!("GET {path} HTTP/1.1 x")),
            Refused(400),
        ),
        row(
            "a handshake of TLS",
            b"\x16\x03\x01\x00\xa5\x01\x00\x00\xa1\x03\x03\r\n\r\n".as_slice(),
            Refused(400),
        ),
        row(
            "TRACE",
            line(&format!("TRACE {path} HTTP/1.1")),
            Refused(405),
        ),
        row(
            "CONNECT",
            line("CONNECT gateway.example:443 HTTP/1.1"),
            Refused(405),
        ),
        row(
            "an invented method",
            line(&format!("FO-O! {path} HTTP/1.1")),
            Refused(405),
        ),
        row(
            "a method in small letters",
            line(&format!("get {path} HTTP/1.1")),
            Refused(405),
        ),
        row(
            "a method with a colon",
            line(&format!("GET: {path} HTTP/1.1")),
            Refused(400),
        ),
        row(
            "HTTP/1.0 without Host",
            format!("GET {path} HTTP/1.0\r\n{rest}\r\n"),
            Taken(200),
        ),
        row(
            "HTTP/1.0 with chunks",
            put(
                "Transfer-Encoding: chunked",
                "b\r\n{\"tags\":[]}\r\n0\r\n\r\n",
            )
            .replace("HTTP/1.1\r\n", "HTTP/1.0\r\n"),
            Refused(400),
        ),
        row(
            "HTTP/1.0 kept alive",
            format!(
                "{}{}",
                with("Connection: keep-alive").replace("HTTP/1.1", "HTTP/1.0"),
                hidden()
            ),
            Taken(200),
        ),
        row(
            "one behind the other",
            format!("{}{}", with("X-A: 1"), hidden()),
            Taken(200),
        ),
    ]
}
