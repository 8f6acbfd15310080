#!/usr/bin/env bash
# Installs the packages in a clean Debian 12 under a real systemd, uses them in front of real VM managers, upgrades under load, and removes them.
#   package.sh install          installs what this script needs on the machine
#   package.sh run BINARY       BINARY is the snapgate to package; prints one line per check, fails at the first that is wrong;
#                               ends with status 77 where no systemd can be booted
# The root is made by debootstrap from the machine's own package source, kept in target/, and booted without a network.
set -euo pipefail
cd "$(dirname "$0")/../.."
root=target/package/root
leader=""
nspawn=""
packages=systemd-sysv,dbus,curl,logrotate,python3
# Installed by apt, which knows virtual packages.
managers="rpm qemu-system-x86 qemu-utils libvirt-daemon-system libvirt-clients"
api=http://127.0.0.1:8080
# Of each kind, under load.
restarts=${RESTARTS:-20}
# The Incus of tests/beds/lxd.sh, outside of the root, whose folder is in it at the usual place.
incus=$PWD/target/package/incus

unable() { printf 'not run: %s\n' "$*" >&2; exit 77; }
note() { printf 'ok: %s (%ss)\n' "$*" "$SECONDS"; }
fail() { printf "FAILED: %s\n" "$*" >&2; [ -z "$leader" ] || inside journalctl -u snapgate --no-pager -n 30 >&2; exit 1; }

install_tools() {
  apt-get install -y -qq --no-install-recommends binutils debootstrap openssl procps rpm systemd-container >/dev/null
  FLAVOR=incus tests/beds/lxd.sh install
  command -v cargo-deb >/dev/null || cargo install --quiet --locked cargo-deb
}

# The archive that this machine installs from.
mirror() {
  apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' | grep -v security | head -1
}

