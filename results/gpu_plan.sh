#!/usr/bin/env bash
# What is still unmeasured because it needs an NVIDIA GPU, in the order of its value: about 30 minutes in all.
# Usage: results/gpu_plan.sh [STEP...]      logs go to ${OUT:-results/gpu}; steps: laws quality speed eager
#   CONFIGS="stlm_10m plain_10m" results/gpu_plan.sh quality        a part of a step, where a command may not take long
# Python needs torch, numpy, tqdm, tiktoken, pytest, hypothesis. Data: data/textbooks and data/textbooks-gpt2
# (python prepare.py train.parquet --val=val.parquet --name=textbooks, and the same with --tokenizer=gpt2), and the
# benchmarks as JSONL in ${ITEMS:-data/eval}. Where `datasets` is missing bring these folders ready; files that end in .xz
# are unpacked.
set -eu
cd "$(dirname "$0")/.."
out=${OUT:-results/gpu}
python=${PYTHON:-python3}
mkdir -p "$out"
find data -name "*.xz" 2> /dev/null | while read -r file; do
  [ -f "${file%.xz}" ] || $python -c "import lzma, shutil, sys; shutil.copyfileobj(lzma.open(sys.argv[1]), open(sys.argv[1][:-3], 'wb'))" "$file"
done

laws() { # causality, caches, compiled = eager, with FlashAttention
  $python -m pytest tests/test_model.py --device=cuda -p no:cacheprovider 2>&1 | tee "$out/laws.txt" | tail -n 5
}

quality() { # three minutes of training each, then val and all benchmarks: what 10M and 50M are worth beside GPT-2's size
  for config in ${CONFIGS:-stlm_10m plain_10m stlm_50m bpe_50m gpt2_124m}; do
    run="$out/$config"
    mkdir -p "$run"
    $python train.py config/"$config".py --max_seconds="${SECONDS_EACH:-180}" --overwrite --out_dir=out/"$config" \
      > "$run/train.txt" || { tail -n 3 "$run/train.txt"; continue; }
    tail -n 1 "$run/train.txt"
    $python bench.py eval --out_dir=out/"$config" --data="${ITEMS:-data/eval}" --limit="${LIMIT:-5000}" | tee "$run/eval.txt" || true
    $python sample.py --out_dir=out/"$config" --max_new_bytes=400 > "$run/sample.txt" || true
    for file in log.jsonl run.json eval.json; do [ ! -f out/"$config"/$file ] || cp out/"$config"/$file "$run"/; done
  done
}

speed() { # training and generation, pooled beside plain beside BPE
  $python bench.py speed --json > "$out/speed.json"
}

eager() { # what compiling is worth, and what bfloat16 is worth
  $python bench.py speed config/stlm_10m.py --compile=off --rounds=1 --json > "$out/speed_eager.json"
  $python bench.py speed config/stlm_10m.py --compile=off --dtype=float32 --rounds=1 --json > "$out/speed_float32.json"
}

for step in "${@:-laws}" $([ $# -gt 0 ] || echo quality speed eager); do
  $step
done
