#!/usr/bin/env bash
# What is still unmeasured because it needs an NVIDIA GPU, in the order of its value: about 45 minutes in all.
# Usage: results/gpu_plan.sh [STEP...]      logs go to ${OUT:-results/gpu}; steps: laws quality tune speed eager
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

train() { # CONFIG NAME SECONDS [KNOBS...]: a run in out/NAME, its log in the results
  local config=$1 name=$2 seconds=$3; shift 3
  mkdir -p "$out/$name"
  $python train.py config/"$config".py --max_seconds="$seconds" --overwrite --out_dir=out/"$name" "$@" > "$out/$name/train.txt" \
    || { tail -n 3 "$out/$name/train.txt"; return 1; }
  echo "$name: $(tail -n 1 "$out/$name/train.txt")"
  for file in log.jsonl run.json; do cp out/"$name"/$file "$out/$name"/; done
}

quality() { # four minutes of training each, then val and all benchmarks. The questions: is stlm_10m as good as gpt2_124m, and
  # stlm_50m 0.05 bpb better than bpe_50m, with BLiMP at 68 and ARC-Easy at 33?
  for config in ${CONFIGS:-stlm_10m gpt2_124m stlm_50m bpe_50m plain_10m}; do
    train "$config" "$config" "${SECONDS_EACH:-240}" || continue
    $python bench.py eval --out_dir=out/"$config" --data="${ITEMS:-data/eval}" --limit="${LIMIT:-5000}" | tee "$out/$config/eval.txt" || true
    $python sample.py --out_dir=out/"$config" --max_new_bytes=400 > "$out/$config/sample.txt" || true
    [ ! -f out/"$config"/eval.json ] || cp out/"$config"/eval.json "$out/$config"/
  done
}

tune() { # a minute each. The baselines get the same care: dropout and length. On a CPU 4096 bytes of context, two heads and more
  # rows in place of trunk layers won for the pooled model; is that so where compute is cheap?
  train stlm_10m stlm_10m-base 60 || true
  train stlm_10m stlm_10m-long 60 --block_size=4096 --max_patches=896 --micro_batch=8 || true
  train stlm_10m stlm_10m-rows 60 --n_layer=2 --gram_rows=184000 || true
  for config in ${CONFIGS:-gpt2_124m bpe_50m}; do
    train "$config" "$config-dropout" 60 --dropout=0.1 || true
    train "$config" "$config-long" 60 --block_size=512 --micro_batch=32 || true
    train "$config" "$config-base" 60 || true
  done
}

speed() { # training and generation, pooled beside plain beside BPE
  $python bench.py speed --json > "$out/speed.json"
}

eager() { # what compiling is worth, and what bfloat16 is worth
  $python bench.py speed config/stlm_10m.py --compile=off --rounds=1 --json > "$out/speed_eager.json"
  $python bench.py speed config/stlm_10m.py --compile=off --dtype=float32 --rounds=1 --json > "$out/speed_float32.json"
}

for step in "${@:-laws}" $([ $# -gt 0 ] || echo quality tune speed eager); do
  $step
done
