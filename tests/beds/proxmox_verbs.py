#!/usr/bin/env python3
"""Every verb a gateway needs of Proxmox VE, bytes compared, on whatever lab.json names: pve.py's own or a real server. usage: verbs.py LAB.JSON"""

import json, os, ssl, subprocess, sys, time, http.client, urllib.parse

lab = json.load(open(sys.argv[1]))
u = urllib.parse.urlsplit(lab["url"])
node = lab["node"]
ctx = ssl.create_default_context(cafile=lab["ca"])
ctx.check_hostname = False


def call(m, path, form=None, query=None, tok=lab["token"], raw=None, hdr={}):
    c = http.client.HTTPSConnection(u.hostname, u.port, context=ctx, timeout=60)
    h = {**({"Authorization": "PVEAPIToken=" + tok} if tok else {}), **hdr}
    b = raw
    if form is not None:
        b = urllib.parse.urlencode(form)
        h["Content-Type"] = "application/x-www-form-urlencoded"
    t = time.time()
    c.request(m, "/api2/json" + path + ("?" + urllib.parse.urlencode(query) if query else ""), b, h)
    r = c.getresponse()
    x = r.read().decode()
    try:
        j = json.loads(x)
    except ValueError:
        j = x
    return r.status, r.reason, j, time.time() - t


n = [0, 0]


def row(what, ok, note=""):
    n[not ok] += 1
    print("%-4s %-58s %s" % ("ok" if ok else "BAD", what, note), flush=True)


q = f"/nodes/{node}/qemu/100"
esc = lambda x: urllib.parse.quote(x, safe="")


def st(up):
    return call("GET", f"/nodes/{up.split(':')[1]}/tasks/{esc(up)}/status")[2]["data"]


def wait(up):
    while (t := st(up))["status"] != "stopped":
        time.sleep(0.05)
    return t["exitstatus"]


def img(i):
    return f"{lab['images']}/100/vm-100-disk-{i}.qcow2"


def wr(b):
    [
        subprocess.run(["qemu-io", "-c", f"write -P {b + i} 0 64k", img(i)], check=True, stdout=subprocess.DEVNULL)
        for i in (0, 1)
    ]


def rd():
    return next(
        (
            b
            for b in range(1, 250)
            if all(
                "verification failed"
                not in subprocess.run(
                    ["qemu-io", "-r", "-c", f"read -P {b + i} 0 64k", img(i)], capture_output=True, text=True
                ).stdout
                for i in (0, 1)
            )
        ),
        None,
    )


def conf():
    return call("GET", q + "/config")[2]["data"]


def snaps():
    return {x["name"]: x.get("snapstate") for x in call("GET", q + "/snapshot")[2]["data"]}


