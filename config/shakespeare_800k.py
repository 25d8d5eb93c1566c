"""Tiny Shakespeare in 110 seconds on 2 CPU cores, with fewer parameters than nanoGPT's CPU recipe (0.80M).

Pooled at spaces, so that the trunk runs at every fifth byte; local layers nearly as wide as the trunk. A million bytes
are read four or five times over: a little dropout and weight decay pay.
"""

dataset = "shakespeare"
max_seconds = 110
# model
block_size = 256
max_patches = 60
n_layer = 2
n_head = 4
n_embd = 128
n_local_embd = 112
n_grams = 4
gram_rows = 5300
gram_width = 16
n_match = 6
canon_reach = 3
# training
batch_bytes = 4096
dropout = 0.1
weight_decay = 0.1
eval_interval = 0
