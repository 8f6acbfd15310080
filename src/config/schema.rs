//! Every key of the configuration file, declared once: its name, unit, default, limits and when a change of it counts.

use std::time::Duration;

use crate::gate::PASS_THROUGH_METHODS;
use crate::model::limits;

/// When a changed value counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Applies {
    /// With the reload that reads it.
    AtOnce,
    /// With the next start.
    Restart,
}

/// One key; `K` is the kind of its value.
#[derive(Clone, Copy, Debug)]
pub(super) struct Key<K> {
    pub(super) name: &'static str,
    pub(super) kind: K,
    pub(super) applies: Applies,
    pub(super) help: &'static str,
}

/// `true` or `false`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Flag(pub(super) bool);

/// A whole number.
#[derive(Clone, Copy, Debug)]
pub(super) struct Count {
    pub(super) default: u64,
    pub(super) min: u64,
    pub(super) max: u64,
}

/// A duration with its unit.
#[derive(Clone, Copy, Debug)]
pub(super) struct Span {
    pub(super) default: Duration,
    pub(super) min: Duration,
    pub(super) max: Duration,
}

/// A duration with its unit that has the value of another key of the same table when it is absent.
#[derive(Clone, Copy, Debug)]
pub(super) struct SpanLike {
    /// In words: that of which key.
    pub(super) absent: &'static str,
    pub(super) min: Duration,
    pub(super) max: Duration,
}

/// A number of bytes with its unit.
#[derive(Clone, Copy, Debug)]
pub(super) struct Size {
    pub(super) default: u64,
    pub(super) min: u64,
    pub(super) max: u64,
}

/// One of some words.
#[derive(Clone, Copy, Debug)]
pub(super) struct Word {
    pub(super) default: Option<&'static str>,
    pub(super) allowed: &'static [&'static str],
}

/// What stands for a text that is not given.
#[derive(Clone, Copy, Debug)]
pub(super) enum Absent {
    /// It must be given.
    Mistake,
    /// This is taken.
    Default(&'static str),
    /// Nothing is taken; what that means, in words.
    Means(&'static str),
}

/// Text of some form.
#[derive(Clone, Copy, Debug)]
pub(super) struct Text {
    pub(super) absent: Absent,
    pub(super) form: &'static str,
}

/// A list of texts.
#[derive(Clone, Copy, Debug)]
pub(super) struct Texts {
    /// Taken when the key is absent; `None` when it must be given.
    pub(super) default: Option<&'static [&'static str]>,
    pub(super) form: &'static str,
}

/// What documentation says about a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Description {
    pub(super) name: &'static str,
    /// The default as it is written in the file; `None` when there is none.
    pub(super) default: Option<String>,
    /// What stands in a table of defaults when there is none.
    pub(super) without: &'static str,
    /// Form, unit and limits.
    pub(super) form: String,
    pub(super) applies: Applies,
    pub(super) help: &'static str,
}

/// A key of any kind.
pub(super) trait Declared: Sync {
    /// What documentation says about it.
    fn describe(&self) -> Description;
    /// Its name alone.
    fn name(&self) -> &'static str;
}

/// A kind of value, told in words.
pub(super) trait Form {
    /// The default as it is written, what stands for a missing one, and the form with unit and limits.
    fn told(&self) -> (Option<String>, &'static str, String);
}

impl<K: Form + Sync> Declared for Key<K> {
    fn describe(&self) -> Description {
        let (default, without, form) = self.kind.told();
        Description {
            name: self.name,
            default,
            without,
            form,
            applies: self.applies,
            help: self.help,
        }
    }

    fn name(&self) -> &'static str {
        self.name
    }
}

/// A duration as it is written in the file.
pub(super) fn written(span: Duration) -> String {
    let millis = span.as_millis();
    let units = [
        (86_400_000, "d"),
        (3_600_000, "h"),
        (60_000, "m"),
        (1000, "s"),
    ];
    for (length, unit) in units {
        if millis >= length && millis.is_multiple_of(length) {
            let number = millis.checked_div(length).unwrap_or_default();
            return format!("{number}{unit}");
        }
    }
    if millis == 0 {
        "0s".to_owned()
    } else {
        format!("{millis}ms")
    }
}

/// A size as it is written in the file.
pub(super) fn written_size(bytes: u64) -> String {
    const KIB: u64 = 1024;
    const MIB: u64 = 1024 * 1024;
    if bytes >= MIB && bytes.is_multiple_of(MIB) {
        format!("{}MiB", bytes.wrapping_div(MIB))
    } else if bytes >= KIB && bytes.is_multiple_of(KIB) {
        format!("{}KiB", bytes.wrapping_div(KIB))
    } else {
        format!("{bytes}B")
    }
}

impl Form for Flag {
    fn told(&self) -> (Option<String>, &'static str, String) {
        (Some(self.0.to_string()), "", "`true` or `false`".to_owned())
    }
}

impl Form for Count {
    fn told(&self) -> (Option<String>, &'static str, String) {
        let form = format!("number, {} to {}", self.min, self.max);
        (Some(self.default.to_string()), "", form)
    }
}

impl Form for Span {
    fn told(&self) -> (Option<String>, &'static str, String) {
        let form = format!("duration, {} to {}", written(self.min), written(self.max));
        (Some(quoted(&written(self.default))), "", form)
    }
}

impl Form for SpanLike {
    fn told(&self) -> (Option<String>, &'static str, String) {
        let form = format!("duration, {} to {}", written(self.min), written(self.max));
        (None, self.absent, form)
    }
}

