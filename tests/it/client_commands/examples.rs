//! The examples of `docs/examples/` that restore and wait, run as they stand against a demo.

use std::path::Path;
use std::path::PathBuf;
use std::process::Command;

use crate::client_commands::Ended;
use crate::harness::Process;
use crate::requirements::require_programs;
use crate::runner::skip;

const EXAMPLES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/examples");
const ANSIBLE: &str = concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/target/ansible/bin/ansible-playbook"
);

/// A demo, and the folder that it is in.
struct Demo {
    home: tempfile::TempDir,
    gateway: Process,
}

impl Demo {
    fn start() -> Self {
        let home = tempfile::tempdir().unwrap();
        let folder = home.path().join("demo");
        let ports = ["--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0"];
        let gateway =
            Process::start(&[&["demo", "--dir", folder.to_str().unwrap()], &ports[..]].concat());
        Self { home, gateway }
    }

    fn url(&self) -> String {
        format!("http://{}", self.gateway.api)
    }

    fn password_file(&self) -> PathBuf {
        self.home.path().join("demo/client-password")
    }

    /// The first line of the disk of the VM 33333.
    fn disk(&self) -> String {
        let image = self.home.path().join("demo/vms/33333/disk.img");
        let bytes = std::fs::read(image).unwrap();
        String::from_utf8_lossy(&bytes[..64]).into_owned()
    }

    fn run(&self, command: &mut Command) -> Ended {
        let output = command
            .env("SNAPGATE_URL", self.url())
            .env("SNAPGATE_USER", "demo")
            .env("SNAPGATE_PASSWORD_FILE", self.password_file())
            .current_dir(self.home.path())
            .output()
            .unwrap();
        Ended::from_output(output)
    }

    /// Runs an example that restores the VM, and checks that it is.
    fn restore_by(&self, command: &mut Command) {
        assert!(self.disk().contains("changed after"), "{}", self.disk());
        let ended = self.run(command);
        assert_eq!(ended.status, 0, "{ended:?}");
        assert!(self.disk().contains("as it was backed up"), "{ended:?}");
    }
}

fn example(name: &str) -> PathBuf {
    Path::new(EXAMPLES).join(name)
}

#[apply(test)]
fn the_shell_example_restores_and_waits() {
    require_programs(&["bash", "curl"]);
    let demo = Demo::start();
    let mut command = Command::new("bash");
    demo.restore_by(
        command
            .arg(example("restore_and_wait.sh"))
            .args(["33333", "456"]),
    );
    let mut absent = Command::new("bash");
    let refused = demo.run(
        absent
            .arg(example("restore_and_wait.sh"))
            .args(["33333", "absent"]),
    );
    assert_eq!(refused.status, 2, "{refused:?}");
    assert!(refused.err.contains("NoSuchBackup"), "{refused:?}");
}

#[apply(test)]
fn the_python_example_restores_and_waits() {
    require_programs(&["python3"]);
    let demo = Demo::start();
    let mut command = Command::new("python3");
    demo.restore_by(
        command
            .arg(example("restore_and_wait.py"))
            .args(["33333", "456"]),
    );
    let mut absent = Command::new("python3");
    let refused = demo.run(
        absent
            .arg(example("restore_and_wait.py"))
            .args(["33333", "absent"]),
    );
    assert_eq!(refused.status, 2, "{refused:?}");
    assert!(refused.err.contains("NoSuchBackup"), "{refused:?}");
}

#[apply(test)]
fn the_ansible_tasks_restore_and_wait() {
    if !Path::new(ANSIBLE).exists() {
        skip(&format!("{ANSIBLE} is not installed (.ci/run)"));
    }
    let demo = Demo::start();
    let play = format!(
        "- hosts: localhost\n  connection: local\n  gather_facts: false\n  vars:\n    snapgate_url: \"{}\"\n    \
         snapgate_user: demo\n    snapgate_password: \"{{{{ lookup('file', '{}') }}}}\"\n    snapgate_vm: \"33333\"\n    \
         snapgate_backup: \"456\"\n  tasks:\n    - ansible.builtin.import_tasks: {}\n",
        demo.url(),
        demo.password_file().display(),
        example("restore_and_wait.yml").display()
    );
    let file = demo.home.path().join("play.yml");
    std::fs::write(&file, play).unwrap();
    let mut command = Command::new(ANSIBLE);
    command
        .args(["-i", "localhost,", "-e"])
        .arg(format!(
            "ansible_python_interpreter={}",
            Path::new(ANSIBLE).with_file_name("python").display()
        ))
        .arg(&file)
        .env("HOME", demo.home.path())
        .env("LC_ALL", "C.UTF-8");
    demo.restore_by(&mut command);
}

#[apply(test)]
fn the_line_that_the_demo_prints_restores_the_vm() {
    require_programs(&["script", "bash"]);
    let demo = Demo::start();
    let lines = demo.gateway.printed.iter();
    let line = lines
        .clone()
        .find(|line| line.contains(" backup restore "))
        .unwrap_or_else(|| panic!("{:?}", demo.gateway.printed));
    // As a newcomer would: pasted into a terminal, and answered with yes.
    let mut terminal = Command::new("bash");
    terminal.args([
        "-c",
        "printf 'y\\n' | script --quiet --return --command \"$0\" /dev/null",
        line,
    ]);
    demo.restore_by(&mut terminal);
}