# Packages of two versions, as config/package/release.sh makes them.
build_packages() { # BINARY VERSION...
  mkdir -p target/release target/package
  # The tools take the program from there. Debug information would only cost time here.
  strip -o target/release/snapgate "$1"
  config/package/release.sh extras "$1"
  shift
  local version
  for version; do
    FAST=1 config/package/release.sh deb "$version"
    FAST=1 config/package/release.sh rpm "$version"
  done
  cp target/dist/*.deb target/dist/*.rpm target/package/
}

make_root() {
  # Made again when the list of packages changes.
  if [ "$(cat "$root.complete" 2>/dev/null)" != "$packages $managers" ]; then
    rm -rf "$root" "$root.complete"
    mkdir -p "$root"
    debootstrap --variant=minbase --include="$packages" bookworm "$root" "$(mirror)" >target/package/debootstrap.log \
      || unable "debootstrap cannot make a Debian: see target/package/debootstrap.log"
    # shellcheck disable=SC2086
    DEBIAN_FRONTEND=noninteractive chroot "$root" apt-get install -y -qq --no-install-recommends $managers >>target/package/debootstrap.log 2>&1 \
      || unable "the VM managers cannot be installed: see target/package/debootstrap.log"
    # Nothing here starts by itself but snapgate. In a container libvirt has no groups of processes to divide.
    chroot "$root" systemctl --quiet disable libvirtd.service libvirtd.socket libvirtd-ro.socket libvirtd-admin.socket libvirt-guests.service virtlogd.socket virtlockd.socket
    printf 'cgroup_controllers = []\nnamespaces = []\nsecurity_driver = "none"\n' >"$root/etc/libvirt/qemu.conf"
    echo "$packages $managers" >"$root.complete"
  fi
}

# Ends what this script started.
end() {
  kill "$nspawn" 2>/dev/null || true
  wait "$nspawn" 2>/dev/null || true
  FLAVOR=incus tests/beds/lxd.sh down "$incus" >/dev/null 2>&1 || true
}

inside() { nsenter --target "$leader" --mount --uts --ipc --net --pid --root --wd env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root "$@"; }

boot() {
  # A throw-away layer over the root: the next run starts from a clean Debian again.
  systemd-nspawn --quiet --register=no --keep-unit --private-network --volatile=overlay --console=pipe \
    --tmpfs=/srv:mode=755 --bind-ro="$incus/var:/var/lib/incus" --bind-ro="$PWD/target/package:/packages" --bind-ro="$PWD/tests/beds:/beds" --directory="$root" --boot >target/package/boot.log 2>&1 </dev/null &
  nspawn=$!
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
    if inside snapgate health --ready >/dev/null 2>&1; then return; fi
    sleep 0.2
  done
  inside journalctl -u snapgate --no-pager | tail -20 >&2
  fail "the gateway is not ready"
}

# wait_backend NAME 0|1: until its health is known to be that.
wait_backend() {
  for _ in $(seq 150); do
    if inside curl -s http://127.0.0.1:8970/metrics | grep -q "^snapgate_backend_up{backend=\"$1\"} $2"; then return; fi
    sleep 0.2
  done
  fail "snapgate_backend_up of $1 does not become $2"
}

# expect NAME STATUS CURL-ARGUMENTS...
expect() {
  local name=$1 status=$2 got
  shift 2
  got=$(inside curl -s --insecure -o /tmp/body -w '%{http_code}' -u demo:demo -H 'X-Cloud-Client-Specification-Version: 0.1' "$@")
  [ "$got" = "$status" ] || { inside cat /tmp/body >&2; fail "$name: $got instead of $status"; }
  note "$name: $status"
}

# expect_done NAME CURL-ARGUMENTS...: a change that is waited for and succeeds.
expect_done() {
  local name=$1
  shift
  expect "$name" 202 -H 'Prefer: wait=50' "$@"
  inside grep -q '"state":"SUCCESS"' /tmp/body || { inside cat /tmp/body >&2; fail "$name: no success"; }
}

json=(-H 'Content-Type: application/json')
create() { expect_done "$1: create" "${json[@]}" -d '{"name": "first"}' "$api/back_up?vm=$2"; backup=$(inside sed 's/.*"target_uri":"\([^"]*\)".*/\1/' /tmp/body); }
get() { expect "$1: get" 200 "$api$backup"; }
update() { expect_done "$1: update" -X PUT "${json[@]}" -d '{"tags": ["package"]}' "$api$backup"; }
restore() { expect_done "$1: restore" "${json[@]}" -d '{"note": "package"}' "$api$backup/restore"; }
delete() { expect_done "$1: delete" -X DELETE "$api$backup"; }

exposure_below() {
  local score
  score=$(inside systemd-analyze security --no-pager snapgate.service | sed -n 's/.*exposure level for [^:]*: \([0-9.]*\).*/\1/p')
  awk -v score="$score" -v most="$1" 'BEGIN { exit !(score != "" && score <= most) }' || fail "$2: exposure $score is above $1"
  note "$2: exposure $score"
}

# use_backends DROP-IN...: the configuration of the package with a user and the backends on standard input, and only these drop-ins.
use_backends() {
  {
    grep -v '^#' "$root.toml"
    printf '[[user]]\nname = "demo"\npassword_hash = "file:/etc/snapgate/demo.hash"\n'
    printf '[[grant]]\nto = ["user:demo"]\nactions = ["read", "create", "update", "protect", "delete", "restore", "observe"]\nvms = ["*"]\nbackups = ["*"]\n'
    cat
  } | inside tee /etc/snapgate/snapgate.toml >/dev/null
  inside sh -euc '
    [ -e /etc/snapgate/demo.hash ] || printf "demo\n" | snapgate hash-password >/etc/snapgate/demo.hash
    chown snapgate: /etc/snapgate/demo.hash; chmod 600 /etc/snapgate/demo.hash
    rm -rf /etc/systemd/system/snapgate.service.d
    mkdir -p /etc/systemd/system/snapgate.service.d
    for dropin; do cp "/usr/share/doc/snapgate/systemd/$dropin.conf" /etc/systemd/system/snapgate.service.d/; done
    systemctl daemon-reload' use_backends "$@"
}

restart() {
  inside systemctl restart snapgate || fail "the unit does not start"
  wait_ready
}

# Marks new folders, as the account of the unit with the privileges of the drop-in.
init_folders() {
  inside setpriv --reuid=snapgate --regid=snapgate --init-groups --inh-caps=+chown,+fowner,+dac_override \
    --ambient-caps=+chown,+fowner,+dac_override snapgate init --config /etc/snapgate/snapgate.toml >/dev/null
}

files_backends() {
  printf '[[backend]]\nname = "images"\nkind = "files"\nvms = ["3*"]\nhealth_interval = "1s"\n[backend.files]\nroot = "/srv/vms"\nbackups = "/srv/backups"\n'
  printf '[[backend]]\nname = "late"\nkind = "files"\nvms = ["5*"]\nhealth_interval = "1s"\n[backend.files]\nroot = "/srv/late/vms"\nbackups = "/srv/late/backups"\n'
}

check_files() {
  inside sh -euc '
    mkdir -p /srv/vms/33333 /srv/backups /srv/late /mnt/share/vms/55555 /mnt/share/backups
    for disk in /srv/vms/33333/disk.img /mnt/share/vms/55555/disk.img; do head -c 1048576 /dev/urandom >$disk; done
    chown -R 64055:64055 /srv/vms /mnt/share/vms
    mount --bind /mnt/share /srv/late'
  files_backends | use_backends files
  inside sed -i 's| -/srv/backups| -/srv/backups -/srv/late -/srv/never-made|' /etc/systemd/system/snapgate.service.d/files.conf
  inside sh -c 'chown snapgate: /srv/backups /mnt/share/backups; systemctl daemon-reload'
  inside systemctl stop snapgate
  init_folders
  inside umount /srv/late
  restart
  exposure_below 2.0 "with the drop-in for files"
  wait_backend late 0
  wait_backend images 1
  expect "late mount: a backend whose file system is not mounted" 503 "$api/vms/55555/backups"
  create files 33333
  get files
  update files
  local before after
  before=$(inside sha256sum /srv/vms/33333/disk.img)
  inside sh -c 'printf changed | dd of=/srv/vms/33333/disk.img conv=notrunc status=none'
  restore files
  after=$(inside sha256sum /srv/vms/33333/disk.img)
  [ "$before" = "$after" ] || fail "the restored disk differs"
  [ "$(inside stat -c %u:%g /srv/vms/33333/disk.img)" = 64055:64055 ] || fail "the restored disk has another owner"
  note "files: the restored disk is the same, and has its owner"
  local files_backup=$backup
  inside mount --bind /mnt/share /srv/late
  wait_backend late 1
  create "late mount, without a restart" 55555
  backup=$files_backup
}

# From here on the API port has a certificate, and clients may use HTTP/2.
encrypt() {
  openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=localhost -addext subjectAltName=DNS:localhost,IP:127.0.0.1 \
    -keyout target/package/key.pem -out target/package/chain.pem 2>/dev/null
  inside sh -euc '
    cp /packages/chain.pem /packages/key.pem /etc/snapgate/
    chown snapgate: /etc/snapgate/key.pem; chmod 600 /etc/snapgate/key.pem
    printf "[[certificate]]\nchain = \"/etc/snapgate/chain.pem\"\nkey = \"/etc/snapgate/key.pem\"\n" >>/etc/snapgate/snapgate.toml'
  api=https://127.0.0.1:8080
  restart
}

# under_load NAME COMMAND...: no request fails meanwhile, and another process serves afterwards.
under_load() {
  local name=$1 before after load
  shift
  before=$(inside systemctl show -p MainPID --value snapgate)
  inside rm -f /tmp/enough
  # shellcheck disable=SC2046
  inside python3 /beds/restart_load.py "$backup" /tmp/enough $([ "${api%%:*}" = http ] || echo TLS) >target/package/load.out &
  load=$!
  sleep 1
  "$@"
  wait_ready
  inside touch /tmp/enough
  wait "$load"
  after=$(inside systemctl show -p MainPID --value snapgate)
  local done failed rest
  read -r done failed rest <target/package/load.out
  [ "$done" -gt 100 ] || fail "the load made $done requests only: $rest"
  [ "$failed" = 0 ] || fail "$failed of $done requests failed: $name: $rest"
  case "$name" in
    *SIGUSR2*) [ "$before" = "$after" ] || fail "$name: another process serves" ;;
    *) [ "$before" != "$after" ] || fail "$name: the same process serves" ;;
  esac
  note "$name: $done requests, none failed (${rest% []})"
}

