"""The rows about requests per second: enforced GETs, other servers' ways to authenticate, pass-through, durable answers."""

import http.client
import subprocess

import load
import servers
from table import Row, at_least, shown


# benches/bare.rs: what the library underneath can do.
BARE = "Pingora, nothing on top"


def sim(count, backups=1, duration="1s", more=""):
    names = ", ".join(f'"vm{number}"' for number in range(count))
    return (
        f'[[backend]]\nname = "sim"\nkind = "sim"\nvms = ["vm*"]\n{more}[backend.sim]\nsimulated_vms = [{names}]\n'
        f'simulated_backups = {backups}\nduration = "{duration}"\n'
    )


class Field:
    """Everybody who is compared, running."""

    def __init__(self, run):
        self.run = run
        self.ports = {
            name: servers.free_port()
            for name in ("upstream", "checked", "logged", "bcrypt", "apr1", "plain", "crypted", "open", "haplain", "bare")
        }

    def start(self):
        run, ports, them = self.run, self.ports, self.run.servers
        passed = ""
        if run.passthrough:
            passed = run.passthrough_config(ports["upstream"])
        self.gateway = them.snapgate("sim", sim(4), extra=passed)
        self.logged = them.snapgate("sim-logged", sim(4), log=True)
        self.files = them.snapgate("files", run.files_backend("served"))
        body = load.Caller(self.gateway.port)
        body.connection.request("GET", "/vms/vm1/backups/456", headers=load.HEADERS)
        text = body.connection.getresponse().read().decode()
        them.nginx("upstream", "upstream.conf", {"port": ports["upstream"], "body": text})
        them.nginx("nginx", "nginx.conf", ports)
        for kind in ("bcrypt", "apr1"):
            path = them.folder / "nginx" / f"{kind}.htpasswd"
            path.write_text(f"{servers.USER}:{getattr(them, kind)}\n")
            path.chmod(0o644)
        them.folder.chmod(0o755)
        (them.folder / "nginx").chmod(0o755)
        secrets = {"sha256": them.sha256, "password": servers.PASSWORD}
        them.haproxy({**ports, **secrets, "plain": ports["haplain"]})
        them.start([servers.bare_program(), str(ports["bare"]), str(ports["upstream"]), text], "bare.log")
        for port in ports.values():
            servers.wait_for(port)
        self.image = run.make_file_backup(self.files)

    def target(self, port, path="/vms/vm1/backups/456", clients=load.CLIENTS):
        url = f"http://127.0.0.1:{port}{path}"
        return lambda seconds: load.wrk(url, seconds, clients)


def enforced(run):
    """GETs with everything checked, beside nginx without and with authentication, and beside HAProxy."""
    field = run.field()
    path = f"/vms/vm1/backups/{field.image}"
    targets = [
        ("snapgate, sim", field.target(field.gateway.port)),
        ("snapgate, files", field.target(field.files.port, path)),
        ("nginx, no authentication", field.target(field.ports["checked"])),
        ("snapgate, sim, access log", field.target(field.logged.port)),
        ("nginx, no authentication, access log", field.target(field.ports["logged"])),
        ("HAProxy, plain userlist", field.target(field.ports["open"])),
        ("nginx, apr1", field.target(field.ports["apr1"])),
        (BARE, field.target(field.ports["bare"])),
    ]
    # Password hashes at every request: a handful of requests a second, which few clients show as well as many.
    slow = [
        ("HAProxy, SHA-256 crypt", field.target(field.ports["crypted"])),
        ("nginx, bcrypt cost 10", field.target(field.ports["bcrypt"])),
    ]
    found = load.rounds(targets + slow, run.rounds, run.seconds)
    rate = {name: load.median([one[0] for one in all]) for name, all in found.items()}
    slowest = {name: load.median([one[1] for one in all]) for name, all in found.items()}
    own, base = "snapgate, sim", "nginx, no authentication"
    run.bars("GET of a Backup, requests/s", rate)
    rows = [
        Row("enforced GET, sim", rate[own], "req/s", base, rate[base], at_least(1.0)),
        Row("p99 of the same", slowest[own] * 1e3, "ms", base, slowest[base] * 1e3, at_least(1.0), smaller=True),
    ]
    logged = f"{base}, access log"
    rows.append(Row("enforced GET, sim, both with access logs", rate[f"{own}, access log"], "req/s", logged, rate[logged], shown()))
    for other in ("nginx, bcrypt cost 10", "nginx, apr1", "HAProxy, SHA-256 crypt", "HAProxy, plain userlist"):
        rows.append(Row("enforced GET, sim", rate[own], "req/s", other, rate[other], at_least(1.0)))
    rows.append(Row("enforced GET, files", rate["snapgate, files"], "req/s", own, rate[own], at_least(0.8)))
    rows.append(Row("enforced GET, sim", rate[own], "req/s", BARE, rate[BARE], shown()))
    return rows


