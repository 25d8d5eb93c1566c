"""Tiny Shakespeare in 110 seconds, plain bytes at a tenth of nanoGPT's size: what shakespeare_80k has to beat.

Two layers that run twice, 48 wide; a table of byte pairs would cost more than a sixth of the parameters.
"""

from config.shakespeare_80k import *

pooling = "none"
max_patches = 0
n_layer = 2
n_loop = 2
n_embd = 48
n_tables = 0
