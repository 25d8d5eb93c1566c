"""Does pooling pay? 10M parameters, 20 minutes on 2 CPU cores, BPE: the tokenizer that textbooks_10m does without.

textbooks_bpe_3m with nine times the table. In trials of 240 seconds that was better than layers of 256, than 16,383
tokens and than twice the batch.
"""

from config.textbooks_bpe_3m import *

gram_rows = 246000
