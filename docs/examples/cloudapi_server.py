#!/usr/bin/env python3
"""A small server that speaks the Cloud API for backups, to be copied: the standard library of Python 3.11, nothing else.

A VM is a directory with a file `disk.img`; a backup is a copy of it. Replace `copy` and the two places that call it
with what your VM manager does. Everything else is the API: durable Statuses, Idempotency-Key, paging, entity tags.

    cloudapi_server.py --data DIR --listen unix:/run/vmm.socket|127.0.0.1:8000 [--user NAME --password-file FILE]

DIR holds vms/<vm>/disk.img, backups/ and state.sqlite. What this server was doing when it died, it ends after its next
start: once, and never half. Keep it on loopback or a unix socket; TLS is not its business.
"""
import argparse, base64, contextlib, hashlib, hmac, json, os, re, shutil, socketserver, sqlite3, threading, time
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from urllib.parse import parse_qs, quote, unquote, urlsplit

SCHEMA = """
CREATE TABLE IF NOT EXISTS backups(id INTEGER PRIMARY KEY AUTOINCREMENT, vm TEXT, name TEXT, description TEXT,
  tags TEXT, protected INTEGER, created TEXT, size INTEGER, UNIQUE(vm, name));
CREATE TABLE IF NOT EXISTS operations(seq INTEGER PRIMARY KEY AUTOINCREMENT, user TEXT, op TEXT, vm TEXT, backup INTEGER,
  body TEXT, key TEXT, fingerprint TEXT, state TEXT, status INTEGER, message TEXT, ended REAL, UNIQUE(user, key));
"""
KEPT_SECONDS = 7 * 24 * 3600  # How long Statuses and keys are kept; a gateway relies on one day.


class Refused(Exception):
    """An error reply: HTTP status, a code that never changes, a sentence for a person."""

    def __init__(self, status, code, text):
        super().__init__(text)
        self.status, self.code = status, code


class Store:
    """Backups and operations in one SQLite file; an operation is on disk before it is answered."""

    def __init__(self, data):
        self.data, self.changed = Path(data), threading.Condition()
        (self.data / "backups").mkdir(exist_ok=True)
        self.db = sqlite3.connect(self.data / "state.sqlite", check_same_thread=False, isolation_level=None)
        self.db.row_factory = sqlite3.Row
        self.db.execute("PRAGMA synchronous = FULL")
        self.db.executescript(SCHEMA)

    def rows(self, sql, *values):
        with self.changed:
            return self.db.execute(sql, values).fetchall()

    @contextlib.contextmanager
    def transaction(self):
        with self.changed:
            self.db.execute("BEGIN IMMEDIATE")
            try:
                yield self.db
            except BaseException:
                self.db.execute("ROLLBACK")
                raise
            self.db.execute("COMMIT")
            self.changed.notify_all()

    def disk(self, vm):
        return self.data / "vms" / vm / "disk.img"

    def file(self, backup):
        return self.data / "backups" / f"{backup}.img"


def copy(source, target):
    """Copies so that `target` is whole on disk when this returns."""
    with open(source, "rb") as reading, open(target, "wb") as writing:
        shutil.copyfileobj(reading, writing, 1 << 20)
        writing.flush()
        os.fsync(writing.fileno())
    sync(target.parent)


def sync(folder):
    """Makes names in a directory survive a power failure."""
    opened = os.open(folder, os.O_RDONLY)
    os.fsync(opened)
    os.close(opened)


def work(store):
    """Carries out one operation after the other, for ever. What was begun before a crash comes first."""
    while True:
        todo = store.rows("SELECT * FROM operations WHERE ended IS NULL ORDER BY seq LIMIT 1")
        if not todo:
            with store.changed:
                store.changed.wait(0.5)
            continue
        (it,) = todo
        try:
            carry_out(store, it)
            end(store, it, "SUCCESS", 201 if it["op"] == "back_up" else 200, "It was done.")
        except OSError as error:
            half = store.file(it["backup"]) if it["op"] == "back_up" else store.disk(it["vm"]).with_name(f".restore-{it['seq']}")
            half.unlink(missing_ok=True)
            end(store, it, "FAILED", 507 if error.errno == 28 else 500, "It failed; nothing was changed.")


