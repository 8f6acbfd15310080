//! A reader of HTTP/2 that keeps RFC 9113 and RFC 7541 to the letter, written apart from the gateway and the library it uses.
//!
//! What it calls a request must be one by every reader. It is lenient where nothing is read in two ways: white space around values
//! is trimmed, trailers are not read, a fragment in a path does not count, settings need not come first, a malformed list of fields
//! may be cut off, and a change of the size of the table may come after fields.

use std::collections::BTreeMap;

use loona_hpack::Decoder;
use loona_hpack::decoder::DecoderError;
use loona_hpack::decoder::IntegerDecodingError;
use loona_hpack::decoder::StringDecodingError;

/// What a client sends first (section 3.4).
pub(crate) const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// The largest frame without other settings of the gateway (section 4.2).
const PAYLOAD_BYTES_MAX: u32 = 16_384;

pub(crate) const DATA: u8 = 0;
pub(crate) const HEADERS: u8 = 1;
const PRIORITY: u8 = 2;
const RST_STREAM: u8 = 3;
pub(crate) const SETTINGS: u8 = 4;
const PUSH_PROMISE: u8 = 5;
pub(crate) const PING: u8 = 6;
pub(crate) const GOAWAY: u8 = 7;
const WINDOW_UPDATE: u8 = 8;
pub(crate) const CONTINUATION: u8 = 9;

pub(crate) const ACK: u8 = 1;
pub(crate) const END_STREAM: u8 = 1;
pub(crate) const END_HEADERS: u8 = 4;
pub(crate) const PADDED: u8 = 8;
const PRIORITIZED: u8 = 32;

/// A header field as it was sent.
type Field = (Vec<u8>, Vec<u8>);

/// One frame.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Frame<'a> {
    pub(crate) kind: u8,
    pub(crate) flags: u8,
    pub(crate) stream: u32,
    pub(crate) payload: &'a [u8],
}

/// The first frame, and what is behind it.
pub(crate) fn split_frame(bytes: &[u8]) -> Option<(Frame<'_>, &[u8])> {
    let (head, rest) = bytes.split_first_chunk::<9>()?;
    let [a, b, c, kind, flags, stream @ ..] = *head;
    let length = u32::from_be_bytes([0, a, b, c]);
    let (payload, rest) = rest.split_at_checked(length.try_into().ok()?)?;
    let stream = u32::from_be_bytes(stream) & 0x7fff_ffff;
    let frame = Frame {
        kind,
        flags,
        stream,
        payload,
    };
    Some((frame, rest))
}

/// A stream that a client opened.
#[derive(Debug, Default)]
pub(crate) struct Stream {
    /// The method of a well-formed head; `None` when it is malformed.
    pub(crate) method: Option<String>,
    /// Whether the whole request came, as long as it was announced.
    pub(crate) is_whole: bool,
    /// Whether an answer may take its time.
    pub(crate) may_wait: bool,
    /// Whether the client gave it up, or broke a rule after the head.
    pub(crate) is_over: bool,
    announced: Option<usize>,
    received: usize,
    has_ended: bool,
}

/// All that was sent on one connection.
#[derive(Debug, Default)]
pub(crate) struct Reading {
    pub(crate) streams: BTreeMap<u32, Stream>,
    /// Whether a rule was broken that ends the connection: nothing after that counts.
    pub(crate) is_broken: bool,
    /// Whether the bytes end within a frame or a list of fields.
    pub(crate) is_cut: bool,
    /// Whether the client said that it leaves, or allowed so little that answers may not come.
    pub(crate) is_restrained: bool,
    last: u32,
}

/// A rule of the connection is broken.
#[derive(Debug)]
struct Broken;

/// Reads all that a client sends.
pub(crate) fn read(bytes: &[u8]) -> Reading {
    let mut reading = Reading::default();
    let Some(rest) = bytes.strip_prefix(PREFACE) else {
        reading.is_broken = true;
        return reading;
    };
    let mut decoder = Decoder::new();
    decoder.set_max_allowed_table_size(4096);
    let outcome = reading.read_frames(rest, &mut decoder);
    reading.is_broken = outcome.is_err();
    reading
}

