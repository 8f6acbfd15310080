"""Sends requests of every kind to a gateway until a file exists, and prints how many were answered, how many failed, and why.

    restart_load.py BACKUP_PATH STOP_FILE [TLS]     with TLS: HTTP/2 as well, and certificates are not verified

Clients follow the rules of HTTP and no more. A request is sent again only where the gateway promises that it did nothing: on a stream above
the last one of a GOAWAY (RFC 9113 section 6.8), or on a connection that had been idle for a second. Each change is waited for and must
have succeeded, and the stream of events must report each end once.
"""

import base64
import http.client
import json
import os
import socket
import ssl
import struct
import sys
import threading
import time

PATH, STOP = sys.argv[1], sys.argv[2]
ENCRYPTED = len(sys.argv) > 3
ADDRESS = ("127.0.0.1", 8080)
HEADERS = {
    "Authorization": "Basic " + base64.b64encode(b"demo:demo").decode(),
    "X-Cloud-Client-Specification-Version": "0.1",
}
STREAMS = 4
IDLE_PROMISE = 0.9
PATIENCE = 60

over, closing = threading.Event(), threading.Event()
lock = threading.Lock()
answered, failed, ends, seen = {}, [], {}, {}


def count(kind, problem=None):
    with lock:
        if problem is None:
            answered[kind] = answered.get(kind, 0) + 1
        else:
            failed.append(f"{kind}: {problem}")


def context(protocol):
    made = ssl.create_default_context()
    made.check_hostname = False
    made.verify_mode = ssl.CERT_NONE
    made.set_alpn_protocols([protocol])
    return made


def connect():
    if ENCRYPTED:
        return http.client.HTTPSConnection(*ADDRESS, timeout=PATIENCE, context=context("http/1.1"))
    return http.client.HTTPConnection(*ADDRESS, timeout=PATIENCE)


def ask(connection, method, path, more=None, body=None):
    connection.request(method, path, body=body, headers={**HEADERS, **(more or {})})
    answer = connection.getresponse()
    return answer, answer.read()


def kept():
    connection, since, idle = None, 0.0, 0.0
    while not over.is_set():
        try:
            if connection is None:
                connection, since = connect(), time.monotonic()
                connection.connect()
            connection.request("GET", PATH, headers=HEADERS)
            idle = time.monotonic() - since
            answer = connection.getresponse()
            answer.read()
            count("kept", None if answer.status == 200 else answer.status)
            since = time.monotonic()
            if answer.getheader("Connection", "").lower() == "close":
                connection.close()
                connection = None
        except Exception as error:
            is_crossing = isinstance(error, (ConnectionError, ssl.SSLError)) and idle >= IDLE_PROMISE
            if not is_crossing:
                count("kept", repr(error))
            connection, idle = None, 0.0


def fresh():
    while not over.is_set():
        connection = connect()
        try:
            answer, _ = ask(connection, "GET", PATH)
            count("fresh", None if answer.status == 200 else answer.status)
        except Exception as error:
            count("fresh", repr(error))
        connection.close()
        time.sleep(0.002)


def changes():
    """Updates, each of which is waited for to its end."""
    number = 0
    while not over.is_set():
        number += 1
        try:
            body = json.dumps({"tags": [f"n{number}"]})
            answer, text = ask(connect(), "PUT", PATH, {"Content-Type": "application/json", "Prefer": "wait=5"}, body)
            if answer.status != 202:
                count("changes", (answer.status, text))
                continue
            status = json.loads(text)
            while status["progress"] != 100:
                answer, text = ask(connect(), "GET", status["status_uri"], {"Prefer": "wait=5"})
                if answer.status != 200:
                    raise ValueError(answer.status)
                status = json.loads(text)
            ends[status["status_uri"]] = status["state"]
            count("changes", None if status["state"] == "SUCCESS" else status)
        except Exception as error:
            count("changes", repr(error))


def follow():
    """The stream of all Statuses, taken up after each end by the id of the last event."""
    last = None
    while not closing.is_set():
        try:
            more = {"Accept": "text/event-stream", **({"Last-Event-ID": last} if last else {})}
            connection = connect()
            connection.request("GET", "/statuses", headers={**HEADERS, **more})
            answer = connection.getresponse()
            if answer.status != 200:
                count("events", answer.status)
                continue
            identifier = None
            for line in answer:
                name, _, value = line.decode().rstrip("\n").partition(": ")
                if name == "id":
                    identifier = value
                elif name == "event" and value == "reset":
                    count("events", "reset")
                elif name == "data":
                    status = json.loads(value)
                    if isinstance(status, dict) and status.get("progress") == 100:
                        with lock:
                            seen.setdefault(status["status_uri"], []).append(status["state"])
                elif not line.strip() and identifier:
                    last = identifier
            count("events")
        except Exception as error:
            count("events", repr(error))


