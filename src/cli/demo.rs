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
use crate::config::Problems;
use crate::config::Settings;
use crate::demo::Folder;
use crate::demo::PASSWORD;
use crate::gate::PublicUrl;
use crate::model::Secret;
use crate::runtime::SystemClock;

/// The folder unless another one is given.
const FOLDER: &str = "snapgate-demo";

/// What can be chosen about the demo.
#[derive(Clone, Debug)]
pub(crate) struct Options {
    /// Where its files are kept.
    pub(crate) dir: Option<PathBuf>,
    /// The API port.
    pub(crate) listen: Option<SocketAddr>,
    /// The admin port.
    pub(crate) admin: Option<SocketAddr>,
}

/// Makes whatever is missing in the folder and serves it.
pub(super) fn run(options: Options, output: &mut Output<'_>) -> Result<(), CliError> {
    let local = |port| SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let dir = options.dir.unwrap_or_else(|| PathBuf::from(FOLDER));
    let listen = options.listen.unwrap_or_else(|| local(8080));
    let admin = options.admin.unwrap_or_else(|| local(9090));
    let folder = Folder::at(dir.clone());
    let made = make(&folder)?;
    let file = folder.config();
    let load: serve::Load = Arc::new(move || {
        let settings = config::load(&file, &config::environment)?;
        Ok::<Settings, Problems>(with_ports(settings, listen, admin))
    });
    let what = if made { "made" } else { "opened again" };
    let advice = format!("demo folder {} {what}\n{}", dir.display(), requests(&dir));
    serve::serve(load()?, &load, &advice, output)
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

fn with_ports(mut settings: Settings, listen: SocketAddr, admin: SocketAddr) -> Settings {
    settings.listener.listen = listen;
    settings.listener.admin = admin;
    if let Some(url) = PublicUrl::new(&format!("http://{listen}")) {
        settings.gate.public_url = url;
    }
    settings
}

/// The requests of the specification's page, and some more, as command lines. `HOST` stands for where the API is.
fn requests(dir: &Path) -> String {
    let image = dir.join("vms/33333/disk.img");
    let image = image.display();
    let curl = "curl -si -u demo:demo -H 'X-Cloud-Client-Specification-Version: 0.1'";
    let json = "-H 'Content-Type: application/json'";
    format!(
        r#"
# Get Backup
{curl} -H 'Accept: application/vnd.com.sun.cloud.Backup+json' http://HOST/vms/33333/backups/456

# Update Backup Properties
{curl} -X PUT {json} -d '{{"tags": ["foo", "bar"]}}' http://HOST/vms/33333/backups/456

# Restore VM From Backup; before and after it look at the disk: head -c 64 {image}
{curl} {json} -H 'Prefer: wait=10' -d '{{"note": "Restore to known state"}}' http://HOST/vms/33333/backups/456/restore

# Delete Backup
{curl} -X DELETE http://HOST/vms/333333/backups/456

# Create a backup, list backups, list your operations
{curl} {json} -d '{{"name": "before-upgrade"}}' 'http://HOST/back_up?vm=33333'
{curl} http://HOST/vms/33333/backups
{curl} http://HOST/statuses

"#
    )
}
