//! Completion of shells with ids of the gateway, man pages, and the files of a package.

use std::fs;
use std::net::TcpListener;
use std::process::Command;
use std::time::Duration;
use std::time::Instant;

use crate::client_commands::Ended;
use crate::client_commands::Home;
use crate::harness::Gateway;
use crate::harness::Process;
use crate::harness::SIM;
use crate::requirements::require_programs;

/// The shells, and what loads the file that a package installs for each and prints what it offers for the last of some words.
const SHELLS: [(&str, &str); 3] = [
    (
        "bash",
        "source made/snapgate.bash; COMP_WORDS=(\"$@\"); COMP_CWORD=$(($# - 1)); COMP_TYPE=9
         function=$(complete -p snapgate | sed 's/.*-F \\([^ ]*\\).*/\\1/')
         \"$function\" snapgate \"${COMP_WORDS[COMP_CWORD]}\" x; printf '%s\\n' \"${COMPREPLY[@]}\"",
    ),
    (
        // The file is loaded by the first completion, as from a folder of the system.
        "zsh",
        "fpath=(made $fpath); autoload -Uz compinit; compinit -D -u
         _describe() { local all=$3; print -rl -- \"${(@)${(P@)all}%%:*}\"; }
         words=(\"$@\"); CURRENT=$#; _snapgate",
    ),
    (
        "fish",
        "source made/snapgate.fish; complete -C (string escape -- $argv[1..-2] | string join ' ')' '\"$argv[-1]\"",
    ),
];

/// What a shell offers for the last of these words.
fn completed(home: &Home, shell: (&str, &str), words: &[&str]) -> Vec<String> {
    let made = Ended::from_output(home.bare("generate completions made").output().unwrap());
    assert_eq!(made.status, 0, "{made:?}");
    let command = home.command("alice", "");
    let program = std::path::Path::new(command.get_program());
    let path = std::env::var("PATH").unwrap();
    let path = format!("{}:{path}", program.parent().unwrap().display());
    let (name, script) = shell;
    let mut shell = Command::new(name);
    // What stands before the words differs: the name of the script, and files of the user that must not be read.
    let before: &[&str] = match name {
        "bash" => &["--norc", "-c", script, "bash"],
        "zsh" => &["-f", "-c", script, "zsh"],
        _ => &["--no-config", "-c", script],
    };
    shell.args(before).args(words).current_dir(home.path());
    for (name, value) in command.get_envs() {
        shell.env(name, value.unwrap_or_default());
    }
    let output = shell.env("PATH", path).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{name}: {text}{errors}");
    // fish prints a description behind each word.
    let words = text.lines().filter_map(|line| line.split('\t').next());
    words.map(|word| word.trim().to_owned()).collect()
}

#[apply(test)]
fn shells_complete_commands_vms_and_backups() {
    require_programs(&["bash", "zsh", "fish"]);
    let home_folder = tempfile::tempdir().unwrap();
    let folder = home_folder.path().join("demo");
    let ports = ["--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0"];
    let gateway =
        Process::start(&[&["demo", "--dir", folder.to_str().unwrap()], &ports[..]].concat());
    let home = Home::new(gateway.api);
    let url = format!("http://{}", gateway.api);
    let password = folder.join("client-password").display().to_string();
    let options = [
        "--url",
        &url,
        "--user",
        "demo",
        "--password-file",
        &password,
    ];
    for shell in SHELLS {
        let name = shell.0;
        let with = |noun: &str, words: &[&str]| {
            let all = ["snapgate", noun].into_iter().chain(options);
            let all: Vec<&str> = all.chain(words.iter().copied()).collect();
            completed(&home, shell, &all)
        };
        let commands = with("backup", &["re"]);
        assert!(
            commands.contains(&"restore".to_owned()),
            "{name}: commands: {commands:?}"
        );
        let vms = with("backup", &["restore", "33"]);
        assert_eq!(vms, ["33333", "333333"], "{name}: VMs by id");
        let vms = with("vm", &["show", "web01-"]);
        assert_eq!(vms, ["web01-copy"], "{name}: VMs by name");
        let backups = with("backup", &["restore", "web01", ""]);
        for expected in ["456", "@latest"] {
            assert!(
                backups.contains(&expected.to_owned()),
                "{name}: backups: {backups:?}"
            );
        }
    }
}

#[apply(test)]
fn a_gateway_that_does_not_answer_delays_a_completion_by_a_third_of_a_second() {
    require_programs(&["bash"]);
    // Connections are made, and nothing is ever answered.
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let home = Home::new(silent.local_addr().unwrap());
    let mut command = home.command("alice", "-- snapgate vm show x");
    command
        .env("COMPLETE", "bash")
        .env("_CLAP_COMPLETE_INDEX", "3")
        .env("_CLAP_IFS", "\n");
    let begun = Instant::now();
    let ended = Ended::from_output(command.output().unwrap());
    let took = begun.elapsed();
    assert_eq!(ended.status, 0, "{ended:?}");
    assert!(took >= Duration::from_millis(250), "it was asked: {took:?}");
    // A busy machine starts programs slowly; without the limit it would be a minute.
    assert!(took < Duration::from_secs(5), "{took:?}: {ended:?}");
}

#[apply(test)]
fn every_command_has_a_man_page_and_every_shell_its_file() {
    let gateway = Gateway::start(SIM);
    let home = Home::new(gateway.api);
    for words in ["generate man man", "generate completions completions"] {
        let made = Ended::from_output(home.bare(words).output().unwrap());
        assert_eq!(made.status, 0, "{words}: {made:?}");
    }
    let page = |name: &str| {
        let path = home.path().join("man").join(name);
        fs::read_to_string(&path).unwrap_or_else(|error| panic!("{name}: {error}"))
    };
    assert!(page("snapgate.1").contains(".TH snapgate 1"), "the program");
    let restore = page("snapgate-backup-restore.1");
    assert!(restore.contains("Restore a VM from a backup"), "{restore}");
    assert!(restore.contains("wait"), "{restore}");
    for (name, mark) in [
        ("snapgate.bash", "complete"),
        ("_snapgate", "#compdef snapgate"),
        ("snapgate.fish", "complete"),
    ] {
        let text = fs::read_to_string(home.path().join("completions").join(name)).unwrap();
        assert!(text.contains(mark), "{name}: {text}");
        assert!(text.contains("COMPLETE"), "{name} asks the program: {text}");
    }
}
