"""Tiny Shakespeare in 110 seconds, plain bytes: the baseline for shakespeare_800k.

The same recipe and parameter count without pooling. It keeps the Canon layers, which help most
here. Attention at every byte sees more, but costs more. In the same time the model reads half as
many bytes, too few to overfit, so it needs no dropout and no weight decay.
"""

from config.shakespeare_800k_256 import *

pooling = "none"
max_patches = 0
n_layer = 4
n_embd = 120
gram_rows = 4000
dropout = 0.0
weight_decay = 0.0
