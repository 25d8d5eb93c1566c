"""10M parameters, no pooling: what stlm_10m has to beat.

A plain byte transformer with all the other improvements (Muon, Canon layers, n-gram matches, rotary positions, ReLU^2,
a tied embedding) except the n-gram table: its layers get those parameters.
Each byte pays for the whole trunk, so it reads several times fewer bytes in the same time than its pooled twin.
"""

from config.stlm_10m import *

pooling = "none"
block_size = 1024
max_patches = 0
n_layer = 8
n_grams = 0
micro_batch = 32
