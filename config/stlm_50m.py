"""50M parameters, pooled at spaces: the size of a SuperTinyLanguageModels baseline, without a tokenizer.

Half of such a BPE baseline is its vocabulary. Here the vocabulary is 256 rows; the parameters go to a trunk of 7
layers, 640 wide, that runs once per word-like patch, and to a table of n-grams that costs next to no compute.
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
