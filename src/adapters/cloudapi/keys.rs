//! `[backend.cloudapi]`.

use std::sync::Arc;
use std::time::Duration;

use crate::adapters::adapter::Adapter;
use crate::adapters::adapter::Recovery;
use crate::adapters::cloudapi::CloudApi;
use crate::adapters::cloudapi::Config;
use crate::adapters::kind::AdapterKind;
use crate::adapters::kind::BuildContext;
use crate::adapters::kind::BuildError;
use crate::adapters::kind::ReadContext;
use crate::adapters::kind::WarningContext;
use crate::adapters::transport::Address;
use crate::adapters::transport::ServerUrl;
use crate::adapters::transport::tls_keys::TlsKeyNames;
use crate::adapters::transport::tls_keys::TlsKeys;
use crate::model::Credential;
use crate::schema::Choice;
use crate::schema::LocatedText;
use crate::schema::Section;
use crate::schema::Table;
use crate::schema::declare_table;
use crate::schema::default_text;
use crate::schema::duration;
use crate::schema::optional_text;
use crate::schema::required_text;
use crate::schema::secret;

declare_table! { "cloudapi", false, "A server that speaks this API itself.",
    URL: Text = "url", required_text("`https://host:port/path`, `unix:///path/of/the/socket` or `http://127.0.0.1:port/path`"), Restart,
        "The address of the server.", Commented = "\"https://vmm.example.com:8443\"";
    CLIENT_CERT: Text = "client_cert", optional_text("none", "path"), Restart,
        "The gateway's certificate (PEM).", Commented = "\"gateway.crt\"";
    CLIENT_KEY: Text = "client_key", optional_text("required with `client_cert`", "path"), Restart,
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
    USERNAME: Text = "username", optional_text("none", "name without a colon"), Restart,
        "The user name of the gateway at the server. Only this gateway may use it.", Commented = "\"gateway\"";
    PASSWORD: Text = "password", secret(optional_text("required with `username`", "`file:PATH` or `env:NAME`")), Restart,
        "The password of `username`.", Commented = "\"file:server.password\"";
    TOKEN: Text = "token", secret(optional_text("none", "`file:PATH` or `env:NAME`")), Restart,
        "The token to send instead of user name and password.", Commented = "\"env:SERVER_TOKEN\"";
    SERVER_VERSION: Text = "server_version", default_text("0.1", "version such as `0.1`"), Restart,
        "The version of the specification to request.";
    SERVER_RECOVERY: Choice = "server_recovery", Choice { default: Some("listable"), allowed: Recovery::WORDS }, Restart,
        "How the outcome of a call is learned when its answer was lost; it must be true of the server. `listable`: it lists the Statuses of its callers. `replay-safe`: it supports `Idempotency-Key` as well, for a day and across its own restarts (snapgate does).";
}

const TLS_KEYS: TlsKeyNames<'static> = TlsKeyNames {
    client_cert: &CLIENT_CERT,
    client_key: &CLIENT_KEY,
    server_cert: &SERVER_CERT,
    server_fingerprint: &SERVER_FINGERPRINT,
    ca: &CA,
};
const TRUST_HINT: &str =
    "most sites use ca, with the authority that signed the server's certificate";

impl AdapterKind for Config {
    const TABLE: Table = TABLE;

    fn read(section: &Section<'_>, context: &ReadContext<'_>) -> Option<Self> {
        let url = section.read_text(&URL);
        let version = server_version(section, context.api_versions);
        let connect_timeout = section.read_duration(&CONNECT_TIMEOUT);
        let recovery = section.read_choice(&SERVER_RECOVERY);
        let tls = TlsKeys::read(section, &TLS_KEYS);
        let credential = read_credential(section, context)?;
        let url = url?;
        let server_url = ServerUrl::parse(&url.text)
            .map_err(|error| section.report_text(&url, error.to_string(), ""))
            .ok()?;
        let (address, base) = match server_url {
            ServerUrl::Unix(socket) => (Address::Unix(socket), Vec::new()),
            ServerUrl::Loopback(address, base) => (Address::Loopback(address), base),
            ServerUrl::Https(authority, base) => (
                tls.address(section, context, &url, authority, TRUST_HINT)?,
                base,
            ),
        };
        let config = Self {
            address,
            base,
            credential,
            version: version?.text,
            recovery: Recovery::from_word(recovery?)?,
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
        Ok(Arc::new(CloudApi::new(self, Arc::clone(&context.clock))?))
    }

    fn warnings(&self, context: &WarningContext<'_>) -> Vec<String> {
        if self.address == Address::Loopback(context.listen) {
            return vec!["url is the address of this gateway itself".to_owned()];
        }
        Vec::new()
    }
}

/// The version to request: one that the gateway speaks too, because it translates what the server sends.
fn server_version(section: &Section<'_>, known: &[String]) -> Option<LocatedText> {
    section.read_text(&SERVER_VERSION).filter(|found| {
        let is_known = known.contains(&found.text);
        if !is_known {
            let what = format!("unsupported version {:?}", found.text);
            let hint = format!("expected one of {}", known.join(", "));
            section.report_text(found, what, &hint);
        }
        is_known
    })
}

/// User name and password, a token, or neither; the outer `None` after an error was reported.
fn read_credential(section: &Section<'_>, context: &ReadContext<'_>) -> Option<Option<Credential>> {
    let username = section.read_text(&USERNAME);
    let has_username = section.has(USERNAME.name) || section.has(PASSWORD.name);
    let has_token = section.has(TOKEN.name);
    let password = section.read_secret(&PASSWORD, context.secrets);
    let token = section.read_secret(&TOKEN, context.secrets);
    if !has_username && !has_token {
        return Some(None);
    }
    let is_whole = section.has(USERNAME.name) == section.has(PASSWORD.name);
    if !is_whole || (has_username && has_token) {
        let hint = "write username and password, or token alone";
        section.report_key(
            USERNAME.name,
            "needs password, and must not be combined with token",
            hint,
        );
        return None;
    }
    let (found, credential) = if has_token {
        let (found, token) = token?;
        (found, Credential::bearer(&token))
    } else {
        let (found, (_, password)) = (username?, password?);
        let credential = Credential::basic(&found.text, &password);
        (found, credential)
    };
    credential
        .map(Some)
        .map_err(|error| section.report_text(&found, error.to_string(), ""))
        .ok()
}
