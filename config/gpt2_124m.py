"""GPT-2's smallest shape (12 layers, 768 wide, 50257 tokens) with our recipe.

It has twelve times the parameters of stlm_10m: 85M in the layers and 38.6M in the tied embedding.
Positions are rotary, so there is no table for them, and the sum is 123.6M.
"""

from config.bpe_50m import *

n_layer = 12
n_head = 12
n_embd = 768
