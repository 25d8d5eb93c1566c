#!/usr/bin/env bash
# Runs every command of README.md in its order, in a copy of the project: as written, but what is long is made short, what
# needs the network goes without it where there is none, and what would install something is left out.
# Usage: results/readme_commands.sh       with .venv/bin/python, or $PYTHON; 2 minutes on 2 cores
set -euo pipefail
cd "$(dirname "$0")/.."
PATH=$(cd "$(dirname "$(command -v "${PYTHON:-.venv/bin/python}")")" && pwd):$PATH
copy=$(mktemp -d)
trap 'rm -rf "$copy"' EXIT
git ls-files -z | xargs -0 cp --parents -t "$copy"
cd "$copy"
online=$(python -c 'import socket; socket.create_connection(("huggingface.co", 443), 3); print("yes")' 2> /dev/null || true)
mkdir -p notes/2026
for i in $(seq 30); do # texts that the README supposes
  seq "$i" $((i + 300)) | sed "s/^/Dear reader, this is note number /" > notes/2026/"$i".md
done
cat notes/2026/*.md > novel.txt
ln -s model.py stlm.py # as pip install . does

shorten() { # a command as it stands in the README -> what is run here
  local model="--block_size=256 --max_patches=0 --n_layer=1 --n_head=1 --n_embd=32 --n_local_embd=16 --gram_rows=64"
  local length="--max_steps=2 --eval_bytes=1000"
  sed -E "
    s/ +# .*//
    /^(make|pip|\. \.venv|python -m venv)/ s/^/: /
    /^python -m lm_eval/ { $(python -c 'import lm_eval' 2> /dev/null && [ -n "$online" ] || echo 's/^/: /;') s/200/2/ }
    /^(python train|torchrun)/ { s/ --max_(steps|seconds)=[^ ]+//; s/\$/ $length/ }
    /stlm_(10|50|100)m/ s/\$/ $model --batch_bytes=1024 --micro_batch=1/
    s/--nproc_per_node=[0-9]+/--nproc_per_node=2/; s/--nnodes=2/--nnodes=1/; s/HOST:/localhost:/
    /^python train.*selfplay_/ s/\$/ --games=4 --pretrain=0.5 --batch_bytes=512 --micro_batch=1/
    /^python bench.py speed/ s/\$/ config\/shakespeare_80k.py --rounds=1 --seconds=0/
    /^python bench.py eval\$/ s/\$/ --limit=10$([ -n "$online" ] || echo " --tasks=val")/
    /^python prepare/ s/ --max_bytes=[^ ]+|\$/ --max_bytes=400_000/
    $([ -n "$online" ] || echo 's/prepare.py (shakespeare|fineweb-edu)/prepare.py novel.txt --name=\1/')
    /^python sample/ s/\$/ --max_new_bytes=20/
  "
}

# the lines of its blocks of commands; a block of Python is one command
awk '/^```python/ {code = "python -c '\''"; next} /^```/ && code {print code "'\''"; code = ""; next}
     /^```/ {commands = !commands; next}
     code {code = code $0 "\\n"; next} commands && /^(python|torchrun|make|pip|\. )/' README.md > commands.txt
left_out=0
while read -r line; do
  command=$(shorten <<< "$line")
  echo "$ $line"
  case $line in "python -c"*) command=$(printf '%b' "$line") ;; esac
  case $command in ": "*) left_out=$((left_out + 1)); echo "  left out"; continue ;; "$line") ;; *) echo "  as: $command" ;; esac
  bash -c "$command" < <(yes "$(seq 9)") > last.txt 2>&1 || { tail -n 20 last.txt; echo "README: failed: $line"; exit 1; }
  tail -n 1 last.txt | cut -c 1-150
done < commands.txt
echo "README: of $(wc -l < commands.txt) commands $left_out were left out, the others work"
