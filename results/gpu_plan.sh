#!/usr/bin/env bash
# What is still unmeasured because it needs an NVIDIA GPU, in the order of its value: about 40 minutes in all on an H100.
# Usage: results/gpu_plan.sh [STEP...]      logs go to ${OUT:-results/gpu}; steps: profile quality tune speed eager laws
#   CONFIGS="stlm_10m plain_10m" results/gpu_plan.sh quality        a part of a step, where a command may not take long
# Python needs torch, numpy, tqdm, matplotlib, tiktoken (offline: TIKTOKEN_CACHE_DIR), pytest, hypothesis. Data: data/textbooks and data/textbooks-gpt2
# (python prepare.py train.parquet --val=val.parquet --name=textbooks, and the same with --tokenizer=gpt2), and the
# benchmarks as JSONL in ${ITEMS:-data/eval}. Where `datasets` is missing bring these folders ready; files that end in .xz
# are unpacked (all of it is 37 MB then).
set -euo pipefail
cd "$(dirname "$0")/.."
out=${OUT:-results/gpu}
python=${PYTHON:-python3}
seconds=${SECONDS_EACH:-185}
mkdir -p "$out"
[ ! -d data ] || find data "${ITEMS:-data}" -name "*.xz" -print0 | sort -zu | xargs -0 -r -n 1 -P 8 unxz -f

laws() { # causality, caches, compiled = eager, with FlashAttention
  $python -m pytest tests/test_model.py --device=cuda -p no:cacheprovider 2>&1 | tee "$out/laws.txt" | tail -n 5 || true
}

train() { # CONFIG NAME SECONDS [KNOBS...]: a run in out/NAME, its log in the results
  local config=$1 name=$2 seconds=$3; shift 3
  mkdir -p "$out/$name"
  $python train.py config/"$config".py --max_seconds="$seconds" --eval_interval=2000 --log_interval=50 --overwrite \
    --out_dir=out/"$name" "$@" > "$out/$name/train.txt" || { tail -n 3 "$out/$name/train.txt"; return 1; }
  echo "$name: $(tail -n 1 "$out/$name/train.txt")"
  for file in log.jsonl run.json; do cp out/"$name"/$file "$out/$name"/; done
}

warm() { # compile the training passes of all at once, into the compiler's cache: 30 s each otherwise, of the training time
  local i=0 arm
  for arm in "$@"; do # "CONFIG KNOBS..."
    i=$((i + 1))
    $python train.py config/"${arm%% *}".py $(cut -s -d " " -f 2- <<< "$arm") --max_steps=2 --eval_interval=0 --overwrite \
      --out_dir=out/warm_$i > /dev/null &
  done
  wait
}

profile() { # where a step's time goes: stlm_10m had 8% of the H100's peak, gpt2_124m 30%
  $python - << 'CODE' | tee "$out/profile.txt"
import torch
import train
from config import parse
from model import STLM

cfg, _ = parse(train.Config, ["config/stlm_10m.py"], "", "config/demo.py")
torch.manual_seed(1)
model = STLM(cfg).cuda()
model.may_drop, optimizers = cfg.dropout > 0, train.make_optimizers(model, cfg, torch.bfloat16)
data, rows = train.Data(cfg, "train"), cfg.batch_bytes // cfg.block_size
autocast = torch.autocast("cuda", torch.bfloat16)
compiled = train.compile_or_not(model, autocast, cfg.micro_batch, cfg.block_size, torch.device("cuda"))
batch = torch.from_numpy(data.batch(1, 0, rows, cfg.block_size)).cuda()
step = lambda: train.train_step(compiled, optimizers, batch, cfg.micro_batch, autocast, cfg.grad_clip)
[step() for _ in range(10)]
torch.cuda.synchronize()
with torch.profiler.profile() as found:
    [step() for _ in range(10)]
    torch.cuda.synchronize()
print(found.key_averages().table(sort_by="self_device_time_total", row_limit=40, max_name_column_width=60))
CODE
}

quality() { # the questions: is stlm_50m 0.05 bpb better than bpe_50m, with BLiMP at 68 and ARC-Easy at 33? How far is plain_10m
  # behind stlm_10m? (stlm_10m and gpt2_124m have been run: results/gpu)
  local configs=${CONFIGS:-stlm_50m bpe_50m plain_10m}
  warm $configs
  for config in $configs; do
    train "$config" "$config" "$seconds" || continue
    $python bench.py eval --out_dir=out/"$config" --data="${ITEMS:-data/eval}" --limit="${LIMIT:-4000}" | tee "$out/$config/eval.txt" || true
    $python sample.py --out_dir=out/"$config" --max_new_bytes=400 > "$out/$config/sample.txt" || true
    [ ! -f out/"$config"/eval.json ] || cp out/"$config"/eval.json "$out/$config"/
  done
}

tune() { # what stlm_10m should be where compute is cheap: fewer n-gram rows and dropout won together, each alone is unknown
  warm stlm_10m "stlm_10m --n_loop=2" "stlm_10m --n_words=2" "stlm_10m --dropout=0" "stlm_10m --n_layer=4 --gram_rows=108000" gpt2_124m
  train stlm_10m stlm_10m-dropout5 "$seconds" --dropout=0.05 || true
  train stlm_10m stlm_10m-loop2 "$seconds" --n_loop=2 || true
  train stlm_10m stlm_10m-words "$seconds" --n_words=2 || true
  train stlm_10m stlm_10m-dropout0 "$seconds" --dropout=0 || true
  train stlm_10m stlm_10m-rows "$seconds" --n_layer=4 --gram_rows=108000 || true
  train gpt2_124m gpt2_124m-dropout2 "$seconds" --dropout=0.2 || true
  train bpe_50m bpe_50m-dropout2 "$seconds" --dropout=0.2 || true
}

speed() { # training and generation, pooled beside plain beside BPE
  $python bench.py speed --json > "$out/speed.json"
}

eager() { # what compiling is worth, and what bfloat16 is worth
  $python bench.py speed config/stlm_10m.py --compile=off --rounds=1 --json > "$out/speed_eager.json"
  $python bench.py speed config/stlm_10m.py --compile=off --dtype=float32 --rounds=1 --json > "$out/speed_float32.json"
}

for step in "${@:-profile}" $([ $# -gt 0 ] || echo quality tune speed eager laws); do
  $step
done
