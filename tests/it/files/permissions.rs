//! The whole program as a user that is not root, over folders and images that it has too few rights to.

use std::fs;
use std::fs::Permissions;
use std::io::BufRead;
use std::io::BufReader;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::fs::chown;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Child;
use std::process::Stdio;

use tempfile::TempDir;

use crate::client::Client;
use crate::harness::FILES;
use crate::harness::program;
use crate::harness::settings_for_alice;
use crate::requirements::require_root;

/// The user that the gateway runs as.
const OURS: u32 = 12345;
const OTHER: u32 = 12346;

struct RestrictedGateway {
    child: Child,
    client: Client,
    folder: TempDir,
}

impl Drop for RestrictedGateway {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

fn owned(path: &Path, user: u32, mode: u32) {
    chown(path, Some(user), Some(user)).unwrap();
    fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
}

fn start() -> RestrictedGateway {
    let folder = tempfile::tempdir().unwrap();
    for name in ["", "vms", "vms/db", "backups"] {
        let path = folder.path().join(name);
        fs::create_dir_all(&path).unwrap();
        owned(&path, OURS, 0o755);
    }
    let disk = folder.path().join("vms/db/data.img");
    fs::write(&disk, vec![b'o'; 1 << 20]).unwrap();
    owned(&disk, OURS, 0o644);
    let config = settings_for_alice(FILES);
    let path = folder.path().join("snapgate.toml");
    fs::write(&path, config).unwrap();
    owned(&path, OURS, 0o600);
    // Where it was built, another user may not look.
    let copy = folder.path().join("snapgate");
    fs::copy(env!("CARGO_BIN_EXE_snapgate"), &copy).unwrap();
    owned(&copy, OURS, 0o755);
    let mut command = std::process::Command::new(&copy);
    for (name, value) in program().get_envs() {
        match value {
            Some(value) => command.env(name, value),
            None => command.env_remove(name),
        };
    }
    let mut child = command
        .args(["serve", "--config", path.to_str().unwrap()])
        .current_dir(folder.path())
        .uid(OURS)
        .gid(OURS)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let address = lines.find_map(|line| {
        let line = line.unwrap();
        line.strip_prefix("listening on http://")?.parse().ok()
    });
    std::thread::Builder::new()
        .spawn(move || lines.for_each(drop))
        .unwrap();
    let client = Client::new(address.expect("it listens"), "alice", "secret");
    RestrictedGateway {
        child,
        client,
        folder,
    }
}

#[apply(test)]
fn what_the_gateways_user_has_too_few_rights_to_is_named_with_the_remedy_and_not_touched() {
    require_root("runs a program as another user");
    let gateway = start();
    let client = gateway.client.with("Prefer", "wait=50");
    let created = client.post("/back_up?vm=db", "{\"name\": \"one\"}").json();
    assert_eq!(created["status"], 201, "{created}");
    let target = created["target_uri"].as_str().unwrap().to_owned();
    let (vm, disk) = (
        gateway.folder.path().join("vms/db"),
        gateway.folder.path().join("vms/db/data.img"),
    );
    fs::write(&disk, vec![b'n'; 1 << 20]).unwrap();
    // folder: owner and mode; image: owner and mode; what is named, the remedy, whether a create is refused too
    let rows = [
        (
            "sticky",
            (OTHER, 0o1777),
            (OTHER, 0o644),
            "`data.img`",
            "owner",
            false,
        ),
        (
            "of another",
            (OURS, 0o755),
            (OTHER, 0o644),
            "`data.img`",
            "owner",
            false,
        ),
        (
            "unreadable",
            (OURS, 0o755),
            (OTHER, 0o600),
            "`data.img`",
            "Give that user",
            true,
        ),
        (
            "folder not writable",
            (OTHER, 0o755),
            (OURS, 0o644),
            "The VM's directory",
            "Give that user",
            false,
        ),
        (
            "folder not readable",
            (OTHER, 0o700),
            (OURS, 0o644),
            "`db`",
            "Give that user",
            true,
        ),
    ];
    for (name, folder, image, named, remedy, also_create) in rows {
        owned(&disk, image.0, image.1);
        owned(&vm, folder.0, folder.1);
        let mut requests = vec![(format!("{target}/restore"), "".to_owned())];
        if also_create {
            requests.push((
                "/back_up?vm=db".to_owned(),
                "{\"name\": \"two\"}".to_owned(),
            ));
        }
        for (uri, body) in requests {
            let said = client.post(&uri, &body).json().to_string();
            for part in [named, remedy, "othing was changed"] {
                assert!(said.contains(part), "{name}, {uri}: {part}: {said}");
            }
        }
        let contents = fs::read(&disk).unwrap();
        assert!(contents.iter().all(|byte| *byte == b'n'), "{name}");
        let left: Vec<_> = fs::read_dir(&vm)
            .unwrap()
            .map(|entry| entry.unwrap().file_name())
            .collect();
        assert_eq!(left, ["data.img"], "{name}: nothing is left");
    }
    owned(&disk, OURS, 0o644);
    owned(&vm, OURS, 0o755);
    let restored = client.post(&format!("{target}/restore"), "").json();
    assert_eq!(fs::read(&disk).unwrap()[0], b'o', "{restored}");
}
