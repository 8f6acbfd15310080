//! Which header fields of a request are not passed on, and which of these a route may keep.

use http::HeaderName;
use http::header;

/// Fields that claim an address of the client, or how it reached this gateway.
const ADDRESSES: &[&str] = &[
    "cf-connecting-ip",
    "cf-connecting-ipv6",
    "client-ip",
    "fastly-client-ip",
    "front-end-https",
    "true-client-ip",
    "x-appengine-user-ip",
    "x-azure-clientip",
    "x-azure-socketip",
    "x-client-ip",
    "x-cluster-client-ip",
    "x-envoy-external-address",
    "x-forwarded",
    "x-originating-ip",
    "x-real-ip",
    "x-scheme",
    "x-url-scheme",
];

/// Fields by which the proxies in front of applications say who the client is, after they have checked it. An upstream that
/// trusts them trusts every client that can send them.
const IDENTITIES: &[&str] = &[
    "auth-user",
    "iv-creds",
    "iv-groups",
    "iv-user",
    "oam-remote-user",
    "sm-universalid",
    "sm-user",
    "x-anonymous-consumer",
    "x-clientcert",
    "x-credential-identifier",
    "x-credential-username",
    "x-oam-remote-user",
    "x-ssl",
    "x-user",
    "x-username",
    "x-userinfo",
];

/// The same by how their names begin.
const IDENTITIES_BEGIN: &[&str] = &[
    "cf-access-",
    "client-cert",
    "http-remote-",
    "mellon-",
    "oidc-",
    "remote-",
    "shib-",
    "ssl-",
    "tailscale-",
    "x-amzn-mtls-",
    "x-amzn-oidc-",
    "x-apache-ssl",
    "x-arr-",
    "x-auth-request-",
    "x-authenticated-",
    "x-authentik-",
    "x-client-cert",
    "x-client-dn",
    "x-client-ssl-",
    "x-client-tls-",
    "x-client-verif",
    "x-consumer-",
    "x-forwarded-",
    "x-goog-authenticated-",
    "x-goog-iap-",
    "x-ms-client-principal",
    "x-ms-token-",
    "x-mtls-",
    "x-pomerium-",
    "x-proxy-",
    "x-remote-",
    "x-ssl-",
    "x-tailscale-",
    "x-tls-client-",
    "x-vouch-",
    "x-webauth-",
];

/// Fields that claim another method or target than the one that was decided about. No route keeps them.
const OVERRIDES: &[&str] = &[
    "x-http-method",
    "x-http-method-override",
    "x-method-override",
    "x-original-uri",
    "x-original-url",
    "x-rewrite-url",
];

/// Fields between two neighbours only (RFC 9110 section 7.6.1), besides those of framing and upgrades, which the proxy
/// that writes the request handles.
const HOPS: &[&str] = &[
    "http2-settings",
    "keep-alive",
    "proxy-authenticate",
    "proxy-authorization",
    "proxy-connection",
    "te",
    "trailer",
];

/// Fields of framing, of the connection, and those that the gateway sets or has a key of its own for.
const OWN: &[&str] = &[
    "authorization",
    "connection",
    "content-length",
    "expect",
    "forwarded",
    "host",
    "traceparent",
    "tracestate",
    "transfer-encoding",
    "upgrade",
    "via",
    "x-forwarded-for",
    "x-forwarded-host",
    "x-forwarded-proto",
    "x-request-id",
];

/// Fields that most requests have and that none of these rules is about, so that they need not be looked for in the lists.
static USUAL: [HeaderName; 12] = [
    header::HOST,
    header::USER_AGENT,
    header::ACCEPT,
    header::AUTHORIZATION,
    header::CONTENT_LENGTH,
    header::CONTENT_TYPE,
    header::COOKIE,
    header::ACCEPT_ENCODING,
    header::ACCEPT_LANGUAGE,
    header::CONNECTION,
    header::ORIGIN,
    header::REFERER,
];

/// What a route says about fields of its requests.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FieldRule {
    /// Left out besides what always is.
    remove: Vec<HeaderName>,
    /// Passed on although they claim who the client is.
    keep: Vec<HeaderName>,
}

/// Why a field cannot be named in a rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FieldError {
    /// It is part of the framing, or the gateway sets it.
    #[error("is written by the gateway itself")]
    Own,
    /// It is between neighbours or claims another request, and is never passed on.
    #[error("is never passed on")]
    Never,
    /// It is passed on in any case.
    #[error("is passed on without this")]
    Needless,
}

impl FieldRule {
    /// Leaves one more field out.
    ///
    /// # Errors
    /// [`FieldError::Own`].
    pub fn remove(&mut self, name: HeaderName) -> Result<(), FieldError> {
        if OWN.contains(&name.as_str()) {
            return Err(FieldError::Own);
        }
        self.remove.push(name);
        Ok(())
    }

    /// Passes one field on that claims who the client is.
    ///
    /// # Errors
    /// [`FieldError`]: it is no such field.
    pub fn keep(&mut self, name: HeaderName) -> Result<(), FieldError> {
        let text = name.as_str();
        if OWN.contains(&text) {
            return Err(FieldError::Own);
        }
        if OVERRIDES.contains(&text) || HOPS.contains(&text) || text.contains('_') {
            return Err(FieldError::Never);
        }
        if !is_claim(text) {
            return Err(FieldError::Needless);
        }
        self.keep.push(name);
        Ok(())
    }

