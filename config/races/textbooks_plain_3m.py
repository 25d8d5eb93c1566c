"""Does pooling pay? 3M parameters, 20 minutes on 2 CPU cores, plain bytes: the baseline of textbooks_3m.

Five layers of 192, the same kind of n-gram table, a quarter of the context and half of the batch: a byte costs it
nine times as much, and steps are worth more to it than bytes in a step.
"""

from config.textbooks_3m import *

pooling = "none"
max_patches = 0
n_layer = 5
n_embd = 192
n_grams = 7
gram_rows = 21100
block_size = 1024
batch_bytes = 4096
