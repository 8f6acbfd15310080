#!/usr/bin/env python3
"""Follows every operation that the caller may see, and goes on where it was after an interruption.

    SNAPGATE_AUTHORIZATION="Bearer sg_..." follow_statuses.py https://backup.example.com --state last-id

Prints one Status a line, as JSON. The id of the last event is kept in the file given by --state, which is written after its
line was printed: after a crash of this program the last line may come again, and none is left out. Standard library only.
"""

import argparse
import http.client
import os
import sys
import time
import urllib.parse

# The gateway sends something every 15 seconds.
SILENCE_SECONDS = 60


class Refused(Exception):
    """The gateway does not want this request: repeating it does not help."""


class Interrupted(Exception):
    """The gateway answered, and may answer otherwise later."""


def read_events(lines):
    """Yields (fields, id) for each block of a stream of server-sent events."""
    fields = {}
    for line in lines:
        line = line.decode("utf-8").rstrip("\r\n")
        if line == "":
            if fields:
                yield fields
            fields = {}
        elif not line.startswith(":"):
            name, _, value = line.partition(":")
            fields[name] = value.removeprefix(" ")


def load_id(path):
    try:
        with open(path, encoding="ascii") as file:
            return file.read().strip() or None
    except FileNotFoundError:
        return None


def save_id(path, event_id):
    with open(path + ".new", "w", encoding="ascii") as file:
        file.write(event_id + "\n")
        file.flush()
        os.fsync(file.fileno())
    os.replace(path + ".new", path)


def open_stream(url, last_id):
    parts = urllib.parse.urlsplit(url)
    kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
    connection = kind(parts.hostname, parts.port, timeout=SILENCE_SECONDS)
    headers = {
        "Accept": "text/event-stream",
        "Authorization": os.environ["SNAPGATE_AUTHORIZATION"],
    }
    if last_id is not None:
        headers["Last-Event-ID"] = last_id
    path = parts.path.rstrip("/") + "/statuses"
    if parts.query:
        path += "?" + parts.query
    connection.request("GET", path, headers=headers)
    response = connection.getresponse()
    if response.status == 200:
        return response
    text = f"{response.status}: {response.read(2000).decode('utf-8', 'replace')}"
    if response.status in (429, 502, 503, 504):
        raise Interrupted(text)
    raise Refused(text)


def follow(url, state):
    pause = 2.0
    while True:
        try:
            for fields in read_events(open_stream(url, load_id(state))):
                if "retry" in fields:
                    pause = int(fields["retry"]) / 1000
                if fields.get("event") == "reset":
                    # The present follows; what ended between the last event and now may be missing.
                    print('{"reset":true}', flush=True)
                elif "data" in fields:
                    print(fields["data"], flush=True)
                if "id" in fields:
                    save_id(state, fields["id"])
        except (OSError, http.client.HTTPException, Interrupted) as error:
            print(f"interrupted: {error}", file=sys.stderr)
        time.sleep(pause)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("url", help="the public URL of the gateway, perhaps with ?vm=, ?op= or ?principal=")
    parser.add_argument("--state", default="last-id", help="the file that keeps the last id")
    arguments = parser.parse_args()
    try:
        follow(arguments.url, arguments.state)
    except Refused as error:
        sys.exit(f"refused: {error}")


if __name__ == "__main__":
    main()
