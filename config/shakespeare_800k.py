"""Tiny Shakespeare in 110 seconds on 2 CPU cores, with fewer parameters than nanoGPT's CPU recipe (0.80M).

Pooled at spaces, so that the trunk runs at every fifth byte, and looped: its two layers run twice (whether that pays is
open). A million bytes are read about seven times over: a little dropout pays.
"""

dataset = "shakespeare"
max_seconds = 110
# model
block_size = 256
max_patches = 60
n_layer = 2
n_loop = 2
n_head = 4
n_embd = 128
n_local_embd = 92
n_tables = 2
table_size = 1024
# training
batch_bytes = 4096
dropout = 0.1
eval_interval = 0
