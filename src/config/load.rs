//! From a file to [`Settings`], or to every mistake in it.

use std::num::NonZeroU32;
use std::path::Path;
use std::path::PathBuf;
use std::time::Duration;

use toml::de::DeTable;

use crate::config::access;
use crate::config::addresses;
use crate::config::addresses::Addresses;
use crate::config::addresses::FixedAddresses;
use crate::config::apart;
use crate::config::apart::Written;
use crate::config::backends;
use crate::config::log_level;
use crate::config::passthrough;
use crate::config::problem::Problem;
use crate::config::problem::Problems;
use crate::config::reader::Found;
use crate::config::reader::Reader;
use crate::config::reader::Section;
use crate::config::schema;
use crate::config::schema::Count;
use crate::config::schema::Key;
use crate::config::secret_source::Source;
use crate::config::settings::LogFormat;
use crate::config::settings::Logging;
use crate::config::settings::Settings;
use crate::config::tls;
use crate::gate;
use crate::gate::OnMissingVersion;
use crate::gate::Profile;
use crate::gate::PublicUrl;
use crate::gate::Specification;
use crate::gate::TrustedProxies;
use crate::listener;
use crate::model::limits;
use crate::operations;
use crate::operations::WhenBusy;

/// Reads the file and everything it names. Relative paths start from the folder of the file.
///
/// # Errors
/// Every mistake in it, with its place. What is no TOML is told alone, because the rest cannot be judged then.
pub fn load(path: &Path, env: &dyn Fn(&str) -> Option<String>) -> Result<Settings, Problems> {
    load_at(path, env, &FixedAddresses::default())
}

/// [`load`] for a gateway whose ports are known already: they count instead of `server.listen` and `server.admin`.
///
/// # Errors
/// Those of [`load`].
pub fn load_at(
    path: &Path,
    env: &dyn Fn(&str) -> Option<String>,
    fixed: &FixedAddresses,
) -> Result<Settings, Problems> {
    let source = Source::new(env);
    let text = match source.read(path) {
        Ok(text) => text,
        Err(what) => {
            let problem = Problem {
                file: path.to_owned(),
                place: None,
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
        for it in errors {
            let at = it.span().map_or(0, |span| span.start);
            reader.problem(at, "", it.message(), "");
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
    source: &Source<'_>,
    fixed: &FixedAddresses,
) -> Option<Settings> {
    reader.refuse_unknown_tables(root);
    let section = |table| reader.sections(root, table).into_iter().next();
    let insecure = section(&schema::insecure::TABLE);
    let plaintext = insecure.is_some_and(|it| it.flag(&schema::insecure::PLAINTEXT));
    let encryption = tls::read(reader, root, source);
    let is_safe = plaintext || encryption.is_wanted();
    let server = section(&schema::server::TABLE)
        .map(|section| server(reader, &section, fixed, (is_safe, encryption.is_wanted())));
    let limit = section(&schema::limit::TABLE);
    let specification =
        section(&schema::specification::TABLE).map(|section| specification(reader, &section));
    let lockout = section(&schema::lockout::TABLE).map(|section| lockout(&section));
    let rates = section(&schema::rate::TABLE).map(|section| rates(&section));
    let passes = reader.sections(root, &schema::passthrough::TABLE);
    let authentication_section = section(&schema::authentication::TABLE);
    let mut people = access::read(reader, root, source, &passes);
    let allowed = std::mem::take(&mut people.allowed);
    let (passthrough, upstreams) = passthrough::read(reader, &passes, allowed, source);
    let operations_section = section(&schema::operations::TABLE);
    let log_section = section(&schema::log::TABLE);
    let operations = operations_section
        .as_ref()
        .and_then(|section| operations(reader, section));
    let logging = log_section.as_ref().map(|section| logging(reader, section));
    let (backends, placements) = backends::read(reader, root, source);
    let sections = [operations_section, log_section, authentication_section];
    let paths = (
        operations.as_ref(),
        logging.as_ref(),
        people.tokens_file.as_deref(),
    );
    apart::files(&written(&sections, paths), &source.files(), &backends);
    let limits = limit.as_ref().map(gate_limits);
    let listener_limits = limit.as_ref().map(listener_limits);
    let server = server?;
    let addresses = server.addresses?;
    Some(Settings {
        listener: listener::Config {
            listen: addresses.listen,
            admin: addresses.admin,
            tls: encryption.ready(),
            drain: server.drain,
            drain_notice: server.drain_notice,
            limits: listener_limits?,
        },
        gate: gate::Config {
            public_url: server.public_url?,
            specification: specification?,
            trusted_proxies: server.trusted_proxies,
            credentials: people.credentials,
            lockout: lockout?,
            rates: rates?,
            grants: people.grants,
            placements,
            passthrough,
            limits: limits?,
        },
        key_sources: people.key_sources,
        upstreams,
        operations: operations?,
        backends,
        logging: logging?,
        tokens: people.tokens_file,
        threads: server.threads,
        notes: addresses.notes,
        secrets: source.secrets(),
        files: Vec::new(),
        hash: String::new(),
    })
}

/// What the table `server` says.
struct Server {
    addresses: Option<Addresses>,
    public_url: Option<PublicUrl>,
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
        trusted_proxies: trusted_proxies(reader, section),
        threads: threads_or_cores(section.number(&schema::server::THREADS)),
        drain: section.span(&schema::server::DRAIN),
        drain_notice: section.span(&schema::server::DRAIN_NOTICE),
    }
}

/// The files that are written: those of `operations.store`, `log.audit` and `authentication.tokens`.
fn written<'a>(
    sections: &'a [Option<Section<'a>>; 3],
    (operations, logging, tokens): (
        Option<&'a operations::Config>,
        Option<&'a Logging>,
        Option<&'a Path>,
    ),
) -> Vec<Written<'a>> {
    let files = [
        operations.map(|config| config.store.as_path()),
        logging.and_then(|logging| logging.audit.as_deref()),
        tokens,
    ];
    let keys = [
        schema::operations::STORE.name,
        schema::log::AUDIT.name,
        schema::authentication::TOKENS.name,
    ];
    let named = sections.iter().zip(keys).zip(files);
    let written = named.filter_map(|((section, key), path)| {
        Some(Written {
            section: section.as_ref()?,
            key,
            path: path?,
            is_read: key == schema::authentication::TOKENS.name,
        })
    });
    written.collect()
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
    for it in section.texts(&schema::server::TRUSTED_PROXIES) {
        match TrustedProxies::network(&it.text) {
            Some(network) => networks.push(network),
            None => {
                let what = format!("{:?} is neither an address nor a network", it.text);
                reader.wrong(&it, what, "write \"10.0.0.7\" or \"10.0.0.0/8\"");
            }
        }
    }
    TrustedProxies::new(networks)
}

