"""The same text eight times over: where other objectives than the next byte should pay, if anywhere.

On a CPU a tiny model sees its text once or twice in the time there is; on a GPU it reads the same text ten times in
minutes. This is that case in small: 0.5M parameters in the proportions of stlm_10m (a tenth of them in the n-gram
table, so that little can be learnt by heart) and the first 4 MB of the textbooks, 8 epochs. Steps, not seconds: how
often the text is read decides. Without dropout, so that each objective shows what it does itself. A teacher took
0.04 bpb off, several bytes ahead nothing, and masking cost 0.04.
"""

from config.stlm_10m import *

dataset = "textbooks4m"
max_steps = 8 * 4_000_000 // 8192
# model
n_layer = 3
n_head = 2
n_embd = 96
n_local_embd = 64
gram_rows = 1300
# training
batch_bytes = 8192
micro_batch = 0
dropout = 0.0
muon_lr = 0.015
adam_lr = 0.01
compile = "on"
eval_interval = 0
