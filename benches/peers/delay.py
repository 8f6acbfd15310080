"""A TCP proxy that delays everything in both directions by the same time, as a long line does."""

import queue
import socket
import threading
import time

PIECE = 256 * 1024
# Pieces on the way in one direction: more than any window that is measured.
MOST = 4096


class DelayingProxy:
    """Accepts connections on a free port and passes them on to another one."""

    def __init__(self, port, delay):
        self.target, self.delay = port, delay
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        threading.Thread(target=self.accept, daemon=True).start()

    def accept(self):
        while True:
            try:
                client, _ = self.listener.accept()
            except OSError:
                return
            server = socket.create_connection(("127.0.0.1", self.target))
            for end in (client, server):
                end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            for source, target in ((client, server), (server, client)):
                on_the_way = queue.Queue(MOST)
                threading.Thread(target=self.read, args=(source, on_the_way), daemon=True).start()
                threading.Thread(target=self.write, args=(target, on_the_way), daemon=True).start()

    def read(self, source, on_the_way):
        piece = b"more"
        while piece:
            try:
                piece = source.recv(PIECE)
            except OSError:
                piece = b""
            on_the_way.put((time.monotonic() + self.delay, piece))

    @staticmethod
    def write(target, on_the_way):
        while True:
            due, piece = on_the_way.get()
            time.sleep(max(0.0, due - time.monotonic()))
            try:
                if not piece:
                    target.shutdown(socket.SHUT_WR)
                    return
                target.sendall(piece)
            except OSError:
                return

    def close(self):
        self.listener.close()


class Sink:
    """An HTTP/1.1 upstream that reads each request to its end before it answers."""

    def __init__(self):
        self.listener = socket.create_server(("127.0.0.1", 0), backlog=256)
        self.port = self.listener.getsockname()[1]
        threading.Thread(target=self.accept, daemon=True).start()

    def accept(self):
        while True:
            try:
                client, _ = self.listener.accept()
            except OSError:
                return
            threading.Thread(target=self.serve, args=(client,), daemon=True).start()

    @staticmethod
    def serve(client):
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        stream = client.makefile("rb", 1 << 20)
        try:
            while stream.readline():
                length, chunked = 0, False
                while (line := stream.readline()) not in (b"\r\n", b""):
                    name, _, value = line.partition(b":")
                    if name.lower() == b"content-length":
                        length = int(value)
                    chunked |= name.lower() == b"transfer-encoding"
                while chunked:
                    size = int(stream.readline(), 16)
                    stream.read(size + 2)
                    chunked = size > 0
                while length:
                    length -= len(stream.read(min(length, 1 << 20)))
                client.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
        except OSError:
            pass

    def close(self):
        self.listener.close()