fn specification(reader: &Reader<'_>, section: &Section<'_>) -> Specification {
    let known = Specification::default().supported;
    let found = section.texts(&schema::specification::SUPPORTED);
    for it in found.iter().filter(|it| !known.contains(&it.text)) {
        let what = format!("{:?} is no version this gateway speaks", it.text);
        reader.wrong(
            it,
            what,
            &format!("known versions are {}", known.join(", ")),
        );
    }
    let on_missing = section.word(&schema::specification::ON_MISSING);
    let profile = section.word(&schema::specification::PROFILE);
    let wanted = |version: &String| found.iter().any(|it| it.text == *version);
    Specification {
        supported: known.into_iter().filter(wanted).collect(),
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

fn operations(reader: &Reader<'_>, section: &Section<'_>) -> Option<operations::Config> {
    use schema::operations as key;
    let poll_min = section.span(&key::POLL_MIN);
    let poll_max = section.span(&key::POLL_MAX);
    if poll_min > poll_max {
        let what = format!("is longer than poll_max, {}", schema::written(poll_max));
        section.problem_at(key::POLL_MIN.name, what, "make it shorter");
    }
    let retention = section.span(&key::RETENTION);
    let queue_per_vm = section.number(&key::QUEUE_PER_VM);
    let queue_total = section.number(&key::QUEUE_TOTAL);
    let accept_ttl = section.span(&key::ACCEPT_TTL);
    let resume_ttl = section.span_or(&key::RESUME_TTL, accept_ttl);
    let probe_window = section.span(&key::PROBE_WINDOW);
    let refuse = section.word(&key::WHEN_BUSY) == Some("refuse");
    let store = section.text(&key::STORE)?;
    Some(operations::Config {
        store: file_to_write(reader, &store),
        retention,
        when_busy: if refuse {
            WhenBusy::Refuse
        } else {
            WhenBusy::Queue
        },
        queue_per_vm,
        queue_total,
        accept_ttl,
        resume_ttl,
        probe_window,
        poll_min,
        poll_max,
    })
}

/// The path of a file that the gateway makes when it is absent: its folder must exist.
fn file_to_write(reader: &Reader<'_>, found: &Found) -> PathBuf {
    let path = reader.folder().join(&found.text);
    let folder = path.parent().unwrap_or_else(|| Path::new("/"));
    if path.is_dir() {
        let what = format!("{} is a folder", path.display());
        reader.wrong(found, what, "name a file in it");
    } else if !folder.is_dir() {
        let what = format!("the folder {} does not exist", folder.display());
        reader.wrong(found, what, "make it, or correct the path");
    }
    path
}

fn logging(reader: &Reader<'_>, section: &Section<'_>) -> Logging {
    let level = section.text(&schema::log::LEVEL).and_then(|found| {
        let wrong = |(what, hint): (String, String)| reader.wrong(&found, what, &hint);
        log_level::checked(&found.text).map_err(wrong).ok()
    });
    let audit = section.text(&schema::log::AUDIT);
    Logging {
        format: match section.word(&schema::log::FORMAT) {
            Some("json") => LogFormat::Json,
            Some(_) | None => LogFormat::Text,
        },
        level: level.unwrap_or_else(|| "info".to_owned()),
        access: section.flag(&schema::log::ACCESS),
        audit: audit.map(|audit| file_to_write(reader, &audit)),
        audit_required: section.flag(&schema::log::AUDIT_REQUIRED),
    }
}

fn lockout(section: &Section<'_>) -> gate::LockoutRule {
    gate::LockoutRule {
        attempts: section.small(&schema::lockout::ATTEMPTS),
        address_attempts: section.small(&schema::lockout::ADDRESS_ATTEMPTS),
        longest: section.span(&schema::lockout::LONGEST),
    }
}

fn rates(section: &Section<'_>) -> gate::RateLimits {
    use schema::rate as key;
    let rate = |per_second: &Key<Count>, burst: &Key<Count>| {
        let (number, written) = (section.small(per_second), section.small(burst));
        if number == 0 && written != 0 {
            let what = format!("means nothing without {}", per_second.name);
            let hint = format!("write {} = 10 beside it", per_second.name);
            section.problem_at(burst.name, what, &hint);
        }
        let per_second = NonZeroU32::new(number)?;
        let usual = number.saturating_mul(limits::BURST_SECONDS);
        let burst = NonZeroU32::new(written).or_else(|| NonZeroU32::new(usual))?;
        Some(gate::Rate { per_second, burst })
    };
    gate::RateLimits {
        principal: rate(&key::PRINCIPAL, &key::PRINCIPAL_BURST),
        address: rate(&key::ADDRESS, &key::ADDRESS_BURST),
        principal_concurrent: section.number(&key::PRINCIPAL_CONCURRENT),
        address_concurrent: section.number(&key::ADDRESS_CONCURRENT),
        principal_waiters: section.number(&key::PRINCIPAL_WAITERS),
    }
}

fn gate_limits(section: &Section<'_>) -> gate::Limits {
    gate::Limits {
        body_bytes: section.size(&schema::limit::BODY),
        target_bytes: section.size(&schema::limit::TARGET),
        header_bytes: section.size(&schema::limit::HEADER),
        header_count: section.number(&schema::limit::HEADER_COUNT),
        wait: section.span(&schema::limit::WAIT),
        stream: section.span(&schema::limit::STREAM),
        waiters: section.number(&schema::limit::WAITERS),
    }
}

fn listener_limits(section: &Section<'_>) -> listener::Limits {
    listener::Limits {
        connections: section.number(&schema::limit::CONNECTIONS),
        connections_per_address: section.number(&schema::limit::CONNECTIONS_PER_ADDRESS),
        handshake_timeout: section.span(&schema::limit::HANDSHAKE_TIMEOUT),
        streams: section.small(&schema::limit::STREAMS),
        header_timeout: section.span(&schema::limit::HEADER_TIMEOUT),
        body_timeout: section.span(&schema::limit::BODY_TIMEOUT),
        body_rate: u64::try_from(section.size(&schema::limit::BODY_RATE)).unwrap_or(u64::MAX),
        body_grace: section.span(&schema::limit::BODY_GRACE),
        idle_timeout: section.span(&schema::limit::IDLE_TIMEOUT),
        write_timeout: section.span(&schema::limit::WRITE_TIMEOUT),
    }
}
