//! Where written bytes of HTTP/2 are between two frames (RFC 9113 section 4.1).

/// Length, type, flags and stream of a frame.
const HEAD_BYTES: usize = 9;
/// Types of the frames that carry fields. Nothing may be sent between them until the fields end (RFC 9113 section 6.2).
const HEADERS: u8 = 1;
const PUSH_PROMISE: u8 = 5;
const CONTINUATION: u8 = 9;
const END_HEADERS: u8 = 4;

/// Tracks the bytes that one side of a connection writes.
#[derive(Debug, Default)]
pub(super) struct FrameBoundary {
    head: [u8; HEAD_BYTES],
    head_bytes: usize,
    payload_left: usize,
    /// Whether a frame was written as a whole: the first one has to be SETTINGS.
    has_begun: bool,
    within_fields: bool,
}

impl FrameBoundary {
    /// Whether another frame may be written now.
    pub(super) const fn is_between_frames(&self) -> bool {
        self.has_begun && self.head_bytes == 0 && self.payload_left == 0 && !self.within_fields
    }

    /// Tracks written bytes.
    pub(super) fn track(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let count = if self.payload_left > 0 {
                let count = self.payload_left.min(bytes.len());
                self.payload_left = self.payload_left.saturating_sub(count);
                count
            } else {
                self.track_head(bytes)
            };
            bytes = bytes.get(count..).unwrap_or_default();
        }
    }

    /// Tracks a piece of the head of a frame; gives its length.
    fn track_head(&mut self, bytes: &[u8]) -> usize {
        let room = self.head.get_mut(self.head_bytes..).unwrap_or_default();
        let count = room.len().min(bytes.len());
        for (to, from) in room.iter_mut().zip(bytes) {
            *to = *from;
        }
        self.head_bytes = self.head_bytes.saturating_add(count);
        if self.head_bytes == HEAD_BYTES {
            let [high, middle, low, kind, flags, ..] = self.head;
            let length = u32::from_be_bytes([0, high, middle, low]);
            self.payload_left = usize::try_from(length).unwrap_or(usize::MAX);
            self.head_bytes = 0;
            self.has_begun = true;
            self.within_fields =
                matches!(kind, HEADERS | PUSH_PROMISE | CONTINUATION) && flags & END_HEADERS == 0;
        }
        count
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(kind: u8, flags: u8, length: u8) -> Vec<u8> {
        let mut bytes = vec![0, 0, length, kind, flags, 0, 0, 0, 1];
        bytes.resize(HEAD_BYTES + usize::from(length), 0xff);
        bytes
    }

    #[test]
    fn only_the_end_of_a_whole_frame_is_a_boundary() {
        let all = [
            frame(4, 0, 6),
            frame(HEADERS, END_HEADERS, 3),
            frame(0, 0, 20),
            frame(7, 0, 0),
        ];
        let ends: Vec<usize> = all
            .iter()
            .scan(0, |end, frame| {
                *end += frame.len();
                Some(*end)
            })
            .collect();
        let bytes = all.concat();
        for step in [1, 2, 5, 9, bytes.len()] {
            let (mut boundary, mut written) = (FrameBoundary::default(), 0);
            assert!(!boundary.is_between_frames(), "nothing before SETTINGS");
            for piece in bytes.chunks(step) {
                boundary.track(piece);
                written += piece.len();
                assert_eq!(
                    boundary.is_between_frames(),
                    ends.contains(&written),
                    "after {written} bytes in pieces of {step}"
                );
            }
        }
    }

    #[test]
    fn fields_in_several_frames_are_not_divided() {
        let mut boundary = FrameBoundary::default();
        for (name, kind, flags, expected) in [
            ("settings", 4, 0, true),
            ("fields that go on", HEADERS, 0, false),
            ("more of them", CONTINUATION, 0, false),
            ("their end", CONTINUATION, END_HEADERS, true),
            ("data", 0, 0, true),
        ] {
            boundary.track(&frame(kind, flags, 4));
            assert_eq!(boundary.is_between_frames(), expected, "{name}");
        }
    }
}
