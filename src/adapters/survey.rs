//! `snapgate init --from`: what a kind asks a VM manager, and what it writes into the configuration.

use std::path::PathBuf;

use futures_util::future::BoxFuture;

use crate::model::Deadline;
use crate::model::Secret;
use crate::model::VmId;

/// Which VM manager, and how gateway and VM manager prove who they are.
pub(crate) struct SurveyRequest {
    /// What stands behind `KIND://`.
    pub(crate) address: String,
    /// Where the gateway reads its credential: `file:PATH` or `env:NAME`, as the configuration is going to say.
    pub(crate) secret_reference: String,
    /// The credential itself.
    pub(crate) secret: Secret,
    /// How the servers prove who they are.
    pub(crate) trust: SurveyTrust,
    /// When the answer must be there.
    pub(crate) by: Deadline,
}

/// How the servers of a VM manager prove who they are.
#[derive(Clone, Debug)]
pub(crate) enum SurveyTrust {
    /// Nothing was given: the credential must not be sent yet.
    Unverified,
    /// An authority in this file (PEM) signed their certificates.
    Authority(PathBuf),
    /// The SHA-256 of the certificate of each server, in the order of the address.
    Fingerprints(Vec<String>),
}

/// A server, and the SHA-256 of the certificate that it shows.
#[derive(Clone, Debug)]
pub(crate) struct ShownCertificate {
    /// Host and port.
    pub(crate) server: String,
    /// 64 hexadecimal digits.
    pub(crate) fingerprint: String,
}

/// Why there is no survey.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SurveyError {
    /// The operator has to compare these certificates first. No credential was sent.
    #[error("the certificates of the servers are not verified")]
    Unverified(Vec<ShownCertificate>),
    /// In words for the operator.
    #[error("{0}")]
    Failed(String),
}

/// What a VM manager has.
#[derive(Debug)]
pub(crate) struct Survey {
    /// The tables of the backend, as TOML with comments.
    pub(crate) backend: String,
    /// Its VMs.
    pub(crate) vms: Vec<SurveyedVm>,
}

/// One VM.
#[derive(Clone, Debug)]
pub(crate) struct SurveyedVm {
    /// Its id.
    pub(crate) id: VmId,
    /// Its name and what else an operator recognises it by, on one line.
    pub(crate) about: String,
}

/// Asks a VM manager what it has.
pub(crate) type SurveyFn = fn(SurveyRequest) -> BoxFuture<'static, Result<Survey, SurveyError>>;

/// A text as a string of TOML.
pub(crate) fn quote_toml(text: &str) -> String {
    let escaped = text.chars().map(|character| match character {
        '"' | '\\' => format!("\\{character}"),
        other if other.is_control() => format!("\\U{:08X}", u32::from(other)),
        other => other.to_string(),
    });
    format!("\"{}\"", escaped.collect::<String>())
}

/// A text of a VM manager as a part of a comment: one line, of bounded length.
pub(crate) fn comment_text(text: &str) -> String {
    let plain = text.chars().map(|character| {
        if character.is_control() {
            ' '
        } else {
            character
        }
    });
    plain.take(COMMENT_CHARS_MAX).collect()
}

/// Names of guests are shorter.
const COMMENT_CHARS_MAX: usize = 100;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_of_others_cannot_leave_their_place() {
        assert_eq!(comment_text("web\n[insecure]\r\tx"), "web [insecure]  x");
        assert_eq!(comment_text(&"x".repeat(500)).len(), COMMENT_CHARS_MAX);
        for text in ["plain", "a\"b\\c\n[insecure]", "n\u{e4}chtlich", "'", ""] {
            let written = format!("key = {}", quote_toml(text));
            let read: toml::Table = written.parse().unwrap();
            assert_eq!(
                read.get("key").and_then(|value| value.as_str()),
                Some(text),
                "{written}"
            );
            assert_eq!(read.len(), 1, "{written}");
        }
    }
}
