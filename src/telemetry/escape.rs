//! JSON in which no character can pass for the end of a line, a command to a terminal, or a change of the direction of text.

/// Escapes what JSON itself leaves as it is: DEL and the controls after it, the line ends of Unicode, and the characters
/// that change the direction in which text is shown. All of them can only be within strings.
pub(super) fn escaped(json: String) -> String {
    // As nearly every line is.
    if json.bytes().all(|byte| byte.is_ascii() && byte != 0x7f) {
        return json;
    }
    let mut line = String::with_capacity(json.len());
    for character in json.chars() {
        if is_misleading(character) {
            // All of them are below 2^16: one unit each.
            let code = u32::from(character);
            let digits = [12_u32, 8, 4, 0].map(|bits| char::from_digit((code >> bits) & 15, 16));
            line.push_str("\\u");
            line.extend(digits.into_iter().flatten());
        } else {
            line.push(character);
        }
    }
    line
}

const fn is_misleading(character: char) -> bool {
    matches!(
        character,
        '\u{7f}'..='\u{9f}'
            | '\u{61c}'
            | '\u{200e}'
            | '\u{200f}'
            | '\u{2028}'..='\u{202e}'
            | '\u{2066}'..='\u{2069}'
    )
}
