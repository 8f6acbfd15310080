//! How a gateway is named: options first, then the environment, then a profile.

use std::fs;
use std::io;
use std::path::Path;
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use clap::ValueEnum;

use crate::cli::input::read_input;
use crate::client::ClientError;
use crate::client::ClientIdentity;
use crate::client::Connection;
use crate::client::DEFAULT_PROFILE;
use crate::client::GatewayUrl;
use crate::client::Patience;
use crate::client::Profile;
use crate::client::ProfileFile;
use crate::client::Trust;
use crate::client::read_secret;
use crate::model::Credential;
use crate::model::CredentialError;
use crate::model::Secret;
use crate::model::limits;

/// Reads one variable of the environment.
pub(super) type Environment<'e> = &'e dyn Fn(&str) -> Option<String>;

/// Options that every command of the client has.
#[derive(Args, Clone, Debug, Default)]
#[command(next_help_heading = "Connection")]
pub(in crate::cli) struct ConnectionArguments {
    /// URL of the gateway: https://host:port, or http:// to this machine [SNAPGATE_URL]
    #[arg(long, global = true, value_name = "URL")]
    pub(super) url: Option<String>,
    /// User name [SNAPGATE_USER]
    #[arg(long, global = true, value_name = "NAME")]
    pub(super) user: Option<String>,
    /// File that has the password, - for standard input [SNAPGATE_PASSWORD_FILE, SNAPGATE_PASSWORD]
    #[arg(long, global = true, value_name = "FILE")]
    pub(super) password_file: Option<PathBuf>,
    /// File that has an API token or JSON Web Token, - for standard input [SNAPGATE_TOKEN_FILE, SNAPGATE_TOKEN]
    #[arg(long, global = true, value_name = "FILE", conflicts_with_all = ["user", "password_file"])]
    pub(super) token_file: Option<PathBuf>,
    /// File with the authorities that sign the gateway's certificate, instead of those of the system [SNAPGATE_CA]
    #[arg(long, global = true, value_name = "FILE")]
    pub(super) ca: Option<PathBuf>,
    /// File with the client certificate [SNAPGATE_CERT]
    #[arg(long, global = true, value_name = "FILE", requires = "key")]
    pub(super) cert: Option<PathBuf>,
    /// File with the key of the client certificate [SNAPGATE_KEY]
    #[arg(long, global = true, value_name = "FILE", requires = "cert")]
    pub(super) key: Option<PathBuf>,
    /// Profile that `snapgate login` made [SNAPGATE_PROFILE]
    #[arg(long, global = true, value_name = "NAME")]
    pub(super) profile: Option<String>,
    /// How long to ask again while the gateway does not answer [default: 15s at first, 10m once it has answered]
    #[arg(long, global = true, value_name = "DURATION", value_parser = humantime::parse_duration)]
    pub(super) retry_for: Option<Duration>,
    /// text for people, json for programs: one record a line
    #[arg(
        long,
        global = true,
        value_enum,
        default_value_t,
        value_name = "FORMAT"
    )]
    pub(super) output: Format,
}

/// What is printed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(in crate::cli) enum Format {
    /// For people
    #[default]
    Text,
    /// For programs
    Json,
}

/// Where the profiles are; `None` without a home folder.
pub(super) fn profile_path(environment: Environment<'_>) -> Option<PathBuf> {
    let absolute = |name: &str| {
        let folder = PathBuf::from(environment(name)?);
        // The specification of the folders: what is relative is ignored.
        folder.is_absolute().then_some(folder)
    };
    let folder = absolute("XDG_CONFIG_HOME").or_else(|| Some(absolute("HOME")?.join(".config")))?;
    Some(folder.join("snapgate/client.toml"))
}

/// The file of profiles.
pub(super) fn read_profiles(environment: Environment<'_>) -> Result<ProfileFile, ClientError> {
    let path = profile_path(environment).ok_or_else(|| {
        ClientError::Usage("profiles need HOME or XDG_CONFIG_HOME in the environment".to_owned())
    })?;
    ProfileFile::read(&path).map_err(usage)
}

