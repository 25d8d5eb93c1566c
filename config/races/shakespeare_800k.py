"""Tiny Shakespeare in 110 seconds on 2 CPU cores, with fewer parameters than nanoGPT's CPU recipe (0.80M).

shakespeare_80k with two wider trunk layers, each run once, and Canon layers; local layers are nearly as wide as the
trunk. The text is read four or five times over: a little dropout pays.
"""

from config.shakespeare_80k import *

n_layer = 2
n_loop = 1
n_head = 4
n_embd = 128
n_local_embd = 112
n_grams = 4
gram_rows = 5300
canon_reach = 3
dropout = 0.1
