//! `snapgate init --from proxmox://USER@REALM!TOKENID@HOST[:PORT][,HOST[:PORT]]`: the backend as the cluster shows it.

use std::collections::BTreeSet;
use std::time::Duration;

use crate::adapters::proxmox::client::Api;
use crate::adapters::proxmox::config::AfterRestore;
use crate::adapters::proxmox::config::BackupMode;
use crate::adapters::proxmox::config::Config;
use crate::adapters::proxmox::config::NodeTrust;
use crate::adapters::proxmox::config::is_node_authority;
use crate::adapters::proxmox::config::is_storage;
use crate::adapters::proxmox::error::NativeError;
use crate::adapters::proxmox::wire;
use crate::adapters::survey::ShownCertificate;
use crate::adapters::survey::Survey;
use crate::adapters::survey::SurveyError;
use crate::adapters::survey::SurveyRequest;
use crate::adapters::survey::SurveyTrust;
use crate::adapters::survey::SurveyedVm;
use crate::adapters::survey::comment_text;
use crate::adapters::survey::quote_toml;
use crate::adapters::transport::read_shown_fingerprint;
use crate::model::Deadline;
use crate::model::Secret;
use crate::model::VmId;

/// The port of the API.
const PORT: u16 = 8006;
/// Time for making a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// What the address says.
#[derive(Debug, PartialEq, Eq)]
struct ClusterAddress {
    /// `USER@REALM!TOKENID`.
    token_id: String,
    /// Host and port of each node.
    nodes: Vec<String>,
}

impl ClusterAddress {
    fn parse(text: &str) -> Result<Self, SurveyError> {
        let form = || {
            let what =
                "expected proxmox://USER@REALM!TOKENID@HOST[:PORT], with more nodes after commas";
            SurveyError::Failed(format!("{what}, got {:?}", format!("proxmox://{text}")))
        };
        let text = text.strip_suffix('/').unwrap_or(text);
        // The token id holds an `@` too, so the last one ends it.
        let (token_id, hosts) = text.rsplit_once('@').ok_or_else(form)?;
        let is_token_id = token_id
            .split_once('!')
            .is_some_and(|(user, token)| user.contains('@') && !token.is_empty());
        if token_id.contains('=') {
            let what =
                "the address holds a secret; change that secret, and name its file by --secret";
            return Err(SurveyError::Failed(what.to_owned()));
        }
        let nodes: Vec<String> = hosts.split(',').map(with_port).collect();
        if !is_token_id || !nodes.iter().all(|node| is_node_authority(node)) {
            return Err(form());
        }
        Ok(Self {
            token_id: token_id.to_owned(),
            nodes,
        })
    }
}

fn with_port(host: &str) -> String {
    let after_bracket = host.rsplit(']').next().unwrap_or(host);
    if host.is_empty() || after_bracket.contains(':') {
        host.to_owned()
    } else {
        format!("{host}:{PORT}")
    }
}

/// Asks the cluster, and writes its backend.
pub(super) async fn survey(request: SurveyRequest) -> Result<Survey, SurveyError> {
    let address = ClusterAddress::parse(&request.address)?;
    check_token(&address.token_id, &request)?;
    let trust = match request.trust {
        SurveyTrust::Unverified => return Err(shown_certificates(&address.nodes).await),
        SurveyTrust::Authority(file) => NodeTrust::Authority(file),
        SurveyTrust::Fingerprints(all) => NodeTrust::Fingerprints(all),
    };
    let config = Config {
        nodes: address.nodes,
        trust,
        token: Secret::new(request.secret.reveal().trim().to_owned()),
        storages: Vec::new(),
        snapshot_memory: false,
        backup_mode: BackupMode::Snapshot,
        after_restore: AfterRestore::AsBefore,
        connect_timeout: CONNECT_TIMEOUT,
    };
    let found = ClusterContents::read(&config, request.by).await?;
    Ok(Survey {
        backend: found.write_backend(&config, &request.secret_reference),
        vms: found.vms(),
    })
}

