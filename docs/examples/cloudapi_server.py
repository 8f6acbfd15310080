#!/usr/bin/env python3
"""A small server that speaks the Cloud API for backups, to be copied: the standard library of Python 3.11, nothing else.

    cloudapi_server.py DIR SOCKET [CREDENTIALS]

A VM is a directory DIR/vms/NAME with a file `disk.img`; a backup is a copy of it. Replace `carry_out` with what your VM manager does.
SOCKET is made; CREDENTIALS is a file with one line, NAME:PASSWORD. What this server was doing when it died, it ends after its next
start: once, and never half. TLS is not its business.
"""
import base64, errno, hashlib, hmac, http.server, json, os, re, shutil, socketserver, sqlite3, sys, threading, time
from pathlib import Path
from urllib.parse import parse_qs, quote, unquote, urlsplit

SCHEMA = """PRAGMA synchronous = FULL;
CREATE TABLE IF NOT EXISTS backups(id INTEGER PRIMARY KEY AUTOINCREMENT, vm TEXT, name TEXT, description TEXT, tags TEXT DEFAULT '[]',
  protected INTEGER DEFAULT 0, created TEXT DEFAULT (strftime('%Y-%m-%dT%H:%M:%SZ', 'now')), size INTEGER, UNIQUE(vm, name));
CREATE TABLE IF NOT EXISTS operations(seq INTEGER PRIMARY KEY AUTOINCREMENT, op TEXT, vm TEXT, backup INTEGER, key TEXT UNIQUE,
  fingerprint TEXT, state TEXT DEFAULT 'QUEUED', status INTEGER, message TEXT, ended REAL);
"""


class Refused(Exception):
    """An error reply: HTTP status, a code that never changes, a sentence for a person."""


class Store:
    """Backups and operations in one SQLite file. Use it as `with store.changed, store.db:`, which is a lock and a transaction."""

    def __init__(self, data):
        self.data, self.changed = Path(data), threading.Condition()
        (self.data / "backups").mkdir(exist_ok=True)
        self.db = sqlite3.connect(self.data / "state.sqlite", check_same_thread=False)
        self.db.row_factory = sqlite3.Row
        self.db.executescript(SCHEMA)

    def rows(self, sql, *values):
        with self.changed:
            return self.db.execute(sql, values).fetchall()

    def disk(self, vm):
        return self.data / "vms" / vm / "disk.img"

    def work(self):
        """Carries out one operation after the other, for ever. What was begun before a crash comes first."""
        while True:
            with self.changed:
                while not (todo := self.rows("SELECT * FROM operations WHERE ended IS NULL ORDER BY seq LIMIT 1")):
                    self.changed.wait()
            (it,), made = todo, todo[0]["op"] == "back_up"
            disk, file = self.disk(it["vm"]), self.data / "backups" / f"{it['backup']}.img"
            half = file if made else disk.with_name(f".restore-{it['seq']}")
            try:
                self.carry_out(it, disk, file, half)
                done, status, message = True, 201 if made else 200, "It was done."
            except OSError as error:
                half.unlink(missing_ok=True)
                done, status, message = False, 507 if error.errno == errno.ENOSPC else 500, "It failed; nothing was changed."
            with self.changed, self.db as db:  # The outcome, together with what it does to the backup.
                self.changed.notify_all()
                if made and done:
                    db.execute("UPDATE backups SET size = ? WHERE id = ?", (file.stat().st_size, it["backup"]))
                elif made or it["op"] == "delete-Backup" and done:
                    db.execute("DELETE FROM backups WHERE id = ?", (it["backup"],))
                db.execute("UPDATE operations SET state = ?, status = ?, message = ?, ended = ? WHERE seq = ?",
                           ("SUCCESS" if done else "FAILED", status, message, time.time(), it["seq"]))
                db.execute("DELETE FROM operations WHERE ended < ?", (time.time() - 7 * 24 * 3600,))  # A gateway relies on one day.

    def carry_out(self, it, disk, file, half):
        """Does it. Every step may be done again; the one that must not be is marked by the file that it uses up."""
        if it["op"] == "back_up":
            shutil.copyfile(disk, file)
            self.sync(file, file.parent)
        elif it["op"] == "restore-Backup":
            if it["state"] != "SWITCHING":
                shutil.copyfile(file, half)
                self.sync(half, half.parent)
                with self.changed, self.db as db:
                    db.execute("UPDATE operations SET state = 'SWITCHING' WHERE seq = ?", (it["seq"],))
            if half.exists():  # Else it took its place before a crash.
                os.replace(half, disk)
            self.sync(disk.parent)
        elif it["op"] == "delete-Backup":
            file.unlink(missing_ok=True)

    def sync(self, *paths):
        """Makes files, and the names in directories, survive a power failure."""
        for path in paths:
            opened = os.open(path, os.O_RDONLY)
            os.fsync(opened)
            os.close(opened)