upgrade_debian() { inside dpkg --install "/packages/snapgate_$1_amd64.deb" >/dev/null 2>&1; }

restart_often() {
  for _ in $(seq "$restarts"); do
    restart
  done
}

replace_often() {
  for _ in $(seq "$restarts"); do
    replace_process
  done
}

replace_process() {
  local before
  before=$(inside journalctl -u snapgate --no-pager | grep -c 'gateway started')
  inside systemctl kill --kill-whom=main --signal=USR2 snapgate
  for _ in $(seq 150); do
    if [ "$(inside journalctl -u snapgate --no-pager | grep -c 'gateway started')" -gt "$before" ]; then
      # Before it says that it has started, another signal would end it.
      wait_ready
      return
    fi
    sleep 0.2
  done
  fail "SIGUSR2 starts no new program"
}

# What a package must bring, besides the program.
check_extras() {
  inside sh -c 'zcat /usr/share/man/man1/snapgate.1.gz | grep -q "^\.TH"' || fail "$1: no man page"
  inside test -s /usr/share/bash-completion/completions/snapgate || fail "$1: no completions for bash"
  inside test -s /usr/share/zsh/vendor-completions/_snapgate || inside test -s /usr/share/zsh/site-functions/_snapgate || fail "$1: no completions for zsh"
  inside bash -ec '. /usr/share/bash-completion/completions/snapgate; complete -p snapgate' >/dev/null || fail "$1: bash has no completions"
  [ "$(inside sh -c 'ls /usr/share/man/man1/snapgate*.1.gz | wc -l')" -gt 5 ] || fail "$1: commands have no man pages"
  note "$1: man pages and completions"
}

