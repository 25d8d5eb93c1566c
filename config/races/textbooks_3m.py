"""Does pooling pay? 3M parameters, 20 minutes on 2 CPU cores: pooled, against plain bytes and BPE.

Four fifths of the parameters are in the table of hashed n-grams: narrow rows, shared by the last
two to six bytes. They cost no compute, and more always helps: five times as many gained 0.036 bpb
for as much text. So the layers are small: one local layer on each side of one trunk layer. At a
width of 128 they read 1.7 times as much text as at 192 with two local layers after the trunk, and
were 0.04 bpb better in the same time. N-gram matches search the context: 4096 bytes instead of 2048
gained 0.017 bpb, for 4% of the speed. The head may copy what followed at the last four places of
each match: after 1700 steps at 10M this was worth 0.030 bpb.
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
n_copy = 4
canon_reach = 3
# training
batch_bytes = 8192
muon_lr = 0.015
adam_lr = 0.01
compile = "on"
eval_interval = 0
