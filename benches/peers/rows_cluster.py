"""The rows about several gateways on etcd: durable changes, growth, memory, waiters on another gateway, fail-over."""

import subprocess
import threading
import time
import urllib.request

import load
import servers
from rows_edge import processor
from rows_http import sim
from rows_work import SilentManager, seed
from table import Row, at_least, shown

SCRIPT = servers.ROOT / "tests/beds/etcd.sh"
NAMES = ("gw1", "gw2", "gw3")
# What one operation puts into etcd with all its keys, about.
RECORD_BYTES = 2048
LEASE = 3
# Every round adds revisions that are compacted minutes later only: the quota of tests would be used up.
QUOTA = 8 << 30
COMMITTED = "etcd_server_proposals_committed_total"
# What a member of etcd holds, by the name of its metric.
HELD = {"disk": "etcd_mvcc_db_total_size_in_use_in_bytes", "memory": "process_resident_memory_bytes"}
MIB = 1 << 20


class Cluster:
    """Three gateways that hand requests on, on three members of etcd, all on this machine."""

    def __init__(self, run, name, statuses=0, backend=None):
        # One gateway for all simulated VMs: the first, which is therefore started first and becomes active.
        self.backend = backend or sim(512, more='concurrency = 256\nonly_on = "gw1"\n')
        self.run, self.folder = run, run.servers.folder / name
        self.folder.mkdir()
        self.etcd = self.folder / "etcd"
        self.script("up", "3")
        self.endpoints = self.script("endpoints").split()
        self.certificates()
        if statuses:
            self.copy_from(seeded(run, statuses))
        self.gateways = {each: self.start(each) for each in NAMES}
        self.wait_active()

    def script(self, command, *more):
        return servers.output(["env", f"QUOTA={QUOTA}", str(SCRIPT), command, str(self.etcd), *more])

    def certificates(self):
        authority = ["-subj", "/CN=cluster", "-keyout", "ca.key", "-out", "ca.pem"]
        key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
        openssl = lambda *words: subprocess.run(["openssl", *words], cwd=self.folder, check=True, capture_output=True)
        openssl("req", "-x509", *key, "-days", "30", *authority)
        (self.folder / "names").write_text("subjectAltName=IP:127.0.0.1\nextendedKeyUsage=serverAuth,clientAuth\n")
        openssl("req", "-new", *key, "-subj", "/CN=gateway", "-keyout", "gateway.key", "-out", "gateway.csr")
        signed = ["-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-days", "30", "-extfile", "names", "-out", "gateway.pem"]
        openssl("x509", "-req", "-in", "gateway.csr", *signed)

    def sections(self, name):
        files = {word: self.folder / word for word in ("ca.pem", "gateway.pem", "gateway.key")}
        quoted = ", ".join(f'"{endpoint}"' for endpoint in self.endpoints)
        return (
            f'[etcd]\nendpoints = [{quoted}]\nlease = "{LEASE}s"\n[cluster]\nname = "{name}"\nlisten = "127.0.0.1:{servers.free_port()}"\n'
            f'ca = "{files["ca.pem"]}"\ncert = "{files["gateway.pem"]}"\nkey = "{files["gateway.key"]}"\n'
        )

    def start(self, name):
        folder = f"{self.folder.name}-{name}"
        store = f'store = "etcd"\noperator_file = "{self.folder}/{name}.operator"'
        settings = 'queue_total = 1000000\nqueue_per_vm = 1000\nretention = "1d"'
        return self.run.servers.snapgate(folder, self.backend, extra=self.sections(name), settings=settings, store=store)

    def copy_from(self, store):
        """Copies a store of a single gateway into etcd."""
        config = self.run.servers.folder / store.parent.name / "copy.toml"
        config.write_text(
            f'[operations]\nstore = "etcd"\noperator_file = "none.operator"\n{self.sections("copy").split("listen")[0]}'
            '[[backend]]\nname = "sim"\nkind = "sim"\nvms = ["*"]\nonly_on = "copy"\n'
        )
        subprocess.run([str(servers.SNAPGATE), "store", "copy", "--config", str(config), "--from", str(store), "--to", "etcd"], check=True, capture_output=True)

    def wait_active(self, besides=None):
        """The name of the active gateway."""
        end = time.monotonic() + 60
        while time.monotonic() < end:
            for name, gateway in self.gateways.items():
                if name != besides and is_active(gateway):
                    return name
            time.sleep(0.005)
        raise load.Broken("no gateway is active")

    def members(self, metric):
        """One of etcd's own metrics, of each member."""
        found = []
        for endpoint in self.endpoints:
            with urllib.request.urlopen(f"{endpoint}/metrics", timeout=5) as answer:
                lines = answer.read().decode().splitlines()
            found += [float(line.split()[-1]) for line in lines if line.split("{")[0].split(" ")[0] == metric]
        return found

    def end(self):
        for gateway in self.gateways.values():
            self.run.servers.stop(gateway.process)
        self.script("down")