impl Reading {
    fn read_frames(&mut self, mut rest: &[u8], decoder: &mut Decoder<'_>) -> Result<(), Broken> {
        while !rest.is_empty() {
            let announced = rest.first_chunk::<3>();
            let length = announced.map(|[a, b, c]| u32::from_be_bytes([0, *a, *b, *c]));
            if length.is_some_and(|length| length > PAYLOAD_BYTES_MAX) {
                return Err(Broken);
            }
            let Some((frame, behind)) = split_frame(rest) else {
                self.is_cut = true;
                return Ok(());
            };
            rest = behind;
            if frame.kind == HEADERS {
                let mut block = block_of(frame)?.to_vec();
                let mut has_ended = frame.flags & END_HEADERS != 0;
                let mut fields = None;
                // Section 6.10: nothing comes between the parts of a list of fields.
                while !has_ended {
                    let Some((next, behind)) = split_frame(rest) else {
                        self.is_cut = true;
                        return Ok(());
                    };
                    if next.kind != CONTINUATION || next.stream != frame.stream {
                        let (found, is_cut) = decode_begun(decoder, &block)?;
                        // The library resets the stream at the first malformed field, and waits for no other part.
                        let is_malformed = if is_cut {
                            is_spoiled(&found)
                        } else {
                            read_request(&found).method.is_none()
                        };
                        if !is_malformed {
                            return Err(Broken);
                        }
                        fields = Some(found);
                        break;
                    }
                    block.extend_from_slice(next.payload);
                    has_ended = next.flags & END_HEADERS != 0;
                    rest = behind;
                }
                let fields = match fields {
                    Some(fields) => fields,
                    None => decode(decoder, &block)?,
                };
                self.read_fields(frame, &fields)?;
            } else if frame.kind == PUSH_PROMISE && frame.flags & END_HEADERS != 0 {
                // No client may send one. The library resets one with malformed fields before it looks at who sent it.
                let fields = decode(decoder, unpadded(frame, 4)?)?;
                if read_request(&fields).method.is_some() {
                    return Err(Broken);
                }
            } else {
                self.read_other(frame)?;
            }
        }
        Ok(())
    }

    /// Section 5.1.1: streams of clients have odd numbers that grow.
    fn read_fields(&mut self, frame: Frame<'_>, fields: &[Field]) -> Result<(), Broken> {
        let ends = frame.flags & END_STREAM != 0;
        if let Some(stream) = self.streams.get_mut(&frame.stream) {
            if stream.has_ended {
                // Never another request: the stream or the connection is in error (section 5.1).
                stream.give_up();
                return Ok(());
            }
            // Trailers, which must end the stream.
            stream.is_over |= !ends;
            stream.end(ends);
            return Ok(());
        }
        let mut stream = read_request(fields);
        if frame.stream.is_multiple_of(2) || frame.stream <= self.last {
            if stream.method.is_some() {
                return Err(Broken);
            }
            // The library resets a stream with malformed fields before it looks at its number, and ignores what comes for it then.
            if !frame.stream.is_multiple_of(2) {
                stream.end(true);
                self.streams.insert(frame.stream, stream);
            }
            return Ok(());
        }
        self.last = frame.stream;
        stream.end(ends);
        self.streams.insert(frame.stream, stream);
        Ok(())
    }

