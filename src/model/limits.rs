//! Every maximum in one place, each with its reason. Where an operator might differ there is a configuration key.

use std::num::NonZeroUsize;
use std::time::Duration;

/// Longest VM or backup identifier in bytes: the longest file name of common file systems.
pub const ID_BYTES_MAX: usize = 255;
/// Longest name of a backend, principal or group in bytes: they become metric labels and log fields.
pub const CONFIG_NAME_BYTES_MAX: usize = 64;
/// Longest backup name in bytes: what the strictest VM managers store.
pub const BACKUP_NAME_BYTES_MAX: usize = 255;
/// Longest description in bytes: one page of text.
pub const DESCRIPTION_BYTES_MAX: usize = 4096;
/// Most tags on one backup: enough for key=value schemes, small enough to return in every list.
pub const TAGS_MAX: usize = 64;
/// Longest tag in bytes.
pub const TAG_BYTES_MAX: usize = 256;
/// Longest note of a restore in bytes: it goes into one line of the audit trail.
pub const NOTE_BYTES_MAX: usize = 1024;
/// Longest request id in bytes.
pub const REQUEST_ID_BYTES_MAX: usize = 128;
/// Longest name in a client certificate in bytes.
pub const CERTIFICATE_NAME_BYTES_MAX: usize = 1024;
/// Most names of one certificate that are looked at: certificates for callers have one or two.
pub const CERTIFICATE_NAMES_MAX: usize = 64;
/// Most hops of `X-Forwarded-For` that are looked at: no chain of real proxies is longer.
pub const FORWARDED_HOPS_MAX: usize = 32;
/// Longest idempotency key in bytes.
pub const IDEMPOTENCY_KEY_BYTES_MAX: usize = 255;
/// Longest pattern in a grant or a placement in bytes, and most `*` in it: matching is O(length * stars).
pub const PATTERN_BYTES_MAX: usize = 255;
/// Most `*` in one pattern.
pub const PATTERN_STARS_MAX: usize = 8;
/// Longest specification-version header in bytes.
pub const SPECIFICATION_VERSION_BYTES_MAX: usize = 64;
/// Deepest nesting of a JSON body: deeper ones are attacks on the parser.
pub const JSON_DEPTH_MAX: usize = 32;
/// Most names of ignored members that a Status holds: enough to see what was misunderstood.
pub const IGNORED_MAX: usize = 16;
/// Characters of such a name: more than any name that could be meant.
pub const IGNORED_NAME_CHARS_MAX: usize = 64;
/// Most name/value pairs of a restore request.
pub const RESTORE_OPTIONS_MAX: usize = 32;

