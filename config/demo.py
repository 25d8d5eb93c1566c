"""The first run: in 3 minutes a laptop's CPU learns to write text that looks like Python.

The training text is Python's own standard library. The model has about a million parameters and
nearly the shape of the large configs: bytes, patches that end with words, a small trunk, a table of
hashed n-grams, and six n-gram matches that the head may copy from, at their last four places. Code
repeats itself, so it matters most that the model sees far back: 4096 bytes.

The length is in steps, so that everybody gets the same model. They take 3 minutes on two quiet
cores; a line at step 10 says how long they take elsewhere.
"""

max_steps = 1700
# model
block_size = 4096
max_patches = 1024
n_layer = 2
n_head = 4
n_embd = 128
n_local_embd = 112
n_grams = 4
gram_rows = 18000
gram_width = 16
n_match = 6
match_window = 16384
n_copy = 4
# training
batch_bytes = 8192
muon_lr = 0.03
adam_lr = 0.01
eval_interval = 500
