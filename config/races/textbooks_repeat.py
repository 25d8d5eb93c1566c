"""The same text eight times over: where should the parameters be, and do other objectives than the next byte pay?

On a CPU a tiny model sees its text once or twice in the time there is; on a GPU it reads the same text ten times in
minutes. This is that case in small: the first 4 MB of the textbooks, 8 epochs, and 0.5M parameters in the proportions
that stlm_10m had (a tenth in the n-gram table, so that little can be learnt by heart; two thirds in the trunk). Steps,
not seconds: how often the text is read decides. Without dropout and decay, so that each idea shows what it does itself.
One trunk layer less for wider local layers took 0.044 bpb off, for more of them 0.05 (results/repeat.sh), a teacher
0.04, weight decay 0.026, several bytes ahead nothing, and masking cost 0.04.
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
weight_decay = 0.0
muon_lr = 0.015
adam_lr = 0.01
compile = "on"
eval_interval = 0
