"""Tiny Shakespeare with a tenth of the parameters of nanoGPT's GPU recipe (10.65M, 1.4697 nats), in minutes on a CPU.

The shape of shakespeare_800k with wider local layers: more n-gram rows would learn the text by heart. It is read ten
times over, so it takes twice the dropout; steps, not seconds, because how often it is read decides when it overfits.
"""

from config.shakespeare_800k import *

max_seconds = 0
max_steps = 2400
n_local_embd = 144
dropout = 0.2