    /// Whether the field is named both to be left out and to be kept.
    #[must_use]
    pub fn contradiction(&self) -> Option<&HeaderName> {
        self.keep.iter().find(|name| self.remove.contains(name))
    }

    /// Whether a field of the client is left out.
    pub(super) fn drops(&self, name: &HeaderName) -> bool {
        self.remove.contains(name) || (!USUAL.contains(name) && self.drops_unusual(name))
    }

    fn drops_unusual(&self, name: &HeaderName) -> bool {
        let text = name.as_str();
        // Some servers read `-` and `_` as the same, and would take such a field for one of those above.
        text.contains('_')
            || OVERRIDES.contains(&text)
            || HOPS.contains(&text)
            || (is_claim(text) && !self.keep.contains(name))
    }
}

/// Whether the field claims who or where the client is.
fn is_claim(name: &str) -> bool {
    name == "forwarded"
        || ADDRESSES.contains(&name)
        || IDENTITIES.contains(&name)
        || IDENTITIES_BEGIN
            .iter()
            .any(|beginning| name.starts_with(beginning))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> HeaderName {
        HeaderName::from_bytes(text.as_bytes()).unwrap()
    }

    const CLAIMS: [&str; 40] = [
        "X-WEBAUTH-USER",
        "X-WEBAUTH-GROUPS",
        "X-Auth-Request-User",
        "X-Auth-Request-Access-Token",
        "X-SSL-Client-Cert",
        "X-SSL-Client-Verify",
        "X-SSL",
        "Ssl-Client-Cert",
        "Ssl-Client-Verify",
        "SSL-Client-S-DN",
        "Client-Cert",
        "Client-Cert-Chain",
        "X-Client-Cert",
        "X-Client-Verify",
        "X-Client-DN",
        "X-Forwarded-User",
        "X-Forwarded-Preferred-Username",
        "X-Forwarded-Email",
        "X-Forwarded-Groups",
        "X-Forwarded-Access-Token",
        "X-Forwarded-Client-Cert",
        "Remote-User",
        "Remote-Groups",
        "X-Remote-User",
        "X-Remote-Group",
        "X-Remote-Extra-Scopes",
        "X-Authenticated-User",
        "X-Authenticated-Groups",
        "X-Authenticated-Userid",
        "X-Goog-Authenticated-User-Email",
        "X-MS-CLIENT-PRINCIPAL-NAME",
        "X-Amzn-Oidc-Identity",
        "Cf-Access-Authenticated-User-Email",
        "Tailscale-User-Login",
        "X-Authentik-Username",
        "X-Consumer-Username",
        "OIDC-Claim-Sub",
        "X-Proxy-User",
        "X-Real-IP",
        "True-Client-IP",
    ];

    #[test]
    fn what_claims_who_the_client_is_is_left_out_unless_kept_by_name() {
        for text in CLAIMS {
            let mut rule = FieldRule::default();
            assert!(rule.drops(&name(text)), "{text} is left out");
            assert_eq!(rule.keep(name(text)), Ok(()), "{text} may be kept");
            assert!(!rule.drops(&name(text)), "{text} is kept by name");
            let underscores = text.replace('-', "_");
            if underscores != text {
                assert!(rule.drops(&name(&underscores)), "{underscores}");
                let refused = rule.keep(name(&underscores));
                assert_eq!(refused, Err(FieldError::Never), "{underscores}");
            }
        }
        for text in [
            "Accept",
            "Cookie",
            "User-Agent",
            "X-Auth-Token",
            "X-User-Agent",
            "X-Csrf-Token",
            "X-Requested-With",
            "X-Client-Version",
            "X-Authorization",
            "Origin",
        ] {
            let mut rule = FieldRule::default();
            assert!(!rule.drops(&name(text)), "{text} is passed on");
            let kept = rule.keep(name(text));
            assert_eq!(kept, Err(FieldError::Needless), "{text}");
            assert_eq!(rule.remove(name(text)), Ok(()), "{text}");
            assert!(rule.drops(&name(text)), "{text} is removed by name");
        }
    }

    #[test]
    fn usual_fields_are_in_none_of_the_lists() {
        for usual in &USUAL {
            let is_dropped = FieldRule::default().drops_unusual(usual);
            assert!(!is_dropped, "{usual}");
        }
    }

    #[test]
    fn what_the_gateway_writes_or_never_passes_on_is_no_matter_of_a_route() {
        for text in OWN {
            let mut rule = FieldRule::default();
            let answers = (rule.remove(name(text)), rule.keep(name(text)));
            let expected = (Err(FieldError::Own), Err(FieldError::Own));
            assert_eq!(answers, expected, "{text}");
        }
        for text in HOPS.iter().chain(OVERRIDES) {
            let mut rule = FieldRule::default();
            assert_eq!(rule.keep(name(text)), Err(FieldError::Never), "{text}");
            assert!(rule.drops(&name(text)), "{text}");
        }
    }
}
