//! `[backend.incus]`.

use std::sync::Arc;
use std::time::Duration;

use crate::adapters::adapter::Adapter;
use crate::adapters::incus::Config;
use crate::adapters::incus::Incus;
use crate::adapters::incus::parse_url;
use crate::adapters::kind::AdapterKind;
use crate::adapters::kind::BuildContext;
use crate::adapters::kind::BuildError;
use crate::adapters::kind::ReadContext;
use crate::adapters::transport::Address;
use crate::adapters::transport::ServerUrl;
use crate::adapters::transport::tls_keys::TlsKeyNames;
use crate::adapters::transport::tls_keys::TlsKeys;
use crate::schema::Section;
use crate::schema::Table;
use crate::schema::declare_table;
use crate::schema::default_text;
use crate::schema::duration;
use crate::schema::optional_text;
use crate::schema::required_text;

declare_table! { "incus", false, "Instances of LXD or Incus.",
    URL: Text = "url", required_text("`unix:///path/of/the/socket` or `https://host:port`"), Restart,
        "The address of the server.", Commented = "\"unix:///var/lib/incus/unix.socket\"";
    PROJECT: Text = "project", default_text("default", "name"), Restart,
        "The project with the VMs.";
    CLIENT_CERT: Text = "client_cert", optional_text("required if `https`", "path"), Restart,
        "The gateway's certificate (PEM).", Commented = "\"gateway.crt\"";
    CLIENT_KEY: Text = "client_key", optional_text("required if `https`", "path"), Restart,
        "The key of the gateway's certificate (PEM).", Commented = "\"gateway.key\"";
    SERVER_CERT: Text = "server_cert", optional_text("required if `https`: one of three", "path"), Restart,
        "The only certificate (PEM) that the server may have.", Commented = "\"server.crt\"";
    SERVER_FINGERPRINT: Text = "server_fingerprint", optional_text("required if `https`: one of three", "64 hexadecimal digits"), Restart,
        "The SHA-256 of the only certificate that the server may have.",
        Commented = "\"0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef\"";
    CA: Text = "ca", optional_text("required if `https`: one of three", "path"), Restart,
        "The authority (PEM) that signed the server's certificate for the host in `url`.", Commented = "\"ca.crt\"";
    CONNECT_TIMEOUT: DurationValue = "connect_timeout", duration(Duration::from_secs(5), 1, 60), Restart,
        "Time to establish a connection.";
}

const TLS_KEYS: TlsKeyNames<'static> = TlsKeyNames {
    client_cert: &CLIENT_CERT,
    client_key: &CLIENT_KEY,
    server_cert: &SERVER_CERT,
    server_fingerprint: &SERVER_FINGERPRINT,
    ca: &CA,
};
const TRUST_HINT: &str = "most sites use server_cert, with a copy of the server's certificate";

impl AdapterKind for Config {
    const TABLE: Table = TABLE;

    fn read(section: &Section<'_>, context: &ReadContext<'_>) -> Option<Self> {
        let url = section.read_text(&URL);
        let project = section.read_text(&PROJECT);
        let connect_timeout = section.read_duration(&CONNECT_TIMEOUT);
        let tls = TlsKeys::read(section, &TLS_KEYS);
        let url = url?;
        let server_url = parse_url(&url.text)
            .map_err(|error| section.report_text(&url, error.to_string(), ""))
            .ok()?;
        let address = match server_url {
            ServerUrl::Unix(socket) => Address::Unix(socket),
            ServerUrl::Loopback(address, _) => Address::Loopback(address),
            ServerUrl::Https(authority, _) => {
                let has_certificate = tls.has_client_certificate();
                let address = tls.address(section, context, &url, authority, TRUST_HINT)?;
                if !has_certificate {
                    let hint = "docs/adapters/incus.md shows how to make them";
                    section.report_text(&url, "needs client_cert and client_key", hint);
                    return None;
                }
                address
            }
        };
        let config = Self {
            address,
            project: project?.text,
            connect_timeout,
        };
        if let Err(error) = config.client() {
            section.report_text(&url, error.to_string(), "");
            return None;
        }
        Some(config)
    }

    fn is_local(&self) -> bool {
        !matches!(self.address, Address::Https { .. })
    }

    fn build(&self, context: &BuildContext) -> Result<Arc<dyn Adapter>, BuildError> {
        Ok(Arc::new(Incus::new(self, Arc::clone(&context.clock))?))
    }
}
