//! `[backend.proxmox]`.

use std::sync::Arc;
use std::time::Duration;

use crate::adapters::adapter::Adapter;
use crate::adapters::kind::AdapterKind;
use crate::adapters::kind::BuildContext;
use crate::adapters::kind::BuildError;
use crate::adapters::kind::ReadContext;
use crate::adapters::proxmox::cluster::Proxmox;
use crate::adapters::proxmox::config::AfterRestore;
use crate::adapters::proxmox::config::BackupMode;
use crate::adapters::proxmox::config::Config;
use crate::adapters::proxmox::config::NodeTrust;
use crate::adapters::proxmox::config::is_node_authority;
use crate::adapters::proxmox::rights;
use crate::adapters::proxmox::setup;
use crate::adapters::rights::RightsFuture;
use crate::adapters::rights::RightsQuestion;
use crate::adapters::survey::SurveyFn;
use crate::model::Secret;
use crate::schema::Choice;
use crate::schema::Flag;
use crate::schema::LocatedText;
use crate::schema::Section;
use crate::schema::Table;
use crate::schema::TextList;
use crate::schema::declare_table;
use crate::schema::duration;
use crate::schema::optional_text;
use crate::schema::required_text;
use crate::schema::secret;

declare_table! { "proxmox", false, "Guests of Proxmox VE.",
    URLS: TextList = "urls", TextList { default: None, form: "`https://host:8006`" }, Restart,
        "The nodes of one cluster, in order of preference.", Commented = "[\"https://pve1.example.com:8006\"]";
    TOKEN: Text = "token", secret(required_text("`file:PATH` or `env:NAME`")), Restart,
        "The API token, `USER@REALM!TOKENID=SECRET`. Only this gateway may use it.", Commented = "\"file:pve.token\"";
    CA: Text = "ca", optional_text("required unless `server_fingerprints`", "path"), Restart,
        "The authority (PEM) that signed the certificates of the nodes.", Commented = "\"pve-root-ca.pem\"";
    SERVER_FINGERPRINTS: TextList = "server_fingerprints", TextList { default: Some(&[]), form: "64 hexadecimal digits" }, Restart,
        "The SHA-256 of the certificate of each node, in the order of `urls`; instead of `ca`.",
        Commented = "[\"0000000000000000000000000000000000000000000000000000000000000000\"]";
    STORAGES: TextList = "storages", TextList { default: Some(&[]), form: "names" }, Restart,
        "The storages with full backups; new ones go to the first. None: snapshots only.", Commented = "[\"local\"]";
    SNAPSHOT_MEMORY: Flag = "snapshot_memory", Flag(false), Restart,
        "Whether snapshots of running VMs hold their memory.";
    BACKUP_MODE: Choice = "backup_mode", Choice { default: Some("snapshot"), allowed: &["snapshot", "suspend", "stop"] }, Restart,
        "How full backups of running guests are made.";
    AFTER_RESTORE: Choice = "after_restore", Choice { default: Some("as-before"), allowed: &["as-before", "running", "stopped"] }, Restart,
        "The state of a guest after a restore, unless the request says otherwise.";
    CONNECT_TIMEOUT: DurationValue = "connect_timeout", duration(Duration::from_secs(5), 1, 60), Restart,
        "Time to establish a connection.";
}

impl AdapterKind for Config {
    const TABLE: Table = TABLE;
    const SURVEY: Option<SurveyFn> = Some(|request| Box::pin(setup::survey(request)));

    fn read(section: &Section<'_>, context: &ReadContext<'_>) -> Option<Self> {
        let urls = section.read_texts(&URLS);
        let nodes: Option<Vec<String>> = urls.iter().map(|url| authority(section, url)).collect();
        let fingerprints = section.read_texts(&SERVER_FINGERPRINTS);
        let authorities = section.read_text(&CA);
        let token = section.read_secret(&TOKEN, context.secrets);
        let storages = section.read_texts(&STORAGES);
        let backup_mode = section.read_choice(&BACKUP_MODE);
        let after_restore = section.read_choice(&AFTER_RESTORE);
        let snapshot_memory = section.read_flag(&SNAPSHOT_MEMORY);
        let connect_timeout = section.read_duration(&CONNECT_TIMEOUT);
        if urls.is_empty() {
            return None;
        }
        let trust = match (fingerprints.is_empty(), authorities) {
            (false, None) => NodeTrust::Fingerprints(texts_of(fingerprints)),
            (true, Some(file)) => NodeTrust::Authority(section.resolve_path(&file)),
            (false, Some(_)) | (true, None) => {
                let what = "needs exactly one of server_fingerprints and ca";
                let hint = "most sites use ca, with a copy of /etc/pve/pve-root-ca.pem";
                section.report_key(URLS.name, what, hint);
                return None;
            }
        };
        let (_, token) = token?;
        let config = Self {
            nodes: nodes?,
            trust,
            token: Secret::new(token.reveal().trim().to_owned()),
            storages: texts_of(storages),
            snapshot_memory,
            backup_mode: BackupMode::from_word(backup_mode?)?,
            after_restore: AfterRestore::parse(after_restore?)?,
            connect_timeout,
        };
        match config.clients() {
            Ok(_) => Some(config),
            Err(error) => {
                section.report_key(URLS.name, error.to_string(), "");
                None
            }
        }
    }

    fn audit_rights<'a>(&'a self, question: &'a RightsQuestion<'a>) -> Option<RightsFuture<'a>> {
        Some(Box::pin(rights::audit(self, question)))
    }

    fn build(&self, _context: &BuildContext) -> Result<Arc<dyn Adapter>, BuildError> {
        Ok(Arc::new(Proxmox::new(self.clone())?))
    }
}

fn texts_of(found: Vec<LocatedText>) -> Vec<String> {
    found.into_iter().map(|found| found.text).collect()
}

/// Host and port of `https://host:port`.
fn authority(section: &Section<'_>, url: &LocatedText) -> Option<String> {
    let authority = url
        .text
        .strip_prefix("https://")
        .map(|rest| rest.strip_suffix('/').unwrap_or(rest))
        .filter(|rest| is_node_authority(rest));
    if authority.is_none() {
        let what = format!("{:?} is not the URL of a node", url.text);
        section.report_text(url, what, "write \"https://host:8006\"");
    }
    authority.map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_allowed_word_has_a_meaning() {
        for word in BACKUP_MODE.value.allowed {
            assert!(BackupMode::from_word(word).is_some(), "{word}");
        }
        for word in AFTER_RESTORE.value.allowed {
            assert!(AfterRestore::parse(word).is_some(), "{word}");
        }
    }
}
