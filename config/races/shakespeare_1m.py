"""Tiny Shakespeare in minutes on a CPU, with a tenth of the parameters of nanoGPT's GPU recipe.

That recipe has 10.65M parameters and reaches 1.4697 nats. This is shakespeare_800k_256 with
wider local layers; more n-gram rows would memorise the text. The text is read ten times, so dropout
is doubled. The length is in steps, not seconds, because overfitting depends on how often
the text is read.
"""

from config.shakespeare_800k_256 import *

max_seconds = 0
max_steps = 2400
n_local_embd = 144
dropout = 0.2
