"""Does pooling pay? 10M parameters, 20 minutes on 2 CPU cores, pooled: to be held beside plain bytes and BPE.

textbooks_3m with four times the table: in twenty minutes a CPU has no time for wider layers, but rows cost no compute.
"""

from config.textbooks_3m import *

gram_rows = 294700
