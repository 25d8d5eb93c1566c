"""Does pooling pay? 3M parameters, 20 minutes on 2 CPU cores, pooled: to be held beside plain bytes and BPE.

More than half the parameters are the table of hashed n-grams: narrow rows, shared by the last two to six bytes. Such a
table was worth 0.04 bpb beside two of 3,200 rows as wide as the local layers. The trunk is a single layer: a trial that
took rows from the table for a deeper trunk lost, and with a layer less it reads a quarter more text in the same time.
N-gram heads find what the context holds: 4096 bytes were worth 0.017 bpb beside 2048, for 4% of the speed.
"""

dataset = "textbooks"
max_seconds = 1200
# model
block_size = 4096
max_patches = 896
n_layer = 1
n_head = 2
n_embd = 192
n_local_embd = 192
n_grams = 5
gram_rows = 51800
n_match = 6
canon_reach = 3
# training
batch_bytes = 8192
muon_lr = 0.015
adam_lr = 0.01
compile = "on"
eval_interval = 0