def main():
    for x in [x for x in snaps() if x != "current"]:
        wait(call("DELETE", q + "/snapshot/" + x)[2]["data"])
    wr(10)
    g0 = conf()["vmgenid"]
    text = 'first line\n[snapgate] {"v":1,"name":"n\u00fc"}'
    s, r, j, _ = call("GET", "/version")
    row("version", s == 200, j["data"])
    s, r, j, _ = call("GET", "/cluster/resources", query={"type": "vm"})
    row("where the VM is", [(x["vmid"], x["node"]) for x in j["data"]] == [(100, node)])
    s, r, j, _ = call("POST", q + "/snapshot", {"snapname": "snapgate-7", "description": text})
    up = j["data"]
    row("create: 200 with UPID, task OK", s == 200 and wait(up) == "OK", up)
    s, r, j, _ = call("GET", q + "/snapshot")
    e = {x["name"]: x for x in j["data"]}
    row(
        "list, with the pseudo entry",
        set(e) == {"snapgate-7", "current"}
        and e["current"]["parent"] == "snapgate-7"
        and e["snapgate-7"]["description"] == text
        and e["snapgate-7"]["vmstate"] == 0,
    )
    s, r, j, _ = call("GET", q + "/snapshot/snapgate-7/config")
    row("get", s == 200 and j["data"]["description"] == text and "scsi1" in j["data"])
    s, r, j, _ = call("PUT", q + "/snapshot/snapgate-7/config", {"description": "new text"})
    row(
        "update: at once",
        s == 200
        and j["data"] is None
        and call("GET", q + "/snapshot/snapgate-7/config")[2]["data"]["description"] == "new text",
    )
    wr(50)
    s, r, j, _ = call("POST", q + "/snapshot/snapgate-7/rollback", {})
    e = wait(j["data"])
    row("restore: bytes of both disks are back", e == "OK" and rd() == 10 and conf()["parent"] == "snapgate-7")
    row("restore: vmgenid is a new one, no lock is left", conf()["vmgenid"] != g0 and "lock" not in conf())
    s, r, j, _ = call("POST", q + "/snapshot/nope/rollback", {})
    row(
        "rollback to what is not there: 200, then a failed task",
        s == 200 and wait(j["data"]) == "snapshot 'nope' does not exist" and "lock" not in conf(),
    )
    s, r, j, _ = call("POST", q + "/snapshot", {"snapname": "snapgate-7"})
    row(
        "the same name again: 200, then a failed task",
        s == 200 and wait(j["data"]) == "snapshot name 'snapgate-7' already used",
    )
    s, r, j, _ = call("POST", q + "/snapshot", {"snapname": "7bad"})
    row(
        "a bad name: 400 with errors",
        s == 400 and r == "Parameter verification failed." and "7bad" in j["errors"]["snapname"],
    )
    s, r, j, _ = call("POST", q + "/snapshot", {"snapname": "x" * 41})
    row("41 characters: 400", s == 400 and j["errors"] == {"snapname": "value may only be 40 characters long"})
    s, r, j, _ = call("POST", q + "/snapshot", {"snapname": "y", "tags": "z"})
    row("an unknown parameter: 400", s == 400 and "tags" in j["errors"], j["errors"].get("tags"))
    s, r, j, _ = call("POST", q + "/snapshot", {"snapname": "current"})
    row("the reserved name: 500 at once", s == 500, r)
    s, r, j, _ = call("PUT", q + "/snapshot/nope/config", {"description": "x"})
    row("update of what is not there: 500 at once", s == 500 and r == "snapshot 'nope' does not exist")
    s, r, j, _ = call("GET", q + "/snapshot/nope/config")
    row("get of what is not there: 500", s == 500 and r == "snapshot 'nope' does not exist")
    s, r, j, _ = call("GET", f"/nodes/{node}/qemu/999/snapshot")
    row("a VM that is not there, rights on one VM: 403", s == 403 and "/vms/999" in r, r)
    s, r, j, _ = call("GET", f"/nodes/{node}/qemu/999/snapshot", tok=lab["token_all"])
    row(
        "a VM that is not there, rights on all: 500",
        s == 500 and r == f"Configuration file 'nodes/{node}/qemu-server/999.conf' does not exist",
        r,
    )
    s, r, j, _ = call("GET", f"/nodes/{node}/qemu/101/snapshot")
    row("a VM of others: 403", s == 403 and r == "Permission check failed (/vms/101, VM.Audit)")
    s, r, j, t = call("GET", "/version", tok="gate@pve!t1=00000000-0000-0000-0000-000000000000")
    row("a wrong token: 401 after three seconds", s == 401 and t > 2.5, r)
    s, r, j, t = call("GET", "/version", tok=None)
    row("no token: 401 after three seconds", s == 401 and t > 2.5, r)
    s, r, j, t = call("GET", "/nodes/other/qemu/100/snapshot")
    row("a node that is not there: 500", s == 500, r)
    s, r, j, _ = call(
        "DELETE", q + "/snapshot/snapgate-7", raw="force=0", hdr={"Content-Type": "application/x-www-form-urlencoded"}
    )
    row("DELETE with a body: 501", s == 501 and r == "Unexpected content for method 'DELETE'")
    c = http.client.HTTPSConnection(u.hostname, u.port, context=ctx)
    c.request(
        "POST",
        "/api2/json" + q + "/snapshot",
        iter([b"snapname=y"]),
        {"Authorization": "PVEAPIToken=" + lab["token"]},
        encode_chunked=True,
    )
    x = c.getresponse()
    row("chunked: 501", x.status == 501, x.reason)
    s, r, j, _ = call(
        "POST", q + "/snapshot", raw=json.dumps({"snapname": "snapgate-8"}), hdr={"Content-Type": "application/json"}
    )
    row("a JSON body", s == 200 and wait(j["data"]) == "OK")
    s, r, j, _ = call("GET", f"/nodes/{node}/tasks", query={"vmid": 100, "source": "all", "limit": 20})
    T = {x["upid"]: x for x in j["data"]}
    row(
        "find: own tasks without Sys.Audit, newest first",
        up in T
        and T[up]["status"] == "OK"
        and T[up]["user"] == "gate@pve"
        and T[up]["tokenid"] == "t1"
        and j["data"][0]["starttime"] >= j["data"][-1]["starttime"]
        and j["total"] >= 2,
    )
    s, r, j, _ = call("GET", f"/nodes/{node}/tasks", query={"vmid": 100, "source": "all", "typefilter": "qmrollback"})
    row("find: by verb", {x["type"] for x in j["data"]} == {"qmrollback"})
    s, r, j, _ = call("GET", f"/nodes/{node}/tasks/{esc(up.replace('qmsnapshot', 'qmnothing'))}/status")
    row("a task that is not known: 400", s == 400 and j["errors"] == {"upid": "no such task"})
    s, r, j, _ = call("DELETE", q + "/snapshot/snapgate-8")
    row("delete", wait(j["data"]) == "OK" and set(snaps()) == {"snapgate-7", "current"})
    s, r, j, _ = call("DELETE", q + "/snapshot/snapgate-8")
    row("delete again: 200, then a failed task", s == 200 and wait(j["data"]) == "snapshot 'snapgate-8' does not exist")
    S = f"/nodes/{node}/storage/local/content"
    old = {x["volid"] for x in call("GET", S, query={"content": "backup", "vmid": 100})[2]["data"]}
    wr(10)
    if lab.get("vzdump", True):
        s, r, j, _ = call(
            "POST",
            f"/nodes/{node}/vzdump",
            {
                "vmid": 100,
                "storage": "local",
                "mode": "stop",
                "compress": "zstd",
                "notes-template": "{{guestname}} nightly",
                "protected": 1,
            },
        )
        v = j["data"]
        e = wait(v)
        row("backups: vzdump", e == "OK", e)
        l = call("GET", f"/nodes/{node}/tasks/{esc(v)}/log", query={"limit": 500})[2]
        row(
            "backups: progress in the log",
            any("100% (32.0 MiB of 32.0 MiB)" in x["t"] for x in l["data"]) and l["total"] == len(l["data"]),
        )
        s, r, j, _ = call("GET", S, query={"content": "backup", "vmid": 100})
        b = [x for x in j["data"] if x["volid"] not in old][0]
        row("backups: list", b["notes"] == "web100 nightly" and b["protected"] == 1 and b["vmid"] == 100, b["volid"])
        p = S + "/" + esc(b["volid"])
        s, r, j, _ = call("PUT", p, {"notes": "l1\nl2 \u00fc"})
        row(
            "backups: update, at once",
            s == 200
            and call("GET", p)[2]["data"]["notes"] == "l1\nl2 \u00fc"
            and [
                x["notes"]
                for x in call("GET", S, query={"content": "backup", "vmid": 100})[2]["data"]
                if x["volid"] == b["volid"]
            ]
            == ["l1"],
        )
        wr(50)
        s, r, j, _ = call("POST", f"/nodes/{node}/qemu", {"vmid": 100, "archive": b["volid"], "storage": "local"})
        row("backups: restore without force is refused", s != 200, f"{s} {r}")
        g = conf()["vmgenid"]
        s, r, j, _ = call(
            "POST", f"/nodes/{node}/qemu", {"vmid": 100, "archive": b["volid"], "force": 1, "storage": "local"}
        )
        e = wait(j["data"]) if s == 200 else r
        row(
            "backups: restore in place, bytes are back",
            e == "OK" and rd() == 10,
            f"{e}, snapshots left {snaps()}, vmgenid new {conf()['vmgenid'] != g}",
        )
        s, r, j, _ = call("DELETE", p, query={"delay": 5})
        row("backups: delete while protected: 500", s == 500 and r.startswith("cannot remove protected volume"), r)
        call("PUT", p, {"protected": 0})
        s, r, j, _ = call("DELETE", p, query={"delay": 5})
        row("backups: delete within the delay: null", s == 200 and j["data"] is None)
    row("no lock is left", not conf().get("lock"))
    print(n[0], "passed,", n[1], "failed")
    sys.exit(n[1] > 0)


if __name__ == "__main__":
    main()
