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
use crate::adapters::transport::ClientFiles;
use crate::adapters::transport::ServerTrust;
use crate::adapters::transport::ServerUrl;
use crate::schema::LocatedText;
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

impl AdapterKind for Config {
    const TABLE: Table = TABLE;

    fn read(section: &Section<'_>, context: &ReadContext<'_>) -> Option<Self> {
        let url = section.read_text(&URL);
        let project = section.read_text(&PROJECT);
        let connect_timeout = section.read_duration(&CONNECT_TIMEOUT);
        let tls = TlsKeys::read(section);
        let url = url?;
        let server_url = parse_url(&url.text)
            .map_err(|error| section.report_text(&url, error.to_string(), ""))
            .ok()?;
        let address = match server_url {
            ServerUrl::Unix(socket) => Address::Unix(socket),
            ServerUrl::Loopback(address, _) => Address::Loopback(address),
            ServerUrl::Https(authority, _) => tls.address(section, context, &url, authority)?,
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

    fn build(&self, context: &BuildContext) -> Result<Arc<dyn Adapter>, BuildError> {
        Ok(Arc::new(Incus::new(self, Arc::clone(&context.clock))?))
    }
}

/// The keys of TLS.
struct TlsKeys {
    certificate: Option<LocatedText>,
    key: Option<LocatedText>,
    /// One for each key that says how the server is recognised.
    servers: Vec<ServerTrust>,
}

impl TlsKeys {
    fn read(section: &Section<'_>) -> Self {
        let servers = [
            section
                .read_text(&SERVER_CERT)
                .map(|path| ServerTrust::Certificate(section.resolve_path(&path))),
            section
                .read_text(&SERVER_FINGERPRINT)
                .map(|found| ServerTrust::Fingerprint(found.text)),
            section
                .read_text(&CA)
                .map(|path| ServerTrust::Authority(section.resolve_path(&path))),
        ];
        Self {
            certificate: section.read_text(&CLIENT_CERT),
            key: section.read_text(&CLIENT_KEY),
            servers: servers.into_iter().flatten().collect(),
        }
    }

    fn address(
        self,
        section: &Section<'_>,
        context: &ReadContext<'_>,
        url: &LocatedText,
        authority: String,
    ) -> Option<Address> {
        let mut servers = self.servers.into_iter();
        let (Some(trust), None) = (servers.next(), servers.next()) else {
            let what = "needs exactly one of server_cert, server_fingerprint and ca";
            let hint = "most sites use server_cert, with a copy of the server's certificate";
            section.report_text(url, what, hint);
            return None;
        };
        let (Some(certificate), Some(key)) = (self.certificate, self.key) else {
            let hint = "docs/adapters/incus.md shows how to make them";
            section.report_text(url, "needs client_cert and client_key", hint);
            return None;
        };
        let client_key = section.resolve_path(&key);
        let secrets = context.secrets;
        secrets.mark_secret_file(&client_key, "a private key");
        Some(Address::Https {
            authority,
            trust,
            identity: Some(ClientFiles {
                certificate: section.resolve_path(&certificate),
                key: client_key,
            }),
        })
    }
}