all_files() {
  inside find / -xdev -not -path '/proc/*' -not -path '/sys/*' -not -path '/run/*' -not -path '/tmp/*' -not -path '/var/log/*' -not -path '/var/lib/rpm/*' \
    -not -path '/var/lib/dpkg/*' -not -path '/var/lib/systemd/*' -not -path '/var/cache/*' -not -path '/dev/*' | sort
}

check_debian() {
  local old=0.0.9-1 new=0.1.0-1
  all_files >target/package/before
  inside dpkg --install "/packages/snapgate_${old}_amd64.deb" >/dev/null 2>&1
  wait_ready
  note "deb: installed, enabled and started"
  inside cat /etc/snapgate/snapgate.toml >"$root.toml"
  inside snapgate check >/dev/null 2>&1 || fail "check without --config does not find the installed file"
  exposure_below 2.0 "the unit"
  check_extras deb
  check_files
  under_load "upgrade under load" upgrade_debian "$new"
  encrypt
  under_load "$restarts restarts under load" restart_often
  under_load "$restarts times SIGUSR2 under load" replace_often
  delete files
  api=http://127.0.0.1:8080
  inside dpkg --purge snapgate >/dev/null 2>&1
  inside umount /srv/late
  inside rm -rf /srv/vms /srv/backups /srv/late /mnt/share /etc/systemd/system/snapgate.service.d
  all_files >target/package/after
  local left
  left=$(comm -13 target/package/before target/package/after | grep -vE '^/etc/(passwd|group|shadow|gshadow|subuid|subgid)-$' || true)
  [ -z "$left" ] || fail "purging leaves: $left"
  [ ! -e "$(inside sh -c 'ls -d /var/log/snapgate /var/lib/snapgate /etc/snapgate 2>/dev/null | head -1')" ] || fail "purging leaves folders"
  ! inside getent passwd snapgate >/dev/null || fail "purging leaves the user"
  note "deb: purging leaves no file and no user"
}

