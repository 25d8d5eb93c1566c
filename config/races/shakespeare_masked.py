"""Tiny Shakespeare, 800k, with gaps in what is read: does hiding bytes teach a model to look further back?

As shakespeare_800k, but of the bytes that are read 15% are hidden, three in a row, anew each time the text is read; the
targets stay (MEAP, arXiv 2502.07490). Like dropout, it should help most where text is read many times over; but it
hides whole letters from the n-gram table, where this model knows most. It lost: 1.483 against 1.454 nats.
"""

from config.shakespeare_800k import *

objective = "masked"
mask_share = 0.15
mask_span = 3
