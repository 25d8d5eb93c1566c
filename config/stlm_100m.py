"""100M parameters, pooled at spaces: the largest of the family, smaller than the smallest GPT-2.

The shape of stlm_50m, deeper and wider: a trunk of 9 layers, 832 wide, and local layers of 512.
"""

from config.stlm_50m import *

n_layer = 9
n_head = 13
n_embd = 832
n_local_embd = 512
n_grams = 6
gram_rows = 240000
