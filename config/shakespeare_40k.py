"""Tiny Shakespeare in 110 seconds with a twentieth of the parameters of nanoGPT's CPU recipe: plain bytes.

Two layers of 32 that run twice. Canon layers, which show each half of a layer the two bytes before, cost it 384
parameters and were worth more than any other change.
"""

from config.shakespeare_plain_80k import *

n_embd = 32
table_size = 192
