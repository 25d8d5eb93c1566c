"""100M parameters, pooled at spaces: the largest of the family, still smaller than GPT-2's smallest.

The same shape as stlm_50m, deeper and wider: a trunk of 10 layers, 832 wide, and local layers of 416.
"""

from config.stlm_50m import *

n_layer = 10
n_head = 13
n_embd = 832
n_local_embd = 416
n_tables = 6
table_size = 4096
