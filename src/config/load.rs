//! From a file to [`Settings`], or to every error in it.

use std::num::NonZeroU32;
use std::path::Path;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use toml::de::DeTable;

use crate::config::access;
use crate::config::addresses;
use crate::config::addresses::Addresses;
use crate::config::addresses::FixedAddresses;
use crate::config::backends;
use crate::config::cluster;
use crate::config::etcd;
use crate::config::log_level;
use crate::config::passthrough;
use crate::config::separate_paths;
use crate::config::separate_paths::OutputFile;
use crate::config::settings::Backend;
use crate::config::settings::LogFormat;
use crate::config::settings::Logging;
use crate::config::settings::Settings;
use crate::config::tables;
use crate::config::tls;
use crate::config::trace_export;
use crate::gate;
use crate::gate::OnMissingVersion;
use crate::gate::OriginError;
use crate::gate::Profile;
use crate::gate::PublicUrl;
use crate::gate::Specification;
use crate::gate::TrustedProxies;
use crate::gate::WebOrigin;
use crate::listener;
use crate::model::limits;
use crate::operations;
use crate::operations::StoreLocation;
use crate::operations::WhenBusy;
use crate::schema::Integer;
use crate::schema::Key;
use crate::schema::LocatedText;
use crate::schema::Problem;
use crate::schema::Problems;
use crate::schema::Reader;
use crate::schema::SecretSource;
use crate::schema::Section;
use crate::schema::format_duration;

/// Reads the file and everything it names. Relative paths start from the folder of the file.
///
/// # Errors
/// Every error in it, with its position. Syntax errors are reported alone, because nothing else can be checked then.
pub fn load(path: &Path, env: &dyn Fn(&str) -> Option<String>) -> Result<Settings, Problems> {
    load_at(path, env, &FixedAddresses::default())
}

/// [`load`] for a gateway whose addresses are already known; they replace `server.listen` and `server.admin`.
///
/// # Errors
/// Those of [`load`].
pub fn load_at(
    path: &Path,
    env: &dyn Fn(&str) -> Option<String>,
    fixed: &FixedAddresses,
) -> Result<Settings, Problems> {
    let source = SecretSource::new(env);
    let text = match source.read_or_reason(path) {
        Ok(text) => text,
        Err(what) => {
            let problem = Problem {
                file: path.to_owned(),
                position: None,
                key: String::new(),
                what,
                hint: None,
            };
            return Err(Problems::new(vec![problem], source.finish().0));
        }
    };
    let reader = Reader::new(path, &text);
    let (root, errors) = DeTable::parse_recoverable(&text);
    if !errors.is_empty() {
        for error in errors {
            let at = error.span().map_or(0, |span| span.start);
            reader.report(at, "", error.message(), "");
        }
        return Err(Problems::new(reader.into_problems(), source.finish().0));
    }
    let settings = settings(&reader, root.get_ref(), &source, fixed);
    let problems = reader.into_problems();
    let (files, hash) = source.finish();
    match settings {
        Some(settings) if problems.is_empty() => Ok(Settings {
            files,
            hash,
            ..settings
        }),
        Some(_) | None => Err(Problems::new(problems, files)),
    }
}

