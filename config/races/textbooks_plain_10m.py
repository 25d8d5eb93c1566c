"""Does pooling pay? 10M parameters, 20 minutes on 2 CPU cores: plain bytes, against textbooks_10m.

textbooks_plain_3m, with the additional parameters spent on the n-gram table, as in textbooks_10m.
"""

from config.textbooks_plain_3m import *

gram_rows = 239600
