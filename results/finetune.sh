#!/usr/bin/env bash
# Which learning rates for fine-tuning? The demo's weights on text of its kind, 150 steps, and from scratch; 2 seeds.
# Usage: results/finetune.sh       12 runs, 3 minutes on 2 cores; logs go to results/finetune/. First: make demo, and
#   python prepare.py ".venv/lib/python3*/site-packages/matplotlib/*.py" --name=mpl --max_bytes=1_500_000
set -eu
cd "$(dirname "$0")/.."
python=${PYTHON:-.venv/bin/python}
for seed in ${SEEDS:-1 2}; do
  for rates in scratch "0.04 0.01" "0.02 0.005" "0.01 0.0025" "0.005 0.00125" "0.0025 0.0006"; do
    run=mpl-${rates% *}-seed$seed
    options="--init_from=out/demo --muon_lr=${rates% *} --adam_lr=${rates#* }"
    [ "$rates" != scratch ] || options=""
    $python train.py config/demo.py --dataset=mpl --max_steps=150 --eval_interval=0 --seed="$seed" $options \
      --out_dir=out/"$run" --overwrite | tail -n 1
    mkdir -p results/finetune/"$run"
    cp out/"$run"/{log.jsonl,run.json} results/finetune/"$run"/
  done
done