fn settings(
    reader: &Reader<'_>,
    root: &DeTable<'_>,
    source: &SecretSource<'_>,
    fixed: &FixedAddresses,
) -> Option<Settings> {
    reader.refuse_unknown_tables(root, tables::ALL);
    let section = |table| Section::read_all(reader, root, table).into_iter().next();
    let insecure = section(&tables::insecure::TABLE);
    let plaintext = insecure.is_some_and(|section| section.read_flag(&tables::insecure::PLAINTEXT));
    let encryption = tls::read(reader, root, source);
    let is_safe = plaintext || encryption.is_wanted();
    let server = section(&tables::server::TABLE)
        .map(|section| server(reader, &section, fixed, (is_safe, encryption.is_wanted())));
    let limits = section(&tables::limits::TABLE).map(|section| all_limits(&section));
    let specification =
        section(&tables::specification::TABLE).map(|section| specification(reader, &section));
    let lockout = section(&tables::lockout::TABLE).map(|section| lockout(&section));
    let rates = section(&tables::rate::TABLE).map(|section| rates(&section));
    let passes = Section::read_all(reader, root, &tables::passthrough::TABLE);
    let authentication_section = section(&tables::authentication::TABLE);
    let mut people = access::read(reader, root, source, &passes);
    let allowed = std::mem::take(&mut people.allowed);
    let (passthrough, upstreams) = passthrough::read(reader, &passes, allowed, source);
    let work = work(reader, root, source);
    let log_section = section(&tables::log::TABLE);
    let logging = log_section.as_ref().map(|section| logging(reader, section));
    let trace_export = section(&tables::tracing::TABLE)
        .and_then(|section| trace_export::read(reader, &section, source));
    let sections = [work.section, log_section, authentication_section];
    let tokens = people.tokens_file.as_deref();
    let paths = (work.operations.as_ref(), logging.as_ref(), tokens);
    let outputs = output_files(&sections, paths);
    separate_paths::check_files(&outputs, &source.files(), &work.backends);
    let server = server?;
    let addresses = server.addresses?;
    let (listener_limits, gate_limits) = limits?;
    Some(Settings {
        listener: listener::Config {
            listen: addresses.listen,
            admin: addresses.admin,
            tls: encryption.ready(),
            drain: server.drain,
            drain_notice: server.drain_notice,
            limits: listener_limits,
        },
        gate: gate::Config {
            public_url: server.public_url?,
            allowed_origins: server.allowed_origins,
            page: server.page,
            specification: specification?,
            trusted_proxies: server.trusted_proxies,
            credentials: people.credentials,
            lockout: lockout?,
            rates: rates?,
            grants: people.grants,
            placements: work.placements,
            passthrough,
            limits: gate_limits,
        },
        key_sources: people.key_sources,
        upstreams,
        cluster: work.cluster,
        peers: work.peers,
        operations: work.operations?,
        backends: work.backends,
        logging: logging?,
        trace_export,
        tokens: people.tokens_file,
        threads: server.threads,
        notes: [addresses.notes, reader.warnings()].concat(),
        secrets: source.secret_files(),
        files: Vec::new(),
        hash: String::new(),
    })
}

/// `[operations]`, `[etcd]`, `[cluster]` and every `[[backend]]`.
struct Work<'a> {
    section: Option<Section<'a>>,
    operations: Option<operations::Config>,
    cluster: Option<crate::cluster::Config>,
    peers: Option<cluster::PeerChannel>,
    backends: Vec<Backend>,
    placements: Vec<gate::Placement>,
}

fn work<'a>(reader: &'a Reader<'a>, root: &'a DeTable<'a>, source: &SecretSource<'_>) -> Work<'a> {
    let first = |table| Section::read_all(reader, root, table).into_iter().next();
    let section = first(&tables::operations::TABLE);
    let etcd_section = first(&tables::etcd::TABLE);
    let operations = section
        .as_ref()
        .and_then(|section| operations(reader, section, etcd_section.as_ref(), source));
    let members = first(&tables::cluster::TABLE);
    let is_cluster = members.as_ref().is_some_and(cluster::is_wanted);
    let cluster =
        members.and_then(|section| cluster::read(reader, &section, source, operations.as_ref()));
    let (cluster, peers) = cluster.map_or((None, None), |(config, peers)| (Some(config), peers));
    let (backends, placements) = backends::read(reader, root, source, is_cluster);
    Work {
        section,
        operations,
        cluster,
        peers,
        backends,
        placements,
    }
}

/// `[server]`.
struct Server {
    addresses: Option<Addresses>,
    public_url: Option<PublicUrl>,
    allowed_origins: Vec<WebOrigin>,
    page: bool,
    trusted_proxies: TrustedProxies,
    threads: usize,
    drain: Duration,
    drain_notice: Duration,
}

