"""The rows about the edge: small requests passed on, TLS, HTTP/2, uploads over a long line, the access log, idle connections."""

import socket
import ssl
import subprocess
import time
from pathlib import Path

import h2
import load
import servers
from delay import DelayingProxy, Sink
from rows_http import sim
from table import Row, at_least, shown

OWN, PEERS = "snapgate", ("nginx", "HAProxy")
BACKUP, PASSED, UPLOADED = "/vms/vm1/backups/456", "/passed/x", "/uploaded/x"
IDLE = 2000
# A line of 40 ms there and back.
ONE_WAY = 0.020
# Enough for a few seconds with the windows of the peers.
UPLOAD_BYTES = 16 << 20


class Edge:
    """The gateway, nginx and HAProxy, each on a plain port and one with TLS, before the same upstreams."""

    def __init__(self, run, suffix="", key_kind=("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1")):
        them = self.servers = run.servers
        folder = them.folder
        them.folder.chmod(0o755)
        certificate, key, pem = (folder / f"edge{suffix}.{ending}" for ending in ("crt", "key", "pem"))
        names = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"]
        command = ["openssl", "req", "-x509", "-nodes", "-days", "30", *key_kind, "-keyout", str(key), "-out", str(certificate), *names]
        subprocess.run(command, check=True, capture_output=True)
        pem.write_text(certificate.read_text() + key.read_text())
        self.sink = Sink()
        names = ("upstream", "nginx_plain", "nginx_tls", "haproxy_plain", "haproxy_tls")
        ports = {name: servers.free_port() for name in names}
        them.nginx(f"edge-upstream{suffix}", "upstream.conf", {"port": ports["upstream"], "body": "x" * 512})
        values = {**ports, "sink": self.sink.port, "certificate": certificate, "key": key, "pem": pem, "password": servers.PASSWORD}
        nginx = them.nginx(f"edge-nginx{suffix}", "edge.nginx.conf", values)
        path = them.render("edge.haproxy.cfg", f"edge{suffix}.haproxy.cfg", values)
        haproxy = them.start(["haproxy", "-db", "-f", str(path)], f"edge-haproxy{suffix}.log")
        passed = run.passthrough_config(ports["upstream"])
        passed += passed.replace("trivial", "sink").replace("/passed", "/uploaded").replace(str(ports["upstream"]), str(self.sink.port))
        tls = f'[[certificate]]\nchain = "{certificate}"\nkey = "{key}"\n'
        self.plain = them.snapgate(f"edge{suffix}", sim(4), extra=passed)
        self.tls = them.snapgate(f"edge-tls{suffix}", sim(4), extra=passed + tls)
        self.logged = them.snapgate(f"edge-logged{suffix}", sim(4), log=True)
        self.ports = {
            OWN: (self.plain.port, self.tls.port),
            "nginx": (ports["nginx_plain"], ports["nginx_tls"]),
            "HAProxy": (ports["haproxy_plain"], ports["haproxy_tls"]),
        }
        self.processes = {
            OWN: (self.plain.process.pid, self.tls.process.pid),
            "nginx": (nginx.pid, nginx.pid),
            "HAProxy": (haproxy.pid, haproxy.pid),
        }
        for both in self.ports.values():
            for port in both:
                servers.wait_for(port)


def edge(run):
    if not hasattr(run, "edge"):
        run.edge = Edge(run)
    return run.edge


def processor(pid):
    """Seconds of processor time of a process and its children."""
    return sum(processor_parts(pid))


def processor_parts(pid):
    """The same, outside and inside of the kernel."""
    outside = inside = 0
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            number, rest = stat.parent.name, stat.read_text().rsplit(")", 1)[1].split()
        except OSError:
            continue
        if int(number) == pid or int(rest[1]) == pid:
            outside, inside = outside + int(rest[11]), inside + int(rest[12])
    return outside / 100, inside / 100


def wrk(url, script=None):
    return lambda seconds: load.wrk(url, seconds, script=script)[0]


def h2load(port, path, streams, body=None):
    """HTTP/2 with so many requests at once on each of 32 connections."""

    def once(seconds):
        command = ["h2load", "-t1", f"-c{load.CLIENTS}", f"-m{streams}", f"-D{seconds}"]
        for name, value in load.HEADERS.items():
            command += ["-H", f"{name}: {value}"]
        if body:
            command += ["-d", str(body)]
        url = f"https://127.0.0.1:{port}{path}"
        ran = subprocess.run([*command, url], capture_output=True, text=True, timeout=seconds + 60)
        rate = [line for line in ran.stdout.splitlines() if line.startswith("finished in")]
        statuses = [line for line in ran.stdout.splitlines() if line.startswith("status codes")]
        if ran.returncode or not rate or ", 0 3xx, 0 4xx, 0 5xx" not in statuses[0]:
            raise load.Broken(f"{url}: {ran.stdout}{ran.stderr}")
        return float(rate[0].split(",")[1].split()[0])

    return once


