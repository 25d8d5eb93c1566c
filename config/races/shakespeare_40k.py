"""Tiny Shakespeare in 110 seconds on 2 CPU cores, with a twentieth of nanoGPT's CPU parameters.

The shape of shakespeare_80k, narrower: local layers of 32 and a trunk of 16.
"""

from config.shakespeare_80k import *

n_embd = 16
n_local_embd = 32
gram_rows = 366
