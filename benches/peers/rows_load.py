"""The rows about load of other kinds: large bodies, a fixed rate, storms of wrong passwords, connections that come and go."""

import subprocess
import sys
import time

import load
import servers
from rows_edge import BACKUP, OWN, PASSED, PEERS, edge, processor, resident
from rows_http import sim
from table import Row, at_least

LARGE = "/passed/large/body"
LARGE_BYTES = 1 << 30
FIXED_RATE = 2000
STORMS = (200, 1000)
# Longer than a queue without a limit takes to fill all connections.
STORM_SECONDS = 40
MIB = 1 << 20


def large(run):
    """A large body from the upstream, one at a time."""
    field = edge(run)
    size = LARGE_BYTES // (16 if run.quick else 1)
    folder = run.servers.folder / "edge-upstream" / "large"
    folder.mkdir(exist_ok=True)
    with open(folder / "body", "wb") as body:
        body.truncate(size)
    folder.parent.chmod(0o755)
    rows = []
    for name, at in (("plain", 0), ("over TLS", 1)):
        spent = {}

        def download(who, at=at, spent=spent):
            scheme = ("http", "https")[at]
            url = f"{scheme}://127.0.0.1:{field.ports[who][at]}{LARGE}"
            command = ["curl", "-skf", "--http1.1", "-o", "/dev/null", "-w", "%{size_download} %{time_total}", url]

            def once(_):
                before = processor(field.processes[who][at])
                got, took = servers.output(command).split()
                if int(got) != size:
                    raise load.Broken(f"{url}: {got} of {size} bytes")
                spent.setdefault(who, []).append((processor(field.processes[who][at]) - before) / size * (1 << 30))
                return size / float(took) / 1e6

            return once

        found = load.rounds([(who, download(who)) for who in (OWN, *PEERS)], run.rounds, run.seconds)
        rate = {who: load.median(all) for who, all in found.items()}
        cost = {who: load.median(all) for who, all in spent.items()}
        run.bars(f"large body passed on, {name}, MB/s", rate)
        best, least = max(PEERS, key=rate.get), min(PEERS, key=cost.get)
        rows += [
            Row(f"large body passed on, {name}", rate[OWN], "MB/s", best, rate[best], at_least(1.0)),
            Row("processor time of the same", cost[OWN], "s/GiB", least, cost[least], at_least(1.0), smaller=True),
        ]
    return rows


def fixed_rate(run):
    """Latency at a rate well below what each can do."""
    field = edge(run)
    log = run.servers.folder / "fixed.log"

    def once(port, path):
        def measured(seconds):
            log.unlink(missing_ok=True)
            command = ["h2load", "--h1", "-t1", f"-c{load.CLIENTS}", f"--rps={FIXED_RATE / load.CLIENTS}", f"-D{seconds}", f"--log-file={log}"]
            for name, value in load.HEADERS.items():
                command += ["-H", f"{name}: {value}"]
            subprocess.run([*command, f"http://127.0.0.1:{port}{path}"], check=True, capture_output=True, timeout=seconds + 60)
            lines = [line.split("\t") for line in log.read_text().splitlines()]
            # Requests under way at the end have no status.
            took = [int(line[2]) for line in lines if line[1] == "200"]
            if len(took) < 0.9 * FIXED_RATE * seconds:
                raise load.Broken(f"port {port}: {len(took)} answers in {seconds} s")
            return load.percentile(took, 0.5), load.percentile(took, 0.99)

        return measured

    rows = []
    for name, path in (("enforced GET", BACKUP), ("passed GET", PASSED)):
        found = load.rounds([(who, once(field.ports[who][0], path)) for who in (OWN, *PEERS)], run.rounds, run.seconds)
        for at, what in enumerate(("p50", "p99")):
            took = {who: load.median([both[at] for both in all]) for who, all in found.items()}
            run.bars(f"{name} at {FIXED_RATE:,} a second, {what}, us", took)
            best = min(PEERS, key=took.get)
            rows.append(Row(f"{name} at {FIXED_RATE:,} a second, {what}", took[OWN], "us", best, took[best], at_least(0.8), smaller=True))
    return rows


def storm(run):
    """An honest user while others send wrong passwords, each from an address of its own."""
    # A user for each storm, whose password was not checked before.
    users = [f"{servers.USER}{rate}" for rate in STORMS]
    extra = "".join(
        f'[[user]]\nname = "{user}"\npassword_hash = "{run.servers.bcrypt}"\n[[grant]]\nto = ["user:{user}"]\nactions = ["read"]\nvms = ["vm*"]\n'
        for user in users
    )
    gateway = run.servers.snapgate("storm", sim(4), extra=extra, server='trusted_proxies = ["127.0.0.1"]')
    log = run.servers.folder / "storm-answers.txt"
    honest = {"X-Forwarded-For": "192.0.2.7"}
    requests = 200 if run.quick else 2000
    quiet = load.latencies(gateway.port, BACKUP, requests, **honest)
    rows = []
    before = gateway.resident()
    for rate, user in zip(STORMS, users):
        seconds = 5 if run.quick else STORM_SECONDS
        with open(log, "wb") as summary:
            command = [sys.executable, str(servers.HERE / "storm.py"), str(gateway.port), str(rate), str(seconds)]
            attack = subprocess.Popen(command, stdout=summary)
        run.servers.running.append(attack)
        time.sleep(seconds / 2)
        caller, status, began = load.Caller(gateway.port), 503, time.monotonic()
        while status == 503 and time.monotonic() < began + 60:
            _, status, _ = caller.send("GET", BACKUP, Authorization=load.authorization(user), **honest)
        first = time.monotonic() - began
        if status != 200:
            raise load.Broken(f"the first log-in at {rate} wrong passwords a second: {status}")
        took = []
        until = time.monotonic() + seconds / 4
        while time.monotonic() < until:
            took += load.latencies(gateway.port, BACKUP, 50, **honest)
        grown = (gateway.resident() - before) / MIB
        attack.wait(seconds + 60)
        run.servers.running.remove(attack)
        slowest = load.percentile(took, 0.99) * 1e6
        usual = load.percentile(quiet, 0.99) * 1e6
        at = f"{rate:,} wrong passwords a second"
        rows += [
            Row.limit(f"first log-in at {at}", first, "s", 1.0, log.read_text().strip()),
            Row(f"GET with a cached password at {at}, p99", slowest, "us", "quiet", usual, at_least(0.5), smaller=True),
            Row.limit("memory that it took", grown, "MiB", 64.0),
        ]
    run.servers.stop(gateway.process)
    return rows


def churn(run):
    """Memory after connections that came and went, plain and over TLS."""
    field = edge(run)
    headers = {**load.HEADERS, "Connection": "close"}
    wanted, rows = run.scale(20_000), []
    for name, at in (("plain", 0), ("TLS", 1)):
        url = f"{('http', 'https')[at]}://127.0.0.1:{field.ports[OWN][at]}{BACKUP}"
        pid = field.processes[OWN][at]
        load.wrk(url, run.seconds, headers=headers)
        time.sleep(1)
        before, made = resident(pid), 0
        while made < wanted:
            made += load.wrk(url, run.seconds, headers=headers)[0] * run.seconds
        time.sleep(1)
        # It may be less than before: the first connections are made while others are torn down.
        grown = max(0.0, (resident(pid) - before) / MIB)
        rows.append(Row.limit(f"memory after {wanted:,} connections that came and went, {name}", grown, "MiB", 2.0))
    return rows
