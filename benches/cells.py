#!/usr/bin/env python3
"""Simulates 1,000,000 VMs and 10,000 changes a minute that are split over cells, and compares each cell with its limits.

A cell is a group of gateways with an etcd of its own (docs/scale.md). VM managers are simulated change by change: arrivals,
places, and how long each change runs. Cells only group VM managers, so one simulation serves every number of cells. What one
cell carries was measured by `benches/peers/run --rows cluster,followed`.

    benches/cells.py               the tables of docs/scale.md, in about 20 seconds; the same with every run
    benches/cells.py --minutes 30  a shorter time: whether it works
"""

import argparse
import hashlib
import heapq
import math
import random

VMS = 1_000_000
MANAGERS = 1_000
CHANGES_PER_MINUTE = 10_000
# Changes that one VM manager runs at once (`concurrency`).
PLACES = 16
# A part of the day in which twice as much is asked for, as at night when backups begin.
BURST_BEGIN, BURST_MINUTES, BURST_FACTOR = 35, 15, 2.0
# Share of all changes, and the mean of the seconds that one runs. The spread is log-normal.
KINDS = {"backup": (0.70, 25.0), "delete": (0.25, 3.0), "restore": (0.05, 90.0)}
SPREAD = 0.6
# Not all VM managers are equally busy: the spread of their shares.
SKEW = 0.25

# Measured on two cores that three gateways, three members of etcd and the clients shared, so a lower bound.
CHANGES_PER_SECOND = 1_114
DISK_PER_STATUS = 2_067
MEMORY_PER_STATUS = 10_196
# Seconds of processor time of the active gateway for each change, and for each second that it follows one.
PROCESSOR_PER_CHANGE = 302e-6
PROCESSOR_PER_FOLLOWED_SECOND = 32e-6

GIB = 1 << 30
# 70 % of the largest quota that etcd suggests, where the alert is raised.
DISK = 0.7 * 8 * GIB
MEMORY = 16 * GIB
# What a cell may use of what was measured, so that a burst or a lost member does not fill it.
SHARE = 0.5

LOST_BEGIN, LOST_MINUTES, LOST_CELLS = 5, 15, 16
RETRY_SECONDS = 30.0