impl Form for Size {
    fn told(&self) -> (Option<String>, &'static str, String) {
        let (min, max) = (written_size(self.min), written_size(self.max));
        let default = quoted(&written_size(self.default));
        (Some(default), "", format!("size, {min} to {max}"))
    }
}

impl Form for Word {
    fn told(&self) -> (Option<String>, &'static str, String) {
        let words: Vec<String> = self.allowed.iter().map(|it| quoted(it)).collect();
        (self.default.map(quoted), "required", words.join(" or "))
    }
}

impl Form for Text {
    fn told(&self) -> (Option<String>, &'static str, String) {
        let (default, without) = match self.absent {
            Absent::Mistake => (None, "required"),
            Absent::Default(text) => (Some(quoted(text)), ""),
            Absent::Means(words) => (None, words),
        };
        (default, without, self.form.to_owned())
    }
}

impl Form for Texts {
    fn told(&self) -> (Option<String>, &'static str, String) {
        let default = self.default.map(|all| {
            let items: Vec<String> = all.iter().map(|it| quoted(it)).collect();
            format!("[{}]", items.join(", "))
        });
        (default, "required", format!("list of {}", self.form))
    }
}

fn quoted(text: &str) -> String {
    format!("\"{text}\"")
}

/// One table of the file.
pub(super) struct Table {
    pub(super) name: &'static str,
    /// Whether it is written `[[name]]` and may be repeated.
    pub(super) repeated: bool,
    pub(super) help: &'static str,
    pub(super) keys: &'static [&'static dyn Declared],
}

/// Declares one table: a module with a constant per key and the constant `TABLE` that lists them.
macro_rules! table {
    ($module:ident, $name:literal, $repeated:literal, $help:literal,
     $($key:ident: $type:ident = $text:literal, $kind:expr, $applies:ident, $about:literal;)*) => {
        pub(super) mod $module {
            use super::*;
            $(pub(in crate::config) const $key: Key<$type> = Key {
                name: $text,
                kind: $kind,
                applies: Applies::$applies,
                help: $about,
            };)*
            pub(in crate::config) const TABLE: Table = Table {
                name: $name,
                repeated: $repeated,
                help: $help,
                keys: &[$(&$key),*],
            };
        }
    };
}

const NAME: &str = "name of 1 to 64 letters, digits, `.`, `_`, `-`, `@`";
const SECRET: &str = "hash, `file:PATH` or `env:NAME`";
const PATTERN: &str = "patterns in which `*` stands for anything";

const fn span(default: Duration, min: u64, max: u64) -> Span {
    Span {
        default,
        min: Duration::from_secs(min),
        max: Duration::from_secs(max),
    }
}

const fn count(default: u64, min: u64, max: u64) -> Count {
    Count { default, min, max }
}

const fn size(default: u64, min: u64, max: u64) -> Size {
    Size { default, min, max }
}

const fn required(form: &'static str) -> Text {
    Text {
        absent: Absent::Mistake,
        form,
    }
}

table! { server, "server", false, "Where the gateway listens, and how it stops.",
    LISTEN: Text = "listen", Text { absent: Absent::Default("127.0.0.1:8080"), form: "address and port" }, Restart,
        "The API port. Port 0 takes a free one. Not used when the service manager hands over the socket.";
    ADMIN: Text = "admin", Text { absent: Absent::Default("127.0.0.1:8970"), form: "address and port" }, Restart,
        "The port of metrics and health. Not used when the service manager hands over the socket.";
    PUBLIC_URL: Text = "public_url", Text { absent: Absent::Means("`http://` or `https://` and `listen`"), form: "`http://` or `https://` URL" }, AtOnce,
        "What links in replies begin with. Needed when `listen` is a wildcard address.";
    THREADS: Count = "threads", count(0, 0, 256), Restart,
        "Threads that serve requests; 0 means one per core.";
    DRAIN: Span = "drain", span(limits::DRAIN, 0, 3600), Restart,
        "How long running requests are waited for when the gateway stops.";
    DRAIN_NOTICE: Span = "drain_notice", span(Duration::ZERO, 0, 600), Restart,
        "How long `/readyz` says 503 before connections are refused; set it to the interval of the load balancer's checks.";
    TRUSTED_PROXIES: Texts = "trusted_proxies", Texts { default: Some(&[]), form: "addresses or networks such as `10.0.0.0/8`" }, AtOnce,
        "The proxies whose `X-Forwarded-For` and `X-Request-Id` are believed.";
}

table! { certificate, "certificate", true, "One certificate of the API port, which makes it speak TLS. The first is for clients that name no host, too.",
    CHAIN: Text = "chain", required("path"), AtOnce,
        "The certificate (PEM), followed by those between it and its authority.";
    KEY: Text = "key", required("path"), AtOnce,
        "Its private key (PEM), not encrypted.";
    NAMES: Texts = "names", Texts { default: Some(&[]), form: "host names; `*.` stands for one label" }, AtOnce,
        "The hosts it is served for. None: the DNS names in it.";
}

table! { tls, "tls", false, "Certificates of clients. TLS itself comes with the first `[[certificate]]`.",
    CLIENT_CERTIFICATES: Word = "client_certificates", Word { default: Some("off"), allowed: &["off", "optional", "required"] }, AtOnce,
        "Whether clients are asked for certificates; with `required`, whoever has none gets no connection.";
    CLIENT_CA: Text = "client_ca", Text { absent: Absent::Means("required unless `off`"), form: "path" }, AtOnce,
        "The authorities (PEM) that sign certificates of clients.";
}

