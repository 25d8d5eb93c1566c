#!/usr/bin/env bash
# What a busy core costs two threads: the demo's bytes/s beside a busy loop and without.
# Usage: results/busy_core.sh > results/busy_core.txt       2 minutes on 2 cores
set -eu
cd "$(dirname "$0")/.."
python=${PYTHON:-.venv/bin/python}
demo() { # NAME VARIABLE=VALUE
  env "$2" "$python" train.py config/demo.py --dataset=stdlib --max_seconds=8 --eval_interval=0 --eval_bytes=2000 \
    --overwrite --out_dir=out/busy 2> /dev/null | tail -n 1 | sed "s/.*bytes_per_second/$1, $2: bytes_per_second/"
}
settings="TWO_THREADS=1 OMP_WAIT_POLICY=PASSIVE GOMP_SPINCOUNT=10000 OMP_NUM_THREADS=1"
for setting in $settings; do demo quiet "$setting"; done
while :; do :; done &
trap 'kill $!' EXIT
for setting in $settings TWO_THREADS=1; do demo busy "$setting"; done
