"""Tiny Shakespeare, 800k, with a teacher: is a better model's opinion worth more than the text alone?

As shakespeare_800k, but half of the loss is the distance to what a trained model thinks of the next byte (arXiv
1503.02531). Where text is read several times, the byte that came is soon known, and the other 255 likelihoods still
have something to say (arXiv 2509.14786). The teacher reads every batch, too, which costs time at each step, and its own
training is to be counted: python train.py config/shakespeare_1m.py comes first. 1.432 against 1.454 nats.
"""

from config.shakespeare_800k import *

objective = "distill"
teacher = "out/shakespeare_1m"
teacher_share = 0.5
