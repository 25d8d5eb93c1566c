"""Tiny Shakespeare, 800k, several bytes ahead: do more targets speed up early training?

shakespeare_800k_256, but at first each position predicts the next three bytes at once, with weights
1, 1/2 and 1/4. All but the first weight fall to 0 over the first half of the run. Which bytes come
soon can be learnt before their order (arXiv 2404.19737; from many bytes to one: arXiv 2505.22757).
It costs no parameters. It won: 1.444 against 1.454 nats (3 seeds).
"""

from config.shakespeare_800k_256 import *

objective = "multi_byte"
n_future = 3
