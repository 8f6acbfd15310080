//! `[[issuer]]`.

use crate::config::tables::NAME_FORM;
use crate::model::limits;
use crate::schema::TextList;
use crate::schema::declare_table;
use crate::schema::default_text;
use crate::schema::duration;
use crate::schema::optional_text;
use crate::schema::required_text;

declare_table! { "issuer", true, "An identity provider whose JSON Web Tokens are accepted.",
    NAME: Text = "name", required_text(NAME_FORM), Reload,
        "The prefix of its callers' names: the subject `4711` is the principal `NAME:4711`.", Shown = "\"corp\"";
    ISSUER: Text = "issuer", required_text("text"), Reload, "The `iss` of its tokens, exactly.", Shown = "\"https://sso.example.com\"";
    AUDIENCE: TextList = "audience", TextList { default: None, form: "texts" }, Reload, "One of these must be in `aud`.", Shown = "[\"snapgate\"]";
    JWKS: Text = "jwks", optional_text("required unless `jwks_url`", "path"), Reload,
        "The file with its public keys (RFC 7517).", Shown = "\"sso.jwks.json\"";
    JWKS_URL: Text = "jwks_url", optional_text("required unless `jwks`", "`https://` URL, or `http://` of a loopback address"), Reload,
        "The URL of its public keys: its `jwks_uri`. Redirects are not followed.",
        Commented = "\"https://sso.example.com/protocol/openid-connect/certs\"";
    JWKS_CA: Text = "jwks_ca", optional_text("those of the system", "path"), Reload,
        "The authorities (PEM) that signed the certificate of the server at `jwks_url`.", Commented = "\"sso-ca.pem\"";
    JWKS_REFRESH: DurationValue = "jwks_refresh", duration(limits::ISSUER_REFRESH, 1, 24 * 3600), Reload,
        "The longest time until the keys at `jwks_url` are fetched again; a shorter `max-age` of the response takes precedence, down to a minute.";
    JWKS_MAX_AGE: DurationValue = "jwks_max_age", duration(limits::ISSUER_KEYS_AGE, 60, 30 * 24 * 3600), Reload,
        "How long the last keys of `jwks_url` are trusted while fetching fails.";
    ALGORITHMS: TextList = "algorithms", TextList { default: Some(&["RS256", "PS256", "ES256", "ES384", "EdDSA"]), form: "`RS256`, `PS256`, `ES256`, `ES384`, `EdDSA`" }, Reload,
        "The algorithms that are accepted.";
    SUBJECT_CLAIM: Text = "subject_claim", default_text("sub", "name of a claim"), Reload,
        "The claim that names the caller: 1 to 128 characters of visible ASCII.";
    GROUPS_CLAIM: Text = "groups_claim", default_text("groups", "name of a claim"), Reload,
        "The claim with the caller's groups, a string or an array of strings.";
    GROUPS: TextList = "groups", TextList { default: Some(&[]), form: "`THEIRS=OURS`" }, Reload,
        "The names of its groups here; groups that are not listed are ignored.", Shown = "[\"vm-operators=ops\"]";
    LEEWAY: DurationValue = "leeway", duration(limits::ISSUER_LEEWAY, 0, 600), Reload, "How far its clock may differ from the gateway's.";
}