# rpm of Debian: its database is empty, so nothing that the package requires is known to it.
install_rpm() { inside rpm --force-debian --upgrade --nodeps --nosignature "/packages/snapgate-$1.x86_64.rpm"; }

check_rpm() {
  inside rpm --initdb
  local wanted
  wanted=$(rpm --query --package --requires target/package/snapgate-0.1.0-1.x86_64.rpm)
  echo "$wanted" | grep -q 'libc.so.6(GLIBC_' || fail "rpm: it does not require its libraries: $wanted"
  install_rpm 0.0.9-1
  inside systemctl is-enabled snapgate >/dev/null || fail "rpm: not enabled by the preset"
  inside systemctl start snapgate
  wait_ready
  note "rpm: installed and started"
  [ "$(inside stat -c %U:%G:%a /etc/snapgate/snapgate.toml)" = root:snapgate:640 ] || fail "rpm: owner and mode of the configuration"
  check_extras rpm
  local before after
  before=$(inside systemctl show -p MainPID --value snapgate)
  install_rpm 0.1.0-1
  wait_ready
  after=$(inside systemctl show -p MainPID --value snapgate)
  [ "$before" != "$after" ] || fail "rpm: the upgrade did not restart the gateway"
  note "rpm: upgraded"
}

# A secret that systemd hands to the unit alone.
check_credentials() {
  use_backends </dev/null
  inside sh -euc '
    chown root: /etc/snapgate/demo.hash
    sed -i "s|file:/etc/snapgate/demo.hash|file:/run/credentials/snapgate.service/demo|" /etc/snapgate/snapgate.toml
    printf "[Service]\nLoadCredential=demo:/etc/snapgate/demo.hash\n" >/etc/systemd/system/snapgate.service.d/demo.conf
    systemctl daemon-reload'
  restart
  expect "a password hash that systemd hands over" 200 "$api/permissions"
}

erase_rpm() {
  inside rpm --force-debian --erase snapgate
  ! inside test -e /usr/bin/snapgate || fail "rpm: erasing leaves the program"
  [ "$(inside systemctl is-active snapgate || true)" = inactive ] || fail "rpm: erasing leaves the gateway running"
  note "rpm: erased, and stopped"
}

# A counter in the memory of the guest of tests/beds/qemu.sh, as QEMU's monitor shows it: restoring turns it back.
counter_of_qemu() {
  inside python3 -c 'import json, socket
monitor = socket.socket(socket.AF_UNIX)
monitor.connect("/srv/vms/web01-test.qmp")
lines = monitor.makefile("rw")
lines.readline()
def ask(**command):
    lines.write(json.dumps(command)); lines.flush()
    while True:
        answer = json.loads(lines.readline())
        if "return" in answer: return answer["return"]
ask(execute="qmp_capabilities")
print(int(ask(execute="human-monitor-command", arguments={"command-line": "xp /1wx 0x9000"}).split(": ")[1], 16))'
}
counter_of_libvirt() { inside virsh -q qemu-monitor-command web01 --hmp 'xp /1wx 0x9000' | tr -d '\r' | sed 's/.*: //' | xargs printf '%d\n'; }

# check_running NAME: the four requests on a running VM, whose memory is restored.
check_running() {
  local before after
  for _ in $(seq 100); do [ "$("counter_of_$1")" -gt 0 ] && break; sleep 0.1; done
  create "$1, running VM" web01
  get "$1, running VM"
  update "$1, running VM"
  sleep 0.5
  before=$("counter_of_$1")
  restore "$1, running VM"
  after=$("counter_of_$1")
  [ "$after" -lt "$before" ] || fail "$1: the memory was not restored: $after after $before"
  delete "$1, running VM"
  note "$1, running VM: the memory was restored"
}

