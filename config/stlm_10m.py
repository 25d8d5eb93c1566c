"""10M parameters, pooled at spaces: as many as nanoGPT on Shakespeare has, reading several times more text per second.

The trunk (4 layers, 320 wide) runs once per word-like patch, about every sixth byte; three local layers, 416 wide, run
at every byte. Six n-gram matches say what followed when the last bytes were last seen. A table of hashed n-grams holds
what short byte sequences mean, at next to no compute. Where text is read many times (a GPU reads 78 MB ten times in
minutes) a large table learns it by heart, so this one has 1M, and a third of what was the trunk is in the local layers:
in small, with text read eight times, that was worth more than anything else (EXPERIMENTS.md). Weight decay and dropout
are for such text; what is read once wants --dropout=0 --weight_decay=0, and on a CPU a larger table.
"""

max_steps = 20000
# model: 9.9M, of which 1.2M in the table
block_size = 4096
max_patches = 896
n_layer = 4
n_head = 5
n_embd = 320
n_local_embd = 416
n_local_enc = 1
n_local_dec = 2
n_grams = 5
gram_rows = 36000
n_match = 6
canon_reach = 3
# batch
batch_bytes = 65536
micro_batch = 16
dropout = 0.1
weight_decay = 0.1
eval_interval = 500
