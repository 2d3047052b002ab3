#!/usr/bin/env bash
# A run on machines that are taken away: launch, be asked to leave, launch again, until the run is finished.
#   bash examples/spot.sh python src/sft.py recipes/tiny_sft.yaml --output_dir outputs/tiny_sft
# A SIGTERM (of a cloud, or of this script's `kill`) makes the run write a checkpoint and exit with 75, upon which the
# same command is started again here; on a machine that is gone, this script itself is what its successor starts. Under
# `accelerate launch`, whose own exit code is 1 for every failure, give POSTTRAIN_ACCELERATE_CONFIG=… python … instead.
set -uo pipefail
child=
trap '[ -n "$child" ] && kill -TERM "$child"' TERM USR1
while true; do
    "$@" &
    child=$!
    wait "$child"
    code=$?
    # A trapped signal ends `wait` before the run has saved; a second one waits for the run itself.
    if kill -0 "$child" 2>/dev/null; then
        wait "$child"
        code=$?
    fi
    [ "$code" -eq 75 ] || exit "$code"
    echo "asked to leave; the same command goes on"
done
