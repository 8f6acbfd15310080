#!/bin/sh
# A private libvirtd with two emulated VMs, as root and without systemd.
#
# usage: libvirt.sh install | up DIR | down DIR | env DIR | daemon-start DIR | daemon-kill DIR
#
# web01 runs a 164-byte guest that counts in RAM at 0x9000, on one disk; web02 is off and has two disks.
# libvirtd lives in its own mount namespace: its /etc, /var and /run are folders of DIR, and so are the
# users it asks for. Outside of DIR only empty folders are made to mount on. Everything is stopped by pid.
# DIR must be short: it holds a unix socket.
#
# SNAPGATE_BED_CACHE may name a folder, not there yet the first time, in which what libvirt has found out about
# QEMU is kept from one DIR to the next: that takes 8 seconds. libvirt itself notices when it is out of date.
set -eu

usage() { sed -n '2,12s/^# \{0,1\}//p' "$0" >&2; exit 2; }

[ $# -ge 1 ] || usage
verb=$1
if [ "$verb" = install ]; then
  export DEBIAN_FRONTEND=noninteractive
  # libvirt-daemon-system would bring systemd and is not needed. Where qemu-utils comes from another suite
  # than qemu-system-x86 the two conflict, so both are taken from the base suite.
  exec apt-get -o DPkg::Lock::Timeout=600 install -y --no-install-recommends --allow-downgrades \
    qemu-system-x86 qemu-utils/bookworm libvirt-daemon libvirt-daemon-driver-qemu libvirt-clients e2fsprogs
fi
[ $# -eq 2 ] || usage
mkdir -p "$2"
dir=$(cd "$2" && pwd)
socket=$dir/run/libvirt-sock
virsh() { command virsh -q -c "qemu:///system?socket=$socket" "$@"; }

folders() {
  mkdir -p "$dir/etc" "$dir/lib" "$dir/run" "$dir/cache" "$dir/log" "$dir/home"
  # These only need to exist: each is covered by a folder of DIR inside the namespace.
  mkdir -p /etc/libvirt /var/lib/libvirt /run/libvirt /var/cache/libvirt /var/log/libvirt
  [ ! -d "${SNAPGATE_BED_CACHE:-}" ] || cp -a "$SNAPGATE_BED_CACHE/." "$dir/cache"
  # The driver refuses to start without this user and group, even when configured to use root.
  cp /etc/passwd "$dir/passwd"
  cp /etc/group "$dir/group"
  grep -q '^libvirt-qemu:' "$dir/passwd" || echo 'libvirt-qemu:x:64055:64055::/nonexistent:/bin/false' >>"$dir/passwd"
  grep -q '^libvirt-qemu:' "$dir/group" || echo 'libvirt-qemu:x:64055:' >>"$dir/group"
  grep -q '^kvm:' "$dir/group" || echo 'kvm:x:64056:' >>"$dir/group"
  cat >"$dir/etc/qemu.conf" <<X
user = "root"
group = "root"
security_driver = "none"
cgroup_controllers = []
namespaces = []
remember_owner = 0
stdio_handler = "file"
X
  cat >"$dir/libvirtd.conf" <<X
unix_sock_rw_perms = "0700"
auth_unix_ro = "none"
auth_unix_rw = "none"
log_outputs = "3:file:$dir/libvirtd.log"
X
}

daemon_start() {
  HOME=$dir/home setsid unshare -m --propagation private sh -eu -c '
    mount --bind "$0/etc" /etc/libvirt
    mount --bind "$0/lib" /var/lib/libvirt
    mount --bind "$0/run" /run/libvirt
    mount --bind "$0/cache" /var/cache/libvirt
    mount --bind "$0/log" /var/log/libvirt
    mount --bind "$0/passwd" /etc/passwd
    mount --bind "$0/group" /etc/group
    exec libvirtd -f "$0/libvirtd.conf" -p "$0/libvirtd.pid"
  ' "$dir" </dev/null >"$dir/libvirtd.out" 2>&1 &
  tries=0
  until virsh version >/dev/null 2>&1; do
    tries=$((tries + 1))
    if [ "$tries" -ge 600 ]; then
      cat "$dir/libvirtd.out" "$dir/libvirtd.log" >&2 || true
      echo "libvirtd does not answer" >&2
      exit 1
    fi
    sleep 0.1
  done
}

# Stops the process of a pid file, if it is still the program that wrote it, and waits for its end.
stop() {
  [ -s "$1" ] || return 0
  pid=$(cat "$1")
  case $(cat "/proc/$pid/comm" 2>/dev/null || true) in
  "$2"*) kill "-$3" "$pid" 2>/dev/null || true ;;
  *) return 0 ;;
  esac
  tries=0
  while [ -d "/proc/$pid" ] && [ "$(cut -d' ' -f3 "/proc/$pid/stat" 2>/dev/null)" != Z ] && [ "$tries" -lt 100 ]; do
    tries=$((tries + 1))
    sleep 0.1
  done
}