def carry_out(store, it):
    """Does it. Every step may be done again; the one that must not be is marked by the file that it uses up."""
    disk, file, body = store.disk(it["vm"]), store.file(it["backup"]), json.loads(it["body"])
    if it["op"] == "back_up":
        copy(disk, file)
    elif it["op"] == "restore-Backup":
        ready = disk.with_name(f".restore-{it['seq']}")
        if it["state"] != "SWITCHING":
            copy(file, ready)
            with store.transaction() as db:
                db.execute("UPDATE operations SET state = 'SWITCHING' WHERE seq = ?", (it["seq"],))
        if ready.exists():  # Else it took its place before a crash.
            os.replace(ready, disk)
        sync(disk.parent)
    elif it["op"] == "delete-Backup":
        file.unlink(missing_ok=True)


def end(store, it, state, status, message):
    """Records the outcome together with what it does to the backup."""
    with store.transaction() as db:
        if state == "SUCCESS" and it["op"] == "back_up":
            db.execute("UPDATE backups SET size = ? WHERE id = ?", (store.file(it["backup"]).stat().st_size, it["backup"]))
        elif it["op"] == "delete-Backup" and state == "SUCCESS" or it["op"] == "back_up":
            db.execute("DELETE FROM backups WHERE id = ?", (it["backup"],))
        db.execute("UPDATE operations SET state = ?, status = ?, message = ?, ended = ? WHERE seq = ?",
                   (state, status, message, time.time(), it["seq"]))
        db.execute("DELETE FROM operations WHERE ended < ?", (time.time() - KEPT_SECONDS,))


