//! HTTP/2 as no honest client speaks it, frame by frame over TLS: what becomes of the stream, of the connection, of its
//! neighbours, and of the memory.

mod floods;
mod passed;
pub(crate) mod rows;
mod table;
mod wire;

use std::fs;
use std::net::SocketAddr;
use std::time::Duration;

use tempfile::TempDir;
use tokio_rustls::rustls::pki_types::CertificateDer;

use crate::client::basic;
use crate::frames::wire::END_HEADERS;
use crate::frames::wire::END_STREAM;
use crate::frames::wire::HEADERS;
use crate::frames::wire::PREFACE;
use crate::frames::wire::Raw;
use crate::frames::wire::Reaction;
use crate::frames::wire::fields;
use crate::frames::wire::frame;
use crate::frames::wire::setting;
use crate::harness::PATIENCE;
use crate::harness::Process;
use crate::harness::SECRET_HASH;
use crate::harness::SIM;

const BACKUP: &str = "/vms/1/backups/456";
const SERVED: &str = "[server]\nlisten = \"127.0.0.1:0\"\nadmin = \"127.0.0.1:0\"\n[[certificate]]\nchain = \"chain.pem\"\nkey = \"key.pem\"\n";

/// A gateway as a process of its own, so that its memory is counted apart from ours.
struct Secure {
    process: Process,
    pid: u32,
    certificate: CertificateDer<'static>,
    _folder: TempDir,
}

impl Secure {
    fn start(more: &str) -> Self {
        let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        let folder = TempDir::new().unwrap();
        let write = |name: &str, text: String| fs::write(folder.path().join(name), text).unwrap();
        write("chain.pem", made.cert.pem());
        write("key.pem", made.signing_key.serialize_pem());
        let settings = SIM.replace("SECRET_HASH", SECRET_HASH);
        write("snapgate.toml", format!("{SERVED}{settings}\n{more}"));
        let path = folder.path().join("snapgate.toml");
        let mut pid = 0;
        let arguments = ["serve", "--config", path.to_str().unwrap()];
        let process = Process::launch(&arguments, |started| pid = started).unwrap();
        Self {
            process,
            pid,
            certificate: made.cert.der().clone(),
            _folder: folder,
        }
    }

    fn api(&self) -> SocketAddr {
        self.process.api
    }

    /// A connection on which nothing was said yet.
    fn silent(&self) -> Raw {
        Raw::connect(self.api(), self.certificate.clone())
    }

    /// A connection that began as it should.
    fn connect(&self) -> Raw {
        let mut raw = self.silent();
        // No table of the fields of former answers: what is read here has no memory.
        let begun = raw.send(&[PREFACE, &setting(1, 0)].concat());
        assert!(begun, "a connection begins");
        raw
    }

    /// A request on a connection of its own is answered.
    fn serves(&self, after: &str) {
        let mut raw = self.connect();
        assert!(raw.send(&get(1)), "{after}: a request is taken");
        let reaction = raw.next_reaction(PATIENCE);
        assert_eq!(
            reaction,
            Some(Reaction::Status(1, 200)),
            "{after}: the next one"
        );
    }

    /// Most memory it ever had, in KiB.
    fn memory(&self) -> u64 {
        let text = fs::read_to_string(format!("/proc/{}/status", self.pid)).unwrap();
        let line = text.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let number = line.unwrap().split_whitespace().next().unwrap();
        number.parse().unwrap()
    }
}

/// The fields of a good request.
fn good(method: &str, path: &str) -> Vec<(Vec<u8>, Vec<u8>)> {
    let authorization = basic("alice", "secret");
    let all = [
        (":method", method),
        (":scheme", "https"),
        (":authority", "localhost"),
        (":path", path),
        ("authorization", authorization.as_str()),
        ("x-cloud-client-specification-version", "0.1"),
    ];
    all.map(|(name, value)| (name.into(), value.into()))
        .to_vec()
}

/// A whole good request.
fn get(stream: u32) -> Vec<u8> {
    let block = fields(&good("GET", BACKUP));
    frame(HEADERS, END_STREAM | END_HEADERS, stream, &block)
}

/// A good change without its body, of some length.
fn put(stream: u32, length: Option<&str>) -> Vec<u8> {
    let mut all = good("PUT", BACKUP);
    all.push((b"content-type".to_vec(), b"application/json".to_vec()));
    if let Some(length) = length {
        all.push((b"content-length".to_vec(), length.into()));
    }
    frame(HEADERS, END_HEADERS, stream, &fields(&all))
}

/// Long enough for an answer that is on its way.
const SOON: Duration = Duration::from_secs(20);
