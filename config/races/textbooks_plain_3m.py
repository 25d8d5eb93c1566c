"""Does pooling pay? 3M parameters, 20 minutes on 2 CPU cores: plain bytes, against textbooks_3m.

Five layers of 192, the same kind of n-gram table, a quarter of the context, half the batch. A byte
costs this model nine times as much, so more steps help it more than larger ones.
"""

from config.textbooks_3m import *

pooling = "none"
max_patches = 0
n_layer = 5
n_embd = 192
n_grams = 7
n_copy = 0
gram_rows = 21100
block_size = 1024
batch_bytes = 4096
