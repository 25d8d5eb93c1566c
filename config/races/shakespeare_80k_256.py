"""Tiny Shakespeare in 110 seconds, 0.08M parameters, at nanoGPT's context of 256 bytes.

shakespeare_80k without what its long context brings: no copying, and the learning rates of batches
of many short rows. For comparisons at equal context.
"""

from config.shakespeare_80k import *

block_size = 256
max_patches = 60
match_window = 0
n_copy = 0
muon_lr = 0.02
adam_lr = 0.005
