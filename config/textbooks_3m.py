"""Does pooling pay? 3M parameters, 20 minutes on 2 CPU cores, pooled: what textbooks_plain_3m has to be beaten by.

The shape of textbooks_4m, a little narrower, with a quarter of its parameters in two tables of hashed n-grams.
"""

from config.textbooks_4m import *

max_seconds = 1200
n_embd = 192
table_size = 3072
eval_interval = 0
