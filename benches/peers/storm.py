#!/usr/bin/env python3
"""Sends requests with wrong passwords at a fixed rate, each as a user and on a connection of its own, from 500 addresses.

    storm.py PORT RATE SECONDS

The addresses are in X-Forwarded-For: the gateway must trust 127.0.0.1. Prints how many were answered with which status.
"""

import base64
import collections
import random
import selectors
import socket
import sys
import time

# A client that has no answer by then hangs up.
PATIENCE = 30
# Each of them fails again and again.
ADDRESSES = 500


def request(number):
    high, low = divmod(random.randrange(ADDRESSES), 250)
    address = f"10.{high}.{low}.1"
    pair = base64.b64encode(f"user{number}:guess{number}".encode()).decode()
    return (
        f"GET /vms/vm1/backups/456 HTTP/1.1\r\nHost: x\r\nConnection: close\r\nX-Forwarded-For: {address}\r\n"
        f"Authorization: Basic {pair}\r\nX-Cloud-Client-Specification-Version: 0.1\r\n\r\n"
    ).encode()


def main():
    port, rate, seconds = int(sys.argv[1]), float(sys.argv[2]), float(sys.argv[3])
    open_ones, answers = selectors.DefaultSelector(), collections.Counter()
    began, sent = time.monotonic(), 0
    while (now := time.monotonic()) < began + seconds:
        while sent < (now - began) * rate:
            client = socket.socket()
            client.setblocking(False)
            try:
                client.connect(("127.0.0.1", port))
            except BlockingIOError:
                pass
            except OSError:
                answers["not connected"] += 1
                client.close()
                sent += 1
                continue
            open_ones.register(client, selectors.EVENT_WRITE, (sent, now + PATIENCE))
            sent += 1
        for key, events in open_ones.select(0.005):
            client, (number, until) = key.fileobj, key.data
            try:
                if events & selectors.EVENT_WRITE:
                    client.sendall(request(number))
                    open_ones.modify(client, selectors.EVENT_READ, key.data)
                    continue
                text = client.recv(4096)
                answers[text[9:12].decode() or "closed"] += 1
            except OSError:
                answers["broken"] += 1
            open_ones.unregister(client)
            client.close()
        if sent % 100 == 0:
            for key in [key for key in open_ones.get_map().values() if key.data[1] < now]:
                answers["no answer"] += 1
                open_ones.unregister(key.fileobj)
                key.fileobj.close()
    answers["waiting at the end"] = len(open_ones.get_map())
    print(", ".join(f"{count} {what}" for what, count in sorted(answers.items())))


if __name__ == "__main__":
    main()
