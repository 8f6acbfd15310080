//! The settings that inputs are judged with.

/// Passwords are `secret`; the hash costs next to nothing, so that inputs are many.
pub(crate) const SETTINGS: &str = r#"
[server]
public_url = "http://example.com"

[operations]
store = "operations.db"

[authentication]
tokens = "tokens.json"

[[issuer]]
name = "sso"
issuer = "https://sso.example.com"
audience = ["snapgate"]
jwks = "sso.json"
groups = ["readers=readers"]

[[backend]]
name = "hidden-backend"
kind = "sim"
vms = ["3*"]

[[user]]
name = "ann"
password_hash = "$argon2id$v=19$m=8,t=1,p=1$WOV57XxSOm3WI7S3TunXvQ$eOteaxagQi0qZvkzf60p8D2116HVd8xUgwo/i/1GOc4"

[[user]]
name = "reader"
password_hash = "$argon2id$v=19$m=8,t=1,p=1$WOV57XxSOm3WI7S3TunXvQ$eOteaxagQi0qZvkzf60p8D2116HVd8xUgwo/i/1GOc4"

[[grant]]
to = ["user:ann"]
actions = ["read", "create", "update", "protect", "delete", "restore", "observe"]
vms = ["*"]
backups = ["*"]

[[grant]]
to = ["user:reader", "group:readers"]
actions = ["read"]
vms = ["3*"]
backups = ["*"]
"#;

/// A token of `ann` that may only read one VM.
pub(crate) const TOKENS: &str = r#"{"format": 1, "tokens": [{
    "name": "nightly", "owner": "ann", "created": "2026-11-27T00:00:00Z",
    "sha256": "135ef9c4e7fb4a467e169317977748197a2df32956deff04aa4160bae6ae89f8",
    "actions": ["read"], "vms": ["33333"], "backups": ["*"]
}]}"#;

/// Routes of every kind; the last one takes all that is left.
pub(crate) const ROUTES: &str = r#"
[[passthrough]]
name = "console"
path = "/console"
upstreams = ["http://127.0.0.1:1"]
authentication = "none"
methods = ["GET", "HEAD"]
upgrade = true

[[passthrough]]
name = "api"
path = "/api/v2"
upstreams = ["http://127.0.0.1:1"]
allow = ["user:ann"]
strip_prefix = true
host = "upstream"

[[passthrough]]
name = "other"
path = "/"
hosts = ["other.example"]
upstreams = ["http://127.0.0.1:1"]
allow = ["user:reader"]
client_authorization = "keep"
"#;

/// The name of the backend, which no client may read either.
pub(crate) const BACKEND: &str = "hidden-backend";
