"""Can a tiny model get better by telling real text from its own? (SPIN, arXiv 2401.01335; shown for 7B models.)

From the first bytes of real rows the model, as it is at the iteration's beginning, writes on; then it learns to raise
what is real against what it wrote. The next-byte loss beside it is meant to hold bits per byte. It starts from a
trained run and takes its shape and data: --init_from=out/demo. The control, the same time of next-byte training:
--opponent=none
"""

from config.demo import *

max_seconds = 300
# a row: 64 bytes are given, 192 are written
block_size = 256
max_patches = 64
# an iteration: 128 rows, a step of the player for every 16 of them
batch_bytes = 32768
micro_batch = 16
play_lr = 0.001
eval_interval = 10
log_interval = 1
