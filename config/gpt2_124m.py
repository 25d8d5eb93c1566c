"""GPT-2's smallest shape (12 layers, 768 wide, 50257 tokens), with our recipe: twelve times stlm_10m's parameters.

The body has 85M parameters, the tied embedding 38.6M; there is no table of positions (they are rotary), hence 123.6M.
"""

from config.bpe_50m import *

n_layer = 12
n_head = 12
n_embd = 768
