"""Tiny Shakespeare, 800k, predicting patches: does expecting the next word help with its bytes?

shakespeare_800k_256, but a linear head on the trunk also predicts the vector of the next patch,
with a weight of 0.03 (next-thought prediction in SuperTinyLanguageModels; JEPA, arXiv 2301.08243).
The byte loss reaches the trunk only through the decoder; this is a direct way. The head is dropped
after training. `variance` and `explained` in log.jsonl show whether the vectors collapsed. They did
not, and 1.451 against 1.454 nats is within the spread of the seeds.
"""

from config.shakespeare_800k_256 import *

objective = "next_patch"
patch_weight = 0.03
