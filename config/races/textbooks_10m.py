"""Does pooling pay? 10M parameters, 20 minutes on 2 CPU cores: pooled, against plain bytes and BPE.

textbooks_3m with four times the table: in twenty minutes a CPU has no time for wider layers, but
table rows cost no compute. With this many rows there is room for two more n-gram lengths, up to the
last eight bytes; these gained 0.011 bpb.
"""

from config.textbooks_3m import *

n_grams = 7
gram_rows = 294700
