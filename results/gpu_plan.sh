#!/usr/bin/env bash
# What is still unmeasured because it needs an NVIDIA GPU, in the order of its value, in blocks of at most 9 minutes (H100).
# Usage: results/gpu_plan.sh BLOCK...       ends in ${OUT:-out}/gpu_BLOCK.tar; blocks: 0 1 2 3 4 5 6 (see the end of this file)
#   TINY=1 results/gpu_plan.sh BLOCK        tries a block on a CPU with tiny settings: its figures mean nothing
# Python needs torch, numpy, tqdm, matplotlib, tiktoken (offline: TIKTOKEN_CACHE_DIR), pytest, hypothesis. Data: data/textbooks
# and data/textbooks-gpt2 (python prepare.py train.parquet --val=val.parquet --name=textbooks, and the same with
# --name=textbooks-gpt2 --tokenizer=gpt2), benchmarks as JSONL in ${ITEMS:-data/eval}. Where `datasets` is missing bring these
# folders ready; files that end in .xz are unpacked.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python3} seconds=${SECONDS_EACH:-185} items=${ITEMS:-data/eval} limit=4000 device=cuda tiny=()
if [ -n "${TINY:-}" ]; then
  seconds=4 limit=8 device=cpu
  tiny=(--block_size=256 --n_layer=1 --n_head=2 --n_embd=32 --n_local_embd=16 --gram_rows=64 --batch_bytes=512 --micro_batch=1 --eval_bytes=512)
fi
find data "$items" -name "*.xz" -print0 2> /dev/null | sort -zu | xargs -0 -r -n 1 -P 8 unxz -f || true

pack() { # after every step, so that a block that is cut off leaves what it has
  tar -cf "${OUT:-out}/gpu_$block.tar" -C "$out" .
}

laws() { # causality, incremental = full, compiled = eager, with FlashAttention
  timeout 200 $python -m pytest tests/test_model.py --device=$device -p no:cacheprovider > "$out/laws.txt" 2>&1 || true
  tail -n 3 "$out/laws.txt"
}

dataset() { # of a config
  case $1 in bpe* | gpt2*) echo textbooks-gpt2 ;; *) echo textbooks ;; esac
}

warm() { # "CONFIG KNOBS...": compiles the training pass into the compiler's cache: 30 to 60 s that a run then does not pay
  local config=${1%% *}
  $python train.py config/"$config".py --dataset="$(dataset "$config")" $(cut -s -d " " -f 2- <<< "$1") "${tiny[@]}" \
    --max_steps=2 --eval_interval=0 --overwrite --out_dir=out/"warm_${1//[^a-z0-9]/_}" > /dev/null 2>&1 || echo "warm $1 failed"
}

train() { # CONFIG NAME [KNOBS...]: trains, scores and samples; its log and figures go into the results
  local config=$1 name=$2; shift 2
  mkdir -p "$out/$name"
  $python train.py config/"$config".py --dataset="$(dataset "$config")" --max_seconds="$seconds" \
    --eval_interval=2000 --log_interval=50 --overwrite --out_dir=out/"$name" "$@" "${tiny[@]}" > "$out/$name/train.txt" 2>&1 ||
    { tail -n 3 "$out/$name/train.txt"; return 0; }
  echo "$name: $(tail -n 1 "$out/$name/train.txt")"
  $python bench.py eval --out_dir=out/"$name" --weights=last --data="$items" --limit="$limit" > "$out/$name/eval.txt" 2>&1 || true
  $python sample.py --out_dir=out/"$name" --weights=last --max_new_bytes=600 > "$out/$name/sample.txt" 2>&1 || true
  cp out/"$name"/{log.jsonl,run.json,eval.json} "$out/$name"/ || true
  pack
}

