//! A reader of the answers of upstreams, written apart from the gateway: which are good, and what of them a client may see.
//!
//! RFC 9112 to the letter, but for what it lets a proxy repair: lines may end with LF alone, white space before a colon is
//! removed, folded lines are joined, and `Transfer-Encoding` wins over `Content-Length`. Extensions of chunks and trailers are
//! dropped unread, and a chunk size without digits is 0: Pingora's client does not look closer.

/// Fields that a client never sees of an upstream.
const REMOVED: [&str; 14] = [
    "connection",
    "keep-alive",
    "proxy-authenticate",
    "proxy-authentication-info",
    "proxy-connection",
    "server",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "x-powered-by",
    // Set by the gateway.
    "content-length",
    "via",
    "x-request-id",
];
/// Fields with one value at most.
const SINGLE: [&str; 9] = [
    "age",
    "content-range",
    "content-type",
    "date",
    "etag",
    "expires",
    "last-modified",
    "location",
    "retry-after",
];
/// More fields than the gateway reads.
const FIELDS_MAX: usize = 256;

/// How a body ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// As it was announced.
    Whole,
    /// Before its end, or with a fault.
    Broken,
}

/// A good answer.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    /// What is passed on, without what the gateway sets. Names in small letters.
    pub(crate) fields: Vec<(String, Vec<u8>)>,
    /// The announced length, if there is one and it may be said.
    pub(crate) length: Option<usize>,
    pub(crate) body: Vec<u8>,
    pub(crate) end: End,
    /// Whether the body goes on until the connection ends.
    pub(crate) is_open: bool,
}

/// What an upstream sent.
#[derive(Debug, Default)]
pub(crate) struct Reading {
    /// Statuses of interim answers before it.
    pub(crate) interim: Vec<u16>,
    /// `None` for an answer that is not one.
    pub(crate) answer: Option<Answer>,
    /// Whether the head came to its end.
    pub(crate) is_head_whole: bool,
}

enum Framing {
    Nothing,
    Length(usize),
    Chunked,
    UntilClose,
}

struct Head<'a> {
    status: u16,
    is_old: bool,
    fields: Vec<(String, Vec<u8>)>,
    rest: &'a [u8],
}

/// Why there is no head.
enum NoHead {
    Cut,
    Malformed,
}

/// Reads what an upstream sends for one request.
pub(crate) fn read(mut bytes: &[u8], is_head: bool) -> Reading {
    let mut reading = Reading::default();
    loop {
        let head = match read_head(bytes) {
            Ok(head) => head,
            Err(NoHead::Cut) => return reading,
            Err(NoHead::Malformed) => {
                reading.is_head_whole = has_end_of_head(bytes);
                return reading;
            }
        };
        let framing = framing(&head, is_head);
        if !(100..600).contains(&head.status) || head.status == 101 || is_doubled(&head.fields) {
            reading.is_head_whole = true;
            return reading;
        }
        let Some(framing) = framing else {
            reading.is_head_whole = true;
            return reading;
        };
        if head.status < 200 {
            reading.interim.push(head.status);
            bytes = head.rest;
            continue;
        }
        reading.is_head_whole = true;
        reading.answer = Some(answer(&head, &framing));
        return reading;
    }
}

/// Whether bytes that are no head would still be one to a reader who waits for an empty line.
fn has_end_of_head(bytes: &[u8]) -> bool {
    let ends = |end: &[u8]| bytes.windows(end.len()).any(|window| window == end);
    ends(b"\r\n\r\n") || ends(b"\n\n")
}

