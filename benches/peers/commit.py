#!/usr/bin/env python3
"""The floor under every durable answer: records written into a store of the gateway, as many in a transaction as there are writers.

    commit.py STORE WRITERS SECONDS

STORE is the file of a gateway that does not run, with one operation or more; it is changed. All writers wait for each commit, so
every transaction has one record of each. Prints the records made durable in a second.
"""

import itertools
import sqlite3
import sys
import time


def main():
    path, writers, seconds = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
    # Transactions are begun and committed here.
    store = sqlite3.connect(path, isolation_level=None)
    # As the gateway opens it.
    store.execute("PRAGMA synchronous = FULL")
    names = [row[1] for row in store.execute("PRAGMA table_info(operations)")]
    first = store.execute("SELECT * FROM operations ORDER BY seq LIMIT 1").fetchone()
    model = dict(zip(names, first))
    varied = ("seq", "created", "changed", "idem_key")
    others = [name for name in names if name not in varied]
    numbers = itertools.count(1)

    def record():
        number = next(numbers)
        return [model["seq"] - number, model["created"] + number, model["changed"] + number, *(model[name] for name in others)]

    insert = f"INSERT INTO operations(seq, created, changed, {', '.join(others)}) VALUES({', '.join('?' * (len(others) + 3))})"
    began, durable = time.monotonic(), 0
    while time.monotonic() < began + seconds:
        store.execute("BEGIN IMMEDIATE")
        store.executemany(insert, [record() for _ in range(writers)])
        store.execute("COMMIT")
        durable += writers
    print(f"{durable / (time.monotonic() - began):.1f}")


if __name__ == "__main__":
    main()