block_0() { # what is all since e465f86 worth (64 rows for NONE, one sort, bfloat16 at byte rate)? Taking turns
  # ${OLD:-.gpu/old} holds a copy of e465f86: git archive e465f86 | tar -x -C .gpu/old
  local configs=(config/stlm_10m.py config/stlm_50m.py config/gpt2_124m.py) flags=(--rounds=1 --seconds=5 --json) round folder
  [ -z "${TINY:-}" ] || configs=(config/shakespeare_80k.py) flags=(--rounds=1 --seconds=0 --json)
  laws
  for round in 1 2; do
    for folder in "${OLD:-.gpu/old}" .; do
      (cd "$folder" && $python bench.py speed "${configs[@]}" "${flags[@]}") > "$out/speed_$(basename "$(realpath "$folder")")_$round.json" \
        2> "$out/speed.txt" || tail -n 3 "$out/speed.txt"
      pack
    done
  done
}

block_1() { # stlm_10m with two trunk layers less and wider local layers (before: 1.066, on an H200), and gpt2_124m, both with decay
  laws &
  warm "stlm_10m --dropout=0" &
  warm gpt2_124m &
  wait
  pack
  # in small (0.5M, 8 epochs on a CPU) decay without dropout was worth 0.026 bpb, dropout cost 0.016, the shape was worth 0.044
  train stlm_10m stlm_10m-local --dropout=0
  train gpt2_124m gpt2_124m-decay
}

block_2() { # stlm_50m with the same change of shape (as it is: 1.020 without decay), and what stlm_10m learns from it in as
  # long: in small a teacher was worth 0.04 bpb (EXPERIMENTS.md); compare with block 1's stlm_10m-local, if on its card
  local local_50m="--n_layer=6 --n_local_enc=1 --n_local_dec=2 --n_local_embd=704"
  # (a teacher of one step, so that both are compiled before either is trained)
  # shellcheck disable=SC2086
  $python train.py config/stlm_50m.py --dataset=textbooks $local_50m "${tiny[@]}" --compile=off --max_steps=1 --overwrite \
    --out_dir=out/warm_teacher > /dev/null 2>&1 || echo "no teacher to compile with"
  warm "stlm_50m $local_50m" &
  warm "stlm_10m --objective=distill --teacher=out/warm_teacher --dropout=0" &
  wait
  # shellcheck disable=SC2086
  train stlm_50m stlm_50m-local $local_50m
  train stlm_10m stlm_10m-distilled --objective=distill --teacher=out/stlm_50m-local --dropout=0
}

block_3() { # stlm_50m as it is, with decay; is it 0.03 bpb better than bpe_50m?
  warm stlm_50m &
  warm bpe_50m &
  wait
  train stlm_50m stlm_50m-decay
  train bpe_50m bpe_50m
}

block_4() { # how far is plain_10m behind stlm_10m? The largest of the family
  warm "plain_10m --dropout=0" &
  warm stlm_100m &
  wait
  train plain_10m plain_10m --dropout=0
  train stlm_100m stlm_100m
}

block_5() { # a head that copies (in small, with text read eight times, it was worth 0.06 bpb); a second seed of block 1's
  warm "stlm_10m --dropout=0 --n_copy=4" &
  warm "stlm_10m --dropout=0" &
  wait
  train stlm_10m stlm_10m-copy --dropout=0 --n_copy=4
  train stlm_10m stlm_10m-local-seed2 --dropout=0 --seed=2
}

block_6() { # an objective that costs nothing
  warm "stlm_10m --objective=multi_byte --dropout=0"
  train stlm_10m stlm_10m-multi_byte --objective=multi_byte --dropout=0
}

for block in "$@"; do
  out=out/gpu_$block
  mkdir -p "$out" "${OUT:-out}"
  # in a shell of its own, so that `wait` does not wait for it
  watch=$(nvidia-smi --query-gpu=timestamp,name,power.draw,clocks.sm,memory.used --format=csv -l 1 > "$out/power.csv" 2> /dev/null & echo $!)
  block_"$block"
  kill "$watch" 2> /dev/null || true
  pack
done