def utc():
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    store = user = password = None

    def address_string(self):
        return "client"

    def do(self):
        try:
            length = self.headers.get("Content-Length", "0")
            if not length.isdigit() or int(length) > 1 << 20 or "Transfer-Encoding" in self.headers:
                self.close_connection = True
                raise Refused(413, "BodyTooLarge", "Send a body of at most 1 MiB with its Content-Length.")
            self.body = self.rfile.read(int(length))
            status, told, headers = self.route()
        except ValueError:
            status, told, headers = 400, {"message": [{"code": "InvalidParameter", "text": "A number was expected."}]}, {}
        except Refused as it:
            message = {"code": it.code, "severity": "SEVERE", "text": str(it)}
            status, told, headers = it.status, {"message": [message]}, {}
        data = json.dumps(told).encode()
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    do_GET = do_POST = do_PUT = do_DELETE = do

    def route(self):
        parts = urlsplit(self.path)
        path = [unquote(it) for it in parts.path.split("/")[1:]]
        self.query = {name: values[0] for name, values in parse_qs(parts.query).items()}
        if path == ["versions"]:
            return 200, {"specification_version": "0.1", "implementation_version": "example 1"}, {}
        given = self.headers.get("Authorization", "")
        wanted = "Basic " + base64.b64encode(f"{self.user}:{self.password}".encode()).decode()
        if self.user and not hmac.compare_digest(given.encode(), wanted.encode()):
            raise Refused(401, "Unauthenticated", "Send valid credentials.")
        match (self.command, path):
            case ("GET", ["statuses"]):
                return self.statuses()
            case ("GET", ["vms", vm]):
                self.vm(vm)
                return 200, {"name": vm, "uri": f"/vms/{quote(vm, '')}"}, {}
            case ("GET", ["vms", vm, "backups"]):
                return self.backups(self.vm(vm))
            case ("POST", ["vms", vm, "backups"]):
                return self.accept("back_up", self.vm(vm), None)
            case ("GET", ["vms", vm, "backups", b]):
                told = self.told(self.backup(self.vm(vm), b))
                return 200, told, {"ETag": tag(told)}
            case ("PUT", ["vms", vm, "backups", b]):
                return self.accept("update-Backup", self.vm(vm), b)
            case ("DELETE", ["vms", vm, "backups", b]):
                return self.accept("delete-Backup", self.vm(vm), b)
            case ("POST", ["vms", vm, "backups", b, "restore"]):
                return self.accept("restore-Backup", self.vm(vm), b)
        raise Refused(404, "NoSuchRoute", "There is nothing at this path.")

    def vm(self, vm):
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", vm) or not self.store.disk(vm).is_file():
            raise Refused(404, "NoSuchVm", "There is no such VM.")
        return vm

    def backup(self, vm, b):
        found = self.store.rows("SELECT * FROM backups WHERE vm = ? AND id = ?", vm, int(b) if b.isdigit() else -1)
        if not found or str(found[0]["id"]) != b:
            raise Refused(404, "NoSuchBackup", "The VM has no such backup.")
        return found[0]

    def told(self, it):
        uri = f"/vms/{quote(it['vm'], '')}/backups/{it['id']}"
        return {"name": it["name"], "uri": uri, "restore": uri + "/restore", "description": it["description"],
                "type": "full", "created": it["created"], "tags": json.loads(it["tags"]), "size": it["size"],
                "state": "CREATING" if it["size"] is None else "AVAILABLE", "protected": bool(it["protected"])}

    def backups(self, vm):
        limit = max(1, min(int(self.query.get("limit", "100")), 1000))
        after = int(self.query.get("after", "0"))
        sql = "SELECT * FROM backups WHERE vm = ? AND id > ? ORDER BY id LIMIT ?"
        found = self.store.rows(sql, vm, after, limit + 1)
        shown = found[:limit]
        next = f'</vms/{quote(vm, "")}/backups?limit={limit}&after={shown[-1]["id"]}>; rel="next"' if len(found) > limit else None
        return 200, {"backups": [self.told(it) for it in shown]}, {"Link": next} if next else {}

    def statuses(self):
        """One by `seq`, held back with `Prefer: wait=N`; else those of the caller, the newest first."""
        wait = re.fullmatch(r"wait=(\d+)", self.headers.get("Prefer", ""))
        if "seq" not in self.query:
            sql = "SELECT * FROM operations WHERE user IS ? AND op = coalesce(?, op) AND vm = coalesce(?, vm) ORDER BY seq DESC LIMIT ?"
            limit = max(1, min(int(self.query.get("limit", "100")), 1000))
            found = self.store.rows(sql, self.user, self.query.get("op"), self.query.get("vm"), limit)
            return 200, {"statuses": [status(it) for it in found]}, {}
        sql = "SELECT * FROM operations WHERE user IS ? AND seq = ?"
        found = self.store.rows(sql, self.user, self.query["seq"])
        until = time.monotonic() + min(int(wait[1]), 50) if wait else 0
        while found and found[0]["ended"] is None and time.monotonic() < until:
            with self.store.changed:
                self.store.changed.wait(until - time.monotonic())
            found = self.store.rows(sql, self.user, self.query["seq"])
        if not found:
            raise Refused(404, "NoSuchStatus", "There is no such Status, or it is no longer kept.")
        return 200, status(found[0]), ({"Preference-Applied": wait[0]} if wait else {}) | {"Retry-After": "1"}

    def accept(self, op, vm, b):
        """Checks, and puts the operation on disk: one transaction. A known key is answered before anything is looked at."""
        key = self.headers.get("Idempotency-Key")
        text = f"{self.command} {self.path}\n".encode() + self.body
        with self.store.transaction() as db:
            sql = "SELECT * FROM operations WHERE user IS ? AND key = ?"
            known = db.execute(sql, (self.user, key)).fetchone() if key else None
            if known and known["fingerprint"] != hashlib.sha256(text).hexdigest():
                raise Refused(422, "IdempotencyKeyReused", "The key was used for another request.")
            if not known:
                body = self.members(op)
                if op == "back_up":
                    b = self.inserted(db, vm, body)
                else:
                    self.check(db, op, self.backup(vm, b), body)
                sql = "INSERT INTO operations(user, op, vm, backup, body, key, fingerprint, state) VALUES (?, ?, ?, ?, ?, ?, ?, 'QUEUED')"
                row = (self.user, op, vm, int(b), json.dumps(body), key, hashlib.sha256(text).hexdigest())
                seq = db.execute(sql, row).lastrowid
                known = db.execute("SELECT * FROM operations WHERE seq = ?", (seq,)).fetchone()
        told = status(known)
        return 202, told, {"Location": told["status_uri"], "Retry-After": "1"}

    def members(self, op):
        try:
            body = json.loads(self.body or b"{}")
            tags, name = body.get("tags") or [], body.get("name", "unnamed")
            good = all(isinstance(it, str) for it in tags) and isinstance(name, str) and name != ""
            good = good and isinstance(body.get("description"), (str, type(None)))
        except (ValueError, AttributeError, TypeError):
            good = False
        if not good or (op == "back_up" and "name" not in body):
            raise Refused(400, "InvalidMember", "Send one JSON object; name is a text, tags is a list of texts.")
        if body.get("type") not in (None, "full") and op == "back_up":
            raise Refused(501, "Unsupported", "Backups are full copies.")
        return body

    def inserted(self, db, vm, body):
        row = (vm, body["name"], body.get("description"), json.dumps(body.get("tags") or []), bool(body.get("protected")), utc())
        try:
            sql = "INSERT INTO backups(vm, name, description, tags, protected, created) VALUES (?, ?, ?, ?, ?, ?)"
            return db.execute(sql, row).lastrowid
        except sqlite3.IntegrityError:
            raise Refused(409, "NameTaken", "Another backup of the VM has this name.") from None

    def check(self, db, op, it, body):
        told = self.told(it)
        if self.headers.get("If-Match", "*") not in ("*", tag(told)):
            raise Refused(412, "PreconditionFailed", "The backup was changed.")
        if told["state"] != "AVAILABLE":
            raise Refused(409, "NotReady", "The backup is still being made.")
        if op == "delete-Backup" and it["protected"]:
            raise Refused(409, "BackupProtected", "The backup is protected.")
        for name in {"name", "description", "tags", "protected"} & body.keys() if op == "update-Backup" else ():
            value = json.dumps(body[name] or []) if name == "tags" else bool(body[name]) if name == "protected" else body[name]
            try:
                db.execute(f"UPDATE backups SET {name} = ? WHERE id = ?", (value, it["id"]))
            except sqlite3.IntegrityError:
                raise Refused(409, "NameTaken", "Another backup of the VM has this name.") from None


