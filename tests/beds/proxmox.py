#!/usr/bin/env python3
"""The part of Proxmox VE's API that a gateway for backups meets, with real disks, for tests. Own code, Python 3.11 alone and qemu-img.

    pve.py up FOLDER [PORT]     TLS on 127.0.0.1:PORT, FOLDER/tls.crt; VMs 100 and 101 and container 200 with two qcow2 disks each; see FOLDER/lab.json
    pve.py kill|start FOLDER    the daemon alone, as a crash does; tasks that run go on, as those of Proxmox VE do
    pve.py unlock FOLDER VM     what `qm unlock` does
    pve.py down FOLDER

It was held row by row against the server code of Proxmox VE 8.4 (verbs.py, crash.py): texts, statuses, locks and what is left
when a task is killed. Tasks are processes. While FOLDER/hold exists they stand still before the first disk; FOLDER/held says that one does.
While FOLDER/warn exists every task that succeeds ends with a warning. FOLDER/rights.json replaces the rights of tokens.
Guests lie in FOLDER/vms/ID.json: the node of one can be changed there (it migrated), its lock removed (`qm unlock`).
The storage `local` is a folder, `pbs` stands for a Proxmox Backup Server: other volume ids and formats, and lists with whole notes.
What containers and `pbs` answer follows the vendor's sources and schema; it was not compared with a server.
Tokens: `gate@pve!t1` may do what is needed on VM 100 and both storages; `gate@pve!t2` the same, for a second gateway;
`gate@pve!ct` and `gate@pve!ct2` on container 200; `gate@pve!all` on all guests.
"""

import fcntl, glob, http.server, json, os, re, shutil, signal, ssl, subprocess, sys, tarfile, time, urllib.parse, uuid

T1 = "11111111-2222-3333-4444-555555555555"
SNAP = [
    "VM.Audit",
    "VM.Snapshot",
    "VM.Snapshot.Rollback",
    "VM.Backup",
    "VM.PowerMgmt",
    "Datastore.AllocateSpace",
    "Datastore.Audit",
]
TOKENS = {
    "gate@pve!t1": (T1, {"/vms/100": SNAP, "/storage/local": SNAP, "/storage/pbs": SNAP}),
    "gate@pve!t2": (T1, {"/vms/100": SNAP, "/storage/local": SNAP, "/storage/pbs": SNAP}),
    "gate@pve!ct": (T1, {"/vms/200": SNAP, "/storage/local": SNAP, "/storage/pbs": SNAP}),
    "gate@pve!ct2": (T1, {"/vms/200": SNAP, "/storage/local": SNAP, "/storage/pbs": SNAP}),
    "gate@pve!all": (T1, {"/vms": SNAP, "/storage": SNAP, "/nodes": ["Sys.Audit"]}),
}
NODES = ("pve1", "pve2")
# The prefix of the types of tasks, the word in texts, the folder of configurations, the ending of archives on a folder.
KINDS = {"qemu": ("qm", "VM", "qemu-server", "vma.zst"), "lxc": ("vz", "CT", "lxc", "tar.zst")}


class Archive:
    """One archive: a file in FOLDER/dump/STORAGE, named alike on all storages, and its volume id."""

    def __init__(self, d, storage, kind, vm, at):
        self.d, self.storage, self.kind, self.vm, self.at = d, storage, kind, vm, at
        self.end = KINDS[kind][3]
        self.file = f"{d}/dump/{storage}/{kind}-{vm}-{at}"
        when = time.strptime(at, "%Y_%m_%d-%H_%M_%S")
        self.ctime = int(time.mktime(when))
        if storage == "pbs":
            group = "vm" if kind == "qemu" else "ct"
            utc = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(self.ctime))
            self.name, self.format = f"backup/{group}/{vm}/{utc}", f"pbs-{group}"
        else:
            self.name, self.format = f"backup/vzdump-{kind}-{vm}-{at}.{self.end}", self.end

    @property
    def volid(self):
        return f"{self.storage}:{self.name}"


def archives(d, storage):
    for f in sorted(glob.glob(f"{d}/dump/{storage}/*")):
        x = re.fullmatch(r"(qemu|lxc)-(\d+)-([0-9_-]+)", os.path.basename(f))
        if x:
            yield Archive(d, storage, x[1], x[2], x[3])


class Die(Exception):
    def __init__(self, text, status=500, errors=None):
        super().__init__(text)
        self.status, self.errors = status, errors


def put(path, data):
    with open(path + ".new", "w") as f:
        json.dump(data, f)
        f.flush()
        os.fsync(f.fileno())
    os.rename(path + ".new", path)


def notes_of(template, values):
    """As the schema says: a single line with `\\n` and `\\\\` escaped, and `{{name}}` replaced."""

    def special(found):
        if found[1] not in "n\\":
            raise Die(f"unexpected escape character '{found[1]}'")
        return "\n" if found[1] == "n" else "\\"

    def variable(found):
        if found[1] not in values:
            raise Die(f"unexpected variable name '{found[1]}'")
        return values[found[1]]

    return re.sub(r"\\(.)", special, re.sub(r"\{\{([^{}]+)\}\}", variable, template))


