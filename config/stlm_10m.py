"""10M parameters, pooled at spaces: nanoGPT's laptop size, reading several times more text per second.

The trunk (4 layers, 320 wide) runs once per word-like patch, about every sixth byte; three local layers, 256
wide, run at every byte. In trials of 3M parameters wide local layers were worth more than a deep trunk. A table of
hashed n-grams, narrow and shared by five lengths, holds what short byte sequences mean: parameters that cost next to no
compute. Six n-gram heads say what followed when the last bytes were last seen, nearly without either.
"""

dataset = "textbooks"
max_steps = 20000
# model: 10.0M, of which 3.5M in the table
block_size = 1024
max_patches = 240
n_layer = 4
n_head = 5
n_embd = 320
n_local_embd = 256
n_local_enc = 1
n_local_dec = 2
n_grams = 5
gram_rows = 108000
n_match = 6
canon_reach = 3
# batch
batch_bytes = 65536
micro_batch = 32
eval_interval = 500
