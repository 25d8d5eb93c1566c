"""Can a tiny model get better by telling real text from its own? (SPIN, arXiv 2401.01335)

SPIN was shown for 7B models. Here the model continues the first bytes of 128 real rows. Then it
takes 8 steps, 16 rows each, in which it learns to prefer the real text to its own, and writes
again. The next-byte loss is added so that bits per byte do not get worse. The run starts from a
trained one, and takes its shape and data: --init_from=out/demo. The control, --spin_beta=0, spends
the same time on next-byte training.
"""

from config.demo import *

objective = "spin"
max_steps = 0
max_seconds = 300
# a row: 64 bytes to continue, 193 to write
block_size = 256
max_patches = 64
# 16 rows in a step
batch_bytes = 4096
spin_steps = 8
play_lr = 0.001
eval_interval = 80
log_interval = 8
