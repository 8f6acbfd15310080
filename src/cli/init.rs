//! `snapgate init`: a start configuration, one written from what a VM manager says, or the folders of `files` backends.

use std::fs::OpenOptions;
use std::io;
use std::io::IsTerminal;
use std::io::Write as _;
use std::path::Path;
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;

use crate::adapters::registry;
use crate::adapters::survey::ShownCertificate;
use crate::adapters::survey::Survey;
use crate::adapters::survey::SurveyError;
use crate::adapters::survey::SurveyFn;
use crate::adapters::survey::SurveyRequest;
use crate::adapters::survey::SurveyTrust;
use crate::cli::error::CliError;
use crate::cli::folders;
use crate::cli::output::Output;
use crate::config;
use crate::model::Secret;
use crate::runtime::Clock as _;
use crate::runtime::SystemClock;

/// Longest wait for what a VM manager says.
const PATIENCE: Duration = Duration::from_secs(60);

/// The tables that every configuration begins with: nothing is reachable from other machines, and nothing is allowed.
const START: &str = include_str!("../../config/start.toml");

/// What `init` is asked for.
#[derive(Debug, Args)]
pub(super) struct Init {
    /// Ask this VM manager, for example `proxmox://USER@REALM!TOKENID@HOST:PORT`, and write its backend
    #[arg(
        long,
        value_name = "URL",
        requires = "secret",
        conflicts_with = "config"
    )]
    from: Option<String>,
    /// Where its credential is: `file:PATH` or `env:NAME`
    #[arg(long, value_name = "SOURCE", requires = "from")]
    secret: Option<String>,
    /// The authority (PEM) that signed its certificates
    #[arg(long, value_name = "FILE", requires = "from")]
    ca: Option<PathBuf>,
    /// The SHA-256 of its certificate, once for each server; without it and --ca the command asks
    #[arg(
        long = "fingerprint",
        value_name = "SHA256",
        requires = "from",
        conflicts_with = "ca"
    )]
    fingerprints: Vec<String>,
    /// Write to this new file [default: standard output]
    #[arg(long, value_name = "FILE", conflicts_with = "config")]
    output: Option<PathBuf>,
    /// Prepare the folders of the `files` backends in this configuration instead
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    #[command(flatten)]
    folders: folders::PrepareFolders,
}

fn other(error: impl std::fmt::Display) -> CliError {
    CliError::Other(error.to_string())
}

/// Writes a configuration, or prepares the folders of one.
pub(super) fn run(wanted: &Init, output: &mut Output<'_>) -> Result<(), CliError> {
    if let Some(file) = &wanted.config {
        return folders::prepare(file, &wanted.folders, output);
    }
    // Before anything is asked, so that no question is asked for nothing.
    if let Some(file) = wanted.output.as_deref().filter(|file| file.exists()) {
        return Err(already_there(file));
    }
    let text = match &wanted.from {
        Some(url) => write_survey(url, wanted, output)?,
        None => format!("{START}{EXAMPLE_GRANT}{EXAMPLE_BACKEND}"),
    };
    match &wanted.output {
        None => Ok(output.print(&text)?),
        Some(file) => {
            write_new_file(file, &text)?;
            let shown = file.display();
            Ok(output.print(&format!(
                "{shown} written\nnext: make a user in it (snapgate hash-password), then snapgate check --probe --config {shown}\n"
            ))?)
        }
    }
}

const EXAMPLE_GRANT: &str = r#"
# [[grant]]
# to = ["user:operator"]
# actions = ["read", "create", "update", "protect", "delete", "restore", "observe"]
# vms = ["*"]
"#;

const EXAMPLE_BACKEND: &str = r#"
# The VM manager; all kinds and keys: docs/configuration.md. `snapgate init --from URL` writes this part for some kinds.
# [[backend]]
# name = "host"
# kind = "libvirt"
# vms = ["*"]
"#;

fn already_there(file: &Path) -> CliError {
    other(format!(
        "{} exists, and nothing was written; choose another name for --output",
        file.display()
    ))
}

/// Never over a file that is there, not even one that appeared meanwhile.
fn write_new_file(file: &Path, text: &str) -> Result<(), CliError> {
    let opened = OpenOptions::new().write(true).create_new(true).open(file);
    let mut opened = match opened {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            return Err(already_there(file));
        }
        opened => {
            opened.map_err(|error| other(format!("cannot write {}: {error}", file.display())))?
        }
    };
    opened
        .write_all(text.as_bytes())
        .and_then(|()| opened.sync_all())
        .map_err(|error| other(format!("cannot write {}: {error}", file.display())))
}

/// The configuration of a gateway in front of the VM manager that the URL names.
fn write_survey(url: &str, wanted: &Init, output: &mut Output<'_>) -> Result<String, CliError> {
    let (kind, address) = url
        .split_once("://")
        .ok_or_else(|| other(format!("{url:?} is not KIND://...")))?;
    let survey = find_survey(kind)?;
    let secret = wanted.secret.as_deref().unwrap_or_default();
    let mut trust = match (&wanted.ca, wanted.fingerprints.is_empty()) {
        (Some(file), _) => SurveyTrust::Authority(std::path::absolute(file)?),
        (None, false) => SurveyTrust::Fingerprints(wanted.fingerprints.clone()),
        (None, true) => SurveyTrust::Unverified,
    };
    loop {
        let request = SurveyRequest {
            address: address.to_owned(),
            secret_reference: absolute_reference(secret)?,
            secret: read_secret(secret)?,
            trust: trust.clone(),
            by: SystemClock.deadline(PATIENCE),
        };
        match ask(survey, request)? {
            Ok(found) => return Ok(compose(kind, &found)),
            Err(SurveyError::Unverified(shown)) => {
                trust = confirm_certificates(&shown, output)?;
            }
            Err(error @ SurveyError::Failed(_)) => return Err(other(error)),
        }
    }
}

