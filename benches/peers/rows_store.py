"""The rows about the store and about work that goes on elsewhere: commits, lists, operations that are followed."""

import re
import shutil
import subprocess
import sys
import threading
import time

import load
import servers
from rows_edge import processor
from rows_http import sim
from rows_work import SilentManager, changed
from table import Row, at_least, shown

UPDATE = "durable 202, respond-async"
FOLLOWED = (50, 1000)
# All of one VM manager, so that its connections can be counted.
BACKENDS = 50
LOOK_AT_ALL = ("very first list", "name=...", "a prefix of 10", "that none has")
UNITS = {"ns": 1e-3, "µs": 1.0, "ms": 1e3, "s": 1e6}


def commits(run):
    """Updates answered 202 once they are durable, beside the store's own transactions with the same record, 16 and 256 at once."""
    gateway = run.servers.snapgate("commits", sim(512, more="concurrency = 256\n"), settings='queue_total = 100000\nretention = "1d"')
    url = f"http://127.0.0.1:{gateway.port}/"
    headers = {name: value for name, value in load.HEADERS.items() if name != "Accept"} | {"Prefer": "respond-async"}
    model = run.servers.snapgate("commits-model", sim(4))
    changed(load.Caller(model.port), "PUT", "/vms/vm1/backups/456", {"description": "first"})
    run.servers.stop(model.process)
    folder = run.servers.folder
    rows = []
    for clients in (16, 256):

        def ours(seconds, clients=clients):
            return load.wrk(url, seconds, clients, servers.HERE / "update.lua", headers)

        def bare(seconds, clients=clients):
            shutil.copy(folder / "commits-model" / "operations.sqlite", folder / "commits.sqlite")
            command = [sys.executable, str(servers.HERE / "commit.py"), str(folder / "commits.sqlite"), str(clients), str(seconds)]
            rate = float(servers.output(command))
            for file in folder.glob("commits.sqlite*"):
                file.unlink()
            return rate, clients / rate

        found = load.rounds([("ours", ours), ("bare", bare)], run.rounds, run.seconds)
        rate = {name: load.median([both[0] for both in all]) for name, all in found.items()}
        slowest = load.median([both[1] for both in found["ours"]]) * 1e3
        commit = load.median([both[1] for both in found["bare"]]) * 1e3
        base = "the store's own group commit"
        run.bars(f"durable, {clients} clients, per second", {f"snapgate, {UPDATE}": rate["ours"], base: rate["bare"]})
        rows += [
            Row(f"{UPDATE}, {clients} clients", rate["ours"], "req/s", base, rate["bare"], at_least(0.5)),
            Row(f"p99 of the same, {clients} clients", slowest, "ms", "one commit", commit, at_least(1 / 3), smaller=True),
        ]
    run.servers.stop(gateway.process)
    return rows


def lists(run):
    """What `cargo bench --bench lists` prints: each figure with little and with much in the store."""
    if run.quick:
        return [Row.absent("lists", "only in a whole run: cargo bench --bench lists")]
    text = servers.output(["cargo", "bench", "--quiet", "--locked", "--bench", "lists", "--manifest-path", str(servers.ROOT / "Cargo.toml")])
    rows, title = [], ""
    for line in text.splitlines():
        found = re.fullmatch(r"(.+?) {2,}((?:[\d.]+(?:ns|µs|ms|s) *)+)x([\d.]+)", line)
        if found:
            few, many = (microseconds(word) for word in (found[2].split()[0], found[2].split()[-1]))
            reach = at_least(1 / 2 if "listers" in found[1] else 1 / 1.2)
            # These look at everything in memory, by intent.
            if any(word in found[1] for word in LOOK_AT_ALL):
                reach = shown()
            rows.append(Row(f"{title}: {found[1].strip()}", many, "us", "smallest", few, reach, smaller=True))
        elif line.strip():
            title = re.split(r" {2,}|\[", line.strip())[0].replace("`", "")
    if not rows:
        raise load.Broken(f"no rows: {text}")
    return rows


def microseconds(text):
    found = re.fullmatch(r"([\d.]+)(ns|µs|ms|s)", text)
    return float(found[1]) * UNITS[found[2]]


def followed(run):
    """Operations that go on in a VM manager that must be asked: what each costs with few and with many."""
    figures = {}
    seconds = 3 if run.quick else 20
    for count in (FOLLOWED[0], max(2 * FOLLOWED[0], run.scale(FOLLOWED[1]))):
        name = f"followed-{count}"
        path = run.servers.folder / f"{name}.socket"
        manager = SilentManager(str(path))
        manager.duration = 3600
        threading.Thread(target=manager.serve_forever, daemon=True).start()
        backend = f'[[backend]]\nname = "sim"\nkind = "sim"\nvms = ["vm*"]\nconcurrency = 32\n[backend.sim]\nsimulator = "unix:{path}"\n'
        backends = "".join(backend.replace('"sim"\nkind', f'"sim{number}"\nkind').replace("vm*", f"vm{number}-*") for number in range(BACKENDS))
        gateway = run.servers.snapgate(name, backends, settings="queue_total = 100000")
        caller = load.Caller(gateway.port)
        for number in range(count):
            _, status, answer = caller.send("POST", f"/vms/vm{number % BACKENDS}-{number}/backups/456/restore", {}, Accept="*/*", Prefer="respond-async")
            if status != 202:
                raise load.Broken(f"restore {number}: {status} {answer}")
        # Until all are followed, at the longest interval.
        time.sleep(seconds)
        polls, spent = manager.polls, processor(gateway.process.pid)
        time.sleep(seconds)
        polls, spent = manager.polls - polls, processor(gateway.process.pid) - spent
        figures[count] = (polls / seconds / count, spent / polls * 1e6, manager.connections_at_once)
        run.servers.stop(gateway.process)
        manager.shutdown()
        manager.server_close()
    (few, least), (many, most) = figures.items()
    return [
        Row(f"polls a second of each of {many:,} operations on {BACKENDS} backends", most[0], "", f"of {few}", least[0], at_least(1 / 1.2), smaller=True),
        Row("processor time of a poll", most[1], "us", f"with {few}", least[1], at_least(1 / 1.2), smaller=True),
        Row("connections to the VM manager at once", most[2], "", f"with {few}", least[2], shown(), smaller=True),
    ]
