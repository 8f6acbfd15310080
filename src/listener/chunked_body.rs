//! The grammar of a chunked body, to the letter of RFC 9112 section 7.1.
//!
//! Pingora accepts anything after the size of a chunk and any lines after the last chunk. A server or proxy that ends these lines
//! elsewhere sees another body and other requests after it (request smuggling), so bytes are checked before Pingora reads them.

/// Bytes of extensions, trailers and other framing allowed beyond twice the content and 16 bytes per chunk.
const EXCESS_BYTES_MAX: u64 = 16 * 1024;
/// Digits in a chunk size.
const DIGITS_MAX: u8 = 16;

/// The next byte expected.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum ExpectedByte {
    #[default]
    Size,
    /// White space after which only a semicolon is allowed.
    BeforeSemicolon,
    AfterSemicolon,
    ExtensionName,
    AfterExtensionName,
    BeforeExtensionValue,
    ExtensionValue,
    QuotedValue,
    QuotedPair,
    AfterQuotedValue,
    SizeLineFeed,
    Data,
    DataCarriageReturn,
    DataLineFeed,
    TrailerStart,
    TrailerName,
    TrailerValue,
    TrailerLineFeed,
    LastLineFeed,
    End,
}

/// The result of consuming a piece of a chunked body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ChunkProgress {
    /// The whole piece belongs to the body, which continues.
    Within,
    /// The body ended after this many bytes of the piece.
    Ended(usize),
    /// The body violates the grammar.
    Malformed,
}

/// The state of a chunked body that is checked piece by piece.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct ChunkedBody {
    expected: ExpectedByte,
    digits: u8,
    /// The size of the chunk; within its content, the bytes left.
    size: u64,
    /// Bytes of framing beyond what the content justifies.
    excess: u64,
}

impl ChunkedBody {
    /// Checks the next piece of the body.
    pub(super) fn consume(&mut self, bytes: &[u8]) -> ChunkProgress {
        let mut rest = bytes;
        while let Some((first, after)) = rest.split_first() {
            if self.expected == ExpectedByte::Data {
                rest = self.skip_content(rest);
                continue;
            }
            let Some(next) = self.after_byte(*first) else {
                return ChunkProgress::Malformed;
            };
            self.expected = next;
            self.excess = self.excess.saturating_add(1);
            if self.excess > EXCESS_BYTES_MAX {
                return ChunkProgress::Malformed;
            }
            rest = after;
            if next == ExpectedByte::End {
                return ChunkProgress::Ended(bytes.len().saturating_sub(rest.len()));
            }
        }
        ChunkProgress::Within
    }

    /// Skips the content of the chunk.
    fn skip_content<'a>(&mut self, bytes: &'a [u8]) -> &'a [u8] {
        let left = usize::try_from(self.size).unwrap_or(usize::MAX);
        let count = left.min(bytes.len());
        let rest = bytes.get(count..).unwrap_or_default();
        let counted = u64::try_from(count).unwrap_or(u64::MAX);
        self.size = self.size.saturating_sub(counted);
        self.excess = self.excess.saturating_sub(counted.saturating_mul(2));
        if self.size == 0 {
            self.expected = ExpectedByte::DataCarriageReturn;
        }
        rest
    }

    /// What is expected after this byte; `None` if the byte is not allowed here.
    fn after_byte(&mut self, byte: u8) -> Option<ExpectedByte> {
        match self.expected {
            ExpectedByte::Size => self.after_size_byte(byte),
            ExpectedByte::BeforeSemicolon
            | ExpectedByte::AfterSemicolon
            | ExpectedByte::ExtensionName
            | ExpectedByte::AfterExtensionName
            | ExpectedByte::BeforeExtensionValue
            | ExpectedByte::ExtensionValue
            | ExpectedByte::QuotedValue
            | ExpectedByte::QuotedPair
            | ExpectedByte::AfterQuotedValue => after_extension_byte(self.expected, byte),
            ExpectedByte::SizeLineFeed => (byte == b'\n').then_some(if self.size == 0 {
                ExpectedByte::TrailerStart
            } else {
                ExpectedByte::Data
            }),
            ExpectedByte::DataCarriageReturn => {
                (byte == b'\r').then_some(ExpectedByte::DataLineFeed)
            }
            ExpectedByte::DataLineFeed => {
                self.digits = 0;
                self.excess = self.excess.saturating_sub(16);
                (byte == b'\n').then_some(ExpectedByte::Size)
            }
            ExpectedByte::TrailerStart
            | ExpectedByte::TrailerName
            | ExpectedByte::TrailerValue
            | ExpectedByte::TrailerLineFeed
            | ExpectedByte::LastLineFeed => after_trailer_byte(self.expected, byte),
            // `skip_content` handles content, and nothing is expected after the end.
            ExpectedByte::Data | ExpectedByte::End => None,
        }
    }

    fn after_size_byte(&mut self, byte: u8) -> Option<ExpectedByte> {
        if let Some(digit) = char::from(byte).to_digit(16) {
            if self.digits == DIGITS_MAX {
                return None;
            }
            self.digits = self.digits.saturating_add(1);
            self.size = self.size.checked_mul(16)?.checked_add(u64::from(digit))?;
            return Some(ExpectedByte::Size);
        }
        if self.digits == 0 {
            return None;
        }
        after_value(byte)
    }
}

