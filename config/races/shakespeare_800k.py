"""Tiny Shakespeare in 110 seconds on 2 CPU cores, with as many parameters as nanoGPT's CPU recipe.

That is 0.80M. This is shakespeare_80k with two wider trunk layers, each run once, and Canon layers;
the local layers are nearly as wide as the trunk. The text is read four or five times: a little
dropout helps.
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