guest() {
  # Enters protected mode, fills 32 MiB with pseudo-random words, says REDY at 0x9004 and counts at 0x9000.
  printf '\372\061\300\216\330\216\300\216\320\274\000\160\344\222\014\002\346\222\017\001\026\240\174\017\040\300\014\001\017\042\300\352\044\174\010\000\146\270\020\000\216\330\216\300\216\320\307\005\000\220\000\000\000\000\000\000\307\005\004\220\000\000\000\000\000\000\277\000\000\020\000\270\170\126\064\022\211\301\301\341\015\061\310\211\301\301\351\021\061\310\211\301\301\341\005\061\310\211\007\203\307\004\201\377\000\000\000\002\162\336\307\005\004\220\000\000\122\105\104\131\377\005\000\220\000\000\271\100\015\003\000\342\376\353\361\220\000\000\000\000\000\000\000\000\377\377\000\000\000\232\317\000\377\377\000\000\000\222\317\000\027\000\210\174' >"$dir/boot.bin"
  truncate -s 510 "$dir/boot.bin"
  printf '\125\252' >>"$dir/boot.bin"
}

keep_cache() {
  [ -n "${SNAPGATE_BED_CACHE:-}" ] && [ ! -e "$SNAPGATE_BED_CACHE" ] || return 0
  mkdir -p "$(dirname "$SNAPGATE_BED_CACHE")"
  cp -a "$dir/cache" "$SNAPGATE_BED_CACHE.$$"
  # The second one leaves it at the value of the first.
  mv -T "$SNAPGATE_BED_CACHE.$$" "$SNAPGATE_BED_CACHE" 2>/dev/null || rm -rf "$SNAPGATE_BED_CACHE.$$"
}

# domain NAME DISK...
domain() {
  name=$1
  shift
  disks=
  letter=a
  for disk; do
    qemu-img create -q -f qcow2 "$dir/$disk" 256M
    qemu-io -f qcow2 -c "write -q -s $dir/boot.bin 0 512" "$dir/$disk"
    disks="$disks<disk type='file' device='disk'><driver name='qemu' type='qcow2'/><source file='$dir/$disk'/><target dev='vd$letter' bus='virtio'/></disk>"
    letter=$(echo "$letter" | tr a-y b-z)
  done
  cat >"$dir/$name.xml" <<X
<domain type='qemu'><name>$name</name><memory unit='MiB'>64</memory><vcpu>1</vcpu>
<os><type arch='x86_64' machine='q35'>hvm</type><boot dev='hd'/></os><features><acpi/></features>
<devices><emulator>/usr/bin/qemu-system-x86_64</emulator>$disks
<controller type='usb' model='none'/><memballoon model='none'/></devices></domain>
X
  virsh define "$dir/$name.xml"
}

down() {
  stop "$dir/libvirtd.pid" libvirtd TERM
  # libvirtd leaves its VMs running; their pid files name our processes.
  for pid in "$dir"/run/qemu/*.pid; do
    [ -e "$pid" ] && stop "$pid" qemu-system KILL
  done
  rm -rf "$dir"
}

case $verb in
up)
  folders
  daemon_start
  guest
  domain web01 web01.qcow2
  domain web02 web02a.qcow2 web02b.qcow2
  virsh start web01
  keep_cache
  ;;
down) down ;;
env) echo "SNAPGATE_TEST_LIBVIRT=$dir" ;;
daemon-start) daemon_start ;;
daemon-kill) stop "$dir/libvirtd.pid" libvirtd KILL ;;
*) usage ;;
esac