fn find_survey(kind: &str) -> Result<SurveyFn, CliError> {
    let able = || {
        let kinds = registry::KINDS.iter().filter(|kind| kind.survey.is_some());
        let names: Vec<&str> = kinds.map(|kind| kind.table.name).collect();
        names.join(", ")
    };
    let found = registry::KINDS
        .iter()
        .find(|known| known.table.name == kind);
    let found = found.ok_or_else(|| {
        other(format!(
            "there is no kind {kind:?}; --from knows: {}",
            able()
        ))
    })?;
    found.survey.ok_or_else(|| {
        other(format!(
            "a backend of kind {kind:?} has to be written by hand (docs/adapters/{kind}.md); --from knows: {}",
            able()
        ))
    })
}

fn ask(survey: SurveyFn, request: SurveyRequest) -> Result<Result<Survey, SurveyError>, CliError> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()?;
    let found = runtime.block_on(survey(request));
    runtime.shutdown_background();
    Ok(found)
}

/// A credential on the command line would be seen by every user of the machine.
fn read_secret(source: &str) -> Result<Secret, CliError> {
    let found = if let Some(file) = source.strip_prefix("file:") {
        std::fs::read_to_string(file)
            .map_err(|error| other(format!("cannot read {file}: {error}")))?
    } else if let Some(name) = source.strip_prefix("env:") {
        config::environment(name)
            .filter(|value| !value.is_empty())
            .ok_or_else(|| other(format!("environment variable {name} is not set")))?
    } else {
        return Err(other("--secret: expected file:PATH or env:NAME"));
    };
    Ok(Secret::new(found))
}

/// The same file, wherever the configuration will be.
fn absolute_reference(source: &str) -> Result<String, CliError> {
    match source.strip_prefix("file:") {
        Some(file) => Ok(format!("file:{}", std::path::absolute(file)?.display())),
        None => Ok(source.to_owned()),
    }
}

/// Shows the certificates, and asks on a terminal whether they are the right ones. The credential was not sent yet.
fn confirm_certificates(
    shown: &[ShownCertificate],
    output: &mut Output<'_>,
) -> Result<SurveyTrust, CliError> {
    for certificate in shown {
        output.complain(&format!(
            "{} shows a certificate with the SHA-256 {}",
            certificate.server, certificate.fingerprint
        ))?;
    }
    let fingerprints = || shown.iter().map(|shown| shown.fingerprint.clone());
    if !io::stdin().is_terminal() {
        let options: Vec<String> = fingerprints()
            .map(|fingerprint| format!("--fingerprint {fingerprint}"))
            .collect();
        return Err(other(format!(
            "nothing was sent; compare this with the server itself, then run the command again with {}",
            options.join(" ")
        )));
    }
    output.ask("Compare this with the server itself. Is it the same (yes or no)? ")?;
    let mut answer = String::new();
    io::stdin().read_line(&mut answer)?;
    if answer.trim() != "yes" {
        return Err(other("nothing was sent, and nothing was written"));
    }
    Ok(SurveyTrust::Fingerprints(fingerprints().collect()))
}

/// The whole file: the start, the grants for what was found, the backend.
fn compose(kind: &str, found: &Survey) -> String {
    let vms: String = found
        .vms
        .iter()
        .map(|vm| format!("#   \"{}\",  # {}\n", vm.id, vm.about))
        .collect();
    let vms = if vms.is_empty() {
        "# vms = [\"*\"]\n".to_owned()
    } else {
        format!("# vms = [\n{vms}# ]\n")
    };
    format!(
        "{START}\n# What each caller may do, and to which VMs. For restores alone: actions = [\"read\", \"restore\"].\n# [[grant]]\n# to = [\"user:operator\"]\n# actions = [\"read\", \"create\", \"update\", \"protect\", \"delete\", \"restore\", \"observe\"]\n{vms}\n# Page of this kind: docs/adapters/{kind}.md\n{}",
        found.backend
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::VmId;

    #[test]
    fn what_is_composed_is_toml_and_allows_nothing() {
        let found = Survey {
            backend: "[[backend]]\nname = \"a\"\n".to_owned(),
            vms: vec![crate::adapters::survey::SurveyedVm {
                id: VmId::new("100").unwrap(),
                about: "web (qemu on pve1)".to_owned(),
            }],
        };
        let text = compose("proxmox", &found);
        let read: toml::Table = text.parse().unwrap();
        assert!(
            !read.contains_key("user") && !read.contains_key("grant"),
            "{text}"
        );
        // The commented part is right as well, once an operator removes the `#`.
        let (_, grant) = text.split_once("\n# [[grant]]").unwrap();
        let (grant, _) = grant.split_once("\n\n").unwrap();
        let grant = format!("# [[grant]]{grant}")
            .replace("# ", "")
            .replace("#   ", "");
        let lines: Vec<&str> = grant
            .lines()
            .map(|line| line.trim_end_matches("web (qemu on pve1)"))
            .collect();
        let read: toml::Table = lines.join("\n").parse().unwrap();
        assert!(read.contains_key("grant"), "{grant}");
    }

    #[test]
    fn only_kinds_with_a_survey_are_asked() {
        assert!(find_survey("proxmox").is_ok(), "it has one");
        for (kind, words) in [("files", "by hand"), ("vmware", "no kind")] {
            let error = find_survey(kind).err().map(|error| error.to_string());
            assert!(error.is_some_and(|text| text.contains(words)), "{kind}");
        }
    }
}
