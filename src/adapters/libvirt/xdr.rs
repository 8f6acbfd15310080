//! XDR (RFC 4506), as much of it as libvirt's protocol needs. Every length from the wire is checked.

/// Longest string libvirt sends or takes (its `REMOTE_STRING_MAX`).
pub(crate) const STRING_BYTES_MAX: usize = 4 * 1024 * 1024;

/// The bytes do not have the form that was expected.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum XdrError {
    /// The message ends too early.
    #[error("the message ends too early")]
    Short,
    /// A string is longer than the protocol allows.
    #[error("a string of {0} bytes is longer than the protocol allows")]
    LongString(u32),
    /// A list is longer than the message can hold, or than the protocol allows.
    #[error("a list of {0} entries is longer than allowed")]
    LongList(u32),
    /// A string is not UTF-8.
    #[error("a string is not UTF-8")]
    NotUtf8,
    /// Something optional is neither there nor missing.
    #[error("{0} where 0 or 1 says whether a value follows")]
    NotBool(u32),
}

/// Writes values one after the other.
#[derive(Clone, Debug, Default)]
pub(crate) struct Writer(Vec<u8>);

impl Writer {
    /// An unsigned number of 32 bits.
    pub(crate) fn u32(mut self, value: u32) -> Self {
        self.0.extend_from_slice(&value.to_be_bytes());
        self
    }

    /// A signed number of 32 bits.
    pub(crate) fn i32(mut self, value: i32) -> Self {
        self.0.extend_from_slice(&value.to_be_bytes());
        self
    }

    /// Bytes whose number both sides know.
    pub(crate) fn fixed(mut self, bytes: &[u8]) -> Self {
        self.0.extend_from_slice(bytes);
        self.padded(bytes.len())
    }

    /// Text with its length.
    ///
    /// # Errors
    /// [`XdrError::LongString`] when libvirt would not take it.
    pub(crate) fn string(self, text: &str) -> Result<Self, XdrError> {
        let bytes = u32::try_from(text.len()).unwrap_or(u32::MAX);
        if text.len() > STRING_BYTES_MAX {
            return Err(XdrError::LongString(bytes));
        }
        Ok(self.u32(bytes).fixed(text.as_bytes()))
    }

    /// What was written.
    pub(crate) fn into_bytes(self) -> Vec<u8> {
        self.0
    }

    fn padded(mut self, written: usize) -> Self {
        self.0.extend(std::iter::repeat_n(0, padding(written)));
        self
    }
}

