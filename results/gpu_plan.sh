#!/usr/bin/env bash
# What is still unmeasured because it needs an NVIDIA GPU, in the order of its value: about 12 minutes in all.
# Usage: results/gpu_plan.sh [STEP...]      logs go to ${OUT:-results/gpu}; python needs torch, numpy, tqdm, pytest, hypothesis
# The text: python prepare.py train.parquet --val=val.parquet --name=textbooks (any 80 MB of English will do). Where
# `datasets` is missing, bring data/textbooks as it is: train.py and sample.py do not need it.
set -eu
cd "$(dirname "$0")/.."
out=${OUT:-results/gpu}
python=${PYTHON:-python3}
mkdir -p "$out"

laws() { # causality, caches, compiled = eager, with FlashAttention
  $python -m pytest tests/test_model.py --device=cuda -p no:cacheprovider 2>&1 | tee "$out/laws.txt" | tail -n 5
}

train() { # two minutes each: bytes/s, MFU and val bpb, compile included
  for config in ${CONFIGS:-stlm_10m plain_10m stlm_50m plain_50m}; do
    $python train.py config/"$config".py --max_seconds="${SECONDS_EACH:-120}" --overwrite | tee "$out/$config.txt" | tail -n 3
    cp out/"$config"/log.jsonl "$out/$config.log.jsonl"
    cp out/"$config"/run.json "$out/$config.run.json"
    $python sample.py --out_dir=out/"$config" --max_new_bytes=400 > "$out/$config.sample.txt" 2>> "$out/$config.txt"
  done
}

eager() { # what compiling is worth, and what bfloat16 is worth
  for flags in "--compile=off" "--compile=off --dtype=float32"; do
    $python train.py config/stlm_10m.py --max_steps=200 --eval_interval=0 --out_dir=out/eager --overwrite $flags \
      | tee "$out/stlm_10m$(echo "$flags" | tr -dc 'a-z0-9').txt" | tail -n 1
  done
}

for step in "${@:-laws}" $([ $# -gt 0 ] || echo train eager); do
  $step
done
