"""Does pooling pay? 3M parameters, 20 minutes on 2 CPU cores: BPE, against textbooks_3m.

In trials GPT-2's first 6143 tokens beat its first 2047 plus a fifth layer. The shape that suits the
pooled model suits this one, too: two layers and a table of hashed pairs, triples and fours of
tokens were 0.007 bpb better than four layers, and read 1.5 times as much text in the same time. A
context of 288 tokens covers as much text as 1000 bytes. Prepare its data with:
python prepare.py SOURCE --name=textbooks_gpt2_6144 --tokenizer=gpt2 --gpt2_vocab=6144
"""

from config.textbooks_3m import *

dataset = "textbooks_gpt2_6144"
tokenizer = "gpt2"
gpt2_vocab = 6144
pooling = "none"
max_patches = 0
block_size = 288
n_layer = 2
n_embd = 192
n_grams = 3
gram_rows = 27000
n_match = 3
# a step is 6912 tokens, about 24,000 bytes
batch_bytes = 6912
