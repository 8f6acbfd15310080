"""Drives the demo with the client that openapi-python-client generates.

Usage: openapi_python_client.py BASE_URL LATER_URL, with the generated package `snapgate_client` on PYTHONPATH. LATER_URL answers every
request with a Status that has words of a later version.
"""

import sys

from snapgate_client import Client
from snapgate_client.api.backups import create_backup, list_backups, read_backup, restore_backup, update_backup
from snapgate_client.api.statuses import read_statuses
from snapgate_client.api.vms import list_vms
from snapgate_client.models import BackupPatch, Messages, NewBackup, Restore, RestoreForm, Status

VERSION = "0.1"
VM = "33333"


def connect(url):
    return Client(base_url=url, httpx_args={"auth": ("demo", "demo")})


def follow(client, response):
    """Reads the Status of an accepted change until it is over."""
    assert response.status_code == 202, response
    status = response.parsed
    assert isinstance(status, Status), status
    while status.progress < 100:
        status = read_statuses.sync(client=client, seq=status.seq, prefer="wait=10")
        assert isinstance(status, Status), status
    return status


def main(url, later_url):
    client = connect(url)
    vms = list_vms.sync(client=client, x_cloud_client_specification_version=VERSION)
    assert vms.complete and VM in [vm.id for vm in vms.vms], vms
    found = list_backups.sync(VM, client=client, x_cloud_client_specification_version=VERSION)
    links = [backup.uri for backup in found.backups]
    assert any(link.endswith("/vms/33333/backups/456") for link in links), links

    def read(backup):
        return read_backup.sync_detailed(VM, backup, client=client, x_cloud_client_specification_version=VERSION)

    def update(patch):
        changed = update_backup.sync_detailed(VM, "456", client=client, x_cloud_client_specification_version=VERSION, body=patch)
        assert follow(client, changed).state == "SUCCESS", changed

    assert read("456").parsed.state == "AVAILABLE", read("456")
    update(BackupPatch(tags=["foo", "bar"], description="changed"))
    changed = read("456").parsed
    assert changed.tags == ["foo", "bar"] and changed.description == "changed", changed
    # None is null, which clears; what is not set is not sent.
    update(BackupPatch(description=None))
    cleared = read("456").parsed
    assert cleared.tags == ["foo", "bar"] and not cleared.description, cleared

    new = NewBackup(name="of-openapi-python-client")
    made = create_backup.sync_detailed(VM, client=client, x_cloud_client_specification_version=VERSION, body=new)
    made = follow(client, made)
    assert made.status == 201 and made.target_uri.startswith("/vms/33333/backups/"), made

    for pairs in [Restore(note="as JSON"), RestoreForm(note="as a form")]:
        restored = restore_backup.sync_detailed(VM, "456", client=client, x_cloud_client_specification_version=VERSION, body=pairs)
        assert follow(client, restored).message == "The VM was restored.", restored

    absent = read("absent")
    assert absent.status_code == 404 and isinstance(absent.parsed, Messages), absent
    assert absent.parsed.message[0].code == "NoSuchBackup", absent.parsed

    later = read_statuses.sync(client=connect(later_url), seq="1")
    assert later.state == "PAUSED" and later.op == "clone-Backup", later
    print("done")


main(*sys.argv[1:])
