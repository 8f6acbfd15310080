"""HTTP/2 frame by frame, as much as a client needs that sends one request after another."""

import ssl
import socket

DATA, HEADERS, SETTINGS, PING, WINDOW_UPDATE = 0, 1, 4, 6, 8
END_STREAM, END_HEADERS, ACK = 1, 4, 1
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"


def frame(kind, flags, stream, payload=b""):
    return len(payload).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + payload


def text(value):
    """A string of HPACK (RFC 7541 section 5.2), at most 4 KiB long, without Huffman coding."""
    raw = value.encode()
    if len(raw) < 127:
        return bytes([len(raw)]) + raw
    rest = len(raw) - 127
    coded = [127]
    while rest >= 128:
        coded.append(rest % 128 + 128)
        rest //= 128
    return bytes([*coded, rest]) + raw


def fields(pairs):
    """Literal fields that no table keeps."""
    return b"".join(b"\x00" + text(name.lower()) + text(value) for name, value in pairs)


class Connection:
    """One connection over TLS."""

    def __init__(self, port, timeout=120):
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        context.set_alpn_protocols(["h2"])
        plain = socket.create_connection(("127.0.0.1", port), timeout)
        plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket = context.wrap_socket(plain)
        self.received = b""
        self.next = 1
        self.socket.sendall(PREFACE + frame(SETTINGS, 0, 0))

    def read(self, count):
        while len(self.received) < count:
            piece = self.socket.recv(65536)
            if not piece:
                raise OSError("the connection ended")
            self.received += piece
        taken, self.received = self.received[:count], self.received[count:]
        return taken

    def send(self, method, path, headers, body=b""):
        """Sends one request and reads its response to the end. Returns the first byte of its fields: 0x88 is a 200."""
        stream, self.next = self.next, self.next + 2
        pairs = [(":method", method), (":scheme", "https"), (":authority", "localhost"), (":path", path), *headers.items()]
        if body:
            pairs.append(("content-length", str(len(body))))
        sent = frame(HEADERS, END_HEADERS | (0 if body else END_STREAM), stream, fields(pairs))
        if body:
            sent += frame(DATA, END_STREAM, stream, body)
        self.socket.sendall(sent)
        status = None
        while True:
            head = self.read(9)
            payload = self.read(int.from_bytes(head[:3], "big"))
            kind, flags, of = head[3], head[4], int.from_bytes(head[5:], "big")
            if kind == SETTINGS and not flags & ACK:
                self.socket.sendall(frame(SETTINGS, ACK, 0))
            elif kind == PING and not flags & ACK:
                self.socket.sendall(frame(PING, ACK, 0, payload))
            elif kind == DATA and payload:
                self.socket.sendall(frame(WINDOW_UPDATE, 0, 0, len(payload).to_bytes(4, "big")))
            elif kind == HEADERS and of == stream:
                # A change of the table's size may come first.
                status = next(byte for byte in payload if byte & 0xE0 != 0x20)
            if of == stream and kind in (DATA, HEADERS) and flags & END_STREAM:
                return status
            if of == stream and kind not in (DATA, HEADERS, WINDOW_UPDATE):
                raise OSError(f"stream {stream} ended with a frame of kind {kind}")

    def close(self):
        self.socket.close()
