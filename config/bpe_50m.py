"""50M parameters with GPT-2's tokenizer: stlm_50m's recipe on tokens, without the n-gram table.

Nearly half of the parameters are the tied embedding of 50257 tokens, which leaves 11 layers, 448
wide. A token is about 4.4 bytes, so a context of 1024 tokens covers as much text as 4500 bytes.
Prepare its data with: python prepare.py SOURCE --tokenizer=gpt2
"""

max_steps = 20000
tokenizer = "gpt2"
pooling = "none"
block_size = 1024
n_layer = 11
n_head = 7
n_embd = 448
n_match = 3
canon_reach = 3
# a step is 32768 tokens, about 144,000 bytes
batch_bytes = 32768
micro_batch = 16
dropout = 0.1
weight_decay = 0.1
eval_interval = 500
