"""Tiny Shakespeare in 110 seconds, plain bytes at a tenth of nanoGPT's size: what shakespeare_80k has to beat.

Two layers that run twice, 48 wide, with Canon layers; a table of byte pairs is worth more than its 11,712 parameters.
"""

from config.shakespeare_80k import *

pooling = "none"
max_patches = 0
n_layer = 2
n_embd = 48
n_tables = 1
table_size = 244
canon_reach = 3
