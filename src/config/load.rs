//! From a file to [`Settings`], or to every mistake in it.

use std::net::SocketAddr;
use std::num::NonZeroU32;
use std::path::Path;
use std::path::PathBuf;

use toml::de::DeTable;
use tracing_subscriber::EnvFilter;

use crate::config::access;
use crate::config::backends;
use crate::config::keys;
use crate::config::keys::Count;
use crate::config::keys::Key;
use crate::config::keys::Text;
use crate::config::passthrough;
use crate::config::problem::Problem;
use crate::config::problem::Problems;
use crate::config::reader::Found;
use crate::config::reader::Reader;
use crate::config::reader::Section;
use crate::config::settings::LogFormat;
use crate::config::settings::Logging;
use crate::config::settings::Settings;
use crate::config::source::Source;
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
    let settings = settings(&reader, root.get_ref(), &source);
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

fn settings(reader: &Reader<'_>, root: &DeTable<'_>, source: &Source<'_>) -> Option<Settings> {
    reader.refuse_unknown_tables(root);
    let section = |table| reader.sections(root, table).into_iter().next();
    let insecure = section(&keys::insecure::TABLE);
    let plaintext = insecure.is_some_and(|it| it.flag(&keys::insecure::PLAINTEXT));
    let server = section(&keys::server::TABLE);
    let encryption = tls::read(reader, root, source);
    let is_safe = plaintext || encryption.is_wanted();
    let limit = section(&keys::limit::TABLE);
    let addresses = server
        .as_ref()
        .and_then(|it| addresses(reader, it, is_safe));
    let public_url = server
        .as_ref()
        .and_then(|it| public_url(reader, it, addresses, encryption.is_wanted()));
    let trusted_proxies = server.as_ref().map(|it| trusted_proxies(reader, it));
    let specification = section(&keys::specification::TABLE).map(|it| specification(reader, &it));
    let lock_out = section(&keys::lockout::TABLE).map(|it| lock_out(&it));
    let rates = section(&keys::rate::TABLE).map(|it| rates(&it));
    let passes = reader.sections(root, &keys::passthrough::TABLE);
    let mut people = access::read(reader, root, source, &passes);
    let allowed = std::mem::take(&mut people.allowed);
    let (passthrough, upstreams) = passthrough::read(reader, &passes, allowed, source);
    let operations = section(&keys::operations::TABLE).and_then(|it| operations(reader, &it));
    let logging = section(&keys::log::TABLE).map(|it| logging(reader, &it));
    let (backends, placements) = backends::read(reader, root, source);
    let limits = limit.as_ref().map(gate_limits);
    let listener_limits = limit.as_ref().map(listener_limits);
    let server = server?;
    let threads = server.number(&keys::server::THREADS);
    let drain = server.span(&keys::server::DRAIN);
    let drain_notice = server.span(&keys::server::DRAIN_NOTICE);
    let (listen, admin) = addresses?;
    Some(Settings {
        listener: listener::Config {
            listen,
            admin,
            tls: encryption.ready(),
            drain,
            drain_notice,
            limits: listener_limits?,
        },
        gate: gate::Config {
            public_url: public_url?,
            specification: specification?,
            trusted_proxies: trusted_proxies?,
            credentials: people.credentials,
            lock_out: lock_out?,
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
        threads: threads_or_cores(threads),
        files: Vec::new(),
        hash: String::new(),
    })
}

fn threads_or_cores(threads: usize) -> usize {
    if threads > 0 {
        return threads;
    }
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    cores.min(256)
}

fn addresses(
    reader: &Reader<'_>,
    section: &Section<'_>,
    is_safe: bool,
) -> Option<(SocketAddr, SocketAddr)> {
    let address = |key: &Key<Text>| {
        let found = section.text(key)?;
        let address: Option<SocketAddr> = found.text.parse().ok();
        if address.is_none() {
            let what = format!("{:?} is not an address and port", found.text);
            reader.wrong(&found, what, "write \"127.0.0.1:8080\" or \"[::1]:8080\"");
        }
        address
    };
    let listen = address(&keys::server::LISTEN);
    let admin = address(&keys::server::ADMIN);
    let (name, reachable) = (keys::server::LISTEN.name, |it: &SocketAddr| {
        !it.ip().is_loopback()
    });
    if listen.as_ref().is_some_and(reachable) && !is_safe {
        let what = "lets passwords cross the network readable by all";
        let hint = "name a [[certificate]], listen on a loopback address behind a TLS proxy, or write [insecure] plaintext = true";
        section.problem_at(name, what, hint);
    }
    let (listen, admin) = (listen?, admin?);
    if listen == admin && listen.port() != 0 {
        let what = "is the same as listen";
        section.problem_at(keys::server::ADMIN.name, what, "choose another port");
    }
    Some((listen, admin))
}

fn public_url(
    reader: &Reader<'_>,
    section: &Section<'_>,
    addresses: Option<(SocketAddr, SocketAddr)>,
    is_encrypted: bool,
) -> Option<PublicUrl> {
    if let Some(found) = section.text(&keys::server::PUBLIC_URL) {
        let url = PublicUrl::new(&found.text);
        if url.is_none() {
            let what = format!("{:?} cannot begin a link", found.text);
            let hint = "write http:// or https://, a host, perhaps a port and a path; no user, query or fragment";
            reader.wrong(&found, what, hint);
        }
        return url;
    }
    let (listen, _) = addresses?;
    if listen.ip().is_unspecified() {
        let what = "is missing, and listen is a wildcard address that no link can begin with";
        let hint = "write public_url = \"https://the-name-clients-use\"";
        section.problem_at(keys::server::PUBLIC_URL.name, what, hint);
        return None;
    }
    let scheme = if is_encrypted { "https" } else { "http" };
    PublicUrl::new(&format!("{scheme}://{listen}"))
}

fn trusted_proxies(reader: &Reader<'_>, section: &Section<'_>) -> TrustedProxies {
    let mut networks = Vec::new();
    for it in section.texts(&keys::server::TRUSTED_PROXIES) {
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
    let found = section.texts(&keys::specification::SUPPORTED);
    for it in found.iter().filter(|it| !known.contains(&it.text)) {
        let what = format!("{:?} is no version this gateway speaks", it.text);
        reader.wrong(
            it,
            what,
            &format!("known versions are {}", known.join(", ")),
        );
    }
    let on_missing = section.word(&keys::specification::ON_MISSING);
    let profile = section.word(&keys::specification::PROFILE);
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
    use keys::operations as key;
    let poll_min = section.span(&key::POLL_MIN);
    let poll_max = section.span(&key::POLL_MAX);
    if poll_min > poll_max {
        let what = format!("is longer than poll_max, {}", keys::written(poll_max));
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
    let level = section.text(&keys::log::LEVEL).map_or_else(
        || "info".to_owned(),
        |found| {
            if EnvFilter::builder().parse(&found.text).is_err() {
                let what = format!("{:?} is not a filter", found.text);
                reader.wrong(
                    &found,
                    what,
                    "write a level such as \"info\", or \"snapgate=debug,warn\"",
                );
            }
            found.text
        },
    );
    let audit = section.text(&keys::log::AUDIT);
    Logging {
        format: match section.word(&keys::log::FORMAT) {
            Some("json") => LogFormat::Json,
            Some(_) | None => LogFormat::Text,
        },
        level,
        access: section.flag(&keys::log::ACCESS),
        audit: audit.map(|it| file_to_write(reader, &it)),
        audit_required: section.flag(&keys::log::AUDIT_REQUIRED),
    }
}

fn lock_out(section: &Section<'_>) -> gate::LockOut {
    gate::LockOut {
        attempts: section.small(&keys::lockout::ATTEMPTS),
        address_attempts: section.small(&keys::lockout::ADDRESS_ATTEMPTS),
        longest: section.span(&keys::lockout::LONGEST),
    }
}

fn rates(section: &Section<'_>) -> gate::RateLimits {
    use keys::rate as key;
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
        body_bytes: section.size(&keys::limit::BODY),
        target_bytes: section.size(&keys::limit::TARGET),
        header_bytes: section.size(&keys::limit::HEADER),
        header_count: section.number(&keys::limit::HEADER_COUNT),
        wait: section.span(&keys::limit::WAIT),
        stream: section.span(&keys::limit::STREAM),
        waiters: section.number(&keys::limit::WAITERS),
    }
}

fn listener_limits(section: &Section<'_>) -> listener::Limits {
    listener::Limits {
        connections: section.number(&keys::limit::CONNECTIONS),
        connections_per_address: section.number(&keys::limit::CONNECTIONS_PER_ADDRESS),
        handshake_timeout: section.span(&keys::limit::HANDSHAKE_TIMEOUT),
        streams: section.small(&keys::limit::STREAMS),
        header_timeout: section.span(&keys::limit::HEADER_TIMEOUT),
        body_timeout: section.span(&keys::limit::BODY_TIMEOUT),
        body_rate: u64::try_from(section.size(&keys::limit::BODY_RATE)).unwrap_or(u64::MAX),
        body_grace: section.span(&keys::limit::BODY_GRACE),
        idle_timeout: section.span(&keys::limit::IDLE_TIMEOUT),
        write_timeout: section.span(&keys::limit::WRITE_TIMEOUT),
    }
}
