use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;
use std::time::Instant;

use async_trait::async_trait;
use http::HeaderMap;
use http::HeaderValue;
use http::StatusCode;
use http::header::CACHE_CONTROL;

use super::*;
use crate::adapters::transport::TransportError;
use crate::app::issuers::fetch::max_age;
use crate::config;
use crate::config::KeyEndpoint;
use crate::gate::KeySet;
use crate::model::IssuerName;
use crate::model::Timestamp;

const SET: &str = r#"{"keys":[{"kty":"OKP","crv":"Ed25519","kid":"1","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}]}"#;

/// The clock of the paused runtime.
#[derive(Debug)]
struct Paused;

impl Clock for Paused {
    fn now(&self) -> Timestamp {
        Timestamp::default()
    }

    fn instant(&self) -> Instant {
        tokio::time::Instant::now().into_std()
    }

    fn since_boot(&self) -> Duration {
        Duration::ZERO
    }
}

/// What one fetch is to bring.
#[derive(Clone, Copy)]
enum Brings {
    Keys(Option<u64>),
    Nothing,
}

/// Notes when it is asked, in seconds from the start, and answers as scripted.
struct Script {
    start: Instant,
    asked: Mutex<Vec<u64>>,
    answers: Mutex<Brings>,
}

impl Script {
    fn new(answer: Brings) -> Arc<Self> {
        Arc::new(Self {
            start: Paused.instant(),
            asked: Mutex::default(),
            answers: Mutex::new(answer),
        })
    }

    fn say(&self, answer: Brings) {
        *self.answers.lock().unwrap() = answer;
    }

    /// When it was asked since the last look.
    fn times(&self) -> Vec<u64> {
        std::mem::take(&mut self.asked.lock().unwrap())
    }
}

#[async_trait]
impl Fetch for Script {
    async fn fetch(&self) -> Result<Fetched, FetchError> {
        let since = Paused.instant().duration_since(self.start);
        self.asked.lock().unwrap().push(since.as_secs());
        match *self.answers.lock().unwrap() {
            Brings::Keys(seconds) => Ok(Fetched {
                keys: KeySet::parse(SET).unwrap(),
                max_age: seconds.map(Duration::from_secs),
            }),
            Brings::Nothing => Err(FetchError::Status(StatusCode::BAD_GATEWAY)),
        }
    }
}

fn source(refresh: u64, oldest: u64) -> KeySource {
    KeySource {
        issuer: IssuerName::new("corp").unwrap(),
        endpoint: KeyEndpoint::Loopback("127.0.0.1:9".parse().unwrap()),
        target: "/jwks".to_owned(),
        refresh: Duration::from_secs(refresh),
        oldest: Duration::from_secs(oldest),
    }
}

struct Bed {
    script: Arc<Script>,
    ring: Arc<KeyRing>,
    metrics: Arc<Metrics>,
    _stopper: Stopper,
}

fn bed(source: KeySource, answer: Brings) -> Bed {
    let (stopper, stop) = stop_pair();
    let made = Bed {
        script: Script::new(answer),
        ring: KeyRing::awaiting_fetch(),
        metrics: Arc::new(Metrics::new().unwrap()),
        _stopper: stopper,
    };
    let keeper = Keeper {
        source,
        remote: Arc::<Script>::clone(&made.script),
        ring: Arc::clone(&made.ring),
        clock: Arc::new(Paused),
        metrics: Arc::clone(&made.metrics),
        failures: 0,
        is_reported: false,
    };
    drop(Tasks::default().spawn(keeper.run(stop)));
    made
}

impl Bed {
    fn has_keys(&self) -> bool {
        self.ring.has_keys(Paused.instant())
    }

    fn metric(&self, series: &str) -> String {
        let text = String::from_utf8(self.metrics.encode_text()).unwrap();
        let line = text.lines().find_map(|line| line.strip_prefix(series));
        line.unwrap_or_default().trim().to_owned()
    }
}

async fn pass(seconds: u64) {
    tokio::time::sleep(Duration::from_secs(seconds)).await;
}

#[tokio::test(start_paused = true)]
async fn keys_are_fetched_again_in_time_and_the_last_ones_stay_until_they_are_too_old() {
    let bed = bed(source(600, 3600), Brings::Keys(None));
    let good = "snapgate_issuer_last_refresh_successful{issuer=\"corp\"}";
    pass(1300).await;
    assert_eq!(bed.script.times(), [0, 600, 1200], "again and again");
    assert_eq!(bed.metric(good), "1", "reported");
    bed.script.say(Brings::Nothing);
    pass(700).await;
    assert_eq!(
        bed.script.times(),
        [1800, 1801, 1803, 1807, 1815, 1831, 1863, 1923, 1983],
        "sooner when it failed, and less often when it fails on"
    );
    assert_eq!(bed.metric(good), "0", "reported");
    assert_eq!(
        bed.metric("snapgate_issuer_refreshes_total{issuer=\"corp\",result=\"status\"}"),
        "9",
        "counted"
    );
    assert!(bed.has_keys(), "the last ones stay");
    pass(1200 + 3600 - 2000 - 1).await;
    assert!(bed.has_keys(), "until the last second");
    pass(1).await;
    assert!(!bed.has_keys(), "and no longer");
    bed.script.say(Brings::Keys(None));
    pass(61).await;
    assert!(bed.has_keys(), "and come back by themselves");
    assert_eq!(bed.metric(good), "1", "reported");
}