    fn read_other(&mut self, frame: Frame<'_>) -> Result<(), Broken> {
        let length = frame.payload.len();
        let is_idle = frame.stream > self.last || frame.stream.is_multiple_of(2);
        match frame.kind {
            DATA => {
                let data = unpadded(frame, 0)?;
                let Some(stream) = self.streams.get_mut(&frame.stream) else {
                    // Section 6.1: on a stream that was skipped, and is closed, only that stream is in error.
                    return if is_idle { Err(Broken) } else { Ok(()) };
                };
                if stream.has_ended {
                    stream.give_up();
                    return Ok(());
                }
                stream.received += data.len();
                stream.end(frame.flags & END_STREAM != 0);
                Ok(())
            }
            // A stream error, if its size is wrong (section 6.3).
            PRIORITY if frame.stream == 0 => Err(Broken),
            PRIORITY => {
                if length != 5
                    && let Some(stream) = self.streams.get_mut(&frame.stream)
                {
                    stream.give_up();
                }
                Ok(())
            }
            RST_STREAM if length != 4 || is_idle => Err(Broken),
            RST_STREAM => {
                if let Some(stream) = self.streams.get_mut(&frame.stream) {
                    stream.give_up();
                }
                Ok(())
            }
            SETTINGS if frame.stream != 0 || !length.is_multiple_of(6) => Err(Broken),
            SETTINGS if frame.flags & ACK != 0 && length > 0 => Err(Broken),
            SETTINGS => self.read_settings(frame.payload),
            PING if frame.stream != 0 || length != 8 => Err(Broken),
            GOAWAY if frame.stream != 0 || length < 8 => Err(Broken),
            GOAWAY => {
                self.is_restrained = true;
                Ok(())
            }
            WINDOW_UPDATE if length != 4 => Err(Broken),
            WINDOW_UPDATE => {
                // Windows are not followed: too wide ones end a stream or the connection.
                self.is_restrained = true;
                match frame.stream {
                    0 if frame.payload == [0; 4] => Err(Broken),
                    0 => Ok(()),
                    _ if is_idle => Err(Broken),
                    _ => Ok(()),
                }
            }
            PUSH_PROMISE | CONTINUATION => Err(Broken),
            // Section 4.1: unknown frames are ignored.
            _ => Ok(()),
        }
    }

    /// Section 6.5.2.
    fn read_settings(&mut self, payload: &[u8]) -> Result<(), Broken> {
        for setting in payload.chunks_exact(6) {
            let id = u16::from_be_bytes(setting[..2].try_into().unwrap());
            let value = u32::from_be_bytes(setting[2..].try_into().unwrap());
            let is_allowed = match id {
                2 => value <= 1,
                4 => value <= 0x7fff_ffff,
                5 => (16_384..=0x00ff_ffff).contains(&value),
                _ => true,
            };
            if !is_allowed {
                return Err(Broken);
            }
            // Small windows and lists hold answers back.
            self.is_restrained |= id == 4 || id == 6 || id == 3;
        }
        Ok(())
    }
}

impl Stream {
    fn end(&mut self, ends: bool) {
        let is_too_long = self.announced.is_some_and(|length| self.received > length);
        let is_too_short = ends && self.announced.is_some_and(|length| self.received < length);
        if is_too_long || is_too_short {
            self.give_up();
        }
        self.has_ended |= ends;
        self.is_whole |= ends && !self.is_over;
    }

    /// Nothing that comes for this stream later counts.
    fn give_up(&mut self) {
        self.is_over = true;
    }
}

/// The content without padding (section 6.1).
fn unpadded(frame: Frame<'_>, fixed: usize) -> Result<&[u8], Broken> {
    if frame.stream == 0 {
        return Err(Broken);
    }
    let is_padded = frame.flags & PADDED != 0;
    let (padding, rest) = match frame.payload.split_first() {
        Some((padding, rest)) if is_padded => (usize::from(*padding), rest),
        None if is_padded => return Err(Broken),
        _ => (0, frame.payload),
    };
    let end = rest.len().checked_sub(padding).ok_or(Broken)?;
    rest.get(fixed..end).ok_or(Broken)
}

/// A part of a list of fields, without padding and priority (section 6.2).
fn block_of(frame: Frame<'_>) -> Result<&[u8], Broken> {
    let priority = if frame.flags & PRIORITIZED == 0 { 0 } else { 5 };
    unpadded(frame, priority)
}

/// The fields of a list that has ended.
fn decode(decoder: &mut Decoder<'_>, block: &[u8]) -> Result<Vec<Field>, Broken> {
    match decode_begun(decoder, block)? {
        (fields, false) => Ok(fields),
        (_, true) => Err(Broken),
    }
}

/// The fields of a list that may go on, and whether it ends within one. The library takes a change of the size of the table (RFC 7541
/// section 4.2) at the beginning of each frame that goes on with a list, where it changes no field.
fn decode_begun(decoder: &mut Decoder<'_>, block: &[u8]) -> Result<(Vec<Field>, bool), Broken> {
    let mut fields = Vec::new();
    let decoded = decoder.decode_with_cb(block, |name, value| {
        fields.push((name.into_owned(), value.into_owned()));
    });
    match decoded {
        Ok(()) | Err(DecoderError::SizeUpdateAtEnd) => Ok((fields, false)),
        Err(
            DecoderError::IntegerDecodingError(IntegerDecodingError::NotEnoughOctets)
            | DecoderError::StringDecodingError(StringDecodingError::NotEnoughOctets),
        ) => Ok((fields, true)),
        Err(_) => Err(Broken),
    }
}

