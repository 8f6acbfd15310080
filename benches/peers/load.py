"""Load by wrk, requests one by one, and what the comparison says of both."""

import base64
import http.client
import json
import re
import statistics
import subprocess
import threading
import time

from servers import ACCEPT, PASSWORD, USER, VERSION

CLIENTS = 32


def authorization(user):
    """Credentials of a user; all have the same password."""
    return "Basic " + base64.b64encode(f"{user}:{PASSWORD}".encode()).decode()


AUTHORIZATION = authorization(USER)
HEADERS = {
    "Authorization": AUTHORIZATION,
    "X-Cloud-Client-Specification-Version": VERSION,
    "Accept": f"{ACCEPT}, application/json;q=0.5",
    "User-Agent": "bench/1.0",
}
UNITS = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0}


class Broken(Exception):
    """A server did not answer as it must."""


def wrk(url, seconds, clients=CLIENTS, script=None, headers=HEADERS):
    """One round: requests per second and the 99th percentile in seconds. Any answer but 2xx is an error."""
    command = ["wrk", "--latency", "-t1", f"-c{clients}", f"-d{seconds}s", "--timeout", "30s"]
    for name, value in headers.items():
        command += ["-H", f"{name}: {value}"]
    if script:
        command += ["-s", str(script)]
    ran = subprocess.run([*command, url], capture_output=True, text=True, timeout=seconds + 60)
    text = ran.stdout
    rate = re.search(r"Requests/sec:\s+([\d.]+)", text)
    slow = re.search(r"99%\s+([\d.]+)(us|ms|s|m)", text)
    if ran.returncode or not rate or not slow or "Non-2xx" in text:
        raise Broken(f"{url}: {text}{ran.stderr}")
    return float(rate[1]), float(slow[1]) * UNITS[slow[2]]


def rounds(targets, count, seconds):
    """Loads the targets in turn, so many times over; a target is (name, function of seconds that makes one round).

    The answer has for each name the list of what the rounds gave.
    """
    found = {name: [] for name, _ in targets}
    for number in range(count):
        # Every other round backwards: what one leaves behind is not always the same one's burden.
        for name, once in targets if number % 2 == 0 else reversed(targets):
            found[name].append(once(seconds))
    return found


def median(values):
    return statistics.median(values)


def percentile(values, share):
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


class Caller:
    """One connection that sends one request after another."""

    def __init__(self, port, timeout=120):
        self.connection = http.client.HTTPConnection("127.0.0.1", port, timeout=timeout)

    def send(self, method, path, body=None, **headers):
        """Seconds until the whole answer is there, its status, and its body if that is JSON."""
        sent = {**HEADERS, **{name.replace("_", "-"): value for name, value in headers.items()}}
        data = None
        if body is not None:
            data = json.dumps(body)
            sent["Content-Type"] = ACCEPT
        began = time.perf_counter()
        self.connection.request(method, path, data, sent)
        answer = self.connection.getresponse()
        raw = answer.read()
        took = time.perf_counter() - began
        kind = answer.headers.get("Content-Type", "")
        return took, answer.status, json.loads(raw) if raw and "json" in kind else {}


def latencies(port, path, count, method="GET", body=None, expected=200, **headers):
    """Seconds of so many requests, one after another on one connection."""
    caller = Caller(port)
    took = []
    for _ in range(count):
        seconds, status, answer = caller.send(method, path, body, **headers)
        if status != expected:
            raise Broken(f"{method} {path}: {status} {answer}")
        took.append(seconds)
    return took


class Holder:
    """Many connections that are only there: idle, or with a request that waits."""

    def __init__(self):
        self.sockets = []

    def open(self, port, count, request=b""):
        import socket

        def some(number):
            for _ in range(number):
                client = socket.create_connection(("127.0.0.1", port), 30)
                if request:
                    client.sendall(request)
                self.sockets.append(client)

        threads = [threading.Thread(target=some, args=(count // 4,)) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def close(self):
        for client in self.sockets:
            client.close()
        self.sockets = []
