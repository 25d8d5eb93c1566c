"""Does pooling pay? 3M parameters, 20 minutes on 2 CPU cores, pooled: to be held beside plain bytes and BPE.

Half the parameters are two tables of hashed n-grams, a third is the trunk. In trials wide local layers were worth more
than a deep trunk, small batches more than large ones, and embeddings learnt better at twice the usual rate.
"""

dataset = "textbooks"
max_seconds = 1200
# model
block_size = 1024
max_patches = 248
n_layer = 2
n_head = 4
n_embd = 192
n_local_embd = 160
n_tables = 2
table_size = 4600
n_match = 6
canon_reach = 3
# training
batch_bytes = 8192
adam_lr = 0.01
eval_interval = 0
