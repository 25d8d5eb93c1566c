"""A tiny model learns a game by playing itself: 80,000 parameters, 10 minutes, one CPU core.

A game is text, `X5 O1 X9 ...`, and a move is a patch, so the trunk attends from move to move. The
game writes the marks and the spaces. The model chooses each move among all 256 bytes, and an
illegal move loses. First it reads random legal games, which teaches it the rules. Then it plays
both sides and learns from who won (REINFORCE; after SPIRAL, arXiv 2506.24119). Half of the games
begin with 0 to 4 random moves, and in a quarter one side makes only random moves, so that the model
meets positions that its own play avoids. It needs no data.

Nim: --game=nim --entropy_end=0.1 --max_seconds=180 --out_dir=out/nim
A control that never meets itself: --random_games=1 --openings=0
"""

from config.shakespeare_80k import *

dataset = ""  # none
objective = "game"
game = "tictactoe"
max_seconds = 600
# model: the context holds the longest game of Nim
block_size = 108
max_patches = 44
n_match = 0
match_window = 0
n_copy = 0
# training
muon_lr = 0.02
adam_lr = 0.005
decay = 0.9
eval_interval = 100
log_interval = 20
