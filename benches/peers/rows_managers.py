"""The row about real VM managers: what reads and changes cost with few and with many VMs on one libvirt."""

import shutil
import subprocess
import time

import load
import servers
from load import median
from rows_edge import processor
from rows_work import changed
from table import Row, at_least, shown

SCRIPT = servers.ROOT / "tests/beds/libvirt.sh"
FEW, MANY = 10, 1000
DOMAIN = """<domain type='qemu'><name>{name}</name><memory unit='MiB'>64</memory><vcpu>1</vcpu>
<os><type arch='x86_64' machine='q35'>hvm</type></os>
<devices><emulator>/usr/bin/qemu-system-x86_64</emulator>
<disk type='file' device='disk'><driver name='qemu' type='qcow2'/><source file='{disk}'/><target dev='vda' bus='virtio'/></disk>
<controller type='usb' model='none'/><memballoon model='none'/></devices></domain>
"""


class Libvirt:
    """A private libvirtd with stopped VMs, each with one small disk."""

    def __init__(self, folder):
        self.folder = folder
        self.script("up")
        self.socket = folder / "run/libvirt-sock"
        self.made = 0

    def script(self, verb):
        subprocess.run(["sh", str(SCRIPT), verb, str(self.folder)], check=True, stdout=subprocess.DEVNULL)

    def grow(self, count):
        """Defines VMs until there are that many, in one session of virsh."""
        model = self.folder / "model.qcow2"
        if not model.exists():
            subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", str(model), "1M"], check=True)
        lines = []
        for number in range(self.made, count):
            name = f"vm{number}"
            disk, text = self.folder / f"{name}.qcow2", self.folder / f"{name}.xml"
            shutil.copy(model, disk)
            text.write_text(DOMAIN.format(name=name, disk=disk))
            lines.append(f"define {text}\n")
        self.made = count
        command = ["virsh", "-q", "-c", f"qemu:///system?socket={self.socket}"]
        subprocess.run(command, input="".join(lines), text=True, check=True, stdout=subprocess.DEVNULL)

    def backend(self):
        return f'[[backend]]\nname = "libvirt"\nkind = "libvirt"\nvms = ["vm*"]\n[backend.libvirt]\nlibvirt_socket = "{self.socket}"\n'

    def spent(self):
        """Seconds of processor time of libvirtd."""
        return processor(int((self.folder / "libvirtd.pid").read_text()))


def managers(run):
    libvirt = None
    counts = (FEW, max(2 * FEW, run.scale(MANY)))
    try:
        subprocess.run(["sh", str(SCRIPT), "install"], check=True, stdout=subprocess.DEVNULL)
        libvirt = Libvirt(run.servers.folder / "lv")
        figures = {count: measured(run, libvirt, count) for count in counts}
    finally:
        if libvirt:
            libvirt.script("down")
    few, many = figures.values()
    rows = []
    for what, unit, reach in (
        ("GET of a Backup", "us", at_least(1 / 1.2)),
        ("restore of a stopped VM, to its end", "us", at_least(1 / 1.2)),
        ("first page of the list of VMs", "us", shown()),
        ("processor time of the gateway at rest, a second", "us", shown()),
        ("processor time of libvirtd at rest, a second", "us", shown()),
    ):
        rows.append(Row(f"libvirt with {counts[1]:,} VMs: {what}", many[what], unit, f"with {counts[0]}", few[what], reach, smaller=True))
    return rows


def measured(run, libvirt, count):
    """Figures in microseconds, with so many VMs."""
    libvirt.grow(count)
    gateway = run.servers.snapgate(f"libvirt-{count}", libvirt.backend())
    caller = load.Caller(gateway.port)
    changed(caller, "POST", "/vms/vm1/backups", {"name": "b"})
    _, _, answer = caller.send("GET", "/vms/vm1/backups", Accept="*/*")
    backup = answer["backups"][-1]["uri"]
    found = {
        "GET of a Backup": median(load.latencies(gateway.port, backup, 200)) * 1e6,
        "first page of the list of VMs": median(load.latencies(gateway.port, "/vms?limit=100", 20, Accept="*/*")) * 1e6,
        "restore of a stopped VM, to its end": median([changed(caller, "POST", f"{backup}/restore", {}) for _ in range(run.scale(20))]) * 1e6,
    }
    seconds = 3 if run.quick else 30
    own, theirs = processor(gateway.process.pid), libvirt.spent()
    time.sleep(seconds)
    found["processor time of the gateway at rest, a second"] = (processor(gateway.process.pid) - own) / seconds * 1e6
    found["processor time of libvirtd at rest, a second"] = (libvirt.spent() - theirs) / seconds * 1e6
    changed(caller, "DELETE", backup, None)
    run.servers.stop(gateway.process)
    return found
