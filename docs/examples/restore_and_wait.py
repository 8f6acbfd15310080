#!/usr/bin/env python3
"""Restores a VM from a backup and waits for the true outcome. Standard library only.

    SNAPGATE_URL=https://backup.example.com SNAPGATE_USER=carol SNAPGATE_PASSWORD_FILE=password restore_and_wait.py VM BACKUP

Exit status: 0 restored, 1 failed, 2 refused and nothing was changed, 3 outcome unknown, 5 the gateway cannot be reached.
"""

import base64
import http.client
import json
import os
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
import uuid

# How long the gateway may be away, for instance while it is restarted.
PATIENCE_SECONDS = 600


class Refused(Exception):
    """The gateway does not want this request: repeating it does not help."""


class Gateway:
    def __init__(self, url, user, password_file):
        with open(password_file, encoding="utf-8") as file:
            password = file.read().rstrip("\r\n")
        credentials = base64.b64encode(f"{user}:{password}".encode()).decode()
        self.url = url.rstrip("/")
        self.headers = {
            "Authorization": f"Basic {credentials}",
            "X-Cloud-Client-Specification-Version": "0.1",
        }

    def call(self, path, headers, body=None):
        """Sends a request until the gateway answers it, and returns the JSON of the answer."""
        until = time.monotonic() + PATIENCE_SECONDS
        pause = 0.5
        while True:
            data = None if body is None else json.dumps(body).encode()
            request = urllib.request.Request(self.url + path, data, {**self.headers, **headers})
            try:
                with urllib.request.urlopen(request, timeout=60) as response:
                    return json.load(response)
            except urllib.error.HTTPError as error:
                text = error.read().decode("utf-8", "replace")
                if error.code not in (429, 502, 503, 504):
                    raise Refused(f"{error.code}: {text}") from error
                failure = error
            except (OSError, http.client.HTTPException) as error:
                failure = error
            if time.monotonic() > until:
                raise failure
            time.sleep(pause)
            pause = min(pause * 2, 10)


def restore(gateway, vm, backup):
    """Returns the Status of the restore, which is accepted and mostly has not ended."""
    path = "/vms/{}/backups/{}/restore".format(*(urllib.parse.quote(part, safe="") for part in (vm, backup)))
    # One key for every try: a request that is sent again is the same operation, not a second one.
    headers = {"Content-Type": "application/json", "Idempotency-Key": str(uuid.uuid4())}
    return gateway.call(path, headers, {"note": "restored by a script"})


def wait_for_end(gateway, status):
    """Returns the Status with which the operation ended."""
    while status["progress"] < 100:
        # Held back by the gateway until the end, 30 seconds at most.
        status = gateway.call("/statuses?seq=" + status["seq"], {"Prefer": "wait=30"})
    return status


def main():
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    gateway = Gateway(*(os.environ[name] for name in ("SNAPGATE_URL", "SNAPGATE_USER", "SNAPGATE_PASSWORD_FILE")))
    accepted = None
    try:
        accepted = restore(gateway, sys.argv[1], sys.argv[2])
        status = wait_for_end(gateway, accepted)
    except Refused as error:
        print(error, file=sys.stderr)
        # After the restore was accepted, a refusal says nothing about its outcome.
        sys.exit(2 if accepted is None else 3)
    except (OSError, http.client.HTTPException) as error:
        print(f"the gateway cannot be reached: {error}", file=sys.stderr)
        sys.exit(5)
    print(json.dumps(status))
    sys.exit({"SUCCESS": 0, "UNKNOWN": 3}.get(status["state"], 1))


if __name__ == "__main__":
    main()
