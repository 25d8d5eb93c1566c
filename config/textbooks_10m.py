"""Does pooling pay? 10M parameters, 20 minutes on 2 CPU cores, pooled: to be held beside plain bytes and BPE.

textbooks_3m with four times the table: in twenty minutes a CPU has no time for wider layers, but rows cost no compute.
With so many there is room for the last word and the last two among them: 0.015 bpb in trials, nothing at 3M.
"""

from config.textbooks_3m import *

n_words = 2
gram_rows = 294700