table! { specification, "specification", false, "How versions of the specification are handled.",
    SUPPORTED: Texts = "supported", Texts { default: Some(&["0.1", "0.2", "0.8"]), form: "versions out of `0.1`, `0.2`, `0.8`" }, AtOnce,
        "The versions that are taken.";
    ON_MISSING: Word = "on_missing", Word { default: Some("reject"), allowed: &["reject", "assume-current"] }, AtOnce,
        "A request without the version header: a mistake of the client, or the newest version.";
    PROFILE: Word = "profile", Word { default: Some("lenient"), allowed: &["lenient", "strict"] }, AtOnce,
        "Whether slips of the specification's own examples and unknown members are taken.";
}

table! { authentication, "authentication", false, "How callers prove who they are.",
    REMEMBER: Span = "remember", span(limits::CREDENTIALS_REMEMBERED, 0, 3600), AtOnce,
        "How long a verified password is remembered; 0s means never.";
    HTPASSWD: Text = "htpasswd", Text { absent: Absent::Means("none"), form: "path" }, AtOnce,
        "A file with more users, one `user:hash` a line.";
    TOKENS: Text = "tokens", Text { absent: Absent::Means("none are taken"), form: "path" }, AtOnce,
        "The file of API tokens, which `snapgate token` makes and changes.";
}

table! { lockout, "lockout", false, "What happens after wrong passwords. Clients on loopback addresses are never locked out.",
    ATTEMPTS: Count = "attempts", count(limits::LOCKOUT_ATTEMPTS, 0, 1000), AtOnce,
        "Wrong passwords of one user from one address that cost nothing; the next costs a second, each after it twice as much. 0 means no limit.";
    ADDRESS_ATTEMPTS: Count = "address_attempts", count(limits::LOCKOUT_ADDRESS_ATTEMPTS, 0, 100_000), AtOnce,
        "The same for one address, whatever the user. 0 means no limit.";
    LONGEST: Span = "longest", span(limits::LOCKOUT_LONGEST, 1, 24 * 3600), AtOnce,
        "The longest lock-out. Wrong passwords are forgotten so long after the last lock-out ended.";
}

table! { user, "user", true, "One caller.",
    NAME: Text = "name", required(super::NAME), AtOnce, "The user name.";
    PASSWORD_HASH: Text = "password_hash", required(SECRET), AtOnce,
        "The argon2id or bcrypt hash of the password, from `snapgate hash-password`.";
    GROUPS: Texts = "groups", Texts { default: Some(&[]), form: "names of groups" }, AtOnce,
        "The groups the user is in, besides those whose `members` name it.";
}

table! { client_certificate, "client_certificate", true, "A caller who is known by a certificate, if none of the request's own credentials says otherwise.",
    NAMES: Texts = "names", Texts { default: None, form: "`dns:`, `email:`, `uri:` or `subject:` and the name" }, AtOnce,
        "What the certificate says; one of them is enough.";
    USER: Text = "user", required(NAME), AtOnce,
        "The caller it stands for: one of `[[user]]`, or one who is known by certificates only.";
    GROUPS: Texts = "groups", Texts { default: Some(&[]), form: "names of groups" }, AtOnce,
        "The groups the caller is in, besides those whose `members` name it.";
}

table! { group, "group", true, "A set of users.",
    NAME: Text = "name", required(super::NAME), AtOnce, "The name of the group.";
    MEMBERS: Texts = "members", Texts { default: Some(&[]), form: "names of users" }, AtOnce, "Who is in it.";
}

table! { issuer, "issuer", true, "An identity provider whose JSON Web Tokens are taken.",
    NAME: Text = "name", required(super::NAME), AtOnce,
        "What the names of its callers begin with: the subject `4711` is the principal `NAME:4711`.";
    ISSUER: Text = "issuer", required("text"), AtOnce, "The `iss` of its tokens, exactly.";
    AUDIENCE: Texts = "audience", Texts { default: None, form: "texts" }, AtOnce, "One of these must be in `aud`.";
    JWKS: Text = "jwks", Text { absent: Absent::Means("required unless `jwks_url`"), form: "path" }, AtOnce,
        "The file with its public keys (RFC 7517).";
    JWKS_URL: Text = "jwks_url", Text { absent: Absent::Means("required unless `jwks`"), form: "`https://` URL, or `http://` of a loopback address" }, AtOnce,
        "Where its public keys are fetched from: what it calls `jwks_uri`. Redirects are not followed.";
    JWKS_CA: Text = "jwks_ca", Text { absent: Absent::Means("what the system trusts"), form: "path" }, AtOnce,
        "The authorities that the server at `jwks_url` is known by, in PEM form.";
    JWKS_REFRESH: Span = "jwks_refresh", span(limits::ISSUER_REFRESH, 1, 24 * 3600), AtOnce,
        "The longest time until the keys at `jwks_url` are fetched again; a shorter `max-age` of its answer counts, down to a minute.";
    JWKS_MAX_AGE: Span = "jwks_max_age", span(limits::ISSUER_KEYS_AGE, 60, 30 * 24 * 3600), AtOnce,
        "How long the last keys of `jwks_url` are believed while no newer ones can be had.";
    ALGORITHMS: Texts = "algorithms", Texts { default: Some(&["RS256", "PS256", "ES256", "ES384", "EdDSA"]), form: "`RS256`, `PS256`, `ES256`, `ES384`, `EdDSA`" }, AtOnce,
        "The algorithms that are taken.";
    SUBJECT_CLAIM: Text = "subject_claim", Text { absent: Absent::Default("sub"), form: "name of a claim" }, AtOnce,
        "The claim that names the caller: 1 to 128 characters of visible ASCII.";
    GROUPS_CLAIM: Text = "groups_claim", Text { absent: Absent::Default("groups"), form: "name of a claim" }, AtOnce,
        "The claim with the caller's groups, a text or a list of texts.";
    GROUPS: Texts = "groups", Texts { default: Some(&[]), form: "`THEIRS=OURS`" }, AtOnce,
        "What its groups are called here; groups that are not named mean nothing.";
    LEEWAY: Span = "leeway", span(limits::ISSUER_LEEWAY, 0, 600), AtOnce, "How far its clock may be from ours.";
}

