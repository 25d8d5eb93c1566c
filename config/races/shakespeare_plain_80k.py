"""Tiny Shakespeare in 110 seconds, plain bytes: the baseline for shakespeare_80k.

Two layers, 48 wide, run twice, with Canon layers and a small table of hashed n-grams.
"""

from config.shakespeare_80k_256 import *

pooling = "none"
max_patches = 0
n_layer = 2
n_embd = 48
gram_rows = 512
canon_reach = 3
