#!/usr/bin/env bash
# Installs the packages that README.md names in a clean Debian 12, and compiles there every library that needs more than Rust.
#   build.sh install      installs what this script needs on the machine
#   build.sh run          prints one line per check, fails at the first that is wrong; status 77 where no root can be made
# The Rust toolchain and the sources of the libraries are those of the machine, and the clean Debian reads them only.
set -euo pipefail
cd "$(dirname "$0")/../.."
root=target/package/build-root
# Build dependencies that run a compiler or a generator of the system.
tools='["bindgen", "cc", "cmake", "pkg-config", "prost-build", "tonic-prost-build"]'

unable() { printf 'not run: %s\n' "$*" >&2; exit 77; }
note() { printf 'ok: %s (%ss)\n' "$*" "$SECONDS"; }
fail() { printf 'FAILED: %s\n' "$*" >&2; exit 1; }

# The packages of the first command in README.md.
named_packages() {
  sed -n 's/^apt-get install -y --no-install-recommends \(.*\) && cargo run .*/\1/p' README.md
}

# The archive that this machine installs from.
mirror() {
  apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' | grep -v security | head -1
}

make_root() { # PACKAGES
  # Made again when the list of packages changes.
  [ "$(cat "$root.complete" 2>/dev/null)" != "$1" ] || return 0
  rm -rf "$root" "$root.complete"
  mkdir -p "$root"
  debootstrap --variant=minbase bookworm "$root" "$(mirror)" >target/package/build-root.log \
    || unable "debootstrap cannot make a Debian: see target/package/build-root.log"
  # shellcheck disable=SC2086
  DEBIAN_FRONTEND=noninteractive chroot "$root" apt-get install -y -qq --no-install-recommends $1 >>target/package/build-root.log 2>&1 \
    || fail "the packages of README.md cannot be installed: see target/package/build-root.log"
  echo "$1" >"$root.complete"
}

# Every library of the gateway that needs one of these tools to be compiled, as name@version.
libraries() {
  cargo metadata --locked --format-version 1 --filter-platform "$(rustc -vV | sed -n 's/^host: //p')" | python3 -c "
import json, sys
found, tools = json.load(sys.stdin), $tools
nodes = {node['id']: node for node in found['resolve']['nodes']}
used, waiting = set(), [found['resolve']['root']]
while waiting:
    one = waiting.pop()
    if one not in used:
        used.add(one)
        # Not what tests alone need.
        waiting += [to['pkg'] for to in nodes[one]['deps'] if any(kind['kind'] != 'dev' for kind in to['dep_kinds'])]
for package in found['packages']:
    needed = {one['name'] for one in package['dependencies'] if one['kind'] == 'build'}
    if package['id'] in used and package['source'] and needed & set(tools):
        print(f\"{package['name']}@{package['version']}\")"
}

run() {
  local packages made
  packages=$(named_packages)
  [ -n "$packages" ] || fail "README.md names no packages to build with"
  made=$(libraries)
  [ -n "$made" ] || fail "no library needs more than Rust: this script looks in the wrong place"
  mkdir -p target/package
  make_root "$packages"
  note "a clean Debian with: $packages"
  cargo fetch --locked --quiet
  # shellcheck disable=SC2046
  unshare --mount --fork bash -euc '
    root=$1 source=$2 toolchain=$3 registry=$4
    shift 4
    bind() { mkdir -p "$root$2"; mount --bind "$1" "$root$2"; mount -o remount,bind,ro "$root$2"; }
    bind "$source" /source
    bind "$toolchain" /rust
    bind "$registry" /cargo
    mkdir -p "$root/made"
    mount -t proc none "$root/proc"
    exec chroot "$root" env -i PATH=/usr/bin:/bin:/rust/bin HOME=/made CARGO_HOME=/cargo CARGO_TARGET_DIR=/made \
      cargo check --manifest-path /source/Cargo.toml --locked --offline --quiet "$@"
  ' bash "$root" "$PWD" "$(rustc --print sysroot)" "${CARGO_HOME:-$HOME/.cargo}" $(printf -- '--package %s ' $made) \
    || fail "with the packages of README.md alone, a library cannot be compiled"
  note "compiled there: $(echo $made)"
}

case "${1:-}" in
  install) apt-get install -y -qq --no-install-recommends debootstrap >/dev/null ;;
  run) run ;;
  *) sed -n '2,5p' "$0"; exit 64 ;;
esac