class Work:
    """The changes of all VM managers: of each its manager, VM, arrival, start and end, in seconds."""

    def __init__(self, minutes, places=PLACES, split=1, delayed=None):
        self.minutes = minutes
        self.changes = []
        chance = random.Random(1)
        shares = [chance.lognormvariate(0, SKEW) for _ in range(MANAGERS)]
        whole = sum(shares)
        for manager, share in enumerate(shares):
            self.run(manager, share / whole, random.Random(manager), places, split, delayed)

    def run(self, manager, share, chance, places, split, delayed):
        """All changes of one VM manager. `split` cells have that many of its places each."""
        free = [[0.0] * max(1, places // split) for _ in range(split)]
        busy_until = {}
        for arrival in arrivals(share, chance, self.minutes):
            vm = chance.randrange(VMS // MANAGERS)
            runs = duration(chance)
            retried = chance.random() * RETRY_SECONDS
            if delayed and delayed(manager, arrival):
                arrival = (LOST_BEGIN + LOST_MINUTES) * 60 + retried
            part = free[vm % split]
            start = max(arrival, part[0], busy_until.get(vm, 0.0))
            heapq.heapreplace(part, start + runs)
            busy_until[vm] = start + runs
            self.changes.append((manager, vm, arrival, start, start + runs))


def arrivals(share, chance, minutes):
    """A Poisson process with a burst."""
    now = 0.0
    while True:
        is_burst = BURST_BEGIN <= now / 60 < BURST_BEGIN + BURST_MINUTES
        now += chance.expovariate(CHANGES_PER_MINUTE / 60 * share * (BURST_FACTOR if is_burst else 1.0))
        if now >= minutes * 60:
            return
        yield now


def duration(chance):
    """Seconds that one change runs."""
    drawn = chance.random()
    for share, mean in KINDS.values():
        drawn -= share
        if drawn < 0:
            break
    return chance.lognormvariate(math.log(mean) - SPREAD**2 / 2, SPREAD)


def hashed(name, cells):
    """The cell of a name by rendezvous hashing: another cell takes only its share from each."""
    weight = lambda cell: hashlib.blake2b(f"{cell}/{name}".encode(), digest_size=8).digest()
    return max(range(cells), key=weight)


def by_hash(_, cells):
    return [hashed(manager, cells) for manager in range(MANAGERS)]


def by_table(work, cells):
    """The busiest VM manager first, each to the cell that has least to do."""
    counts = [0] * MANAGERS
    for change in work.changes:
        counts[change[0]] += 1
    loads = [(0, cell) for cell in range(cells)]
    placed = [0] * MANAGERS
    for manager in sorted(range(MANAGERS), key=lambda each: -counts[each]):
        load, cell = loads[0]
        placed[manager] = cell
        heapq.heapreplace(loads, (load + counts[manager], cell))
    return placed


class Cell:
    """What one cell has to carry."""

    def __init__(self, seconds):
        self.accepted = [0] * seconds
        self.steps = [0] * (seconds + 1)
        self.total = 0

    def add(self, arrival, end):
        last = len(self.accepted) - 1
        self.accepted[min(int(arrival), last)] += 1
        self.steps[min(int(arrival), last)] += 1
        self.steps[min(int(end) + 1, last + 1)] -= 1
        self.total += 1

    def peak_accepted(self):
        """Most changes a second, over ten of them."""
        return max(sum(self.accepted[at : at + 10]) for at in range(0, len(self.accepted) - 9, 10)) / 10

    def peak_unfinished(self):
        most = now = 0
        for step in self.steps:
            now += step
            most = max(most, now)
        return most


def grouped(work, placed):
    cells = [Cell(work.minutes * 60) for _ in range(max(placed) + 1)]
    for manager, _, arrival, _, end in work.changes:
        cells[placed[manager]].add(arrival, end)
    return cells


def percentile(values, part):
    return sorted(values)[min(len(values) - 1, int(len(values) * part))]


def table(head, rows):
    widths = [max(len(str(line[at])) for line in [head, *rows]) for at in range(len(head))]
    line = lambda cells: "| " + " | ".join(str(cell).rjust(width) for cell, width in zip(cells, widths)) + " |"
    print("\n".join([line(head), "|" + "|".join("-" * (width + 1) + ":" for width in widths) + "|", *map(line, rows)]), end="\n\n")


def busiest(work, ways):
    rows = []
    for cells in (1, 4, 16, 64):
        for name, way in ways:
            found = grouped(work, way(work, cells))
            rate = max(cell.peak_accepted() for cell in found)
            unfinished = max(cell.peak_unfinished() for cell in found)
            spent = rate * PROCESSOR_PER_CHANGE + unfinished * PROCESSOR_PER_FOLLOWED_SECOND
            even = max(cell.total for cell in found) * cells / len(work.changes)
            rows.append((cells, name, f"{rate:,.0f}", f"{rate / CHANGES_PER_SECOND:.0%}", f"{unfinished:,}", f"{spent:.0%}", f"{even:.2f}"))
    print("The busiest cell, in the burst:\n")
    table(("cells", "VM managers are placed by", "changes/s", "of the measured", "unfinished", "of a core", "beside the mean"), rows)


def kept():
    rows = []
    for days in (1, 7, 30):
        statuses = CHANGES_PER_MINUTE * 60 * 24 * days
        needs = [statuses * each / (SHARE * room) for each, room in ((DISK_PER_STATUS, DISK), (MEMORY_PER_STATUS, MEMORY))]
        cells = math.ceil(max(needs))
        rows.append((f"{days} d", f"{statuses / 1e6:,.1f} M", *(f"{each:.1f}" for each in needs), cells, f"{statuses / cells / 1e6:.1f} M"))
    print("Cells for the Statuses that are kept:\n")
    table(("retention", "Statuses", "by disk", "by memory", "cells", "Statuses each"), rows)


def split_managers(minutes):
    rows = []
    for cells in (1, 2, 4, 8, 16):
        waits = [start - arrival for _, _, arrival, start, _ in Work(minutes, split=cells).changes]
        rows.append((cells, PLACES // cells, f"{percentile(waits, 0.5):.1f} s", f"{percentile(waits, 0.99):.0f} s", f"{sum(waits) / len(waits):.1f} s"))
    print("One VM manager in several cells, by a hash of the VM: how long a change waits for a place:\n")
    table(("cells of a VM manager", "places in each", "median", "p99", "mean"), rows)


def lost(minutes, work):
    begin, end = LOST_BEGIN * 60, (LOST_BEGIN + LOST_MINUTES) * 60
    placed = by_table(work, LOST_CELLS)
    gone = lambda manager, arrival: placed[manager] == 0 and begin <= arrival < end
    refused = sum(1 for manager, _, arrival, _, _ in work.changes if gone(manager, arrival))
    during = sum(1 for change in work.changes if begin <= change[2] < end)
    running = sum(1 for manager, _, _, start, done in work.changes if placed[manager] == 0 and start < begin < done)
    after = Work(minutes, delayed=gone)
    vms = placed.count(0) * (VMS // MANAGERS)
    waits = lambda all, is_lost: [start - arrival for manager, _, arrival, start, _ in all if (placed[manager] == 0) == is_lost and arrival >= end]
    back = max(start for manager, _, arrival, start, _ in after.changes if placed[manager] == 0 and end <= arrival < end + RETRY_SECONDS)
    rows = [
        ("VMs without changes and Statuses", f"{vms:,}", f"{vms / VMS:.1%} of all"),
        ("changes refused at least once", f"{refused:,}", f"{refused / during:.1%} of those in that time"),
        ("changes that run on in the VM managers", f"{running:,}", "settled by evidence when the cell is back"),
        ("most that a cell accepts in a second, after it", f"{max(grouped(after, placed)[0].accepted[end:]):,}", f"{CHANGES_PER_SECOND:,} were measured"),
        ("until all repeated changes have begun", f"{back - end:,.0f} s", ""),
        ("p99 of waiting for a place after it", f"{percentile(waits(after.changes, True), 0.99):,.0f} s", f"{percentile(waits(work.changes, True), 0.99):,.1f} s without the loss"),
        ("the same in the other cells", f"{percentile(waits(after.changes, False), 0.99):,.1f} s", f"{percentile(waits(work.changes, False), 0.99):,.1f} s without the loss"),
    ]
    print(f"One of {LOST_CELLS} cells is lost for {LOST_MINUTES} minutes, and its clients repeat within {RETRY_SECONDS:.0f} s after it is back:\n")
    table(("what", "figure", ""), rows)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=int, default=60, help="simulated minutes, at least 30")
    minutes = parser.parse_args().minutes
    if minutes < 30:
        parser.error("--minutes must be at least 30")
    work = Work(minutes)
    print(f"{len(work.changes):,} changes of {VMS:,} VMs on {MANAGERS:,} VM managers in {minutes} minutes, {PLACES} places each\n")
    busiest(work, (("a hash", by_hash), ("a table", by_table)))
    kept()
    split_managers(30)
    lost(minutes, work)


if __name__ == "__main__":
    main()
