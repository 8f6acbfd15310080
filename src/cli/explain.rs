//! `snapgate explain`: which grant allows a request, or why none does.

use std::path::Path;

use clap::Args;
use http::Method;

use crate::cli::CliError;
use crate::cli::config_file::ConfigFile;
use crate::cli::output::Output;
use crate::cli::token_store;
use crate::config;
use crate::config::Settings;
use crate::gate;
use crate::gate::AssumedCaller;
use crate::model::GroupName;
use crate::model::Principal;
use crate::model::PrincipalName;

/// Whose request, and which.
#[derive(Debug, Args)]
pub(super) struct Question {
    #[command(flatten)]
    config: ConfigFile,
    /// The caller: a user, or with --groups any name
    #[arg(
        long = "as",
        value_name = "NAME",
        required_unless_present = "token",
        conflicts_with = "token"
    )]
    caller: Option<String>,
    /// The name of the API token that the request uses
    #[arg(long, value_name = "NAME")]
    token: Option<String>,
    /// The groups of a caller that is not a user, for example of an identity provider
    #[arg(
        long,
        value_name = "GROUPS",
        value_delimiter = ',',
        conflicts_with = "token"
    )]
    groups: Vec<String>,
    /// The method, such as DELETE
    method: String,
    /// The request target, such as /vms/web01/backups/456
    path: String,
}

/// Prints the answer; whether it is yes.
pub(super) fn run(question: &Question, output: &mut Output<'_>) -> Result<bool, CliError> {
    let path = question.config.path();
    let mut settings = config::load(&path, &config::environment)?;
    if question.token.is_some() {
        token_store::use_shared(&mut settings)?;
    }
    let caller = caller(&settings, question)?;
    let method = Method::from_bytes(question.method.to_ascii_uppercase().as_bytes())
        .map_err(|_malformed| CliError::Other(format!("{:?} is no method", question.method)))?;
    let file = path.file_name().map(Path::new);
    let file = file.unwrap_or(&path).display().to_string();
    let found = gate::explain(&settings.gate, &file, &caller, &method, &question.path);
    output.print(&found.to_string())?;
    Ok(found.is_allowed)
}

fn caller<'a>(settings: &'a Settings, question: &Question) -> Result<AssumedCaller<'a>, CliError> {
    let credentials = &settings.gate.credentials;
    let user = |name: &PrincipalName| {
        let user = credentials.users.get(name)?;
        Some(Principal {
            name: name.clone(),
            groups: user.groups.clone(),
        })
    };
    let other = |what: String| CliError::Other(what);
    if let Some(name) = &question.token {
        let mut all = credentials.tokens.iter().flatten();
        let token = all.find(|token| token.name.as_str() == name);
        let token = token.ok_or_else(|| other(format!("unknown token {name:?}")))?;
        let principal = user(&token.owner).ok_or_else(|| {
            let owner = &token.owner;
            other(format!(
                "token {name} cannot be used: its owner {owner} is not a user"
            ))
        })?;
        let token = Some(token);
        return Ok(AssumedCaller { principal, token });
    }
    let text = question.caller.as_deref().unwrap_or_default();
    let name = PrincipalName::new(text).map_err(|error| other(format!("name {error}")))?;
    let principal = match (user(&name), question.groups.is_empty()) {
        (Some(_), false) => {
            let what = format!(
                "{name} is a user, whose groups are in the configuration: leave --groups out"
            );
            return Err(other(what));
        }
        (Some(known), true) => known,
        (None, true) => {
            let what =
                format!("the configuration has no user {name}: add --groups for other callers");
            return Err(other(what));
        }
        (None, false) => {
            let groups = question.groups.iter().map(|group| GroupName::new(group));
            let groups: Result<std::collections::BTreeSet<_>, _> = groups.collect();
            let groups = groups.map_err(|error| other(format!("group {error}")))?;
            let groups = groups.into_iter().collect();
            Principal { name, groups }
        }
    };
    let token = None;
    Ok(AssumedCaller { principal, token })
}
