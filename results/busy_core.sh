#!/usr/bin/env bash
# What a busy core costs: the demo's bytes/s beside a busy loop and without. The last setting lets the run choose.
# Usage: results/busy_core.sh > results/busy_core.txt       10 minutes on 2 quiet cores
set -eu
cd "$(dirname "$0")/.."
python=${PYTHON:-.venv/bin/python}
demo() { # NAME SECONDS [VARIABLE=VALUE...]
  local name=$1 seconds=$2
  shift 2
  env -u OMP_NUM_THREADS "$@" "$python" train.py config/demo.py --dataset=stdlib --max_seconds="$seconds" \
    --eval_interval=0 --eval_bytes=2000 --overwrite --out_dir=out/busy 2> /dev/null | tail -n 1 |
    sed "s/.*bytes_per_second/$name, ${*:-the run chooses}: bytes_per_second/"
}
all() { # NAME SECONDS
  demo "$1" "$2" OMP_NUM_THREADS=2
  demo "$1" "$2" OMP_NUM_THREADS=2 OMP_WAIT_POLICY=PASSIVE
  demo "$1" "$2" OMP_NUM_THREADS=2 GOMP_SPINCOUNT=10000
  demo "$1" "$2" OMP_NUM_THREADS=1
  demo "$1" "$2"
}
all quiet 30
while :; do :; done &
trap 'kill $!' EXIT
all busy 60