/// Whether no field that follows could make this list well-formed.
fn is_spoiled(fields: &[Field]) -> bool {
    let is_pseudo = |field: &&Field| field.0.starts_with(b":");
    let pseudo = fields.iter().take_while(is_pseudo).count();
    !fields[pseudo..].iter().all(is_field)
}

/// Sections 8.2 and 8.3.
fn read_request(fields: &[Field]) -> Stream {
    let mut stream = Stream::default();
    let has = |name: &[u8]| fields.iter().any(|field| field.0 == name);
    stream.may_wait = has(b"prefer") || has(b"accept");
    let lengths: Vec<&[u8]> = values(fields, b"content-length");
    stream.announced = lengths.first().and_then(|length| {
        let text = str::from_utf8(length).ok()?;
        text.parse().ok()
    });
    stream.method = read_method(fields);
    // It is reset, and what comes for it after that is ignored.
    stream.is_over = stream.method.is_none();
    stream
}

fn values<'a>(fields: &'a [Field], name: &[u8]) -> Vec<&'a [u8]> {
    let all = fields.iter().filter(|field| field.0 == name);
    all.map(|field| field.1.trim_ascii()).collect()
}

/// The method, if all of the head is well-formed.
fn read_method(fields: &[Field]) -> Option<String> {
    let is_pseudo = |field: &&Field| field.0.starts_with(b":");
    let pseudo = fields.iter().take_while(is_pseudo).count();
    if fields.iter().skip(pseudo).any(|field| is_pseudo(&field)) {
        return None;
    }
    let known: [&[u8]; 4] = [b":method", b":scheme", b":path", b":authority"];
    if !fields[..pseudo]
        .iter()
        .all(|field| known.contains(&&*field.0))
    {
        return None;
    }
    let one = |name: &[u8]| match *values(fields, name) {
        [value] => Some(value),
        _ => None,
    };
    let method = String::from_utf8(one(b":method")?.to_vec()).ok()?;
    let (scheme, path) = (one(b":scheme")?, one(b":path")?);
    let is_web = [&b"http"[..], b"https"]
        .iter()
        .any(|known| scheme.eq_ignore_ascii_case(known));
    let is_path = path.starts_with(b"/") || (path == b"*" && method == "OPTIONS");
    let is_clean = path.iter().all(u8::is_ascii_graphic) && is_token(method.as_bytes());
    if !is_web || !is_path || !is_clean || !fields[pseudo..].iter().all(is_field) {
        return None;
    }
    let (authorities, hosts) = (values(fields, b":authority"), values(fields, b"host"));
    let is_one_place = match (&*authorities, &*hosts) {
        ([place], []) | ([], [place]) => !place.contains(&b'@'),
        ([place], [same]) => !place.contains(&b'@') && place.eq_ignore_ascii_case(same),
        _ => false,
    };
    let lengths = values(fields, b"content-length");
    let is_length = |value: &&[u8]| !value.is_empty() && value.iter().all(u8::is_ascii_digit);
    let is_framed = lengths.len() <= 1 && lengths.iter().all(is_length);
    (is_one_place && is_framed).then_some(method)
}

/// Section 8.2: small letters, nothing that only HTTP/1.1 knows.
fn is_field((name, value): &Field) -> bool {
    let of_connections: [&[u8]; 5] = [
        b"connection",
        b"proxy-connection",
        b"keep-alive",
        b"transfer-encoding",
        b"upgrade",
    ];
    let is_small = !name.iter().any(u8::is_ascii_uppercase);
    let is_text = |byte: &u8| *byte == b'\t' || !byte.is_ascii_control();
    let is_te = name != b"te" || value.trim_ascii() == b"trailers";
    is_token(name)
        && is_small
        && !of_connections.contains(&&**name)
        && value.iter().all(is_text)
        && is_te
}

/// RFC 9110 section 5.6.2.
fn is_token(bytes: &[u8]) -> bool {
    let is_part = |byte: &u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(byte);
    !bytes.is_empty() && bytes.iter().all(is_part)
}
