"""Tiny Shakespeare in 110 seconds on 2 CPU cores, with a tenth of the parameters of nanoGPT's CPU recipe.

Local layers of 44, one narrow trunk layer that runs twice, and a small table of hashed n-grams. At this size
the byte level does most of the work: every trial that moved parameters from the trunk to the local layers won.
"""

from config.shakespeare_800k import *

n_layer = 1
n_loop = 2
n_head = 2
n_embd = 32
n_local_embd = 44
n_grams = 2
gram_rows = 800
canon_reach = 1
dropout = 0.0
