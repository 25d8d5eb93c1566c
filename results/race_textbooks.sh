#!/usr/bin/env bash
# Does pooling pay? Textbooks, 20 minutes of training on 2 cores, equal parameters: pooled, plain bytes, BPE; 2 seeds.
# Usage: results/race_textbooks.sh [3m|10m]     about 130 minutes; logs and verdicts go to results/textbooks/
# The text (TRAIN and VAL are parquet files with a column "text"), for bytes and for BPE:
#   python prepare.py TRAIN --val=VAL --name=textbooks
#   python prepare.py TRAIN --val=VAL --name=textbooks_gpt2_6144 --tokenizer=gpt2 --gpt2_vocab=6144
set -eu
cd "$(dirname "$0")/.."
python=${PYTHON:-.venv/bin/python}
size=${1:-3m}
for seed in ${SEEDS:-1 2}; do
  for config in ${CONFIGS:-textbooks_$size textbooks_bpe_$size textbooks_plain_$size}; do
    run=$config-seed$seed
    $python train.py config/$config.py --seed="$seed" --out_dir=out/$run --overwrite | tail -n 1
    mkdir -p results/textbooks/$run
    cp out/$run/log.jsonl out/$run/run.json results/textbooks/$run/
  done
done