class Http2:
    """One connection of HTTP/2, with requests in the plainest form of HPACK."""

    def __init__(self):
        raw = socket.create_connection(ADDRESS, timeout=PATIENCE)
        raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket = context("h2").wrap_socket(raw)
        self.unread, self.next, self.last, self.waiting = b"", 1, None, {}
        # No table of fields, so that the status is always the first byte of a response after its update.
        settings = struct.pack(">HI", 1, 0) + struct.pack(">HI", 4, 1 << 20)
        self.socket.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + self.frame(4, 0, 0, settings))

    @staticmethod
    def frame(kind, flags, stream, payload=b""):
        return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload

    def send(self, path):
        fields = [(":method", "GET"), (":scheme", "https"), (":authority", "localhost"), (":path", path)]
        fields += [(name.lower(), value) for name, value in HEADERS.items()]
        block = b"".join(b"\0" + bytes([len(name)]) + name.encode() + bytes([len(value)]) + value.encode() for name, value in fields)
        self.waiting[self.next] = None
        self.socket.sendall(self.frame(1, 5, self.next, block))
        self.next += 2

    def receive(self):
        """Handles one frame. False at the end of the connection."""
        while len(self.unread) < 9 or len(self.unread) < 9 + int.from_bytes(self.unread[:3], "big"):
            piece = self.socket.recv(65536)
            if not piece:
                return False
            self.unread += piece
        length = int.from_bytes(self.unread[:3], "big")
        kind, flags, stream = struct.unpack(">BBI", self.unread[3:9])
        payload, self.unread = self.unread[9 : 9 + length], self.unread[9 + length :]
        if kind == 1:
            while payload[0] & 0xE0 == 0x20:
                payload = payload[1:]
            self.waiting[stream] = payload[0] == 0x88
        if kind in (0, 1) and flags & 1:
            count("http2", None if self.waiting.pop(stream) else "another status than 200")
        if kind == 3:
            self.waiting.pop(stream, None)
            count("http2", f"reset: {payload.hex()}")
        if kind == 4 and not flags & 1:
            self.socket.sendall(self.frame(4, 1, 0))
        if kind == 6 and not flags & 1:
            self.socket.sendall(self.frame(6, 1, 0, payload))
        if kind == 0 and length:
            self.socket.sendall(self.frame(8, 0, 0, struct.pack(">I", length)))
        if kind == 7:
            self.last, reason = struct.unpack(">II", payload[:8])
            if reason:
                count("http2", f"GOAWAY: {reason}")
            # The gateway promises that it does nothing for these: they are sent again on the next connection.
            for unprocessed in [stream for stream in self.waiting if stream > self.last]:
                del self.waiting[unprocessed]
        return True


def several_streams():
    while not over.is_set():
        try:
            connection = Http2()
            # A client that was asked to leave sends nothing more and waits for what it has sent.
            while connection.waiting or (connection.last is None and not over.is_set()):
                if not connection.waiting:
                    # The others need the processor as well.
                    time.sleep(0.005)
                    for _ in range(STREAMS):
                        connection.send(PATH)
                if not connection.receive():
                    break
            if connection.waiting:
                count("http2", f"{len(connection.waiting)} streams are not answered")
            connection.socket.close()
        except Exception as error:
            count("http2", repr(error))


def main():
    kinds = [kept] * 3 + [fresh, changes] + ([several_streams] * 2 if ENCRYPTED else [])
    threads = [threading.Thread(target=kind) for kind in kinds]
    follower = threading.Thread(target=follow, daemon=True)
    for thread in [*threads, follower]:
        thread.start()
    while not os.path.exists(STOP):
        time.sleep(0.1)
    over.set()
    for thread in threads:
        thread.join()
    until = time.monotonic() + PATIENCE
    while any(uri not in seen for uri in ends) and time.monotonic() < until:
        time.sleep(0.1)
    closing.set()
    for uri, state in ends.items():
        if seen.get(uri) != [state]:
            count("events", f"{uri} ended as {state}, and the stream said {seen.get(uri)}")
    for kind in {kind.__name__ for kind in kinds} - {"several_streams"} | ({"http2"} if ENCRYPTED else set()):
        if not answered.get(kind):
            count(kind, "nothing was answered")
    described = ", ".join(f"{number} {kind}" for kind, number in sorted(answered.items()))
    print(sum(answered.values()), len(failed), described, failed[:3])


main()