/// What may follow a size or an extension value.
const fn after_value(byte: u8) -> Option<ExpectedByte> {
    match byte {
        b'\r' => Some(ExpectedByte::SizeLineFeed),
        b';' => Some(ExpectedByte::AfterSemicolon),
        b' ' | b'\t' => Some(ExpectedByte::BeforeSemicolon),
        _ => None,
    }
}

fn after_extension_byte(part: ExpectedByte, byte: u8) -> Option<ExpectedByte> {
    let is_space = matches!(byte, b' ' | b'\t');
    match part {
        ExpectedByte::BeforeSemicolon if byte == b';' => Some(ExpectedByte::AfterSemicolon),
        ExpectedByte::BeforeSemicolon
        | ExpectedByte::AfterSemicolon
        | ExpectedByte::BeforeExtensionValue
            if is_space =>
        {
            Some(part)
        }
        ExpectedByte::AfterSemicolon => is_token(byte).then_some(ExpectedByte::ExtensionName),
        ExpectedByte::ExtensionName if is_token(byte) => Some(part),
        ExpectedByte::ExtensionName if is_space => Some(ExpectedByte::AfterExtensionName),
        ExpectedByte::ExtensionName if byte == b'\r' => Some(ExpectedByte::SizeLineFeed),
        ExpectedByte::AfterExtensionName if is_space => Some(part),
        ExpectedByte::ExtensionName | ExpectedByte::AfterExtensionName => match byte {
            b'=' => Some(ExpectedByte::BeforeExtensionValue),
            b';' => Some(ExpectedByte::AfterSemicolon),
            _ => None,
        },
        ExpectedByte::BeforeExtensionValue if byte == b'"' => Some(ExpectedByte::QuotedValue),
        ExpectedByte::BeforeExtensionValue => {
            is_token(byte).then_some(ExpectedByte::ExtensionValue)
        }
        ExpectedByte::ExtensionValue if is_token(byte) => Some(part),
        ExpectedByte::ExtensionValue | ExpectedByte::AfterQuotedValue => after_value(byte),
        ExpectedByte::QuotedValue => match byte {
            b'"' => Some(ExpectedByte::AfterQuotedValue),
            b'\\' => Some(ExpectedByte::QuotedPair),
            _ => is_text(byte).then_some(part),
        },
        ExpectedByte::QuotedPair => is_text(byte).then_some(ExpectedByte::QuotedValue),
        ExpectedByte::Size
        | ExpectedByte::BeforeSemicolon
        | ExpectedByte::SizeLineFeed
        | ExpectedByte::Data
        | ExpectedByte::DataCarriageReturn
        | ExpectedByte::DataLineFeed
        | ExpectedByte::TrailerStart
        | ExpectedByte::TrailerName
        | ExpectedByte::TrailerValue
        | ExpectedByte::TrailerLineFeed
        | ExpectedByte::LastLineFeed
        | ExpectedByte::End => None,
    }
}

