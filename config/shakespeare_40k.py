"""Tiny Shakespeare in 110 seconds with a twentieth of the parameters of nanoGPT's CPU recipe: plain bytes.

Two layers of 32 that run twice. At this size a byte costs little, so that pooling saves nothing: what counts is what
each byte sees. Weight decay helped here as it did in the larger ones.
"""

from config.shakespeare_plain_80k import *

n_embd = 32
table_size = 192
weight_decay = 0.1