/// Largest request body in bytes unless `limits.body` says otherwise: 64 descriptions.
pub const BODY_BYTES: u64 = 64 * 1024;
/// Range of `limits.body`.
pub const BODY_BYTES_RANGE: (u64, u64) = (1024, 1024 * 1024);
/// Most origins in `server.allowed_origins`: each request of a page is compared with all of them.
pub const ALLOWED_ORIGINS_MAX: usize = 100;
/// Longest request target in bytes unless `limits.target` says otherwise.
pub const TARGET_BYTES: u64 = 8 * 1024;
/// Largest request head in bytes (names and values) unless `limits.header` says otherwise.
pub const HEADER_BYTES: u64 = 32 * 1024;
/// Most header fields in a request unless `limits.header_count` says otherwise.
pub const HEADER_COUNT: u64 = 100;
/// Longest `Prefer: wait` honoured unless `limits.wait` says otherwise: below the idle limits of common proxies.
pub const WAIT: Duration = Duration::from_secs(50);
/// Most requests that may wait for a Status at once unless `limits.waiters` says otherwise: each costs some
/// 40 KiB with its connection (`benches/waiters.rs`).
pub const WAITERS: u64 = 10_000;
/// Longest stream of events unless `limits.stream` says otherwise: a client that goes on is authenticated again.
pub const STREAM: Duration = Duration::from_secs(600);
/// Time between two signs of life in a stream of events: what proxies close for being silent they close after a minute
/// or more, and a client that is gone is noticed at the second.
pub const STREAM_HEARTBEAT: Duration = Duration::from_secs(15);
/// How long a client waits before it asks for a stream again.
pub const STREAM_RETRY: Duration = Duration::from_secs(2);
/// The same when `limits.waiters` was reached: the stream carried only the current state.
pub const STREAM_RETRY_FULL: Duration = Duration::from_secs(10);
/// Latest changes of all operations that are kept in memory for those who follow them: more than are written between two looks of
/// a stream, in 4 to 8 MiB. Those who fall behind read the store.
pub const CHANGES_KEPT_MAX: usize = 4096;
/// Changes from memory that go into one piece of a stream of all Statuses.
pub const STREAM_BATCH: usize = 256;
/// Records from the store that go into one piece: some 50 KiB, which is what a slow reader costs.
pub const STREAM_PAGE: u16 = 64;
/// Numbers of changes that one read of the store for a stream looks at: a few milliseconds, however few may be seen.
pub const STREAM_WINDOW: u64 = 5000;
/// Changes before the present whose finished operations a stream begins with: some hundred operations.
pub const STREAM_RECENT_CHANGES: u64 = 2000;
/// Changes since its last event after which a stream begins anew: some 250,000 operations, read in about a second.
pub const STREAM_CATCH_UP_MAX: u64 = 1_000_000;
/// Shortest time between two looks of a stream of all Statuses at what changed: faster than people see.
pub const STREAM_PACE: Duration = Duration::from_millis(100);
/// The same for each stream that there is, where that is more: up to 500 streams look 500 times a second in all,
/// and leave the processor to those who write.
pub const STREAM_PACE_EACH: Duration = Duration::from_millis(2);
/// Longest time between two looks: what is shown to people should not be older.
pub const STREAM_PACE_MAX: Duration = Duration::from_secs(1);
/// Most connections at once unless `limits.connections` says otherwise: bounds memory to some hundred MiB.
pub const CONNECTIONS: u64 = 4096;
/// Most of them from one client address unless `limits.connections_per_address` says otherwise: many people behind one
/// address have enough, and it takes eight addresses to leave no room for others.
pub const CONNECTIONS_PER_ADDRESS: u64 = 512;
/// Time for a whole TLS handshake unless `limits.handshake_timeout` says otherwise.
pub const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// Requests at once on one HTTP/2 connection unless `limits.streams` says otherwise: what browsers expect.
pub const STREAMS: u64 = 100;
/// Flow-control window of an HTTP/2 connection that uploads through a pass-through route, in bytes: 100 MB/s over a round trip of 40 ms.
pub const HTTP2_WIDE_WINDOW_BYTES: u32 = 4 * 1024 * 1024;
/// Most HTTP/2 connections with such a window, each to its end: bounds what clients may send ahead to 128 MiB. All others send 64 KiB.
pub const HTTP2_WIDE_CONNECTIONS_MAX: usize = 32;
/// Time for a whole request head unless `limits.header_timeout` says otherwise.
pub const HEADER_TIMEOUT: Duration = Duration::from_secs(10);
/// Time for a whole request body unless `limits.body_timeout` says otherwise.
pub const BODY_TIMEOUT: Duration = Duration::from_secs(20);
/// Fewest bytes a second of a request body, on average, unless `limits.body_rate` says otherwise: slower than any line that
/// is in use, and faster than a client that only keeps a connection busy.
pub const BODY_RATE: u64 = 1024;
/// Time before that counts unless `limits.body_grace` says otherwise: a few lost packets and the round trips they cost.
pub const BODY_GRACE: Duration = Duration::from_secs(5);
/// Time a connection may be idle between requests unless `limits.idle_timeout` says otherwise.
pub const IDLE_TIMEOUT: Duration = Duration::from_secs(60);
/// Time for one write to a client unless `limits.write_timeout` says otherwise.
pub const WRITE_TIMEOUT: Duration = Duration::from_secs(20);

