#!/usr/bin/env bash
# Tiny Shakespeare in 110 seconds of training, 3 seeds, beside nanoGPT's CPU recipe on the same machine.
# Usage: results/race_shakespeare.sh [PATH/TO/nanoGPT]     about 15 minutes; logs and verdicts go to results/shakespeare/
# The text: python prepare.py shakespeare (or a local input.txt with --name=shakespeare).
set -eu
cd "$(dirname "$0")/.."
python=${PYTHON:-.venv/bin/python}
out=results/shakespeare
mkdir -p $out
for seed in ${SEEDS:-1 2 3}; do
  for config in shakespeare_800k shakespeare_80k; do
    $python train.py config/$config.py --seed="$seed" --out_dir=out/race-$config-$seed --overwrite | tail -n 1
    cp out/race-$config-$seed/log.jsonl $out/$config-seed$seed.log.jsonl
    cp out/race-$config-$seed/run.json $out/$config-seed$seed.run.json
  done
done
if [ $# -gt 0 ]; then  # nanoGPT's own command for a laptop's CPU, with more batches in its estimate of the val loss
  mkdir -p "$1/data/shakespeare_char"
  [ -f "$1/data/shakespeare_char/input.txt" ] || cat data/shakespeare/train.bin data/shakespeare/val.bin > "$1/data/shakespeare_char/input.txt"
  nanogpt() { (cd "$1" && shift && "$@"); }
  python=$(realpath -s "$python")
  nanogpt "$1" "$python" data/shakespeare_char/prepare.py > /dev/null
  nanogpt "$1" "$python" train.py config/train_shakespeare_char.py --device=cpu --compile=False --eval_iters=200 \
    --eval_interval=3300 --log_interval=100 --block_size=64 --batch_size=12 --n_layer=4 --n_head=4 --n_embd=128 \
    --max_iters=3300 --lr_decay_iters=3300 --dropout=0.0 | tee $out/nanogpt.txt | tail -n 3
fi
