//! `snapgate token`: makes, lists and revokes API tokens, with a gateway running on the configuration or not.

use std::time::Duration;

use clap::Args;
use clap::Subcommand;
use zeroize::Zeroizing;

use crate::cli::CliError;
use crate::cli::config_file::ConfigFile;
use crate::cli::effect::Effect;
use crate::cli::output::Output;
use crate::cli::token_store::TokenChange;
use crate::cli::token_store::TokenStore;
use crate::config;
use crate::config::Settings;
use crate::config::TokenFileError;
use crate::config::TokenRecord;
use crate::gate;
use crate::gate::TokenDigest;
use crate::model::Action;
use crate::model::Pattern;
use crate::model::PrincipalName;
use crate::model::TokenName;
use crate::runtime::Clock;
use crate::runtime::SystemClock;

/// What to do with tokens.
#[derive(Debug, Subcommand)]
pub(super) enum TokenCommand {
    /// Create a token and print it once
    Create {
        #[command(flatten)]
        arguments: ConfigArguments,
        /// A unique name
        #[arg(long, value_name = "NAME")]
        name: String,
        /// The user whose permissions it has at most
        #[arg(long, value_name = "USER")]
        owner: String,
        /// Lifetime, such as 12h or 90d, or never
        #[arg(long, value_name = "TIME", default_value = "90d")]
        expires: String,
        /// Actions it allows, such as read,restore [default: all of its owner]
        #[arg(long, value_name = "ACTIONS", value_delimiter = ',')]
        actions: Vec<String>,
        /// VMs it applies to, such as web* [default: all]
        #[arg(long, value_name = "PATTERNS", value_delimiter = ',')]
        vms: Vec<String>,
        /// Backups of these VMs it applies to, by id [default: all]
        #[arg(long, value_name = "PATTERNS", value_delimiter = ',')]
        backups: Vec<String>,
    },
    /// List tokens, without their secrets
    List {
        #[command(flatten)]
        arguments: ConfigArguments,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Revoke a token
    Revoke {
        #[command(flatten)]
        arguments: ConfigArguments,
        /// Its name
        name: String,
    },
}

/// The configuration that names the token file.
#[derive(Debug, Args)]
pub(super) struct ConfigArguments {
    #[command(flatten)]
    config: ConfigFile,
}

impl From<TokenFileError> for CliError {
    fn from(error: TokenFileError) -> Self {
        Self::Other(error.to_string())
    }
}

fn other(text: impl Into<String>) -> CliError {
    CliError::Other(text.into())
}

/// Runs the command and prints the result.
pub(super) fn run(command: TokenCommand, output: &mut Output<'_>) -> Result<(), CliError> {
    match command {
        TokenCommand::Create {
            arguments,
            name,
            owner,
            expires,
            actions,
            vms,
            backups,
        } => {
            let settings = load(&arguments)?;
            let scope = (actions, vms, backups);
            let record = record(&settings, &name, &owner, &expires, scope)?;
            create(&arguments, &settings, record, output)
        }
        TokenCommand::List { arguments, json } => list(&load(&arguments)?, json, output),
        TokenCommand::Revoke { arguments, name } => {
            revoke(&arguments, &load(&arguments)?, &name, output)
        }
    }
}

fn load(arguments: &ConfigArguments) -> Result<Settings, CliError> {
    Ok(config::load(
        &arguments.config.path(),
        &config::environment,
    )?)
}

/// The new token without its hash, checked.
fn record(
    settings: &Settings,
    name: &str,
    owner: &str,
    expires: &str,
    (actions, vms, backups): (Vec<String>, Vec<String>, Vec<String>),
) -> Result<TokenRecord, CliError> {
    let name = TokenName::new(name).map_err(|error| other(format!("name {error}")))?;
    let known = PrincipalName::new(owner).ok();
    let known = known.filter(|user| settings.gate.credentials.users.contains_key(user));
    let owner = known.ok_or_else(|| other(format!("{owner:?} is no user of the configuration")))?;
    let now = SystemClock.now();
    let expires = match expires {
        "never" => None,
        text => {
            let after = humantime::parse_duration(text).ok();
            let after = after.filter(|duration| *duration >= Duration::from_secs(1));
            let after = after.ok_or_else(|| {
                other(format!(
                    "{text:?} is not a time such as 12h or 90d, nor never"
                ))
            })?;
            Some(now.plus(after).to_string())
        }
    };
    Ok(TokenRecord {
        name,
        owner,
        sha256: String::new(),
        created: now.to_string(),
        expires,
        actions: chosen(&actions)?,
        vms: patterns(vms, "--vms")?,
        backups: patterns(backups, "--backups")?,
    })
}

fn chosen(words: &[String]) -> Result<Vec<Action>, CliError> {
    if words.is_empty() {
        return Ok(Action::ALL.to_vec());
    }
    let known: Vec<&str> = Action::ALL.into_iter().map(Action::as_str).collect();
    let action = |word: &String| {
        let found = Action::ALL
            .into_iter()
            .find(|action| action.as_str() == word);
        found.ok_or_else(|| {
            let known = known.join(", ");
            other(format!("{word:?} is no known action: known are {known}"))
        })
    };
    words.iter().map(action).collect()
}

fn patterns(all: Vec<String>, option: &str) -> Result<Vec<String>, CliError> {
    if all.is_empty() {
        return Ok(vec!["*".to_owned()]);
    }
    for pattern in &all {
        Pattern::new(pattern).map_err(|why| other(format!("{option} {pattern:?} {why}")))?;
    }
    Ok(all)
}

fn create(
    arguments: &ConfigArguments,
    settings: &Settings,
    mut record: TokenRecord,
    output: &mut Output<'_>,
) -> Result<(), CliError> {
    let store = TokenStore::of(settings)?;
    let mut random = Zeroizing::new([0; 32]);
    getrandom::fill(&mut *random).map_err(|error| other(error.to_string()))?;
    let token = gate::new_token(&random);
    let digest = TokenDigest::of(token.reveal());
    record.sha256 = digest.map(|digest| digest.to_string()).unwrap_or_default();
    let (name, owner) = (record.name.clone(), record.owner.clone());
    let ends = record.expires.clone();
    let change = store.add(record)?;
    let ends = ends.map_or_else(
        || "never ends".to_owned(),
        |timestamp| format!("ends {timestamp}"),
    );
    output.complain(&format!(
        "token {name} of {owner}, {ends}. It is shown this once; send it as: Authorization: Bearer TOKEN"
    ))?;
    output.print(&format!("{}\n", token.reveal()))?;
    // The command ends when the token is valid, so that a script can use it at once.
    let text = match store.wait(change, &arguments.config.path(), settings)? {
        Effect::InUse => format!("{} accepts it now", gateway(change)),
        Effect::NoGateway => "no gateway is running: it is valid from the next start on".to_owned(),
        Effect::Unconfirmed(why) => format!(
            "{} has not confirmed that it accepts the token: {why}; {}",
            gateway(change),
            reading(change)
        ),
    };
    Ok(output.complain(&text)?)
}

/// Which gateway a change is confirmed by.
const fn gateway(change: TokenChange) -> &'static str {
    match change {
        TokenChange::File => "the running gateway",
        TokenChange::Cluster(_) => "the active gateway",
    }
}

