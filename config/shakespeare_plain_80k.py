"""Tiny Shakespeare in 110 seconds, plain bytes at a tenth of nanoGPT's size: what shakespeare_80k has to beat.

Two layers that run twice, 48 wide; a table of 256 rows for byte pairs is worth more than its 12,288 parameters.
"""

from config.shakespeare_80k import *

pooling = "none"
max_patches = 0
n_layer = 2
n_loop = 2
n_embd = 48
n_tables = 1
table_size = 256
