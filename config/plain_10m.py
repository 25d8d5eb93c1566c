"""10M parameters without pooling: the baseline for stlm_10m.

A plain byte transformer with all other improvements (Muon, Canon layers, n-gram matches, rotary
positions, ReLU^2, a tied embedding) except the n-gram table, whose parameters go to the layers.
Every byte pays for the whole trunk, so in the same time it reads several times fewer bytes than its
pooled twin.
"""

from config.stlm_10m import *

pooling = "none"
block_size = 1024
max_patches = 0
n_layer = 8
n_grams = 0
micro_batch = 32
