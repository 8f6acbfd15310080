//! Where a piece of work stands in a distributed trace: the ids of W3C Trace Context, read and written as `traceparent`.

use std::fmt;
use std::ops::Range;

use data_encoding::HEXLOWER;

/// Length of a `traceparent` of version 00.
const VERSION_00_LENGTH: usize = 55;
/// The flag that says that the caller may have recorded its part of the trace.
const SAMPLED: u8 = 1;

/// The id of a trace: 16 bytes, not all zero. Shown as 32 hexadecimal digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TraceId([u8; 16]);

/// The id of one piece of work in a trace: 8 bytes, not all zero. Shown as 16 hexadecimal digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SpanId([u8; 8]);

impl TraceId {
    /// From 128 bits; one bit is set when none is.
    #[must_use]
    pub const fn from_bits(bits: u128) -> Self {
        let bits = if bits == 0 { 1 } else { bits };
        Self(bits.to_be_bytes())
    }
}

impl SpanId {
    /// From 64 bits; one bit is set when none is.
    #[must_use]
    pub const fn from_bits(bits: u64) -> Self {
        let bits = if bits == 0 { 1 } else { bits };
        Self(bits.to_be_bytes())
    }
}

impl fmt::Display for TraceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        HEXLOWER.encode_display(&self.0).fmt(f)
    }
}

impl fmt::Display for SpanId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        HEXLOWER.encode_display(&self.0).fmt(f)
    }
}

/// Where a piece of work stands in a trace. Displayed as the `traceparent` that it sends on: later work then is its child.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TraceContext {
    /// The trace.
    pub trace: TraceId,
    /// The piece of work itself.
    pub span: SpanId,
    /// The work that caused it; `None` where the trace begins.
    pub parent: Option<SpanId>,
    /// Whether those who take part in the trace should record it.
    pub is_sampled: bool,
}

impl TraceContext {
    /// The beginning of a trace.
    #[must_use]
    pub const fn root(trace: TraceId, span: SpanId, is_sampled: bool) -> Self {
        Self {
            trace,
            span,
            parent: None,
            is_sampled,
        }
    }

    /// Continues the trace of a `traceparent`; `None` when that is malformed (W3C Trace Context, section 3.2.2).
    #[must_use]
    pub fn continued(traceparent: &str, span: SpanId) -> Option<Self> {
        let text = traceparent.as_bytes();
        let (version, rest) = (hex::<1>(text.get(..2)?)?, text.get(VERSION_00_LENGTH..)?);
        // Later versions may add parts, each behind a dash; version 255 is forbidden.
        let is_known = match version {
            [0] => rest.is_empty(),
            [255] => false,
            [_] => rest.is_empty() || rest.starts_with(b"-"),
        };
        let dashes = [2, 35, 52].map(|place| text.get(place) == Some(&b'-'));
        if !is_known || dashes.contains(&false) {
            return None;
        }
        let trace = hex::<16>(text.get(3..35)?)?;
        let parent = hex::<8>(text.get(36..52)?)?;
        let [flags] = hex::<1>(text.get(53..55)?)?;
        if trace == [0; 16] || parent == [0; 8] {
            return None;
        }
        Some(Self {
            trace: TraceId(trace),
            span,
            parent: Some(SpanId(parent)),
            is_sampled: flags & SAMPLED != 0,
        })
    }

    /// The `traceparent` that it sends on: 55 visible ASCII characters.
    #[must_use]
    pub fn traceparent(&self) -> [u8; VERSION_00_LENGTH] {
        let flags = [u8::from(self.is_sampled)];
        let mut text = [b'-'; VERSION_00_LENGTH];
        let parts: [(Range<usize>, &[u8]); 4] = [
            (0..2, &[0]),
            (3..35, &self.trace.0),
            (36..52, &self.span.0),
            (53..55, &flags),
        ];
        for (place, bytes) in parts {
            if let Some(digits) = text.get_mut(place) {
                HEXLOWER.encode_mut(bytes, digits);
            }
        }
        text
    }

    /// Work that this causes; `salt` distinguishes its children.
    #[must_use]
    pub const fn child(self, salt: u64) -> Self {
        Self {
            trace: self.trace,
            span: SpanId::from_bits(scramble(u64::from_be_bytes(self.span.0) ^ salt)),
            parent: Some(self.span),
            is_sampled: self.is_sampled,
        }
    }
}

impl fmt::Display for TraceContext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&String::from_utf8_lossy(&self.traceparent()))
    }
}

/// A number that looks random and is another one for every other `bits`: the finalizer of SplitMix64.
#[must_use]
pub const fn scramble(bits: u64) -> u64 {
    let bits = bits.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    bits ^ (bits >> 31)
}

/// Bytes from lower-case hexadecimal digits, as the standard demands them.
fn hex<const LENGTH: usize>(text: &[u8]) -> Option<[u8; LENGTH]> {
    let mut bytes = [0; LENGTH];
    // Panics if the lengths do not fit.
    if HEXLOWER.decode_len(text.len()) != Ok(LENGTH) {
        return None;
    }
    HEXLOWER.decode_mut(text, &mut bytes).ok()?;
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

    #[test]
    fn a_trace_is_continued_with_a_span_of_our_own() {
        let own = SpanId::from_bits(0xabc);
        let found = TraceContext::continued(GOOD, own).unwrap();
        assert_eq!(found.trace.to_string(), "0af7651916cd43dd8448eb211c80319c");
        assert_eq!(
            found.parent.map(|parent| parent.to_string()).as_deref(),
            Some("b7ad6b7169203331"),
            "the caller"
        );
        assert_eq!(
            found.to_string(),
            "00-0af7651916cd43dd8448eb211c80319c-0000000000000abc-01",
            "what is sent on"
        );
        let child = found.child(7);
        assert_eq!(child.trace, found.trace, "the same trace");
        assert_eq!(child.parent, Some(own), "caused by this");
        assert_ne!(child.span, found.child(8).span, "children differ");
    }

    #[test]
    fn malformed_ones_are_refused() {
        let rows = [
            ("empty", String::new()),
            ("short", GOOD.strip_suffix('1').unwrap().to_owned()),
            ("long", format!("{GOOD}-00")),
            ("version 255", GOOD.replacen("00", "ff", 1)),
            ("upper case", GOOD.to_uppercase()),
            ("no dash", GOOD.replace('-', "0")),
            (
                "trace of zeros",
                GOOD.replace("0af7651916cd43dd8448eb211c80319c", &"0".repeat(32)),
            ),
            (
                "span of zeros",
                GOOD.replace("b7ad6b7169203331", &"0".repeat(16)),
            ),
            ("no digit", GOOD.replace("0af7", "0ag7")),
            ("not ASCII", GOOD.replace("0af7", "0\u{e9}7")),
            (
                "a later version, glued",
                format!("{}x", GOOD.replacen("00", "01", 1)),
            ),
        ];
        let span = SpanId::from_bits(1);
        for (name, text) in rows {
            assert_eq!(TraceContext::continued(&text, span), None, "{name}: {text}");
        }
        let later = format!("{}-more", GOOD.replacen("00", "01", 1));
        assert!(
            TraceContext::continued(&later, span).is_some(),
            "a later version"
        );
        let not_sampled = GOOD.replace("-01", "-00");
        let found = TraceContext::continued(&not_sampled, span).unwrap();
        assert!(!found.is_sampled, "the flag");
    }

    #[test]
    fn ids_are_never_zero() {
        assert_eq!(SpanId::from_bits(0).to_string(), "0000000000000001");
        assert!(TraceId::from_bits(0).to_string().ends_with('1'), "not zero");
    }
}