/// Memory for access log lines that wait to be written, in bytes: those of a quarter of a second at full load. The thread that
/// writes them holds as much again.
pub const LOG_QUEUE_ACCESS_BYTES_MAX: usize = 4 * 1024 * 1024;
/// Memory for log lines of all kinds: more than access lines may take, so that a flood of requests displaces no warning.
pub const LOG_QUEUE_BYTES_MAX: usize = 5 * 1024 * 1024;

/// Most entries of one page of backups or Statuses, and the size used when none is asked for.
pub const PAGE_MAX: u16 = 1000;
/// Entries of one page when the caller does not say.
pub const PAGE: u16 = 100;
/// Statuses that are looked at for one page, besides those that are on it: some milliseconds of processor. A page whose filters
/// pass over more ends early, with a link to the next.
pub const LIST_WORK_MAX: usize = 2000;
/// Statuses that are looked at to count those that match: some ten milliseconds. Beyond it the count is a minimum.
pub const LIST_COUNT_MAX: usize = 10_000;
/// Statuses that are looked at for the newest that matches a form without a number.
pub const LIST_SEARCH_MAX: usize = 10_000;
/// Backups of one VM that are read to filter, sort or count them where the VM manager only lists: ten times more than any
/// known VM has, and some seconds where each is read alone.
pub const BACKUPS_SEARCHED_MAX: u16 = 20_000;
/// Longest cursor of a list in bytes: a name and an id of 255 bytes each, and what binds them to the list, encoded.
pub const CURSOR_BYTES_MAX: usize = 1024;
/// Most tags that one list is filtered by: as many as a backup may have.
pub const FILTER_TAGS_MAX: usize = TAGS_MAX;
/// Ended operations that are remembered to check preconditions: many more than end while one request is judged.
pub const ENDED_KEPT_MAX: usize = 1024;

/// Most VMs of one backend that are listed: ids and names of so many are some 20 MiB.
pub const VMS_LISTED_MAX: usize = 100_000;
/// How long the list of VMs waits for a backend: a list that lacks one VM manager is of more use than none.
pub const VMS_DEADLINE: Duration = Duration::from_secs(3);
/// VMs that one page of the list of VMs looks at before it ends short, as long as it can say where it goes on: a filter that
/// fits few of many VMs costs no more than one that fits all.
pub const VMS_LOOKED_AT_MAX: usize = 2000;
/// The same where it cannot say so without naming a VM that the caller may not see.
pub const VMS_PASSED_OVER_MAX: usize = 100_000;
/// VMs named one by one that one page looks up.
pub const VM_LOOKUPS_MAX: usize = 200;
/// Lookups and lists of backups that one page of VMs makes at once: a part of what `backend.reads` allows.
pub const VM_LOOKUPS_AT_ONCE: usize = 8;
/// Most VMs of a page whose last backup is shown: each costs a list of backups.
pub const LAST_BACKUPS_MAX: usize = 100;

/// Keys of session tickets in a shared file: each ticket is compared with the names of all of them, and a rotation needs three.
pub const TICKET_KEYS_MAX: usize = 16;
/// Seconds for which a client may use a ticket with a shared key. Removing the key ends it earlier.
pub const TICKET_SECONDS: u32 = 12 * 60 * 60;

