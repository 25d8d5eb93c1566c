"""10M parameters, pooled at spaces: nanoGPT's laptop size, reading several times more text per second.

The trunk (6 layers, 320 wide) runs once per word-like patch, about every sixth byte; three narrow convolution layers
run at every byte. Three hashed n-gram tables hold what short byte sequences mean: parameters that cost no compute.
"""

dataset = "textbooks"
max_steps = 20000
# model: 9.9M, of which 2.0M tables
block_size = 1024
max_patches = 240
n_layer = 6
n_head = 5
n_embd = 320
n_local_embd = 160
n_local_enc = 1
n_local_dec = 2
n_tables = 3
table_size = 4096
# batch
batch_bytes = 65536
micro_batch = 32
eval_interval = 500
