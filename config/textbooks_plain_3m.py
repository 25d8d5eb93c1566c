"""Does pooling pay? 3M parameters, 20 minutes on 2 CPU cores, plain bytes: the baseline of textbooks_3m.

Six layers, a table of byte pairs, and half the batch: a byte costs it three times as much, and steps are worth more to
it than bytes in a step.
"""

from config.textbooks_3m import *

pooling = "none"
max_patches = 0
n_layer = 6
n_tables = 1
table_size = 1024
batch_bytes = 4096