fn after_trailer_byte(part: ExpectedByte, byte: u8) -> Option<ExpectedByte> {
    match part {
        ExpectedByte::TrailerStart if byte == b'\r' => Some(ExpectedByte::LastLineFeed),
        ExpectedByte::TrailerName if byte == b':' => Some(ExpectedByte::TrailerValue),
        ExpectedByte::TrailerStart | ExpectedByte::TrailerName => {
            is_token(byte).then_some(ExpectedByte::TrailerName)
        }
        ExpectedByte::TrailerValue if byte == b'\r' => Some(ExpectedByte::TrailerLineFeed),
        ExpectedByte::TrailerValue => is_text(byte).then_some(part),
        ExpectedByte::TrailerLineFeed => (byte == b'\n').then_some(ExpectedByte::TrailerStart),
        ExpectedByte::LastLineFeed => (byte == b'\n').then_some(ExpectedByte::End),
        ExpectedByte::Size
        | ExpectedByte::BeforeSemicolon
        | ExpectedByte::AfterSemicolon
        | ExpectedByte::ExtensionName
        | ExpectedByte::AfterExtensionName
        | ExpectedByte::BeforeExtensionValue
        | ExpectedByte::ExtensionValue
        | ExpectedByte::QuotedValue
        | ExpectedByte::QuotedPair
        | ExpectedByte::AfterQuotedValue
        | ExpectedByte::SizeLineFeed
        | ExpectedByte::Data
        | ExpectedByte::DataCarriageReturn
        | ExpectedByte::DataLineFeed
        | ExpectedByte::End => None,
    }
}

/// Whether the byte is allowed in a token (RFC 9110 section 5.6.2).
const fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric()
        || matches!(
            byte,
            b'!' | b'#'
                | b'$'
                | b'%'
                | b'&'
                | b'\''
                | b'*'
                | b'+'
                | b'-'
                | b'.'
                | b'^'
                | b'_'
                | b'`'
                | b'|'
                | b'~'
        )
}