def compared(run, name, target, reach, field=None):
    """Rates and processor time of one kind of request, beside the better peer of each. A target is a function of a name."""
    field = field or edge(run)
    spent = {}

    def timed(who):
        is_tls, once = target(who)
        pid = field.processes[who][is_tls]

        def measured(seconds):
            before = processor_parts(pid)
            rate = once(seconds)
            after = processor_parts(pid)
            spent.setdefault(who, []).append([(late - early) / (rate * seconds) * 1e6 for early, late in zip(before, after)])
            return rate

        return measured

    found = load.rounds([(who, timed(who)) for who in (OWN, *PEERS)], run.rounds, run.seconds)
    rate = {who: load.median(all) for who, all in found.items()}
    cost = {who: load.median([sum(parts) for parts in all]) for who, all in spent.items()}
    outside = {who: load.median([parts[0] for parts in all]) for who, all in spent.items()}
    run.bars(f"{name}, requests/s", rate)
    best, least = max(PEERS, key=rate.get), min(PEERS, key=cost.get)
    note = f"outside of the kernel {outside[OWN]:.1f} and {outside[least]:.1f} us"
    return [
        Row(name, rate[OWN], "req/s", best, rate[best], reach),
        Row("processor time of the same", cost[OWN], "us", least, cost[least], reach, smaller=True, note=note),
    ]


def small(run):
    """Small requests passed on: GETs and POSTs of 1 kB, plain, over TLS and over HTTP/2."""
    ports = edge(run).ports
    body = run.servers.folder / "kilobyte"
    body.write_bytes(b"x" * 1000)
    post = run.servers.folder / "post.lua"
    post.write_text('wrk.method = "POST"\nwrk.body = string.rep("x", 1000)\n')
    kinds = [
        ("passed GET, HTTP/1.1", lambda who: (0, wrk(f"http://127.0.0.1:{ports[who][0]}{PASSED}"))),
        ("passed GET, HTTP/1.1 over TLS", lambda who: (1, wrk(f"https://127.0.0.1:{ports[who][1]}{PASSED}"))),
        ("passed POST of 1 kB, HTTP/1.1", lambda who: (0, wrk(f"http://127.0.0.1:{ports[who][0]}{PASSED}", post))),
        ("passed POST of 1 kB, HTTP/2", lambda who: (1, h2load(ports[who][1], PASSED, 1, body))),
        ("passed GET, HTTP/2", lambda who: (1, h2load(ports[who][1], PASSED, 1))),
    ]
    return [row for name, target in kinds for row in compared(run, name, target, at_least(0.8))]


def http2(run):
    """Enforced GETs over HTTP/2, ten at once on each of 32 connections."""
    ports = edge(run).ports
    name = f"enforced GET, HTTP/2, {load.CLIENTS} connections x 10"
    return compared(run, name, lambda who: (1, h2load(ports[who][1], BACKUP, 10)), at_least(1.0))


