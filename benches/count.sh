#!/usr/bin/env bash
# Counts the instructions of one request through the gate, or the whole program, under callgrind and holds them to benches/budget.txt.
# Needs valgrind, with --served python3, openssl and htpasswd, too. Instructions, not time: the figure is the same on a busy machine.
#
#   benches/count.sh            fails when a path takes 10 % more than its budget
#   benches/count.sh --served   the same, with requests through the whole program: passed on, over HTTP/2, logged
#   benches/count.sh --update   writes what was counted into the budget
#   benches/count.sh --release  shows what the optimised program takes; holds it to nothing
#
# --served goes with the others.
#
# The dev profile, because the tests have built all of it already: the optimised one would cost minutes more, and
# an allocation, a hash or a walk too many shows in both.
set -euo pipefail
cd "$(dirname "$0")/.."

FEW=100
MANY=600
OVER_PERCENT=10
PATHS=(get get_10000_grants update)
SERVED=(passed_get passed_post passed_get_http2 passed_post_http2 get_http2 get_logged)

mode=check
profile=dev
paths=("${PATHS[@]}")
for word; do
    case $word in
    --served) paths+=("${SERVED[@]}") ;;
    --update) mode=update ;;
    --release) mode=release profile=release ;;
    *) sed -n '2,12p' "$0"; exit 64 ;;
    esac
done
budget=benches/budget.txt

# The benchmark as cargo built it; the name has a hash in it.
program=$(cargo bench --locked --quiet --profile "$profile" --bench count --no-run --message-format=json-render-diagnostics |
    grep '"kind":\["bench"\]' |
    sed -n 's/.*"executable":"\([^"]*\)".*/\1/p' | tail -n 1)
[ -x "$program" ] || { echo "the benchmark was not built"; exit 1; }

[ "${#paths[@]}" = "${#PATHS[@]}" ] || cargo build --locked --quiet --profile "$profile" --bin snapgate
gateway=$(dirname "$program")/../snapgate

counts=$(mktemp -d)
trap 'rm -rf "$counts"' EXIT

total() {
    if [[ " ${SERVED[*]} " == *" $1 "* ]]; then
        python3 benches/served.py "$gateway" "$1" "$2"
        return
    fi
    valgrind --quiet --tool=callgrind --callgrind-out-file="$counts/$1.$2.out" "$program" "$1" "$2"
    sed -n 's/^\(summary\|totals\): *\([0-9]*\).*/\2/p' "$counts/$1.$2.out" | head -n 1
}

# One run on each core: instructions do not depend on what else runs.
for path in "${paths[@]}"; do
    for times in "$MANY" "$FEW"; do
        while [ "$(jobs -rp | wc -l)" -ge "$(nproc)" ]; do wait -n || true; done
        total "$path" "$times" >"$counts/$path.$times" &
    done
done
wait

failed=0
for path in "${paths[@]}"; do
    # The difference of two runs: start, configuration and the one password check are in both.
    few=$(cat "$counts/$path.$FEW")
    many=$(cat "$counts/$path.$MANY")
    [ -n "$few" ] && [ -n "$many" ] || { echo "$path: not counted; what failed is above"; exit 1; }
    each=$(((many - few) / (MANY - FEW)))
    allowed=$(sed -n "s/^$path = \([0-9]*\)$/\1/p" "$budget")
    case $mode in
    release)
        echo "$path: $each instructions"
        ;;
    update)
        echo "$path: $each instructions, was ${allowed:-nothing}"
        sed -i "/^$path = /d" "$budget"
        echo "$path = $each" >>"$budget"
        ;;
    *)
        [ -n "$allowed" ] || { echo "$path: no budget in $budget; run benches/count.sh --update"; exit 1; }
        echo "$path: $each instructions, budget $allowed"
        if [ $((each * 100)) -gt $((allowed * (100 + OVER_PERCENT))) ]; then
            echo "$path: more than $OVER_PERCENT % over; find out why with callgrind_annotate, or run benches/count.sh --update"
            failed=1
        fi
        ;;
    esac
done
exit "$failed"
