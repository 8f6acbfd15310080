#!/usr/bin/env bash
# Builds the container image without a registry and runs what is in it, as its user, with its health check.
#   container.sh install      installs what this script needs on the machine
#   container.sh run BINARY   BINARY is the snapgate in the image; prints one line per check; status 77 where no chroot can be made
# The first stage of config/package/Containerfile needs a base image from a registry: here, its last command makes the files, and
# buildah builds the second stage of the same file on them.
set -euo pipefail
cd "$(dirname "$0")/../.."
made=target/package/container
built=(buildah --storage-driver vfs --root "$PWD/$made/storage" --runroot "$PWD/$made/run")

unable() { printf 'not run: %s\n' "$*" >&2; exit 77; }
note() { printf 'ok: %s\n' "$*"; }
fail() { printf 'FAILED: %s\n' "$*" >&2; [ ! -e "$made/log" ] || cat "$made/log" >&2; exit 1; }

build_image() {
  rm -rf "$made"
  mkdir -p "$made"
  strip -o "$made/snapgate" "$1"
  config/package/release.sh container-root "$made/snapgate" "$made/image"
  {
    sed -n '/^FROM scratch/,$p' config/package/Containerfile | sed 's/--from=build //; s| /image/| image/|'
  } >"$made/Containerfile"
  grep -q '^COPY image/ /$' "$made/Containerfile" || fail "the second stage of the Containerfile has changed"
  "${built[@]}" bud --isolation chroot --format docker --tag snapgate "$made" >"$made/build.log" 2>&1 || { cat "$made/build.log" >&2; fail "the image is not built"; }
  note "the image is built"
}

# expect_field NAME PYTHON-EXPRESSION VALUE: of the image's configuration.
expect_field() {
  local found
  found=$("${built[@]}" inspect --type image snapgate | python3 -c "import json, sys
config = json.loads(json.load(sys.stdin)['Config'])['config']
print($2)")
  [ "$found" = "$3" ] || fail "$1 of the image: $found instead of $3"
  note "$1 of the image: $found"
}

# What the image's entry point and health check do in its files, as its user, on a root that cannot be written.
run_image() {
  local container
  container=$("${built[@]}" from snapgate)
  local root
  root=$("${built[@]}" mount "$container")
  unshare --mount --net --pid --fork --mount-proc bash -euc '
    root=$1 made=$2
    ip link set lo up
    mount --bind "$root" "$root"
    for folder in var/lib/snapgate var/log/snapgate; do mount --bind "$root/$folder" "$root/$folder"; done
    mkdir -p "$root/dev" && mount -t tmpfs none "$root/dev" && mknod -m 666 "$root/dev/null" c 1 3
    mount -o remount,bind,ro "$root"
    as_user() { exec chroot --userspec=65532:65532 "$root" "$@"; }
    ! (as_user /usr/bin/snapgate health) 2>/dev/null || { echo "healthy before it runs"; exit 1; }
    (as_user /usr/bin/snapgate serve) >"$made/log" 2>&1 &
    gateway=$!
    for _ in $(seq 100); do
      if (as_user /usr/bin/snapgate health --ready) >/dev/null 2>&1; then break; fi
      sleep 0.1
    done
    (as_user /usr/bin/snapgate health)
    (as_user /usr/bin/snapgate check)
    kill -TERM "$gateway"
    wait "$gateway"
  ' bash "$root" "$PWD/$made" >"$made/answers" 2>&1 || { cat "$made/answers" >&2; fail "the image does not run"; }
  grep -q '^ok$' "$made/answers" || fail "the health check prints something else"
  note "entry point and health check run as user 65532 on a read-only root, and it stops by SIGTERM"
  ! find "$root" -path "$root/dev" -prune -o -type f -perm /111 -print | grep -vE '/snapgate$|\.so(\.[0-9]+)*$|/ld-' | grep . || fail "other programs are in the image"
  note "no other program is in the image: $(du -sm "$root" | cut -f1) MiB"
}

# Quadlet's own keys, as podman-systemd.unit(5) lists them. Debian 12 has podman 4.3, which has no Quadlet yet.
check_quadlet() {
  python3 - config/package/snapgate.container <<'END' || fail "the Quadlet example has unknown keys"
import configparser, sys
known = {
    "Unit": {"Description", "Wants", "After"},
    "Container": {"Image", "ContainerName", "Volume", "PublishPort", "ReadOnly", "NoNewPrivileges", "DropCapability", "Notify",
                  "HealthCmd", "HealthInterval", "HealthTimeout", "HealthRetries", "PodmanArgs"},
    "Service": {"Restart", "ExecReload", "TimeoutStopSec"},
    "Install": {"WantedBy"},
}
file = configparser.RawConfigParser(strict=False, comment_prefixes=("#",))
file.optionxform = str
assert file.read(sys.argv[1]), "no such file"
wrong = [f"{section}.{key}" for section in file.sections() for key in file[section] if key not in known.get(section, ())]
sys.exit(f"unknown: {wrong}" if wrong or set(file.sections()) != set(known) else 0)
END
  note "the Quadlet example has known sections and keys"
}

run() {
  unshare --mount --net --pid --fork true 2>/dev/null || unable "no namespaces can be made here"
  trap 'umount -R "$made"/storage/vfs 2>/dev/null || true' EXIT
  build_image "$1"
  expect_field "user" "config['User']" 65532:65532
  expect_field "entry point" "' '.join(config['Entrypoint'] + config['Cmd'])" "/usr/bin/snapgate serve"
  expect_field "health check" "' '.join(config['Healthcheck']['Test'])" "CMD /usr/bin/snapgate health"
  expect_field "signal to stop" "config.get('StopSignal')" SIGTERM
  run_image
  check_quadlet
  rm -rf "$made/storage" "$made/run"
}

case "${1:-}" in
  install) apt-get install -y -qq --no-install-recommends buildah iproute2 >/dev/null ;;
  run) run "$2" ;;
  *) sed -n '2,5p' "$0"; exit 64 ;;
esac
