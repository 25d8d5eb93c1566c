"""50M parameters, no pooling: what stlm_50m has to beat, with all the other improvements except the n-gram table."""

from config.stlm_50m import *

pooling = "none"
block_size = 1024
max_patches = 0
n_layer = 10
n_grams = 0
micro_batch = 16