/// How the gateway is reached.
pub(super) fn find_connection(
    arguments: &ConnectionArguments,
    environment: Environment<'_>,
) -> Result<Connection, ClientError> {
    // An empty variable is one that was unset.
    let variable = |name: &str| environment(name).filter(|text| !text.is_empty());
    let url = arguments.url.clone().or_else(|| variable("SNAPGATE_URL"));
    let name = arguments.profile.clone();
    let name = name.or_else(|| variable("SNAPGATE_PROFILE"));
    let profile = find_profile(name.as_deref(), url.as_deref(), environment)?;
    let url = url.unwrap_or_else(|| profile.url.clone());
    if url.is_empty() {
        return Err(ClientError::Usage(
            "which gateway? Name it with --url or SNAPGATE_URL, or make a profile with: snapgate login --url URL --user NAME".to_owned(),
        ));
    }
    connection_to(&url, arguments, environment, &profile)
}

/// How the gateway of a profile is reached, by what the profile holds alone.
pub(super) fn connection_of(
    profile: &Profile,
    arguments: &ConnectionArguments,
) -> Result<Connection, ClientError> {
    connection_to(&profile.url, arguments, &|_name| None, profile)
}

fn connection_to(
    url: &str,
    arguments: &ConnectionArguments,
    environment: Environment<'_>,
    profile: &Profile,
) -> Result<Connection, ClientError> {
    let variable = |name: &str| environment(name).filter(|text| !text.is_empty());
    let path = |name: &str| variable(name).map(PathBuf::from);
    let given = |from: &Option<PathBuf>, name: &str| from.clone().or_else(|| path(name));
    let certificate = given(&arguments.cert, "SNAPGATE_CERT").or_else(|| profile.cert.clone());
    let key = given(&arguments.key, "SNAPGATE_KEY").or_else(|| profile.key.clone());
    let ca = given(&arguments.ca, "SNAPGATE_CA").or_else(|| profile.ca.clone());
    let credential = find_credential(arguments, &variable, profile)?;
    let identity = match (certificate, key) {
        (Some(certificate), Some(key)) => Some(ClientIdentity {
            certificates: read_file(&certificate)?,
            key: read_secret(&key).map_err(usage)?,
        }),
        (None, None) => None,
        (Some(_), None) | (None, Some(_)) => {
            let text = "a client certificate needs both --cert and --key";
            return Err(ClientError::Usage(text.to_owned()));
        }
    };
    Ok(Connection {
        url: parse_url(url)?,
        credential,
        trust: match ca {
            Some(file) => Trust::Authorities(read_file(&file)?),
            None => Trust::System,
        },
        identity,
        patience: arguments
            .retry_for
            .map_or_else(Patience::default, Patience::of),
    })
}

pub(super) fn parse_url(url: &str) -> Result<GatewayUrl, ClientError> {
    GatewayUrl::parse(url).map_err(|error| ClientError::Usage(format!("{url}: {error}")))
}

/// The profile that is named, or the default one; an empty one where there is none.
///
/// What a profile holds is sent to its own gateway and to no other: with another URL it is left aside, or refused where it was named.
fn find_profile(
    name: Option<&str>,
    url: Option<&str>,
    environment: Environment<'_>,
) -> Result<Profile, ClientError> {
    let parsed = |url: &str| GatewayUrl::parse(url).ok();
    let fits = |profile: &Profile| {
        url.is_none_or(|url| {
            parsed(url).is_some_and(|url| parsed(&profile.url).as_ref() == Some(&url))
        })
    };
    if let Some(name) = name {
        let profile = read_profiles(environment)?.profile(name).map_err(usage)?;
        if !fits(&profile) {
            return Err(ClientError::Usage(format!(
                "the profile {name:?} is for {}, and its credentials are sent nowhere else; leave out --url or --profile",
                profile.url
            )));
        }
        return Ok(profile);
    }
    if profile_path(environment).is_none() {
        return Ok(Profile::default());
    }
    let profiles = read_profiles(environment)?;
    let found = profiles.default_profile().map(|(_name, profile)| profile);
    Ok(found.filter(fits).unwrap_or_default())
}

