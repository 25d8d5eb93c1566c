"""What an hour on 2 CPU cores buys: 4M parameters on 78 MB of textbooks.

The shape of textbooks_3m with a trunk of three layers, sized so that an hour reads the textbooks twice: a larger model
would not have seen enough text by then, a much smaller one would be full before.
"""

from config.textbooks_3m import *

max_seconds = 3600
# model: 4.0M, of which 1.4M in the table
n_layer = 3
n_embd = 224
n_local_embd = 176
gram_rows = 43500
# training
eval_interval = 1000
