//! What an operator can do about a request that failed.

use crate::etcd::config::Config;
use crate::etcd::error::EtcdError;

/// The parts of the settings on which a remedy depends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Access {
    is_encrypted: bool,
    has_identity: bool,
    has_user: bool,
}

/// How errors of the TLS library and the connection name an end of the connection before an answer.
const ENDED: &[&str] = &[
    "fatal alert",
    "connection closed",
    "broken pipe",
    "onnection reset",
    "unexpected EOF",
    "close_notify",
];

impl Access {
    pub(super) fn new(config: &Config) -> Self {
        let mut endpoints = config.endpoints.iter();
        Self {
            is_encrypted: endpoints.any(|endpoint| endpoint.starts_with("https://")),
            has_identity: config.identity.is_some(),
            has_user: config.credentials.is_some(),
        }
    }

    /// What to do about it; `None` where the error says too little.
    pub(super) fn remedy(self, error: &EtcdError) -> Option<&'static str> {
        match error {
            EtcdError::NotConnected(text) | EtcdError::Unknown(text) => self.of_connection(text),
            EtcdError::Refused(text) => self.of_refusal(text),
            EtcdError::Unavailable(_)
            | EtcdError::NoSpace(_)
            | EtcdError::Compacted
            | EtcdError::LeaseExpired => None,
        }
    }

    fn of_connection(self, text: &str) -> Option<&'static str> {
        if text.contains("invalid peer certificate: UnknownIssuer") {
            return Some(
                "name the authority that signed the certificates of the members in etcd.ca",
            );
        }
        if text.contains("invalid peer certificate") {
            return Some(
                "the certificate of the member must be valid today, and for the host in etcd.endpoints",
            );
        }
        if text.contains("InvalidContentType") {
            return Some(
                "the member does not use TLS: set it up with certificates, or write http:// in etcd.endpoints",
            );
        }
        let has_ended = ENDED.iter().any(|end| text.contains(end));
        match (has_ended, self.is_encrypted, self.has_identity) {
            (false, _, _) => None,
            (true, false, _) => Some("if the member uses TLS, write https:// in etcd.endpoints"),
            (true, true, false) => Some(
                "if the member requires a client certificate, set etcd.client_cert and etcd.client_key",
            ),
            (true, true, true) => Some(
                "the authority that the member trusts for clients must have signed the certificate in etcd.client_cert",
            ),
        }
    }

    fn of_refusal(self, text: &str) -> Option<&'static str> {
        if text.contains("authentication failed") {
            return Some("correct etcd.username and etcd.password");
        }
        let lacks_right = text.contains("permission denied") || text.contains("user name is empty");
        match (lacks_right, self.has_user) {
            (false, _) => None,
            (true, true) => {
                Some("grant etcd.username the right to read and write all keys with etcd.prefix")
            }
            (true, false) => Some("set etcd.username and etcd.password"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn access(endpoint: &str) -> Access {
        Access::new(&Config::plain(vec![endpoint.to_owned()]))
    }

    #[test]
    fn each_failure_names_the_keys_that_cure_it() {
        let (plain, encrypted) = (access("http://a:2379"), access("https://a:2379"));
        let known = Access {
            has_identity: true,
            has_user: true,
            ..encrypted
        };
        let ended = "transport error: connection closed";
        let unknown_issuer = "invalid peer certificate: UnknownIssuer";
        let rows = [
            (plain, EtcdError::Unknown(ended.to_owned()), "https://"),
            (
                encrypted,
                EtcdError::Unknown(ended.to_owned()),
                "etcd.client_key",
            ),
            (known, EtcdError::NotConnected(ended.to_owned()), "signed"),
            (
                known,
                EtcdError::NotConnected(unknown_issuer.to_owned()),
                "etcd.ca",
            ),
            (
                known,
                EtcdError::Refused("etcdserver: permission denied".to_owned()),
                "grant",
            ),
            (
                encrypted,
                EtcdError::Refused("etcdserver: permission denied".to_owned()),
                "etcd.username",
            ),
        ];
        for (access, error, part) in rows {
            let remedy = access.remedy(&error).unwrap_or_default();
            assert!(remedy.contains(part), "{error}: {remedy:?}");
        }
        let slow = EtcdError::Unknown("https://a:2379: no answer in time".to_owned());
        assert_eq!(encrypted.remedy(&slow), None, "nothing is known of it");
    }
}
