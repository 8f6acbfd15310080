//! `snapgate demo`: makes or opens again a folder with two small VMs, and serves it.

use std::net::Ipv4Addr;
use std::net::SocketAddr;
use std::path::Path;
use std::path::PathBuf;
use std::sync::Arc;

use crate::cli::CliError;
use crate::cli::hash_password;
use crate::cli::output::Output;
use crate::cli::serve;
use crate::cli::serve::other;
use crate::config;
use crate::config::FixedAddress;
use crate::config::FixedAddresses;
use crate::demo::Folder;
use crate::demo::PASSWORD;
use crate::listener::Inherited;
use crate::model::Secret;
use crate::runtime::SystemClock;

/// The folder unless another one is given.
const FOLDER: &str = "snapgate-demo";

/// How to get to the page, where it is served: folders of older versions have a configuration without it.
const PAGE: &str =
    "\n# In a browser open http://HOST/ui/ and sign in as demo with the password demo.\n";

/// What can be chosen about the demo.
#[derive(Clone, Debug)]
pub(crate) struct Options {
    /// Where its files are kept.
    pub(crate) dir: Option<PathBuf>,
    /// The API port.
    pub(crate) listen: Option<SocketAddr>,
    /// The admin port.
    pub(crate) admin: Option<SocketAddr>,
    /// Whether to make everything anew.
    pub(crate) reset: bool,
}

/// Makes whatever is missing in the folder and serves it.
pub(super) fn run(options: Options, output: &mut Output<'_>) -> Result<(), CliError> {
    let inherited = Inherited::from_service_manager().map_err(other)?;
    let fixed = addresses(&options, &inherited);
    let dir = options.dir.unwrap_or_else(|| PathBuf::from(FOLDER));
    let folder = Folder::at(dir.clone());
    if options.reset {
        folder.reset().map_err(other)?;
    }
    let made = make(&folder)?;
    let file = folder.config();
    let load: serve::ConfigLoader =
        Arc::new(move || config::load_at(&file, &config::environment, &fixed));
    let what = if options.reset {
        "reset"
    } else if made {
        "made"
    } else {
        "reopened"
    };
    let restore = restore_line(&folder)?;
    let settings = load()?;
    let page = if settings.gate.page { PAGE } else { "" };
    let advice = format!(
        "demo folder {} {what}\n{page}{restore}{}",
        dir.display(),
        requests(&dir)
    );
    serve::warn(&settings, output)?;
    let trial = vec!["version".into()];
    serve::serve(settings, inherited, &load, trial, &advice, output)
}

/// The addresses of inherited sockets, else those of the command line, else the demo's own; the file has none.
fn addresses(options: &Options, inherited: &Inherited) -> FixedAddresses {
    let held = serve::addresses_of(inherited);
    let chosen = |address: Option<SocketAddr>, port, option| {
        let local = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        Some(FixedAddress {
            address: address.unwrap_or(local),
            origin: address.map_or("the address of the demo", |_given| option),
        })
    };
    let (listen, admin) = (
        "the address given by --listen",
        "the address given by --admin",
    );
    FixedAddresses {
        api: held.api.or_else(|| chosen(options.listen, 8080, listen)),
        admin: held.admin.or_else(|| chosen(options.admin, 8970, admin)),
    }
}

fn make(folder: &Folder) -> Result<bool, CliError> {
    let hash = hash_password::hash(&Secret::new(PASSWORD.to_owned()), false);
    let hash = hash.map_err(CliError::Other)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()?;
    let prepared = runtime.block_on(folder.prepare(&hash, &SystemClock::shared()));
    prepared.map_err(other)
}

/// A line that restores a VM with the client of this program, in every folder.
fn restore_line(folder: &Folder) -> Result<String, CliError> {
    let password = folder.password_file().map_err(other)?;
    // A program that was just built is seldom on the search path.
    let program = std::env::current_exe()?;
    let program = if is_on_search_path(&program) {
        "snapgate".to_owned()
    } else {
        quoted(&program)
    };
    let password = quoted(&password);
    Ok(format!(
        "\n# Restore the VM web01 from its latest backup: shows what will be done, asks, and waits for the end\n\
         {program} backup restore web01 @latest --wait --url http://HOST --user demo --password-file {password}\n"
    ))
}

/// Whether `snapgate` in a shell is this program.
fn is_on_search_path(program: &Path) -> bool {
    let path = config::environment("PATH").unwrap_or_default();
    let mut found = std::env::split_paths(&path).map(|folder| folder.join("snapgate"));
    let first = found.find(|candidate| candidate.is_file());
    first.is_some_and(|found| found.canonicalize().is_ok_and(|found| found == program))
}

/// The path as a word of a shell.
fn quoted(path: &Path) -> String {
    let text = path.display().to_string();
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"/._-".contains(&byte);
    if text.bytes().all(is_plain) {
        text
    } else {
        format!("'{}'", text.replace('\'', "'\\''"))
    }
}

/// The requests of the specification's page, and some more, as command lines. `HOST` stands for where the API is.
fn requests(dir: &Path) -> String {
    let image = dir.join("vms/33333/disk.img");
    let image = image.display();
    let reset = if dir == Path::new(FOLDER) {
        "snapgate demo --reset".to_owned()
    } else {
        format!("snapgate demo --reset --dir {}", dir.display())
    };
    let curl = "curl -si -u demo:demo -H 'X-Cloud-Client-Specification-Version: 0.1'";
    let json = "-H 'Content-Type: application/json'";
    format!(
        r#"
# There are two VMs, named as in the examples of the specification: 33333 (five digits), and its copy 333333 (six digits).
# Each has the backup 456. Lines that change something say what they answer the second time.

# Get Backup
{curl} -H 'Accept: application/vnd.com.sun.cloud.Backup+json' http://HOST/vms/33333/backups/456

# Update Backup Properties
{curl} -X PUT {json} -d '{{"tags": ["foo", "bar"]}}' http://HOST/vms/33333/backups/456

# Restore VM From Backup; before and after it look at the disk: head -c 64 {image}
{curl} {json} -H 'Prefer: wait=10' -d '{{"note": "Restore to known state"}}' http://HOST/vms/33333/backups/456/restore

# Delete Backup, of the copy 333333, so that 33333 keeps its own; the second time 404, because the backup is gone
{curl} -X DELETE http://HOST/vms/333333/backups/456

# Create a backup; the second time 409, because the name is taken: choose another name
{curl} {json} -d '{{"name": "before-upgrade"}}' 'http://HOST/back_up?vm=33333'

# List backups, list your operations
{curl} http://HOST/vms/33333/backups
{curl} http://HOST/statuses

# Put the VMs, the backups and snapgate.toml back as they were at first: stop the gateway (Ctrl-C), then
{reset}

"#
    )
}
