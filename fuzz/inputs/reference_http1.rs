//! HTTP/1.1 requests as RFC 9112 defines them, read without the gateway's own code and without a library that it uses.
//!
//! Where the RFC leaves a choice to the recipient, this reader takes the lenient one: a gateway may be stricter, never laxer.

/// The request heads at the beginning of some bytes, up to the first that is malformed or incomplete.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Requests {
    /// The methods of the well-formed heads. All but the last have whole, well-formed bodies too.
    pub(crate) methods: Vec<String>,
}

/// How long a body is.
enum Framing {
    Length(usize),
    Chunked,
}

/// Reads requests one after the other.
pub(crate) fn read(bytes: &[u8]) -> Requests {
    let mut requests = Requests::default();
    let mut rest = bytes;
    while let Some((method, framing, body)) = read_head(rest) {
        // After these the bytes may belong to another protocol.
        let is_last = method == "CONNECT" || method == "PRI";
        requests.methods.push(method);
        let behind = match framing {
            Framing::Length(length) => body.get(length..),
            Framing::Chunked => skip_chunks(body),
        };
        let Some(behind) = behind.filter(|_| !is_last) else {
            break;
        };
        rest = behind;
    }
    requests
}

/// A line without its end, and what is behind it. Section 2.2: a lone LF may end lines of a head.
fn read_line(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let end = bytes.iter().position(|byte| *byte == b'\n')?;
    let line = &bytes[..end];
    Some((line.strip_suffix(b"\r").unwrap_or(line), &bytes[end + 1..]))
}

fn read_head(bytes: &[u8]) -> Option<(String, Framing, &[u8])> {
    let (mut line, mut rest) = read_line(bytes)?;
    // Section 2.2: empty lines before a request are ignored.
    while line.is_empty() {
        (line, rest) = read_line(rest)?;
    }
    let (method, is_old) = read_request_line(line)?;
    let (mut hosts, mut lengths, mut codings) = (0, Vec::new(), Vec::new());
    loop {
        let (line, behind) = read_line(rest)?;
        rest = behind;
        if line.is_empty() {
            break;
        }
        let (name, value) = read_field(line)?;
        match name.as_str() {
            "host" => hosts += 1,
            "content-length" => lengths.extend(value.split(',').map(|part| part.trim().to_owned())),
            "transfer-encoding" => codings.push(value.to_ascii_lowercase()),
            _ => {}
        }
    }
    // RFC 9112 section 3.2.
    if hosts > 1 || (hosts == 0 && !is_old) {
        return None;
    }
    let framing = match (codings.as_slice(), lengths.as_slice()) {
        ([], []) => Framing::Length(0),
        // Section 6.3: the same length several times may count as one.
        ([], [length, others @ ..]) if others.iter().all(|other| other == length) => {
            let is_number = !length.is_empty() && length.bytes().all(|byte| byte.is_ascii_digit());
            Framing::Length(length.parse().ok().filter(|_| is_number)?)
        }
        ([coding], []) if coding == "chunked" && !is_old => Framing::Chunked,
        _ => return None,
    };
    Some((method, framing, rest))
}

/// The method, and whether the version is 1.0.
fn read_request_line(line: &[u8]) -> Option<(String, bool)> {
    let text = str::from_utf8(line).ok()?;
    let mut parts = text.split(' ');
    let (method, target, version) = (parts.next()?, parts.next()?, parts.next()?);
    let is_visible = target.bytes().all(|byte| byte.is_ascii_graphic());
    let is_whole = parts.next().is_none() && is_token(method) && !target.is_empty() && is_visible;
    match version {
        "HTTP/1.1" if is_whole => Some((method.to_owned(), false)),
        "HTTP/1.0" if is_whole => Some((method.to_owned(), true)),
        _ => None,
    }
}

/// The name in small letters, and the value. Section 5.1: no space before the colon; section 5.2: no folding.
fn read_field(line: &[u8]) -> Option<(String, String)> {
    let colon = line.iter().position(|byte| *byte == b':')?;
    let name = str::from_utf8(&line[..colon]).ok()?;
    let value = &line[colon + 1..];
    let is_clean = !value.iter().any(|byte| [0, b'\r', b'\n'].contains(byte));
    if !is_token(name) || !is_clean {
        return None;
    }
    let value = String::from_utf8_lossy(value)
        .trim_matches([' ', '\t'])
        .to_owned();
    Some((name.to_ascii_lowercase(), value))
}

/// Section 7.1, to the letter: what is behind the body; `None` when it is malformed or incomplete.
fn skip_chunks(mut bytes: &[u8]) -> Option<&[u8]> {
    loop {
        let (line, behind) = read_strict_line(bytes)?;
        let digits = line
            .iter()
            .take_while(|byte| byte.is_ascii_hexdigit())
            .count();
        let extension = &line[digits..];
        let is_extension = extension.is_empty() || [b';', b' ', b'\t'].contains(&extension[0]);
        let size = usize::from_str_radix(str::from_utf8(&line[..digits]).ok()?, 16).ok()?;
        if !is_extension {
            return None;
        }
        if size == 0 {
            return skip_trailers(behind);
        }
        let end = size.checked_add(2)?;
        bytes = behind
            .get(size..end)
            .filter(|end| *end == b"\r\n")
            .and_then(|_| behind.get(end..))?;
    }
}

fn skip_trailers(mut bytes: &[u8]) -> Option<&[u8]> {
    loop {
        let (line, behind) = read_strict_line(bytes)?;
        if line.is_empty() {
            return Some(behind);
        }
        read_field(line)?;
        bytes = behind;
    }
}

/// A line that ends with CRLF and has no control characters in it but tabs.
fn read_strict_line(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let end = bytes.windows(2).position(|pair| pair == b"\r\n")?;
    let line = &bytes[..end];
    let is_clean = line
        .iter()
        .all(|byte| *byte == b'\t' || !byte.is_ascii_control());
    is_clean.then(|| (line, &bytes[end + 2..]))
}

/// RFC 9110 section 5.6.2.
fn is_token(text: &str) -> bool {
    let is_part = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
    !text.is_empty() && text.bytes().all(is_part)
}