table! { grant, "grant", true, "Allows actions. What no grant allows is denied.",
    TO: Texts = "to", Texts { default: None, form: "`user:NAME` or `group:NAME`" }, AtOnce, "Whom it is for.";
    ACTIONS: Texts = "actions", Texts { default: None, form: "`read`, `create`, `update`, `protect`, `delete`, `restore`, `observe`" }, AtOnce,
        "What it allows.";
    VMS: Texts = "vms", Texts { default: None, form: PATTERN }, AtOnce, "On which VMs.";
    BACKUPS: Texts = "backups", Texts { default: Some(&["*"]), form: PATTERN }, AtOnce, "On which backups of these, by id.";
}

table! { operations, "operations", false, "How changes are kept and run.",
    STORE: Text = "store", required("path"), Restart,
        "The file that holds every operation; made when absent, in a folder that exists.";
    RETENTION: Span = "retention", span(limits::RETENTION, limits::RETENTION_MIN.as_secs(), 365 * 24 * 3600), Restart,
        "How long a finished Status is kept.";
    WHEN_BUSY: Word = "when_busy", Word { default: Some("queue"), allowed: &["queue", "refuse"] }, Restart,
        "What happens to a change while the VM is busy with another.";
    QUEUE_PER_VM: Count = "queue_per_vm", count(limits::QUEUE_PER_VM, 1, 1000), Restart,
        "Changes that may wait for one VM.";
    QUEUE_TOTAL: Count = "queue_total", count(limits::QUEUE_TOTAL, 1, 1_000_000), Restart,
        "Unfinished changes in all.";
    ACCEPT_TTL: Span = "accept_ttl", span(limits::ACCEPT_TTL, 1, 24 * 3600), Restart,
        "How long an accepted change may go unstarted beyond its queue before it is given up.";
    RESUME_TTL: SpanLike = "resume_ttl",
        SpanLike { absent: "that of `accept_ttl`", min: Duration::from_secs(1), max: Duration::from_secs(24 * 3600) }, Restart,
        "How long the gateway may have been offline for a change that had begun, and has not touched the VM, to be begun again.";
    PROBE_WINDOW: Span = "probe_window", span(limits::PROBE_WINDOW, 1, 24 * 3600), Restart,
        "How long evidence is looked for before an outcome is called unknown.";
    POLL_MIN: Span = "poll_min",
        Span { default: Duration::from_millis(100), min: Duration::from_millis(10), max: Duration::from_secs(60) }, Restart,
        "Shortest time between two looks at a task.";
    POLL_MAX: Span = "poll_max",
        Span { default: Duration::from_secs(5), min: Duration::from_millis(10), max: Duration::from_secs(600) }, Restart,
        "Longest time between two looks at a task.";
}