/// Verified credentials remembered at once: bounded memory, 10,000 active callers.
pub const CREDENTIALS_CACHED_MAX: usize = 10_000;
/// How long a verified credential is remembered unless `authentication.remember` says otherwise.
pub const CREDENTIALS_REMEMBERED: Duration = Duration::from_secs(300);
/// Replies about backups that are kept, so that what has not changed is not written again: with the largest, 2 MiB.
pub const REPLIES_KEPT_MAX: usize = 512;
/// Longest reply that is kept, in bytes: hardly any is longer.
pub const REPLY_KEPT_BYTES_MAX: usize = 2048;
/// Most password checks at once, if the machine has more cores than that: each takes a core and up to some ten MiB.
pub const PASSWORD_CHECKS_MAX: usize = 4;
/// How long a request waits for a password check, about: longer queues are refused, because a client tries again after a second or
/// two anyway, and then two of its requests would wait. With the check itself, and the one that is under way, a log-in stays below a
/// second where a check takes a tenth of one.
pub const PASSWORD_WAIT: Duration = Duration::from_millis(500);
/// What a password check takes until some were measured.
pub const PASSWORD_CHECK_EXPECTED: Duration = Duration::from_millis(50);
/// Fewest requests that may wait for a password check, however long one takes.
pub const PASSWORD_QUEUE_MIN: usize = 4;
/// Most requests that may wait for a password check, however short one is: a fraction of all connections.
pub const PASSWORD_QUEUE_MAX: usize = 512;
/// Buckets of each table of clients (rates, wrong passwords), and entries of each bucket: 65,536 clients in some MiB.
pub const CLIENT_BUCKETS: usize = 8192;
/// Entries of one bucket.
pub const CLIENT_BUCKET_ENTRIES: usize = 8;
/// Attempts during one lock-out after which not even a remembered password counts: guesses at what is remembered are cheap.
pub const LOCKED_OUT_KNOCKS_MAX: u32 = 100;
/// Wrong passwords of one user from one address before it must wait, unless `lockout.attempts` says otherwise.
pub const LOCKOUT_ATTEMPTS: u64 = 5;
/// Wrong passwords from one address before it must wait, unless `lockout.address_attempts` says otherwise: many users may
/// share one.
pub const LOCKOUT_ADDRESS_ATTEMPTS: u64 = 50;
/// Longest lock-out unless `lockout.longest` says otherwise.
pub const LOCKOUT_LONGEST: Duration = Duration::from_secs(15 * 60);
/// Concurrent requests of one principal unless `rate.principal_concurrent` says otherwise: a quarter of all connections.
pub const PRINCIPAL_CONCURRENT: u64 = 1024;
/// Requests of one principal that wait at once unless `rate.principal_waiters` says otherwise: half of all.
pub const PRINCIPAL_WAITERS: u64 = 5000;
/// Highest rate limit, in requests a second.
pub const RATE_MAX: u64 = 1_000_000;
/// Burst of a rate limit that names none, in seconds' worth: a pipeline that starts its jobs at once is no attack.
pub const BURST_SECONDS: u32 = 10;

/// Longest bearer token in bytes: a JSON Web Token with some hundred groups.
pub const BEARER_BYTES_MAX: usize = 8 * 1024;
/// Most keys in the set of one issuer: far more than any rotation needs.
pub const ISSUER_KEYS_MAX: usize = 100;
/// Most issuers: each that names a URL has a task of its own.
pub const ISSUERS_MAX: usize = 100;
/// Largest key set that is fetched in bytes: a hundred keys, each with its chain of certificates.
pub const ISSUER_ANSWER_BYTES_MAX: usize = 1024 * 1024;
/// Time for one fetch of a key set, connection and body included.
pub const ISSUER_FETCH_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a fetched key set counts as new unless `issuer.jwks_refresh` or the answer says otherwise: a key that was taken
/// out of it is refused soon, and six requests an hour are no load.
pub const ISSUER_REFRESH: Duration = Duration::from_secs(600);
/// Shortest time that an answer may ask for with `Cache-Control: max-age`, where `issuer.jwks_refresh` is not shorter.
pub const ISSUER_REFRESH_MIN: Duration = Duration::from_secs(60);
/// First and longest pause before a fetch that failed is tried again.
pub const ISSUER_RETRY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));
/// How old the last good key set may become while fetches fail, unless `issuer.jwks_max_age` says otherwise: an outage over
/// night is survived, and a key that was withdrawn meanwhile is not believed for longer than a day.
pub const ISSUER_KEYS_AGE: Duration = Duration::from_secs(24 * 3600);
/// Time between two fetches because of tokens with unknown key ids: invented ids cost the issuer no more than that.
pub const ISSUER_ASK_PAUSE: Duration = Duration::from_secs(30);
/// Longest time that a request waits for such a fetch.
pub const ISSUER_WAIT: Duration = Duration::from_secs(2);
/// Most requests that wait for the keys of one issuer at once; others are refused without waiting.
pub const ISSUER_WAITERS_MAX: usize = 64;
/// Longest subject of a token in bytes: with the issuer's name before it, it becomes a principal.
pub const SUBJECT_BYTES_MAX: usize = 128;
/// Clock difference to an issuer that is tolerated unless `issuer.leeway` says otherwise.
pub const ISSUER_LEEWAY: Duration = Duration::from_secs(60);

