"""Starts and stops the programs that are compared, each on a free port of the loopback interface."""

import json
import os
import random
import resource
import shutil
import signal
import socket
import subprocess
import time
import urllib.request
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
SNAPGATE = ROOT / "target/release/snapgate"
USER, PASSWORD = "ann", "correct horse battery staple"
# One hash for everybody who takes bcrypt: cost 10.
VERSION = "0.1"
ACCEPT = "application/vnd.com.sun.cloud.Backup+json"
ACTIONS = '["read", "create", "update", "protect", "delete", "restore", "observe"]'

# Ports that were given to servers, which need not listen yet.
given = set()


def free_port():
    """A port that is free now, below those that the system gives to connections: one of these could be in use when the server starts."""
    while True:
        port = random.randrange(10000, 32000)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        if port not in given:
            given.add(port)
            return port


def wait_for(port, seconds=30):
    """Until something accepts connections."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            return
        except OSError:
            time.sleep(0.02)
    raise SystemExit(f"nothing listens on port {port}")


def many_files():
    """Sockets for thousands of clients; the programs started from here inherit it."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


class Servers:
    """Everything that runs; stopped by process id at the end."""

    def __init__(self, folder):
        self.folder = Path(folder)
        self.running = []
        self.bcrypt = self.hash(["htpasswd", "-nbBC", "10", USER, PASSWORD])
        self.apr1 = self.hash(["htpasswd", "-nbm", USER, PASSWORD])
        self.sha256 = output(["openssl", "passwd", "-5", "-salt", "benchmark", PASSWORD])

    @staticmethod
    def hash(command):
        return output(command).split(":", 1)[1]

    def start(self, command, log):
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=open(self.folder / log, "wb"),
            cwd=self.folder,
        )
        self.running.append(process)
        return process

    def stop(self, process):
        """Asks it to stop, and waits until it has."""
        if process in self.running:
            self.running.remove(process)
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(15)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def stop_all(self):
        for process in list(reversed(self.running)):
            self.stop(process)

    def render(self, template, name, values):
        text = (HERE / template).read_text()
        for key, value in values.items():
            text = text.replace(f"@{key}@", str(value))
        path = self.folder / name
        path.write_text(text)
        return path

    def nginx(self, name, template, values):
        """One nginx with one worker. Its ports are in `values`."""
        prefix = self.folder / name
        prefix.mkdir()
        path = self.render(template, f"{name}/nginx.conf", {"folder": prefix, **values})
        return self.start(["nginx", "-p", str(prefix), "-c", str(path), "-e", "stderr"], f"{name}.log")

    def haproxy(self, values):
        path = self.render("haproxy.cfg", "haproxy.cfg", values)
        return self.start(["haproxy", "-db", "-f", str(path)], "haproxy.log")

    def snapgate(self, name, backends, extra="", grants=1, log=False, settings="", server="", store='store = "operations.sqlite"'):
        """One gateway with one worker thread, in a folder of its own. Waits until it is ready."""
        folder = self.folder / name
        folder.mkdir(exist_ok=True)
        port, admin = free_port(), free_port()
        others = "".join(
            f'[[grant]]\nto = ["user:{USER}"]\nactions = ["read"]\nvms = ["other-{number}-*"]\n'
            for number in range(1, grants)
        )
        values = {
            "port": port,
            "admin": admin,
            "bcrypt": self.bcrypt,
            "actions": ACTIONS,
            "others": others,
            "backends": backends,
            "log": "true" if log else "false",
            "settings": settings,
            "server": server,
            "store": store,
            "extra": extra,
        }
        path = self.render("snapgate.toml", f"{name}/snapgate.toml", values)
        began = time.monotonic()
        process = self.start([str(SNAPGATE), "serve", "--config", str(path)], f"{name}.log")
        gateway = Gateway(name, process, port, admin)
        gateway.started = gateway.wait_ready(began, self.folder / f"{name}.log")
        return gateway


class Gateway:
    """A snapgate that runs."""

    def __init__(self, name, process, port, admin):
        self.name, self.process, self.port, self.admin = name, process, port, admin

    def wait_ready(self, began, log):
        """Seconds from the start until it says that it is ready."""
        while time.monotonic() - began < 120:
            if self.process.poll() is not None:
                raise SystemExit(f"{self.name} ended: {log.read_text()[-2000:]}")
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{self.admin}/readyz", timeout=2):
                    return time.monotonic() - began
            except OSError:
                time.sleep(0.001)
        raise SystemExit(f"{self.name} is not ready")

    def resident(self):
        """Resident memory in bytes."""
        for line in Path(f"/proc/{self.process.pid}/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) * 1024
        raise SystemExit("no VmRSS")


def bare_program():
    """Pingora with nothing on top, built when it is not."""
    return bench_program("bare")


def bench_program(name):
    """The path of a program of benches/."""
    command = ["cargo", "build", "--release", "--locked", "--bench", name, "--message-format", "json"]
    built = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True).stdout
    found = [json.loads(line) for line in built.splitlines()]
    return next(made["executable"] for made in found if made.get("executable") and made["target"]["name"] == name)


def output(command):
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def install():
    """What the comparison needs from Debian, when something is missing and this may install it."""
    needed = {
        "nginx": "nginx-light",
        "haproxy": "haproxy",
        "wrk": "wrk",
        "h2load": "nghttp2-client",
        "curl": "curl",
        "htpasswd": "apache2-utils",
        "openssl": "openssl",
    }
    packages = [package for program, package in needed.items() if not shutil.which(program)]
    if packages:
        quiet = {"stdout": subprocess.DEVNULL, "env": {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}}
        subprocess.run(["apt-get", "update", "-qq"], check=True, **quiet)
        subprocess.run(["apt-get", "install", "-y", "-qq", "--no-install-recommends", *packages], check=True, **quiet)
