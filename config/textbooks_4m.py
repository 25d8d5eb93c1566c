"""What an hour on 2 CPU cores buys: 4M parameters on 78 MB of textbooks.

What textbooks_3m was before its layers became smaller: wider, with a second layer after the trunk, in the hope that
an hour pays for them; sized so that an hour reads the textbooks about twice.
"""

from config.textbooks_3m import *

max_seconds = 3600
# model: 4.0M, of which 2.7M in the table
n_embd = 192
n_local_embd = 192
n_local_dec = 2
local_reach = 4
gram_rows = 83000
# training
eval_interval = 1000
