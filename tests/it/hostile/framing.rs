//! Hostile framing: conflicting lengths, transfer codings, chunks and trailers.

use crate::hostile::Fate;
use crate::hostile::Hostile;
use crate::hostile::WHO;
use crate::hostile::hidden;
use crate::hostile::put;
use crate::hostile::row;
use crate::hostile::with;

/// Bodies that are not what they seem, conditions that do not hold, and credentials that no person typed.
pub(crate) fn conditions_and_codings() -> Vec<Hostile> {
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

pub(crate) fn framing() -> Vec<Hostile> {
    use Fate::Refused;
    use Fate::Taken;
    let body = "{\"tags\":[]}";
    let chunks = "b\r\n{\"tags\":[]}\r\n0\r\n\r\n";
    let te = |value: &str| put(&format!("Transfer-Encoding: {value}"), chunks);
    let cl = |value: &str| put(&format!("Content-Length: {value}"), body);
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
        row("identity alone", te("identity"), Refused(400)),
        row("an empty coding first", te(", chunked"), Refused(400)),
        row(
            "identity and a length",
            put("Transfer-Encoding: identity\r\nContent-Length: 11", body),
            Refused(400),
        ),
        row(
            "Connection names Content-Length",
            put("Connection: Content-Length\r\nContent-Length: 11", body),
            Refused(400),
        ),
        row(
            "Connection names Transfer-Encoding",
            te("chunked\r\nConnection: close, transfer-encoding"),
            Refused(400),
        ),
        row(
            "trailers with fields that are none of trailers",
            put(
                "Transfer-Encoding: chunked",
                "b\r\n{\"tags\":[]}\r\n0\r\nContent-Length: 3\r\nTransfer-Encoding: x\r\nHost: evil\r\nIf-Match: \"x\"\r\n\r\n",
            ),
            Taken(202),
        ),
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
pub(crate) fn chunk_grammar() -> Vec<Hostile> {
    let chunked = |body: &str| put("Transfer-Encoding: chunked", body);
    let content = "{\"tags\":[]}";
    let head = |size: &str| chunked(&format!("{size}{content}\r\n0\r\n\r\n"));
    let end = |last: &str| chunked(&format!("b\r\n{content}\r\n{last}"));
    let bytes = |head: &[u8]| {
        let rest = format!("{content}\r\n0\r\n\r\n{}", hidden());
        let framing = put("Transfer-Encoding: chunked", "");
        let framing = framing.strip_suffix(&hidden()).unwrap().as_bytes();
        [framing, head, rest.as_bytes()].concat()
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