/// Whether the byte is allowed in a field value or a quoted string.
const fn is_text(byte: u8) -> bool {
    matches!(byte, b'\t' | b' '..=b'~' | 0x80..=0xff)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(bytes: &[u8], piece: usize) -> ChunkProgress {
        let mut chunks = ChunkedBody::default();
        let mut before = 0_usize;
        for part in bytes.chunks(piece) {
            match chunks.consume(part) {
                ChunkProgress::Within => before = before.saturating_add(part.len()),
                ChunkProgress::Ended(count) => {
                    return ChunkProgress::Ended(before.saturating_add(count));
                }
                ChunkProgress::Malformed => return ChunkProgress::Malformed,
            }
        }
        ChunkProgress::Within
    }

    #[test]
    fn only_bodies_of_the_grammar_are_read_to_their_end() {
        let rows: [(&str, &[u8]); 17] = [
            ("plain", b"3\r\nabc\r\n0\r\n\r\n"),
            ("empty", b"0\r\n\r\n"),
            ("capital digits", b"A\r\n0123456789\r\n0\r\n\r\n"),
            ("leading zeros", b"003\r\nabc\r\n000\r\n\r\n"),
            ("a name", b"3;a\r\nabc\r\n0;b\r\n\r\n"),
            ("a value", b"3;a=b\r\nabc\r\n0\r\n\r\n"),
            ("several", b"3;a=b;c;d=\"e\"\r\nabc\r\n0\r\n\r\n"),
            ("space", b"3 ; a = b ;\tc\r\nabc\r\n0\r\n\r\n"),
            ("quoted", b"3;a=\"; \\\" \x80=\"\r\nabc\r\n0\r\n\r\n"),
            ("quoted, empty", b"3;a=\"\"\r\nabc\r\n0\r\n\r\n"),
            ("a trailer", b"0\r\nX-A: b c\r\n\r\n"),
            ("an empty trailer", b"0\r\nX-A:\r\n\r\n"),
            ("two trailers", b"0\r\nX-A: b\r\nX-B:\tc\r\n\r\n"),
            ("obs-text", b"0\r\nX-A: \xe9\r\n\r\n"),
            ("line ends in content", b"4\r\n\r\n\r\n\r\n0\r\n\r\n"),
            ("digits in content", b"5\r\n0\r\n\r\n\r\n0\r\n\r\n"),
            ("two chunks", b"1\r\na\r\n2\r\nbc\r\n0\r\n\r\n"),
        ];
        for (name, bytes) in rows {
            let followed = [bytes, b"GET /"].concat();
            for piece in [1, 2, 3, 5, followed.len()] {
                assert_eq!(
                    read(&followed, piece),
                    ChunkProgress::Ended(bytes.len()),
                    "{name}, {piece} at a time"
                );
            }
            for end in 0..bytes.len() {
                assert_eq!(
                    read(&bytes[..end], 7),
                    ChunkProgress::Within,
                    "{name}, {end}"
                );
            }
        }
    }

    #[test]
    fn everything_else_is_malformed() {
        let heads: [&[u8]; 40] = [
            b"\r\n",
            b"\n",
            b";a\r\n",
            b" 3\r\n",
            b"\t3\r\n",
            b"+3\r\n",
            b"-3\r\n",
            b"0x3\r\n",
            b"3_0\r\n",
            b"g\r\n",
            b"3\n",
            b"3\rX",
            b"3\r\r\n",
            b"3 \r\n",
            b"3\t\r\n",
            b"3 3\r\n",
            b"3\0\r\n",
            b"3\x80\r\n",
            b"3,\r\n",
            b"3;\n",
            b"3;\r\n",
            b"3;;\r\n",
            b"3;a;\r\n",
            b"3;a\n",
            b"3;a\rb\r\n",
            b"3;a\0\r\n",
            b"3;\x80\r\n",
            b"3;a\x80\r\n",
            b"3;a/b\r\n",
            b"3;a =\r\n",
            b"3;a=\r\n",
            b"3;a=;b\r\n",
            b"3;a=b c\r\n",
            b"3;a=b \r\n",
            b"3;a=\"b\r\n",
            b"3;a=\"b\"c\r\n",
            b"3;a=\"\\\n\"\r\n",
            b"3;a=\"\x7f\"\r\n",
            b"ffffffffffffffff0\r\n",
            b"00000000000000003\r\n",
        ];
        for head in heads {
            for piece in [1, 64] {
                let name = String::from_utf8_lossy(head);
                assert_eq!(read(head, piece), ChunkProgress::Malformed, "{name:?}");
            }
        }
        let bodies: [&[u8]; 14] = [
            b"3\r\nabcd",
            b"3\r\nabc\n",
            b"3\r\nabc\r3",
            b"3\r\nabc0\r\n\r\n",
            b"0\r\n\n",
            b"0\r\nX-A\r\n\r\n",
            b"0\r\n: b\r\n\r\n",
            b"0\r\nX-A : b\r\n\r\n",
            b"0\r\n X-A: b\r\n\r\n",
            b"0\r\nX-A: b\n\r\n",
            b"0\r\nX-A: b\r\n c\r\n\r\n",
            b"0\r\nX-A: b\0\r\n\r\n",
            b"0\r\nX-A: b\rc\r\n\r\n",
            b"0\r\n\rX",
        ];
        for body in bodies {
            for piece in [1, 64] {
                let name = String::from_utf8_lossy(body);
                assert_eq!(read(body, piece), ChunkProgress::Malformed, "{name:?}");
            }
        }
    }

    #[test]
    fn framing_is_bounded_by_the_content() {
        let long = [b"1;a=".as_slice(), &vec![b'a'; 20_000]].concat();
        assert_eq!(read(&long, 512), ChunkProgress::Malformed, "one extension");
        let trailers = b"X-A: b\r\n".repeat(3000);
        let trailers = [b"0\r\n".as_slice(), &trailers].concat();
        assert_eq!(read(&trailers, 512), ChunkProgress::Malformed, "trailers");
        let small = b"1;a=bcdefghijklmnopqrstuvwxyz\r\nx\r\n".repeat(3000);
        assert_eq!(
            read(&small, 512),
            ChunkProgress::Malformed,
            "many small extensions"
        );
        let with_signatures = [b"400;chunk-signature=0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef\r\n".as_slice(), &[b'x'; 1024], b"\r\n"]
            .concat()
            .repeat(3000);
        assert_eq!(
            read(&with_signatures, 4096),
            ChunkProgress::Within,
            "signed chunks"
        );
        let bytewise = b"1\r\nx\r\n".repeat(30_000);
        assert_eq!(read(&bytewise, 4096), ChunkProgress::Within, "single bytes");
    }
}