class World:
    def __init__(self, d):
        self.d = d

    def path(self, vm):
        return f"{self.d}/vms/{vm}.json"

    def vm(self, vm, node=None, kind=None):
        try:
            c = json.load(open(self.path(vm)))
        except FileNotFoundError:
            c = None
        if c is None or (node and c["node"] != node) or (kind and c["type"] != kind):
            folder = KINDS[kind or "qemu"][2]
            raise Die(f"Configuration file 'nodes/{node}/{folder}/{vm}.conf' does not exist")
        return c

    def change(self, vm, f):
        with open(self.path(vm) + ".lock", "a") as l:
            fcntl.flock(l, fcntl.LOCK_EX)
            c = self.vm(vm)
            r = f(c)
            put(self.path(vm), c)
            return r

    def disks(self, c):
        return [c["config"][k].split(",")[0].split(":")[1] for k in sorted(c["config"]) if re.match(r"(scsi\d+|rootfs|mp\d+)$", k)]

    def img(self, *a):
        r = subprocess.run(["qemu-img", *a], capture_output=True, text=True)
        if r.returncode:
            raise Die(f"command '/usr/bin/qemu-img {' '.join(a)}' failed: exit code {r.returncode}")

    def stand(self):
        while os.path.exists(self.d + "/hold"):
            open(self.d + "/held", "w").close()
            time.sleep(0.02)

    # tasks: processes that outlive the daemon; the last line of the log is the end
    def stat(self, pid):
        """State and start time of a process, in one read: it may be gone before a second one."""
        try:
            fields = open(f"/proc/{pid}/stat").read().rsplit(")", 1)[1].split()
        except (FileNotFoundError, ProcessLookupError):
            return None, None
        return fields[0], int(fields[19])

    def log(self, upid):
        return f"{self.d}/tasks/{upid}"

    def fork(self, node, kind, ident, user, work, undo=lambda: None):
        r, w = os.pipe()
        pid = os.fork()
        if pid:
            os.close(r)
            upid = f"UPID:{node}:{pid:08X}:{self.stat(pid)[1]:08X}:{int(time.time()):08X}:{kind}:{ident}:{user}:"
            open(self.log(upid), "w").close()
            with open(self.d + "/tasks/index", "a") as f:
                f.write(upid + "\n")
            os.write(w, upid.encode())
            os.close(w)
            return upid
        os.close(w)
        upid = os.read(r, 4096).decode()
        if upid:
            os.closerange(3, 4096)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            os.setsid()
            f = open(self.log(upid), "a", buffering=1)
            end = "OK"
            signal.signal(signal.SIGTERM, lambda *_: (_ for _ in ()).throw(Die("received interrupt")))
            try:
                # A task fails with the text of FOLDER/fail before it does anything.
                if os.path.exists(self.d + "/fail"):
                    undo()
                    raise Die(open(self.d + "/fail").read())
                work(lambda t: print(t, file=f))
                if os.path.exists(self.d + "/warn"):
                    print("WARN: something needs attention", file=f)
                    end = "WARNINGS: 1"
            except Die as e:
                end = "ERROR: " + str(e).replace("\n", " ")
            except Exception as e:
                end = "ERROR: " + repr(e)
            print("TASK " + end, file=f)
        os._exit(0)

    def task(self, upid):
        m = re.match(
            r"^UPID:([^:]+):([0-9A-F]{8}):([0-9A-F]{8,9}):([0-9A-F]{8}):([^:\s/]+):([^:\s/]*):([^:\s/]+):$", upid
        )
        if not m:
            raise Die("Parameter verification failed.", 400, {"upid": "unable to parse worker upid"})
        if not os.path.exists(self.log(upid)):
            raise Die("Parameter verification failed.", 400, {"upid": "no such task"})
        pid, ps = int(m[2], 16), int(m[3], 16)
        user, _, tok = m[7].partition("!")
        t = {
            "upid": upid,
            "node": m[1],
            "pid": pid,
            "pstart": ps,
            "starttime": int(m[4], 16),
            "type": m[5],
            "id": m[6],
            "user": user,
            **({"tokenid": tok} if tok else {}),
        }
        state, start = self.stat(pid)
        t["status"] = "running" if start == ps and state != "Z" else "stopped"
        if t["status"] == "stopped":
            x = open(self.log(upid)).read()
            last = x.rstrip("\n").rsplit("\n", 1)[-1]
            t["exitstatus"] = (
                "unable to read tail (got 0 bytes)"
                if not x
                else (
                    last[5:] if last == "TASK OK" or last.startswith("TASK WARNINGS: ") else last[12:] if last.startswith("TASK ERROR: ") else "unexpected status"
                )
            )
        return t

    # the work itself
    def unlocked(self, c):
        if c["config"].get("lock"):
            raise Die(f"{KINDS[c['type']][1]} is locked ({c['config']['lock']})")

    def snapshot(self, vm, name, text):
        def begin(c):
            self.unlocked(c)
            if name in c["snapshots"]:
                raise Die(f"snapshot name '{name}' already used")
            c["config"]["lock"] = "snapshot"
            c["snapshots"][name] = {
                **{k: v for k, v in c["config"].items() if k != "lock"},
                "snapstate": "prepare",
                "snaptime": int(time.time()),
                **({"description": text} if text else {}),
            }
            return self.disks(c)

        def end(c):
            c["snapshots"][name].pop("snapstate")
            c["config"].pop("lock")
            c["config"]["parent"] = name

        def undo(c):
            c["snapshots"].pop(name, None)
            c["config"].pop("lock", None)

        made = []
        disks = self.change(vm, begin)
        try:
            for disk in disks:
                self.stand()
                self.img("snapshot", "-c", name, f"{self.d}/images/{disk}")
                made.append(disk)
        except Die:
            for disk in made:
                self.img("snapshot", "-d", name, f"{self.d}/images/{disk}")
            self.change(vm, undo)
            raise
        self.change(vm, end)

    def snap(self, c, name):
        if name not in c["snapshots"]:
            raise Die(f"snapshot '{name}' does not exist")
        return c["snapshots"][name]

    def rollback(self, vm, name):
        def begin(c):
            s = self.snap(c, name)
            if s.get("snapstate"):
                raise Die(f"unable to rollback to incomplete snapshot (snapstate = {s['snapstate']})")
            self.unlocked(c)
            c["config"]["lock"] = "rollback"
            return self.disks(c)

        def end(c):
            s = self.snap(c, name)
            c["config"] = {k: v for k, v in s.items() if k not in ("snapstate", "snaptime", "description")}
            c["config"].update(parent=name, **({"vmgenid": str(uuid.uuid4())} if "vmgenid" in c["config"] else {}))

        for disk in self.change(vm, begin):
            self.stand()
            self.img("snapshot", "-a", name, f"{self.d}/images/{disk}")
        self.change(vm, end)

    def delsnapshot(self, vm, name, force):
        def begin(c):
            self.snap(c, name)
            self.unlocked(c)
            c["config"]["lock"] = "snapshot-delete"
            c["snapshots"][name]["snapstate"] = "delete"
            return self.disks(c)

        def end(c):
            s = c["snapshots"].pop(name)
            c["config"].pop("lock")
            for x in [c["config"], *c["snapshots"].values()]:
                if x.get("parent") == name:
                    x.pop("parent")
                    s.get("parent") and x.update(parent=s["parent"])

        for disk in self.change(vm, begin):
            self.stand()
            try:
                self.img("snapshot", "-d", name, f"{self.d}/images/{disk}")
            except Die:
                if not force:
                    raise
        self.change(vm, end)

    def vzdump(self, vm, storage, say, notes, protected):
        c = self.change(
            vm, lambda c: (self.unlocked(c), c["config"].update(lock="backup"), json.loads(json.dumps(c)))[2]
        )
        kind = c["type"]
        archive = Archive(self.d, storage, kind, vm, time.strftime("%Y_%m_%d-%H_%M_%S"))
        # A real job takes more than a second, so that no two of a guest have one name.
        while os.path.exists(archive.file):
            time.sleep(0.05)
            archive = Archive(self.d, storage, kind, vm, time.strftime("%Y_%m_%d-%H_%M_%S"))
        at = archive.file
        say(f"INFO: starting new backup job: vzdump {vm} --storage {storage}")
        say(f"INFO: Starting Backup of VM {vm} ({kind})")
        open(at + ".dat", "w").close()
        try:
            self.stand()
            with tarfile.open(at + ".dat", "w") as t:
                for disk in self.disks(c):
                    t.add(f"{self.d}/images/{disk}", disk.replace("/", "+"))
                put(at + ".conf", {k: v for k, v in c["config"].items() if k not in ("lock", "parent")})
                t.add(at + ".conf", "conf")
                os.unlink(at + ".conf")
            if kind == "qemu":
                say("INFO: 100% (32.0 MiB of 32.0 MiB) in 0s, read: 32.0 MiB/s, write: 128.0 KiB/s")
            else:
                say("INFO: Total bytes written: 33554432 (32MiB, 320MiB/s)")
            os.rename(at + ".dat", at)
            if notes:
                open(at + ".notes", "w").write(notes_of(notes, {"guestname": c["config"]["name"], "vmid": str(vm), "node": c["node"], "cluster": "lab"}))
            if protected:
                open(at + ".protected", "w").close()
        finally:
            if os.path.exists(at + ".dat"):
                os.unlink(at + ".dat")
            self.change(vm, lambda c: c["config"].pop("lock", None))
        say("INFO: Backup job finished successfully")

    def lock_for_restore(self, vm):
        """Before there is a task."""

        def begin(c):
            try:
                self.unlocked(c)
            except Die as e:
                raise Die(f"unable to restore {KINDS[c['type']][1]} {vm} - {e}")
            c["config"]["lock"] = "create"

        self.change(vm, begin)

    def restore(self, vm, archive, say, to=None):
        kind = self.vm(vm)["type"]
        if self.vm(vm).get("running"):
            self.change(vm, lambda c: c["config"].pop("lock", None))
            word = "vm is running" if kind == "qemu" else "container is running"
            raise Die(f"unable to restore {KINDS[kind][1]} {vm} - {word}")
        self.stand()
        try:
            t = tarfile.open(archive)
            conf = json.load(t.extractfile("conf"))
        except Exception:
            say(
                f"error before or during data restore, some or all disks were not completely restored. VM {vm} state is NOT cleaned up."
            )
            self.change(vm, lambda c: c["config"].pop("lock", None))
            raise Die("command 'vma extract' failed: got timeout reading VMA header - corrupted?")
        for m in t.getmembers():
            if m.name != "conf":
                open(f"{self.d}/images/{m.name.replace('+', '/')}", "wb").write(t.extractfile(m).read())

        def end(c):
            c["config"] = {**conf, **({"vmgenid": str(uuid.uuid4())} if "vmgenid" in conf else {})}
            c["snapshots"] = {}
            for k, v in c["config"].items() if to else []:
                if re.search(r":.*vm-\d+-disk-", str(v)):
                    c["config"][k] = f"{to}:{v.split(':', 1)[1]}"

        self.change(vm, end)
        if kind == "qemu":
            say("progress 100% (read 33554432 bytes, duration 0 sec)")