/// Reads values one after the other.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    /// Reads from the start of these bytes.
    pub(crate) const fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    /// What was not read yet.
    pub(crate) const fn rest(&self) -> &'a [u8] {
        self.0
    }

    /// An unsigned number of 32 bits.
    ///
    /// # Errors
    /// [`XdrError::Short`].
    pub(crate) fn u32(&mut self) -> Result<u32, XdrError> {
        self.array().map(u32::from_be_bytes)
    }

    /// A signed number of 32 bits.
    ///
    /// # Errors
    /// [`XdrError::Short`].
    pub(crate) fn i32(&mut self) -> Result<i32, XdrError> {
        self.array().map(i32::from_be_bytes)
    }

    /// An unsigned number of 64 bits.
    ///
    /// # Errors
    /// [`XdrError::Short`].
    pub(crate) fn u64(&mut self) -> Result<u64, XdrError> {
        self.array().map(u64::from_be_bytes)
    }

    /// Bytes whose number both sides know; a multiple of four, so that no padding follows.
    ///
    /// # Errors
    /// [`XdrError::Short`].
    pub(crate) fn array<const N: usize>(&mut self) -> Result<[u8; N], XdrError> {
        let (head, tail) = self.0.split_first_chunk::<N>().ok_or(XdrError::Short)?;
        self.0 = tail;
        Ok(*head)
    }

    /// Text with its length.
    ///
    /// # Errors
    /// [`XdrError::Short`], [`XdrError::LongString`], [`XdrError::NotUtf8`].
    pub(crate) fn string(&mut self) -> Result<String, XdrError> {
        let length = self.u32()?;
        let bytes = usize::try_from(length).unwrap_or(usize::MAX);
        if bytes > STRING_BYTES_MAX {
            return Err(XdrError::LongString(length));
        }
        let (text, tail) = self.0.split_at_checked(bytes).ok_or(XdrError::Short)?;
        let (_, tail) = tail
            .split_at_checked(padding(bytes))
            .ok_or(XdrError::Short)?;
        self.0 = tail;
        match std::str::from_utf8(text) {
            Ok(text) => Ok(text.to_owned()),
            Err(_) => Err(XdrError::NotUtf8),
        }
    }

    /// Text that may be missing.
    ///
    /// # Errors
    /// As [`Self::string`], and [`XdrError::NotBool`].
    pub(crate) fn optional_string(&mut self) -> Result<Option<String>, XdrError> {
        match self.u32()? {
            0 => Ok(None),
            1 => self.string().map(Some),
            other => Err(XdrError::NotBool(other)),
        }
    }

    /// How many entries follow: at most `max`, and no more than there are bytes for (four each at the least).
    ///
    /// # Errors
    /// [`XdrError::Short`], [`XdrError::LongList`].
    pub(crate) fn count(&mut self, max: u32) -> Result<u32, XdrError> {
        let length = self.u32()?;
        let room = u32::try_from(self.0.len() / 4).unwrap_or(u32::MAX);
        if length > max || length > room {
            return Err(XdrError::LongList(length));
        }
        Ok(length)
    }
}

/// How many zeros fill these bytes up to a multiple of four.
const fn padding(bytes: usize) -> usize {
    match bytes % 4 {
        1 => 3,
        2 => 2,
        3 => 1,
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_written_is_read_again() {
        let bytes = Writer::default()
            .u32(7)
            .i32(-1)
            .string("abcde")
            .unwrap()
            .fixed(&[1; 16])
            .u32(0)
            .into_bytes();
        assert_eq!(bytes.len() % 4, 0, "always whole words");
        let mut reader = Reader::new(&bytes);
        assert_eq!(reader.u32(), Ok(7), "unsigned");
        assert_eq!(reader.i32(), Ok(-1), "signed");
        assert_eq!(reader.string().as_deref(), Ok("abcde"), "text");
        assert_eq!(reader.array::<16>(), Ok([1; 16]), "fixed");
        assert_eq!(reader.optional_string(), Ok(None), "missing text");
        assert!(reader.rest().is_empty(), "all read");
    }

    #[test]
    fn lengths_from_the_wire_are_not_trusted() {
        let rows: [(&str, &[u8], XdrError); 5] = [
            ("nothing", &[], XdrError::Short),
            ("length alone", &[0, 0, 0, 4], XdrError::Short),
            ("no padding", &[0, 0, 0, 1, b'a'], XdrError::Short),
            (
                "huge",
                &[255, 255, 255, 255, 0],
                XdrError::LongString(u32::MAX),
            ),
            ("not UTF-8", &[0, 0, 0, 1, 0xff, 0, 0, 0], XdrError::NotUtf8),
        ];
        for (name, bytes, expected) in rows {
            assert_eq!(Reader::new(bytes).string(), Err(expected), "{name}");
        }
        let list = [0, 0, 0, 2, 0, 0, 0, 0];
        assert_eq!(
            Reader::new(&list).count(9),
            Err(XdrError::LongList(2)),
            "more entries than bytes"
        );
        let list = [0, 0, 0, 1, 0, 0, 0, 0];
        assert_eq!(Reader::new(&list).count(9), Ok(1), "as many as fit");
        assert_eq!(
            Reader::new(&list).count(0),
            Err(XdrError::LongList(1)),
            "more than allowed"
        );
        assert_eq!(
            Reader::new(&[0, 0, 0, 9]).optional_string(),
            Err(XdrError::NotBool(9)),
            "neither there nor missing"
        );
    }
}
