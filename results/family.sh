#!/usr/bin/env bash
# The two larger models of the family on a CPU, end to end: train, kill, resume, sample, evaluate, share; time and memory.
# Usage: results/family.sh [CONFIG...]      stlm_50m stlm_100m by default; 15 minutes each; logs go to results/family/
#   SECONDS_EACH=20 KNOBS="--n_layer=1 --n_embd=64 --n_head=2 --n_local_embd=64 --gram_rows=640" tries the script
# The text: python prepare.py TRAIN --val=VAL --name=family --max_bytes=20_000_000, with 100 kB in VAL. Benchmarks as
# JSONL in ${ITEMS:-data/eval}.
set -eu
cd "$(dirname "$0")/.."
python=${PYTHON:-.venv/bin/python} seconds=${SECONDS_EACH:-600}
measure() { # NAME COMMAND...: its output, and how much memory and time it took
  name=$1
  shift
  code=0
  "$python" -c "import resource, subprocess, sys, time
start = time.time()
code = subprocess.call(sys.argv[1:])
peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1e6
print(f'# peak memory {peak:.2f} GB, {time.time() - start:.0f} s, exit status {code % 256}')
sys.exit(code % 256)" "$@" > "$log/$name.txt" 2>&1 || code=$?
  tail -n 1 "$log/$name.txt" | sed "s/^/$config $name: /"
  return "$code"
}
for config in ${*:-stlm_50m stlm_100m}; do
  run=out/family/$config log=results/family/$config
  mkdir -p "$log" out/family
  # half of the steps are this long, too: a step of 128 KiB takes half a minute here
  train="train.py config/$config.py --dataset=family --batch_bytes=32768 --log_interval=1 --eval_interval=8 \
    --eval_bytes=32768 --max_seconds=$seconds --out_dir=$run ${KNOBS:-}"
  (
    while [ ! -e "$run/last.pt" ] || [ "$run/last.pt" -ot "$log/started" ]; do sleep 1; done
    sleep $((seconds / 3))
    pkill -KILL -f "out_dir=$run " || true
  ) &
  touch "$log/started"
  measure killed "$python" $train --overwrite || true
  wait
  rm "$log/started"
  measure resumed "$python" $train --resume
  measure sample "$python" sample.py --model="$run" --weights=last --prompt="The cell " --max_new_bytes=400 --seed=1
  measure eval "$python" bench.py eval --model="$run" --weights=last --data="${ITEMS:-data/eval}" --limit=40 --tasks=val,blimp,arc_easy
  rm -rf "$run-shared"
  measure share "$python" -m tools.share --model="$run" --weights=last --to="$run-shared" --bits=8
  measure sample_shared "$python" sample.py --model="$run-shared" --prompt="The cell " --max_new_bytes=400 --seed=1
  cp "$run/log.jsonl" "$log/"
done