fn answer(head: &Head<'_>, framing: &Framing) -> Answer {
    let named: Vec<String> = values(&head.fields, "connection")
        .flat_map(|value| value.split(|byte| *byte == b','))
        .map(|name| String::from_utf8_lossy(name).trim().to_ascii_lowercase())
        .collect();
    let mut fields: Vec<(String, Vec<u8>)> = Vec::new();
    for (name, value) in &head.fields {
        let is_repeated = SINGLE.contains(&&**name) && values(&fields, name).next().is_some();
        if !REMOVED.contains(&&**name) && !named.contains(name) && !is_repeated {
            fields.push((name.clone(), value.clone()));
        }
    }
    let (body, end) = match framing {
        Framing::Nothing => (Vec::new(), End::Whole),
        Framing::UntilClose => (head.rest.to_vec(), End::Whole),
        Framing::Length(length) => match head.rest.get(..*length) {
            Some(body) => (body.to_vec(), End::Whole),
            None => (head.rest.to_vec(), End::Broken),
        },
        Framing::Chunked => read_chunks(head.rest),
    };
    let is_bodiless = head.status == 204 || head.status == 304;
    let has_coding = values(&head.fields, "transfer-encoding").next().is_some();
    let length = values(&head.fields, "content-length").next();
    let length = length.filter(|_| !is_bodiless && !has_coding);
    Answer {
        status: head.status,
        fields,
        length: length.and_then(number),
        body,
        end,
        is_open: matches!(framing, Framing::UntilClose),
    }
}

fn values<'a>(
    fields: &'a [(String, Vec<u8>)],
    name: &'a str,
) -> impl Iterator<Item = &'a [u8]> + 'a {
    let all = fields.iter().filter(move |field| field.0 == name);
    all.map(|field| &*field.1)
}

fn number(value: &[u8]) -> Option<usize> {
    let is_number = !value.is_empty() && value.len() <= 18 && value.iter().all(u8::is_ascii_digit);
    str::from_utf8(value)
        .ok()?
        .parse()
        .ok()
        .filter(|_| is_number)
}

/// Whether a field with one value has two.
fn is_doubled(fields: &[(String, Vec<u8>)]) -> bool {
    SINGLE.iter().any(|name| {
        let mut all = values(fields, name);
        let first = all.next();
        all.any(|value| Some(value) != first)
    })
}

/// How the body is framed; `None` if two readers could disagree.
fn framing(head: &Head<'_>, is_head: bool) -> Option<Framing> {
    let codings: Vec<&[u8]> = values(&head.fields, "transfer-encoding").collect();
    let lengths: Vec<&[u8]> = values(&head.fields, "content-length").collect();
    let framing = match (&*codings, &*lengths) {
        ([], []) => Framing::UntilClose,
        ([], [length]) => Framing::Length(number(length)?),
        ([coding], _) if coding.eq_ignore_ascii_case(b"chunked") && !head.is_old => {
            Framing::Chunked
        }
        _ => return None,
    };
    let is_bodiless = is_head || head.status < 200 || head.status == 204 || head.status == 304;
    Some(if is_bodiless {
        Framing::Nothing
    } else {
        framing
    })
}

/// A line without its end, and what is behind it.
fn read_line(bytes: &[u8]) -> Result<(&[u8], &[u8]), NoHead> {
    let end = bytes
        .iter()
        .position(|byte| *byte == b'\n')
        .ok_or(NoHead::Cut)?;
    let line = &bytes[..end];
    Ok((line.strip_suffix(b"\r").unwrap_or(line), &bytes[end + 1..]))
}

fn read_head(bytes: &[u8]) -> Result<Head<'_>, NoHead> {
    let (mut line, mut rest) = read_line(bytes)?;
    while line.is_empty() {
        (line, rest) = read_line(rest)?;
    }
    let (status, is_old) = read_status_line(line).ok_or(NoHead::Malformed)?;
    let mut fields: Vec<(String, Vec<u8>)> = Vec::new();
    loop {
        let (line, behind) = read_line(rest)?;
        rest = behind;
        if line.is_empty() {
            break;
        }
        let is_text = |byte: &u8| *byte == b'\t' || !byte.is_ascii_control();
        if !line.iter().all(is_text) {
            return Err(NoHead::Malformed);
        }
        if line.starts_with(b" ") || line.starts_with(b"\t") {
            // Section 5.2: a folded line is joined with a space.
            let (_, value) = fields.last_mut().ok_or(NoHead::Malformed)?;
            if !value.is_empty() && !line.trim_ascii().is_empty() {
                value.push(b' ');
            }
            value.extend_from_slice(line.trim_ascii());
            continue;
        }
        fields.push(read_field(line).ok_or(NoHead::Malformed)?);
        if fields.len() > FIELDS_MAX {
            return Err(NoHead::Malformed);
        }
    }
    Ok(Head {
        status,
        is_old,
        fields,
        rest,
    })
}

