"""Tiny Shakespeare with a tenth of the parameters of nanoGPT's GPU recipe (10.65M, 1.4697 nats), in 5 minutes on a CPU.

The shape of shakespeare_800k, a little wider. The text is read sixteen times over, so it takes twice the dropout.
"""

from config.shakespeare_800k import *

max_seconds = 300
n_local_embd = 128
gram_rows = 16500
dropout = 0.2
