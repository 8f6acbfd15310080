#!/usr/bin/env bash
# A real LXD or Incus for tests: one daemon of its own below a folder, as root, without systemd, network or images from elsewhere.
# FLAVOR=incus in the environment selects Incus; both can be installed and run side by side.
#
#   lxd.sh install        the packages (Debian 12; Incus comes from its backports)
#   lxd.sh up FOLDER      starts it and makes what tests need; does nothing where it is up
#   lxd.sh env FOLDER     prints the line that gives tests its folder
#   lxd.sh start FOLDER   starts a daemon that was stopped or killed
#   lxd.sh stop FOLDER    stops the daemon and leaves everything where it is
#   lxd.sh kill FOLDER    kills the daemon, as a crash does
#   lxd.sh vm FOLDER NAME [MIB]   makes one more VM, with so many MiB in it
#   lxd.sh down FOLDER    removes the VMs, stops the daemon and removes the folder
#
# A copy that LXD makes of the VM NAME in the project `tenant` waits for as long as FOLDER/hold/NAME exists, and says so by
# FOLDER/held/NAME; when LXD is killed meanwhile it is never made. So tests meet snapshots and restores in their middle.
#
# What is there: the projects `default` and `tenant` with one pool `default` of kind `dir`, the image `tiny`, and
# FOLDER/client.crt with FOLDER/client.key, restricted to `tenant`. Nothing listens outside of 127.0.0.1.
set -euo pipefail

command=${1:?which command}
fail() { echo "lxd.sh: $*" >&2; exit 1; }

flavor=${FLAVOR:-lxd}
case $flavor in
lxd) group=lxd; init="lxd init" ;;
incus) group=root; init="incus admin init" ;;
*) fail "FLAVOR is lxd or incus" ;;
esac

# Backports are seen by the one call that needs them: they would change what other packages are installed as.
backports() { # apt-get arguments
  local apt
  apt=$(mktemp -d)
  chmod 755 "$apt"
  cp -r /var/lib/apt/lists "$apt/lists"
  cp -r /etc/apt/sources.list.d "$apt/parts"
  [ ! -e /etc/apt/sources.list ] || cp /etc/apt/sources.list "$apt/parts/main.list"
  printf 'Types: deb\nURIs: %s\nSuites: bookworm-backports\nComponents: main\nSigned-By: /usr/share/keyrings/debian-archive-keyring.gpg\n' \
    "$(apt-get indextargets --format '$(SITE)' | awk '/\/debian\/*$/ { site = $0 } END { print site }')" >"$apt/parts/backports.sources"
  local options=(-qq -o DPkg::Lock::Timeout=600 -o "Dir::Etc::SourceParts=$apt/parts" -o Dir::Etc::SourceList=/dev/null -o "Dir::State::Lists=$apt/lists")
  apt-get "${options[@]}" update
  apt-get "${options[@]}" "$@" >/dev/null
  rm -rf "$apt"
}

if [ "$command" = install ]; then
  export DEBIAN_FRONTEND=noninteractive
  # Packages must not start services: nothing would stop them.
  if [ ! -e /usr/sbin/policy-rc.d ]; then
    printf '#!/bin/sh\nexit 101\n' >/usr/sbin/policy-rc.d
    chmod +x /usr/sbin/policy-rc.d
  fi
  apt-get -o DPkg::Lock::Timeout=600 install -y -qq --no-install-recommends \
    iproute2 busybox-static curl jq openssl rsync >/dev/null
  if [ "$flavor" = incus ]; then
    [ -x /usr/libexec/incus/incusd ] || backports install -y --no-install-recommends -t bookworm-backports incus-base incus-client
  else
    apt-get -o DPkg::Lock::Timeout=600 install -y -qq --no-install-recommends lxd lxd-client >/dev/null
  fi
  exit 0
fi

folder=$(readlink -f "${2:?which folder}")
socket=$folder/var/unix.socket
export LXD_DIR=$folder/var INCUS_DIR=$folder/var HOME=$folder/home

api() { # METHOD PATH [curl options]
  local method=$1 path=$2
  shift 2
  curl -sS --fail-with-body --max-time 60 --unix-socket "$socket" -X "$method" -H 'Content-Type: application/json' "$@" "http://lxd$path"
}

finished() { # waits for the operation whose answer is on standard input
  local id state
  id=$(jq -r .operation | cut -d'?' -f1)
  for _ in $(seq 1200); do
    state=$(api GET "$id" | jq -r '"\(.metadata.status_code) \(.metadata.err)"')
    [ "${state%% *}" -lt 200 ] || break
    sleep 0.05
  done
  [ "${state%% *}" = 200 ] || fail "operation failed: $state"
}

is_up() { [ -S "$socket" ] && curl -fsS --max-time 5 --unix-socket "$socket" http://lxd/1.0 >/dev/null 2>&1; }

runs() { # whether the process of the pid file is alive and is the daemon of this folder; all of it is read, for else
  # a writer that is cut short would count as a failure
  [ -s "$folder/pid" ] || return 1
  tr '\0' '\n' <"/proc/$(cat "$folder/pid")/environ" 2>/dev/null | grep -x "${flavor^^}_DIR=$folder/var" >/dev/null
}

waiting_rsync() { # the program by which LXD copies, in front of the real one
  mkdir -p "$folder/bin" "$folder/hold" "$folder/held"
  cat >"$folder/bin/rsync" <<RSYNC
#!/bin/sh
for hold in '$folder'/hold/*; do
  name=\${hold##*/}
  case "\$*" in *"/tenant_\$name/"*) ;; *) continue ;; esac
  while [ -e "\$hold" ]; do
    : >'$folder/held/'"\$name"
    sleep 0.02
    [ "\$(cut -d' ' -f4 /proc/\$\$/stat)" = "\$PPID" ] || exit 1
  done
