"""Tiny Shakespeare in 110 seconds on 2 CPU cores, with a tenth of the parameters of nanoGPT's CPU recipe.

One trunk layer that runs twice, and no n-gram tables: at this size every row of a table is missed elsewhere.
"""

from config.shakespeare_800k import *

n_layer = 1
n_head = 2
n_embd = 64
n_local_embd = 32
n_tables = 0
dropout = 0.0
