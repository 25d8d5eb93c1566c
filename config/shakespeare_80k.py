"""Tiny Shakespeare in 110 seconds on 2 CPU cores, with a tenth of nanoGPT's CPU parameters.

Patches end at spaces, so the trunk runs at every fifth byte: one narrow layer, run twice. The local
layers are wider, and there is a small table of hashed n-grams. At this size the byte level does
most of the work: every trial that moved parameters from the trunk to the local layers won. A
million bytes are read ten times, so weight decay helps, but a model this small needs no dropout.

What helps most is to look far back. Because the trunk is pooled, 4096 bytes of context cost about a
tenth more time than 256, and the head may copy what followed the same few bytes at the last two
places. shakespeare_80k_256 is the same model without either. A step has a single row of text, so
this config runs on one process. Prepare its data with: python prepare.py shakespeare
"""

dataset = "shakespeare"
max_seconds = 110
# model
block_size = 4096
max_patches = 960
n_layer = 1
n_loop = 2
n_head = 2
n_embd = 32
n_local_embd = 44
n_grams = 2
gram_rows = 800
gram_width = 16
n_match = 6
match_window = 16384
n_copy = 2
# training
batch_bytes = 4096
muon_lr = 0.03
adam_lr = 0.01
weight_decay = 0.1
eval_interval = 0
