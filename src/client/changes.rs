//! What a client changes. Each change has a key by which the gateway recognises a repetition, so that it can be sent until there
//! is an answer.

use data_encoding::HEXLOWER;
use http::HeaderName;
use http::Method;
use serde_json::Value;

use crate::client::ClientError;
use crate::client::gateway::Gateway;
use crate::client::gateway_url::path_of;
use crate::client::observer::Observer;
use crate::client::request::Request;
use crate::client::wire::Status;

const IF_PLAN: HeaderName = HeaderName::from_static("if-plan");

/// A change of a backup, or the making of one.
#[derive(Clone, Debug)]
pub struct ChangeRequest {
    request: Request,
}

impl ChangeRequest {
    /// Makes a backup of the VM.
    ///
    /// # Errors
    /// [`ClientError::Usage`] for ids and keys that cannot be sent.
    pub fn create(vm: &str, body: &Value, key: &str) -> Result<Self, ClientError> {
        Self::new(Method::POST, &["vms", vm, "backups"], Some(body), key)
    }

    /// Changes the properties of a backup.
    ///
    /// # Errors
    /// [`ClientError::Usage`] for ids and keys that cannot be sent.
    pub fn update(
        (vm, backup): (&str, &str),
        body: &Value,
        key: &str,
    ) -> Result<Self, ClientError> {
        let path = ["vms", vm, "backups", backup];
        Self::new(Method::PUT, &path, Some(body), key)
    }

    /// Deletes a backup.
    ///
    /// # Errors
    /// [`ClientError::Usage`] for ids and keys that cannot be sent.
    pub fn delete((vm, backup): (&str, &str), key: &str) -> Result<Self, ClientError> {
        let path = ["vms", vm, "backups", backup];
        Self::new(Method::DELETE, &path, None, key)
    }

    /// Restores the VM from a backup.
    ///
    /// # Errors
    /// [`ClientError::Usage`] for ids and keys that cannot be sent.
    pub fn restore(
        (vm, backup): (&str, &str),
        body: &Value,
        key: &str,
    ) -> Result<Self, ClientError> {
        let path = ["vms", vm, "backups", backup, "restore"];
        Self::new(Method::POST, &path, Some(body), key)
    }

    fn new(
        method: Method,
        path: &[&str],
        body: Option<&Value>,
        key: &str,
    ) -> Result<Self, ClientError> {
        let request = Request::new(method, path_of(path)?).idempotency_key(key)?;
        let request = match body {
            Some(body) => request.json(body),
            None => request,
        };
        Ok(Self { request })
    }

    /// Only if a plan made now would have this fingerprint.
    ///
    /// # Errors
    /// [`ClientError::Usage`] when it cannot be sent.
    pub fn only_as_planned(mut self, fingerprint: &str) -> Result<Self, ClientError> {
        let quoted = format!("\"{}\"", fingerprint.trim_matches('"'));
        self.request = self.request.text_header(IF_PLAN, &quoted)?;
        Ok(self)
    }
}

impl Gateway {
    /// Sends the change until there is an answer, and returns the Status of the accepted operation.
    ///
    /// # Errors
    /// [`ClientError::Refused`] when nothing was accepted, [`ClientError::Unreachable`] when there is no answer.
    pub async fn submit(
        &self,
        change: &ChangeRequest,
        observer: &mut dyn Observer,
    ) -> Result<Status, ClientError> {
        Status::parse(&self.send(&change.request, observer).await?.body)
    }

    /// Asks that the operation at this path and query be cancelled.
    ///
    /// # Errors
    /// [`ClientError::Refused`] when it has ended or cannot be cancelled.
    pub async fn cancel(
        &self,
        target: &str,
        observer: &mut dyn Observer,
    ) -> Result<Status, ClientError> {
        let request = Request::new(Method::DELETE, target.to_owned());
        Status::parse(&self.send(&request, observer).await?.body)
    }
}

/// A key that no other change has.
///
/// # Errors
/// [`ClientError::Usage`] when the system has no randomness.
pub fn new_idempotency_key() -> Result<String, ClientError> {
    let mut bytes = [0_u8; 16];
    getrandom::fill(&mut bytes)
        .map_err(|error| ClientError::Usage(format!("no randomness: {error}")))?;
    let mut key = String::from("snapgate-");
    HEXLOWER.encode_append(&bytes, &mut key);
    Ok(key)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_has_its_key_and_the_fingerprint_of_its_plan() {
        let body = serde_json::json!({"note": "x"});
        let change = ChangeRequest::restore(("web 1", "456"), &body, "k-1").unwrap();
        let change = change.only_as_planned("abc").unwrap();
        let request = &change.request;
        assert_eq!(request.target, "/vms/web%201/backups/456/restore", "path");
        assert_eq!(request.headers["idempotency-key"], "k-1", "key");
        assert_eq!(request.headers["if-plan"], "\"abc\"", "quoted");
        let again = ChangeRequest::delete(("1", "2"), "k").unwrap();
        let again = again.only_as_planned("\"abc\"").unwrap();
        assert_eq!(again.request.headers["if-plan"], "\"abc\"", "quoted once");
        assert!(
            ChangeRequest::delete(("1", "2"), "a\nb").is_err(),
            "control"
        );
    }

    #[test]
    fn keys_differ() {
        let (one, other) = (
            new_idempotency_key().unwrap(),
            new_idempotency_key().unwrap(),
        );
        assert_ne!(one, other, "two changes");
        assert_eq!(one.len(), 41, "{one}");
    }
}
