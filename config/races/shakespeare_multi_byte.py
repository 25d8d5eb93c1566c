"""Tiny Shakespeare, 800k, several bytes ahead: does early training learn faster from more targets?

As shakespeare_800k, but at first each place predicts the next three bytes at once, with weights 1, 1/2 and 1/4. All but
the first fall to 0 over the first half of the run, so that the model ends as one of the next byte. Which bytes come
soon can be learnt before their order (arXiv 2404.19737; from many to one: arXiv 2505.22757). It costs no parameters.
It won: 1.444 against 1.454 nats (3 seeds).
"""

from config.shakespeare_800k import *

objective = "multi_byte"
n_future = 3
