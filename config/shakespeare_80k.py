"""Tiny Shakespeare in 110 seconds on 2 CPU cores, with a tenth of the parameters of nanoGPT's CPU recipe.

One trunk layer that runs twice, 48 wide, local layers of 36, and one small table of byte pairs, which is worth more
than the width it costs.
"""

from config.shakespeare_800k import *

n_layer = 1
n_loop = 2
n_head = 2
n_embd = 48
n_local_embd = 36
n_tables = 1
table_size = 320
dropout = 0.0
