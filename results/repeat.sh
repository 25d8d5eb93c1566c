#!/usr/bin/env bash
# A text read eight times, as on a GPU: where should 0.5M parameters be, and what keeps a model from learning it by heart?
# Usage: results/repeat.sh [ARM...]      8 minutes each on one core; all arms by default; logs go to results/repeat/
#   SEEDS="1 2"               seed 1 by default
#   MAX=3                     seconds of each run: tries the script
# The text: python prepare.py TRAIN --val=VAL --name=textbooks4m --max_bytes=4_000_000
#           python prepare.py TRAIN --val=VAL --name=textbooks4m_gpt2 --max_bytes=4_000_000 --tokenizer=gpt2 --gpt2_vocab=1536
set -eu
cd "$(dirname "$0")/.."
python=${PYTHON:-.venv/bin/python}
bpe="--dataset=textbooks4m_gpt2 --tokenizer=gpt2 --gpt2_vocab=1536 --pooling=none --max_patches=0 --block_size=1024
  --n_grams=0 --n_match=3 --batch_bytes=3072 --max_steps=3895" # in tokens; 8 epochs, too
knobs() { # of an arm; all have the shape of config/races/textbooks_repeat.py but for what is said here
  case $1 in
    decay) echo --weight_decay=0.1 ;;
    decay_0.3) echo --weight_decay=0.3 ;;
    dropout) echo --dropout=0.1 ;;
    loop_2) echo --weight_decay=0.1 --n_loop=2 ;;
    reach_8) echo --weight_decay=0.1 --local_reach=8 ;;
    local_1_2) echo --weight_decay=0.1 --n_layer=2 --n_local_embd=94 ;;
    local_2_3) echo --weight_decay=0.1 --n_layer=2 --n_local_enc=2 --n_local_dec=3 --n_local_embd=76 ;;
    local_3_4) echo --weight_decay=0.1 --n_layer=2 --n_local_enc=3 --n_local_dec=4 --n_local_embd=66 ;;
    local_most) echo --weight_decay=0.1 --n_layer=1 --n_local_enc=2 --n_local_dec=3 --n_local_embd=92 ;;
    copy_2_3) echo "$(knobs local_2_3) --n_copy=2" ;;
    copy_2_3_rates) echo "$(knobs local_2_3) --n_copy=2 --muon_lr=0.0225 --adam_lr=0.015" ;;
    copy_most_rates) echo "$(knobs local_most) --n_copy=2 --muon_lr=0.0225 --adam_lr=0.015" ;;
    copy_4_places_rates) echo "$(knobs local_2_3) --n_copy=4 --muon_lr=0.03 --adam_lr=0.02" ;;
    copy_most_4_places) echo "$(knobs local_most) --n_copy=4 --muon_lr=0.03 --adam_lr=0.02" ;;
    bpe) echo "$bpe" ;;
    bpe_decay) echo "$bpe --weight_decay=0.1" ;;
    *) echo "$1 is no arm of results/repeat.sh" >&2; exit 1 ;;
  esac
}
for seed in ${SEEDS:-1}; do
  for arm in ${*:-decay decay_0.3 dropout loop_2 reach_8 local_1_2 local_2_3 local_3_4 local_most copy_2_3 copy_2_3_rates
    copy_most_rates copy_4_places_rates copy_most_4_places bpe bpe_decay}; do
    run=$arm-seed$seed
    # shellcheck disable=SC2046
    $python train.py config/races/textbooks_repeat.py --seed="$seed" $(knobs "$arm") ${MAX:+--max_seconds=$MAX} \
      --out_dir="out/repeat/$run" --overwrite | tail -n 1 | sed "s/^/$run: /"
    mkdir -p "results/repeat/$run"
    cp "out/repeat/$run/log.jsonl" "out/repeat/$run/run.json" "results/repeat/$run/"
  done
done
