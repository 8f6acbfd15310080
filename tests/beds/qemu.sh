#!/bin/sh
# A VM of plain QEMU without hardware acceleration, for tests. Its guest (qemu-guest.asm) fills 32 MiB of memory and
# then counts in memory at 0x9000, so that a roll-back of the memory can be seen without a guest system.
#
#   qemu.sh install        the packages, as root on Debian
#   qemu.sh make DIR       the images: web01.qcow2 to boot from, web01-b.qcow2 beside it
#   qemu.sh start DIR ...  the VM: DIR/web01.qmp for the gateway, DIR/web01-test.qmp for the test; further arguments are
#                          QEMU's; TOP1 in the environment is the node of the second disk's device
#   qemu.sh stop DIR       ends the VM; its images stay
set -eu
beds=$(cd "$(dirname "$0")" && pwd)

install_packages() {
  export DEBIAN_FRONTEND=noninteractive
  get() { apt-get -o DPkg::Lock::Timeout=600 install -y --no-install-recommends "$@"; }
  # chattr and mount, for images that cannot be written.
  get e2fsprogs mount
  # Both packages must be of one suite. Where qemu-utils came from backports, the other one has to as well; where
  # backports are not configured, qemu-utils goes back to the base suite.
  get qemu-system-x86 qemu-utils && return
  suite=$(. /etc/os-release && echo "$VERSION_CODENAME")
  get -t "$suite-backports" qemu-system-x86 qemu-utils && return
  get --allow-downgrades "qemu-system-x86/$suite" "qemu-utils/$suite" \
    "qemu-system-common/$suite" "qemu-system-data/$suite"
}

make_images() {
  qemu-img create -q -f qcow2 "$1/web01.qcow2" 64M
  qemu-img create -q -f qcow2 "$1/web01-b.qcow2" 64M
  qemu-io -f qcow2 -c "write -q -s $beds/qemu-guest.bin 0 512" "$1/web01.qcow2"
}

start() {
  dir=$1
  shift
  qemu-system-x86_64 -name web01 -machine q35 -accel tcg -nodefaults -display none -serial none -m 64 \
    -blockdev driver=file,node-name=disk0-file,filename="$dir/web01.qcow2" \
    -blockdev driver=qcow2,node-name=disk0,file=disk0-file \
    -device virtio-blk-pci,drive=disk0,id=vd0 \
    -blockdev driver=file,node-name=disk1-file,filename="$dir/web01-b.qcow2" \
    -blockdev driver=qcow2,node-name=disk1,file=disk1-file \
    -device virtio-blk-pci,drive="${TOP1:-disk1}",id=vd1 \
    -qmp unix:"$dir/web01.qmp",server=on,wait=off -qmp unix:"$dir/web01-test.qmp",server=on,wait=off \
    -pidfile "$dir/web01.pid" -daemonize "$@"
}

stop() {
  [ -f "$1/web01.pid" ] || return 0
  pid=$(cat "$1/web01.pid")
  kill "$pid" 2>/dev/null || true
  while kill -0 "$pid" 2>/dev/null; do sleep 0.05; done
  rm -f "$1/web01.pid"
}

case ${1:-} in
install) install_packages ;;
make) make_images "$2" ;;
start) shift; start "$@" ;;
stop) stop "$2" ;;
*) sed -n '2,9s/^# \{0,1\}//p' "$0"; exit 2 ;;
esac
