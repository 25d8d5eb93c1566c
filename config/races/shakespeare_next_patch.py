"""Tiny Shakespeare, 800k, predicting patches: does a trunk that expects the next word help with its bytes?

As shakespeare_800k, but a linear head on the trunk also predicts the vector of the patch that it will read next, with a
weight of 0.03 beside the bytes' loss (next thought, in SuperTinyLanguageModels; as JEPA, arXiv 2301.08243, does it).
The trunk learns from the bytes only through what the decoder takes of it; this is a direct way. The head is thrown
away after training; log.jsonl shows as `variance` and `explained` whether the vectors became all alike. They did not,
and 1.451 against 1.454 nats is no more than the seeds' spread.
"""

from config.shakespeare_800k import *

objective = "next_patch"
patch_weight = 0.03