/// The gateway reads the whole token from one place, so the secret has to be the whole token, and the one of the address.
fn check_token(token_id: &str, request: &SurveyRequest) -> Result<(), SurveyError> {
    let token = request.secret.reveal().trim();
    match token.split_once('=') {
        Some((id, secret)) if id == token_id && !secret.is_empty() => Ok(()),
        Some((id, _)) if id != token_id && id.contains('!') => Err(SurveyError::Failed(format!(
            "{} holds the token {id}, but the address names {token_id}",
            request.secret_reference
        ))),
        Some(_) | None => Err(SurveyError::Failed(format!(
            "{} must hold the whole token: {token_id}=SECRET",
            request.secret_reference
        ))),
    }
}

/// Nothing but a handshake: the token is not sent to a server that is not verified.
async fn shown_certificates(nodes: &[String]) -> SurveyError {
    let mut all = Vec::new();
    for node in nodes {
        match read_shown_fingerprint(node, CONNECT_TIMEOUT).await {
            Ok(pin) => all.push(ShownCertificate {
                server: node.clone(),
                fingerprint: pin.to_hex(),
            }),
            Err(error) => return SurveyError::Failed(format!("{node}: {error}")),
        }
    }
    SurveyError::Unverified(all)
}

/// What the token sees.
#[derive(Debug)]
struct ClusterContents {
    version: String,
    nodes: Vec<String>,
    /// Those that take backups.
    storages: Vec<String>,
    guests: Vec<wire::Resource>,
}

impl ClusterContents {
    async fn read(config: &Config, by: Deadline) -> Result<Self, SurveyError> {
        let failed = |error: NativeError| {
            let error = error.into_read_error();
            SurveyError::Failed(format!("{} ({})", error.fault.text, error.private()))
        };
        let invalid = |error: &dyn std::error::Error| SurveyError::Failed(error.to_string());
        let credential = config.credential().map_err(|error| invalid(&error))?;
        let clients = config.clients().map_err(|error| invalid(&error))?;
        let api = Api::new(clients, credential);
        let version = api.version(by).await.map_err(failed)?.version;
        let nodes = api.nodes(by).await.map_err(failed)?;
        let mut nodes: Vec<String> = nodes.into_iter().map(|node| node.node).collect();
        nodes.sort();
        let storages = api.storages(by).await.map_err(failed)?;
        // One storage is listed once for each node.
        let storages: BTreeSet<String> = storages
            .into_iter()
            .filter(|storage| {
                let content = storage.content.as_deref().unwrap_or_default();
                content.split(',').any(|kind| kind == "backup") && is_storage(&storage.storage)
            })
            .map(|storage| storage.storage)
            .collect();
        let mut guests = api.guests(by).await.map_err(failed)?;
        // A template has nothing to restore.
        guests.retain(|guest| !guest.template);
        guests.sort_by_key(|guest| guest.vmid);
        Ok(Self {
            version,
            nodes,
            storages: storages.into_iter().collect(),
            guests,
        })
    }

    fn vms(&self) -> Vec<SurveyedVm> {
        let each = self.guests.iter().filter_map(|guest| {
            let id = VmId::new(&guest.vmid.to_string()).ok()?;
            let name = guest.name.as_deref().unwrap_or("without a name");
            let about = format!("{name} ({} on {})", guest.kind, guest.node);
            Some(SurveyedVm {
                id,
                about: comment_text(&about),
            })
        });
        each.collect()
    }