#[tokio::test(start_paused = true)]
async fn what_an_answer_says_of_its_age_counts_within_bounds() {
    for (max_age, refresh, expected) in [
        (None, 600, 600),
        (Some(0), 600, 60),
        (Some(5), 600, 60),
        (Some(120), 600, 120),
        (Some(u64::MAX), 600, 600),
        (Some(0), 10, 10),
    ] {
        let bed = bed(source(refresh, 3600), Brings::Keys(max_age));
        pass(expected + 1).await;
        assert_eq!(
            bed.script.times(),
            [0, expected],
            "{max_age:?} of {refresh}"
        );
    }
    for (field, expected) in [
        ("max-age=60", Some(60)),
        ("public, Max-Age=\"60\", immutable", Some(60)),
        ("no-store", None),
        ("max-age=-1", None),
        ("max-age=soon", None),
        ("s-maxage=60", None),
        ("", None),
    ] {
        let mut headers = HeaderMap::new();
        headers.insert(CACHE_CONTROL, HeaderValue::from_static(field));
        let expected = expected.map(Duration::from_secs);
        assert_eq!(max_age(&headers), expected, "{field}");
    }
}

#[tokio::test(start_paused = true)]
async fn the_operator_can_have_them_fetched_at_once_and_a_dropped_one_is_left_alone() {
    let bed = bed(source(86_400, 86_400), Brings::Keys(None));
    pass(100).await;
    bed.ring.request_refresh();
    pass(100).await;
    assert_eq!(bed.script.times(), [0, 100], "at once");
    let Bed {
        script,
        ring,
        _stopper,
        ..
    } = bed;
    drop(_stopper);
    pass(1).await;
    ring.request_refresh();
    pass(90_000).await;
    assert_eq!(script.times(), Vec::<u64>::new(), "never again");
}

fn settings(folder: &Path, more: &str) -> Settings {
    let file = folder.join("c.toml");
    let text = format!(
        "[operations]\nstore = \"s\"\n[[issuer]]\nname = \"corp\"\nissuer = \"https://sso.example.com\"\n\
         audience = [\"a\"]\n{more}"
    );
    std::fs::write(&file, text).unwrap();
    config::load(&file, &|_| None).unwrap()
}

#[tokio::test(start_paused = true)]
async fn a_reload_keeps_keys_unless_they_come_from_elsewhere() {
    let folder = tempfile::tempdir().unwrap();
    let metrics = Arc::new(Metrics::new().unwrap());
    let issuers = Issuers::new(Arc::new(Paused), Arc::clone(&metrics), Tasks::default());
    let prepared = |more: &str| {
        let mut settings = settings(folder.path(), more);
        issuers.prepare(&mut settings);
        Arc::clone(&settings.gate.credentials.issuers[0].keys)
    };
    let has_keys = |ring: &KeyRing| ring.has_keys(Paused.instant());
    // No server listens on port 9, and no fetch begins before the test yields.
    let url = "jwks_url = \"http://127.0.0.1:9/jwks\"\n";
    let first = prepared(url);
    assert!(!has_keys(&first), "none yet");
    let later = Paused.instant() + Duration::from_secs(60);
    first.replace(KeySet::parse(SET).unwrap(), later);
    let again = prepared(url);
    assert!(Arc::ptr_eq(&first, &again), "nothing changed");
    let slower = prepared(&format!("{url}jwks_refresh = \"1h\"\n"));
    assert!(!Arc::ptr_eq(&first, &slower), "another rhythm");
    assert!(has_keys(&slower), "with the same keys");
    let elsewhere = prepared("jwks_url = \"http://127.0.0.1:9/other\"\n");
    assert!(
        !has_keys(&elsewhere),
        "those of another place are not taken over"
    );
    assert_eq!(issuers.lock().len(), 1, "one is looked after");
    std::fs::write(folder.path().join("keys.json"), SET).unwrap();
    let file = prepared("jwks = \"keys.json\"\n");
    assert!(has_keys(&file), "a file is there at once");
    assert!(issuers.lock().is_empty(), "and its task has ended");
    let text = String::from_utf8(metrics.encode_text()).unwrap();
    assert!(
        !text.contains("issuer=\"corp\""),
        "no series is left: {text}"
    );
}

#[test]
fn what_went_wrong_has_a_word_and_a_remedy() {
    let transport = |error: TransportError| FetchError::Transport(error);
    let rows: BTreeMap<&str, (FetchError, &str, &str)> = BTreeMap::from([
        (
            "redirect",
            (
                FetchError::Status(StatusCode::FOUND),
                "status",
                "name the address it leads to",
            ),
        ),
        (
            "certificate",
            (
                transport(TransportError::Untrusted("x".to_owned())),
                "no_answer",
                "jwks_ca",
            ),
        ),
        (
            "large",
            (
                transport(TransportError::TooLarge(1)),
                "unusable",
                "larger than",
            ),
        ),
        (
            "silent",
            (transport(TransportError::TimedOut), "no_answer", "deadline"),
        ),
        (
            "garbage",
            (
                FetchError::Set("is no set".to_owned()),
                "unusable",
                "is no set",
            ),
        ),
        (
            "error",
            (FetchError::Status(StatusCode::BAD_GATEWAY), "status", "502"),
        ),
    ]);
    for (name, (error, kind, text)) in rows {
        assert_eq!(error.kind(), kind, "{name}");
        assert!(
            error.message().contains(text),
            "{name}: {}",
            error.message()
        );
    }
}
