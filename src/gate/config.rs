//! The configuration of the gate. A reload replaces it as a whole; requests under way keep the old one.

use std::collections::BTreeMap;
use std::num::NonZeroU32;
use std::time::Duration;

use crate::gate::authn::Issuer;
use crate::gate::authn::TokenDigest;
use crate::gate::client_address::TrustedProxies;
use crate::gate::grant::Grant;
use crate::gate::grant::Scope;
use crate::gate::passthrough::PassThroughRoute;
use crate::gate::password;
use crate::gate::web_origin::WebOrigin;
use crate::model::BackendName;
use crate::model::CertificateName;
use crate::model::GroupName;
use crate::model::Pattern;
use crate::model::Principal;
use crate::model::PrincipalName;
use crate::model::Secret;
use crate::model::Timestamp;
use crate::model::TokenName;
use crate::model::limits;

/// The configuration of the gate.
#[derive(Clone, Debug)]
pub struct Config {
    /// What absolute links in replies begin with.
    pub public_url: PublicUrl,
    /// The origins whose pages may use the API in a browser, besides that of `public_url`.
    pub allowed_origins: Vec<WebOrigin>,
    /// Whether the page for people is served at `/ui/`.
    pub page: bool,
    /// The specification version header, and how strictly requests are read.
    pub specification: Specification,
    /// The proxies whose reports about their clients are trusted.
    pub trusted_proxies: TrustedProxies,
    /// Who may call.
    pub credentials: CredentialRule,
    /// The lockout after failed logins.
    pub lockout: LockoutRule,
    /// How much one client may ask for.
    pub rates: RateLimits,
    /// Who may do what.
    pub grants: Vec<Grant>,
    /// Which VM is on which backend.
    pub placements: Vec<Placement>,
    /// What is passed through to VM managers' own interfaces.
    pub passthrough: Vec<PassThroughRoute>,
    /// Sizes and times.
    pub limits: Limits,
}

/// `http://` or `https://`, a host, perhaps a port and a path; without a trailing slash, query or fragment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PublicUrl(String);

impl PublicUrl {
    /// Takes the text if it is such a URL; `None` when not.
    #[must_use]
    pub fn new(text: &str) -> Option<Self> {
        let uri: http::Uri = text.parse().ok()?;
        let scheme = uri.scheme_str()?;
        let authority = uri.authority()?;
        let plain = (scheme == "http" || scheme == "https")
            && uri.query().is_none()
            && !text.contains('#')
            && !authority.as_str().contains('@')
            && !authority.host().is_empty();
        plain.then(|| Self(text.trim_end_matches('/').to_owned()))
    }

    /// The text without a trailing slash.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The origin of pages that come from this URL.
    #[must_use]
    pub fn origin(&self) -> Option<WebOrigin> {
        let (scheme, rest) = self.0.split_once("://")?;
        let authority = rest.split('/').next().unwrap_or(rest);
        WebOrigin::parse(&format!("{scheme}://{authority}")).ok()
    }

    /// How clients reach the gateway: `http` or `https`.
    #[must_use]
    pub fn scheme(&self) -> &'static str {
        match self.0.split_once(':') {
            Some((scheme, _)) if scheme.eq_ignore_ascii_case("https") => "https",
            Some(_) | None => "http",
        }
    }
}

/// How a request without a specification version header is handled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnMissingVersion {
    /// Refused with 400.
    Reject,
    /// The newest version (Spec: "Common Behaviors").
    AssumeCurrent,
}

/// How requests are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Profile {
    /// The errors in the specification's own examples are accepted; unknown members are ignored.
    Lenient,
    /// They are refused.
    Strict,
}

/// How specification versions are handled.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Specification {
    /// The versions taken, oldest first; at least one.
    pub supported: Vec<String>,
    /// A request without the header.
    pub on_missing: OnMissingVersion,
    /// How requests are read unless they say otherwise.
    pub profile: Profile,
}

impl Default for Specification {
    fn default() -> Self {
        Self {
            supported: ["0.1", "0.2", "0.8"].map(str::to_owned).to_vec(),
            on_missing: OnMissingVersion::Reject,
            profile: Profile::Lenient,
        }
    }
}

/// A password hash in PHC (`$argon2id$`) or crypt (`$2a$`, `$2b$`, `$2y$`) form, checked when it was read.
#[derive(Clone, Debug)]
pub struct PasswordHash(Secret);

impl PasswordHash {
    /// Takes the text if it is a hash of a kind that can be verified, with acceptable cost.
    ///
    /// # Errors
    /// A sentence that says what is wrong, without the hash.
    pub fn new(text: String) -> Result<Self, &'static str> {
        password::check(&text)?;
        Ok(Self(Secret::new(text)))
    }

    /// The hash.
    #[must_use]
    pub fn reveal(&self) -> &str {
        self.0.reveal()
    }
}

