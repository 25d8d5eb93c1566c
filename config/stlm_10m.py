"""10M parameters, pooled at spaces: as large as nanoGPT's Shakespeare model, several times as fast.

The trunk (4 layers, 320 wide) runs once per word-like patch, about every sixth byte; three local
layers, 416 wide, run at every byte. Six n-gram matches tell each byte which byte followed the
n-gram's last occurrence. A table of hashed n-grams stores vectors for short byte sequences, at
almost no compute.

If text is read many times (a GPU reads 78 MB ten times in minutes), a large table memorises it. So
this table has only 1.2M parameters, and a third of the parameters that the trunk used to have are
now in the local layers. In a small trial, with text read eight times, that helped more than
anything else (EXPERIMENTS.md). Weight decay and dropout are for such text, too. For text that is
read once, use --dropout=0 --weight_decay=0 and, on a CPU, a larger table.
"""

max_steps = 20000
# model: 9.9M parameters, 1.2M of them in the table
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
