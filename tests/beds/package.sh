#!/usr/bin/env bash
# Installs the Debian package in a clean Debian 12 under a real systemd, uses it, upgrades it under load, and purges it.
#   package.sh install          installs what this script needs on the machine
#   package.sh run BINARY       BINARY is the snapgate to package; prints one line per check, fails at the first that is wrong;
#                               ends with status 77 where no systemd can be booted
# The root is made by debootstrap from the machine's own package source, kept in target/, and booted without a network.
set -euo pipefail
cd "$(dirname "$0")/../.."
root=target/package/root
leader=""
packages=systemd-sysv,curl,logrotate,python3

unable() { printf 'not run: %s\n' "$*" >&2; exit 77; }
note() { printf 'ok: %s\n' "$*"; }
fail() { printf "FAILED: %s\n" "$*" >&2; [ -z "$leader" ] || inside journalctl -u snapgate --no-pager -n 30 >&2; exit 1; }

install_tools() {
  apt-get install -y -qq --no-install-recommends debootstrap procps systemd-container >/dev/null
  command -v cargo-deb >/dev/null || cargo install --quiet --locked cargo-deb
}

# The archive that this machine installs from.
mirror() {
  apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' | grep -v security | head -1
}

# package.sh deb VERSION BINARY: a package of that version.
build_deb() {
  mkdir -p target/release target/package
  # cargo-deb takes the program from there. Debug information would only cost time here.
  strip -o target/release/snapgate "$2"
  cargo deb --quiet --no-build --no-strip --fast --deb-version "$1" --output "target/package/snapgate_$1.deb" >/dev/null
}

make_root() {
  if [ ! -e "$root.complete" ]; then
    rm -rf "$root"
    mkdir -p "$root"
    debootstrap --variant=minbase --include="$packages" bookworm "$root" "$(mirror)" >target/package/debootstrap.log \
      || unable "debootstrap cannot make a Debian: see target/package/debootstrap.log"
    touch "$root.complete"
  fi
}


inside() { nsenter --target "$leader" --mount --uts --ipc --net --pid --root --wd env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root "$@"; }

boot() {
  # A throw-away layer over the root: the next run starts from a clean Debian again.
  systemd-nspawn --quiet --register=no --keep-unit --private-network --volatile=overlay --console=pipe \
    --tmpfs=/srv:mode=755 --bind-ro="$PWD/target/package:/packages" --directory="$root" --boot >target/package/boot.log 2>&1 </dev/null &
  nspawn=$!
  trap 'kill "$nspawn" 2>/dev/null || true; wait "$nspawn" 2>/dev/null || true' EXIT
  for _ in $(seq 300); do
    leader=$(pgrep --parent "$nspawn" | head -1 || true)
    if [ -n "$leader" ] && inside systemctl is-system-running 2>/dev/null | grep -qE 'running|degraded'; then
      note "a real systemd runs"
      return
    fi
    sleep 0.2
  done
  unable "no systemd starts in a container here: see target/package/boot.log"
}

wait_ready() {
  for _ in $(seq 100); do
    if [ "$(inside curl -s -o /dev/null -w '%{http_code}' http://127.0.0.1:8970/readyz || true)" = 200 ]; then return; fi
    sleep 0.2
  done
  inside journalctl -u snapgate --no-pager | tail -20 >&2
  fail "the gateway is not ready"
}

# expect NAME STATUS CURL-ARGUMENTS...
expect() {
  local name=$1 status=$2 got
  shift 2
  got=$(inside curl -s -o /tmp/body -w '%{http_code}' -u demo:demo -H 'X-Cloud-Client-Specification-Version: 0.1' "$@")
  [ "$got" = "$status" ] || { inside cat /tmp/body >&2; fail "$name: $got instead of $status"; }
  note "$name: $status"
}

configure() {
  inside sh -euc '
    mkdir -p /srv/vms/33333 /srv/backups
    head -c 1048576 /dev/urandom >/srv/vms/33333/disk.img
    chown -R 64055:64055 /srv/vms
    printf "demo\n" | snapgate hash-password >/etc/snapgate/demo.hash
    chown snapgate: /etc/snapgate/demo.hash; chmod 600 /etc/snapgate/demo.hash
    cat >>/etc/snapgate/snapgate.toml <<END

[[user]]
name = "demo"
password_hash = "file:/etc/snapgate/demo.hash"

[[grant]]
to = ["user:demo"]
actions = ["read", "create", "update", "protect", "delete", "restore", "observe"]
vms = ["*"]
backups = ["*"]

[[backend]]
name = "images"
kind = "files"
vms = ["*"]
[backend.files]
root = "/srv/vms"
backups = "/srv/backups"
END
    chown snapgate: /srv/backups
    mkdir -p /etc/systemd/system/snapgate.service.d
    cp /usr/share/doc/snapgate/systemd/files.conf /etc/systemd/system/snapgate.service.d/
    systemctl stop snapgate
    systemctl daemon-reload
    setpriv --reuid=snapgate --regid=snapgate --init-groups --inh-caps=+chown,+fowner,+dac_override \
      --ambient-caps=+chown,+fowner,+dac_override snapgate init --config /etc/snapgate/snapgate.toml
    systemctl start snapgate'
}

exposure_below() {
  local score
  score=$(inside systemd-analyze security --no-pager snapgate.service | sed -n 's/.*exposure level for [^:]*: \([0-9.]*\).*/\1/p')
  awk -v score="$score" -v most="$1" 'BEGIN { exit !(score != "" && score <= most) }' || fail "$2: exposure $score is above $1"
  note "$2: exposure $score"
}

