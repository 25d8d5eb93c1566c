"""50M parameters, no pooling: what stlm_50m has to beat, with the other improvements but the n-gram table."""

from config.stlm_50m import *

pooling = "none"
block_size = 1024
max_patches = 0
n_layer = 10
n_head = 10
n_embd = 640
n_grams = 0
micro_batch = 16
