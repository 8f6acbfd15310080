#!/usr/bin/env python3
"""What Proxmox VE leaves when a task is killed in its middle, or stopped. The same lines must come from pve.py and from a real server. usage: crash.py LAB.JSON"""

import os, signal, sys, time

sys.argv = sys.argv[:2]
from proxmox_verbs import *


def unlock():
    subprocess.run(lab["unlock"], shell=True, check=True)
    time.sleep(lab.get("settle", 0))


def reached():
    while not os.path.exists(lab["held"]):
        time.sleep(0.02)


def hold():
    open(lab["hold"], "w").close()


def release():
    for x in ("hold", "held"):
        if os.path.exists(lab[x]):
            os.unlink(lab[x])


def end(m, path, form=None):
    s, r, j, _ = call(m, q + path, form)
    r = r if s != 200 else wait(j["data"]) if j["data"] else "null"
    return f"{s} {'command failed' if r.startswith('command ') else r}"


def state():
    c = conf()
    return f"lock {c.get('lock')}, snapshots {sorted((k, v) for k, v in snaps().items() if k != 'current')}, parent {c.get('parent')}"


def gone(x):
    return "not OK" if x not in ("OK",) else x


release()
unlock()
for x in [x for x in snaps() if x != "current"]:
    end("DELETE", "/snapshot/" + x + "?force=1")
    unlock()
wr(10)
print("base:", end("POST", "/snapshot", {"snapname": "base"}))
wr(50)
for verb, m, path, form in (
    ("create", "POST", "/snapshot", {"snapname": "c1"}),
    ("rollback", "POST", "/snapshot/base/rollback", {}),
    ("delete", "DELETE", "/snapshot/base", None),
):
    g = conf().get("vmgenid")
    hold()
    up = call(m, q + path, form)[2]["data"]
    reached()
    print(f"-- {verb}, held: {st(up)['status']}, {state()}")
    print("   a create meanwhile:", end("POST", "/snapshot", {"snapname": "other"}))
    print("   an update meanwhile:", end("PUT", "/snapshot/base/config", {"description": "z"}))
    os.killpg(int(up.split(":")[2], 16), signal.SIGKILL)
    time.sleep(0.3)
    release()
    print(
        f"   killed: {st(up)['status']}, exit {gone(st(up)['exitstatus'])}; {state()}; vmgenid new {conf().get('vmgenid') != g}; data {rd()}"
    )
    for what, mm, pp, ff in (
        ("the same", m, path, form),
        ("restore base", "POST", "/snapshot/base/rollback", {}),
        ("delete c1", "DELETE", "/snapshot/c1", None),
        ("delete, force", "DELETE", "/snapshot/" + ("c1" if verb == "create" else "base") + "?force=1", None),
    ):
        print(f"   then {what}:", end(mm, pp, ff))
    unlock()
    if verb == "create":
        print(
            "   unlocked: restore base",
            end("POST", "/snapshot/base/rollback", {}),
            rd(),
            "; delete c1",
            end("DELETE", "/snapshot/c1"),
            state(),
        )
        unlock()
        print("   unlocked: delete, force", end("DELETE", "/snapshot/c1?force=1"), state())
    if verb == "rollback":
        print("   unlocked: restore base", end("POST", "/snapshot/base/rollback", {}), rd(), state())
    if verb == "delete":
        print("   unlocked: delete", end("DELETE", "/snapshot/base"), state())
    wr(50)
hold()
up = call("POST", q + "/snapshot", {"snapname": "c2"})[2]["data"]
reached()
print("-- a create that is stopped:", call("DELETE", f"/nodes/{node}/tasks/{esc(up)}")[0])
time.sleep(1)
release()
print("  ", gone(wait(up)), state())
