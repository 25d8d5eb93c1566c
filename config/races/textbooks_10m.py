"""Does pooling pay? 10M parameters, 20 minutes on 2 CPU cores, pooled: to compare with plain bytes and BPE.

textbooks_3m with four times the table: in twenty minutes a CPU has no time for wider layers, but rows cost no compute.
With so many there is room for two more lengths of n-grams, up to the last eight bytes: 0.011 bpb.
"""

from config.textbooks_3m import *

n_grams = 7
gram_rows = 294700