check_qemu() {
  inside sh -euc 'mkdir -p /srv/vms; chgrp kvm /srv/vms; chmod 2770 /srv/vms'
  printf '[[backend]]\nname = "vms"\nkind = "qemu"\nvms = ["web*"]\nhealth_interval = "1s"\n[backend.qemu]\nqmp = "/srv/vms/{vm}.qmp"\nimages = ["/srv/vms/{vm}.qcow2", "/srv/vms/{vm}-b.qcow2"]\n' | use_backends qemu
  restart
  note "qemu: the gateway runs before any VM"
  exposure_below 2.0 "with the drop-in for qemu"
  inside setpriv --regid=kvm --clear-groups sh -euc 'umask 007; sh /beds/qemu.sh make /srv/vms; chmod 660 /srv/vms/*.qcow2; sh /beds/qemu.sh start /srv/vms; chmod 660 /srv/vms/*.qmp'
  check_running qemu
  inside sh /beds/qemu.sh stop /srv/vms
  create "qemu, stopped VM" web01
  get "qemu, stopped VM"
  update "qemu, stopped VM"
  restore "qemu, stopped VM"
  delete "qemu, stopped VM"
  inside rm -rf /srv/vms
}

check_libvirt() {
  printf '[[backend]]\nname = "host"\nkind = "libvirt"\nvms = ["*"]\nhealth_interval = "1s"\n[backend.libvirt]\nlibvirt_socket = "/run/libvirt/libvirt-sock"\n' | use_backends libvirt
  inside usermod --append --groups libvirt snapgate
  restart
  wait_backend host 0
  note "libvirt: the gateway runs before libvirtd"
  exposure_below 2.0 "with the drop-in for libvirt"
  inside systemctl start libvirtd
  wait_backend host 1
  note "libvirt: available when libvirtd runs, without a restart"
  inside sh -euc '
    cd /var/lib/libvirt/images
    qemu-img create -q -f qcow2 web01.qcow2 64M
    qemu-io -f qcow2 -c "write -q -s /beds/qemu-guest.bin 0 512" web01.qcow2
    cat >/tmp/web01.xml <<END
<domain type="qemu"><name>web01</name><memory unit="MiB">64</memory><vcpu>1</vcpu>
<os><type arch="x86_64" machine="q35">hvm</type><boot dev="hd"/></os><features><acpi/></features>
<devices><emulator>/usr/bin/qemu-system-x86_64</emulator>
<disk type="file" device="disk"><driver name="qemu" type="qcow2"/><source file="/var/lib/libvirt/images/web01.qcow2"/><target dev="vda" bus="virtio"/></disk>
<controller type="usb" model="none"/><memballoon model="none"/></devices></domain>
END
    virsh -q define /tmp/web01.xml
    virsh -q start web01'
  check_running libvirt
  inside virsh -q destroy web01
  inside systemctl restart libvirtd
  wait_backend host 1
  note "libvirt: available after a restart of libvirtd"
}

check_incus() {
  # The group that Incus gives its socket to on a machine where it is installed as a package.
  inside groupadd --system incus-admin
  chgrp "$(inside getent group incus-admin | cut -d: -f3)" "$incus/var/unix.socket"
  FLAVOR=incus tests/beds/lxd.sh vm "$incus" web01
  printf '[[backend]]\nname = "lab"\nkind = "incus"\nvms = ["web*"]\nhealth_interval = "1s"\n[backend.incus]\nurl = "unix:///var/lib/incus/unix.socket"\nproject = "tenant"\n' | use_backends incus
  restart
  exposure_below 2.0 "with the drop-in for incus"
  wait_backend lab 1
  local marker="$incus/var/storage-pools/default/containers/tenant_web01/rootfs/root/marker"
  create incus web01
  get incus
  update incus
  touch "$marker"
  restore incus
  [ ! -e "$marker" ] || fail "incus: the restore left a later file"
  delete incus
  note "incus: the files of the instance were restored"
}

run() {
  mkdir -p target/package
  make_root
  build_packages "$1" 0.0.9-1 0.1.0-1
  trap end EXIT
  mkdir -p "$incus"
  FLAVOR=incus tests/beds/lxd.sh up "$incus"
  boot
  check_debian
  check_rpm
  check_credentials
  check_qemu
  check_libvirt
  check_incus
  erase_rpm
}

case "${1:-}" in
  install) install_tools ;;
  run) run "$2" ;;
  *) sed -n '2,5p' "$0"; exit 64 ;;
esac
