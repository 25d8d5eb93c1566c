"""Tiny Shakespeare, 800k, with hidden bytes: do gaps teach a model to look further back?

shakespeare_800k_256, but 15% of the input bytes are hidden, three in a row, and different ones each
time the text is read; the targets stay (MEAP, arXiv 2502.07490). Like dropout, it should help most
if text is read many times. But it hides whole letters from the n-gram table, which knows most in
this model. It lost: 1.483 against 1.454 nats.
"""

from config.shakespeare_800k_256 import *

objective = "masked"
mask_share = 0.15
mask_span = 3