    fn write_backend(&self, config: &Config, secret_reference: &str) -> String {
        let ids: Vec<String> = self
            .vms()
            .iter()
            .map(|vm| quote_toml(vm.id.as_str()))
            .collect();
        // Without a right on a guest the token sees none; a gateway without grants refuses everything anyway.
        let (note, vms) = if ids.is_empty() {
            (
                "# The token sees no guest yet: give it a role on /vms/NUMBER, and name the guests here.\n",
                "[\"*\"]".to_owned(),
            )
        } else {
            ("", format!("[{}]", ids.join(", ")))
        };
        let urls: Vec<String> = config
            .nodes
            .iter()
            .map(|node| quote_toml(&format!("https://{node}")))
            .collect();
        let trust = match &config.trust {
            NodeTrust::Authority(file) => {
                format!("ca = {}", quote_toml(&file.display().to_string()))
            }
            NodeTrust::Fingerprints(all) => {
                let all: Vec<String> = all.iter().map(|pin| quote_toml(pin)).collect();
                format!("server_fingerprints = [{}]", all.join(", "))
            }
        };
        let storages: Vec<String> = self.storages.iter().map(|name| quote_toml(name)).collect();
        let storages = if storages.is_empty() {
            "# The token sees no storage for backups, so there are snapshots only. Name storages for full backups here:\n\
             # storages = [\"NAME\"]"
                .to_owned()
        } else {
            format!(
                "# Storages that take full backups; new ones go to the first. Without this line there are snapshots only.\n\
                 # storages = [{}]",
                storages.join(", ")
            )
        };
        format!(
            "# Proxmox VE {version}. An id may also be a prefix and one `*`, such as \"1*\".\n\
             {note}[[backend]]\n\
             name = \"cluster\"\n\
             kind = \"proxmox\"\n\
             vms = {vms}\n\
             \n\
             [backend.proxmox]\n\
             # The cluster has the nodes {nodes}. With several URLs reads go on while one node is down; each has its own fingerprint.\n\
             urls = [{urls}]\n\
             {trust}\n\
             # USER@REALM!TOKENID=SECRET, of a token that only this gateway uses.\n\
             token = {token}\n\
             {storages}\n",
            version = comment_text(&self.version),
            nodes = comment_text(&self.nodes.join(", ")),
            urls = urls.join(", "),
            token = quote_toml(secret_reference),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_names_token_and_nodes_and_never_a_secret() {
        let address = |token_id: &str, nodes: &[&str]| ClusterAddress {
            token_id: token_id.to_owned(),
            nodes: nodes.iter().map(|node| (*node).to_owned()).collect(),
        };
        let rows = [
            (
                "gate@pve!t1@pve1",
                Some(address("gate@pve!t1", &["pve1:8006"])),
            ),
            (
                "gate@pve!t1@pve1:443/",
                Some(address("gate@pve!t1", &["pve1:443"])),
            ),
            (
                "a@b@ad!t@10.0.0.1,[fd00::1],[fd00::2]:99",
                Some(address(
                    "a@b@ad!t",
                    &["10.0.0.1:8006", "[fd00::1]:8006", "[fd00::2]:99"],
                )),
            ),
            ("gate@pve@pve1", None),
            ("gate!t1@pve1", None),
            ("gate@pve!@pve1", None),
            ("gate@pve!t1@", None),
            ("gate@pve!t1@pve1/path", None),
            ("gate@pve!t1@pve1,", None),
            ("pve1", None),
            ("", None),
        ];
        for (text, expected) in rows {
            assert_eq!(ClusterAddress::parse(text).ok(), expected, "{text}");
        }
        let secret = ClusterAddress::parse("gate@pve!t1=1234@pve1").unwrap_err();
        let text = secret.to_string();
        assert!(
            text.contains("--secret") && !text.contains("1234"),
            "{text}"
        );
    }

    #[test]
    fn names_of_the_cluster_stay_in_their_comments() {
        let found = ClusterContents {
            version: "8.4\n[insecure]".to_owned(),
            nodes: vec!["pve1\nplaintext = true".to_owned()],
            storages: vec!["local".to_owned()],
            guests: Vec::new(),
        };
        let config = Config {
            nodes: vec!["pve1:8006".to_owned()],
            trust: NodeTrust::Fingerprints(vec!["00".repeat(32)]),
            token: Secret::new("gate@pve!t1=x".to_owned()),
            storages: Vec::new(),
            snapshot_memory: false,
            backup_mode: BackupMode::Snapshot,
            after_restore: AfterRestore::AsBefore,
            connect_timeout: CONNECT_TIMEOUT,
        };
        let text = found.write_backend(&config, "file:a\"b\ntoken");
        let read: toml::Table = text.parse().unwrap();
        assert_eq!(read.keys().collect::<Vec<_>>(), ["backend"], "{text}");
    }
}
