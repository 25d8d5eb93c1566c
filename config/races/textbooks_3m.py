"""Does pooling pay? 3M parameters, 20 minutes on 2 CPU cores, pooled: to compare with plain bytes and BPE.

Four fifths of the parameters are the table of hashed n-grams: narrow rows, shared by the last two to six bytes. They
cost no compute, and there are never enough of them: five times as many were worth 0.036 bpb for as much text. So the
layers are small, one local layer on each side of one trunk layer: 128 wide they read 1.7 times the text of 192 with
two after the trunk, and were 0.04 bpb better in the same time. N-gram matches find what the context holds: 4096
bytes were worth 0.017 bpb beside 2048, for 4% of the speed.
"""

dataset = "textbooks"
max_seconds = 1200
# model
block_size = 4096
max_patches = 896
n_layer = 1
n_head = 2
n_embd = 128
n_local_embd = 128
n_local_dec = 1
local_reach = 6
n_grams = 5
gram_rows = 77600
n_match = 6
canon_reach = 3
# training
batch_bytes = 8192
muon_lr = 0.015
adam_lr = 0.01
compile = "on"
eval_interval = 0