fn server(
    reader: &Reader<'_>,
    section: &Section<'_>,
    fixed: &FixedAddresses,
    (is_safe, is_encrypted): (bool, bool),
) -> Server {
    let addresses = addresses::read(reader, section, fixed, is_safe);
    let listen = addresses.as_ref().map(|found| found.listen);
    Server {
        public_url: addresses::public_url(reader, section, listen, is_encrypted),
        addresses,
        allowed_origins: allowed_origins(reader, section),
        page: section.read_flag(&tables::server::PAGE),
        trusted_proxies: trusted_proxies(reader, section),
        threads: threads_or_cores(section.read_usize(&tables::server::THREADS)),
        drain: section.read_duration(&tables::server::DRAIN),
        drain_notice: section.read_duration(&tables::server::DRAIN_NOTICE),
    }
}

/// The files that the gateway writes: those of `operations.store`, `log.audit` and `authentication.tokens`.
fn output_files<'a>(
    sections: &'a [Option<Section<'a>>; 3],
    (operations, logging, tokens): (
        Option<&'a operations::Config>,
        Option<&'a Logging>,
        Option<&'a Path>,
    ),
) -> Vec<OutputFile<'a>> {
    let files = [
        operations.and_then(|config| config.store.file()),
        logging.and_then(|logging| logging.audit.as_deref()),
        tokens,
    ];
    let keys = [
        tables::operations::STORE.name,
        tables::log::AUDIT.name,
        tables::authentication::TOKENS.name,
    ];
    let named = sections.iter().zip(keys).zip(files);
    let files = named.filter_map(|((section, key), path)| {
        Some(OutputFile {
            section: section.as_ref()?,
            key,
            path: path?,
            is_read: key == tables::authentication::TOKENS.name,
        })
    });
    files.collect()
}

fn threads_or_cores(threads: usize) -> usize {
    if threads > 0 {
        return threads;
    }
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    cores.min(256)
}

fn trusted_proxies(reader: &Reader<'_>, section: &Section<'_>) -> TrustedProxies {
    let mut networks = Vec::new();
    for found in section.read_texts(&tables::server::TRUSTED_PROXIES) {
        match TrustedProxies::network(&found.text) {
            Some(network) => networks.push(network),
            None => {
                let what = format!("{:?} is neither an address nor a network", found.text);
                reader.report_text(&found, what, "write \"10.0.0.7\" or \"10.0.0.0/8\"");
            }
        }
    }
    TrustedProxies::new(networks)
}

fn allowed_origins(reader: &Reader<'_>, section: &Section<'_>) -> Vec<WebOrigin> {
    let mut origins = Vec::new();
    for found in section.read_texts(&tables::server::ALLOWED_ORIGINS) {
        let text = &found.text;
        match WebOrigin::parse(text) {
            Ok(origin) if origins.contains(&origin) => {
                reader.report_text(&found, format!("duplicate origin {text:?}"), "remove one");
            }
            Ok(_) if origins.len() >= limits::ALLOWED_ORIGINS_MAX => {
                let what = format!("more than {} origins", limits::ALLOWED_ORIGINS_MAX);
                reader.report_text(&found, what, "");
            }
            Ok(origin) => origins.push(origin),
            Err(error) => {
                let hint = match error {
                    OriginError::Wildcard | OriginError::Null => "name each origin",
                    OriginError::Malformed => {
                        "write http:// or https://, a host and optionally a port, without a path or a trailing slash"
                    }
                };
                reader.report_text(&found, format!("{text:?} {error}"), hint);
            }
        }
    }
    origins
}

