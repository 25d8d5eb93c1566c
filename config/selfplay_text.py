"""Can a tiny model get better by telling real text from its own? (SPIN, arXiv 2401.01335; shown for 7B models.)

The model continues the first bytes of 128 real rows. Then it takes 8 steps, 16 rows each, in which it learns to prefer
the real text to what it wrote, and writes again. The next-byte loss beside it is meant to hold bits per byte. It starts
from a trained run and takes its shape and data: --init_from=out/demo. The control, the same time of next-byte training:
--spin_beta=0
"""

from config.demo import *

objective = "spin"
max_seconds = 300
# a row: 64 bytes are given, 192 are written
block_size = 256
max_patches = 64
# 16 rows in a step
batch_bytes = 4096
spin_steps = 8
play_lr = 0.001
eval_interval = 80
log_interval = 8