/// Longest user name plus password in bytes, decoded.
pub const CREDENTIALS_BYTES_MAX: usize = 1024;
/// Most users, groups and grants each: keeps a reload below a second.
pub const PRINCIPALS_MAX: usize = 100_000;

/// Longest time for looking the name of an upstream up: what resolvers take for two tries.
pub const RESOLVE_TIMEOUT: Duration = Duration::from_secs(10);
/// Longest pause before a name that was not found is looked up again.
pub const RESOLVE_RETRY: Duration = Duration::from_secs(5);
/// Most addresses of one name that are used.
pub const UPSTREAM_ADDRESSES_MAX: usize = 16;
/// Most connections to one upstream that wait for a request: as many as are answered at once by a busy one.
pub const UPSTREAM_IDLE_MAX: usize = 128;
/// Shortest pause between two looks for connections that waited too long.
pub const UPSTREAM_SWEEP_MIN: Duration = Duration::from_millis(100);
/// Most pass-through routes, and most upstreams of one.
pub const PASSTHROUGH_MAX: usize = 256;
/// Largest body that is passed through unless `passthrough.body` says otherwise: an ISO image is a decision.
pub const PASS_BODY_BYTES: u64 = 16 * 1024 * 1024;
/// Range of `passthrough.body`.
pub const PASS_BODY_BYTES_RANGE: (u64, u64) = (0, 1024 * 1024 * 1024 * 1024);
/// Fewest bytes a second of a body that is passed through unless `passthrough.body_rate` says otherwise.
pub const PASS_BODY_RATE: u64 = 1024;

