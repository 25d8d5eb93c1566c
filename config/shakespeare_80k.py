"""Tiny Shakespeare in 110 seconds on 2 CPU cores, with a tenth of nanoGPT's CPU parameters.

Patches end at spaces, so the trunk runs at every fifth byte: one narrow layer, run twice. The local
layers are wider, and there is a small table of hashed n-grams. At this size the byte level does
most of the work: every trial that moved parameters from the trunk to the local layers won. A
million bytes are read ten times, so weight decay helps, but a model this small needs no dropout.
Prepare its data with: python prepare.py shakespeare
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
