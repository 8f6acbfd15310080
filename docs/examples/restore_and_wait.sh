#!/usr/bin/env bash
# Restores a VM from a backup and waits for the true outcome, with curl alone.
#
#   SNAPGATE_URL=https://backup.example.com SNAPGATE_USER=carol SNAPGATE_PASSWORD_FILE=password restore_and_wait.sh VM BACKUP
#
# Exit status: 0 restored, 1 failed, 2 refused and nothing was changed, 3 outcome unknown, 5 the gateway cannot be reached.
# With snapgate itself installed this is: snapgate backup restore VM BACKUP --yes --wait
set -euo pipefail
vm=$1 backup=$2
[ -r "$SNAPGATE_PASSWORD_FILE" ] || { echo "cannot read $SNAPGATE_PASSWORD_FILE" >&2; exit 64; }

# One key for every try: a request that is sent again is the same operation, not a second one.
key=$(od -An -N16 -tx1 /dev/urandom | tr -d ' \n')
answer=$(mktemp)
trap 'rm -f "$answer"' EXIT

# The password reaches curl by a pipe: arguments can be read by every user of the machine.
call() {
  curl --silent --show-error --max-time 60 --output "$answer" --write-out '%{http_code}' \
    --config <(printf 'user = "%s:%s"\n' "$SNAPGATE_USER" "$(cat "$SNAPGATE_PASSWORD_FILE")") \
    --header 'X-Cloud-Client-Specification-Version: 0.1' "$@" || true
}

# The member of the answer, which is one line of JSON: text without its quotation marks, or a number.
member() { sed -n "s/.*\"$1\":\"\{0,1\}\([^\",}]*\).*/\1/p" "$answer"; }

# Repeats a request while the gateway is away or busy, ten minutes at most. Prints the status.
persist() {
  local status pause=1
  for _ in $(seq 60); do
    status=$(call "$@")
    case $status in
      000 | 429 | 502 | 503 | 504) sleep "$pause"; pause=$((pause < 10 ? pause * 2 : 10)) ;;
      *) break ;;
    esac
  done
  echo "$status"
}

status=$(persist --header "Idempotency-Key: $key" --header 'Content-Type: application/json' \
  --data '{"note": "restored by a script"}' "$SNAPGATE_URL/vms/$vm/backups/$backup/restore")
case $status in
  202) ;;
  000 | 5*) echo "the gateway cannot be reached ($status)" >&2; exit 5 ;;
  *) cat "$answer" >&2; exit 2 ;;
esac

seq=$(member seq)
until [ "$(member progress)" = 100 ]; do
  # Held back by the gateway until the end, 30 seconds at most.
  status=$(persist --header 'Prefer: wait=30' "$SNAPGATE_URL/statuses?seq=$seq")
  [ "$status" = 200 ] || { echo "the outcome of operation $seq is not known here ($status)" >&2; exit 3; }
done
cat "$answer"; echo
[ "$(member state)" != UNKNOWN ] || exit 3
[ "$(member state)" = SUCCESS ] || exit 1