table! { backend, "backend", true, "One VM manager.",
    NAME: Text = "name", required(super::NAME), Restart,
        "Its name. Keep it: stored operations refer to it.";
    KIND: Word = "kind", Word { default: None, allowed: &["cloudapi", "files", "incus", "libvirt", "proxmox", "qemu", "sim"] }, Restart,
        "`cloudapi`: a server that speaks this API itself. `files`: VMs are folders of disk images. `incus`: instances of LXD or Incus. `libvirt`: the VMs of a libvirtd. `proxmox`: guests of Proxmox VE. `qemu`: VMs of QEMU. `sim`: VMs in memory, for demos and tests.";
    VMS: Texts = "vms", Texts { default: None, form: "exact ids, or prefixes followed by one `*`" }, AtOnce,
        "The VMs it has. An exact id wins over prefixes, a longer prefix over a shorter one.";
    TIMEOUT: Span = "timeout", span(limits::CALL_TIMEOUT, 1, 3600), Restart, "Time for one call.";
    CONCURRENCY: Count = "concurrency", count(limits::CONCURRENCY, 1, 1000), Restart, "Changes that run at once.";
    READS: Count = "reads", count(limits::READS, 1, 10_000), Restart, "Reads that run at once.";
    RETRIES: Count = "retries", count(2, 0, 10), Restart,
        "How often a read that failed for a passing reason is repeated.";
    BREAKER_FAILURES: Count = "breaker_failures", count(5, 1, 1000), Restart,
        "Failures in a row after which the circuit breaker opens.";
    BREAKER_PAUSE: Span = "breaker_pause", span(Duration::from_secs(5), 1, 3600), Restart,
        "How long no call is made to the backend while its circuit breaker is open.";
    HEALTH_INTERVAL: Span = "health_interval", span(limits::HEALTH_INTERVAL, 1, 3600), Restart,
        "Time between two health checks, which set `snapgate_backend_up`.";
    ROOT: Text = "root", Text { absent: Absent::Means("required if `files`"), form: "path" }, Restart,
        "`files`: the folder with one folder of disk images per VM.";
    BACKUPS: Text = "backups", Text { absent: Absent::Means("required if `files`"), form: "path" }, Restart,
        "`files`: where backups are kept; neither below `root` nor above it.";
    NEW_FOLDERS: Flag = "new_folders", Flag(false), Restart,
        "`files`: whether an empty folder that no gateway has used before is used at the start. Otherwise it counts as not mounted, and `snapgate init` takes it once.";
    URL: Text = "url", Text { absent: Absent::Means("required if `incus` or `cloudapi`"), form: "`unix:///path/of/the/socket` or `https://host:port`" }, Restart,
        "`incus`, `cloudapi`: where it listens. `cloudapi`: a path may follow, and `http://127.0.0.1:port` is taken too.";
    PROJECT: Text = "project", Text { absent: Absent::Default("default"), form: "name" }, Restart,
        "`incus`: the project with the VMs.";
    CLIENT_CERT: Text = "client_cert", Text { absent: Absent::Means("required if `incus` by `https`"), form: "path" }, Restart,
        "`incus`, `cloudapi`: the gateway's certificate (PEM).";
    CLIENT_KEY: Text = "client_key", Text { absent: Absent::Means("required with `client_cert`"), form: "path" }, Restart,
        "`incus`, `cloudapi`: the key of the gateway's certificate (PEM).";
    SERVER_CERT: Text = "server_cert", Text { absent: Absent::Means("one of three if `https`"), form: "path" }, Restart,
        "`incus`, `cloudapi`: the one certificate (PEM) that the server may have.";
    SERVER_FINGERPRINT: Text = "server_fingerprint", Text { absent: Absent::Means("one of three if `https`"), form: "64 hexadecimal digits" }, Restart,
        "`incus`, `cloudapi`: the SHA-256 of the one certificate that the server may have.";
    CA: Text = "ca", Text { absent: Absent::Means("one of three if `https`"), form: "path" }, Restart,
        "`incus`, `cloudapi`, `proxmox`: the authority (PEM) that signed the server's certificate for the host in its URL.";
    URLS: Texts = "urls", Texts { default: Some(&[]), form: "`https://host:8006`" }, Restart,
        "`proxmox`: the nodes of one cluster, in order of preference.";
    SERVER_FINGERPRINTS: Texts = "server_fingerprints", Texts { default: Some(&[]), form: "64 hexadecimal digits" }, Restart,
        "`proxmox`: the SHA-256 of the certificate of each node, in the order of `urls`; instead of `ca`.";
    STORAGES: Texts = "storages", Texts { default: Some(&[]), form: "names" }, Restart,
        "`proxmox`: the storages with full backups; new ones go to the first. None: snapshots only.";
    SNAPSHOT_MEMORY: Flag = "snapshot_memory", Flag(false), Restart,
        "`proxmox`: whether snapshots of running VMs hold their memory.";
    BACKUP_MODE: Word = "backup_mode", Word { default: Some("snapshot"), allowed: &["snapshot", "suspend", "stop"] }, Restart,
        "`proxmox`: how full backups of running guests are made.";
    CONNECT_TIMEOUT: Span = "connect_timeout", span(Duration::from_secs(5), 1, 60), Restart,
        "`incus`, `cloudapi`, `proxmox`: time for making a connection.";
    USERNAME: Text = "username", Text { absent: Absent::Means("none"), form: "name without a colon" }, Restart,
        "`cloudapi`: the user that the gateway is there. It must be the gateway's alone.";
    PASSWORD: Text = "password", Text { absent: Absent::Means("required with `username`"), form: "`file:PATH` or `env:NAME`" }, Restart,
        "`cloudapi`: the password of `username`.";
    TOKEN: Text = "token", Text { absent: Absent::Means("none"), form: "`file:PATH` or `env:NAME`" }, Restart,
        "`cloudapi`: the token to send instead of name and password. `proxmox`: the API token, `USER@REALM!TOKENID=SECRET`.";
    SERVER_VERSION: Text = "server_version", Text { absent: Absent::Default("0.1"), form: "version such as `0.1`" }, Restart,
        "`cloudapi`: the version of the specification that is asked for.";
    SERVER_RECOVERY: Word = "server_recovery", Word { default: Some("listable"), allowed: &["replay-safe", "listable", "no-trace"] }, Restart,
        "`cloudapi`: how a lost answer is made good; it must be true of the server. `listable`: it lists the Statuses of its callers. `replay-safe`: it heeds `Idempotency-Key` as well, for a day and through its own restarts (snapgate does).";
    QMP: Text = "qmp", Text { absent: Absent::Means("required if `qemu`"), form: "path" }, Restart,
        "`qemu`: the monitor socket of a running VM; `{vm}` stands for its id.";
    DISKS: Texts = "disks", Texts { default: Some(&[]), form: "node names" }, Restart,
        "`qemu`: the disks, the one that holds the memory first. None: every writable disk.";
    IMAGES: Texts = "images", Texts { default: Some(&[]), form: "paths" }, Restart,
        "`qemu`: the images of the disks, in the same order, for when the VM is stopped; `{vm}` stands for its id. None: it must run.";
    QEMU_IMG: Text = "qemu_img", Text { absent: Absent::Default("qemu-img"), form: "program" }, Restart,
        "`qemu`: the program that works on images.";
    QEMU_IO: Text = "qemu_io", Text { absent: Absent::Default("qemu-io"), form: "program" }, Restart,
        "`qemu`: the program that marks images, so that it is known later what was done to them; it comes with `qemu-img`.";
    GREETING_TIMEOUT: Span = "greeting_timeout", span(Duration::from_secs(2), 1, 60), Restart,
        "`qemu`: a monitor that has not greeted by then is held by another program.";
    IMAGE_TIMEOUT: Span = "image_timeout", span(Duration::from_secs(900), 1, 24 * 3600), Restart,
        "`qemu`: time for one change to the images of a stopped VM.";
    SIMULATED_VMS: Texts = "simulated_vms", Texts { default: Some(&[]), form: "ids" }, Restart, "`sim`: its VMs.";
    SIMULATED_BACKUPS: Count = "simulated_backups", count(1, 0, 10_000), Restart,
        "`sim`: backups of each VM at the start.";
    DURATION: Span = "duration", span(Duration::from_secs(1), 0, 3600), Restart, "`sim`: how long a change takes.";
    SIMULATOR: Text = "simulator", Text { absent: Absent::Means("in memory"), form: "`unix:PATH`" }, Restart,
        "`sim`: the socket of a simulator that is a process of its own, for crash tests; it then has the VMs and backups.";
    RECOVERY: Word = "recovery", Word { default: Some("replay-safe"), allowed: &["replay-safe", "listable", "no-trace"] }, Restart,
        "`sim`: how a lost answer is made good; it must be true of the simulator.";
    SETTLE: Span = "settle", span(Duration::ZERO, 0, 3600), Restart,
        "`sim`: how long after a lost answer a change may still be about to begin.";
    LIBVIRT_SOCKET: Text = "libvirt_socket", Text { absent: Absent::Default("/run/libvirt/libvirt-sock"), form: "path" }, Restart,
        "`libvirt`: the unix socket of the daemon.";
    LIBVIRT_URI: Text = "libvirt_uri", Text { absent: Absent::Default("qemu:///system"), form: "URI of a driver" }, Restart,
        "`libvirt`: the driver to open there.";
    LIBVIRT_KEEPALIVE: Span = "libvirt_keepalive", span(Duration::from_secs(5), 1, 60), Restart,
        "`libvirt`: how often the daemon is asked for a sign of life; after four without one the connection is lost.";
    LIBVIRT_TIMEOUT: Span = "libvirt_timeout", span(Duration::from_secs(3600), 60, 24 * 3600), Restart,
        "`libvirt`: how long one create, restore or delete may take before its outcome counts as unknown.";
    AFTER_RESTORE: Word = "after_restore", Word { default: Some("as-before"), allowed: &["as-before", "running", "paused", "as-saved", "stopped"] }, Restart,
        "`libvirt`, `proxmox`: what a VM does after a restore, unless the request says otherwise. `libvirt` has no `stopped`, `proxmox` neither `paused` nor `as-saved`.";
    MANAGED_SAVE: Word = "managed_save", Word { default: Some("refuse"), allowed: &["refuse", "discard"] }, Restart,
        "`libvirt`: what a restore does when libvirt keeps memory of the VM for its next start (`virsh managedsave`), unless the request says otherwise: refuse, or discard that memory.";
    INSPECT_DISKS: Flag = "inspect_disks", Flag(true), Restart,
        "`libvirt`: whether QEMU and the disk images are inspected before a restore or delete. libvirt marks a running VM as tainted for it.";
}

