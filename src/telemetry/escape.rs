//! Escapes characters in log lines and audit records that terminals, pagers or line readers would act on.

use std::fmt::Write as _;
use std::io;
use std::io::Write;

use tracing::Metadata;
use tracing_subscriber::fmt::MakeWriter;

use crate::telemetry::LineFormat;

/// C0 and C1 control characters, bidirectional and invisible marks, and Unicode line separators.
const fn is_unsafe(character: char) -> bool {
    matches!(
        character,
        '\0'..='\u{1f}'
            | '\u{7f}'..='\u{9f}'
            | '\u{ad}'
            | '\u{61c}'
            | '\u{180e}'
            | '\u{200b}'..='\u{200f}'
            | '\u{2028}'..='\u{202e}'
            | '\u{2060}'..='\u{206f}'
            | '\u{feff}'
            | '\u{fff9}'..='\u{fffb}'
            | '\u{e0000}'..='\u{e007f}'
    )
}

/// Whether the text is printable ASCII, as nearly every line is, so that it needs no escapes.
fn is_plain(text: &[u8]) -> bool {
    text.iter().all(|byte| matches!(byte, b' '..=b'~'))
}

/// Escapes a JSON text. The result is JSON of the same value without unsafe characters.
pub(super) fn escape_json(text: String) -> String {
    if is_plain(text.as_bytes()) {
        return text;
    }
    let mut escaped = String::with_capacity(text.len().saturating_add(16));
    for character in text.chars() {
        if !is_unsafe(character) {
            escaped.push(character);
            continue;
        }
        // In JSON these characters occur only within strings, where a UTF-16 escape has the same meaning.
        for unit in character.encode_utf16(&mut [0; 2]) {
            // Writing to a string does not fail.
            write!(escaped, "\\u{unit:04x}").unwrap_or_default();
        }
    }
    escaped
}

/// Escapes one line of human-readable text.
pub(crate) fn escape_line(line: &str) -> String {
    let mut escaped = String::with_capacity(line.len().saturating_add(16));
    for character in line.chars() {
        if is_unsafe(character) {
            escaped.extend(character.escape_unicode());
        } else {
            escaped.push(character);
        }
    }
    escaped
}

/// Wraps the writers of `inner` so that every line is escaped.
pub(super) struct Escaping<M> {
    pub(super) inner: M,
    pub(super) format: LineFormat,
}

/// Escapes each write. The formatting layer passes one whole line per write.
pub(super) struct EscapingWriter<W> {
    inner: W,
    format: LineFormat,
}

impl<'w, M: MakeWriter<'w>> MakeWriter<'w> for Escaping<M> {
    type Writer = EscapingWriter<M::Writer>;

    fn make_writer(&'w self) -> Self::Writer {
        EscapingWriter {
            inner: self.inner.make_writer(),
            format: self.format,
        }
    }

    fn make_writer_for(&'w self, metadata: &Metadata<'_>) -> Self::Writer {
        EscapingWriter {
            inner: self.inner.make_writer_for(metadata),
            format: self.format,
        }
    }
}

impl<W: Write> Write for EscapingWriter<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let (line, end) = match bytes.strip_suffix(b"\n") {
            Some(line) => (line, "\n"),
            None => (bytes, ""),
        };
        if is_plain(line) {
            self.inner.write_all(bytes)?;
            return Ok(bytes.len());
        }
        let line = String::from_utf8_lossy(line);
        let mut escaped = match self.format {
            LineFormat::Text => escape_line(&line),
            LineFormat::Json => escape_json(line.into_owned()),
        };
        escaped.push_str(end);
        self.inner.write_all(escaped.as_bytes())?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The kinds of character that are escaped, with neighbours that are not.
    const UNSAFE: &str = "\u{7f}\u{80}\u{85}\u{9b}\u{9f}\u{61c}\u{200e}\u{200f}\u{2028}\u{2029}\u{202a}\u{202b}\u{202c}\u{202d}\u{202e}\u{2066}\u{2067}\u{2068}\u{2069}\u{200b}\u{feff}\u{e0041}";
    const SAFE: &str = "a \u{a0}\u{e9}\u{5d0}\u{4e2d}\u{1f600}\u{2027}\u{202f}";

    #[test]
    fn json_says_the_same_without_unsafe_characters() {
        let said = format!("\"{UNSAFE}{SAFE}\n\u{1b}");
        let made = escape_json(serde_json::to_string(&said).unwrap());
        assert!(!made.chars().any(is_unsafe), "{made:?}");
        let read: String = serde_json::from_str(&made).unwrap();
        assert_eq!(read, said, "the same text");
        assert!(made.contains(SAFE), "letters stay: {made}");
    }

    #[test]
    fn each_write_is_one_line_whatever_is_in_it() {
        for format in [LineFormat::Text, LineFormat::Json] {
            let mut kept = Vec::new();
            let mut writer = EscapingWriter {
                inner: &mut kept,
                format,
            };
            for character in UNSAFE.chars() {
                let line = format!("x{character}y\n");
                writer.write_all(line.as_bytes()).unwrap();
            }
            writer.write_all(b"plain\n").unwrap();
            writer.write_all("one\ntwo\r\t\n".as_bytes()).unwrap();
            let kept = String::from_utf8(kept).unwrap();
            let lines = UNSAFE.chars().count() + 2;
            assert_eq!(kept.split_terminator('\n').count(), lines, "{kept:?}");
            let left = kept
                .chars()
                .filter(|character| *character != '\n')
                .any(is_unsafe);
            assert!(!left, "{format:?}: {kept:?}");
        }
    }
}
