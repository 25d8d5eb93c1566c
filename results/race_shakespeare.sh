#!/usr/bin/env bash
# Tiny Shakespeare in 110 seconds of training: three sizes, pooled and plain, 3 seeds, beside nanoGPT on the same machine.
# Usage: results/race_shakespeare.sh [PATH/TO/nanoGPT]     about 45 minutes; logs and verdicts go to results/shakespeare/
# The text: python prepare.py shakespeare (or a local input.txt with --name=shakespeare).
set -eu
cd "$(dirname "$0")/.."
python=${PYTHON:-.venv/bin/python}
out=results/shakespeare
for seed in ${SEEDS:-1 2 3}; do
  for config in ${CONFIGS:-shakespeare_40k shakespeare_80k shakespeare_80k_256 shakespeare_plain_80k shakespeare_800k shakespeare_800k_256 shakespeare_plain_800k shakespeare_1m}; do
    run=$config-seed$seed
    $python train.py config/$config.py --seed="$seed" --out_dir=out/$run --overwrite | tail -n 1
    mkdir -p $out/$run
    cp out/$run/log.jsonl out/$run/run.json $out/$run/
  done
  [ $# -gt 0 ] || continue
  # nanoGPT's own command for a laptop's CPU, longer, with more batches in its estimate of the val loss
  mkdir -p "$1/data/shakespeare_char"
  [ -f "$1/data/shakespeare_char/input.txt" ] || cat data/shakespeare/train.bin data/shakespeare/val.bin > "$1/data/shakespeare_char/input.txt"
  python_there=$(realpath -s "$python")
  (cd "$1" && "$python_there" data/shakespeare_char/prepare.py > /dev/null)
  (cd "$1" && "$python_there" train.py config/train_shakespeare_char.py --device=cpu --compile=False --eval_iters=200 \
    --eval_interval=3300 --log_interval=100 --block_size=64 --batch_size=12 --n_layer=4 --n_head=4 --n_embd=128 \
    --max_iters=3300 --lr_decay_iters=3300 --dropout=0.0) > "$out/nanogpt-$seed.txt"
  tail -n 1 "$out/nanogpt-$seed.txt"
done
