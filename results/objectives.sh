#!/usr/bin/env bash
# Do other objectives than the next byte pay? Each beside next_byte, interleaved, for as long, or as many steps.
# Usage: results/objectives.sh [SEED...]     seeds 1 2 3 by default; logs and verdicts go to results/objectives/
#   ON=shakespeare            Tiny Shakespeare at 800k, 110 seconds each (the default)
#   ON=textbooks_3m           3M on the textbooks, 300 seconds each
#   ON=textbooks_repeat       0.5M, the first 4 MB of the textbooks 8 times over
#   ARMS="next_byte masked"   only these; KNOBS="--mask_share=0.1" is added to each
#   MAX=3                     seconds of each run, the teacher's included: tries the script
# The teacher is a larger model on the same text, trained once; TEACHER=DIR takes a run that is there.
# The text: python prepare.py shakespeare
#           python prepare.py TRAIN --val=VAL --name=textbooks
#           python prepare.py TRAIN --val=VAL --name=textbooks4m --max_bytes=4_000_000
set -eu
cd "$(dirname "$0")/.."
python=${PYTHON:-.venv/bin/python}
on=${ON:-shakespeare}
case $on in
  shakespeare) config=shakespeare_800k_256 teacher_config=shakespeare_1m length= larger= ;;
  textbooks_3m) config=textbooks_3m teacher_config=textbooks_10m length=--max_seconds=300 larger= ;;
  textbooks_repeat) config=textbooks_repeat teacher_config=textbooks_repeat length=
    larger="--n_layer=4 --n_head=3 --n_embd=192 --n_local_embd=128 --dropout=0.1 --max_steps=1953" ;;
  *) echo "ON=$on is none of shakespeare, textbooks_3m, textbooks_repeat" >&2; exit 1 ;;
esac
if [ -n "${MAX:-}" ]; then
  length=--max_seconds=$MAX larger="$larger --max_seconds=$MAX"
fi
arms=${ARMS:-next_byte multi_byte masked next_patch distill}
train() { # RUN ARGUMENT...
  run=$1
  shift
  $python train.py "$@" --out_dir="out/objectives/$run" --overwrite | tail -n 1 | sed "s/^/$run: /"
  mkdir -p "results/objectives/$run"
  cp "out/objectives/$run/log.jsonl" "out/objectives/$run/run.json" "results/objectives/$run/"
}
name=$on-teacher${MAX:+-$MAX-seconds}
teacher=${TEACHER:-out/objectives/$name}
case $arms in
  *distill*) [ -f "$teacher/best.pt" ] || train "$name" "config/$teacher_config.py" --seed=1 $larger ;;
esac
for seed in ${*:-1 2 3}; do
  for arm in $arms; do
    knobs=--objective=$arm
    [ "$arm" != distill ] || knobs="$knobs --teacher=$teacher"
    train "$on-$arm-seed$seed" config/$config.py --seed="$seed" $length $knobs ${KNOBS:-}
  done
done
