"""Does pooling pay? 10M parameters, 20 minutes on 2 CPU cores: BPE, against textbooks_10m.

textbooks_bpe_3m with nine times the table. In trials of 240 seconds that beat layers of 256, 16,383
tokens, and twice the batch.
"""

from config.textbooks_bpe_3m import *

gram_rows = 246000