def passthrough(run):
    """GETs passed on to the trivial upstream, beside nginx and HAProxy doing the same."""
    if not run.passthrough:
        return [Row.absent("pass-through GET", "this version passes nothing on")]
    field = run.field()
    found = load.rounds(
        [
            ("snapgate", field.target(field.gateway.port, "/passed/x")),
            ("nginx", field.target(field.ports["plain"], "/passed/x")),
            ("HAProxy", field.target(field.ports["haplain"], "/passed/x")),
            (BARE, field.target(field.ports["bare"], "/passed/x")),
        ],
        run.rounds,
        run.seconds,
    )
    rate = {name: load.median([one[0] for one in all]) for name, all in found.items()}
    run.bars("pass-through GET, requests/s", rate)
    best = max(("nginx", "HAProxy"), key=rate.get)
    return [
        Row("pass-through GET", rate["snapgate"], "req/s", best, rate[best], at_least(0.8)),
        Row("pass-through GET", rate["snapgate"], "req/s", BARE, rate[BARE], shown()),
        Row(f"pass-through GET of {BARE}", rate[BARE], "req/s", best, rate[best], shown()),
    ]


def durable(run):
    """Updates answered 202 once they are durable, beside bare appends with group commit on the same disk.

    With `Prefer: respond-async` each 202 comes after one durable write, as each answer of the appends does; the write of the end
    comes later, within the same round. Without it an update is answered at its end: two durable writes, one after the other. The
    backend takes as many at once as there are clients: its default of four is for real VM managers.
    """
    program = run.servers.folder / "append"
    subprocess.run(["rustc", "-O", "--edition", "2024", "-o", str(program), str(servers.HERE / "append.rs")], check=True)
    gateway = run.servers.snapgate("durable", sim(512, more="concurrency = 256\n"), settings='queue_total = 100000\nretention = "1d"')
    url = f"http://127.0.0.1:{gateway.port}/"
    script = servers.HERE / "update.lua"
    headers = {name: value for name, value in load.HEADERS.items() if name != "Accept"}

    ways = {
        "durable 202, respond-async": {**headers, "Prefer": "respond-async"},
        "the same, its end in the answer: two writes in a row": headers,
    }

    def ours(clients, sent):
        return lambda seconds: load.wrk(url, seconds, clients, script, sent)

    def bare(clients):
        def once(seconds):
            path = run.servers.folder / "append.log"
            command = [str(program), str(path), str(clients), str(seconds), "512"]
            rate = float(servers.output(command))
            path.unlink()
            return rate, 0.0

        return once

    rows = []
    for clients in (1, 16, 256):
        floor = "append + fdatasync"
        targets = [(name, ours(clients, sent)) for name, sent in ways.items()]
        found = load.rounds([*targets, (floor, bare(clients))], run.rounds, run.seconds)
        rate = {name: load.median([one[0] for one in all]) for name, all in found.items()}
        reach = at_least(0.3) if clients == 16 else shown()
        rows += [Row(f"{name}, {clients} clients", rate[name], "req/s", floor, rate[floor], reach) for name in ways]
        run.bars(f"durable, {clients} clients, per second", rate)
    connection = http.client.HTTPConnection("127.0.0.1", gateway.admin)
    connection.request("GET", "/metrics")
    text = connection.getresponse().read().decode()
    rows[-1].note = commits(text)
    run.servers.stop(gateway.process)
    return rows


def commits(metrics):
    """What the gateway says of its own commits."""
    found = {"sum": 0.0, "count": 0.0}
    for line in metrics.splitlines():
        for kind in found:
            if line.startswith(f"snapgate_store_commit_duration_seconds_{kind}{{"):
                found[kind] += float(line.rsplit(" ", 1)[1])
    if not found["count"]:
        return ""
    return f"{found['count']:.0f} commits, {found['sum'] / found['count'] * 1e3:.2f} ms each"
