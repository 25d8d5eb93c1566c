"""10M parameters, pooled at spaces: as many as nanoGPT on Shakespeare has, reading several times more text per second.

The trunk (6 layers, 320 wide) runs once per word-like patch, about every sixth byte; three local layers, 256 wide,
run at every byte. Six n-gram matches say what followed when the last bytes were last seen. A table of hashed n-grams
holds what short byte sequences mean, at next to no compute. Where compute is dear (a CPU), nearly all parameters belong
there; on a GPU, which reads 78 MB ten times in minutes, a model with a table of 3.5M and no dropout memorised them. So
here the table has 1M, layers have the rest, and there is dropout; text that is read once wants --dropout=0.
"""

max_steps = 20000
# model: 10.0M, of which 1.0M in the table
block_size = 4096
max_patches = 896
n_layer = 6
n_head = 5
n_embd = 320
n_local_embd = 256
n_local_enc = 1
n_local_dec = 2
n_grams = 5
gram_rows = 31500
n_match = 6
canon_reach = 3
# batch
batch_bytes = 65536
micro_batch = 16
dropout = 0.1
eval_interval = 500