def uploads(run):
    """One upload at a time through each, over a line of 40 ms."""
    ports, body = edge(run).ports, run.servers.folder / "upload"
    body.write_bytes(b"x" * (UPLOAD_BYTES // (8 if run.quick else 1)))

    def upload(who, version):
        line = DelayingProxy(ports[who][1], ONE_WAY)

        def once(_):
            url = f"https://127.0.0.1:{line.port}{UPLOADED}"
            command = ["curl", "-skf", version, "-H", "Expect:", "-X", "POST", "-T", str(body), "-o", "/dev/null", "-w", "%{time_total}", url]
            took = float(servers.output(command))
            return body.stat().st_size / took / 1e6

        return once

    found = load.rounds(
        [(who, upload(who, "--http2")) for who in (OWN, *PEERS)] + [("snapgate, HTTP/1.1", upload(OWN, "--http1.1"))],
        min(run.rounds, 3),
        run.seconds,
    )
    rate = {who: load.median(all) for who, all in found.items()}
    run.bars("upload over 40 ms, MB/s", rate)
    best = max(PEERS, key=rate.get)
    return [
        Row("upload over 40 ms, HTTP/2", rate[OWN], "MB/s", best, rate[best], at_least(1.0)),
        Row("the same over HTTP/1.1", rate["snapgate, HTTP/1.1"], "MB/s", "HTTP/2", rate[OWN], shown()),
    ]


def access_log(run):
    """Enforced GETs of a gateway with an access log, beside one without."""
    field = edge(run)
    found = load.rounds(
        [
            ("with", wrk(f"http://127.0.0.1:{field.logged.port}{BACKUP}")),
            ("without", wrk(f"http://127.0.0.1:{field.plain.port}{BACKUP}")),
        ],
        run.rounds,
        run.seconds,
    )
    rate = {who: load.median(all) for who, all in found.items()}
    return [Row("enforced GET with an access log", rate["with"], "req/s", "without", rate["without"], at_least(0.97))]


def spans(run):
    """Enforced GETs of a gateway that sends every request as a span to a collector, beside one that sends none."""
    field = edge(run)
    collector = Sink()
    tracing = f'[tracing]\nendpoint = "http://127.0.0.1:{collector.port}/v1/traces"\n'
    traced = run.servers.snapgate("edge-traced", sim(4), extra=tracing)
    spent = {}

    def timed(who, gateway):
        once = wrk(f"http://127.0.0.1:{gateway.port}{BACKUP}")

        def measured(seconds):
            before = processor(gateway.process.pid)
            rate = once(seconds)
            spent.setdefault(who, []).append((processor(gateway.process.pid) - before) / (rate * seconds) * 1e6)
            return rate

        return measured

    found = load.rounds([("with", timed("with", traced)), ("without", timed("without", field.plain))], run.rounds, run.seconds)
    rate = {who: load.median(all) for who, all in found.items()}
    cost = {who: load.median(all) for who, all in spent.items()}
    run.servers.stop(traced.process)
    collector.close()
    return [
        Row("enforced GET with export of spans", rate["with"], "req/s", "without", rate["without"], shown()),
        Row("processor time of the same", cost["with"], "us", "without", cost["without"], shown(), smaller=True),
    ]


def idle(run):
    """Memory of connections that have sent one request and wait."""
    count = run.scale(IDLE)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    head = f"GET /nothing HTTP/1.1\r\nHost: x\r\nX-Cloud-Client-Specification-Version: {servers.VERSION}\r\n\r\n".encode()

    def plain(port):
        client = socket.create_connection(("127.0.0.1", port), 30)
        client.sendall(head)
        client.recv(65536)
        return client

    def tls(port):
        client = context.wrap_socket(socket.create_connection(("127.0.0.1", port), 30))
        client.sendall(head)
        client.recv(65536)
        return client

    def many(port):
        client = h2.Connection(port)
        client.send("GET", "/nothing", {"x-cloud-client-specification-version": servers.VERSION})
        return client

    rows = []
    for name, at, connect, most in (("plain", 0, plain, 16), ("TLS", 1, tls, 28), ("HTTP/2", 1, many, None)):
        # New processes, because memory that was freed is used again.
        size, field = {}, Edge(run, f"-idle-{name.replace('/', '')}")
        for who in (OWN, *PEERS):
            # A few first, so that what is made once is not counted.
            held = [connect(field.ports[who][at]) for _ in range(20)]
            before = resident(field.processes[who][at])
            held += [connect(field.ports[who][at]) for _ in range(count)]
            time.sleep(0.5)
            size[who] = (resident(field.processes[who][at]) - before) / count / 1024
            for client in held:
                client.close()
            time.sleep(1)
        note = ", ".join(f"{who} {size[who]:.1f}" for who in PEERS)
        if most:
            rows.append(Row.limit(f"idle connection, {name}", size[OWN], "KiB", most, note))
        else:
            best = min(PEERS, key=size.get)
            rows.append(Row(f"idle connection, {name}", size[OWN], "KiB", best, size[best], shown(), smaller=True, note=note))
        run.bars(f"idle connection, {name}, KiB", size)
    return rows


def resident(pid):
    """Resident memory in bytes of a process and its children."""
    total = 0
    for status in Path("/proc").glob("[0-9]*/status"):
        try:
            found = dict(line.split(":", 1) for line in status.read_text().splitlines())
        except OSError:
            continue
        if pid in (int(found["Pid"]), int(found["PPid"])) and "VmRSS" in found:
            total += int(found["VmRSS"].split()[0]) * 1024
    return total
