"""Tiny Shakespeare in 110 seconds, plain bytes: what shakespeare_800k has to beat.

The same recipe and as many parameters without pooling, with Canon layers, which are worth most here: attention at every
byte sees more, but costs more. It reads half as many bytes in the same time, too few to overfit, so that it needs no
dropout and no weight decay.
"""

from config.shakespeare_800k import *

pooling = "none"
max_patches = 0
n_layer = 4
n_embd = 120
gram_rows = 4000
dropout = 0.0
weight_decay = 0.0
