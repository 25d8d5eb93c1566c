"""50M parameters, pooled at spaces: a SuperTinyLanguageModels baseline's size, without a tokenizer.

In that baseline half of the parameters belong to its vocabulary. Here the vocabulary has 256 rows.
The parameters go to a trunk of 7 layers, 640 wide, that runs once per word-like patch, and to a
table of n-grams that costs almost no compute.
"""

from config.stlm_10m import *

n_layer = 7
n_head = 10
n_embd = 640
n_local_embd = 416
n_local_enc = 2
n_local_dec = 3
gram_rows = 142000
gram_width = 64
batch_bytes = 131072
micro_batch = 8
