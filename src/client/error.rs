//! Why a command of the client gets no further, and what that says about the gateway.

use std::fmt;

use serde_json::Value;
use serde_json::json;

/// Why there is no answer that can be used.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The command itself cannot be carried out as it was given; nothing was sent that changes anything.
    #[error("{0}")]
    Usage(String),
    /// The gateway refused the request; nothing was changed by it.
    #[error("{0}")]
    Refused(Box<Refusal>),
    /// The gateway did not answer, however often it was asked.
    #[error("the gateway cannot be reached: {why}")]
    Unreachable {
        /// The last failure.
        why: String,
        /// Whether it may have received the request all the same.
        was_sent: bool,
    },
    /// What answers is no gateway, or one that answers in another way.
    #[error("the server at this URL does not answer as a gateway does: {0}")]
    Invalid(String),
}

impl ClientError {
    /// The refusal, if it is one with this code.
    #[must_use]
    pub fn refusal(&self) -> Option<&Refusal> {
        match self {
            Self::Refused(refusal) => Some(refusal),
            Self::Usage(_) | Self::Unreachable { .. } | Self::Invalid(_) => None,
        }
    }

    /// Whether it is a refusal with one of these codes.
    #[must_use]
    pub fn has_code(&self, codes: &[&str]) -> bool {
        self.refusal()
            .is_some_and(|refusal| codes.contains(&refusal.code.as_str()))
    }
}

/// What a gateway says when it refuses a request.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Refusal {
    /// The HTTP status.
    pub status: u16,
    /// The stable code; empty where a server in between answered.
    pub code: String,
    /// What happened, as a sentence.
    pub text: String,
    /// What to do.
    pub hint: Option<String>,
    /// The member, parameter or header at fault.
    pub field: Option<String>,
    /// The id of the request, by which the operator finds it in log and audit trail.
    pub request_id: Option<String>,
}

impl Refusal {
    /// From the status and body of an answer.
    #[must_use]
    pub fn from_answer(status: u16, body: &[u8]) -> Self {
        let body: Value = serde_json::from_slice(body).unwrap_or_default();
        let message = body.pointer("/message/0");
        let text = |from: Option<&Value>, name: &str| {
            let text = from.and_then(|from| from.get(name)).and_then(Value::as_str);
            text.map(str::to_owned)
        };
        let sentence = text(message, "text").or_else(|| text(Some(&body), "detail"));
        Self {
            status,
            code: text(message, "code").unwrap_or_default(),
            text: sentence.unwrap_or_else(|| format!("the server answered {status}")),
            hint: text(message, "hint"),
            field: text(message, "field"),
            request_id: text(Some(&body), "instance"),
        }
    }

    /// The same for programs.
    #[must_use]
    pub fn to_json(&self) -> Value {
        json!({
            "status": self.status,
            "code": self.code,
            "text": self.text,
            "hint": self.hint,
            "field": self.field,
            "request_id": self.request_id,
        })
    }
}

/// One line: the sentence, what to do, and how the operator finds the request.
impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)?;
        if let Some(hint) = &self.hint {
            write!(f, " {hint}")?;
        }
        if let Some(field) = &self.field {
            write!(f, " ({field})")?;
        }
        if !self.code.is_empty() {
            write!(f, " [{} {}]", self.status, self.code)?;
        }
        if let Some(id) = &self.request_id {
            write!(f, " request {id}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_are_read_from_gateways_and_from_servers_in_between() {
        let body =
            br#"{"type":"/problems/NotPermitted","status":403,"detail":"No.","instance":"a-1",
            "message":[{"code":"NotPermitted","severity":"SEVERE","text":"No.","hint":"Ask."}]}"#;
        let refusal = Refusal::from_answer(403, body);
        assert_eq!(refusal.code, "NotPermitted", "the stable code");
        assert_eq!(
            refusal.to_string(),
            "No. Ask. [403 NotPermitted] request a-1",
            "one line"
        );
        let between = Refusal::from_answer(404, b"<html>not here</html>");
        assert_eq!(between.code, "", "no code");
        assert_eq!(between.to_string(), "the server answered 404", "no HTML");
    }
}
