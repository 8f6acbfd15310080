//! `snapgate login`: checks credentials against a gateway and keeps them in a profile that only its owner may read.

use std::path::Path;

use clap::Args;

use crate::cli::CliError;
use crate::cli::client::connection::ConnectionArguments;
use crate::cli::client::connection::connection_of;
use crate::cli::client::connection::parse_url;
use crate::cli::client::connection::profile_name;
use crate::cli::client::connection::read_profiles;
use crate::cli::client::connection::read_secret_or_input;
use crate::cli::client::connection::usage;
use crate::cli::client::ending::Ending;
use crate::cli::client::report::Report;
use crate::cli::client::run::finish;
use crate::cli::client::run::run_on;
use crate::cli::hash_password::read_password;
use crate::cli::output::Output;
use crate::client::ClientError;
use crate::client::Profile;
use crate::config;

/// `snapgate login`.
#[derive(Args, Debug)]
pub(in crate::cli) struct LoginArguments {
    #[command(flatten)]
    connection: ConnectionArguments,
}

/// Runs `snapgate login`.
pub(in crate::cli) fn run_login(
    arguments: &LoginArguments,
    output: &mut Output<'_>,
) -> Result<(), CliError> {
    let connection = &arguments.connection;
    let (name, profile) = match new_profile(connection, output) {
        Ok(made) => made,
        Err(error) => {
            let report = Report::new(output, connection.output);
            return finish(report, &Ending::Failed(error));
        }
    };
    // With what will be in the profile, and nothing else of the command line or the environment.
    let tried = ConnectionArguments {
        retry_for: connection.retry_for,
        ..ConnectionArguments::default()
    };
    let tried = connection_of(&profile, &tried);
    run_on(tried, connection.output, output, move |context| {
        Box::pin(async move {
            // Every caller may ask what they may do; with wrong credentials this is 401.
            let asked = context
                .gateway
                .read_permissions(None, None, &mut context.report);
            match asked.await {
                Ok(_) => {}
                // A server of the 2009 page: the credentials are tried with the first command.
                Err(error) if error.refusal().is_some_and(|refused| refused.status == 404) => {}
                Err(error) => return Err(error),
            }
            let mut file = read_profiles(&config::environment)?;
            file.save(&name, profile).map_err(usage)?;
            let path = file.path().display().to_string();
            let text = format!("profile {name:?} saved in {path}\n");
            context.report.text(&text);
            let record = serde_json::json!({ "record": "profile", "name": name, "file": path });
            context.report.record(&record);
            Ok(Ending::Done)
        })
    })
}

/// The profile that the options describe, with a password that is asked for where no file is named.
fn new_profile(
    arguments: &ConnectionArguments,
    output: &mut Output<'_>,
) -> Result<(String, Profile), ClientError> {
    let environment = &config::environment;
    let url = arguments.url.clone();
    let url = url.or_else(|| environment("SNAPGATE_URL"));
    let url = url.ok_or_else(|| ClientError::Usage("login needs --url".to_owned()))?;
    // Before a password is typed.
    parse_url(&url)?;
    let absolute = |file: &Path| std::path::absolute(file).map_err(usage);
    let kept = |file: &Option<std::path::PathBuf>| file.as_deref().map(absolute).transpose();
    let mut profile = Profile {
        url,
        user: arguments
            .user
            .clone()
            .or_else(|| environment("SNAPGATE_USER")),
        ca: kept(&arguments.ca)?,
        cert: kept(&arguments.cert)?,
        key: kept(&arguments.key)?,
        ..Profile::default()
    };
    let is_input = |file: &Path| file == Path::new("-");
    if let Some(file) = &arguments.token_file {
        let token = read_secret_or_input(file)?;
        if is_input(file) {
            profile.token = Some(token.reveal().to_owned());
        } else {
            // A token that is renewed in its file is the one that is sent.
            profile.token_file = Some(absolute(file)?);
        }
        profile.user = None;
    } else if let Some(file) = &arguments.password_file {
        let password = read_secret_or_input(file)?;
        if is_input(file) {
            profile.password = Some(password.reveal().to_owned());
        } else {
            profile.password_file = Some(absolute(file)?);
        }
    } else if profile.user.is_some() {
        let password = read_password(output).map_err(usage)?;
        profile.password = Some(password.reveal().to_owned());
    }
    if profile.user.is_none()
        && profile.token.is_none()
        && profile.token_file.is_none()
        && profile.cert.is_none()
    {
        let text = "login needs --user, --token-file, or --cert and --key";
        return Err(ClientError::Usage(text.to_owned()));
    }
    if profile.password_file.is_some() && profile.user.is_none() {
        let text = "a password needs --user";
        return Err(ClientError::Usage(text.to_owned()));
    }
    Ok((profile_name(arguments, environment), profile))
}