def metrics(gateway, name):
    """All values of one metric; none while the gateway does not answer."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{gateway.admin}/metrics", timeout=2) as answer:
            lines = answer.read().decode().splitlines()
    except OSError:
        return []
    return [float(line.split()[-1]) for line in lines if line.startswith((f"{name}{{", f"{name} "))]


def is_active(gateway):
    return 1.0 in metrics(gateway, "snapgate_cluster_active")


def drain(gateway):
    """Until no operation is unfinished: what was accepted in one round would be worked off in the next."""
    end = time.monotonic() + 120
    while time.monotonic() < end:
        depth = metrics(gateway, "snapgate_queue_depth")
        if depth and not any(depth):
            return
        time.sleep(0.1)
    raise load.Broken("operations are unfinished after two minutes")


def seeded(run, count):
    """A store with so many Statuses."""
    name = f"cluster-seed-{count}"
    seed(run, name, count)
    return run.servers.folder / name / "operations.sqlite"


def cluster(run):
    own = Cluster(run, "cluster")
    # Before the queues are full.
    rows = waiters(run, own) + durable(run, own) + memory(own)
    own.end()
    return rows + failover(run) + growth(run)


def durable(run, own):
    """Durable 202s through the active gateway and through one on standby, beside bare transactions."""
    active = own.wait_active()
    standby = next(name for name in NAMES if name != active)
    headers = {name: value for name, value in load.HEADERS.items() if name != "Accept"} | {"Prefer": "respond-async"}
    program = servers.bench_program("etcd_floor")
    rows = []
    for clients in (1, 16, 256):

        spent = []

        def through(name, clients=clients, spent=spent):
            url = f"http://127.0.0.1:{own.gateways[name].port}/"

            def once(seconds):
                pid = own.gateways[active].process.pid
                used, committed = processor(pid), max(own.members(COMMITTED))
                rate = load.wrk(url, seconds, clients, servers.HERE / "update.lua", headers)[0]
                changes = rate * seconds
                drain(own.gateways[active])
                spent.append(((processor(pid) - used) / changes * 1e6, (max(own.members(COMMITTED)) - committed) / changes))
                return rate

            return once

        def bare(seconds, clients=clients):
            return float(servers.output([program, ",".join(own.endpoints), str(clients), str(seconds), str(RECORD_BYTES)]))

        base = "etcd transactions"
        found = load.rounds([("active", through(active)), ("standby", through(standby)), (base, bare)], run.rounds, run.seconds)
        rate = {name: load.median(all) for name, all in found.items()}
        run.bars(f"durable on etcd, {clients} clients, per second", {f"snapgate, {name}" if name != base else name: value for name, value in rate.items()})
        reach = at_least(0.5) if clients == 16 else shown()
        note = f"{load.median([each for each, _ in spent]):.0f} us of the active gateway, {load.median([each for _, each in spent]):.2f} transactions a change"
        rows.append(Row(f"durable 202 on etcd, {clients} clients", rate["active"], "req/s", base, rate[base], reach, note=note))
        rows.append(Row(f"the same through a gateway on standby, {clients} clients", rate["standby"], "req/s", base, rate[base], shown()))
    return rows


def memory(own):
    active = own.wait_active()
    size = {name: gateway.resident() / MIB for name, gateway in own.gateways.items()}
    standby = max(value for name, value in size.items() if name != active)
    return [Row.limit("memory of the active gateway after that", size[active], "MiB", 256.0, f"on standby {standby:.0f}")]


def waiters(run, own):
    """How much later than a client at the active gateway one at another gateway sees the end of an operation."""
    active = own.wait_active()
    standby = next(name for name in NAMES if name != active)
    late = []
    for number in range(20 if run.quick else 200):
        caller = load.Caller(own.gateways[active].port)
        _, _, answer = caller.send("POST", f"/vms/vm{number % 64}/backups/456/restore", {}, Accept="*/*", Prefer="respond-async")
        ends = {}

        def wait(name, uri=answer["status_uri"], ends=ends):
            load.Caller(own.gateways[name].port).send("GET", uri, Accept="*/*", Prefer="wait=30")
            ends[name] = time.monotonic()

        threads = [threading.Thread(target=wait, args=(name,)) for name in (active, standby)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        late.append(ends[standby] - ends[active])
    note = f"median {load.median(late) * 1e3:.1f} ms"
    return [Row.limit("end seen on another gateway after the active one, p99", load.percentile(late, 0.99) * 1e3, "ms", 50.0, note)]


def failover(run):
    """From SIGKILL of the active gateway to the next durable 202 by another one."""
    path = run.servers.folder / "failover.socket"
    manager = SilentManager(str(path))
    threading.Thread(target=manager.serve_forever, daemon=True).start()
    backend = f'[[backend]]\nname = "sim"\nkind = "sim"\nvms = ["vm*"]\n[backend.sim]\nsimulator = "unix:{path}"\n'
    own = Cluster(run, "cluster-failover", backend=backend)
    took = []
    for _ in range(2 if run.quick else 7):
        active = own.wait_active()
        other = next(name for name in NAMES if name != active)
        killed = own.gateways[active]
        caller = load.Caller(own.gateways[other].port)
        began = time.monotonic()
        killed.process.kill()
        run.servers.stop(killed.process)
        while True:
            try:
                _, status, _ = caller.send("PUT", "/vms/vm1/backups/456", {"description": "after"}, Accept="*/*", Prefer="respond-async")
                if status == 202:
                    break
            except OSError:
                caller = load.Caller(own.gateways[other].port)
            time.sleep(0.01)
        took.append(time.monotonic() - began)
        own.gateways[active] = own.start(active)
    own.end()
    manager.shutdown()
    manager.server_close()
    return [Row.limit(f"SIGKILL to the next durable 202, lease {LEASE} s", max(took), "s", LEASE + 2.0, f"longest of {len(took)}, median {load.median(took):.1f} s")]


def growth(run):
    """GETs of a backup and of a page of Statuses, and durable changes, with few and with many Statuses in etcd.

    Both clusters run at the same time and are asked in turn: what the copy left the disk to do burdens both.
    """
    sizes = {"few": 100, "many": run.scale(100_000)}
    clusters = {name: Cluster(run, f"cluster-{name}", count) for name, count in sizes.items()}
    ports = {name: own.gateways[own.wait_active()].port for name, own in clusters.items()}
    subprocess.run(["sync"], check=True)
    asked = {
        "GET of a Backup": lambda port: load.latencies(port, "/vms/vm1/backups/456", 100),
        "page of 20 Statuses": lambda port: load.latencies(port, "/statuses?limit=20", 50, Accept="*/*"),
        "durable change": lambda port: load.latencies(port, "/vms/vm2/backups/456", 100, "PUT", {"description": "changed"}, 202, Accept="*/*"),
    }
    rows = []
    for what, ask in asked.items():
        targets = [(name, lambda _, port=port, ask=ask: load.median(ask(port))) for name, port in ports.items()]
        found = load.rounds(targets, run.rounds, run.seconds)
        few, many = (load.median(found[name]) * 1e6 for name in ("few", "many"))
        rows.append(Row(f"{what} with {sizes['many']:,} Statuses in etcd", many, "us", "with 100", few, at_least(1 / 1.2), smaller=True))
    held = {name: {what: max(own.members(metric)) for what, metric in HELD.items()} for name, own in clusters.items()}
    for own in clusters.values():
        own.end()
    for what, most in (("disk", 4096), ("memory", 12288)):
        each = (held["many"][what] - held["few"][what]) / (sizes["many"] - sizes["few"])
        rows.append(Row.limit(f"{what} of a member of etcd for each stored Status", each, "bytes", most))
    return rows
