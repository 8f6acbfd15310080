//! What commands read from standard input.

use std::io;
use std::io::Read;

/// At most so many bytes of standard input.
pub(super) fn read_input(most: u64) -> io::Result<String> {
    let mut text = String::new();
    io::stdin().lock().take(most).read_to_string(&mut text)?;
    Ok(text)
}