/// Backups of one `files` backend whose manifests are remembered: those that clients look at in turn. Some 2 MiB, at
/// most some 40 with the two limits below.
pub const BACKUPS_RECALLED_MAX: usize = 1000;
/// Largest manifest that is remembered in bytes: the longest description with all tags.
pub const BACKUP_RECALLED_BYTES_MAX: u64 = 32 * 1024;
/// Most disks of a backup that is remembered: each is watched.
pub const BACKUP_RECALLED_DISKS_MAX: usize = 16;
/// Files and directories watched for them by one `files` backend: 1000 backups with three disks, and less than the 8192 that
/// old kernels allow one user.
pub const BACKUP_WATCHES_MAX: usize = 6000;
/// VMs of one `files` backend whose backups are kept in memory: each takes one of the 128 inotify instances that a user has.
pub const INDEX_VMS_MAX: NonZeroUsize = NonZeroUsize::new(48).unwrap();
/// Memory for the backups of these VMs in bytes, estimated: some 100,000 backups.
pub const INDEX_BYTES_MAX: usize = 64 * 1024 * 1024;
/// Folders watched for one VM: two for each of 20,000 backups. The kernel takes about a kilobyte for each.
pub const INDEX_WATCHES_MAX: usize = 40_000;
/// Operations that may wait for one VM unless `operations.queue_per_vm` says otherwise.
pub const QUEUE_PER_VM: u64 = 16;
/// Highest number of a cell: 10 bits of the number of an operation.
pub const CELL_MAX: u64 = 1023;
/// Operations that may be unfinished in all unless `operations.queue_total` says otherwise.
pub const QUEUE_TOTAL: u64 = 10_000;
/// Operations that one backend runs at once unless `backend.concurrency` says otherwise.
pub const CONCURRENCY: u64 = 4;
/// Reads that one backend serves at once unless `backend.reads` says otherwise.
pub const READS: u64 = 64;
/// Largest answer of a VM manager in bytes: a thousand snapshots with their whole configurations.
pub const BACKEND_ANSWER_BYTES_MAX: usize = 32 * 1024 * 1024;
/// Longest link of a server that is followed in bytes: the ids in it may be 255 bytes each, encoded as 765.
pub const LINK_BYTES_MAX: usize = 2048;
/// Statuses of a server that are remembered before a change: those of one VM and verb, of which one runs at a time.
pub const STATUSES_KNOWN_MAX: usize = 20;
/// Gateways that may forward a request to one another: more than any chain needs, so more are a loop.
pub const HOPS_MAX: u8 = 4;
/// Time for one call to a backend unless `backend.timeout` says otherwise.
pub const CALL_TIMEOUT: Duration = Duration::from_secs(30);
/// Time between two health checks of a backend unless `backend.health_interval` says otherwise: an idle backend that breaks is
/// known to be down before anyone needs it, at a call that costs it nothing.
pub const HEALTH_INTERVAL: Duration = Duration::from_secs(30);
/// How long a finished Status is kept unless `operations.retention` says otherwise.
pub const RETENTION: Duration = Duration::from_secs(7 * 24 * 3600);
/// Shortest retention: a client that sleeps overnight still finds its answer.
pub const RETENTION_MIN: Duration = Duration::from_secs(24 * 3600);
/// How long no gateway may have been running for an accepted operation to be run at all.
pub const ACCEPT_TTL: Duration = Duration::from_secs(600);
/// How long evidence is searched for before an outcome is reported as unknown, unless `operations.probe_window` says otherwise.
pub const PROBE_WINDOW: Duration = Duration::from_secs(600);
/// Longest native task reference or baseline in bytes: they live in the store with each operation.
pub const EVIDENCE_BYTES_MAX: usize = 64 * 1024;
/// How long the gateway waits for running requests when it stops, unless `server.drain` says otherwise.
pub const DRAIN: Duration = Duration::from_secs(30);
/// How long an answer to an update waits for the update itself, so that it can say 100 at once.
pub const UPDATE_WAIT: Duration = Duration::from_secs(2);
/// How long a whole request that reads from a backend may take.
pub const READ_DEADLINE: Duration = Duration::from_secs(10);

/// How long a plan says that it is worth looking at: a person decides within it, and a script that waits longer looks again. Nothing is
/// kept for it; whether a plan is stale is decided by its fingerprint.
pub const PLAN_LIFETIME: Duration = Duration::from_secs(10 * 60);

/// Spans of traces that wait for their collector: some megabytes, and ten seconds of a busy gateway. Later ones are dropped and counted.
pub const SPANS_KEPT_MAX: usize = 8192;
/// Spans in one request to a collector.
pub const SPANS_AT_ONCE_MAX: usize = 512;
/// Longest time for which the log level is changed: a forgotten `debug` must not fill the disk of next week.
pub const LOG_LEVEL_FOR_MAX: Duration = Duration::from_secs(24 * 3600);
/// Time for one request to a collector of traces, connection included: the next batch is due by then.
pub const SPANS_TIMEOUT: Duration = Duration::from_secs(5);
/// Largest answer of a collector of traces: it says how many spans it refused.
pub const SPANS_ANSWER_BYTES_MAX: usize = 64 * 1024;