fn specification(reader: &Reader<'_>, section: &Section<'_>) -> Specification {
    let known = Specification::default().supported;
    let found = section.read_texts(&tables::specification::SUPPORTED);
    let hint = format!("expected one of {}", known.join(", "));
    for version in found.iter().filter(|item| !known.contains(&item.text)) {
        let what = format!("unsupported version {:?}", version.text);
        reader.report_text(version, what, &hint);
    }
    let on_missing = section.read_choice(&tables::specification::ON_MISSING);
    let profile = section.read_choice(&tables::specification::PROFILE);
    let is_listed = |version: &String| found.iter().any(|item| item.text == *version);
    Specification {
        supported: known.into_iter().filter(is_listed).collect(),
        on_missing: if on_missing == Some("assume-current") {
            OnMissingVersion::AssumeCurrent
        } else {
            OnMissingVersion::Reject
        },
        profile: if profile == Some("strict") {
            Profile::Strict
        } else {
            Profile::Lenient
        },
    }
}

/// What `operations.store` says instead of a path.
const ETCD: &str = "etcd";

fn operations(
    reader: &Reader<'_>,
    section: &Section<'_>,
    etcd_section: Option<&Section<'_>>,
    source: &SecretSource<'_>,
) -> Option<operations::Config> {
    use tables::operations as key;
    let poll_min = section.read_duration(&key::POLL_MIN);
    let poll_max = section.read_duration(&key::POLL_MAX);
    if poll_min > poll_max {
        let what = format!("is longer than poll_max, {}", format_duration(poll_max));
        section.report_key(key::POLL_MIN.name, what, "make it shorter");
    }
    let retention = section.read_duration(&key::RETENTION);
    let queue_per_vm = section.read_usize(&key::QUEUE_PER_VM);
    let queue_total = section.read_usize(&key::QUEUE_TOTAL);
    let cell = u16::try_from(section.read_usize(&key::CELL)).unwrap_or_default();
    let accept_ttl = section.read_duration(&key::ACCEPT_TTL);
    let resume_ttl = section.read_duration_or(&key::RESUME_TTL, accept_ttl);
    let probe_window = section.read_duration(&key::PROBE_WINDOW);
    let refuse = section.read_choice(&key::WHEN_BUSY) == Some("refuse");
    let store = section.read_text(&key::STORE);
    let is_etcd = store.as_ref().is_some_and(|store| store.text == ETCD);
    let cluster = etcd_section.and_then(|section| etcd::read(reader, section, source, is_etcd));
    let location = match store {
        Some(_) if is_etcd => cluster.map(|config| StoreLocation::Etcd(Arc::new(config))),
        Some(store) => Some(StoreLocation::File(file_to_write(reader, &store))),
        None => None,
    };
    let operator_file = section.read_text(&key::OPERATOR_FILE);
    if is_etcd && operator_file.is_none() {
        let hint = "write operator_file = \"/var/lib/snapgate/snapgate.operator\"";
        let what = "is required with store = \"etcd\"";
        section.report_key(key::OPERATOR_FILE.name, what, hint);
    }
    let operator_file = operator_file.map(|file| file_to_write(reader, &file));
    Some(operations::Config {
        store: location?,
        operator_file,
        retention,
        when_busy: if refuse {
            WhenBusy::Refuse
        } else {
            WhenBusy::Queue
        },
        queue_per_vm,
        queue_total,
        cell,
        accept_ttl,
        resume_ttl,
        probe_window,
        poll_min,
        poll_max,
    })
}

/// The path of a file that the gateway creates when it is absent: its folder must exist.
fn file_to_write(reader: &Reader<'_>, found: &LocatedText) -> PathBuf {
    let path = reader.folder().join(&found.text);
    let folder = path.parent().unwrap_or_else(|| Path::new("/"));
    if path.is_dir() {
        let what = format!("{} is a folder", path.display());
        reader.report_text(found, what, "name a file in it");
    } else if !folder.is_dir() {
        let what = format!("folder {} does not exist", folder.display());
        reader.report_text(found, what, "create it, or correct the path");
    }
    path
}