CONFIGID = r"[A-Za-z][A-Za-z0-9_-]+"


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    world = None
    server_version = "pve-api-daemon/3.0"

    def log_message(self, *a):
        pass

    def reply(self, status, reason, body):
        b = json.dumps(body).encode()
        self.send_response(status, reason)
        self.send_header("Content-Type", "application/json;charset=UTF-8")
        self.send_header("Content-Length", str(len(b)))
        if status >= 400:
            self.send_header("Connection", "close")
            self.close_connection = True
        self.end_headers()
        self.wfile.write(b)

    def held(self, path):
        held = set()
        parts = [x for x in path.split("/") if x]
        for i in range(len(parts) + 1):
            held |= set(self.acl.get("/" + "/".join(parts[:i]), []))
        return held

    def need(self, path, *privs, any_=False):
        held = self.held(path)
        ok = [p in held for p in privs]
        if not (any(ok) if any_ else all(ok)):
            raise Die(f"Permission check failed ({path}, {'|'.join(privs)})", 403)

    def may(self, path, *privs):
        try:
            self.need(path, *privs)
            return True
        except Die:
            return False

    def any(self):
        t0 = time.time()
        try:
            te = self.headers.get("Transfer-Encoding")
            if te:
                # Read first, so that the client is not cut off while it sends.
                while self.rfile.readline() not in (b"0\r\n", b""):
                    pass
                raise Die("chunked transfer encoding not supported", 501)
            n = int(self.headers.get("Content-Length") or 0)
            raw = self.rfile.read(n).decode() if n else ""
            u = urllib.parse.urlsplit(self.path)
            p = dict(urllib.parse.parse_qsl(u.query, keep_blank_values=True))
            auth = self.headers.get("Authorization", "")
            tid, _, secret = auth.removeprefix("PVEAPIToken=").partition("=")
            if not auth.startswith("PVEAPIToken="):
                raise Die("No ticket", 401)
            if tid not in TOKENS:
                raise Die("no such token", 401)
            if TOKENS[tid][0] != secret:
                raise Die("invalid token value!", 401)
            self.acl, self.user = TOKENS[tid][1], tid
            try:
                self.acl = json.load(open(self.world.d + "/rights.json")).get(tid, self.acl)
            except FileNotFoundError:
                pass
            if raw and self.command in ("GET", "DELETE"):
                raise Die(f"Unexpected content for method '{self.command}'", 501)
            if raw:
                p.update(
                    json.loads(raw)
                    if "json" in self.headers.get("Content-Type", "")
                    else dict(urllib.parse.parse_qsl(raw, keep_blank_values=True))
                )
            with open(self.world.d + "/calls.jsonl", "a") as calls:
                calls.write(json.dumps({"method": self.command, "path": u.path, "parameters": p}) + "\n")
            path = [urllib.parse.unquote(x) for x in u.path.split("/")]
            if path[1:3] != ["api2", "json"]:
                raise Die("no such file", 404)
            instead = self.refuse(u.path)
            total, data = (None, instead) if instead else self.route(path[3:], p)
            self.reply(200, "OK", {"data": data, **({"total": total} if total is not None else {})})
        except Die as e:
            if e.status == 401:
                time.sleep(max(0, 3 - (time.time() - t0)))
            self.reply(
                e.status,
                str(e).replace("\n", " "),
                {"data": None, "message": str(e) + "\n", **({"errors": e.errors} if e.errors else {})},
            )

    do_GET = do_POST = do_PUT = do_DELETE = any

    def refuse(self, path):
        """What FOLDER/refuse.json says instead of an answer: a method, a pattern of paths, a status and a text; with 200 the text is the data."""
        try:
            x = json.load(open(self.world.d + "/refuse.json"))
        except FileNotFoundError:
            return
        if self.command == x["method"] and re.search(x["path"], path):
            if x["status"] == 200:
                return x["text"]
            raise Die(x["text"], x["status"], x.get("errors"))

    def checked(self, p, **known):
        errors = {
            k: "property is not defined in schema and the schema does not allow additional properties"
            for k in p
            if k not in known
        }
        for k, rule in known.items():
            if k not in p:
                if rule == "name!":
                    errors[k] = "property is missing and it is not optional"
            elif rule.startswith("name"):
                if len(p[k]) > 40:
                    errors[k] = "value may only be 40 characters long"
                elif not re.fullmatch(CONFIGID, p[k]):
                    errors[k] = f"invalid format - invalid configuration ID '{p[k]}'\n"
            elif rule == "bool" and str(p[k]).lower() not in ("0", "1", "true", "false", "on", "off", "yes", "no"):
                errors[k] = f"type check ('boolean') failed - got '{p[k]}'"
            elif rule == "int" and not re.fullmatch(r"-?\d+", str(p[k])):
                errors[k] = f"type check ('integer') failed - got '{p[k]}'"
        if errors:
            raise Die("Parameter verification failed.", 400, errors)
        return {k: str(v).lower() in ("1", "true", "on", "yes") if known[k] == "bool" else v for k, v in p.items()}

    def content(self, r, p):
        w, m, node, storage = self.world, self.command, r[1], r[3]
        none = lambda x=None: (None, x)
        if storage not in ("local", "pbs"):
            raise Die(f"storage '{storage}' does not exist")
        at = f"/storage/{storage}"
        if len(r) == 5:
            self.need(at, "Datastore.Audit", "Datastore.AllocateSpace", any_=True)
            out = []
            for a in archives(w.d, storage):
                if p.get("vmid") and a.vm != str(p["vmid"]) or not self.may(f"/vms/{a.vm}", "VM.Backup"):
                    continue
                notes = os.path.exists(a.file + ".notes") and open(a.file + ".notes").read()
                out.append(
                    {
                        "volid": a.volid,
                        "content": "backup",
                        "format": a.format,
                        "subtype": a.kind,
                        "vmid": int(a.vm),
                        "size": os.path.getsize(a.file),
                        "ctime": a.ctime,
                        # Folders list the first line, backup servers the whole.
                        **({"notes": notes if storage == "pbs" else notes.split("\n")[0]} if notes else {}),
                        **({"protected": 1} if os.path.exists(a.file + ".protected") else {}),
                    }
                )
            # A backup server also lists what is being made.
            for f in glob.glob(f"{w.d}/dump/{storage}/*.dat") if storage == "pbs" else []:
                a = Archive(w.d, storage, *os.path.basename(f)[:-4].split("-", 2))
                if a.vm == str(p.get("vmid", a.vm)):
                    out.append({"volid": a.volid, "content": "backup", "format": a.format, "vmid": int(a.vm), "size": 1, "ctime": a.ctime})
            return none(out)
        vol = r[5].removeprefix(storage + ":")
        form = r"backup/vzdump-(?:qemu|lxc)-(\d+)-[0-9_-]+\.(?:vma|tar)\.zst" if storage == "local" else r"backup/(?:vm|ct)/(\d+)/[0-9TZ:-]+"
        x = re.fullmatch(form, vol)
        if not x:
            raise Die(f"unable to parse directory volume name '{vol}'\n".strip())
        self.need(at, "Datastore.AllocateSpace")
        self.need(f"/vms/{x[1]}", "VM.Backup")
        f = next((a.file for a in archives(w.d, storage) if a.name == vol), None)
        if m == "DELETE":
            p = self.checked(p, delay="int")
            if f and os.path.exists(f + ".protected"):
                raise Die(f"cannot remove protected volume '{vol}' on '{storage}'")

            def rm(say):
                w.stand()
                for g in glob.glob(f + "*") if f else []:
                    os.unlink(g)
                say(f"Removed volume '{storage}:{vol}'")

            upid = w.fork(node, "imgdel", f"{x[1]}@{storage}", self.user, rm)
            e = time.time() + int(p.get("delay", 0))
            while time.time() < e:
                t = w.task(upid)
                if t["status"] == "stopped":
                    if t["exitstatus"] != "OK":
                        raise Die(t["exitstatus"])
                    return none()
                time.sleep(0.05)
            return none(upid)
        if not f:
            raise Die(f"volume_size_info on '{storage}:{vol}' failed - no format")
        if m == "PUT":
            p = self.checked(p, notes="str", protected="bool")
            if "notes" in p:
                (
                    open(f + ".notes", "w").write(p["notes"])
                    if p["notes"]
                    else os.path.exists(f + ".notes") and os.unlink(f + ".notes")
                )
            if "protected" in p:
                (
                    open(f + ".protected", "w").close()
                    if p["protected"]
                    else os.path.exists(f + ".protected") and os.unlink(f + ".protected")
                )
            return none()
        return none(
            {
                "path": f,
                "size": os.path.getsize(f),
                "used": os.stat(f).st_blocks * 512,
                "format": "raw",
                "protected": int(os.path.exists(f + ".protected")),
                **({"notes": open(f + ".notes").read()} if os.path.exists(f + ".notes") else {}),
            }
        )

    def route(self, r, p):
        w, m = self.world, self.command
        none = lambda x=None: (None, x)
        if r == ["version"]:
            return none({"version": "8.4.1", "release": "8.4", "repoid": "d0ea9d2b"})
        if r == ["access", "permissions"]:
            p = self.checked(p, path="str", userid="str")
            # The real server answers for the whole tree without `path`; the adapter never asks that.
            if "path" not in p:
                raise Die("Parameter verification failed.", 400, {"path": "the stand-in answers for one path only"})
            return none({p["path"]: {x: 1 for x in sorted(self.held(p["path"]))}})
        if r == ["nodes"]:
            return none([{"id": f"node/{n}", "node": n, "type": "node", "status": "online"} for n in NODES])
        if r == ["cluster", "resources"] and p.get("type") == "storage":
            return none(
                [
                    {"id": f"storage/{n}/{s}", "type": "storage", "storage": s, "node": n, "content": c, "status": "available"}
                    for n in NODES
                    for s, c in (("local", "images,rootdir,backup"), ("pbs", "backup"), ("disks", "images"))
                    if self.may(f"/storage/{s}", "Datastore.Audit")
                ]
            )
        if r == ["cluster", "resources"]:
            vms = [json.load(open(f)) for f in sorted(glob.glob(w.d + "/vms/*.json"))]
            return none(
                [
                    {
                        "id": f"{c['type']}/{c['vmid']}",
                        "type": c["type"],
                        "vmid": c["vmid"],
                        "node": c["node"],
                        "name": c["config"]["name"],
                        "status": "running" if c.get("running") else "stopped",
                        **({"lock": c["config"]["lock"]} if c["config"].get("lock") else {}),
                    }
                    for c in vms
                    if self.may(f"/vms/{c['vmid']}", "VM.Audit")
                ]
            )
        if r[:1] != ["nodes"] or len(r) < 3:
            raise Die(f"Method '{m} /{'/'.join(r)}' not implemented", 501)
        node = r[1]
        if node not in NODES:
            raise Die(
                f"hostname lookup '{node}' failed - failed to get address info for: {node}: Name or service not known"
            )
        if r[2] == "tasks":
            if len(r) == 3:
                p = self.checked(
                    p,
                    vmid="int",
                    source="str",
                    limit="int",
                    start="int",
                    typefilter="str",
                    since="int",
                    until="int",
                    userfilter="str",
                    errors="bool",
                    statusfilter="str",
                )
                all_ = []
                for l in reversed(open(w.d + "/tasks/index").read().split()):
                    t = w.task(l)
                    mine = t["user"] + ("!" + t["tokenid"] if "tokenid" in t else "") == self.user
                    if t["node"] != node or not (mine or self.may(f"/nodes/{node}", "Sys.Audit")):
                        continue
                    if (
                        p.get("vmid")
                        and t["id"] != str(p["vmid"])
                        or p.get("typefilter")
                        and t["type"] != p["typefilter"]
                        or t["starttime"] < int(p.get("since", 0))
                    ):
                        continue
                    run = t.pop("status") == "running"
                    end = t.pop("exitstatus", None)
                    if run and p.get("source", "archive") == "archive" or not run and p.get("source") == "active":
                        continue
                    all_.append(
                        {**t, "status": "RUNNING"}
                        if run
                        else {**t, "endtime": int(os.path.getmtime(w.log(l))), "status": end}
                    )
                s, n = int(p.get("start", 0)), int(p.get("limit", 50))
                return len(all_), all_[s : s + n]
            t = w.task(r[3])
            if t["user"] + ("!" + t["tokenid"] if "tokenid" in t else "") != self.user:
                self.need(f"/nodes/{node}", "Sys.Audit")
            if m == "DELETE":
                if t["status"] == "running":
                    os.kill(t["pid"], signal.SIGTERM)
                return none()
            if r[4] == "status":
                return none(t)
            lines = open(w.log(r[3])).read().splitlines()
            s, n = int(p.get("start", 0)), int(p.get("limit", 50))
            return len(lines), [{"n": i + 1, "t": x} for i, x in enumerate(lines)][s : s + n]
        if r[2] == "storage" and r[4:5] == ["content"]:
            return self.content(r, p)
        if r[2] == "vzdump":
            p = self.checked(
                p,
                vmid="int",
                storage="str",
                mode="str",
                compress="str",
                **{"notes-template": "str"},
                protected="bool",
                remove="bool",
            )
            vm, storage = str(p["vmid"]), p.get("storage", "local")
            if storage not in ("local", "pbs"):
                raise Die(f"storage '{storage}' does not exist")
            self.need(f"/storage/{storage}", "Datastore.AllocateSpace")
            self.need(f"/vms/{vm}", "VM.Backup")
            if len(p.get("notes-template", "")) > 1024:
                raise Die("Parameter verification failed.", 400, {"notes-template": "value may only be 1024 characters long"})
            # Guests of other nodes are left out, and a job without guests is no task.
            if w.vm(vm)["node"] != node:
                return none("OK")
            return none(
                w.fork(
                    node,
                    "vzdump",
                    vm,
                    self.user,
                    lambda say: w.vzdump(vm, storage, say, p.get("notes-template"), p.get("protected")),
                )
            )
        if r[2] not in KINDS:
            raise Die(f"Method '{m} /{'/'.join(r)}' not implemented", 501)
        kind, prefix = r[2], KINDS[r[2]][0]
        if len(r) == 3 and m == "POST":
            more = {"archive": "str", "unique": "bool"} if kind == "qemu" else {"ostemplate": "str", "restore": "bool"}
            p = self.checked(p, vmid="int", force="bool", storage="str", start="bool", **more)
            vm, volid = str(p["vmid"]), p.get("archive") or p.get("ostemplate")
            storage = volid.split(":")[0]
            self.need(f"/storage/{storage}", "Datastore.AllocateSpace")
            if p.get("storage"):
                self.need(f"/storage/{p['storage']}", "Datastore.AllocateSpace")
            self.need(f"/vms/{vm}", "VM.Backup")
            if not p.get("force") or kind == "lxc" and not p.get("restore"):
                raise Die("Permission check failed", 403)
            f = next((a.file for a in archives(w.d, storage) if a.volid == volid), None)
            if not f:
                raise Die(f"volume '{volid}' does not exist")
            # Disks are made anew where they are, unless a storage is named.
            for value in w.vm(vm, node, kind)["config"].values():
                x = re.match(r"([a-z][a-z0-9_.-]*):.*/vm-\d+-disk-", str(value))
                if x and not p.get("storage"):
                    self.need(f"/storage/{x[1]}", "Datastore.AllocateSpace")
            task = "qmrestore" if kind == "qemu" else "vzrestore"
            to = p.get("storage") or ("local" if kind == "lxc" else None)
            w.lock_for_restore(vm)
            return none(w.fork(node, task, vm, self.user, lambda say: w.restore(vm, f, say, to), undo=lambda: w.change(vm, lambda c: c["config"].pop("lock", None))))
        if len(r) == 3:
            return none(
                [
                    {"vmid": c["vmid"], "name": c["config"]["name"], "status": "stopped"}
                    for c in (json.load(open(f)) for f in sorted(glob.glob(w.d + "/vms/*.json")))
                    if c["node"] == node and c["type"] == kind and self.may(f"/vms/{c['vmid']}", "VM.Audit")
                ]
            )
        vm, rest = r[3], r[4:]
        at = f"/vms/{vm}"
        if rest == ["config"] and m == "GET":
            self.need(at, "VM.Audit")
            c = w.vm(vm, node, kind)
            return none({**c["config"], "digest": str(abs(hash(json.dumps(c))))})
        if rest == ["status", "current"]:
            self.need(at, "VM.Audit")
            c = w.vm(vm, node, kind)
            s = "running" if c.get("running") else "stopped"
            return none(
                {
                    "vmid": c["vmid"],
                    "name": c["config"]["name"],
                    "status": s,
                    **({"qmpstatus": s} if kind == "qemu" else {}),
                    **({"lock": c["config"]["lock"]} if c["config"].get("lock") else {}),
                }
            )
        if rest[:1] == ["status"] and m == "POST":
            self.need(at, "VM.PowerMgmt")
            w.vm(vm, node, kind)
            return none(
                w.fork(
                    node,
                    prefix + rest[1],
                    vm,
                    self.user,
                    lambda say: w.change(vm, lambda c: (w.unlocked(c), c.update(running=rest[1] == "start"))),
                )
            )
        if rest == ["snapshot"] and m == "GET":
            self.need(at, "VM.Audit")
            c = w.vm(vm, node, kind)
            return none(
                [
                    {
                        "name": n,
                        "snaptime": s["snaptime"],
                        **({"vmstate": 0} if kind == "qemu" else {}),
                        "description": s.get("description", ""),
                        **{k: s[k] for k in ("parent", "snapstate") if s.get(k)},
                    }
                    for n, s in c["snapshots"].items()
                ]
                + [
                    {
                        "name": "current",
                        "digest": str(abs(hash(json.dumps(c)))),
                        "running": int(bool(c.get("running"))),
                        "description": "You are here!",
                        **({"parent": c["config"]["parent"]} if c["config"].get("parent") else {}),
                    }
                ]
            )
        if rest == ["snapshot"] and m == "POST":
            self.need(at, "VM.Snapshot")
            known = {"vmstate": "bool"} if kind == "qemu" else {}
            p = self.checked(p, snapname="name!", description="str", **known)
            w.vm(vm, node, kind)
            n = p["snapname"]
            if n == "current" or n.lower() == "pending":
                raise Die(f"unable to use snapshot name '{n.lower()}' (reserved name)")
            return none(w.fork(node, prefix + "snapshot", vm, self.user, lambda say: w.snapshot(vm, n, p.get("description"))))
        if rest[:1] == ["snapshot"] and len(rest) > 1:
            n = rest[1]
            self.checked({"snapname": n}, snapname="name!")
            if m == "DELETE" and len(rest) == 2:
                self.need(at, "VM.Snapshot")
                p = self.checked(p, force="bool")
                w.vm(vm, node, kind)
                return none(
                    w.fork(node, prefix + "delsnapshot", vm, self.user, lambda say: w.delsnapshot(vm, n, p.get("force")))
                )
            if rest[2:] == ["rollback"] and m == "POST":
                self.need(at, "VM.Snapshot", "VM.Snapshot.Rollback", any_=True)
                p = self.checked(p, start="bool")
                w.vm(vm, node, kind)
                if p.get("start"):
                    self.need(at, "VM.PowerMgmt")
                return none(
                    w.fork(
                        node,
                        prefix + "rollback",
                        vm,
                        self.user,
                        lambda say: (
                            (
                                w.change(vm, lambda c: c.update(running=False))
                                if not w.vm(vm)["config"].get("lock")
                                else None
                            ),
                            w.rollback(vm, n),
                            w.change(vm, lambda c: c.update(running=bool(p.get("start")))),
                        ),
                    )
                )
            if rest[2:] == ["config"] and m == "GET":
                self.need(at, "VM.Snapshot", "VM.Snapshot.Rollback", "VM.Audit", any_=True)
                return none(w.snap(w.vm(vm, node, kind), n))
            if rest[2:] == ["config"] and m == "PUT":
                self.need(at, "VM.Snapshot")
                p = self.checked(p, description="str")
                w.vm(vm, node, kind)

                def edit(c):
                    w.unlocked(c)
                    w.snap(c, n).update(p)

                w.change(vm, edit)
                return none()
        if rest == ["config"] and m in ("PUT", "POST"):
            raise Die(
                f"Permission check failed (/vms/{vm}, VM.Config.Disk|VM.Config.CDROM|VM.Config.CPU|VM.Config.Memory|VM.Config.Network|VM.Config.HWType|VM.Config.Options|VM.Config.Cloudinit)",
                403,
            )
        raise Die(f"Method '{m} /{'/'.join(r)}' not implemented", 501)