/// Options before the environment, the environment before the profile; each with its own kind of credential.
fn find_credential(
    arguments: &ConnectionArguments,
    variable: &dyn Fn(&str) -> Option<String>,
    profile: &Profile,
) -> Result<Option<Credential>, ClientError> {
    let invalid = |error: CredentialError| ClientError::Usage(format!("the credentials {error}"));
    let bearer = |token: &Secret| Credential::bearer(token).map(Some).map_err(invalid);
    if let Some(file) = &arguments.token_file {
        return bearer(&read_secret_or_input(file)?);
    }
    let names_user = arguments.user.is_some() || arguments.password_file.is_some();
    if !names_user {
        if let Some(token) = variable("SNAPGATE_TOKEN") {
            return bearer(&Secret::new(token));
        }
        if let Some(file) = variable("SNAPGATE_TOKEN_FILE") {
            return bearer(&read_secret_or_input(Path::new(&file))?);
        }
        if variable("SNAPGATE_USER").is_none() {
            match (&profile.token, &profile.token_file) {
                (Some(token), _) => return bearer(&Secret::new(token.clone())),
                (None, Some(file)) => return bearer(&read_secret(file).map_err(usage)?),
                (None, None) => {}
            }
        }
    }
    let user = arguments.user.clone();
    let user = user.or_else(|| variable("SNAPGATE_USER"));
    // The password of a profile belongs to its user.
    let is_of_profile = user.is_none() || user == profile.user;
    let Some(user) = user.or_else(|| profile.user.clone()) else {
        return Ok(None);
    };
    let password = if let Some(file) = &arguments.password_file {
        read_secret_or_input(file)?
    } else if let Some(file) = variable("SNAPGATE_PASSWORD_FILE") {
        read_secret_or_input(Path::new(&file))?
    } else if let Some(password) = variable("SNAPGATE_PASSWORD") {
        Secret::new(password)
    } else if let Some(password) = profile.password.as_ref().filter(|_| is_of_profile) {
        Secret::new(password.clone())
    } else if let Some(file) = profile.password_file.as_ref().filter(|_| is_of_profile) {
        read_secret(file).map_err(usage)?
    } else {
        return Err(ClientError::Usage(format!(
            "the password of {user} is missing; name its file with --password-file, or run: snapgate login"
        )));
    };
    Credential::basic(&user, &password)
        .map(Some)
        .map_err(invalid)
}

/// A secret from a file, or from standard input for `-`.
pub(super) fn read_secret_or_input(file: &Path) -> Result<Secret, ClientError> {
    if file != Path::new("-") {
        return read_secret(file).map_err(usage);
    }
    let most = u64::try_from(limits::CREDENTIALS_BYTES_MAX).unwrap_or(u64::MAX);
    let text = read_input(most.saturating_add(2)).map_err(usage)?;
    let line = text.trim_end_matches(['\r', '\n']).to_owned();
    Ok(Secret::new(line))
}

fn read_file(file: &Path) -> Result<Vec<u8>, ClientError> {
    fs::read(file).map_err(|error| {
        let why = if error.kind() == io::ErrorKind::NotFound {
            "no such file".to_owned()
        } else {
            error.to_string()
        };
        ClientError::Usage(format!("cannot read {}: {why}", file.display()))
    })
}

/// The name of the profile that a login writes.
pub(super) fn profile_name(
    arguments: &ConnectionArguments,
    environment: Environment<'_>,
) -> String {
    let name = arguments.profile.clone();
    let name = name.or_else(|| environment("SNAPGATE_PROFILE"));
    name.filter(|name| !name.is_empty())
        .unwrap_or_else(|| DEFAULT_PROFILE.to_owned())
}

