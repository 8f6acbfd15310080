"""The rows about work done: disk images copied, completions announced, growth, start."""

import json
import os
import shutil
import socketserver
import sqlite3
import subprocess
import threading
import time

import load
import servers
from load import median
from rows_http import sim
from table import Row, at_least, shown

MIB = 1 << 20
GIB = 1 << 30


def dense(path, size):
    with open(path, "wb") as image:
        for _ in range(size // MIB):
            image.write(os.urandom(MIB))
        os.fsync(image.fileno())


def sparse(path, size):
    """64 MiB of data in 64 places, the rest holes."""
    with open(path, "wb") as image:
        image.truncate(size)
        for at in range(64):
            image.seek(at * (size // 64))
            image.write(os.urandom(MIB))
        os.fsync(image.fileno())


def cp(how, source, target):
    """Seconds of cp and of making it durable."""
    began = time.perf_counter()
    subprocess.run(["cp", how, str(source), str(target)], check=True)
    with open(target, "rb") as copy:
        os.fsync(copy.fileno())
    took = time.perf_counter() - began
    os.unlink(target)
    return took


def images(run):
    """Create and restore of disk images through the whole gateway, beside cp and fsync of the same image."""
    rows = []
    for name, size, fill in (("4 GiB sparse", 4 * GIB, sparse), ("1 GiB dense", GIB, dense)):
        word = name.split()[2]
        backend, root = run.files_folder(word)
        image = root / "vm1" / "disk.img"
        fill(image, size)
        gateway = run.servers.snapgate(f"images-{word}", backend)
        caller = load.Caller(gateway.port)
        took = {"create": [], "restore": [], "cp --sparse=always": [], "cp --reflink=auto": []}
        copy = run.servers.folder / "copy.img"
        for _ in range(run.rounds):
            took["create"].append(changed(caller, "POST", "/vms/vm1/backups", {"name": "b"}))
            took["cp --sparse=always"].append(cp("--sparse=always", image, copy))
            made = newest(caller)
            took["restore"].append(changed(caller, "POST", f"/vms/vm1/backups/{made}/restore", {}))
            took["cp --reflink=auto"].append(cp("--reflink=auto", image, copy))
            changed(caller, "DELETE", f"/vms/vm1/backups/{made}", None)
        run.servers.stop(gateway.process)
        shutil.rmtree(root.parent)
        middle = {key: median(all) for key, all in took.items()}
        run.bars(f"{name} image, MiB/s", {label(key): size / MIB / value for key, value in middle.items()})
        for verb in ("create", "restore"):
            for other in ("cp --sparse=always", "cp --reflink=auto"):
                rows.append(Row(f"files {verb}, {name}", middle[verb], "s", other + " + fsync", middle[other], at_least(0.9), smaller=True))
    return rows


def label(key):
    return key if key.startswith("cp") else f"snapgate {key}"


def changed(caller, method, path, body):
    """Seconds from the request to the end of the operation, which must succeed."""
    took, status, answer = caller.send(method, path, body, Accept="*/*", Prefer="wait=50")
    while status in (200, 202) and answer.get("progress", 100) < 100:
        began = time.perf_counter()
        _, status, answer = caller.send("GET", answer["status_uri"], Accept="*/*", Prefer="wait=50")
        took += time.perf_counter() - began
    if answer.get("state") != "SUCCESS":
        raise load.Broken(f"{method} {path}: {status} {answer}")
    return took


def newest(caller):
    _, _, answer = caller.send("GET", "/vms/vm1/backups", Accept="*/*")
    return answer["backups"][-1]["uri"].rsplit("/", 1)[1]


def completion(run):
    """From the end of the work in the VM manager to the whole answer for the client that waits for it: seen, made durable, announced."""
    announced, polled = announced_at(run), polled_at(run)
    note = f"median {median(announced) * 1e3:.1f} ms; one commit is in it"
    other = f"median {median(polled) * 1e3:.0f} ms; looks every {LOOKS * 1e3:.0f} ms"
    return [
        Row.limit("completion to waiter woken, p99, announced", load.percentile(announced, 0.99) * 1e3, "ms", 10.0, note),
        Row.limit("the same, polled", load.percentile(polled, 0.99) * 1e3, "ms", LOOKS * 1e3 + 10.0, other),
    ]


def announced_at(run):
    """By `sim`, which announces the end. It ends a create 100 ms after it began it, and says when that was in the identity of the backup, which
    the store keeps with the next change of it; milliseconds are cut off, so that each is up to one too long."""
    work, woken = 0.1, {}
    gateway = run.servers.snapgate("completion", sim(64, duration="100ms"))
    caller = load.Caller(gateway.port)
    for number in range(200):
        path = f"/vms/vm{number % 64}/backups"
        _, _, answer = caller.send("POST", path, {"name": f"b{number}"}, Accept="*/*", Prefer="wait=50")
        at = time.time()
        if answer.get("state") != "SUCCESS":
            raise load.Broken(f"POST {path}: {answer}")
        backup = answer["target_uri"].rsplit("/", 1)[1]
        woken[backup] = at
        changed(caller, "PUT", f"{path}/{backup}", {"description": "looked at"})
    run.servers.stop(gateway.process)
    store = sqlite3.connect(run.servers.folder / "completion" / "operations.sqlite")
    late = []
    for backup, record in store.execute("SELECT backup, record FROM operations WHERE verb = 'update'"):
        began = int(json.loads(record)["operation"]["intent"]["identity"].split("-")[0]) / 1e3
        late.append(woken[backup] - began - work)
    store.close()
    if len(late) != len(woken):
        raise load.Broken(f"{len(late)} of {len(woken)} creates were found in the store")
    return late


LOOKS = 0.2


def polled_at(run):
    """By a VM manager in this process that only answers when it is asked."""
    path = run.servers.folder / "polled.socket"
    manager = SilentManager(str(path))
    threading.Thread(target=manager.serve_forever, daemon=True).start()
    backend = f'[[backend]]\nname = "sim"\nkind = "sim"\nvms = ["vm*"]\n[backend.sim]\nsimulator = "unix:{path}"\n'
    gateway = run.servers.snapgate("polled", backend, settings=f'poll_min = "{LOOKS}s"\npoll_max = "{LOOKS}s"')
    caller = load.Caller(gateway.port)
    late = []
    for number in range(100):
        manager.duration = 0.3 + 0.002 * number
        changed(caller, "POST", f"/vms/vm{number % 64}/backups/456/restore", {})
        late.append(time.time() - manager.last_end)
    run.servers.stop(gateway.process)
    manager.shutdown()
    manager.server_close()
    return late


class SilentManager(socketserver.ThreadingUnixStreamServer):
    """The simulator of docs/adapters/sim.md: one line of JSON each way, and nothing that it says by itself."""

    daemon_threads = True

    def __init__(self, path):
        self.ends, self.duration, self.last_end = {}, 0.0, 0.0
        self.polls, self.connections, self.connections_at_once = 0, 0, 0
        self.counting = threading.Lock()
        super().__init__(path, SilentManager.Call)

    class Call(socketserver.StreamRequestHandler):
        def handle(self):
            self.server.count(1)
            asked = json.loads(self.rfile.readline())
            self.wfile.write(json.dumps(self.server.answer(asked)).encode() + b"\n")
            self.server.count(-1)

    def count(self, change):
        """Connections that are open; one more or less."""
        with self.counting:
            self.connections += change
            self.connections_at_once = max(self.connections_at_once, self.connections)

    def answer(self, asked):
        backup = {"id": "456", "identity": "first", "name": "words", "created": 1_700_000_000_000}
        match asked["call"]:
            case "health":
                return {"product": "polled"}
            case "vm":
                return "here"
            case "list":
                return {"backups": {"backups": [backup], "more": False}}
            case "read":
                return {"backup": backup}
            case "position":
                return {"position": len(self.ends)}
            case "begin":
                task = str(asked["key"])
                self.last_end = self.ends.setdefault(task, time.time() + self.duration)
                return {"task": task}
            case "poll":
                self.polls += 1
                end = self.ends.get(asked["task"])
                return "gone" if end is None else "done" if time.time() >= end else {"running": 50}
            case _:
                return "gone"


def growth(run):
    """Latency of GET and of accepting, and memory, with little and with much of everything."""
    rows = []
    for name, few, many, prepare in (
        ("stored Statuses", 1, run.scale(1_000_000), with_statuses),
        ("grants", 1, run.scale(10_000), with_grants),
        ("idle connections", 1, run.scale(10_000), with_idle),
        ("waiters", 1, run.scale(5_000), with_waiters),
    ):
        before, after = prepare(run, "few", few), prepare(run, "many", many)
        found = load.rounds(
            [("get few", before.get), ("get many", after.get), ("accept few", before.accept), ("accept many", after.accept)],
            run.rounds,
            run.seconds,
        )
        middle = {key: median([median(one) for one in all]) * 1e6 for key, all in found.items()}
        each = (after.memory - before.memory) / max(1, many - few)
        for verb in ("get", "accept"):
            reach = at_least(1 / 1.2)
            note = f"{each:,.0f} bytes of memory each" if verb == "get" else ""
            rows.append(
                Row(f"{verb} with {many:,} {name}", middle[f"{verb} many"], "us", f"with {few}", middle[f"{verb} few"], reach, smaller=True, note=note)
            )
        before.end()
        after.end()
    return rows


class Grown:
    """A gateway with so much of something, and how long requests take there."""

    def __init__(self, run, name, gateway, memory, holder=None):
        self.run, self.name, self.gateway, self.memory, self.holder = run, name, gateway, memory, holder

    def get(self, _seconds):
        return load.latencies(self.gateway.port, "/vms/vm1/backups/456", 300)

    def accept(self, _seconds):
        body = {"description": "changed"}
        return load.latencies(self.gateway.port, "/vms/vm2/backups/456", 60, "PUT", body, 202, Accept="*/*")

    def end(self):
        if self.holder:
            self.holder.close()
        self.run.servers.stop(self.gateway.process)
        shutil.rmtree(self.run.servers.folder / self.name)


def with_statuses(run, size, count):
    name = f"statuses-{size}"
    seed(run, name, count)
    gateway = run.servers.snapgate(name, sim(4))
    return Grown(run, name, gateway, gateway.resident())


def with_grants(run, size, count):
    name = f"grants-{size}"
    gateway = run.servers.snapgate(name, sim(4), grants=count)
    return Grown(run, name, gateway, gateway.resident())


def with_idle(run, size, count):
    name = f"idle-{size}"
    gateway = run.servers.snapgate(name, sim(4))
    before, holder = gateway.resident(), load.Holder()
    # A connection without a request is closed after a while: each has sent one, and stays open for the next.
    holder.open(gateway.port, count, request("/vms/vm1/backups/456"))
    settle(gateway)
    return Grown(run, name, gateway, gateway.resident() if count > 1 else before, holder)


def with_waiters(run, size, count):
    name = f"waiters-{size}"
    # All of them are one caller, whose updates wait as well: without room for one more they would be answered before their end.
    room = f"[rate]\nprincipal_waiters = {count + 100}\n"
    gateway = run.servers.snapgate(name, sim(4, duration="1h"), extra=room)
    caller, holder = load.Caller(gateway.port), load.Holder()
    _, _, answer = caller.send("POST", "/vms/vm3/backups", {"name": "b"}, Accept="*/*")
    before = gateway.resident()
    holder.open(gateway.port, count, request(answer["status_uri"], "Prefer: wait=50\r\n"))
    settle(gateway)
    return Grown(run, name, gateway, gateway.resident() if count > 1 else before, holder)


def request(path, more=""):
    fields = {**load.HEADERS, "Accept": "*/*"}
    lines = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
    return f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n{lines}{more}\r\n".encode()


def settle(gateway):
    """Until the memory of the gateway stands still."""
    last = 0
    for _ in range(100):
        now = gateway.resident()
        if abs(now - last) < 65536:
            return
        last = now
        time.sleep(0.2)


def seed(run, name, count):
    """A store with so many final operations, copies of one that the gateway itself wrote."""
    gateway = run.servers.snapgate(name, sim(4))
    caller = load.Caller(gateway.port)
    changed(caller, "PUT", "/vms/vm1/backups/456", {"description": "first"})
    run.servers.stop(gateway.process)
    store = sqlite3.connect(run.servers.folder / name / "operations.sqlite")
    columns = "revision, verb, backend, vm, backup, principal, phase, live, idem_key, idem_fingerprint"
    first, created = store.execute("SELECT seq, created FROM operations ORDER BY seq LIMIT 1").fetchone()
    store.execute("PRAGMA synchronous = OFF")
    # One every 20 ms before the first; the time of acceptance stands in the number as well, above its 22 lowest bits.
    store.execute(
        f"""
        WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < ?1)
        INSERT INTO operations(seq, {columns}, created, expires, record)
        SELECT ?2 - (20 * i << 22), {columns}, ?3 - 20 * i, expires - 20 * i,
            replace(replace(record, '"seq":' || ?2, '"seq":' || (?2 - (20 * i << 22))), '"created":' || ?3, '"created":' || (?3 - 20 * i))
        FROM operations, n WHERE seq = ?2 AND i < ?1
        """,
        (count, first, created),
    )
    store.commit()
    store.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    store.close()


def start(run):
    """From the start of the process until it says that it is ready, and what it then holds."""
    count = 100_000
    seed(run, "start", count)
    took, held = [], []
    for _ in range(run.rounds):
        gateway = run.servers.snapgate("start", sim(4))
        took.append(gateway.started)
        settle(gateway)
        held.append(gateway.resident() / MIB)
        run.servers.stop(gateway.process)
    shutil.rmtree(run.servers.folder / "start")
    return [
        Row.limit(f"start to ready with {count:,} Statuses", median(took), "s", 0.5),
        Row.limit("resident memory at rest", median(held), "MiB", 40.0),
    ]
