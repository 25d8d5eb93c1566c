"""Tiny Shakespeare, 800k, with a teacher: is a better model's opinion worth more than the text?

shakespeare_800k_256, but half of the loss is the distance to a trained model's distribution of the
next byte (arXiv 1503.02531). If text is read several times, the next byte is soon known, but the
other 255 probabilities still carry information (arXiv 2509.14786). The teacher also reads every
batch, which takes time, and its own training must be counted, too. Train it first:
python train.py config/shakespeare_1m.py

Result: 1.432 against 1.454 nats.
"""

from config.shakespeare_800k_256 import *

objective = "distill"
teacher = "out/shakespeare_1m"
teacher_share = 0.5