pub(super) fn usage(error: impl std::fmt::Display) -> ClientError {
    ClientError::Usage(error.to_string())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    /// A home folder with two profiles, of which `lab` is the default.
    fn home() -> tempfile::TempDir {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("snapgate/client.toml");
        let mut file = ProfileFile::read(&path).unwrap();
        let profile = |url: &str| Profile {
            url: url.to_owned(),
            user: Some("ann".to_owned()),
            password: Some("secret".to_owned()),
            ..Profile::default()
        };
        file.save("lab", profile("https://lab.example")).unwrap();
        file.save("prod", profile("https://prod.example")).unwrap();
        home
    }

    fn find(arguments: &ConnectionArguments, variables: &[(&str, &str)]) -> Result<String, String> {
        let home = home();
        let mut environment: BTreeMap<String, String> = variables
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
            .collect();
        let folder = home.path().to_str().unwrap().to_owned();
        environment.insert("XDG_CONFIG_HOME".to_owned(), folder);
        let read = |name: &str| environment.get(name).cloned();
        let found = find_connection(arguments, &read).map_err(|error| error.to_string())?;
        let credential = found
            .credential
            .map(|found| found.value().reveal().to_owned());
        Ok(format!("{} {}", found.url, credential.unwrap_or_default()))
    }

    /// What it shows, options, variables, the URL and the credentials that count.
    type Row = (
        &'static str,
        ConnectionArguments,
        &'static [(&'static str, &'static str)],
        String,
    );

    #[test]
    fn options_come_before_the_environment_and_that_before_profiles() {
        let url = |url: &str| ConnectionArguments {
            url: Some(url.to_owned()),
            ..ConnectionArguments::default()
        };
        let none = ConnectionArguments::default;
        let ann = "Basic YW5uOnNlY3JldA==";
        let bob = "Basic Ym9iOng=";
        let rows: [Row; 7] = [
            (
                "default profile",
                none(),
                &[],
                format!("https://lab.example {ann}"),
            ),
            (
                "profile of the environment",
                none(),
                &[("SNAPGATE_PROFILE", "prod")],
                format!("https://prod.example {ann}"),
            ),
            (
                "the same URL as the profile",
                url("https://lab.example/"),
                &[],
                format!("https://lab.example {ann}"),
            ),
            (
                "another URL gets no credentials of the profile",
                url("https://other.example"),
                &[],
                "https://other.example ".to_owned(),
            ),
            (
                "a URL of the environment neither",
                none(),
                &[("SNAPGATE_URL", "https://other.example")],
                "https://other.example ".to_owned(),
            ),
            (
                "a token of the environment",
                none(),
                &[("SNAPGATE_TOKEN", "sg_x")],
                "https://lab.example Bearer sg_x".to_owned(),
            ),
            (
                "another user",
                none(),
                &[("SNAPGATE_USER", "bob"), ("SNAPGATE_PASSWORD", "x")],
                format!("https://lab.example {bob}"),
            ),
        ];
        for (name, arguments, variables, expected) in rows {
            assert_eq!(find(&arguments, variables), Ok(expected), "{name}");
        }
    }

    #[test]
    fn credentials_are_not_mixed() {
        let user = ConnectionArguments {
            user: Some("bob".to_owned()),
            ..ConnectionArguments::default()
        };
        let error = find(&user, &[]).unwrap_err();
        assert!(
            error.contains("the password of bob is missing"),
            "not that of ann: {error}"
        );
        let other = ConnectionArguments {
            url: Some("https://other.example".to_owned()),
            profile: Some("lab".to_owned()),
            ..ConnectionArguments::default()
        };
        let error = find(&other, &[]).unwrap_err();
        assert!(error.contains("are sent nowhere else"), "{error}");
        let plain = ConnectionArguments {
            url: Some("http://lab.example".to_owned()),
            ..ConnectionArguments::default()
        };
        let error = find(&plain, &[]).unwrap_err();
        assert!(error.contains("cleartext"), "{error}");
    }
}
