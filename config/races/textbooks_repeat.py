"""Text read eight times: where should the parameters be, and do other objectives help?

On a CPU a tiny model has time to read its text once or twice; on a GPU it reads the same text ten
times in minutes. This is that case in miniature: the first 4 MB of the textbooks, 8 epochs, and
0.5M parameters in the proportions that stlm_10m had (a tenth in the n-gram table, so that the model
can memorise little; two thirds in the trunk). The length is in steps, not seconds, because it
matters how often the text is read. It uses no dropout and no weight decay, so that each idea shows
its own effect.

One fewer trunk layer and wider local layers gained 0.044 bpb, with more local layers 0.05
(results/repeat.sh), a teacher 0.04, weight decay 0.026, several bytes ahead nothing; masking cost
0.04. A head that copies from four places took the best of them from 1.556 to 1.50 (--n_copy=4).
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