table! { passthrough, "passthrough", true, "What is passed through to a VM manager's own interface. Backup routes never are.",
    NAME: Text = "name", required(super::NAME), AtOnce, "Its name in logs and metrics.";
    PATH: Text = "path", required("path"), AtOnce,
        "The paths it takes: this one and what is below it. `/` takes all that is left.";
    HOSTS: Texts = "hosts", Texts { default: Some(&[]), form: "host names" }, AtOnce,
        "The hosts it takes; none: all of them.";
    UPSTREAMS: Texts = "upstreams", Texts { default: None, form: "`http://host:port`, `https://host:port` or `unix:///path/of/the/socket`" }, AtOnce,
        "Where to. All of one kind.";
    AUTHENTICATION: Word = "authentication", Word { default: Some("required"), allowed: &["required", "none"] }, AtOnce,
        "Whether callers must say who they are.";
    ALLOW: Texts = "allow", Texts { default: Some(&[]), form: "`user:NAME` or `group:NAME`" }, AtOnce,
        "Who may use it; nobody else may. Needed unless `authentication` is `none`.";
    METHODS: Texts = "methods", Texts { default: Some(PASS_THROUGH_METHODS), form: "methods" }, AtOnce, "What is passed on.";
    STRIP_PREFIX: Flag = "strip_prefix", Flag(false), AtOnce, "Whether `path` is taken off before the request is passed on.";
    HOST: Word = "host", Word { default: Some("keep"), allowed: &["keep", "upstream"] }, AtOnce,
        "What the upstream reads as `Host`: what the client sent, or its own.";
    REMOVE_HEADERS: Texts = "remove_headers", Texts { default: Some(&[]), form: "header names" }, AtOnce,
        "Header fields of requests that are not passed on, besides those that never are.";
    KEEP_HEADERS: Texts = "keep_headers", Texts { default: Some(&[]), form: "header names" }, AtOnce,
        "Fields that say who the client is and are passed on all the same, for instance `X-Forwarded-User`. Any client can set them: only where the upstream does not believe them.";
    CLIENT_AUTHORIZATION: Word = "client_authorization", Word { default: Some("strip"), allowed: &["strip", "keep"] }, AtOnce,
        "Whether the upstream reads the client's `Authorization`.";
    AUTHORIZATION: Text = "authorization", Text { absent: Absent::Means("none"), form: "`file:PATH` or `env:NAME`" }, AtOnce,
        "The value of `Authorization` by which the gateway proves itself to the upstream, for instance `Bearer ...`.";
    UPGRADE: Flag = "upgrade", Flag(false), AtOnce, "Whether WebSockets are passed on (HTTP/1.1 only), for consoles.";
    BALANCE: Word = "balance", Word { default: Some("round-robin"), allowed: &["round-robin", "least-loaded"] }, AtOnce,
        "Which upstream is asked.";
    SERVER_FINGERPRINT: Text = "server_fingerprint", Text { absent: Absent::Means("`ca` decides"), form: "64 hexadecimal digits" }, AtOnce,
        "The SHA-256 of the one certificate that `https` upstreams may have.";
    CA: Text = "ca", Text { absent: Absent::Means("those of the system"), form: "path" }, AtOnce,
        "The authorities (PEM) that signed the certificates of `https` upstreams.";
    CLIENT_CERT: Text = "client_cert", Text { absent: Absent::Means("none"), form: "path" }, AtOnce,
        "The gateway's certificate (PEM) for `https` upstreams.";
    CLIENT_KEY: Text = "client_key", Text { absent: Absent::Means("none"), form: "path" }, AtOnce,
        "The key of `client_cert` (PEM).";
    CONNECT_TIMEOUT: Span = "connect_timeout", span(Duration::from_secs(5), 1, 60), AtOnce,
        "Time for making a connection, and again for its TLS handshake.";
    CONNECT_TOTAL_TIMEOUT: Span = "connect_total_timeout", span(Duration::from_secs(10), 1, 120), AtOnce, "Time for both together.";
    READ_TIMEOUT: Span = "read_timeout", span(Duration::from_secs(60), 1, 3600), AtOnce,
        "Time for the head of the answer, and between two pieces of its body.";
    WRITE_TIMEOUT: Span = "write_timeout", span(Duration::from_secs(30), 1, 3600), AtOnce,
        "Time for the upstream to take a piece of the request.";
    IDLE_TIMEOUT: Span = "idle_timeout", span(Duration::from_secs(30), 1, 3600), AtOnce,
        "How long an unused connection to an upstream is kept; shorter than upstreams keep it.";
    UPGRADED_TIMEOUT: Span = "upgraded_timeout", span(Duration::from_secs(600), 1, 24 * 3600), AtOnce,
        "How long both sides of a WebSocket may be silent.";
    BODY: Size = "body", size(limits::PASS_BODY_BYTES, limits::PASS_BODY_BYTES_RANGE.0, limits::PASS_BODY_BYTES_RANGE.1), AtOnce,
        "Largest request body; it is never kept as a whole.";
    BODY_PAUSE: Span = "body_pause", span(limits::BODY_TIMEOUT, 1, 600), AtOnce,
        "Longest pause between two pieces of a request body, and the time before `body_rate` counts.";
    BODY_RATE: Size = "body_rate", size(limits::PASS_BODY_RATE, 0, 1024 * 1024 * 1024), AtOnce,
        "Fewest bytes a second of a request body, on average.";
    HEALTH_PATH: Text = "health_path", Text { absent: Absent::Means("not asked"), form: "path" }, AtOnce,
        "A GET of this path asks an upstream for its health: 2xx and 3xx are good.";
    HEALTH_INTERVAL: Span = "health_interval", span(Duration::from_secs(10), 1, 3600), AtOnce, "How often.";
    HEALTH_TIMEOUT: Span = "health_timeout", span(Duration::from_secs(5), 1, 60), AtOnce, "Time for the answer.";
    HEALTH_RISE: Count = "health_rise", count(2, 1, 100), AtOnce, "Good answers in a row after which requests are passed on again.";
    HEALTH_FALL: Count = "health_fall", count(3, 1, 100), AtOnce, "Bad ones after which they are not.";
    EJECT_FAILURES: Count = "eject_failures", count(3, 1, 1000), AtOnce,
        "Failed requests in a row after which an upstream is left alone for a while, if there is another.";
    EJECT_PAUSE: Span = "eject_pause", span(Duration::from_secs(10), 1, 3600), AtOnce, "For how long.";
    RESOLVE: Span = "resolve", span(Duration::from_secs(30), 1, 3600), AtOnce, "How often names of upstreams are looked up.";
}

