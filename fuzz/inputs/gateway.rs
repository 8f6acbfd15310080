//! Whole gateways that run as long as this process, and encrypted connections to them.

use std::io::Read;
use std::io::Write;
use std::net::SocketAddr;
use std::net::TcpStream;
use std::path::Path;
use std::sync::Arc;
use std::sync::OnceLock;
use std::time::Duration;

use snapgate::app;
use snapgate::config;
use tokio::runtime::Runtime;
use tokio_rustls::rustls;
use tokio_rustls::rustls::pki_types::CertificateDer;

/// Longer than any answer takes, and shorter than the fuzzer waits for one input.
pub(super) const PATIENCE: Duration = Duration::from_secs(9);

/// Reads what has come. libFuzzer's alarm interrupts reads that have a time limit, which then go on.
pub(super) fn read_some(stream: &mut impl Read, part: &mut [u8]) -> std::io::Result<usize> {
    loop {
        match stream.read(part) {
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            read => return read,
        }
    }
}

/// A gateway that runs as long as this process.
#[derive(Debug)]
pub(super) struct Gateway {
    pub(super) api: SocketAddr,
    admin: SocketAddr,
    /// The certificate that its clients trust, if it is encrypted.
    certificate: Option<CertificateDer<'static>>,
    pub(super) runtime: Runtime,
    _running: app::Running,
    _folder: tempfile::TempDir,
}

/// Adds a certificate to the settings and its files to the folder.
fn encrypt(folder: &Path, settings: &mut String) -> CertificateDer<'static> {
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    std::fs::write(folder.join("chain.pem"), made.cert.pem()).unwrap();
    std::fs::write(folder.join("key.pem"), made.signing_key.serialize_pem()).unwrap();
    settings.push_str("\n[[certificate]]\nchain = \"chain.pem\"\nkey = \"key.pem\"\n");
    made.cert.der().clone()
}

impl Gateway {
    pub(super) fn start(settings: &str, is_encrypted: bool) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut settings = settings.to_owned();
        let certificate = is_encrypted.then(|| encrypt(folder.path(), &mut settings));
        let file = folder.path().join("snapgate.toml");
        std::fs::write(&file, settings).unwrap();
        let loaded = config::load(&file, &|_| None).unwrap_or_else(|error| panic!("{error}"));
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let running = runtime.block_on(app::start(loaded)).unwrap();
        Self {
            api: running.api(),
            admin: running.admin(),
            certificate,
            runtime,
            _running: running,
            _folder: folder,
        }
    }

    /// How many connections of clients ended for which reason, for the message about one that should not have.
    pub(super) fn closed_connections(&self) -> String {
        let mut stream = TcpStream::connect(self.admin).unwrap();
        stream.write_all(b"GET /metrics HTTP/1.0\r\n\r\n").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        let lines = answer.lines();
        let closed = lines.filter(|line| line.starts_with("snapgate_connections_closed_total{"));
        closed.collect::<Vec<_>>().join(" ")
    }

    /// How clients of HTTP/2 connect. One for all, so that handshakes are resumed.
    pub(super) fn client_tls(&self) -> Arc<rustls::ClientConfig> {
        static CONFIG: OnceLock<std::sync::Mutex<Vec<(SocketAddr, Arc<rustls::ClientConfig>)>>> =
            OnceLock::new();
        let mut known = CONFIG.get_or_init(Default::default).lock().unwrap();
        if let Some((_, config)) = known.iter().find(|(address, _)| *address == self.api) {
            return Arc::clone(config);
        }
        let mut roots = rustls::RootCertStore::empty();
        roots.add(self.certificate.clone().unwrap()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut config = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        config.alpn_protocols = vec![b"h2".to_vec()];
        let config = Arc::new(config);
        known.push((self.api, Arc::clone(&config)));
        config
    }

    /// An encrypted connection on which HTTP/2 was agreed and nothing was said.
    pub(super) fn connect_encrypted(
        &self,
    ) -> rustls::StreamOwned<rustls::ClientConnection, TcpStream> {
        let name = "localhost".try_into().unwrap();
        let session = rustls::ClientConnection::new(self.client_tls(), name).unwrap();
        let socket = TcpStream::connect(self.api).unwrap();
        socket.set_nodelay(true).unwrap();
        socket.set_write_timeout(Some(PATIENCE)).unwrap();
        rustls::StreamOwned::new(session, socket)
    }
}