/// One caller.
#[derive(Clone, Debug)]
pub struct User {
    /// The hash of the password.
    pub password: PasswordHash,
    /// The groups, sorted and without duplicates.
    pub groups: Vec<GroupName>,
}

/// A rate limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    /// Requests a second.
    pub per_second: NonZeroU32,
    /// Requests that may come at once after a pause.
    pub burst: NonZeroU32,
}

/// How much one client may ask for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RateLimits {
    /// Requests of one principal in a time.
    pub principal: Option<Rate>,
    /// Requests from one address (IPv6: one /64) in a time. Loopback addresses have no limit.
    pub address: Option<Rate>,
    /// Concurrent requests of one principal; zero means no limit.
    pub principal_concurrent: usize,
    /// Concurrent requests from one address; zero means no limit.
    pub address_concurrent: usize,
    /// Requests of one principal that wait for Statuses at once; zero means any number.
    pub principal_waiters: usize,
}

impl Default for RateLimits {
    fn default() -> Self {
        let size = |limit: u64| usize::try_from(limit).unwrap_or(usize::MAX);
        Self {
            principal: None,
            address: None,
            principal_concurrent: size(limits::PRINCIPAL_CONCURRENT),
            address_concurrent: 0,
            principal_waiters: size(limits::PRINCIPAL_WAITERS),
        }
    }
}

/// The lockout after failed logins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LockoutRule {
    /// Wrong passwords of one user from one address that cost nothing; zero means that any number does.
    pub attempts: u32,
    /// The same of one address, whatever the user.
    pub address_attempts: u32,
    /// The longest lock-out.
    pub longest: Duration,
}

impl Default for LockoutRule {
    fn default() -> Self {
        let number = |limit: u64| u32::try_from(limit).unwrap_or(u32::MAX);
        Self {
            attempts: number(limits::LOCKOUT_ATTEMPTS),
            address_attempts: number(limits::LOCKOUT_ADDRESS_ATTEMPTS),
            longest: limits::LOCKOUT_LONGEST,
        }
    }
}

/// One API token. Dead while there is no user of the owner's name.
#[derive(Clone, Debug)]
pub struct ApiToken {
    /// Its name.
    pub name: TokenName,
    /// Whose rights it has, at most.
    pub owner: PrincipalName,
    /// The hash of the token.
    pub digest: TokenDigest,
    /// From when on it no longer counts; it always does when `None`.
    pub expires: Option<Timestamp>,
    /// What it may do of what its owner may.
    pub scope: Scope,
}

/// Who may call, and how long a verified password is remembered.
#[derive(Clone, Debug)]
pub struct CredentialRule {
    /// The callers by name.
    pub users: BTreeMap<PrincipalName, User>,
    /// The callers by a name in their certificate.
    pub certificates: BTreeMap<CertificateName, Principal>,
    /// The API tokens; `None` when tokens are not accepted.
    pub tokens: Option<Vec<ApiToken>>,
    /// The accepted issuers of JSON Web Tokens.
    pub issuers: Vec<Issuer>,
    /// How long a verified password is remembered; zero means never.
    pub remember: Duration,
}

/// Says that VMs are on a backend. The pattern is an exact id, or a prefix followed by one `*`;
/// an exact id wins over prefixes, a longer prefix over a shorter one.
#[derive(Clone, Debug)]
pub struct Placement {
    /// Which VMs.
    pub pattern: Pattern,
    /// Where they are.
    pub backend: BackendName,
}

/// Sizes and times of requests.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Largest request body in bytes.
    pub body_bytes: usize,
    /// Longest request target in bytes.
    pub target_bytes: usize,
    /// Largest request head in bytes, names and values.
    pub header_bytes: usize,
    /// Most header fields.
    pub header_count: usize,
    /// Longest `Prefer: wait`.
    pub wait: Duration,
    /// Longest stream of events.
    pub stream: Duration,
    /// Most requests waiting for Statuses at once, streams among them.
    pub waiters: usize,
}

impl Default for Limits {
    fn default() -> Self {
        let size = |limit: u64| usize::try_from(limit).unwrap_or(usize::MAX);
        Self {
            body_bytes: size(limits::BODY_BYTES),
            target_bytes: size(limits::TARGET_BYTES),
            header_bytes: size(limits::HEADER_BYTES),
            header_count: size(limits::HEADER_COUNT),
            wait: limits::WAIT,
            stream: limits::STREAM,
            waiters: size(limits::WAITERS),
        }
    }
}