table! { limit, "limits", false, "Sizes and times of requests and connections.",
    BODY: Size = "body", size(limits::BODY_BYTES, limits::BODY_BYTES_RANGE.0, limits::BODY_BYTES_RANGE.1), AtOnce,
        "Largest request body.";
    TARGET: Size = "target", size(limits::TARGET_BYTES, 1024, 64 * 1024), AtOnce, "Longest request target.";
    HEADER: Size = "header", size(limits::HEADER_BYTES, 4 * 1024, 256 * 1024), AtOnce,
        "Largest request head, names and values.";
    HEADER_COUNT: Count = "header_count", count(limits::HEADER_COUNT, 16, 1000), AtOnce, "Most header fields.";
    WAIT: Span = "wait", span(limits::WAIT, 0, 600), AtOnce, "Longest `Prefer: wait` that is honoured.";
    STREAM: Span = "stream", span(limits::STREAM, 1, 3600), AtOnce,
        "Longest stream of events of one Status; its client then asks again.";
    WAITERS: Count = "waiters", count(limits::WAITERS, 0, 1_000_000), AtOnce,
        "Most requests that wait at once, streams of events among them.";
    CONNECTIONS: Count = "connections", count(limits::CONNECTIONS, 1, 1_000_000), Restart, "Most connections at once.";
    CONNECTIONS_PER_ADDRESS: Count = "connections_per_address", count(limits::CONNECTIONS_PER_ADDRESS, 0, 1_000_000), Restart,
        "Most of them from one address (IPv6: one /64); more are closed at once. 0 means no limit. `trusted_proxies` and loopback addresses have none.";
    STREAMS: Count = "streams", count(limits::STREAMS, 1, 1000), Restart,
        "Most requests at once on one HTTP/2 connection.";
    HANDSHAKE_TIMEOUT: Span = "handshake_timeout", span(limits::HANDSHAKE_TIMEOUT, 1, 600), Restart,
        "Time for a whole TLS handshake.";
    HEADER_TIMEOUT: Span = "header_timeout", span(limits::HEADER_TIMEOUT, 1, 600), Restart, "Time for a whole request head.";
    BODY_TIMEOUT: Span = "body_timeout", span(limits::BODY_TIMEOUT, 1, 600), Restart, "Time for a whole request body.";
    BODY_RATE: Size = "body_rate", size(limits::BODY_RATE, 0, 1024 * 1024 * 1024), Restart,
        "Fewest bytes a second of a request body, on average; 0B means no limit.";
    BODY_GRACE: Span = "body_grace", span(limits::BODY_GRACE, 0, 600), Restart, "Time before `body_rate` counts.";
    IDLE_TIMEOUT: Span = "idle_timeout", span(limits::IDLE_TIMEOUT, 1, 3600), Restart,
        "Time a connection may be idle between requests.";
    WRITE_TIMEOUT: Span = "write_timeout", span(limits::WRITE_TIMEOUT, 1, 600), Restart, "Time for one write to a client.";
}