/// When gateways use a change that was not confirmed.
const fn reading(change: TokenChange) -> &'static str {
    match change {
        TokenChange::File => "it reads changed files every second",
        TokenChange::Cluster(_) => "gateways use changes as soon as etcd announces them",
    }
}

/// `live`, or why it cannot be used.
fn state(record: &TokenRecord, settings: &Settings) -> &'static str {
    if !settings.gate.credentials.users.contains_key(&record.owner) {
        "no owner"
    } else if record.ends().is_some_and(|end| end <= SystemClock.now()) {
        "expired"
    } else {
        "live"
    }
}

fn list(settings: &Settings, json: bool, output: &mut Output<'_>) -> Result<(), CliError> {
    let all = TokenStore::of(settings)?.read()?;
    let mut text = String::new();
    for token in &all {
        let state = state(token, settings);
        let line = if json {
            let record = serde_json::json!({
                "name": token.name, "owner": token.owner, "state": state, "created": token.created, "expires": token.expires,
                "actions": token.actions, "vms": token.vms, "backups": token.backups,
            });
            record.to_string()
        } else {
            let actions: Vec<&str> = token.actions.iter().map(|action| action.as_str()).collect();
            let ends = token.expires.as_deref().unwrap_or("never");
            format!(
                "{}  owner {}  {state}  expires {ends}  may {}  vms {}  backups {}",
                token.name,
                token.owner,
                actions.join(","),
                token.vms.join(","),
                token.backups.join(",")
            )
        };
        text.push_str(&line);
        text.push('\n');
    }
    Ok(output.print(&text)?)
}

fn revoke(
    arguments: &ConfigArguments,
    settings: &Settings,
    name: &str,
    output: &mut Output<'_>,
) -> Result<(), CliError> {
    let store = TokenStore::of(settings)?;
    let change = store.revoke(name)?;
    let text = match store.wait(change, &arguments.config.path(), settings)? {
        Effect::InUse => format!("{} refuses it now", gateway(change)),
        Effect::NoGateway => "no gateway is running".to_owned(),
        Effect::Unconfirmed(why) => format!(
            "{} has not confirmed that it refuses the token: {why}; {}",
            gateway(change),
            reading(change)
        ),
    };
    Ok(output.complain(&format!("token {name} revoked; {text}"))?)
}
