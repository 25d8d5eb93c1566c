"""50M parameters without pooling: the baseline for stlm_50m.

It has all the other improvements except the n-gram table.
"""

from config.stlm_50m import *

pooling = "none"
block_size = 1024
max_patches = 0
n_layer = 10
n_grams = 0
micro_batch = 16