fn logging(reader: &Reader<'_>, section: &Section<'_>) -> Logging {
    let level = section.read_text(&tables::log::LEVEL).and_then(|found| {
        let report = |(what, hint): (String, String)| reader.report_text(&found, what, &hint);
        log_level::check(&found.text).map_err(report).ok()
    });
    let audit = section.read_text(&tables::log::AUDIT);
    Logging {
        format: match section.read_choice(&tables::log::FORMAT) {
            Some("json") => LogFormat::Json,
            Some("text") => LogFormat::Text,
            Some(_) | None => LogFormat::Auto,
        },
        level: level.unwrap_or_else(|| "info".to_owned()),
        access: section.read_flag(&tables::log::ACCESS),
        audit: audit.map(|audit| file_to_write(reader, &audit)),
        audit_required: section.read_flag(&tables::log::AUDIT_REQUIRED),
    }
}

fn lockout(section: &Section<'_>) -> gate::LockoutRule {
    gate::LockoutRule {
        attempts: section.read_u32(&tables::lockout::ATTEMPTS),
        address_attempts: section.read_u32(&tables::lockout::ADDRESS_ATTEMPTS),
        longest: section.read_duration(&tables::lockout::LONGEST),
    }
}

fn rates(section: &Section<'_>) -> gate::RateLimits {
    use tables::rate as key;
    let rate = |per_second: &Key<Integer>, burst: &Key<Integer>| {
        let (number, written) = (section.read_u32(per_second), section.read_u32(burst));
        if number == 0 && written != 0 {
            let what = format!("has no effect without {}", per_second.name);
            let hint = format!("write {} = 10 beside it", per_second.name);
            section.report_key(burst.name, what, &hint);
        }
        let per_second = NonZeroU32::new(number)?;
        let usual = number.saturating_mul(limits::BURST_SECONDS);
        let burst = NonZeroU32::new(written).or_else(|| NonZeroU32::new(usual))?;
        Some(gate::Rate { per_second, burst })
    };
    gate::RateLimits {
        principal: rate(&key::PRINCIPAL, &key::PRINCIPAL_BURST),
        address: rate(&key::ADDRESS, &key::ADDRESS_BURST),
        principal_concurrent: section.read_usize(&key::PRINCIPAL_CONCURRENT),
        address_concurrent: section.read_usize(&key::ADDRESS_CONCURRENT),
        principal_waiters: section.read_usize(&key::PRINCIPAL_WAITERS),
    }
}

/// `[limits]`, read as a whole: every error in it is reported, whatever else is wrong.
fn all_limits(section: &Section<'_>) -> (listener::Limits, gate::Limits) {
    (listener_limits(section), gate_limits(section))
}

fn gate_limits(section: &Section<'_>) -> gate::Limits {
    gate::Limits {
        body_bytes: section.read_size(&tables::limits::BODY),
        target_bytes: section.read_size(&tables::limits::TARGET),
        header_bytes: section.read_size(&tables::limits::HEADER),
        header_count: section.read_usize(&tables::limits::HEADER_COUNT),
        wait: section.read_duration(&tables::limits::WAIT),
        stream: section.read_duration(&tables::limits::STREAM),
        waiters: section.read_usize(&tables::limits::WAITERS),
    }
}

fn listener_limits(section: &Section<'_>) -> listener::Limits {
    listener::Limits {
        connections: section.read_usize(&tables::limits::CONNECTIONS),
        connections_per_address: section.read_usize(&tables::limits::CONNECTIONS_PER_ADDRESS),
        handshake_timeout: section.read_duration(&tables::limits::HANDSHAKE_TIMEOUT),
        streams: section.read_u32(&tables::limits::STREAMS),
        header_timeout: section.read_duration(&tables::limits::HEADER_TIMEOUT),
        body_timeout: section.read_duration(&tables::limits::BODY_TIMEOUT),
        body_rate: u64::try_from(section.read_size(&tables::limits::BODY_RATE)).unwrap_or(u64::MAX),
        body_grace: section.read_duration(&tables::limits::BODY_GRACE),
        idle_timeout: section.read_duration(&tables::limits::IDLE_TIMEOUT),
        write_timeout: section.read_duration(&tables::limits::WRITE_TIMEOUT),
    }
}