done
exec $(command -v rsync) "\$@"
RSYNC
  chmod +x "$folder/bin/rsync"
}

start() {
  is_up && return
  runs && fail "a daemon of $folder runs and does not answer"
  mkdir -p "$folder/var" "$folder/home"
  chmod 711 "$folder/var"
  waiting_rsync
  local program=lxd
  [ "$flavor" = lxd ] || program=/usr/libexec/incus/incusd
  PATH="$folder/bin:$PATH" setsid "$program" --group "$group" --logfile="$folder/daemon.log" >"$folder/daemon.out" 2>&1 </dev/null &
  echo $! >"$folder/pid"
  "$program" waitready --timeout=60
}

ended() { # waits until the process is gone; a zombie is
  local pid=$1
  for _ in $(seq 600); do
    [ -e "/proc/$pid/stat" ] && [ "$(sed 's/.*) //' "/proc/$pid/stat" | cut -c1)" != Z ] || return 0
    sleep 0.05
  done
  fail "process $pid does not end"
}

signal() {
  runs || return 0
  local pid
  pid=$(cat "$folder/pid")
  kill "-$1" "$pid"
  ended "$pid"
  rm -f "$folder/pid"
}

image() { # a root file system of a megabyte
  local work
  work=$(mktemp -d "$folder/image.XXXXXX")
  mkdir -p "$work"/rootfs/{bin,sbin,etc,proc,sys,dev,root,tmp,run,var}
  cp /bin/busybox "$work/rootfs/bin/busybox"
  for applet in sh cat sleep mount ps; do ln -s busybox "$work/rootfs/bin/$applet"; done
  ln -s ../bin/busybox "$work/rootfs/sbin/init"
  echo '::respawn:/bin/sleep 3600' >"$work/rootfs/etc/inittab"
  printf 'architecture: %s\ncreation_date: 1\nproperties: {os: busybox}\n' "$(uname -m)" >"$work/metadata.yaml"
  tar -C "$work" -czf "$folder/image.tar.gz" metadata.yaml rootfs
  rm -rf "$work"
  curl -sS --fail-with-body --unix-socket "$socket" -H 'Content-Type: application/octet-stream' \
    --data-binary @"$folder/image.tar.gz" http://lxd/1.0/images | finished
  api POST /1.0/images/aliases -d "{\"name\":\"tiny\",\"target\":\"$(sha256sum "$folder/image.tar.gz" | cut -d' ' -f1)\"}" >/dev/null
}

vm() { # NAME [MIB]; one that is left of an earlier run goes first
  if api GET "/1.0/instances/$1?project=tenant" >/dev/null 2>&1; then
    api DELETE "/1.0/instances/$1?project=tenant" | finished
  fi
  api POST "/1.0/instances?project=tenant" \
    -d "{\"name\":\"$1\",\"type\":\"container\",\"source\":{\"type\":\"image\",\"alias\":\"tiny\"}}" | finished
  if [ "${2:-0}" -gt 0 ]; then
    # Straight into the pool: what takes time to copy need not be sent first.
    dd if=/dev/urandom of="$folder/var/storage-pools/default/containers/tenant_$1/rootfs/root/ballast" \
      bs=1M count="$2" status=none
  fi
}

case $command in
up)
  [ "$flavor" != lxd ] || command -v lxd >/dev/null || fail "lxd is not installed: run $0 install"
  [ "$flavor" != incus ] || [ -x /usr/libexec/incus/incusd ] || fail "Incus is not installed: run FLAVOR=incus $0 install"
  start
  [ ! -e "$folder/ready" ] || exit 0
  # One without a listener, below those that the system gives to clients.
  for port in $(shuf -i 20000-32000 -n 50); do
    (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null || break
  done
  $init --preseed >/dev/null <<PRESEED
config:
  core.https_address: 127.0.0.1:$port
  images.auto_update_interval: "0"
storage_pools:
- {name: default, driver: dir}
profiles:
- name: default
  devices:
    root: {path: /, pool: default, type: disk}
projects:
- name: tenant
  config: {features.images: "false", features.profiles: "false"}
PRESEED
  openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-384 -sha384 -nodes -days 3650 -subj /CN=snapgate \
    -keyout "$folder/client.key" -out "$folder/client.crt" 2>/dev/null
  der=$(openssl x509 -in "$folder/client.crt" -outform der | base64 -w0)
  api POST /1.0/certificates \
    -d "{\"type\":\"client\",\"name\":\"snapgate\",\"restricted\":true,\"projects\":[\"tenant\"],\"certificate\":\"$der\"}" >/dev/null
  cp "$folder/var/server.crt" "$folder/server.crt"
  echo "$port" >"$folder/port"
  image
  touch "$folder/ready"
  ;;
env) echo "export SNAPGATE_BED_${flavor^^}=$folder" ;;
start) start ;;
stop) signal TERM ;;
kill) signal KILL ;;
vm) vm "${3:?which name}" "${4:-0}" ;;
down)
  [ -d "$folder" ] || exit 0
  if is_up; then
    for project in default tenant; do
      for name in $(api GET "/1.0/instances?project=$project" | jq -r '.metadata[] | split("?")[0] | split("/")[-1]'); do
        api PUT "/1.0/instances/$name/state?project=$project" -d '{"action":"stop","force":true}' 2>/dev/null | finished 2>/dev/null || true
        api DELETE "/1.0/instances/$name?project=$project" | finished || true
      done
    done
  fi
  signal TERM
  for mount in $(awk -v under="$folder/" 'index($2, under) == 1 { print $2 }' /proc/mounts | sort -r); do umount -l "$mount"; done
  rm -rf "$folder"
  ;;
*) fail "no such command: $command" ;;
esac
