"""The rows about TLS: enforced GETs, full handshakes, new connections, and clients that return with a session ticket."""

import socket
import ssl

import load
from rows_edge import BACKUP, OWN, PEERS, Edge, compared, edge, wrk
from table import Row, at_least

RETURNING = 10_000


def https(run):
    """Enforced GETs on kept TLS connections."""
    ports = edge(run).ports
    target = lambda who: (1, wrk(f"https://127.0.0.1:{ports[who][1]}{BACKUP}"))
    return compared(run, "enforced GET, HTTP/1.1 over TLS", target, at_least(1.0))


def connections(run):
    """A new connection for each request: plain, and with a full handshake for a key of each kind."""
    headers = {**load.HEADERS, "Connection": "close"}
    rows = []
    for name, at, field in (
        ("plain", 0, edge(run)),
        ("TLS, ECDSA P-256", 1, edge(run)),
        ("TLS, RSA-2048", 1, Edge(run, "-rsa", ["-newkey", "rsa:2048"])),
    ):
        scheme = ("http", "https")[at]

        def target(who, at=at, field=field, scheme=scheme):
            url = f"{scheme}://127.0.0.1:{field.ports[who][at]}{BACKUP}"
            return at, lambda seconds: load.wrk(url, seconds, headers=headers)[0]

        rows += compared(run, f"enforced GET on a new connection, {name}", target, at_least(1.0), field)
    return rows


def resumption(run):
    """TLS 1.3 clients that come back with the ticket of their first visit."""
    count = run.scale(RETURNING)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    head = b"GET /nothing HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"

    def visit(port, session=None):
        """The session that the server gave, and whether it took the former one."""
        plain = socket.create_connection(("127.0.0.1", port), 30)
        with context.wrap_socket(plain, session=session) as client:
            client.sendall(head)
            while client.recv(65536):
                pass
            return client.session, client.session_reused

    def resumed(port):
        sessions = [visit(port)[0] for _ in range(count)]
        return sum(visit(port, session)[1] for session in sessions)

    ports = edge(run).ports
    found = {who: resumed(ports[who][1]) for who in (OWN, *PEERS)}
    note = ", ".join(f"{who} {found[who]:,}" for who in PEERS)
    return [Row(f"of {count:,} returning TLS 1.3 clients, resumed", found[OWN], "", "all", count, at_least(1.0), note=note)]