def serve(d, port):
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    Handler.world = World(d)
    s = http.server.ThreadingHTTPServer(("127.0.0.1", port), Handler)
    # Port 0 takes a free one, which stays through restarts.
    lab = json.load(open(d + "/lab.json"))
    lab["port"] = s.server_address[1]
    lab["url"] = f"https://127.0.0.1:{lab['port']}"
    put(d + "/lab.json", lab)
    ctx = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    ctx.load_cert_chain(d + "/tls.crt", d + "/tls.key")
    s.socket = ctx.wrap_socket(s.socket, server_side=True, do_handshake_on_connect=False)
    open(d + "/ready", "w").close()
    s.serve_forever()


def main():
    cmd, d = sys.argv[1], os.path.abspath(sys.argv[2])

    def start():
        lab = json.load(open(d + "/lab.json"))
        os.path.exists(d + "/ready") and os.unlink(d + "/ready")
        p = subprocess.Popen(
            [sys.executable, os.path.abspath(__file__), "serve", d, str(lab["port"])],
            start_new_session=True,
            stdin=subprocess.DEVNULL,
            stdout=open(d + "/log", "a"),
            stderr=subprocess.STDOUT,
        )
        open(d + "/pid", "w").write(str(p.pid))
        for _ in range(200):
            if os.path.exists(d + "/ready"):
                return
            time.sleep(0.05)
        sys.exit("pve.py: did not start: " + open(d + "/log").read()[-500:])

    def kill():
        try:
            os.kill(int(open(d + "/pid").read()), signal.SIGKILL)
        except (ProcessLookupError, FileNotFoundError):
            pass

    if cmd == "unlock":
        return World(d).change(sys.argv[3], lambda c: c["config"].pop("lock", None))
    if cmd == "serve":
        return serve(d, int(sys.argv[3]))
    if cmd == "up":
        port = int(sys.argv[3]) if len(sys.argv) > 3 else 0
        for x in ("vms", "images/100", "images/101", "images/200", "tasks", "dump/local", "dump/pbs"):
            os.makedirs(f"{d}/{x}", exist_ok=True)
        open(d + "/tasks/index", "a").close()
        subprocess.run(
            [
                "openssl",
                "req",
                "-x509",
                "-newkey",
                "ec",
                "-pkeyopt",
                "ec_paramgen_curve:P-256",
                "-nodes",
                "-days",
                "3650",
                "-subj",
                "/CN=pve1",
                "-addext",
                "subjectAltName=IP:127.0.0.1",
                "-keyout",
                d + "/tls.key",
                "-out",
                d + "/tls.crt",
            ],
            check=True,
            capture_output=True,
        )
        for vm, kind in ((100, "qemu"), (101, "qemu"), (200, "lxc")):
            for i in (0, 1):
                subprocess.run(
                    ["qemu-img", "create", "-q", "-f", "qcow2", f"{d}/images/{vm}/vm-{vm}-disk-{i}.qcow2", "16M"],
                    check=True,
                )
            put(
                f"{d}/vms/{vm}.json",
                {
                    "vmid": vm,
                    "type": kind,
                    "node": "pve1",
                    "running": False,
                    "snapshots": {},
                    "config": {
                        "name": f"web{vm}",
                        "memory": "64",
                        "cores": 1,
                        # Containers have no generation.
                        **({"vmgenid": str(uuid.uuid4())} if kind == "qemu" else {}),
                        **{
                            (f"scsi{i}" if kind == "qemu" else ("rootfs", "mp0")[i]): f"local:{vm}/vm-{vm}-disk-{i}.qcow2,size=16M"
                            for i in (0, 1)
                        },
                    },
                },
            )
        put(
            d + "/lab.json",
            {
                "url": f"https://127.0.0.1:{port}",
                "port": port,
                "ca": d + "/tls.crt",
                "node": "pve1",
                "token": f"gate@pve!t1={T1}",
                "token_2": f"gate@pve!t2={T1}",
                "token_ct": f"gate@pve!ct={T1}",
                "token_ct_2": f"gate@pve!ct2={T1}",
                "token_all": f"gate@pve!all={T1}",
                "images": d + "/images",
                "dump": d + "/dump",
                "hold": d + "/hold",
                "held": d + "/held",
                "unlock": f"{sys.executable} {os.path.abspath(__file__)} unlock {d} 100",
            },
        )
        return start()
    kill()
    if cmd == "start":
        start()
    if cmd == "down":
        shutil.rmtree(d, ignore_errors=True)


main()
