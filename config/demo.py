"""The first run: in 3 minutes a laptop's CPU learns to write text that looks like Python.

The training text is Python's own standard library. The model has about a million parameters and
nearly the shape of the large configs: bytes, patches that end with words, a small trunk, a table of
hashed n-grams, and six n-gram matches.
"""

max_seconds = 180
# model
block_size = 512
max_patches = 96
n_layer = 2
n_head = 4
n_embd = 128
n_local_embd = 112
n_grams = 4
gram_rows = 18000
gram_width = 16
n_match = 6
# training
batch_bytes = 8192
eval_interval = 500
