//! What tests need beyond this package: programs and rights. A test whose requirement is missing ends as ignored, with the reason.

use std::env;
use std::path::Path;

use crate::runner::skip;

/// Programs that tests run, and the Debian package or the file that brings each.
const PROGRAMS: &[(&str, &str)] = &[
    ("bash", "Debian package bash"),
    ("chromium", "Debian package chromium"),
    ("curl", "Debian package curl"),
    ("etcd", "tests/beds/etcd.sh install"),
    ("etcdctl", "tests/beds/etcd.sh install"),
    ("fish", "Debian package fish"),
    ("h2load", "Debian package nghttp2-client"),
    ("haproxy", "Debian package haproxy"),
    ("ip", "Debian package iproute2"),
    ("java", "Debian package default-jre-headless"),
    ("libvirtd", "tests/beds/libvirt.sh install"),
    ("nginx", "Debian package nginx-light"),
    ("node", "Debian package nodejs"),
    ("openssl", "Debian package openssl"),
    ("prometheus", "Debian package prometheus"),
    ("promtool", "Debian package prometheus"),
    ("python3", "Debian package python3"),
    ("qemu-img", "tests/beds/qemu.sh install"),
    ("qemu-io", "tests/beds/qemu.sh install"),
    ("qemu-nbd", "tests/beds/qemu.sh install"),
    ("qemu-system-x86_64", "tests/beds/qemu.sh install"),
    ("script", "Debian package bsdutils"),
    ("virsh", "tests/beds/libvirt.sh install"),
    ("zsh", "Debian package zsh"),
];

/// Skips the test unless all of these programs of [`PROGRAMS`] are installed.
pub(crate) fn require_programs(programs: &[&str]) {
    for program in programs {
        if let Err(reason) = find_program(program) {
            skip(&reason);
        }
    }
}

/// Nothing when a program is installed.
///
/// # Errors
/// Otherwise the reason for a skipped test.
pub(crate) fn find_program(program: &str) -> Result<(), String> {
    let listed = PROGRAMS.iter().find(|(name, _)| *name == program);
    let (_, source) = listed.unwrap_or_else(|| panic!("{program} is not listed in PROGRAMS"));
    if is_on_path(program) {
        return Ok(());
    }
    Err(format!("{program} is not installed ({source})"))
}

/// Skips the test unless it runs as root, which `purpose` needs.
pub(crate) fn require_root(purpose: &str) {
    if !rustix::process::geteuid().is_root() {
        skip(&format!("not root: {purpose}"));
    }
}

fn is_on_path(program: &str) -> bool {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path).any(|folder| is_executable(&folder.join(program)))
}

fn is_executable(file: &Path) -> bool {
    rustix::fs::access(file, rustix::fs::Access::EXEC_OK).is_ok() && file.is_file()
}

#[apply(test)]
fn programs_are_found_by_the_search_path_alone() {
    assert!(is_on_path("sh"), "every system has a shell");
    assert!(!is_on_path("no-such-program"), "absent");
    assert!(!is_executable(Path::new("Cargo.toml")), "not a program");
}