run() {
  local old=0.0.9-1 new=0.1.0-1 api=http://127.0.0.1:8080
  make_root
  build_deb "$old" "$1"
  build_deb "$new" "$1"
  boot
  inside find / -xdev -not -path '/proc/*' -not -path '/sys/*' -not -path '/run/*' -not -path '/tmp/*' -not -path '/var/log/*' \
    -not -path '/var/lib/dpkg/*' -not -path '/var/lib/systemd/*' -not -path '/var/cache/*' -not -path '/dev/*' | sort >target/package/before
  inside dpkg --install "/packages/snapgate_$old.deb" >/dev/null
  wait_ready
  note "installed, enabled and started"
  exposure_below 2.0 "the unit"
  configure
  wait_ready
  exposure_below 2.0 "with the drop-in for files"
  expect "create" 202 -H 'Content-Type: application/json' -H 'Prefer: wait=20' -d '{"name": "first"}' "$api/back_up?vm=33333"
  inside grep -q '"state":"SUCCESS"' /tmp/body || { inside cat /tmp/body >&2; fail "the backup was not made"; }
  local backup
  backup=$(inside sed 's/.*"target_uri":"\([^"]*\)".*/\1/' /tmp/body)
  expect "get" 200 "$api$backup"
  expect "update" 202 -X PUT -H 'Content-Type: application/json' -d '{"tags": ["package"]}' "$api$backup"
  local before after
  before=$(inside sha256sum /srv/vms/33333/disk.img)
  inside sh -c 'printf changed | dd of=/srv/vms/33333/disk.img conv=notrunc status=none'
  expect "restore" 202 -H 'Content-Type: application/json' -H 'Prefer: wait=20' -d '{"note": "package"}' "$api$backup/restore"
  inside grep -q '"state":"SUCCESS"' /tmp/body || { inside cat /tmp/body >&2; fail "the VM was not restored"; }
  after=$(inside sha256sum /srv/vms/33333/disk.img)
  [ "$before" = "$after" ] || fail "the restored disk differs"
  [ "$(inside stat -c %u:%g /srv/vms/33333/disk.img)" = 64055:64055 ] || fail "the restored disk has another owner"
  note "the restored disk is the same, and has its owner"

  upgrade "$new" "$api$backup"

  expect "delete" 202 -X DELETE -H 'Prefer: wait=20' "$api$backup"
  inside dpkg --purge snapgate >/dev/null 2>&1
  inside rm -rf /srv/vms /srv/backups /tmp/body /tmp/load.py /etc/systemd/system/snapgate.service.d
  inside find / -xdev -not -path '/proc/*' -not -path '/sys/*' -not -path '/run/*' -not -path '/tmp/*' -not -path '/var/log/*' \
    -not -path '/var/lib/dpkg/*' -not -path '/var/lib/systemd/*' -not -path '/var/cache/*' -not -path '/dev/*' | sort >target/package/after
  local left
  left=$(comm -13 target/package/before target/package/after | grep -vE '^/etc/(passwd|group|shadow|gshadow|subuid|subgid)-$' || true)
  [ -z "$left" ] || fail "purging leaves: $left"
  [ ! -e "$(inside sh -c 'ls -d /var/log/snapgate /var/lib/snapgate /etc/snapgate 2>/dev/null | head -1')" ] || fail "purging leaves folders"
  ! inside getent passwd snapgate >/dev/null || fail "purging leaves the user"
  note "purging leaves no file and no user"
}

upgrade() {
  cat >target/package/load.py <<'END'
import http.client, sys, time, base64
url, seconds = sys.argv[1], float(sys.argv[2])
path = "/" + url.split("/", 3)[3]
headers = {"Authorization": "Basic " + base64.b64encode(b"demo:demo").decode(), "X-Cloud-Client-Specification-Version": "0.1"}
end, done, failed, connection = time.time() + seconds, 0, [], None
while time.time() < end:
    try:
        connection = connection or http.client.HTTPConnection("127.0.0.1", 8080, timeout=10)
        connection.request("GET", path, headers=headers)
        answer = connection.getresponse()
        answer.read()
        done += 1
        if answer.status != 200:
            failed.append(answer.status)
        if answer.getheader("Connection", "").lower() == "close":
            connection.close(); connection = None
    except Exception as error:
        failed.append(repr(error)); connection = None
print(done, len(failed), failed[:3])
END
  inside systemctl show -p MainPID --value snapgate >target/package/pid-before
  inside python3 /packages/load.py "$2" 12 >target/package/load.out &
  local load=$!
  sleep 2
  inside dpkg --install "/packages/snapgate_$1.deb" >/dev/null
  wait "$load"
  wait_ready
  inside systemctl show -p MainPID --value snapgate >target/package/pid-after
  ! cmp -s target/package/pid-before target/package/pid-after || fail "the upgrade did not restart the gateway"
  read -r done failed rest <target/package/load.out
  [ "$done" -gt 100 ] || fail "the load made $done requests only"
  [ "$failed" = 0 ] || fail "$failed of $done requests failed during the upgrade: $rest"
  note "an upgrade under load: $done requests, none failed"
}

case "${1:-}" in
  install) install_tools ;;
  run) run "$2" ;;
  *) sed -n '2,5p' "$0"; exit 64 ;;
esac
