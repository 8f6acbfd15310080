#!/usr/bin/env python3
"""Sends so many requests of one kind to a gateway under callgrind, and prints the instructions of the whole process.

    served.py PROGRAM KIND TIMES

One worker thread, one connection, one request after another; every answer is checked. See `benches/count.sh`.
"""

import http.client
import socket
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

sys.dont_write_bytecode = True
sys.path.insert(0, str(Path(__file__).resolve().parent / "peers"))

import h2
import load
import servers
from rows_http import sim

PASSED, BACKUP = "/passed/x", "/vms/vm1/backups/456"
BODY = b"x" * 1000
ANSWER = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 512\r\n\r\n" + b"x" * 512


def answer(client):
    """An upstream that answers every request with the same text."""
    stream = client.makefile("rb")
    while stream.readline():
        length = 0
        while (line := stream.readline()) not in (b"\r\n", b""):
            if line.lower().startswith(b"content-length:"):
                length = int(line.split(b":")[1])
        stream.read(length)
        client.sendall(ANSWER)


def upstream():
    listener = socket.create_server(("127.0.0.1", 0))

    def accept():
        while True:
            client, _ = listener.accept()
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            threading.Thread(target=answer, args=(client,), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    return listener.getsockname()[1]


def http1(port, method, path, body):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)

    def once():
        connection.request(method, path, body, load.HEADERS)
        reply = connection.getresponse()
        text = reply.read()
        if reply.status != 200:
            raise SystemExit(f"{method} {path}: {reply.status} {text}")

    return once


def http2(port, method, path, body):
    connection = h2.Connection(port)

    def once():
        status = connection.send(method, path, load.HEADERS, body or b"")
        if status != 0x88:
            raise SystemExit(f"{method} {path}: not a 200 but {status:#x}")

    return once


KINDS = {
    "passed_get": (http1, "GET", PASSED, None),
    "passed_post": (http1, "POST", PASSED, BODY),
    "passed_get_http2": (http2, "GET", PASSED, None),
    "passed_post_http2": (http2, "POST", PASSED, BODY),
    "get_http2": (http2, "GET", BACKUP, None),
    "get_logged": (http1, "GET", BACKUP, None),
}


class Counted(servers.Servers):
    """Servers under callgrind."""

    def start(self, command, log):
        return super().start(["valgrind", "--quiet", "--tool=callgrind", f"--callgrind-out-file={self.folder}/counts", *command], log)


def certificate(folder):
    files = [str(folder / name) for name in ("key.pem", "certificate.pem")]
    curve = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"]
    command = ["openssl", "req", "-x509", "-nodes", "-days", "30", *curve, "-keyout", files[0], "-out", files[1]]
    subprocess.run([*command, "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"], check=True, capture_output=True)
    return f'[[certificate]]\nchain = "{files[1]}"\nkey = "{files[0]}"\n'


def main():
    program, kind, times = sys.argv[1], sys.argv[2], int(sys.argv[3])
    client, method, path, body = KINDS[kind]
    servers.SNAPGATE = Path(program).resolve()
    with tempfile.TemporaryDirectory() as folder:
        run = Counted(folder)
        extra = f'[[passthrough]]\nname = "trivial"\npath = "/passed"\nupstreams = ["http://127.0.0.1:{upstream()}"]\nauthentication = "none"\n'
        if client is http2:
            extra += certificate(Path(folder))
        gateway = run.snapgate("counted", sim(4), extra=extra, log=kind == "get_logged")
        once = client(gateway.port, method, path, body)
        for _ in range(times):
            once()
        run.stop_all()
        counts = (Path(folder) / "counts").read_text().splitlines()
    totals = next(line for line in counts if line.startswith(("summary:", "totals:")))
    print(totals.split()[1])


if __name__ == "__main__":
    main()
