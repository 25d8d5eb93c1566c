"""Tiny Shakespeare in 110 seconds on 2 CPU cores, with a tenth of the parameters of nanoGPT's CPU recipe.

Pooled at spaces, so that the trunk runs at every fifth byte: one narrow layer, run twice. Local layers are wider, and
there is a small table of hashed n-grams: at this size the byte level does most of the work, and every trial that moved
parameters from the trunk to the local layers won. A million bytes are read ten times over: weight decay pays, but so
small a model needs no dropout. Its data: python prepare.py shakespeare
"""

dataset = "shakespeare"
max_seconds = 110
# model
block_size = 256
max_patches = 60
n_layer = 1
n_loop = 2
n_head = 2
n_embd = 32
n_local_embd = 44
n_grams = 2
gram_rows = 800
gram_width = 16
n_match = 6
# training
batch_bytes = 4096
weight_decay = 0.1
eval_interval = 0