def tag(told):
    return '"' + hashlib.sha256(json.dumps(told).encode()).hexdigest()[:24] + '"'


def status(it):
    done = it["ended"] is not None
    told = {"op": it["op"], "progress": 100 if done else 0, "target_uri": f"/vms/{quote(it['vm'], '')}/backups/{it['backup']}",
            "status_uri": f"/statuses?op={it['op']}&seq={it['seq']}", "state": it["state"] if done else "RUNNING"}
    return told | ({"status": it["status"], "message": it["message"]} if done else {})


class TcpServer(socketserver.ThreadingTCPServer):
    allow_reuse_address = daemon_threads = True


class UnixServer(socketserver.ThreadingUnixStreamServer):
    daemon_threads = True


if __name__ == "__main__":
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name in ("--data", "--listen"):
        arguments.add_argument(name, required=True)
    for name in ("--user", "--password-file"):
        arguments.add_argument(name)
    chosen = arguments.parse_args()
    Handler.store, Handler.user = Store(chosen.data), chosen.user
    if chosen.user:
        Handler.password = Path(chosen.password_file).read_text().rstrip("\r\n")
    if chosen.listen.startswith("unix:"):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(chosen.listen[5:])
        server = UnixServer(chosen.listen[5:], Handler)
    else:
        host, port = chosen.listen.rsplit(":", 1)
        server = TcpServer((host, int(port)), Handler)
    threading.Thread(target=work, args=(Handler.store,), daemon=True).start()
    print(f"listening on {server.server_address}", flush=True)
    server.serve_forever()
