"""Drives the demo with the Python client that openapi-generator generates.

Usage: openapi_generator.py BASE_URL LATER_URL, with the generated package `snapgate_client` on PYTHONPATH. LATER_URL answers every
request with a Status that has words of a later version.
"""

import sys

from snapgate_client import ApiClient, BackupPatch, BackupsApi, Configuration, NewBackup, Restore, StatusesApi, VmsApi
from snapgate_client.exceptions import NotFoundException

VERSION = "0.1"
VM = "33333"


def connect(url):
    return ApiClient(Configuration(host=url, username="demo", password="demo"))


def follow(statuses, status):
    """Reads the Status of an accepted change until it is over."""
    while status.progress < 100:
        status = statuses.read_statuses(seq=status.seq, prefer="wait=10").actual_instance
    return status


def main(url, later_url):
    client = connect(url)
    backups, statuses = BackupsApi(client), StatusesApi(client)
    vms = VmsApi(client).list_vms(VERSION)
    assert vms.complete and VM in [vm.id for vm in vms.vms], vms
    links = [backup.uri for backup in backups.list_backups(VM, VERSION).backups]
    assert any(link.endswith("/vms/33333/backups/456") for link in links), links

    def read(backup):
        return backups.read_backup(VM, backup, VERSION)

    def update(patch):
        changed = backups.update_backup(VM, "456", VERSION, patch)
        assert follow(statuses, changed).state == "SUCCESS", changed

    assert read("456").state == "AVAILABLE", read("456")
    update(BackupPatch(tags=["foo", "bar"], description="changed"))
    changed = read("456")
    assert changed.tags == ["foo", "bar"] and changed.description == "changed", changed
    # None is null, which clears; what is not set is not sent.
    update(BackupPatch(description=None))
    cleared = read("456")
    assert cleared.tags == ["foo", "bar"] and not cleared.description, cleared

    made = follow(statuses, backups.create_backup(VM, VERSION, NewBackup(name="of-openapi-generator")))
    assert made.status == 201 and made.target_uri.startswith("/vms/33333/backups/"), made

    restored = backups.restore_backup(VM, "456", VERSION, restore=Restore(note="of openapi-generator"))
    assert follow(statuses, restored).message == "The VM was restored.", restored

    try:
        read("absent")
    except NotFoundException as refusal:
        assert refusal.data.message[0].code == "NoSuchBackup", refusal
    else:
        raise AssertionError("a backup that does not exist was read")

    later = StatusesApi(connect(later_url)).read_statuses(seq="1").actual_instance
    assert later.state == "PAUSED" and later.op == "clone-Backup", later
    print("done")


main(*sys.argv[1:])