def backup_json(it):
    uri = f"/vms/{quote(it['vm'], '')}/backups/{it['id']}"
    return {"name": it["name"], "uri": uri, "restore": uri + "/restore", "description": it["description"], "type": "full",
            "created": it["created"], "tags": json.loads(it["tags"]), "size": it["size"],
            "state": "CREATING" if it["size"] is None else "AVAILABLE", "protected": bool(it["protected"])}


def status_json(it):
    done = it["ended"] is not None
    body = {"op": it["op"], "progress": 100 if done else 0, "target_uri": f"/vms/{quote(it['vm'], '')}/backups/{it['backup']}",
            "status_uri": f"/statuses?op={it['op']}&seq={it['seq']}", "state": it["state"] if done else "RUNNING"}
    return body | ({"status": it["status"], "message": it["message"]} if done else {})


def tag(body):
    return '"' + hashlib.sha256(json.dumps(body).encode()).hexdigest()[:24] + '"'


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version, store, credentials = "HTTP/1.1", None, None
    address_string = lambda self: "client"  # For the log: clients of a unix socket have no address.

    def do(self):
        try:
            length = self.headers.get("Content-Length", "0")
            if not length.isdigit() or int(length) > 1 << 20 or "Transfer-Encoding" in self.headers:
                self.close_connection = True
                raise Refused(413, "BodyTooLarge", "Send a body of at most 1 MiB with its Content-Length.")
            self.body = self.rfile.read(int(length))
            status, body, headers = self.route()
        except (Refused, ValueError) as error:
            status, code, text = error.args if isinstance(error, Refused) else (400, "Unreadable", "Send numbers and JSON.")
            body, headers = {"message": [{"code": code, "severity": "SEVERE", "text": text}]}, {}
        data = json.dumps(body).encode()
        self.send_response(status)
        for name, value in (headers | {"Content-Type": "application/json", "Content-Length": str(len(data))}).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)

    do_GET = do_POST = do_PUT = do_DELETE = do

    def route(self):
        parts = urlsplit(self.path)
        path = [unquote(it) for it in parts.path.split("/")[1:]]
        self.query = {name: values[0] for name, values in parse_qs(parts.query).items()}
        if path == ["versions"]:
            return 200, {"specification_version": "0.1", "implementation_version": "example 1"}, {}
        wanted = b"Basic " + base64.b64encode(self.credentials or b"")
        if self.credentials and not hmac.compare_digest(self.headers.get("Authorization", "").encode(), wanted):
            raise Refused(401, "Unauthenticated", "Send valid credentials.")
        match self.command, path:
            case "GET", ["statuses"]:
                return self.statuses()
            case "GET", ["vms", vm]:
                return 200, {"name": self.vm(vm), "uri": f"/vms/{quote(vm, '')}"}, {}
            case "GET", ["vms", vm, "backups"]:
                return self.backups(self.vm(vm))
            case "GET", ["vms", vm, "backups", b]:
                return 200, (body := backup_json(self.backup(self.vm(vm), b))), {"ETag": tag(body)}
            case "POST", ["vms", vm, "backups"]:
                return self.accept("back_up", self.vm(vm), None)
            case "PUT" | "DELETE", ["vms", vm, "backups", b]:
                return self.accept("update-Backup" if self.command == "PUT" else "delete-Backup", self.vm(vm), b)
            case "POST", ["vms", vm, "backups", b, "restore"]:
                return self.accept("restore-Backup", self.vm(vm), b)
        raise Refused(404, "NoSuchRoute", "There is nothing at this path.")

    def vm(self, vm):
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", vm) or not self.store.disk(vm).is_file():
            raise Refused(404, "NoSuchVm", "There is no such VM.")
        return vm

    def backup(self, vm, b):
        for found in self.store.rows("SELECT * FROM backups WHERE vm = ? AND CAST(id AS TEXT) = ?", vm, b):
            return found
        raise Refused(404, "NoSuchBackup", "The VM has no such backup.")

    def backups(self, vm):
        limit, after = max(1, min(int(self.query.get("limit", "100")), 1000)), min(int(self.query.get("after", "0")), 1 << 62)
        found = self.store.rows("SELECT * FROM backups WHERE vm = ? AND id > ? ORDER BY id LIMIT ?", vm, after, limit + 1)
        more = f'</vms/{quote(vm, "")}/backups?limit={limit}&after={found[limit - 1]["id"]}>; rel="next"' if found[limit:] else None
        return 200, {"backups": [backup_json(it) for it in found[:limit]]}, {"Link": more} if more else {}

    def statuses(self):
        """One by `seq`, held back with `Prefer: wait=N` until it ends; else all, the newest first."""
        sql = "SELECT * FROM operations WHERE op = coalesce(?, op) AND vm = coalesce(?, vm) AND seq = coalesce(?, seq) ORDER BY seq DESC LIMIT ?"
        asked = [self.query.get(it) for it in ("op", "vm", "seq")] + [max(1, min(int(self.query.get("limit", "100")), 1000))]
        wait = re.fullmatch("wait=([0-9]{1,9})", self.headers.get("Prefer", ""))
        until = time.monotonic() + (min(int(wait[1]), 50) if wait else 0)
        with self.store.changed:
            while (found := self.store.rows(sql, *asked)) and "seq" in self.query and found[0]["ended"] is None:
                if not self.store.changed.wait(max(0, until - time.monotonic())):
                    break
        if "seq" not in self.query:
            return 200, {"statuses": [status_json(it) for it in found]}, {}
        if not found:
            raise Refused(404, "NoSuchStatus", "There is no such Status, or it is no longer kept.")
        return 200, status_json(found[0]), {"Retry-After": "1"} | ({"Preference-Applied": wait[0]} if wait else {})

    def accept(self, op, vm, b):
        """Checks, and puts the operation on disk: one transaction. A known key is answered before anything is looked at."""
        key = self.headers.get("Idempotency-Key")
        fingerprint = hashlib.sha256(f"{self.command} {self.path}\n".encode() + self.body).hexdigest()
        with self.store.changed, self.store.db as db:
            self.store.changed.notify_all()
            known = db.execute("SELECT * FROM operations WHERE key = ?", (key,)).fetchone()
            if known and known["fingerprint"] != fingerprint:
                raise Refused(422, "IdempotencyKeyReused", "The key was used for another request.")
            if not known:
                b = self.change(db, op, vm, b, self.members(op))
                sql = "INSERT INTO operations(op, vm, backup, key, fingerprint) VALUES (?, ?, ?, ?, ?) RETURNING *"
                known = db.execute(sql, (op, vm, b, key, fingerprint)).fetchone()
        return 202, (body := status_json(known)), {"Location": body["status_uri"], "Retry-After": "1"}

    def change(self, db, op, vm, b, body):
        """What is changed at once; gives the id of the backup. What takes time is left to `carry_out`."""
        names = [it for it in ("name", "description", "tags", "protected") if it in body]
        values = [json.dumps(body[it] or []) if it == "tags" else body[it] for it in names]
        if op != "back_up":
            body = backup_json(it := self.backup(vm, b))
            if self.headers.get("If-Match", "*") not in ("*", tag(body)):
                raise Refused(412, "PreconditionFailed", "The backup was changed.")
            if body["state"] != "AVAILABLE":
                raise Refused(409, "NotReady", "The backup is still being made.")
            if op == "delete-Backup" and it["protected"]:
                raise Refused(409, "BackupProtected", "The backup is protected.")
        try:
            if op == "back_up":
                sql = f"INSERT INTO backups({', '.join(names)}, vm) VALUES ({'?, ' * len(names)}?)"
                return db.execute(sql, (*values, vm)).lastrowid
            if op == "update-Backup" and names:
                db.execute(f"UPDATE backups SET {', '.join(it + ' = ?' for it in names)} WHERE id = ?", (*values, it["id"]))
            return it["id"]
        except sqlite3.IntegrityError:
            raise Refused(409, "NameTaken", "Another backup of the VM has this name.") from None

    def members(self, op):
        body = json.loads(self.body or b"{}")
        good = isinstance(body, dict) and isinstance(body.get("tags"), list | None) and isinstance(body.get("protected", False), bool)
        texts = [body.get("name", "-"), body.get("description") or "", *(body.get("tags") or [])] if good else [None]
        if not all(isinstance(it, str) for it in texts) or not texts[0] or (op == "back_up" and "name" not in body):
            raise Refused(400, "InvalidMember", "Send one JSON object; name is a text, tags is a list of texts.")
        if op == "back_up" and body.get("type") not in (None, "full"):
            raise Refused(501, "Unsupported", "Backups are full copies.")
        return body


if __name__ == "__main__":
    _, data, address, *credentials = sys.argv
    Handler.store, Handler.credentials = Store(data), Path(credentials[0]).read_bytes().strip() if credentials else None
    Path(address).unlink(missing_ok=True)
    server = socketserver.ThreadingUnixStreamServer(address, Handler)
    server.daemon_threads = True
    threading.Thread(target=Handler.store.work, daemon=True).start()
    print(f"listening on {address}", flush=True)
    server.serve_forever()
