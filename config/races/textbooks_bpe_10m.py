"""Does pooling pay? 10M parameters, 20 minutes on 2 CPU cores: BPE, against textbooks_10m.

textbooks_bpe_3m with nine times the table. In 240-second trials the larger table beat layers 256
wide, a vocabulary of 16,383 tokens, and twice the batch.
"""

from config.textbooks_bpe_3m import *

gram_rows = 246000