/// The status, and whether the version is 1.0.
fn read_status_line(line: &[u8]) -> Option<(u16, bool)> {
    let is_old = line.starts_with(b"HTTP/1.0 ");
    let rest = line
        .strip_prefix(b"HTTP/1.1 ")
        .or_else(|| line.strip_prefix(b"HTTP/1.0 "))?;
    let (digits, reason) = rest.split_at_checked(3)?;
    let is_number = digits.iter().all(u8::is_ascii_digit);
    let is_text = |byte: &u8| *byte == b'\t' || !byte.is_ascii_control();
    let is_reason = reason.is_empty() || (reason.starts_with(b" ") && reason.iter().all(is_text));
    let status = str::from_utf8(digits).ok()?.parse().ok()?;
    (is_number && is_reason).then_some((status, is_old))
}

fn read_field(line: &[u8]) -> Option<(String, Vec<u8>)> {
    let colon = line.iter().position(|byte| *byte == b':')?;
    let name = line[..colon].trim_ascii_end();
    let is_part = |byte: &u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(byte);
    if name.is_empty() || !name.iter().all(is_part) {
        return None;
    }
    let name = String::from_utf8_lossy(name).to_ascii_lowercase();
    Some((name, line[colon + 1..].trim_ascii().to_vec()))
}

/// Section 7.1.
fn read_chunks(mut bytes: &[u8]) -> (Vec<u8>, End) {
    let mut body = Vec::new();
    while let Some((size, rest)) = read_size(bytes) {
        if size == 0 {
            let end = if has_end(rest) {
                End::Whole
            } else {
                End::Broken
            };
            return (body, end);
        }
        let content = rest.get(..size);
        body.extend_from_slice(content.unwrap_or(rest));
        let behind = rest.get(size..).and_then(|rest| rest.strip_prefix(b"\r\n"));
        let Some(behind) = behind else { break };
        bytes = behind;
    }
    (body, End::Broken)
}

/// The size of a chunk, and what is behind its line.
fn read_size(bytes: &[u8]) -> Option<(usize, &[u8])> {
    let end = bytes.windows(2).position(|pair| pair == b"\r\n")?;
    let (line, rest) = (&bytes[..end], &bytes[end + 2..]);
    let digits = line
        .iter()
        .take_while(|byte| byte.is_ascii_hexdigit())
        .count();
    let mut extension = line[digits..]
        .iter()
        .skip_while(|byte| b" \t".contains(byte));
    let is_extension = extension.next().is_none_or(|byte| *byte == b';');
    let text = str::from_utf8(&line[..digits]).ok()?;
    let size = usize::from_str_radix(if text.is_empty() { "0" } else { text }, 16).ok()?;
    let is_line = !line.contains(&b'\r');
    (digits <= 16 && is_extension && is_line).then_some((size, rest))
}

/// Whether trailers and the empty line after them follow. Lines end with CRLF, whatever they hold.
fn has_end(mut bytes: &[u8]) -> bool {
    while let Some(end) = bytes.iter().position(|byte| b"\r\n".contains(byte)) {
        let Some(rest) = bytes[end..].strip_prefix(b"\r\n") else {
            return false;
        };
        if end == 0 {
            return true;
        }
        bytes = rest;
    }
    false
}
