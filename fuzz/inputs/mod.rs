//! What is fuzzed: one function for each kind of input, with what must hold for any bytes.
//!
//! Compiled twice: into the fuzz targets of this folder, and into the ordinary tests, which feed every file of
//! `fuzz/corpus/` through the same functions.

mod answers;
mod client_of_answers;
mod configuration;
mod gateway;
mod headers;
mod invariants;
mod issuer;
mod listener;
pub(crate) mod mutation;
mod passing;
pub(crate) mod reference_answer;
pub(crate) mod reference_http1;
pub(crate) mod reference_http2;
mod request;
mod requests;
mod settings;
mod tokens;
mod world;

/// Panics when the gateway does with the bytes what it must not.
pub(crate) type Input = fn(&[u8]);

/// Every kind of input: the name of its fuzz target and of its folder in `corpus/`.
pub(crate) const INPUTS: &[(&str, Input)] = &[
    ("accept", headers::accept),
    ("answers", answers::answers),
    ("basic", headers::basic),
    ("bodies", requests::bodies),
    ("config", configuration::config),
    ("decision", requests::decision),
    ("jwks", tokens::jwks),
    ("jwt", tokens::jwt),
    ("listener", listener::listener),
    ("passing", passing::passing),
    ("status_query", requests::status_query),
    ("version", headers::version),
];

/// Feeds the bytes to the input of that name.
///
/// # Panics
/// When something that must hold does not, or there is no such input.
pub(crate) fn feed(name: &str, data: &[u8]) {
    let found = INPUTS.iter().find(|(known, _)| *known == name);
    let (_, input) = found.unwrap_or_else(|| panic!("no such input: {name}"));
    input(data);
}
