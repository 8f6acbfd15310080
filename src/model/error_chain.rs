//! An error and everything behind it.

use std::error::Error;
use std::io;
use std::iter;

/// The error, then what caused it, and so on to the first cause. What an I/O error wraps is one of them.
pub fn error_causes<'e>(
    error: &'e (dyn Error + 'static),
) -> impl Iterator<Item = &'e (dyn Error + 'static)> {
    iter::successors(Some(error), |cause| next_cause(*cause))
}

fn next_cause<'e>(error: &'e (dyn Error + 'static)) -> Option<&'e (dyn Error + 'static)> {
    // An I/O error does not name what it wraps as its source, but the source of that.
    match error
        .downcast_ref::<io::Error>()
        .and_then(io::Error::get_ref)
    {
        Some(inner) => Some(inner),
        None => error.source(),
    }
}

/// The texts of the error and of everything behind it, in one line, without what an error repeats of its cause.
#[must_use]
pub fn error_chain(error: &(dyn Error + 'static)) -> String {
    let mut text = error.to_string();
    for cause in error_causes(error).skip(1) {
        let cause = cause.to_string();
        if !text.ends_with(&cause) {
            text.push_str(": ");
            text.push_str(&cause);
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("cannot connect")]
    struct Outer(#[source] io::Error);

    #[derive(Debug, thiserror::Error)]
    #[error("the certificate has expired")]
    struct Inner;

    #[test]
    fn what_an_io_error_wraps_is_found_and_nothing_is_repeated() {
        let error = Outer(io::Error::other(Inner));
        assert_eq!(
            error_chain(&error),
            "cannot connect: the certificate has expired",
            "the I/O error repeats what it wraps"
        );
        assert!(
            error_causes(&error).any(|cause| cause.is::<Inner>()),
            "the wrapped error"
        );
    }
}