table! { rate, "rate", false, "How much one client may ask for. Clients on loopback addresses have no limits by address.",
    PRINCIPAL: Count = "principal", count(0, 0, limits::RATE_MAX), AtOnce,
        "Requests a second of one principal; 0 means no limit.";
    PRINCIPAL_BURST: Count = "principal_burst", count(0, 0, limits::RATE_MAX), AtOnce,
        "Requests that one principal may send at once after a pause; 0 means ten seconds' worth.";
    ADDRESS: Count = "address", count(0, 0, limits::RATE_MAX), AtOnce,
        "Requests a second from one address (IPv6: one /64); 0 means no limit.";
    ADDRESS_BURST: Count = "address_burst", count(0, 0, limits::RATE_MAX), AtOnce,
        "Requests that may come from one address at once after a pause; 0 means ten seconds' worth.";
    PRINCIPAL_CONCURRENT: Count = "principal_concurrent", count(limits::PRINCIPAL_CONCURRENT, 0, 1_000_000), AtOnce,
        "Requests of one principal at work at once, waiting ones not counted; 0 means no limit.";
    ADDRESS_CONCURRENT: Count = "address_concurrent", count(0, 0, 1_000_000), AtOnce,
        "Requests from one address at work at once, waiting ones not counted; 0 means no limit.";
    PRINCIPAL_WAITERS: Count = "principal_waiters", count(limits::PRINCIPAL_WAITERS, 0, 1_000_000), AtOnce,
        "Requests of one principal that wait for Statuses at once, of `limits.waiters`; more are answered at once. 0 means no limit.";
}

table! { log, "log", false, "What is logged, and where to.",
    FORMAT: Word = "format", Word { default: Some("text"), allowed: &["text", "json"] }, Restart, "The form of log lines.";
    LEVEL: Text = "level", Text { absent: Absent::Default("info"), form: "`error`, `warn`, `info`, `debug`, `trace` or `off`; or a list with levels of parts, such as `snapgate=debug,warn`" }, Restart,
        "The least important messages that are logged.";
    ACCESS: Flag = "access", Flag(true), Restart, "Whether every request is logged.";
    AUDIT: Text = "audit", Text { absent: Absent::Means("standard error"), form: "path" }, Restart,
        "The file the audit trail is appended to.";
    AUDIT_REQUIRED: Flag = "audit_required", Flag(false), Restart,
        "Whether changes are refused (503 `AuditUnavailable`) while the audit trail cannot be written.";
}

table! { insecure, "insecure", false, "Security downgrades; each is off unless it is named here.",
    PLAINTEXT: Flag = "plaintext", Flag(false), AtOnce,
        "Allows `listen` on an address that other machines reach, where passwords are sent in cleartext.";
}

/// Every table, in the order of the documentation.
pub(super) const TABLES: &[Table] = &[
    server::TABLE,
    certificate::TABLE,
    tls::TABLE,
    specification::TABLE,
    authentication::TABLE,
    lockout::TABLE,
    user::TABLE,
    client_certificate::TABLE,
    group::TABLE,
    issuer::TABLE,
    grant::TABLE,
    operations::TABLE,
    backend::TABLE,
    passthrough::TABLE,
    limit::TABLE,
    rate::TABLE,
    log::TABLE,
    insecure::TABLE,
];
