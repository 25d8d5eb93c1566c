#!/usr/bin/env bash
# Self-play beside its controls: tic-tac-toe in 10 minutes, Nim in 3, SPIN on text in 5; verdicts, logs and a picture.
# Usage: results/selfplay.sh [game|text]...      game: 1 hour and 6 minutes of one core; text: 50 minutes; default: both
# OPPONENTS, SEEDS, SECONDS_GAME and SECONDS_TEXT make it smaller. Logs and verdicts go to results/selfplay/
set -eu
cd "$(dirname "$0")/.."
python=${PYTHON:-.venv/bin/python}
out=results/selfplay
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
mkdir -p $out out
keep() { # RUN: its last line, and what is quoted of it
  mkdir -p "$out/$1"
  cp "out/$1/log.jsonl" "out/$1/run.json" "$out/$1/"
  echo "$1 $(tail -n 1 "out/$1.txt")" | tee -a $out/verdicts.txt
}
for part in ${*:-game text}; do
  if [ "$part" = game ]; then
    for seed in ${SEEDS:-1 2}; do
      for opponent in ${OPPONENTS:-self random none}; do
        run=tictactoe-$opponent-seed$seed
        case $opponent in
          self) knobs= ;;
          random) knobs="--random_games=1 --openings=0" ;; # never against itself
          none) knobs=--pretrain=1 ;; # reads random games
        esac
        $python train.py config/selfplay_game.py $knobs --seed="$seed" \
          --max_seconds="${SECONDS_GAME:-600}" --out_dir=out/"$run" --overwrite > "out/$run.txt"
        keep "$run"
      done
      run=nim-self-seed$seed
      $python train.py config/selfplay_game.py --game=nim --entropy_end=0.1 --seed="$seed" --max_seconds=180 --out_dir=out/"$run" \
        --overwrite > "out/$run.txt"
      keep "$run"
    done
    $python results/selfplay_picture.py
  else
    [ -e out/demo/best.pt ] || $python train.py config/demo.py --out_dir=out/demo
    for seed in ${SEEDS:-1 2 3}; do
      for opponent in ${OPPONENTS:-self none}; do
        run=text-$opponent-seed$seed
        case $opponent in
          self) knobs= ;;
          none) knobs=--spin_beta=0 ;; # next-byte training
        esac
        $python train.py config/selfplay_text.py --init_from=out/demo $knobs --seed="$seed" \
          --max_seconds="${SECONDS_TEXT:-300}" --out_dir=out/"$run" --overwrite > "out/$run.txt"
        keep "$run"
      done
    done
  fi
done
