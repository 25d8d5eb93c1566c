"""What an hour on 2 CPU cores buys: 4M parameters on 78 MB of textbooks.

The shape of stlm_10m, sized so that an hour reads the textbooks once or twice: a larger model would not have seen
enough text by then, a much smaller one would be full before. Compiled, because an hour pays for the half minute that
it costs.
"""

dataset = "textbooks"
max_seconds = 3600
# model: 3.8M, of which 1.0M tables
block_size = 512
max_patches = 124
n_layer = 4
n_head = 4
n_embd = 224
n_local_embd = 128
n_tables = 2
table_size = 4096
# training
batch_bytes = 16384
compile = "on"
eval_interval = 1000
